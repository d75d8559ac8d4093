"""Invented miniatures of the real data sets; no face and no rating in them is anybody's."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pytest
from PIL import Image

from fluence.data.cfd import WORKBOOK
from fluence.study import Data


@pytest.fixture
def save_image() -> Callable[..., Path]:
    """Saves an invented picture, by default a different one for each path."""

    def save(path: Path, size: tuple[int, int] = (12, 12), seed: int | None = None, **options: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(zlib.crc32(str(path).encode()) if seed is None else seed)
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(path, **options)
        return path

    return save


@pytest.fixture
def data_of() -> Callable[..., Data]:
    """The data section of a study with one data set, called `faces`."""

    def data_of(dataset: dict[str, Any], **settings: Any) -> Data:
        settings = {"image_size_px": 8, **settings}
        return Data(datasets={"faces": dataset}, training="faces", rated="faces", **settings)

    return data_of


@pytest.fixture
def table_set(tmp_path: Path, save_image: Callable[..., Path]) -> Callable[..., Path]:
    """Writes `manifest.csv` and an image for each of `images`; gives back their folder."""

    def write(text: str | bytes, images: tuple[str, ...] = ()) -> Path:
        root = tmp_path / "faces"
        root.mkdir(exist_ok=True)
        (root / "manifest.csv").write_bytes(text.encode() if isinstance(text, str) else text)
        for name in images:
            save_image(root / name)
        return root

    return write


def _sheet(book: openpyxl.Workbook, name: str, code: str, rows: list[tuple[str, Any, Any, Any]]) -> None:
    """A sheet as in CFD 3.0: seven lines above the names, the codes in the last of them, the units below."""
    sheet = book.create_sheet(name)
    sheet.append([name])
    for _ in range(5):
        sheet.append([None])
    sheet.append([None, "S001", "R001", "R001_sd", code, f"{code}_sd", "P001"])
    sheet.append(["Model", "EthnicitySelf", "AgeRated", None, "Attractive", None, "LuminanceMedian"])
    sheet.append([None, None, "M", "SD", "M", "SD", None])
    for model, age, beauty, sd in rows:
        sheet.append([model, model[0], age, 4.5, beauty, sd, 170])


CFD_PHOTOGRAPHS = (
    *("CFD/AF-200/CFD-AF-200-228-N.jpg", "CFD/AF-200/CFD-AF-200-077-HO.jpg", "CFD/BM-001/CFD-BM-001-014-N.jpg"),
    *("CFD/LF-250/CFD-LF-250-160-N.jpg", "CFD/WM-009/CFD-WM-009-002-N.jpg"),
    *("CFD-MR/CFD-MF-300-002-N.jpg", "CFD-MR/CFD-MM-310-004-N.jpg"),
    *("CFD-INDIA/CFD-IF-601-519-N.jpg", "CFD-INDIA/CFD-IF-644-306-1-N.jpg", "CFD-INDIA/CFD-IF-644-306-2-N.jpg"),
    "CFD-INDIA/CFD-IM-719-221-N.jpg",
)


@pytest.fixture
def cfd_root(tmp_path: Path, save_image: Callable[..., Path]) -> Path:
    """An invented Chicago Face Database 3.0 of eleven photographs."""
    root = tmp_path / "CFD Version 3.0"
    for name in CFD_PHOTOGRAPHS:
        save_image(root / "Images" / name, (24, 17))
    book = openpyxl.Workbook()
    book.active.title = "CFD 3.0 Codebook"
    us = [("AF-200", 32.5, 3.1, 1.25), ("BM-001", 25, 2.75, 1.5), ("LF-250", 28, 4.25, 1.0), ("WM-009", 41, 3.5, 0.75)]
    _sheet(book, "CFD U.S. Norming Data", "R013", us)
    _sheet(book, "CFD-MR U.S. Norming Data", "R013", [("MF-300", 22, 4.5, 1.0), ("MM-310", 23, 3.25, 1.0)])
    india = [("IF601-519", 30, 5.5, 1.5), ("IF644-306-1", 31, 4.5, 1.5), ("IM719-220", 33, 3.5, 1.5)]
    _sheet(book, "CFD-I U.S. Norming Data", "R013B", india)
    _sheet(book, "CFD-I INDIA Norming Data", "R013B", [(m, age + 1, beauty + 1, sd) for m, age, beauty, sd in india])
    book.save(root / WORKBOOK)
    return root


FAIRFACE_LABELS = {
    "train": [
        "train/1.jpg,50-59,Male,East Asian,True",
        "train/2.jpg,more than 70,Female,Latino_Hispanic,False",
        "train/3.jpg,0-2,Female,Middle Eastern,False",
    ],
    "val": ["val/1.jpg,3-9,Male,Southeast Asian,False"],
}


@pytest.fixture
def fairface_root(tmp_path: Path, save_image: Callable[..., Path]) -> Path:
    """An invented FairFace of four images in both paddings."""
    root = tmp_path / "fairface"
    for part, rows in FAIRFACE_LABELS.items():
        for margin in ("025", "125"):
            for row in rows:
                save_image(root / f"fairface-img-margin{margin}-trainval" / row.split(",")[0])
        text = "\n".join(["file,age,gender,race,service_test", *rows])
        (root / f"fairface_label_{part}.csv").write_text(text + "\n")
    return root
