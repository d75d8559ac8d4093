"""Weights are found on disk and checked, or there is an error that says what to do."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest

from fluence.errors import ArtifactError, StudyError
from fluence.store import pretrained
from fluence.store.pretrained import LPIPS_TRUNKS, Weights, needs_of
from fluence.study import Study


def find_weights(network: str, setting: str):
    return pretrained.find_weights(network, setting, "LPIPS")


def write_named_by_its_hash(folder, content: bytes = b"weights"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    path.write_bytes(content)
    return path


def test_random_needs_no_file():
    assert find_weights("vgg16", "random") is None


def test_imagenet_weights_lie_where_torchvision_keeps_them(tmp_path, monkeypatch):
    path = write_named_by_its_hash(tmp_path / "hub" / "checkpoints")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setitem(pretrained.IMAGENET_FILES, "alexnet", path.name)
    assert find_weights("alexnet", "imagenet") == path


def test_default_folder_is_that_of_torch(monkeypatch, tmp_path):
    monkeypatch.delenv("TORCH_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert pretrained.hub_folder() == tmp_path / ".cache" / "torch" / "hub" / "checkpoints"


def test_names_are_those_of_torchvision():
    from torchvision import models

    enums = {
        "alexnet": models.AlexNet_Weights,
        "vgg16": models.VGG16_Weights,
        "vgg19": models.VGG19_Weights,
        "squeezenet1_1": models.SqueezeNet1_1_Weights,
    }
    assert {n: e.IMAGENET1K_V1.url.rsplit("/", 1)[1] for n, e in enums.items()} == pretrained.IMAGENET_FILES
    assert all(enum.IMAGENET1K_V1.url.startswith(pretrained._URL) for enum in enums.values())


@pytest.mark.parametrize(("key", "otherwise"), [("weights", "weights: random"), ("pretrained", "pretrained: null")])
@pytest.mark.parametrize("network", pretrained.IMAGENET_FILES)
def test_missing_imagenet_weights(network, key, otherwise, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name, folder = pretrained.IMAGENET_FILES[network], tmp_path / "hub" / "checkpoints"
    with pytest.raises(StudyError) as error:
        pretrained.find_weights(network, "imagenet", "the trunk", key=key)
    message = str(error.value)
    assert f"the trunk needs the ImageNet weights {name}, and they are not in {folder}" in message
    assert f"curl --create-dirs -L -o {folder / name} https://download.pytorch.org/models/{name}" in message
    assert f"as `{key}:`; or write `{otherwise}`" in message


def test_missing_file_of_ones_own(tmp_path):
    with pytest.raises(StudyError, match=r"there is no weights file .*mine\.pth; allowed are `imagenet`, `random`"):
        find_weights("vgg16", str(tmp_path / "mine.pth"))


def test_variables_in_the_path(tmp_path, monkeypatch):
    path = write_named_by_its_hash(tmp_path)
    monkeypatch.setenv("MY_WEIGHTS", str(tmp_path))
    assert find_weights("vgg16", f"${{MY_WEIGHTS}}/{path.name}") == path


def test_a_file_that_is_not_what_its_name_says(tmp_path):
    path = write_named_by_its_hash(tmp_path)
    path.write_bytes(b"weights, cut sho")
    with pytest.raises(ArtifactError, match=r"its SHA-256 begins with [0-9a-f]{8}, its name says"):
        find_weights("vgg16", str(path))


def test_a_name_without_a_hash_is_taken_as_it_is(tmp_path):
    path = tmp_path / "face-features.pth"
    path.write_bytes(b"anything")
    assert find_weights("vgg16", str(path)) == path


def test_finding_weights_does_not_import_torch():
    code = "import sys, fluence.store.pretrained, fluence.architectures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def study(models: dict, **record: object) -> Study:
    content = {
        "name": "tiny",
        "data": {"datasets": {"faces": {"kind": "synthetic"}}, "training": "faces", "rated": "faces"},
        "models": models,
        "record": record,
    }
    return Study.model_validate(content)


def test_what_a_study_needs(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    networks = [
        {"kind": "vgg19"},
        {"kind": "vggface", "weights": "~/face.pth"},
        {"kind": "attgan", "weights": "random"},
        {"kind": "model", "model": "plain"},
    ]
    reconstruction = [{"loss": "lpips"}, *({"loss": "dfc", "network": network} for network in networks), {"loss": "l1"}]
    models = {
        "plain": {"kind": "vae"},
        "all": {"kind": "vae", "reconstruction": reconstruction},
        "encoder": {"kind": "ae", "architecture": "vgg16-5", "pretrained": "imagenet"},
    }
    needs = needs_of(study(models, lpips={"net": "squeeze"}))
    hub = tmp_path / "hub" / "checkpoints"
    assert [(need.key, need.who, need.path) for need in needs] == [
        ("models.all.reconstruction", "LPIPS (vgg)", hub / "vgg16-397923af.pth"),
        ("models.all.reconstruction", "DFC (vgg19)", hub / "vgg19-dcbb9e9d.pth"),
        ("models.all.reconstruction", "DFC (vggface)", (tmp_path.home() / "face.pth")),
        ("models.all.reconstruction", "DFC (attgan)", None),
        ("models.encoder.pretrained", "the encoder (vgg16)", hub / "vgg16-397923af.pth"),
        ("record.lpips", "LPIPS (squeeze)", hub / "squeezenet1_1-b8a52dc0.pth"),
    ]
    assert [need.url and need.url.rpartition("/")[2] for need in needs] == [
        "vgg16-397923af.pth", "vgg19-dcbb9e9d.pth", None, None, "vgg16-397923af.pth", "squeezenet1_1-b8a52dc0.pth",
    ]  # fmt: skip


def test_models_that_are_not_in_the_grid_need_nothing():
    content = study({"used": {"kind": "vae"}, "spare": {"kind": "vae", "reconstruction": [{"loss": "lpips"}]}})
    grid = content.grid.model_copy(update={"models": ("used",)})
    assert needs_of(content.model_copy(update={"grid": grid})) == ()


def test_what_nobody_publishes_has_no_imagenet_weights():
    with pytest.raises(StudyError, match=r"DFC \(vggface\): there are no ImageNet weights of it; give the path"):
        Weights("models.m.reconstruction", "DFC (vggface)", "vggface", "imagenet").find()


def test_every_trunk_of_lpips_is_published():
    assert set(LPIPS_TRUNKS.values()) <= set(pretrained.IMAGENET_FILES)
