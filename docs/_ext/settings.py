"""Every setting of a study as Markdown: a chapter for each section, a table row for each setting."""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from fluence.schema import NAME, Node, allowed, entry, options, resolve, study_schema, variants
from jobs.explain import meaning

_HEAD = ("| setting | what it may be | default | meaning |", "|---|---|---|---|")

Section = tuple[str, str, Node]
"""Path of a section, what chooses it among its kinds (`kind: vae`, or nothing), and its schema."""


def settings() -> str:
    """All sections, each with a heading and a table of its settings."""
    rows: dict[str, set[str]] = {}
    return "\n".join(line for section in _sections("", "", study_schema(), set()) for line in _written(section, rows))


def _sections(path: str, kind: str, node: Node, shown: set[str]) -> Iterator[Section]:
    """A section, then those inside it; one that stands alike in several kinds of a section comes once."""
    content = repr((path, kind, node["properties"]))
    if content in shown:
        return
    shown.add(content)
    yield path, kind, node
    for key, value in node["properties"].items():
        yield from _below(f"{path}.{key}" if path else key, resolve(value), shown)


def _below(path: str, node: Node, shown: set[str]) -> Iterator[Section]:
    for option in options(node):
        named = entry(option)
        if "properties" in option:
            yield from _sections(path, "", {**option, "description": node.get("description", "")}, shown)
        elif variants(option):
            yield from _kinds(path, option, shown)
        elif named and named.get("type") != "string":
            yield from _below(f"{path}.{NAME}", named, shown)
        elif "items" in option:
            yield from _below(path, resolve(option["items"]), shown)


def _kinds(path: str, node: Node, shown: set[str]) -> Iterator[Section]:
    tag = node["discriminator"]["propertyName"]
    for reference in node["oneOf"]:
        kind = resolve(reference)
        yield from _sections(path, f"{tag}: {allowed(kind['properties'][tag])}", kind, shown)


def _written(section: Section, rows: dict[str, set[str]]) -> Iterator[str]:
    path, kind, node = section
    if path:
        title = f"`{path}`" + (f" with `{kind}`" if kind else "")
        depth = 3 if "." in path.replace(f".{NAME}", "") else 2
        yield from ("", f"{'#' * depth} {title}", "")
        yield from (_cell(node["description"]), "") if node.get("description") else ()
    known = rows.setdefault(path, set())
    table = {key: _row(key, node) for key in node["properties"] if key != kind.split(":")[0]}
    again = [key for key, row in table.items() if row in known]
    new = [row for row in table.values() if row not in known]
    known.update(new)
    yield from (*_HEAD, *new, "") if new else ()
    yield from (f"As above: {', '.join(f'`{key}`' for key in again)}.", "") if again else ()


def _row(key: str, section: Node) -> str:
    node = resolve(section["properties"][key])
    default = "**required**" if key in section.get("required", ()) else _default(node)
    return f"| `{key}` | {_cell(allowed(node))} | {default} | {_cell(meaning(key, node))} |"


def _default(node: Node) -> str:
    """The default as it is written in a study; of a section, whose settings have theirs, nothing."""
    if isinstance(node.get("default"), dict) and node["default"]:
        return "see below"
    text = yaml.safe_dump(node.get("default"), default_flow_style=True, width=10_000, allow_unicode=True)
    return f"`{text.removesuffix(chr(10)).removesuffix(chr(10) + '...')}`"


def _cell(text: str) -> str:
    """Text that does not end a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")
