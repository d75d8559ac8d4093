"""Reports as a reader has them: their links and text, and what a browser makes of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium is installed, so the report was not opened in a browser"
)


class Links(HTMLParser):
    """Every address that a page points to, by attribute."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.targets: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.sources += [given["src"] or ""] if "src" in given and tag != "dialog" else []
        self.targets += [given["href"] or ""] if "href" in given else []
        self.ids += [given["id"] or ""] if "id" in given else []


def text_of(html: str) -> str:
    body = re.sub(r"<(style|script)>.*?</\1>", "", html, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def chromium(page: Path, tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"]
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", *quiet]
    command += [f"--user-data-dir={tmp_path}/chrome", "--enable-logging=stderr", "--virtual-time-budget=10000"]
    return subprocess.run(
        [*command, *options, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=240, check=True
    )


def probed(html: str, script: str, tmp_path: Path, *options: str) -> tuple[dict[str, str], str]:
    """What a script in the page tells of it by `tell(name, value)`, and what the browser complained of.

    Args:
        html: the page.
        script: body of an asynchronous function that runs when the page is loaded; `broken(images)` counts those that
            cannot be decoded.
        tmp_path: where the page and the browser's profile go.
        options: further ones of the browser.
    """
    page = tmp_path / "probed.html"
    page.write_text(html.replace("</body>", f"{_PROBE.replace('SCRIPT', script)}</body>"), encoding="utf-8")
    done = chromium(page, tmp_path, *options)
    told = re.search(r"<body[^>]*>", done.stdout)
    complaints = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return dict(re.findall(r'data-(\w+)="([^"]*)"', told[0] if told else "")), complaints


_PROBE = """<script>addEventListener("load", async () => {
  const tell = (name, value) => { document.body.dataset[name] = String(value); };
  const broken = async (images) => {
    const found = await Promise.all([...images].map((image) => new Promise((done) => {
      const copy = new Image();  // which, other than the one in the page, does not wait to be scrolled to
      copy.onload = () => done(0);
      copy.onerror = () => done(1);
      copy.src = image.src;
    })));
    return found.reduce((sum, one) => sum + one, 0) + " of " + found.length;
  };
  SCRIPT
});</script>"""
