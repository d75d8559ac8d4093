"""Pretrained encoders: torchvision's weights are found, checked, and give torchvision's values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from fluence.errors import ArtifactError, StudyError
from fluence.models import build, record
from fluence.models.encoders import IMAGENET_MEAN, IMAGENET_SD
from fluence.store.pretrained import IMAGENET_FILES
from tests.fluence.models.every_model import model as settings_of

NARROW = (2, 4)  # shapes of a head that nobody needs, so that files stay small


def alexnet_settings(path: Path | str):
    return settings_of(architecture="alexnet-5", width=1, pretrained=str(path))


@pytest.fixture(scope="module")
def torchvisions() -> nn.Module:
    """Torchvision's convolutions with random weights and biases."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = torchvision.models.alexnet(weights=None).features
        for module in features:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.bias)
    return features.eval()


@pytest.fixture(scope="module")
def weights_file(torchvisions, tmp_path_factory) -> Path:
    """A file with torchvision's names, a classifier among them."""
    state = {f"features.{name}": value for name, value in torchvisions.state_dict().items()}
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(state | {"classifier.1.weight": torch.zeros(NARROW)}, path)
    return path


def test_every_convolution_gets_its_weights(torchvisions, weights_file):
    model = build(alexnet_settings(weights_file), 32, 0)
    theirs = [module for module in torchvisions if isinstance(module, nn.Conv2d)]
    ours = [module for module in model.encoder.modules() if isinstance(module, nn.Conv2d)]
    assert len(theirs) == len(ours) == 5
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.weight, b.weight)
        assert torch.equal(a.bias, b.bias)


def test_values_are_torchvisions_of_an_image_with_two_zeros_more_at_each_side(torchvisions, weights_file):
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mean, sd = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_SD))
    with torch.no_grad():
        expected = torchvisions[1](torchvisions[0](nn.functional.pad((images - mean) / sd, (2, 2, 2, 2))))
    model = build(alexnet_settings(weights_file), 64, 0).eval()
    with record(model, ["conv1"], "post") as recorder, torch.no_grad():
        model(images)
    torch.testing.assert_close(recorder.values["conv1"], expected, rtol=1e-4, atol=1e-5)


def test_vgg16_is_torchvisions_to_the_last_map(tmp_path):
    """Of a whole VGG16, so that every position in the file is right; its convolutions alone make 59 MB."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = torchvision.models.vgg16(weights=None).features.eval()
    torch.save({f"features.{name}": value for name, value in features.state_dict().items()}, tmp_path / "vgg16.pth")
    model = build(settings_of(architecture="vgg16-5", width=1, pretrained=str(tmp_path / "vgg16.pth")), 32, 0)
    images = torch.rand(1, 3, 32, 32)
    mean, sd = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_SD))
    with torch.no_grad():
        torch.testing.assert_close(model.encoder(model.scale(images)), features((images - mean) / sd))


def test_input_is_that_of_imagenet_only_with_pretrained_weights(weights_file):
    image = torch.rand(1, 3, 32, 32)
    pretrained = build(alexnet_settings(weights_file), 32, 0)
    by_hand = torch.stack([(image[:, c] - IMAGENET_MEAN[c]) / IMAGENET_SD[c] for c in range(3)], dim=1)
    torch.testing.assert_close(pretrained.scale(image), by_hand)
    assert torch.equal(build(settings_of(), 32, 0).scale(image), 2 * image - 1)


def test_the_rest_is_as_without_and_belongs_to_the_seed(weights_file):
    pretrained, plain = build(alexnet_settings(weights_file), 32, 3), build(alexnet_settings(weights_file).model_copy(
        update={"pretrained": None}), 32, 3)  # fmt: skip
    assert pretrained.state_dict().keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        assert torch.equal(pretrained.state_dict()[name], value) == (not name.startswith("encoder."))


def test_without_reading_no_file_is_needed(tmp_path):
    """A trained network takes its weights from its own file, and an estimate needs none."""
    model = build(alexnet_settings(tmp_path / "absent.pth"), 32, 0, pretrained=False)
    assert model.scale(torch.zeros(1, 3, 1, 1)).flatten()[0].item() == pytest.approx(-0.485 / 0.229)


# ── Files that will not do ───────────────────────────────────────────────────────────────────────────────────────


def test_imagenet_weights_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(StudyError) as error:
        build(alexnet_settings("imagenet"), 32, 0)
    name = IMAGENET_FILES["alexnet"]
    assert f"the encoder (alexnet) needs the ImageNet weights {name}" in str(error.value)
    assert f"curl --create-dirs -L -o {tmp_path}/hub/checkpoints/{name}" in str(error.value)
    assert "`pretrained: null`" in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(StudyError, match=r"the encoder \(alexnet\): there is no weights file .*mine\.pth; .*`null`"):
        build(alexnet_settings(tmp_path / "mine.pth"), 32, 0)


def test_a_hash_that_does_not_fit(weights_file, tmp_path):
    path = tmp_path / "alexnet-00000000.pth"
    path.write_bytes(weights_file.read_bytes())
    with pytest.raises(ArtifactError, match="its name says 00000000"):
        build(alexnet_settings(path), 32, 0)


def changed(weights_file: Path, path: Path, **values: torch.Tensor | None) -> Path:
    state = torch.load(weights_file, weights_only=True)
    for name, value in values.items():
        state[name.replace("_", ".")] = value
    torch.save({name: value for name, value in state.items() if value is not None}, path)
    return path


@pytest.mark.parametrize(
    ("value", "there"), [(None, "missing"), (torch.zeros(192, 64, 3, 3), r"of shape \(192, 64, 3, 3\)")]
)
def test_another_networks_weights(weights_file, tmp_path, value, there):
    path = changed(weights_file, tmp_path / "other.pth", features_3_weight=value)
    with pytest.raises(
        ArtifactError,
        match=rf"torchvision's alexnet: features\.3\.weight is {there}, and conv2\.conv\.weight of the encoder has "
        r"shape \(192, 64, 5, 5\); correct `pretrained:` or `architecture:`",
    ):
        build(alexnet_settings(path), 32, 0)


@pytest.mark.parametrize("content", [b"no weights", b""])
def test_a_file_that_is_no_state_dict(tmp_path, content):
    (tmp_path / "mine.pth").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"mine\.pth cannot be read as a state dict .* correct `pretrained:`"):
        build(alexnet_settings(tmp_path / "mine.pth"), 32, 0)
