"""What the pages say is true: commands run and print what is shown, links lead somewhere, no setting is missing.

Every block of a page says in which language it is. Commands (`sh`, `console`) and Python are run, page by page, in a
folder of its own; `first-study.md` really runs its study, the other pages find the results of that one under the names
that they use. A command that is not run is named in `NOT_RUN` with the reason, and has at least to be one that exists.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import pytest
import yaml
from PIL import Image

from fluence.schema import study_schema, walk
from fluence.studyfile import parse_study
from jobs.parser import command_line, parse
from jobs.settings import placeholders_for

ROOT = Path(__file__).resolve().parent.parent
FIRST = ROOT / "docs" / "first-study.md"
_OTHERS = [ROOT / "README.md", ROOT / "sbatch_templates" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = (FIRST, *(page for page in _OTHERS if page != FIRST))

RUN, READ, SHOWN = ("sh", "console", "python"), ("yaml", "csv"), ("text",)
NOT_RUN = {
    "make demo": "takes minutes; its two commands are those of first-study.md, on a larger study",
    "make test": "is what runs this",
    "source .venv/bin/activate": "the test brings its own Python",
    "fluence run studies/upsampling.yaml": "takes minutes; test_studies.py loads the study",
    "fluence report cats.yaml --pdf": "needs WeasyPrint or a Chromium; tests/analysis/test_report_in_a_browser.py",
    "fluence doctor": "asks a Slurm; tests/jobs/test_doctor.py has one",
    "fluence submit": "asks a Slurm; tests/jobs/test_submit.py has one",
    "sinfo": "is Slurm's",
    "sacctmgr": "is Slurm's",
    "module": "is the cluster's",
    "python -m venv": "installs on a cluster",
    "source $WORK/fluence-env/bin/activate": "installs on a cluster",
    "pip install": "needs the network",
}


# ── What stands in the pages ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, the line of its fence, its language, and its text without the indentation."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command, where it stands, and the lines that the page says it prints."""

    place: str
    text: str
    printed: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)

    @property
    def reason_not_to_run(self) -> str:
        """The entry of NOT_RUN that it begins with; empty for a command that is run."""
        plain = " ".join(self.words)
        return next((start for start in NOT_RUN if f"{plain} ".startswith(f"{start} ")), "")


FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> Iterator[Block]:
    content = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(content):
        lines = [line.removeprefix(found["indent"]) for line in found["text"].splitlines()]
        line = content.count("\n", 0, found.start()) + 1
        yield Block(page, line, found["language"].strip(), "\n".join(lines))


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def commands(block: Block) -> list[Command]:
    if block.language == "sh":
        lines = block.text.replace("\\\n", "").splitlines()
        return [Command(block.place, line) for line in lines if shlex.split(line, comments=True)]
    found: list[Command] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append(Command(block.place, line[2:]))
        else:
            before = found.pop()
            found.append(Command(before.place, before.text, (*before.printed, line)))
    return found


ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]
ALL_COMMANDS = [command for block in ALL_BLOCKS if block.language in ("sh", "console") for command in commands(block)]


def test_every_block_is_run_or_read_or_only_shown() -> None:
    languages = {block.place: block.language for block in ALL_BLOCKS if not block.language.startswith("{")}
    assert {place: name for place, name in languages.items() if name not in (*RUN, *READ, *SHOWN)} == {}
    assert not [block.place for block in ALL_BLOCKS if block.language in SHOWN and "fluence " in block.text]


# ── Commands ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Session:
    """A folder in which the blocks of one page are run, one after the other, as a reader would type them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        programs = folder / "bin"
        programs.mkdir(parents=True)
        (programs / "fluence").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m jobs.cli "$@"\n')
        (programs / "fluence").chmod(0o755)
        path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
        own: dict[str, str] = {
            "PATH": path,
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "120",
            "OMP_NUM_THREADS": "1",
            "WORK": str(folder / "work"),
        }
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("FLUENCE_")} | own

    def run(self, block: Block) -> None:
        if block.language == "python":
            self._succeed(block.place, [sys.executable, "-c", block.text])
        elif named := re.match(r"# (\S+\.yaml)\n", block.text):
            (self.folder / named[1]).write_text(block.text, encoding="utf-8")
        elif block.language in ("sh", "console"):
            for command in commands(block):
                self._type(command)

    def _type(self, command: Command) -> None:
        if command.words[0] == "export":
            name, _, value = command.words[1].partition("=")
            self.environment[name] = value.replace("$WORK", self.environment["WORK"])
        elif not command.reason_not_to_run:
            printed = self._succeed(command.place, ["bash", "-c", command.text])
            missing = first_missing(command.printed, printed)
            assert not missing, f"{command.place}: {command.text} no longer prints\n{missing}\nbut\n{printed}"

    def _succeed(self, place: str, words: list[str]) -> str:
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{place}: {words[-1]}\n{done.stdout}{done.stderr}"
        return done.stdout


def alike(line: str) -> str:
    """A printed line without what differs between two machines: numbers, and where the results lie."""
    line = re.sub(r"\S*/results\b", "results", line)
    return " ".join(re.sub(r"[\d.,]*\d", "0", line).split())


def first_missing(shown: tuple[str, ...], printed: str) -> str:
    """The first line of a page that is not printed, in order; only where the page has `…` may others come between."""
    rest = [alike(line) for line in printed.splitlines()]
    anywhere = False
    for line in shown:
        if line.strip() == "…":
            anywhere = True
            continue
        wanted = alike(line)
        if wanted not in (rest if anywhere else rest[:1]):
            return line
        rest, anywhere = rest[rest.index(wanted) + 1 :], False
    return ""


def test_lines_that_a_page_shows_are_looked_for_in_order() -> None:
    printed = "ok  a: 3 images\nok  b: 0.25\nreport /tmp/x/results/y/index.html\n"
    assert first_missing(("ok a: 12 images", "…", "report /home/you/results/y/index.html"), printed) == ""
    assert first_missing(("ok b: 1",), printed) == "ok b: 1"  # lines before it are not shown
    assert first_missing(("…", "ok c: 1"), printed) == "ok c: 1"
    assert first_missing(("…", "ok b: 1", "ok a: 1 images"), printed) == "ok a: 1 images"


def furnish(session: Session, page: Path, results: Path) -> None:
    """Puts into a session what the page takes for granted: finished studies, the examples, images of one's own."""
    folder = session.folder
    (folder / "studies").symlink_to(ROOT / "studies")
    text = (results.parent.parent / "first.yaml").read_text(encoding="utf-8")
    for name in ("cats", "dogs", "demo"):
        shutil.copytree(results, folder / "results" / name)
        for path in (folder / f"{name}.yaml", folder / "results" / name / "study.yaml"):
            path.write_text(text.replace("name: first", f"name: {name}"), encoding="utf-8")
    for block in blocks(page):
        if "fluence new cats" in block.text:
            (folder / "cats.yaml").unlink()
        if block.language == "csv":
            write_images(folder / "my-images", block.text)
    (folder / "work").mkdir()
    (folder / "work" / "fluence").symlink_to(folder / "results")


def write_images(folder: Path, manifest: str) -> None:
    """The rows that a page shows, and more like them, with an image for each."""
    header, *rows = manifest.splitlines()
    more = [re.sub(r"^[^,]*", f"images/more-{place}.jpg", rows[place % len(rows)]) for place in range(58)]
    for place, row in enumerate(rows + more):
        path = folder / row.split(",")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").rotate(6 * place).save(path)
    (folder / "manifest.csv").write_text("\n".join([header, *rows, *more, ""]), encoding="utf-8")


@pytest.mark.slow
def test_every_command_does_what_its_page_says(tmp_path: Path) -> None:
    """One test for all pages: the others need what the first one makes, and go two at a time."""
    first = Session(tmp_path / "first")
    for block in blocks(FIRST):
        first.run(block)
    with ThreadPoolExecutor(2) as pool:
        wrong = list(pool.map(partial(what_is_wrong, tmp_path, first.folder / "results" / "first"), PAGES[1:]))
    assert not any(wrong), "\n\n".join(wrong)


def what_is_wrong(folder: Path, results: Path, page: Path) -> str:
    """The first thing that a page says and that is not so; empty if all is."""
    session = Session(folder / str(page.relative_to(ROOT)).replace("/", "-"))
    furnish(session, page, results)
    try:
        for block in blocks(page):
            session.run(block)
    except AssertionError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("command", ALL_COMMANDS, ids=[f"{each.place} {each.text}" for each in ALL_COMMANDS])
def test_every_command_exists_also_where_it_is_not_run(command: Command) -> None:
    words = command.words
    if words[0] == "fluence" and not {"--help", "--version"} & set(words):
        parse(words[1:])
    if words[0] == "make":
        assert subprocess.run(["make", "-n", words[1]], cwd=ROOT, capture_output=True, check=False).returncode == 0


def test_what_is_not_run_is_in_the_pages() -> None:
    assert set(NOT_RUN) == {command.reason_not_to_run for command in ALL_COMMANDS} - {""}


def verbs() -> dict[str, set[str]]:
    """The options of each verb."""
    (choices,) = (action.choices for action in command_line()._actions if isinstance(action.choices, dict))
    return {name: set(verb._option_string_actions) for name, verb in choices.items()}


def test_every_verb_that_needs_no_cluster_is_run_by_a_page() -> None:
    run = {
        command.words[1] for command in ALL_COMMANDS if command.words[0] == "fluence" and not command.reason_not_to_run
    }
    assert set(verbs()) - run <= {"doctor", "submit", "cancel"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_running_text_have_known_verbs_and_options(page: Path) -> None:
    known = verbs()
    for span in re.findall(r"`fluence ([^`]+)`", prose(page)):
        verb, *rest = span.replace("\n", " ").split()
        options = {word.partition("=")[0] for word in rest if word.startswith("-")}
        assert verb in known or verb.startswith("--"), f"fluence {span}"
        assert options <= known.get(verb, set()), f"fluence {span}"


# ── Studies and settings in the pages ────────────────────────────────────────────────────────────────────────────

YAML_BLOCKS = [block for block in ALL_BLOCKS if block.language == "yaml"]


@pytest.mark.parametrize("block", YAML_BLOCKS, ids=[block.place for block in YAML_BLOCKS])
def test_every_yaml_block_is_a_study_or_part_of_one(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = yaml.safe_load(block.text)
    if "placeholders" in part:
        (tmp_path / "settings.yaml").write_text(block.text, encoding="utf-8")
        monkeypatch.setenv("FLUENCE_SETTINGS", str(tmp_path / "settings.yaml"))
        assert placeholders_for("meso-lr", {})["project"] == "xyz"
        return
    synthetic = {"datasets": {"faces": {"kind": "synthetic"}}, "training": "faces", "rated": "faces"}
    compared = [name for each in part.get("comparisons", {}).values() for name in each["models"]]
    rest = {"name": "x", "data": synthetic, "models": {name: {"kind": "vae"} for name in compared or ["small"]}}
    others = [yaml.safe_dump({key: value}) for key, value in rest.items() if key not in part]
    parse_study("\n".join([block.text, *others]), block.place)


# ── The pages as Sphinx builds them ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the HTML pages, made by the very command of `make docs`, in which a warning is an error."""
    folder = tmp_path_factory.mktemp("docs")
    printed = subprocess.run(
        ["make", "-n", "docs", "VENV=.venv", f"DOCS_OUT={folder}"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    (command,) = (line for line in printed.splitlines() if "-m sphinx" in line)
    assert " -W " in command
    words = [sys.executable, *shlex.split(command)[1:]]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


CODE = re.compile(r"<code[^>]*>(.*?)</code>")


def codes(text: str) -> list[str]:
    """What a part of a page shows as code, without its markup, in order."""
    text = re.sub(r"</?span[^>]*>", "", text)
    return [code.replace("&lt;", "<").replace("&gt;", ">") for code in CODE.findall(text)]


def test_the_page_of_the_study_file_has_every_setting_in_its_section(built: Path) -> None:
    shown: dict[str, set[str]] = {}
    for part in re.split(r"<h[1-3]>", (built / "study-file.html").read_text(encoding="utf-8")):
        title, _, content = part.partition("</h")
        path, *kind = codes(title) or [""]
        shown.setdefault(path, set()).update(codes(content), [code.partition(":")[0] for code in kind])
    settings = [path for path, _ in walk(study_schema())]
    assert len(settings) > 100
    assert [path for path in settings if path[-1] not in shown.get(".".join(path[:-1]), set())] == []


def test_the_page_of_commands_has_every_verb_and_option(built: Path) -> None:
    shown = codes((built / "commands.html").read_text(encoding="utf-8"))
    for verb, options in verbs().items():
        assert f"fluence {verb}" in shown
        named = {word for code in shown for word in code.replace(",", "").split()}
        assert options - {"-h", "--help"} <= named


def test_pages_need_no_network_and_no_javascript_for_formulas(built: Path) -> None:
    for page in built.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//[^"]*"', text) == [], page
        assert re.findall(r"<script[^>]*mathjax", text, re.IGNORECASE) == [], page
    science = (built / "science.html").read_text(encoding="utf-8")
    assert science.count('display="block"') == prose(ROOT / "docs" / "science.md").count("$$") // 2
    assert "<mfrac>" in science


# ── Links ────────────────────────────────────────────────────────────────────────────────────────────────────────

LINK = re.compile(r"\]\(([^)\s]+)\)")


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors of a page's headings, as Git hosts and MyST make them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        path, _, anchor = link.partition("#")
        if not path.startswith("http"):
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_links_that_leave_the_documentation_lead_to_a_page_when_it_is_built(built: Path) -> None:
    """A file that is no page would be offered as a download."""
    assert not list((built / "_downloads").rglob("*.md"))
    text = (built / "cluster.html").read_text(encoding="utf-8")
    assert 'href="sites.html"' in text
