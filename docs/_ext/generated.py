"""What pages take from the code when they are built, so that it cannot grow old.

    <!-- generated: settings -->    every setting of a study, from the schema
    <!-- generated: commands -->    every verb of the command line with its options, from the parser

Links that leave `docs/`, right on a Git host, lead here to the pages that include those files.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from commands import commands
from settings import settings
from sphinx.application import Sphinx

_GENERATED: dict[str, Callable[[], str]] = {"settings": settings, "commands": commands}
_MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
_ELSEWHERE = {
    "../sbatch_templates/README.md": "sites.md",
    "../README.md": "index.md",
    "../CHANGELOG.md": "changelog.md",
}
_LINK = re.compile(rf"\]\(({'|'.join(map(re.escape, _ELSEWHERE))})(#[^)]*)?\)")


def written_out(source: str) -> str:
    """The text of a page with generated parts in the place of their marks, and links that stay inside the pages.

    Raises:
        KeyError: a mark names nothing that is generated.
    """
    source = _MARK.sub(lambda mark: _GENERATED[mark[1]](), source)
    return _LINK.sub(lambda link: f"]({_ELSEWHERE[link[1]]}{link[2] or ''})", source)


def _on_source_read(app: Sphinx, page: str, source: list[str]) -> None:
    source[0] = written_out(source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Fills in the marks of each page before it is parsed."""
    app.connect("source-read", _on_source_read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
