"""Every setting of a study with its default, what is allowed and what it means, laid out like the study file."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator

import yaml

from fluence.schema import NAME, Node, allowed, child, entry, options, resolve, study_schema, variants

_NARROWEST, _WIDEST = 60, 110


def explain(width: int | None = None) -> str:
    """The whole schema as text.

    Args:
        width: columns to wrap at; the terminal's if None.
    """
    columns = width or min(max(shutil.get_terminal_size().columns, _NARROWEST), _WIDEST)
    return "\n".join(_section(study_schema(), 0, columns))


def _section(section: Node, indent: int, width: int, without: str = "") -> Iterator[str]:
    for key, node in section["properties"].items():
        if key != without:
            yield from _setting(key, resolve(node), key in section.get("required", ()), indent, width)


def _setting(key: str, node: Node, required: bool, indent: int, width: int) -> Iterator[str]:
    inside = list(_inside(node, indent + 2, width))
    default = "" if inside or required else _written(node["default"])
    fixed = f" {node['const']}" if required and "const" in node else ""
    yield f"{' ' * indent}{key}:{default}{fixed}{'  (required)' if required else ''}"
    words = f"{meaning(key, node)} " + ("" if inside and "anyOf" not in node else f"[{allowed(node)}]")
    yield from _wrapped(words, indent + 2, width)
    yield from inside


def _inside(node: Node, indent: int, width: int) -> Iterator[str]:
    """The settings of a section, of each kind of it, of each named entry, or of each item of a list."""
    for option in options(node):
        named, items = entry(option), option.get("items")
        if "properties" in option:
            yield from _section(option, indent, width)
        elif variants(option):
            yield from _kinds(option, indent, width)
        elif named and named.get("type") != "string":
            inside = list(_inside(named, indent + 2, width))
            yield from [f"{' ' * indent}{NAME}:", *inside] if inside else []
        elif items:
            yield from _inside(resolve(items), indent, width)


def _kinds(node: Node, indent: int, width: int) -> Iterator[str]:
    tag = node["discriminator"]["propertyName"]
    seen: list[Node] = []
    for reference in node["oneOf"]:
        kind = _shortened(resolve(reference), seen)
        seen += resolve(reference)["properties"].values()
        yield f"{' ' * indent}{tag}: {allowed(kind['properties'][tag])}"
        yield from _wrapped(kind["description"], indent + 2, width)
        yield from _section(kind, indent + 2, width, without=tag)


def _shortened(kind: Node, seen: list[Node]) -> Node:
    """A kind of a section whose settings are not explained again if an earlier kind had the same."""
    again = {key: value | {"description": "As above."} for key, value in kind["properties"].items() if value in seen}
    return {**kind, "properties": kind["properties"] | again}


def meaning(key: str, node: Node) -> str:
    """What a setting means; one that overrides a setting of `training` means the same as that one."""
    own = node.get("description")
    overridden = child(child(study_schema(), "training") or {}, key) or {}
    return str(own or f"{overridden['description']} Left out, the study's `training` decides.")


def _written(default: object) -> str:
    text = yaml.safe_dump(default, default_flow_style=True, width=10_000, allow_unicode=True)
    return " " + text.removesuffix("\n").removesuffix("\n...")


def _wrapped(text: str, indent: int, width: int) -> list[str]:
    prefix = f"{' ' * indent}# "
    words = " ".join(text.split())
    return textwrap.wrap(words, max(width, indent + 30), initial_indent=prefix, subsequent_indent=prefix)
