"""Pixels in the place of a network: what is recorded is the image, once, and nothing else is measured of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from analysis.measure import measure
from fluence.activations import extract
from fluence.architectures import PIXELS, recordable_names
from fluence.store.activations import Activations
from fluence.store.files import read_table
from fluence.store.packed import Packed
from fluence.store.weights import read_weights
from fluence.study import Analysis, PixelsModel, Record
from fluence.training import hand_on_nothing
from tests.fluence.test_activations import RUN, make_spec
from tests.fluence.test_study import study

NETWORK, PIXEL = {"kind": "vae"}, {"kind": "pixels"}


def gini(values: np.ndarray) -> float:
    """Mean absolute difference of all pairs over twice the mean: another way to the same number."""
    return float(np.abs(values[:, None] - values[None, :]).mean() / (2 * values.mean()))


def test_the_recorded_layer_is_the_image_and_its_gini_is_right(tmp_path: Path) -> None:
    spec = replace(make_spec(tmp_path), model=PixelsModel(kind="pixels"), record=Record(layers=("conv1",)))
    hand_on_nothing(RUN, spec.layout, spec.key)
    assert read_weights(spec.layout.weights(RUN.id))[0] == {}
    extract(spec)
    packed = Packed(spec.rated)
    images = packed.read(np.arange(len(packed))).transpose(0, 3, 1, 2).reshape(len(packed), -1) / 255
    with Activations(spec.layout.activations(RUN.id)) as file:
        assert [layer.name for layer in file.layers] == [PIXELS]
        assert file.layers[0].shape == (3, packed.image_size_px, packed.image_size_px)
        np.testing.assert_allclose(file.read(PIXELS, 0, len(packed)), images, rtol=2**-11, atol=0)
    measure(RUN, spec.layout, Analysis().epsilon, key="measured")
    metrics = read_table(spec.layout.metrics(RUN.id))
    assert set(metrics["layer"]) == {PIXELS}, "no reconstruction error and no sharpness of pixels"
    found = metrics[metrics["metric"] == "gini"].set_index("image_id")["value"]
    for image_id, image in zip(packed.table["image_id"], images, strict=True):
        assert found[image_id] == pytest.approx(gini(image.astype(np.float16).astype(np.float64)), abs=1e-9)


def test_pixels_make_one_run_whatever_the_grid_has() -> None:
    grid = {"groups": ["a-female", "b-male"], "seeds": [3, 1]}
    runs = study(models={"small": NETWORK, "eye": PIXEL}, grid=grid).trainings
    assert [run for run in runs if run[0] == "eye"] == [("eye", "all", 1)]
    assert len(runs) == 5
    assert study(models={"small": NETWORK, "eye": PIXEL}, grid=grid).group_names == ("a-female", "b-male", "all")
    assert study(models={"eye": PIXEL}).seeds_of("eye") == (0,)
    assert recordable_names(PixelsModel(kind="pixels")) == (PIXELS,)


def test_pixels_have_no_settings_and_no_features() -> None:
    with pytest.raises(ValidationError, match="training"):
        study(models={"eye": PIXEL | {"training": {"epochs": 3}}})
    compares = NETWORK | {"reconstruction": [{"loss": "dfc", "network": {"kind": "model", "model": "eye"}}]}
    with pytest.raises(ValidationError, match=r"'eye' has no features to compare, only pixels; write `loss: l2`"):
        study(models={"eye": PIXEL, "small": compares})
