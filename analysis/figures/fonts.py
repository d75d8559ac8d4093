"""The font of the figures: DejaVu Sans without the parts that figures never need.

Every PDF carries the letters that it shows. To cut them out of the whole font takes longer than to draw most figures;
out of one without tables for the shaping of scripts, with the letters of the common ones, it takes a fifth of that.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import matplotlib as mpl
from fontTools import subset
from fontTools.ttLib import TTFont
from matplotlib import font_manager

from fluence.errors import UnwritableError
from fluence.store.files import atomic_path

_WHOLE = "DejaVu Sans"
_CUT = "fluence Sans"
_STYLES = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf")
_LETTERS = (
    (0x20, 0x24F),  # Latin
    (0x370, 0x4FF),  # Greek, Cyrillic
    (0x2000, 0x214F),  # punctuation, raised and lowered digits
    (0x2190, 0x22FF),  # arrows, mathematics
    (0x25A0, 0x25FF),  # marks
)
_SHAPING = ["GSUB", "GPOS", "GDEF", "FFTM"]
_OF_FAMILY, _OF_STYLE, _UNIQUE, _FULL, _POSTSCRIPT = 1, 2, 3, 4, 6  # entries of the table of names


@cache
def families() -> list[str]:
    """The fonts to draw with, the first one first; a letter that it lacks is taken from the next.

    The parts are made once for each version of matplotlib, and kept where it keeps its list of fonts. Where they cannot
    be kept, because the disk or the quota of the home is full, the whole font serves, more slowly.
    """
    for style in _STYLES:
        path = Path(mpl.get_cachedir()) / f"fluence-{mpl.__version__}-{style}"
        if not path.is_file():
            try:
                with atomic_path(path, durable=False) as temporary:
                    _cut(Path(mpl.get_data_path()) / "fonts" / "ttf" / style, temporary)
            except UnwritableError:
                return [_WHOLE]
        font_manager.fontManager.addfont(path)
    return [_CUT, _WHOLE]


def _cut(whole: Path, path: Path) -> None:
    """Writes the part of a font that figures need, under a name of its own."""
    options = subset.Options(
        drop_tables=_SHAPING, layout_features=[], hinting=True, glyph_names=False, legacy_kern=True
    )
    with TTFont(whole) as font:
        cutter = subset.Subsetter(options)
        cutter.populate(unicodes=[code for first, last in _LETTERS for code in range(first, last + 1)])
        cutter.subset(font)
        style = font["name"].getDebugName(_OF_STYLE)
        names = {_OF_FAMILY: _CUT, _UNIQUE: f"{_CUT} {style}", _FULL: f"{_CUT} {style}"}
        names[_POSTSCRIPT] = f"{_CUT} {style}".replace(" ", "")
        for record in list(font["name"].names):
            if record.nameID in names:
                record.string = names[record.nameID]
            elif record.nameID > _POSTSCRIPT:
                font["name"].removeNames(nameID=record.nameID)
        font.save(path)
