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
from analysis import partial as pieces
from analysis import walk
from analysis.measure import measure
from analysis.partial import PartialMetrics
from fluence.errors import ArtifactError, Interrupted
from fluence.layout import Layout
from fluence.store import histograms
from fluence.store.activations import Activations
from fluence.store.histograms import HistogramFile
from fluence.store.outcome import read_progress
from tests.analysis.test_measure import EPSILON, RUN, random_layers, write_activations

NUM_IMAGES, NUM_BLOCKS = 10, 6
BLOCK_BYTES = 2 * 48 * 2  # 2 images of conv1 at a time, and then all of mu


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of two images, each of which is saved, and histograms of conv1."""
    _make_small(monkeypatch)


def _make_small(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(walk, "BLOCK_BYTES", BLOCK_BYTES)
    patch.setattr(pieces, "_SAVE_EVERY_S", 0.0)
    patch.setattr(histograms, "SMALLEST_COUNTED", 48)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    layout = Layout(tmp_path_factory.mktemp("undisturbed"))
    with pytest.MonkeyPatch.context() as patch:
        _make_small(patch)
        write_study(layout)
        measure(RUN, layout, EPSILON, key="k")
    return tables(layout)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
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
    whole = module.measure_block

    def counted(values: np.ndarray, *rest: object) -> pieces.Piece:
        computed.append(len(values))
        return whole(values, *rest)

    monkeypatch.setattr(module, "measure_block", counted)
    return computed


def write_study(layout: Layout, num_images: int = NUM_IMAGES) -> None:
    values = random_layers(num_images, 0)
    values["conv1"][3] = values["mu"][7] = 0  # dead: their Gini is NaN
    write_activations(layout, values, random_layers(4, 1))


def piece_of(layout: Layout, what: str) -> Path:
    """The file of a piece of conv1."""
    return next(layout.partial_metrics(RUN.id).glob(f"conv1.*.{what}"))


def tables(layout: Layout) -> bytes:
    """Every byte of what a finished measuring has written, and nothing else is there."""
    tables, kept = [layout.epsilon(RUN.id), layout.metrics(RUN.id)], layout.histograms(RUN.id)
    assert set(layout.metrics(RUN.id).parent.iterdir()) == {*tables, kept}
    with HistogramFile(kept) as file:
        found = [file.read("conv1", 0, len(file.image_ids)), file.reference("conv1")]
        assert file.layers == {"conv1"}
    arrays = [array for one in found for array in (one.bits, one.counts, one.start)]
    return b"".join([*(path.read_bytes() for path in tables), *(array.tobytes() for array in arrays)])


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
    choose = module.choose_reference
    monkeypatch.setattr(module, "choose_reference", lambda *given: chosen.append(1) or choose(*given))
    stop_after(layout, 2)
    measure(RUN, layout, EPSILON, key="k")
    assert len(chosen) == 2


@pytest.mark.parametrize(("number", "image"), [(1, 2), (4, 8), (5, 10)])
def test_progress_is_the_share_of_the_values(layout: Layout, number: int, image: int) -> None:
    stop_after(layout, number)
    progress = read_progress(layout.progress("measure", RUN.id), "k")
    assert progress is not None
    assert progress.fraction == round(48 * image / (48 * 10 + 5 * 10), 4)
    assert re.fullmatch(rf"layer conv1 \(1 of 2\), image {image} of 10, \d+ MB/s", progress.text)
    assert progress.text.endswith(f", {progress.facts['mb_per_s']:.0f} MB/s")


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
def test_a_damaged_piece_and_what_follows_it_is_measured_again(
    layout: Layout,
    undisturbed: bytes,
    blocks: list[int],
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[bytes], bytes],
) -> None:
    stop_after(layout, 5)
    path = piece_of(layout, "4-6")
    path.write_bytes(damage(path.read_bytes()))
    blocks.clear()
    measure(RUN, layout, EPSILON, key="k")
    assert blocks == [2, 2, 2, 10]
    assert tables(layout) == undisturbed
    said = f"{path}: damaged; this piece is measured again\nsmall-all-s0 continues at layer conv1 (1 of 2), image 4 of"
    assert capsys.readouterr().out == f"{said} 10\n"


def test_damaged_thresholds_are_chosen_again(layout: Layout, undisturbed: bytes) -> None:
    stop_after(layout, 2)
    path = piece_of(layout, "reference")
    path.write_bytes(path.read_bytes()[:-3])
    measure(RUN, layout, EPSILON, key="k")
    assert tables(layout) == undisturbed


def test_a_piece_that_goes_before_the_tables_are_written_is_one_line(
    layout: Layout, undisturbed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = module.write_table

    def damaged(*given: object) -> None:
        piece_of(layout, "4-6").unlink()
        written(*given)

    with monkeypatch.context() as patch, pytest.raises(ArtifactError, match=r"nothing behind layer conv1 .*, image 4 "):
        patch.setattr(module, "write_table", damaged)
        measure(RUN, layout, EPSILON, key="k")
    measure(RUN, layout, EPSILON, key="k")
    assert tables(layout) == undisturbed


def test_what_cannot_be_read_is_measured_again(
    layout: Layout, undisturbed: bytes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that gives back an error instead of the file."""
    stop_after(layout, 2)
    path = piece_of(layout, "0-2")
    path.unlink()
    path.symlink_to(path.name)  # too many levels of symbolic links: an error that root meets, too
    measure(RUN, layout, EPSILON, key="k")
    assert tables(layout) == undisturbed
    assert re.search(r"0-2: cannot be read \(.+\); this piece is measured again", capsys.readouterr().out)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_bit_that_flips_goes_unnoticed(half: Layout, place: float, bit: int) -> None:
    path = piece_of(half, "0-2")
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[int(place * len(whole))] ^= 1 << bit
    with Activations(half.activations(RUN.id)) as source:
        partial = PartialMetrics(RUN, half, source, "k", lambda: False, made="k from activations")
        path.write_bytes(flipped)
        assert list(partial.pieces_of(source.layers[0])) == []
        path.write_bytes(whole)
        assert partial.num_images_of(source.layers[0]) == 2
        assert [piece.num_images for piece in partial.pieces_of(source.layers[0])] == [2]


# ── Killed ───────────────────────────────────────────────────────────────────────────────────────────────────────

PROGRAM = """
import sys
from pathlib import Path
from analysis import measure as module, partial, walk
from fluence.layout import Layout
from tests.analysis.test_measure import EPSILON, RUN

walk.BLOCK_BYTES, partial._SAVE_EVERY_S = 1, 0.0
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
    monkeypatch.setattr(walk, "BLOCK_BYTES", 1)
    monkeypatch.setattr(histograms, "SMALLEST_COUNTED", 16_384)
    measure(RUN, layout, EPSILON, key="k")
    assert len(blocks) in (2 * num_images - told, 2 * num_images - told - 1)  # one more may be kept than was told
    continued = layout.metrics(RUN.id).read_bytes()
    blocks.clear()
    measure(RUN, layout, EPSILON, key="k")
    assert len(blocks) == 2 * num_images
    assert layout.metrics(RUN.id).read_bytes() == continued
