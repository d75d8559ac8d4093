"""The rules of the house that a machine can check: who imports whom, what starts fast, and how long things are."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("fluence", "analysis", "jobs")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
HEAVY = ("torch", "torchvision", "sklearn", "scipy", "matplotlib", "pandas", "h5py", "numpy", "submitit")

LONGEST_FILE = 400
LONGEST_FUNCTION = 80
MOST_FUNCTIONS = 30  # 90 % of them


def test_the_import_contracts_hold() -> None:
    linter = shutil.which("lint-imports", path=str(Path(sys.executable).parent)) or shutil.which("lint-imports")
    assert linter, "import-linter is not installed; pip install -e .[test]"
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_command_line_starts_without_heavy_packages() -> None:
    code = f"import sys, jobs.cli; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and number of lines, docstring included, of every function of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_and_no_function_is_too_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE
    assert [entry for entry in functions(path) if entry[1] > LONGEST_FUNCTION] == []


def test_most_functions_are_short() -> None:
    lengths = sorted(length for path in FILES for _, length in functions(path))
    assert lengths[int(0.9 * len(lengths))] <= MOST_FUNCTIONS


def test_every_module_says_what_it_is() -> None:
    assert [str(path) for path in FILES if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))] == []


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    assert [path for path in FILES if path.stem in ("utils", "util", "helpers", "common", "misc")] == []


def test_nothing_is_asserted_of_what_users_give() -> None:
    """`assert` disappears under `python -O` and explains nothing. `is not None` is there for mypy."""
    asserts = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert) and not ast.unparse(node.test).endswith(" is not None")
    ]
    assert asserts == []
