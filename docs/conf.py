"""How Sphinx builds these pages: `make docs`, warnings are errors, nothing is fetched from the network."""

import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE / "_ext"), str(_HERE.parent)]

from pygments.lexers.special import TextLexer  # noqa: E402
from sphinx.highlighting import lexers  # noqa: E402

from fluence import __version__  # noqa: E402  # the path comes first

lexers["csv"] = TextLexer()  # Git hosts know the word, Pygments does not

project = "fluence"
version = release = __version__
language = "en_GB"

extensions = ["myst_parser", "mathml", "generated"]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 4
html_math_renderer = "mathml"

exclude_patterns = ["_build", "_ext"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["formulas.css"]
html_title = "fluence"
html_show_copyright = False
html_show_sphinx = False
