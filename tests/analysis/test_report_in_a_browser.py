"""The report as a browser shows and prints it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from analysis.report import printing
from analysis.report.printing import print_by_browser, printer
from fluence.errors import ArtifactError, StudyError
from tests.analysis.invented_study import MadeStudy
from tests.analysis.opened import CHROMIUM, Links, chromium, needs_chromium, probed


@pytest.fixture(scope="module")
def html(reported: MadeStudy) -> str:
    return reported.layout.report_page.read_text(encoding="utf-8")


LOOK = """
  const images = [...document.querySelectorAll("figure img")];
  tell("broken", await broken(images));
  const links = [...document.querySelectorAll('a[href^="#"]')];
  tell("dead", links.filter((a) => !document.getElementById(decodeURIComponent(a.hash.slice(1)))).length);
  tell("wide", document.documentElement.scrollWidth > innerWidth + 1);

  const table = document.querySelector("table.sortable");
  const keys = () => [...table.tBodies[0].rows].map((row) => row.cells[6].dataset.key);
  const heading = table.tHead.rows[0].cells[6];
  heading.click(); const up = keys().map(Number); heading.click(); const down = keys().map(Number);
  tell("sorted", up.length > 1 && up.every((v, i) => !i || up[i - 1] <= v)
    && JSON.stringify(down) === JSON.stringify([...up].reverse()));

  const large = document.getElementById("large");
  images[0].click(); tell("enlarged", large.open && large.firstElementChild.src === images[0].src);
  large.click(); tell("closed", !large.open);

  const shown = () => [...document.querySelectorAll("main > section, main > article")]
    .filter((part) => part.checkVisibility()).map((part) => part.id).join(" ");
  const settled = () => new Promise((done) => setTimeout(done, 100));
  const go = async (hash) => { location.hash = hash; await settled(); return shown(); };
  tell("report", shown());
  document.querySelector('a[href="#model-small"]').click(); await settled();
  tell("model", shown()); tell("title", document.title);
  document.querySelector("#model-small a[rel=next]").click(); await settled();
  tell("next", shown());
  document.querySelector("#model-vgg16-5 a[rel=prev]").click(); await settled();
  tell("previous", shown());
  tell("inside", await go("#figure-loss-vgg16-5"));
  document.querySelector('#model-vgg16-5 a[href="#models"]').click(); await settled();
  tell("back", shown()); tell("again", document.title);
"""


@needs_chromium
@pytest.mark.parametrize("width", [400, 1280])
def test_a_browser_shows_the_report_and_a_page_per_model(html: str, width: int, tmp_path: Path) -> None:
    told, complaints = probed(html, LOOK, tmp_path, f"--window-size={width},900")
    assert complaints == ""
    links = Links(html)
    assert told["broken"] == f"0 of {links.tags.count('figure')}"
    assert told["dead"] == "0"
    assert told["wide"] == "false"  # nothing has to be scrolled sideways but tables, in their own frames
    assert (told["sorted"], told["enlarged"], told["closed"]) == ("true", "true", "true")
    assert told["report"].startswith("answer metrics")
    assert "model-" not in told["report"]
    assert told["model"] == told["previous"] == "model-small"
    assert told["next"] == told["inside"] == "model-vgg16-5"
    assert told["back"] == told["report"]
    assert told["title"] == "small · invented · fluence report"
    assert told["again"] == "invented · fluence report"


@needs_chromium
def test_without_scripts_all_pages_follow_one_another(html: str, tmp_path: Path) -> None:
    still = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    told, complaints = probed(
        still,
        "tell('models', [...document.querySelectorAll('article.model')].filter((one) => one.checkVisibility()).length)",
        tmp_path,
    )
    assert complaints == ""
    assert told["models"] == "3"


@needs_chromium
def test_the_browser_test_can_fail(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<script>throw new Error('bad')</script>", encoding="utf-8")
    assert "CONSOLE" in chromium(page, tmp_path).stderr
    image = "<body><figure><img src='data:image/webp;base64,AAAA'></figure></body>"
    told, _ = probed(image, 'tell("broken", await broken(document.images));', tmp_path)
    assert told["broken"] == "1 of 1"


# ── As PDF ───────────────────────────────────────────────────────────────────────────────────────────────────────


@needs_chromium
def test_a_browser_prints_the_report_with_every_model(reported: MadeStudy, tmp_path: Path) -> None:
    target = tmp_path / "report.pdf"
    print_by_browser(str(CHROMIUM), reported.layout.report_page, target)
    content = target.read_bytes()
    assert content.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", content)) > 15  # the chapters, and three models of at least two pages
    assert re.search(rb"/MediaBox\s*\[0 0 59\d\.?\d* 84\d", content)  # A4


def test_weasyprint_prints_a_page(tmp_path: Path) -> None:
    pytest.importorskip("weasyprint", reason="WeasyPrint is not installed, so nothing was printed with it")
    page, target = tmp_path / "page.html", tmp_path / "page.pdf"
    page.write_text("<h1>Sparse</h1>", encoding="utf-8")
    printer()(page, target)
    assert target.read_bytes().startswith(b"%PDF")


def test_what_cannot_print_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reported: MadeStudy
) -> None:
    monkeypatch.setattr(printing, "_weasyprint", lambda: "it is not installed")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StudyError, match=r"neither WeasyPrint .*it is not installed.* nor Chromium.*pip install"):
        printer()
    silent = tmp_path / "chromium"
    silent.write_text("#!/bin/sh\necho 'no display' >&2\nexit 1\n")
    silent.chmod(0o755)
    with pytest.raises(ArtifactError, match=r"could not print it \(no display\)"):
        printer()(reported.layout.report_page, tmp_path / "report.pdf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chromium"]
