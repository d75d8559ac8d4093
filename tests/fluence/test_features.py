"""A training that compares features of a model trained before: the right weights, frozen, at the right layers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from fluence.errors import ArtifactError, StudyError
from fluence.features import EncoderFeatures, trained_features
from fluence.losses import Objective
from fluence.models import Recorder
from fluence.models.trained import TrainedModel, load_trained
from fluence.training import Ranks, TrainSpec, train
from tests.fluence.training.tiny_training import SIZE_PX, spec_in

DFC = {"loss": "dfc", "network": {"kind": "model", "model": "teacher"}}


def run(spec: TrainSpec) -> None:
    train(spec, Ranks(), stop=lambda: False, checkpoint_interval_s=1e9, quiet=True)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    """A model with batch normalisation, trained for an epoch."""
    spec = spec_in(tmp_path_factory.mktemp("teacher"), model={"norm": "batch"}, epochs=1)
    run(spec)
    return TrainedModel(spec.model, spec.layout.weights(spec.run.id))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, SIZE_PX, SIZE_PX, generator=torch.Generator().manual_seed(0))


def test_its_layers_are_what_extraction_records(teacher, images):
    network = EncoderFeatures(teacher, SIZE_PX)
    model = load_trained(teacher.model, SIZE_PX, teacher.weights)
    recorder = Recorder(model, "encoder", "post")
    model(images)
    values = recorder.take()
    assert network.layers == tuple(values)
    assert network.default_layers == ("conv1", "conv2", "conv3", "conv4", "conv5")
    for name, found in zip(("mu", "conv2"), network(images, ("mu", "conv2")), strict=True):
        assert torch.equal(found, values[name])


def test_its_weights_are_the_trained_ones(teacher):
    saved = torch.load(teacher.weights, weights_only=True)["state"]
    found = EncoderFeatures(teacher, SIZE_PX).model.state_dict()
    assert found.keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in found.items())


def test_its_statistics_do_not_drift(teacher, images, tmp_path):
    """Mistake: feature network of a DFC loss back in train mode, its BatchNorm drifting."""
    spec = spec_in(tmp_path, model={"reconstruction": [DFC]})
    objective = Objective(spec.model, trained_features({"teacher-all": teacher}, SIZE_PX)).train()
    network = next(module for module in objective.modules() if isinstance(module, EncoderFeatures))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x = images.clone().requires_grad_()
    network(x, network.default_layers)[0].sum().backward()
    assert x.grad.abs().sum() > 0
    assert not any(module.training for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in objective.parameters())


def test_a_training_against_it(teacher, tmp_path):
    """The term is logged under the model's name, and the reconstruction comes nearer in the teacher's eyes."""
    model = {"reconstruction": [DFC | {"weight": 1000.0}], "kl_weight": 0}
    spec = replace(spec_in(tmp_path, model=model, epochs=4, learning_rate=1e-2), trained={"teacher-all": teacher})
    before = teacher.weights.read_bytes()
    run(spec)
    lines = spec.layout.metrics_log(spec.run.id).read_text().splitlines()
    losses = [row["reconstruction/dfc_teacher-all"] for row in map(json.loads, lines) if row["phase"] == "validation"]
    assert losses[-1] < losses[0]
    assert teacher.weights.read_bytes() == before


def test_weights_that_are_not_there_or_not_its_own(teacher, tmp_path):
    with pytest.raises(ArtifactError, match="the model has to be trained first"):
        EncoderFeatures(TrainedModel(teacher.model, tmp_path / "none.pt"), SIZE_PX)
    wider = teacher.model.model_copy(update={"width": 0.25})
    with pytest.raises(ArtifactError, match="these weights belong to another network"):
        EncoderFeatures(TrainedModel(wider, teacher.weights), SIZE_PX)


def test_a_layer_that_it_has_not(teacher, tmp_path):
    spec = spec_in(tmp_path, model={"reconstruction": [DFC | {"layers": ["conv9"]}]})
    with pytest.raises(StudyError, match="feature network teacher-all has no layer 'conv9'"):
        Objective(spec.model, trained_features({"teacher-all": teacher}, SIZE_PX))
