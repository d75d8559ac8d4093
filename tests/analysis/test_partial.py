"""A measuring that is stopped, killed or robbed of what it has kept ends with the same bits as an undisturbed one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis import measure as module
from analysis.measure import measure
from analysis.partial import PartialMetrics
from fluence.errors import Interrupted
from fluence.layout import Layout
from fluence.store.activations import Activations
from fluence.store.outcome import read_progress
from tests.analysis.test_measure import EPSILON, RUN, random_layers, write_activations

NUM_IMAGES, NUM_BLOCKS = 10, 6
BLOCK_BYTES = 4 * 48 * 2  # 2 images of conv1 at a time, and then all of mu


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    layout = Layout(tmp_path_factory.mktemp("undisturbed"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK_BYTES", BLOCK_BYTES)
        write_study(layout)
        measure(RUN, layout, EPSILON, key="k")
    return tables(layout)


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.setattr(module, "_BLOCK_BYTES", BLOCK_BYTES)
    write_study(Layout(tmp_path))
    return Layout(tmp_path)


@pytest.fixture
def half(layout: Layout) -> Layout:
    """A study whose measuring was stopped in the middle of its first layer."""
    stop_after(layout, 3)
    return layout


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of images of the blocks that were computed since."""
    computed: list[int] = []
    whole = module._measure_block

    def counted(values: np.ndarray, *rest: object) -> dict[str, np.ndarray]:
        computed.append(len(values))
        return whole(values, *rest)

    monkeypatch.setattr(module, "_measure_block", counted)
    return computed


def write_study(layout: Layout, num_images: int = NUM_IMAGES) -> None:
    values = random_layers(num_images, 0)
    values["conv1"][3] = values["mu"][7] = 0  # dead: their Gini is NaN
    write_activations(layout, values, random_layers(4, 1))


def tables(layout: Layout) -> bytes:
    """Every byte of what a finished measuring has written, and nothing else is there."""
    written = sorted(layout.metrics(RUN.id).parent.iterdir())
    assert written == [layout.epsilon(RUN.id), layout.metrics(RUN.id)]
    return b"".join(path.read_bytes() for path in written)


def after(number: int) -> Callable[[], bool]:
    """Answers True when it is asked for the so-manieth time, and later."""
    asked = iter(range(1, 1000))
    return lambda: next(asked) >= number


def stop_after(layout: Layout, number: int, key: str = "k") -> None:
    with pytest.raises(Interrupted):
        measure(RUN, layout, EPSILON, key=key, stop=after(number))


@pytest.mark.parametrize("number", range(1, NUM_BLOCKS))
def test_stopped_after_any_block(
    layout: Layout, undisturbed: bytes, blocks: list[int], capsys: pytest.CaptureFixture[str], number: int
) -> None:
    stop_after(layout, number)
    assert len(blocks) == number
    assert not layout.metrics(RUN.id).exists()
    assert capsys.readouterr().out == ""
    measure(RUN, layout, EPSILON, key="k")
    assert len(blocks) == NUM_BLOCKS
    assert tables(layout) == undisturbed
    where = f"layer conv1 (1 of 2), image {2 * number}" if number < 5 else "layer mu (2 of 2), image 0"
    assert capsys.readouterr().out == f"small-all-s0 continues at {where} of 10\n"


def test_stopped_after_every_block(layout: Layout, undisturbed: bytes, blocks: list[int]) -> None:
    """One block each time, and none twice. After the last one there is no reason to stop."""
    said = []
    for number in range(1, NUM_BLOCKS):
        with pytest.raises(Interrupted) as stopped:
            measure(RUN, layout, EPSILON, key="k", stop=lambda: True)
        assert len(blocks) == number
        said.append(str(stopped.value))
    assert said[0] == "stopped at layer conv1 (1 of 2), image 2 of 10"
    assert said[-1] == "stopped at layer conv1 (1 of 2), image 10 of 10"
    measure(RUN, layout, EPSILON, key="k", stop=lambda: True)
    assert blocks == [2, 2, 2, 2, 2, 10]
    assert tables(layout) == undisturbed


def test_epsilon_of_a_layer_is_chosen_once(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    choose = module.choose_epsilon
    monkeypatch.setattr(module, "choose_epsilon", lambda *given: chosen.append(1) or choose(*given))
    stop_after(layout, 2)
    measure(RUN, layout, EPSILON, key="k")
    assert len(chosen) == 2


@pytest.mark.parametrize(("number", "image"), [(1, 2), (4, 8), (5, 10)])
def test_progress_is_the_share_of_the_values(layout: Layout, number: int, image: int) -> None:
    stop_after(layout, number)
    progress = read_progress(layout.progress("measure", RUN.id), "k")
    assert progress is not None
    assert progress.fraction == round(48 * image / (48 * 10 + 5 * 10), 4)
    assert progress.text == f"layer conv1 (1 of 2), image {image} of 10"


def test_stopped_when_only_the_table_was_missing(
    layout: Layout, undisturbed: bytes, blocks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "write_table", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        measure(RUN, layout, EPSILON, key="k")
    measure(RUN, layout, EPSILON, key="k")
    assert len(blocks) == NUM_BLOCKS
    assert tables(layout) == undisturbed


# ── What does not belong to it ───────────────────────────────────────────────────────────────────────────────────


def test_another_key_starts_afresh(
    layout: Layout, undisturbed: bytes, blocks: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    stop_after(layout, 5, key="another")
    blocks.clear()
    measure(RUN, layout, EPSILON, key="k")
    assert len(blocks) == NUM_BLOCKS
    assert tables(layout) == undisturbed
    assert capsys.readouterr().out == ""


def test_activations_that_were_extracted_again_are_measured_afresh(
    layout: Layout, undisturbed: bytes, blocks: list[int]
) -> None:
    """With the same key: on a GPU, their last bits may differ."""
    write_activations(layout, random_layers(NUM_IMAGES, 5), random_layers(4, 6))
    stop_after(layout, 5)
    write_study(layout)
    blocks.clear()
    measure(RUN, layout, EPSILON, key="k")
    assert len(blocks) == NUM_BLOCKS
    assert tables(layout) == undisturbed


# ── Damage ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "damage", [lambda kept: b"", lambda kept: kept[:20], lambda kept: kept[:-1], lambda kept: b"x"]
)
def test_a_damaged_layer_alone_is_measured_again(
    layout: Layout,
    undisturbed: bytes,
    blocks: list[int],
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[bytes], bytes],
) -> None:
    stop_after(layout, 5)
    path = layout.partial_metrics_of(RUN.id, "conv1")
    path.write_bytes(damage(path.read_bytes()))
    blocks.clear()
    measure(RUN, layout, EPSILON, key="k")
    assert len(blocks) == NUM_BLOCKS
    assert tables(layout) == undisturbed
    assert capsys.readouterr().out == f"{path}: damaged; this layer is measured again\n"


def test_what_cannot_be_read_is_measured_again(
    layout: Layout, undisturbed: bytes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that gives back an error instead of the file."""
    stop_after(layout, 2)
    path = layout.partial_metrics_of(RUN.id, "conv1")
    path.unlink()
    path.symlink_to(path.name)  # too many levels of symbolic links: an error that root meets, too
    measure(RUN, layout, EPSILON, key="k")
    assert tables(layout) == undisturbed
    assert re.search(r"conv1: cannot be read \(.+\); this layer is measured again", capsys.readouterr().out)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_bit_that_flips_goes_unnoticed(half: Layout, place: float, bit: int) -> None:
    path = half.partial_metrics_of(RUN.id, "conv1")
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[int(place * len(whole))] ^= 1 << bit
    with Activations(half.activations(RUN.id)) as source:
        partial = PartialMetrics(RUN, half, source, "k", lambda: False)
        path.write_bytes(flipped)
        assert partial.of(source.layers[0]) is None
        path.write_bytes(whole)
        assert partial.of(source.layers[0]) is not None


# ── Killed ───────────────────────────────────────────────────────────────────────────────────────────────────────

PROGRAM = """
import sys
from pathlib import Path
from analysis import measure as module
from fluence.layout import Layout
from tests.analysis.test_measure import EPSILON, RUN

module._BLOCK_BYTES = 1
module.measure(RUN, Layout(Path(sys.argv[1])), EPSILON, key="k", stop=lambda: print("kept", flush=True))
"""


@pytest.mark.parametrize("number", [1, 4, 70])
def test_killed_at_any_moment(tmp_path: Path, blocks: list[int], monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Somewhere behind so many blocks of one image each: what was kept is not done again."""
    layout, num_images = Layout(tmp_path), 60
    write_study(layout, num_images)
    environment = {**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[1])}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(number)]
        os.kill(process.pid, signal.SIGKILL)
        lines += process.stdout.readlines()
    assert process.returncode == -signal.SIGKILL
    told = lines.count("kept\n")
    assert told >= number
    monkeypatch.setattr(module, "_BLOCK_BYTES", 1)
    measure(RUN, layout, EPSILON, key="k")
    assert len(blocks) in (2 * num_images - told, 2 * num_images - told - 1)  # one more may be kept than was told
    continued = tables(layout)
    blocks.clear()
    measure(RUN, layout, EPSILON, key="k")
    assert len(blocks) == 2 * num_images
    assert tables(layout) == continued
