"""What each setting of a study may be, in plain words, read off the schema that pydantic makes of `fluence.study`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from fluence.study import Study

Node = dict[str, Any]
"""A part of the JSON schema, with references followed."""

NAME = "<name>"
"""Stands for a name of the user's choice, in a path through the schema."""


@cache
def study_schema() -> Node:
    """The JSON schema of a study."""
    return Study.model_json_schema()


def resolve(node: Node) -> Node:
    """The node that a reference points to; what stands beside the reference (description, default) wins."""
    if "$ref" not in node:
        return node
    beside = {key: value for key, value in node.items() if key != "$ref"}
    return {**study_schema()["$defs"][node["$ref"].rpartition("/")[2]], **beside}


def options(node: Node) -> list[Node]:
    """What a setting may be one of, `null` included: the setting itself if there is only one thing."""
    return [resolve(option) for option in node.get("anyOf", [node])]


def variants(node: Node) -> dict[str, Node]:
    """The kinds of a section that comes in several kinds, by the value that names them; empty for all else."""
    mapping = node.get("discriminator", {}).get("mapping", {})
    order = [tag for option in node.get("oneOf", []) for tag in _tags(resolve(option), node)]
    return {tag: resolve({"$ref": mapping[tag]}) for tag in order}


def _tags(option: Node, union: Node) -> list[str]:
    tag = option["properties"][union["discriminator"]["propertyName"]]
    return tag.get("enum") or [tag["const"]]


def entry(node: Node) -> Node | None:
    """The schema of each value of a section whose keys are names of the user's choice."""
    for values in (*node.get("patternProperties", {}).values(), node.get("additionalProperties")):
        if isinstance(values, dict):
            return resolve(values)
    return None


def child(node: Node, key: str | int) -> Node | None:
    """The schema one step further down, by the name of a setting, a kind, a free name, or a place in a list."""
    for option in options(node):
        if isinstance(key, int) and "items" in option:
            return resolve(option["items"])
        found = option.get("properties", {}).get(key) or variants(option).get(str(key)) or entry(option)
        if found and isinstance(key, str):
            return resolve(found)
    return None


def walk(node: Node, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Node]]:
    """Every setting below a node, with its path; each kind of a section is walked in its turn."""
    for option in options(node):
        for key, value in option.get("properties", {}).items():
            yield (*path, key), resolve(value)
            yield from walk(resolve(value), (*path, key))
        for kind in variants(option).values():
            yield from walk(kind, path)
        if named := entry(option):
            yield from walk(named, (*path, NAME))
        if "items" in option:
            yield from walk(resolve(option["items"]), path)


def allowed(node: Node) -> str:
    """What a setting may be: `a whole number, at least 1`."""
    words = [_allowed_option(option) for option in options(node)]
    return ("; or " if any("," in word for word in words) else " or ").join(words)


def _allowed_option(node: Node) -> str:
    if "const" in node or "enum" in node:
        return _either([str(value) for value in node.get("enum") or [node["const"]]])
    if "discriminator" in node:
        return f"a section with `{node['discriminator']['propertyName']}:` {_either(list(variants(node)))}"
    kind = node.get("type")
    if kind == "array":
        return f"a list{' of at least one item' * ('minItems' in node)}, each {allowed(resolve(node['items']))}"
    if kind == "object":
        return _allowed_section(node)
    if kind == "string" and "pattern" in node:
        return "a name of at most 64 letters, digits and . _ + -, the first a letter or digit"
    words = {"string": "text", "boolean": "true or false", "null": "null", "integer": "a whole number"}
    return words.get(str(kind), "a number") + _range(node)


def _allowed_section(node: Node) -> str:
    if "properties" in node:
        names = list(node["properties"])
        return f"a section with {', '.join(names[:4])}{', …' if len(names) > 4 else ''}"
    named = entry(node) or {}
    return f"a section of names, each with {allowed(named)}"


def _either(values: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(values[:-1]), values[-1]]))


def _range(node: Node) -> str:
    low = f"at least {node['minimum']:g}" if "minimum" in node else ""
    low = f"above {node['exclusiveMinimum']:g}" if "exclusiveMinimum" in node else low
    high = f"at most {node['maximum']:g}" if "maximum" in node else ""
    high = f"below {node['exclusiveMaximum']:g}" if "exclusiveMaximum" in node else high
    both = " and ".join(filter(None, [low, high]))
    return f", {both}" if both else ""
