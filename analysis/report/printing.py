"""The report as PDF, by WeasyPrint or, where that is not installed, by a Chromium."""

from __future__ import annotations

import logging
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from fluence.errors import ArtifactError, StudyError
from fluence.store.files import atomic_path

Printer = Callable[[Path, Path], None]
"""Writes a page, the first file, as PDF to the second."""

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
_LONGEST_S = 1800


def printer() -> Printer:
    """What can print here: WeasyPrint if it is installed, else a Chromium.

    Raises:
        StudyError: there is neither.
    """
    if not (trouble := _weasyprint()):
        return _print_by_weasyprint
    found = [path for path in map(shutil.which, _BROWSERS) if path]
    if not found:
        raise StudyError(
            f"--pdf: there is neither WeasyPrint ({trouble}) nor Chromium; type: pip install weasyprint, or open the "
            "report in a browser and print it from there"
        )
    return lambda page, target: print_by_browser(found[0], page, target)


def _weasyprint() -> str:
    """Why WeasyPrint cannot be used; empty if it can."""
    try:
        import weasyprint  # noqa: F401
    except ImportError:
        return "it is not installed"
    except OSError:
        return "it is installed, but not the library Pango that it draws with: apt, conda or a module has it"
    return ""


def _print_by_weasyprint(page: Path, target: Path) -> None:
    import weasyprint

    logging.getLogger("weasyprint").setLevel(logging.ERROR)  # rules that only concern screens are no news
    with atomic_path(target) as temporary:
        weasyprint.HTML(filename=str(page)).write_pdf(temporary)


def print_by_browser(browser: str, page: Path, target: Path) -> None:
    """Prints a page with a Chromium.

    Args:
        browser: the program.
        page: the HTML file.
        target: the PDF file.

    Raises:
        ArtifactError: the browser has written nothing; with what it said.
    """
    with tempfile.TemporaryDirectory(prefix="fluence-print-") as profile, atomic_path(target) as temporary:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}"]
        options += ["--disable-background-networking", "--no-pdf-header-footer", f"--print-to-pdf={temporary}"]
        try:
            command = [browser, *options, page.as_uri()]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ArtifactError(f"{target}: {browser} could not print it ({error})") from error
        if done.returncode or not temporary.exists():
            said = done.stderr.strip().splitlines() or ["it said nothing"]
            raise ArtifactError(f"{target}: {browser} could not print it ({said[-1]})")
