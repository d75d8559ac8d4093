"""A plain ImageNet VGG16, not trained on: what is recorded of it is what torchvision's own network says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from torch import nn

from fluence.activations import ExtractSpec, extract
from fluence.layout import Layout, Run
from fluence.store.activations import Activations
from fluence.store.packed import Packed, PackedWriter
from fluence.study import Study
from fluence.training import TrainSpec, train

SIZE_PX, NUM_IMAGES = 32, 12
RUN = Run("vgg", "all", 0, "vgg-all-s0-00000000")
NAMES = [f"conv{block}_{number}" for block, size in enumerate((2, 2, 3, 3, 3), 1) for number in range(1, size + 1)]


@pytest.fixture(scope="module")
def torchvisions() -> nn.Module:
    """The whole network as torchvision builds it, with weights and biases of the test."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torchvision.models.vgg16(weights=None).features
        for module in network:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.bias, std=0.1)
    return network.eval()


@pytest.fixture(scope="module")
def layout(torchvisions: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """The folder of a study that asks for this network: `pretrained`, and no epochs."""
    folder = tmp_path_factory.mktemp("study")
    state = {f"features.{name}": value for name, value in torchvisions.state_dict().items()}
    torch.save(state, folder / "vgg16.pth")
    study = as_a_study_says_it(folder / "vgg16.pth")
    layout = Layout(folder)
    write_images(layout.packed("faces"))
    model, packed, group_by = study.models["vgg"], layout.packed("faces"), ("ethnicity",)
    train(
        TrainSpec(
            model=model, training=study.training_of("vgg"), run=RUN, layout=layout, packed=packed,
            group_by=group_by, min_group_size=2, key="k",
        ),
        stop=lambda: False, checkpoint_interval_s=1e9, quiet=True,
    )  # fmt: skip
    extract(ExtractSpec(model, study.record, RUN, layout, packed, packed, group_by, 0.1, "k"))
    return layout


def as_a_study_says_it(weights: Path) -> Study:
    return Study.model_validate(
        {
            "name": "plain",
            "data": {"datasets": {"faces": {"kind": "synthetic"}}, "training": "faces", "rated": "faces"},
            "models": {
                "vgg": {
                    "kind": "ae",
                    "architecture": "vgg16-5",
                    "pretrained": str(weights),
                    "latent": {"kind": "conv", "channels": 1},
                    "training": {"epochs": 0},
                }
            },
            "record": {"layers": NAMES, "reference_images": 4, "sample_images": 1},
        }
    )


def write_images(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    table = pd.DataFrame({"image_id": [f"face-{number}" for number in range(NUM_IMAGES)], "ethnicity": "a"})
    with PackedWriter(path, SIZE_PX, {}) as writer:
        writer.append(pixels)
        writer.finish(table, pd.DataFrame())


def after_each_relu(network: nn.Module, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """The values of every layer for images prepared as torchvision prepares them, copied before anything overwrites
    them."""
    prepare = torchvision.transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    values = prepare(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    found = []
    with torch.no_grad():
        for module in network:
            values = module(values)
            if isinstance(module, nn.ReLU):
                found.append(values.clone().flatten(1).numpy())
    return dict(zip(NAMES, found, strict=True))


def test_recorded_layers_are_torchvisions_after_each_relu(layout: Layout, torchvisions: nn.Module) -> None:
    packed = Packed(layout.packed("faces"))
    expected = after_each_relu(torchvisions, packed.read())
    with Activations(layout.activations(RUN.id)) as file:
        assert [layer.name for layer in file.layers] == NAMES
        assert list(file.image_ids) == list(packed.table["image_id"])
        for name, values in expected.items():
            stored = file.read(name, 0, NUM_IMAGES).astype(np.float32)
            assert stored.std() > 0
            np.testing.assert_allclose(stored, values, rtol=2e-3, atol=2e-3 * values.std())
            rows = [list(file.image_ids).index(name) for name in file.reference_ids]
            np.testing.assert_allclose(file.reference(name), stored[rows], rtol=2e-3, atol=2e-3 * values.std())


def test_the_scale_of_the_images_matters(layout: Layout, torchvisions: nn.Module) -> None:
    """With images in −1 … 1, as other models see them, the values would be others."""
    packed = Packed(layout.packed("faces"))
    with torch.no_grad():
        images = 2 * torch.from_numpy(packed.read()).permute(0, 3, 1, 2) / 255 - 1
        wrong = torchvisions[:2](images).flatten(1).numpy()
    with Activations(layout.activations(RUN.id)) as file:
        assert np.abs(file.read("conv1_1", 0, NUM_IMAGES) - wrong).max() > 0.1
