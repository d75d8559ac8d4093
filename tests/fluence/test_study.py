"""The schema itself: frozen, strict about names, and the few things it computes."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

import fluence.study
from fluence.schema import NAME, allowed, child, study_schema, variants, walk
from fluence.study import Section, Study, group_slug


def study(**changes: object) -> Study:
    settings = {
        "name": "tiny",
        "data": {"datasets": {"faces": {"kind": "synthetic"}}, "training": "faces", "rated": "faces"},
        "models": {"small": {"kind": "vae"}, "wide": {"kind": "vae", "training": {"epochs": 3, "weight_decay": 0.0}}},
        "training": {"epochs": 9, "weight_decay": 0.5, "batch_size": 7},
    }
    return Study.model_validate(settings | changes)


def sections() -> list[type[Section]]:
    kinds = [kind for kind in vars(fluence.study).values() if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return [kind for kind in kinds if issubclass(kind, Section)]


@pytest.mark.parametrize("section", sections())
def test_every_section_is_frozen_and_refuses_keys_it_does_not_know(section: type[Section]) -> None:
    assert section.model_config["frozen"]
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        section.model_validate({"kind": "?", "no_such_setting": 1})


def test_a_study_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        study().name = "other"
    with pytest.raises(ValidationError, match="frozen"):
        study().training.epochs = 1


def test_a_model_overrides_single_training_settings_and_keeps_the_rest() -> None:
    assert study().training_of("small") == study().training
    own = study().training_of("wide")
    assert (own.epochs, own.weight_decay, own.batch_size) == (3, 0.0, 7)


def test_an_override_stays_what_it_is() -> None:
    """Sharpness-aware minimisation of one model alone: a section, not a plain dict."""
    models = {"plain": {"kind": "vae"}, "sharp": {"kind": "vae", "training": {"sam": {"rho": 0.1}}}}
    trained = study(models=models)
    assert trained.training_of("plain").sam is None
    assert trained.training_of("sharp").sam == fluence.study.Sam(rho=0.1)


def test_every_override_is_a_training_setting() -> None:
    assert set(fluence.study.TrainingOverride.model_fields) <= set(fluence.study.Training.model_fields)


def test_the_models_of_the_grid() -> None:
    assert study().model_names == ("small", "wide")
    assert study(grid={"models": ["wide"]}).model_names == ("wide",)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grid": {"models": ["smal"]}}, r"grid.models: no model is called 'smal'; there are: small, wide"),
        (
            {"data": {"datasets": {"a": {"kind": "synthetic"}}, "training": "b", "rated": "a"}},
            r"data.training: no data set is called 'b'; there are: a",
        ),
        ({"analysis": {"epsilon": {"report": 0.3}}}, r"analysis.epsilon.report: must be one of"),
        ({"analysis": {"sparsity": {"per": ["map", "unit"]}}}, r"must hold layer; write \[layer, map, unit\]"),
        ({"analysis": {"metrics": ["gini_map"]}}, r"gini_map is only computed if sparsity.per holds map"),
        ({"analysis": {"metrics": ["ginny"]}}, r"Input should be 'gini', 'l_eps'"),
        (
            {
                "training": {"batch_size": 32, "micro_batch_size": 8},
                "models": {"wide": {"kind": "vae", "training": {"batch_size": 7}}},
            },
            r"training.micro_batch_size: 8 is more than the 7 of training.batch_size, for model 'wide'",
        ),
        ({"analysis": {"typicality": {"reference": "training"}}}, r"reference: the rated images are the training imag"),
        (
            {
                "data": {
                    "datasets": {"a": {"kind": "synthetic"}, "b": {"kind": "synthetic"}},
                    "training": "a",
                    "rated": "b",
                },
                "analysis": {"typicality": {"reference": "training", "components": [4, 30]}},
            },
            r"30 components need 150 reference images, and record.reference_images is 64; write `reference_images: 15",
        ),
        ({"analysis": {"typicality": {"reference": "training", "groups": True}}}, r"groups: needs `reference: cross-f"),
        ({"analysis": {"typicality": {"components": [9, 9]}}}, r"components: 9, 9: each can be named once"),
        ({"analysis": {"typicality": {"components": 0}}}, r"greater than or equal to 1"),
    ],
)
def test_names_must_exist(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        study(**changes)


def test_group_slug() -> None:
    assert group_slug(("asian", "female")) == "asian-female"
    assert group_slug((" East Asian ", "Female")) == "east_asian-female"
    assert group_slug(("Latino_Hispanic",)) == "latino_hispanic"
    assert group_slug((3, "f")) == "3-f"  # type: ignore[arg-type]  # tables may hold numbers


@given(st.lists(st.text(min_size=1), min_size=1, max_size=3))
def test_a_group_slug_is_stable_and_fit_for_a_file_name(values: list[str]) -> None:
    slug = group_slug(tuple(values))
    assert slug.count("-") == len(values) - 1
    assert not set(slug) & set(" /\\.:$'\"\n")
    assert group_slug(tuple(slug.split("-"))) == slug


# ── The schema in words ──────────────────────────────────────────────────────────────────────────────────────────


def setting(*path: str | int) -> dict[str, object]:
    node = study_schema()
    for step in path:
        found = child(node, step)
        assert found is not None, step
        node = found
    return node


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (("training", "epochs"), "a whole number, at least 0"),
        (("training", "learning_rate"), "a number, above 0"),
        (("training", "validation_fraction"), "a number, at least 0 and below 0.9"),
        (("training", "gradient_clip_norm"), "a number, above 0; or null"),
        (("training", "precision"), "auto, fp32, bf16 or fp16"),
        (("training", "horizontal_flip"), "true or false"),
        (("data", "score"), "text"),
        (("data", "datasets", "mine", "csv", "root"), "text"),
        (("data", "group_by"), "a list of at least one item, each text"),
        (("record", "layers"), "encoder; or a list of at least one item, each text"),
        (("grid", "seeds", 0), "a whole number, at least 0"),
        (("models", "m", "vae", "reconstruction", 3), "a section with `loss:` l1, l2, ssim, lpips or dfc"),
        (("record", "lpips"), "a section with net, weights; or null"),
        (("models", "m", "vae", "upsampling"), "pixelshuffle, transposed, nearest or bilinear"),
    ],
)
def test_what_is_allowed(path: tuple[str | int, ...], words: str) -> None:
    assert allowed(setting(*path)) == words


def test_kinds_come_in_the_order_of_the_schema() -> None:
    assert list(variants(setting("data", "datasets", "x"))) == ["csv", "folder", "cfd", "fairface", "synthetic"]


def test_a_walk_meets_every_setting_of_every_section() -> None:
    met = {path[-1] for path, _ in walk(study_schema())}
    assert met == {name for section in sections() for name in section.model_fields}
    assert ("models", NAME, "latent", "size") in {path for path, _ in walk(study_schema())}


def test_the_schema_loads_neither_torch_nor_pandas() -> None:
    code = "import sys, fluence.studyfile; print(*sorted({'torch', 'pandas', 'numpy', 'h5py'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


def test_runs_of_several_grids_are_put_together() -> None:
    both = study(grid=[{"groups": ["all"], "seeds": [1, 0]}, {"models": ["wide"], "groups": ["all", "a-female"]}])
    assert both.trainings == (
        ("small", "all", 0),
        ("small", "all", 1),
        ("wide", "all", 0),
        ("wide", "all", 1),
        ("wide", "a-female", 0),
    )
    assert (both.model_names, both.group_names) == (("small", "wide"), ("all", "a-female"))
    assert both.seeds_of("wide") == (0, 1)
    assert both.seeds_of("wide", "a-female") == both.seeds_of("wide", "own-group") == (0,)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"grid": [{}, {"models": ["smal"]}]}, "grid.models"),
        ({"comparisons": {"size": {"question": "?", "models": ["small", "big"]}}}, "comparisons.size.models"),
    ],
)
def test_models_that_do_not_exist_are_refused(changes: dict[str, object], key: str) -> None:
    with pytest.raises(ValidationError, match=rf"{key}: no model is called .*; there are: small, wide"):
        study(**changes)


@pytest.mark.parametrize(
    ("short", "layers", "temperature"), [("57-5.0", (5, 7), 5.0), ("4-1", (4,), 1.0), ("4,10-2.5", (4, 10), 2.5)]
)
def test_softmax_attention_in_short(short: str, layers: tuple[int, ...], temperature: float) -> None:
    attention = study(models={"m": {"kind": "vae", "attention": short}}).models["m"].attention
    assert (attention.kind, attention.layers, attention.temperature) == ("softmax", layers, temperature)


@pytest.mark.parametrize("wrong", ["57", "0-5.0", "57-", "57-0", "a-1.0"])
def test_attention_in_short_that_means_nothing_is_refused(wrong: str) -> None:
    with pytest.raises(ValidationError):
        study(models={"m": {"kind": "vae", "attention": wrong}})
