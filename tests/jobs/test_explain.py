"""`fluence check --explain`: nothing is left out, and everything has a meaning."""

from __future__ import annotations

import pytest

from fluence.schema import study_schema, walk
from jobs.explain import explain, meaning


@pytest.mark.parametrize(("path", "node"), [pytest.param(p, n, id=".".join(p)) for p, n in walk(study_schema())])
def test_every_setting_has_a_meaning(path: tuple[str, ...], node: dict[str, object]) -> None:
    assert len(meaning(path[-1], node)) > 3
    assert meaning(path[-1], node).rstrip().endswith((".", "…"))


def test_every_setting_is_shown_with_its_meaning() -> None:
    text = explain(width=100)
    shown = " ".join(text.replace("#", " ").split())
    keys = {line.strip().partition(":")[0] for line in text.splitlines() if not line.strip().startswith("#")}
    for path, node in walk(study_schema()):
        assert path[-1] in keys
        if path[-1] not in ("kind", "loss", "penalty"):  # the meaning of a kind is that of its section
            assert " ".join(meaning(path[-1], node).split()) in shown, path


def test_what_is_shown_of_a_setting() -> None:
    text = explain(width=100)
    assert "training:\n  # How they are trained.\n  epochs: 30\n    # Passes over the training images." in text
    assert "\n        root:  (required)\n" in text
    assert "\n      kind: csv\n        # Any folder of images" in text
    assert "[a number, at least 0 and below 0.9]" in " ".join(text.replace("#", "").split())
    assert text.count("# Folder of the data set.") == 1


@pytest.mark.parametrize("width", [80, 110])
def test_lines_are_as_wide_as_the_terminal(width: int) -> None:
    widest = max(len(line) for line in explain(width).splitlines())
    assert width - 12 < widest <= width


def test_the_width_is_that_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    assert explain() == explain(72)
    monkeypatch.setenv("COLUMNS", "400")
    assert explain() == explain(110)
