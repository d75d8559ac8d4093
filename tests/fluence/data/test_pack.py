"""Packing: complete, in order, with every problem named; interrupted or refused, it leaves nothing behind."""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from fluence.data.covariates import NAMES, covariates
from fluence.data.decode import decode
from fluence.data.pack import PackSummary, pack
from fluence.data.prepare import ImageFile, prepared
from fluence.data.synthetic import render_face
from fluence.errors import ArtifactError, RunError, StudyError
from fluence.store.packed import Packed
from fluence.study import SyntheticDataset

HEADER = "path,beauty,ethnicity,sex\n"
ROWS = HEADER + "".join(f"{i:03}.png,{i},{'ab'[i % 2]},{'fm'[i % 3 // 2]}\n" for i in range(70))


@pytest.fixture
def pack_table(table_set, data_of, tmp_path) -> Callable[..., tuple[PackSummary, Packed]]:
    """Packs `manifest.csv` and the images saved before."""

    def run(text: str, images: tuple[str, ...] = (), **options: Any) -> tuple[PackSummary, Packed]:
        settings = options.pop("settings", {})
        data = data_of({"kind": "csv", "root": str(table_set(text, images))}, **settings)
        out = tmp_path / "packed" / "faces.h5"
        summary = pack(data.datasets["faces"], data, out, **{"attributes": {}, "num_workers": 1, **options})
        return summary, Packed(out)

    return run


def assert_nothing_written(tmp_path: Path) -> None:
    assert list((tmp_path / "packed").glob("*")) == []
    assert list((tmp_path / "packed").glob(".*")) == []


def test_pixels_table_and_covariates_belong_together(pack_table, tmp_path):
    summary, packed = pack_table(ROWS, tuple(f"{i:03}.png" for i in range(70)), attributes={"commit": "1a2b"})
    assert (summary.num_images, summary.num_problems, len(packed)) == (70, 0, 70)
    assert summary.lines == ["70 images of 8 × 8 px"]
    pixels = packed.read()
    expected = [decode(tmp_path / "faces" / path, 8, "crop") for path in packed.table["path"]]
    assert np.array_equal(pixels, expected)
    assert list(packed.table["image_id"]) == [f"{i:03}" for i in range(70)]
    assert list(packed.table["beauty"]) == list(range(70))
    assert list(packed.table["sha256"]) == [hashlib.sha256(image.tobytes()).hexdigest() for image in pixels]
    assert list(packed.table["group"][:3]) == ["a-f", "b-f", "a-m"]
    for name, values in covariates(pixels).items():
        assert np.array_equal(packed.table[name], values)
    assert packed.attributes["commit"] == "1a2b"
    assert packed.attributes["fit"] == "crop"


def test_the_number_of_processes_changes_nothing(pack_table):
    images = tuple(f"{i:03}.png" for i in range(70))
    _, one = pack_table(ROWS, images, num_workers=1)
    first, table = one.read(), one.table
    _, three = pack_table(ROWS, num_workers=3)
    assert np.array_equal(three.read(), first)
    assert three.table.equals(table)


def test_progress_is_told_to_the_end(pack_table):
    told: list[tuple[int, int]] = []
    pack_table(ROWS, tuple(f"{i:03}.png" for i in range(70)), progress=lambda done, total: told.append((done, total)))
    assert told == [(32, 70), (64, 70), (70, 70)]


def broken(root: Path, save_image: Callable[..., Path]) -> str:
    """A folder with one of each problem, and its table."""
    save_image(root / "good.jpg", (40, 30))
    save_image(root / "again.png", seed=5)
    save_image(root / "same.png", seed=5)
    (root / "half.jpg").write_bytes((root / "good.jpg").read_bytes()[:500])
    (root / "empty.jpg").write_bytes(b"")
    (root / "page.jpg").write_text("<html>")
    names = ("half.jpg", "again.png", "empty.jpg", "good.jpg", "page.jpg", "none.jpg", "same.png")
    return HEADER + "".join(f"{name},1,a,f\n" for name in names) + "short\n"


def test_a_near_duplicate_is_kept_and_named_with_its_original(pack_table, tmp_path):
    """The same picture as PNG, and as JPEG mirrored; the exact copy of an image counts as that."""
    picture = Image.fromarray(render_face(SyntheticDataset(kind="synthetic"), 3, 64))
    folder = tmp_path / "faces"
    folder.mkdir(exist_ok=True)
    for name in ("a.png", "exact.png"):
        picture.save(folder / name)
    picture.save(folder / "again.jpg", quality=80)
    ImageOps.mirror(picture).save(folder / "mirror.png")
    names = ("a.png", "again.jpg", "exact.png", "mirror.png")
    _, packed = pack_table(HEADER + "".join(f"{name},1,a,f\n" for name in names), settings={"image_size_px": 64})
    assert list(packed.table["duplicate_of"]) == ["", "a", "a", "a"]
    again, exact, mirror = packed.problems["reason"]
    assert re.fullmatch(r"near-duplicate \(r = (0\.9[89]\d|1\.000)\): nearly the same as a", again)
    assert exact == "duplicate: same image as a"
    assert re.fullmatch(r"near-duplicate \(r = 1\.000, mirrored\): nearly the same as a", mirror)
    assert packed.problems["kept"].all()


def test_every_problem_is_listed_with_its_line(pack_table, tmp_path, save_image):
    summary, packed = pack_table(broken(tmp_path / "faces", save_image))
    assert list(packed.table["image_id"]) == ["again", "good", "same"]
    assert list(packed.table["duplicate_of"]) == ["", "", "again"]
    listed = packed.problems.sort_values("line")
    assert list(zip(listed["path"], listed["line"], listed["reason"], listed["kept"], strict=True)) == [
        ("half.jpg", 2, "truncated", 0),
        ("empty.jpg", 4, "empty file", 0),
        ("page.jpg", 6, "not an image", 0),
        ("none.jpg", 7, "missing", 0),
        ("same.png", 8, "duplicate: same image as again", 1),
        ("", 9, "has 1 cells, the header names 4", 0),
    ]
    assert (summary.num_images, summary.num_problems) == (3, 6)
    assert summary.lines[0] == "3 images of 8 × 8 px"
    assert summary.lines[1].startswith("5 left out: ")
    assert "truncated (1)" in summary.lines[1]
    assert summary.lines[2] == "1 kept, with a word: duplicate (1)"
    assert "  line 7: none.jpg: missing" in summary.lines


def test_a_long_list_is_cut_on_screen_but_not_in_the_file(pack_table, save_image):
    summary, packed = pack_table(ROWS, ("000.png",))
    assert len(packed.problems) == 69
    assert summary.lines[-1].startswith("  and 59 more; all are listed in ")


def test_strict_refuses_any_problem_and_writes_nothing(pack_table, tmp_path, save_image):
    with pytest.raises(StudyError) as caught:
        pack_table(broken(tmp_path / "faces", save_image), strict=True)
    assert "6 problems, and --strict allows none" in str(caught.value)
    assert "line 2: half.jpg: truncated" in str(caught.value)
    assert "line 8: same.png: duplicate" in str(caught.value)
    assert_nothing_written(tmp_path)


def test_strict_accepts_a_clean_set(pack_table):
    assert pack_table(HEADER + "a.png,1,a,f\n", ("a.png",), strict=True)[0].num_problems == 0


def test_no_usable_image_at_all_is_an_error(pack_table, tmp_path):
    with pytest.raises(StudyError, match="not one image can be used") as caught:
        pack_table(HEADER + "a.png,1,a,f\nb.png,2,a,f\n")
    assert "line 3: b.png: missing" in str(caught.value)
    assert_nothing_written(tmp_path)


def test_columns_that_are_computed_do_not_overwrite_the_users(pack_table):
    text = "path,beauty,ethnicity,sex,pixel_gini,sha256,duplicate_of\na.png,1,a,f,9,abc,\nb.png,1,a,f,9,abc,a\n"
    summary, packed = pack_table(text, ("a.png", "b.png"))
    assert list(packed.table["source_pixel_gini"]) == [9, 9]
    assert list(packed.table["source_sha256"]) == ["abc", "abc"]
    assert packed.table["pixel_gini"].max() < 1
    assert list(packed.table["duplicate_of"]) == ["", "a"]
    assert summary.num_problems == 1


def test_missing_ratings_are_kept(pack_table):
    _, packed = pack_table(HEADER + "a.png,,a,f\nb.png,2,a,f\n", ("a.png", "b.png"))
    assert math.isnan(packed.table["beauty"][0])


def test_pad_and_size_are_those_of_the_study(pack_table, tmp_path, save_image):
    save_image(tmp_path / "faces" / "a.png", (40, 20))
    _, packed = pack_table(HEADER + "a.png,1,a,f\n", settings={"fit": "pad", "image_size_px": 16})
    assert packed.read().shape == (1, 16, 16, 3)
    assert np.all(packed.read()[0, 0] == 128)


def test_synthetic_faces_are_packed(data_of, tmp_path):
    data = data_of({"kind": "synthetic", "num_images": 8, "num_ethnicities": 2, "num_raters": 2}, image_size_px=16)
    pack(data.datasets["faces"], data, tmp_path / "faces.h5", attributes={}, num_workers=1)
    packed = Packed(tmp_path / "faces.h5")
    assert packed.read().shape == (8, 16, 16, 3)
    assert packed.table["group"].nunique() == 4
    assert set(NAMES) <= set(packed.table)


# ── Mishaps ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def workers() -> Callable[[], set[BaseProcess]]:
    """Which processes this test has started and not ended; other tests may have left some of theirs."""
    before = set(multiprocessing.active_children())
    return lambda: set(multiprocessing.active_children()) - before


def test_a_killed_process_is_explained(tmp_path, save_image, workers):
    source = ImageFile(save_image(tmp_path / "a.jpg", (400, 400)))

    def kill_workers() -> None:
        for _ in prepared([source] * 2000, 8, "crop", 2):
            os.kill(workers().pop().pid, signal.SIGKILL)

    with pytest.raises(RunError, match="was killed, probably for want of memory"):
        kill_workers()
    assert workers() == set()


def test_stopping_early_ends_the_processes(tmp_path, save_image, workers):
    source = ImageFile(save_image(tmp_path / "a.jpg", (400, 400)))
    chunks = prepared([source] * 5000, 8, "crop", 2)
    next(chunks)
    start = time.monotonic()
    chunks.close()
    assert time.monotonic() - start < 10
    assert workers() == set()


SCRIPT = """
import signal
import sys
from pathlib import Path
from fluence.data.pack import pack
from fluence.study import Data

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    root = sys.argv[1]
    data = Data(datasets={"x": {"kind": "folder", "root": root, "levels": []}}, training="x", rated="x",
                group_by=["path"], score="size", image_size_px=8)
    data = data.model_copy(update={"rated": "none"})
    pack(data.datasets["x"], data, Path(sys.argv[2]), attributes={},
         progress=lambda done, total: print(done, flush=True))
"""


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_packing_ends_all_processes(tmp_path, save_image, sent):
    """Ctrl-C and a task's end reach the whole group; SIGKILL reaches the parent alone, and its workers follow."""
    (tmp_path / "faces").mkdir()
    original = save_image(tmp_path / "original.jpg", (400, 400))
    for i in range(3000):
        (tmp_path / "faces" / f"{i:04}.jpg").symlink_to(original)
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, str(script), str(tmp_path / "faces"), str(tmp_path / "packed" / "x.h5")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    assert process.stdout.readline().strip() == "32"
    children = children_of(process.pid)
    assert len(children) >= 2
    (os.kill if sent == signal.SIGKILL else os.killpg)(process.pid, sent)
    _, errors = process.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while any(alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(child) for child in children)
    assert not (tmp_path / "packed" / "x.h5").exists()
    if sent != signal.SIGKILL:
        assert errors.splitlines()[-1] == "KeyboardInterrupt"
        assert_nothing_written(tmp_path)
    if sent == signal.SIGINT:
        assert errors.count("Traceback") == 1  # the parent's; a worker prints nothing


def test_a_disk_too_small_is_refused_before_work_begins(pack_table, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: (10**6, 10**6 - 5000, 5000))
    with pytest.raises(ArtifactError, match="disk"):
        pack_table(ROWS, ("000.png",))
    assert not (tmp_path / "packed" / "faces.h5").exists()
