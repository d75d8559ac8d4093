"""Extraction: complete, in order, continued after any interruption, and the same bits whatever happened."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fluence.activations import ExtractSpec, extract
from fluence.errors import ArtifactError, Interrupted
from fluence.layout import Layout, Run
from fluence.models import build
from fluence.models.recording import record
from fluence.store.activations import Activations
from fluence.store.packed import Packed, PackedWriter
from fluence.store.weights import write_weights
from fluence.study import Record, VaeModel

SIZE_PX, NUM_IMAGES = 32, 300
MODEL = VaeModel(kind="vae", width=0.125)
RUN = Run("small", "a-female", 0, "small-a-female-s0-00000000")


def make_spec(folder: Path, num_images: int = NUM_IMAGES, record: Record | None = None) -> ExtractSpec:
    """A study folder with a packed data set and an untrained network."""
    layout = Layout(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (num_images, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    table = pd.DataFrame({"image_id": [f"image-{i:03d}" for i in range(num_images)]})
    table["ethnicity"], table["sex"] = ["a", "b"] * (num_images // 2) + ["a"] * (num_images % 2), "female"
    with PackedWriter(layout.packed("faces"), SIZE_PX, {}) as writer:
        writer.append(pixels)
        writer.finish(table, pd.DataFrame())
    write_weights(layout.weights(RUN.id), build(MODEL, SIZE_PX, seed=0).state_dict(), {"epoch": 0})
    packed = layout.packed("faces")
    chosen = record or Record(reference_images=5, sample_images=3)
    return ExtractSpec(MODEL, chosen, RUN, layout, packed, packed, ("ethnicity", "sex"), 0.1, "key")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> ExtractSpec:
    spec = make_spec(tmp_path_factory.mktemp("undisturbed"))
    extract(spec)
    return spec


def same_exhibits(one: Activations, other: Activations) -> bool:
    a, b = one.exhibits(), other.exhibits()
    assert a is not None
    assert b is not None
    arrays = [(a.originals, b.originals), (a.interpolations, b.interpolations)]
    for layer in one.layers:
        shown = vars(a.layers[layer.name]), vars(b.layers[layer.name])
        arrays += [(shown[0][part], shown[1][part]) for part in shown[0]]
        arrays += zip(one.shown_units(layer.name), other.shown_units(layer.name), strict=True)
    return list(a.image_ids) == list(b.image_ids) and all(np.array_equal(x, y) for x, y in arrays)


def same_file(one: ExtractSpec, other: ExtractSpec) -> bool:
    with Activations(one.layout.activations(RUN.id)) as a, Activations(other.layout.activations(RUN.id)) as b:
        layers = all(
            np.array_equal(a.read(layer.name, 0, 10**6), b.read(layer.name, 0, 10**6))
            and np.array_equal(a.reference(layer.name), b.reference(layer.name))
            for layer in a.layers
        )
        samples = all(
            np.array_equal(x, y)
            for which in ("rated", "training")
            for x, y in zip(a.samples(which), b.samples(which), strict=True)
        )
        return layers and samples and same_exhibits(a, b) and a.probes.equals(b.probes) and a.layers == b.layers


def test_every_layer_of_every_image_is_there_and_belongs_to_its_id(undisturbed: ExtractSpec) -> None:
    packed = Packed(undisturbed.rated)
    network = build(MODEL, SIZE_PX, seed=0).eval()
    row = 217
    image = torch.from_numpy(packed.read(np.array([row]))).permute(0, 3, 1, 2) / 255
    with Activations(undisturbed.layout.activations(RUN.id)) as file:
        assert list(file.image_ids) == list(packed.table["image_id"])
        assert [layer.name for layer in file.layers] == ["conv1", "conv2", "conv3", "conv4", "conv5", "mu"]
        with torch.no_grad(), record(network, "encoder", "post") as recorder:
            output = network(image)
        for layer in file.layers:
            expected = recorder.values[layer.name].flatten().numpy()
            stored = file.read(layer.name, row, row + 1)[0]
            np.testing.assert_allclose(stored, expected, rtol=1e-3, atol=1e-4)
            assert layer.shape == tuple(recorder.values[layer.name].shape[1:])
        error = (output.reconstruction - image).abs().mean().item()
        assert file.probes.loc[file.image_ids[row], "l1_error"] == pytest.approx(error, rel=1e-5)


def test_reference_images_are_training_images_of_the_runs_own_group(undisturbed: ExtractSpec) -> None:
    table = Packed(undisturbed.training).table.set_index("image_id")
    with Activations(undisturbed.layout.activations(RUN.id)) as file:
        assert len(file.reference_ids) == 5
        assert set(table.loc[file.reference_ids, "ethnicity"]) == {"a"}
        held_out, originals, reconstructions = file.samples("training")
        assert not set(held_out) & set(file.reference_ids)
        assert originals.shape == reconstructions.shape == (3, SIZE_PX, SIZE_PX, 3)


def test_a_stopped_extraction_continues_with_the_same_bits(undisturbed: ExtractSpec, tmp_path: Path) -> None:
    spec = make_spec(tmp_path)
    stops = 0
    while True:
        try:
            extract(spec, stop=lambda: True)
            break
        except Interrupted:
            stops += 1
            assert not spec.layout.activations(RUN.id).exists()
    assert stops == 2
    assert same_file(spec, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("blocks_before_the_kill", [0, 1, 2])
def test_a_killed_extraction_continues_with_the_same_bits(
    undisturbed: ExtractSpec, tmp_path: Path, blocks_before_the_kill: int
) -> None:
    spec = make_spec(tmp_path)
    script = f"""
        import time
        from pathlib import Path
        from fluence.store.activations import ActivationWriter
        from tests.fluence.test_activations import make_spec, extract
        write = ActivationWriter.write_block
        def slowly(self, start, layers, probes, units):
            if self.rows_done == 128 * {blocks_before_the_kill}:
                self._file["layers/conv1"][start] = layers["conv1"][0]
                print("now", flush=True)
                time.sleep(60)
            write(self, start, layers, probes, units)
        ActivationWriter.write_block = slowly
        extract(make_spec(Path({str(tmp_path)!r})))
    """
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "now\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not spec.layout.activations(RUN.id).exists()
    started = time.time()
    extract(spec)
    assert time.time() - started < 60
    assert same_file(spec, undisturbed)


def test_a_layer_beyond_float16_is_stored_as_float32_and_says_so(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, num_images=20)
    state = build(MODEL, SIZE_PX, seed=0).state_dict()
    state[_weight(state)] *= 1e7
    write_weights(spec.layout.weights(RUN.id), state, {})
    extract(spec)
    with Activations(spec.layout.activations(RUN.id)) as file:
        types = {layer.name: file.read(layer.name, 0, 1).dtype.name for layer in file.layers}
        assert types["conv2"] == "float16"
        assert types["conv3"] == "float32"
        assert np.isfinite(file.read("conv3", 0, 20)).all()


def test_what_needs_float32_is_known_after_a_stop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = make_spec(tmp_path, num_images=140, record=Record(layers=("conv3",), reference_images=1, sample_images=1))
    state = build(MODEL, SIZE_PX, seed=0).state_dict()
    state[_weight(state)] *= 1e7
    write_weights(spec.layout.weights(RUN.id), state, {})
    with pytest.raises(Interrupted, match="stopped at image 128 of 140"):
        extract(spec, stop=lambda: True)
    assert "layer conv3: a value is more than float16 can hold; it is stored as float32" in capsys.readouterr().out
    extract(spec)
    assert capsys.readouterr().out == f"{RUN.label} continues at image 128 of 140\n"
    assert not spec.layout.activation_parts(RUN.id).exists()


def test_a_faint_layer_is_float32_as_float16_would_lose_too_much(tmp_path: Path) -> None:
    record = Record(layers=("conv3",), tap="pre", reference_images=1, sample_images=1)
    spec = make_spec(tmp_path, num_images=4, record=record)
    state = build(MODEL, SIZE_PX, seed=0).state_dict()
    for name in state:
        if "conv3" in name:
            state[name] *= 0 if name.endswith("bias") else 1e-8
    write_weights(spec.layout.weights(RUN.id), state, {})
    extract(spec)
    with Activations(spec.layout.activations(RUN.id)) as file:
        dtype, reason = file.dtype("conv3")
        assert dtype == np.float32
        assert re.fullmatch(r"float16 would lose \d\.\de[+-]\d\d of an image's sum of magnitudes", reason)


def test_no_images_are_no_extraction(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"faces\.h5: holds no image; look at its manifest with: fluence check"):
        extract(make_spec(tmp_path, num_images=0))


def test_the_file_says_what_it_was_made_from(undisturbed: ExtractSpec) -> None:
    with Activations(undisturbed.layout.activations(RUN.id), run=RUN.id) as file:
        facts = file.attributes
        assert (facts["key"], facts["run"], facts["tap"]) == ("key", RUN.id, "post")
        assert facts["unit_order"] == "channel, row, column"
        assert facts["made_by"]["packages"]["torch"] == torch.__version__.partition("+")[0]
        assert facts["dtype_policy"].startswith("float16; float32 where")


def _weight(state: dict[str, torch.Tensor]) -> str:
    return next(name for name in state if "conv3" in name and name.endswith("weight"))


def test_nan_activations_are_named_by_layer_and_image(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, num_images=20)
    state = build(MODEL, SIZE_PX, seed=0).state_dict()
    state[_weight(state)][0] = float("nan")
    write_weights(spec.layout.weights(RUN.id), state, {})
    with pytest.raises(ArtifactError, match=r"layer conv3: \d+ values are NaN or infinite, first in image image-000"):
        extract(spec)
    assert not spec.layout.activations(RUN.id).exists()


def test_sharpness_is_kept_and_a_stopped_extraction_continues_with_the_same_bits(tmp_path: Path) -> None:
    record = Record(reference_images=2, sample_images=1, sharpness={"rho": 0.1})  # type: ignore[arg-type]
    plain = make_spec(tmp_path / "plain", 140, Record(reference_images=2, sample_images=1))
    whole, broken = (make_spec(tmp_path / name, 140, record) for name in ("whole", "broken"))
    extract(plain)
    extract(whole)
    with pytest.raises(Interrupted):
        extract(broken, stop=lambda: True)
    extract(broken, stop=lambda: True)
    assert same_file(broken, whole)
    with (
        Activations(whole.layout.activations(RUN.id)) as file,
        Activations(plain.layout.activations(RUN.id)) as without,
    ):
        assert list(file.probes) == [*without.probes, "sharpness", "gradient_norm"]
        assert file.probes[list(without.probes)].equals(without.probes)
        assert (file.probes["sharpness"] > 0).all()
        for layer in file.layers:
            assert np.array_equal(file.read(layer.name, 0, 140), without.read(layer.name, 0, 140))


def test_sharpness_that_is_not_finite_is_named_by_image(tmp_path: Path) -> None:
    record = Record(reference_images=2, sample_images=1, sharpness={"rho": 1e30})  # type: ignore[arg-type]
    spec = make_spec(tmp_path, 4, record)
    with pytest.raises(ArtifactError, match=r"probe sharpness: \d values are NaN .*image-000; .*smaller record.sharp"):
        extract(spec)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, num_images=4)
    other = build(MODEL.model_copy(update={"width": 0.25}), SIZE_PX, seed=0)
    write_weights(spec.layout.weights(RUN.id), other.state_dict(), {})
    with pytest.raises(ArtifactError, match="belong to another network"):
        extract(spec)


@pytest.mark.parametrize("damage", [b"", b"not weights", None])
def test_damaged_or_missing_weights_are_refused(tmp_path: Path, damage: bytes | None) -> None:
    spec = make_spec(tmp_path, num_images=4)
    path = spec.layout.weights(RUN.id)
    path.unlink() if damage is None else path.write_bytes(damage)
    with pytest.raises(ArtifactError, match=r"weights\.pt"):
        extract(spec)


def test_a_single_image_and_a_choice_of_layers(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, 2, Record(layers=("mu", "conv2"), tap="pre", reference_images=1, sample_images=1))
    extract(spec)
    with Activations(spec.layout.activations(RUN.id)) as file:
        assert [(layer.name, layer.tap) for layer in file.layers] == [("conv2", "pre"), ("mu", "pre")]
        assert (file.read("conv2", 0, 2) < 0).any()
