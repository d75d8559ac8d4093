"""`fluence check`: every finding, each on a study that is right but for one thing."""

from __future__ import annotations

import errno
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from fluence.layout import Layout
from fluence.store.pretrained import IMAGENET_FILES
from fluence.study import Study
from jobs import check as check_module
from jobs.check import check
from jobs.findings import Finding, Report

GROUPS = (("asian", "female"), ("asian", "male"), ("black", "female"))


@pytest.fixture(autouse=True)
def _fixed_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine counts as one of 10 GFLOP/s; what timing it gives is tested in test_estimate."""
    monkeypatch.setattr("jobs.estimate.measure_speed", lambda: (10.0, "cpu"))


def write_faces(root: Path, num_images: int = 60, score: Callable[[int], str] = str) -> None:
    (root / "photos").mkdir(parents=True)
    lines = ["path,beauty,ethnicity,sex"]
    for i in range(num_images):
        (root / f"photos/{i}.png").write_bytes(b"checked by pack, not here")
        lines.append(f"photos/{i}.png,{score(i)},{','.join(GROUPS[i % 3])}")
    (root / "manifest.csv").write_text("\n".join(lines) + "\n")


class Place(NamedTuple):
    root: Path
    layout: Layout

    def check(self, *, strict: bool = False, data: dict[str, Any] | None = None, **changes: Any) -> Report:
        mine = {"kind": "csv", "root": str(self.root)}
        settings: dict[str, Any] = {
            "name": "tiny",
            "data": {"datasets": {"mine": mine}, "training": "mine", "rated": "mine", "image_size_px": 32}
            | (data or {}),
            "models": {"m": {"kind": "vae", "width": 0.25}},
            "analysis": {"covariates": ["group", "luminance_mean"]},
            "grid": {"groups": ["all", "asian-female"]},
        }
        return check(Study.model_validate(settings | changes), self.layout, strict=strict)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    write_faces(tmp_path / "faces")
    return Place(tmp_path / "faces", Layout(tmp_path / "results" / "tiny"))


def bad(report: Report) -> list[Finding]:
    return [finding for finding in report.findings if finding.level != "ok"]


def the_bad(report: Report) -> Finding:
    (finding,) = bad(report)
    return finding


def found(report: Report, key: str) -> Finding:
    return next(finding for finding in report.findings if finding.key == key)


# ── A good study ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_study_without_mistakes(place: Place) -> None:
    report = place.check()
    assert not bad(report)
    assert not report.has_errors
    assert found(report, "data.datasets.mine").message == "60 images"
    assert found(report, "data.score").message == "beauty: 60 of 60 images are rated, from 0 to 59"
    assert found(report, "grid.groups").message == "asian-female: 20 training images"
    assert found(report, "disk").message.startswith("about 0.0")
    assert "for 2 runs one after the other" in found(report, "time").message
    assert str(report).splitlines()[-1] == "0 errors, 0 warnings"


def test_nothing_is_written(place: Place) -> None:
    place.check()
    assert not place.layout.root.parent.exists()


def test_all_at_once(place: Place) -> None:
    report = place.check(
        data={"score": "beuty", "image_size_px": 33}, record={"lpips": {"weights": "/no/such/file.pth"}}
    )
    assert {finding.key for finding in bad(report)} >= {"data.datasets.mine", "data.image_size_px", "record.lpips"}
    assert str(report).splitlines()[-1] == "3 errors, 0 warnings"


# ── Data ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_root_that_does_not_exist(place: Place) -> None:
    shutil.rmtree(place.root)
    finding = the_bad(place.check())
    assert (finding.level, finding.key) == ("error", "data.datasets.mine.root")
    assert "no such folder" in finding.message


def test_a_variable_that_is_not_set(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_FACES", raising=False)
    report = place.check(data={"datasets": {"mine": {"kind": "csv", "root": "${NO_FACES}"}}})
    assert "set NO_FACES, or give --data mine=FOLDER" in the_bad(report).message


def test_a_score_column_that_does_not_exist(place: Place) -> None:
    finding = the_bad(place.check(data={"score": "beuty"}))
    assert finding.level == "error"
    assert "beuty: no such column" in finding.message
    assert finding.hint == "did you mean 'beauty'?"


def test_ratings_that_are_no_numbers_are_named_by_line(place: Place) -> None:
    shutil.rmtree(place.root)
    write_faces(place.root, score=lambda i: "pretty" if i in (3, 7) else str(i))
    findings = bad(place.check())
    assert [finding.level for finding in findings] == ["error", "error"]
    assert findings[0].message.startswith("line 5: beauty: 'pretty' is not a number")
    assert findings[1].message.startswith("line 9: ")


def test_constant_ratings(place: Place) -> None:
    shutil.rmtree(place.root)
    write_faces(place.root, score=lambda i: "4")
    finding = the_bad(place.check())
    assert (finding.level, finding.key) == ("error", "data.score")
    assert "all alike" in finding.message


def test_few_ratings(place: Place) -> None:
    shutil.rmtree(place.root)
    write_faces(place.root, score=lambda i: str(i) if i < 49 else "")
    finding = the_bad(place.check())
    assert (finding.level, finding.key) == ("warning", "data.score")
    assert "49 of 60 images are rated" in finding.message


def test_a_group_column_that_does_not_exist(place: Place) -> None:
    finding = the_bad(place.check(data={"group_by": ["gender"]}))
    assert finding.level == "error"
    assert "gender: no such column" in finding.message


def test_a_group_that_does_not_exist(place: Place) -> None:
    finding = the_bad(place.check(grid={"groups": ["all", "asian-femal"]}))
    assert (finding.level, finding.key, finding.hint) == ("error", "grid.groups", "did you mean 'asian-female'?")
    assert "black-female (20)" in finding.message


def test_a_group_that_is_too_small(place: Place) -> None:
    finding = the_bad(place.check(data={"min_group_size": 21}))
    assert (finding.level, finding.key) == ("warning", "grid.groups")
    assert "asian-female has 20 training images, fewer than data.min_group_size (21)" in finding.message


def test_a_grid_without_any_group_that_is_large_enough(place: Place) -> None:
    report = place.check(data={"min_group_size": 21}, grid={"groups": ["asian-female"]})
    assert [(finding.level, finding.key) for finding in bad(report)] == [("warning", "grid.groups"), ("error", "grid")]
    assert "`groups: [all]`" in bad(report)[-1].hint
    of_all = the_bad(place.check(data={"min_group_size": 1000}, grid={"groups": ["all"]}))
    assert (of_all.key, of_all.hint) == ("grid", "write a smaller min_group_size under data, or add training images")


def test_a_group_that_nobody_rated(place: Place, tmp_path: Path) -> None:
    write_faces(tmp_path / "other")
    other = {"kind": "csv", "root": str(tmp_path / "other"), "values": {"sex": {"female": "f"}}}
    datasets = {"mine": {"kind": "csv", "root": str(place.root)}, "other": other}
    finding = the_bad(place.check(data={"datasets": datasets, "rated": "other"}))
    assert (finding.level, finding.key) == ("warning", "grid.groups")
    assert "no rated image is in group 'asian-female'" in finding.message


def test_faces_that_fluence_draws_need_no_folder(place: Place) -> None:
    drawn = {"kind": "synthetic", "num_images": 60}
    report = place.check(data={"datasets": {"mine": drawn}}, grid={"groups": ["all"]})
    assert not bad(report)
    assert found(report, "data.datasets.mine").message == "60 images"


def test_a_data_set_that_is_only_mentioned_is_not_looked_at(place: Place) -> None:
    unused = {"kind": "csv", "root": "/no/such/folder"}
    mine = {"kind": "csv", "root": str(place.root)}
    assert not bad(place.check(data={"datasets": {"mine": mine, "unused": unused}}))


@pytest.mark.parametrize(("strict", "level"), [(False, "warning"), (True, "error")])
def test_a_missing_image(place: Place, strict: bool, level: str) -> None:
    (place.root / "photos/59.png").unlink()
    finding = the_bad(place.check(strict=strict))
    assert finding.level == level
    assert "photos/59.png" in finding.message


def test_all_images_missing_is_an_error(place: Place) -> None:
    shutil.rmtree(place.root / "photos")
    finding = the_bad(place.check())
    assert finding.level == "error"
    assert finding.hint == "is root right, and is path relative to it?"


@pytest.mark.parametrize(("covariate", "level"), [("age", "ok"), ("luminance", "warning")])
def test_a_covariate_that_does_not_exist(place: Place, covariate: str, level: str) -> None:
    report = place.check(analysis={"covariates": ["group", covariate]})
    finding = found(report, "analysis.covariates")
    assert finding.level == level
    assert f"no column {covariate!r}; it will be left out" in finding.message


# ── Models ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_image_size_that_the_encoder_cannot_halve(place: Place) -> None:
    finding = the_bad(place.check(data={"image_size_px": 48}))
    assert (finding.level, finding.key) == ("error", "data.image_size_px")
    assert "32 or 64" in finding.message


def test_a_layer_that_does_not_exist(place: Place) -> None:
    finding = the_bad(place.check(record={"layers": ["conv9"]}))
    assert (finding.level, finding.key) == ("error", "record.layers")


def test_typicality_of_a_layer_that_nobody_records(place: Place) -> None:
    finding = the_bad(place.check(analysis={"typicality": {"components": 5, "layers": ["conv1", "conv9"]}}))
    assert (finding.level, finding.key) == ("error", "analysis.typicality.layers")
    assert "no layer 'conv9'" in finding.message
    recorded = {"record": {"layers": ["conv1", "conv2"]}}
    finding = the_bad(place.check(analysis={"typicality": {"components": 5, "layers": ["conv3"]}}, **recorded))
    assert finding.message.endswith("Allowed: conv1, conv2")
    assert not bad(place.check(analysis={"typicality": {"components": 5, "layers": ["conv2"]}}, **recorded))


def test_umap_that_is_not_installed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    finding = the_bad(place.check(analysis={"embeddings": ["pca", "umap"]}))
    assert (finding.level, finding.key) == ("error", "analysis.embeddings")
    assert finding.hint.startswith("type pip install 'fluence[umap]'")
    assert not bad(place.check(analysis={"embeddings": ["pca", "tsne"]}))


def test_too_few_rated_images_for_typicality(place: Place) -> None:
    finding = the_bad(place.check(analysis={"typicality": {"components": [2, 11]}}))
    assert (finding.level, finding.key) == ("error", "analysis.typicality.components")
    assert finding.message == "11 components need 55 images, and 10 folds leave 54 of the 60 rated images"
    assert finding.hint == "write at most 10"
    finding = the_bad(place.check(analysis={"typicality": {"components": 4, "groups": True}}))
    assert "10 folds leave 18 of the 20 images in the largest group" in finding.message
    assert finding.hint == "write at most 3"
    assert not bad(place.check(analysis={"typicality": {"components": 3, "groups": True}}))


def test_a_norm_that_would_leave_nothing(place: Place) -> None:
    finding = the_bad(place.check(models={"m": {"kind": "vae", "norm": "instance"}}))
    assert (finding.level, finding.key) == ("error", "models.m.norm")
    assert not bad(place.check(models={"m": {"kind": "vae", "norm": "batch", "width": 0.25}}))


def test_a_constraint_that_the_norm_defeats_is_a_warning(place: Place) -> None:
    settings = {"kind": "vae", "width": 0.25, "norm": "instance", "sparsity": [{"penalty": "kl"}]}
    finding = the_bad(place.check(data={"image_size_px": 64}, models={"m": settings}))
    assert (finding.level, finding.key) == ("warning", "models.m.sparsity")
    assert "defeats the KL constraint on conv1, conv2, conv3, conv4, conv5" in finding.message


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"sparsity": [{"penalty": "kl", "layers": ["conv7"]}]}, "models.m", "'small' has no layer 'conv7'"),
        ({"sparsity": [{"penalty": "l0", "layers": ["mu"]}]}, "models.m.sparsity", "the code (mu) has no gates"),
        ({"sparsity": [{"penalty": "kl"}, {"penalty": "kl"}]}, "models.m.sparsity", "two kl constraints hold for"),
        ({"attention": "57-5.0"}, "models.m", "'small' has no layer '7'"),
        ({"attention": {"kind": "cbam", "layers": [6]}}, "models.m.attention", "the code (mu) has no gates"),
    ],
)
def test_layers_that_cannot_be_constrained_or_gated(
    place: Place, changes: dict[str, Any], key: str, message: str
) -> None:
    finding = the_bad(place.check(models={"m": {"kind": "vae", "width": 0.25} | changes}))
    assert (finding.level, finding.key) == ("error", key)
    assert message in finding.message


def test_weights_that_are_not_on_disk(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    lpips = {"kind": "vae", "width": 0.25, "reconstruction": [{"loss": "lpips"}]}
    report = place.check(models={"m": lpips}, record={"lpips": {}})
    assert [finding.key for finding in bad(report)] == ["models.m.reconstruction", "record.lpips"]
    assert IMAGENET_FILES["vgg16"] in bad(report)[0].message
    assert report.has_errors


def test_weights_of_an_encoder_that_are_not_on_disk(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    report = place.check(models={"m": {"kind": "vae", "architecture": "alexnet-5", "pretrained": "imagenet"}})
    finding = the_bad(report)
    assert (finding.level, finding.key) == ("error", "models.m.pretrained")
    assert f"the encoder (alexnet) needs the ImageNet weights {IMAGENET_FILES['alexnet']}" in finding.message
    assert f"curl --create-dirs -L -o {tmp_path}/hub/checkpoints/" in finding.message
    assert found(report, "disk").level == "ok"  # what it costs is known without the file


def test_weights_of_an_encoder_that_are_on_disk(place: Place, tmp_path: Path) -> None:
    (tmp_path / "mine.pth").write_bytes(b"looked into by the training")
    mine = {"kind": "vae", "architecture": "alexnet-5", "pretrained": str(tmp_path / "mine.pth")}
    report = place.check(models={"m": mine})
    assert not bad(report)
    assert found(report, "models.m.pretrained").message == f"weights of the encoder (alexnet): {tmp_path}/mine.pth"


def test_pretrained_weights_and_another_encoder(place: Place) -> None:
    finding = the_bad(place.check(models={"m": {"kind": "vae", "pretrained": "imagenet"}}))
    assert (finding.level, finding.key) == ("error", "models.m.pretrained")
    assert "found with architecture small, but the weights belong to the encoder" in finding.message


def test_random_weights_are_a_warning(place: Place) -> None:
    finding = the_bad(place.check(record={"lpips": {"weights": "random"}}))
    assert (finding.level, finding.key) == ("warning", "record.lpips")


# ── The machine ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("capability", "built_for", "fits"),
    [
        ((7, 0), ["sm_75", "sm_80", "sm_90", "compute_90"], False),  # a V100 and a recent torch
        ((7, 0), ["sm_70", "sm_80"], True),
        ((8, 0), ["sm_70", "sm_80"], True),
        ((8, 6), ["sm_80"], True),
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_80", "sm_86"], False),
        ((9, 0), ["sm_90a"], True),
        ((9, 0), ["sm_80", "compute_80"], True),
        ((12, 0), ["sm_90", "sm_100"], False),
        ((12, 0), ["sm_100", "sm_120"], True),
    ],
)
def test_whether_torch_has_code_for_the_gpu(capability: tuple[int, int], built_for: list[str], fits: bool) -> None:
    finding = check_module.kernels_fit(capability, built_for, "2.x")
    assert finding.level == ("ok" if fits else "error")
    assert f"sm_{capability[0]}{capability[1]}" in finding.message


def test_a_v100_is_told_which_torch_to_install(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80"])
    finding = the_bad(place.check())
    assert "no kernel image" in finding.message
    assert finding.hint == "type: pip install 'fluence[v100]' (torch before 2.11)"


def test_fp16_needs_a_gpu(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    finding = the_bad(place.check(training={"precision": "fp16"}))
    assert (finding.level, finding.key) == ("error", "training.precision")


def test_a_full_disk(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    finding = the_bad(place.check())
    assert (finding.level, finding.key) == ("error", "disk")
    assert "0.001 GB are free" in finding.message


def test_a_folder_that_cannot_be_written(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    finding = the_bad(place.check())
    assert (finding.level, finding.key) == ("error", "output")
    assert f"nothing can be written in {place.root.parent} (Permission denied)" in finding.message


def test_an_output_folder_that_is_a_file(place: Place) -> None:
    place.layout.root.parent.write_text("")
    finding = the_bad(place.check())
    assert (finding.level, finding.key) == ("error", "output")
    assert "Not a directory" in finding.message


@pytest.mark.parametrize(
    ("hours", "words"),
    [(0.001, "a minute"), (0.5, "30 minutes"), (1.99, "119 minutes"), (5.04, "5 hours"), (1234.5, "1,234 hours")],
)
def test_durations_in_words(hours: float, words: str) -> None:
    assert check_module._duration(hours) == words


# ── Kinds of model ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ({"column": "beuaty", "unit": 0}, "'beuaty' of the training images does not exist; did you mean 'beauty'?"),
        ({"column": "sex", "unit": 0}, "'sex' of the training images does not hold numbers; "),
        ({"column": "beauty", "unit": 16}, "unit 16 is to follow 'beauty', but with images of 32 px the code has 16"),
    ],
)
def test_attributes_that_cannot_be_followed(place: Place, attribute: dict[str, Any], expected: str) -> None:
    finding = the_bad(place.check(models={"m": {"kind": "ar-vae", "width": 0.25, "attributes": [attribute]}}))
    assert (finding.level, finding.key) == ("error", "models.m.attributes")
    assert expected in finding.message


def test_what_packing_measures_can_be_followed(place: Place) -> None:
    attributes = [{"column": "beauty", "unit": 0}, {"column": "edge_density", "unit": 15}]
    assert bad(place.check(models={"m": {"kind": "ar-vae", "width": 0.25, "attributes": attributes}})) == []


def test_a_tilt_that_makes_no_shell_is_a_warning(place: Place) -> None:
    def model(tau: float) -> dict[str, Any]:
        return {"m": {"kind": "vae", "width": 0.25, "prior": {"kind": "tilted", "tau": tau}}}

    finding = the_bad(place.check(models=model(3.9)))
    assert (finding.level, finding.key) == ("warning", "models.m.prior.tau")
    assert "16 latent units, τ = 3.9 draws the means to the origin" in finding.message
    report = place.check(models=model(15))
    assert bad(report) == []
    assert "shell of radius 14.5" in found(report, "models.m.prior.tau").message
