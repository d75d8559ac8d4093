"""YAML without its traps: plain values, the line of each, and a clear word where the text is not YAML.

The traps of YAML 1.1 that have no place in a study: `1e-4` was text, `no` was false, `12:30` was 750, `010` was 8,
`2023-01-01` was a date, and of two equal keys the second silently won.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from fluence.errors import Mistake, StudyError

_BUDGET = 2_000_000
_COST_OF_A_VALUE = 50
_DEEPEST = 40
_TOO_MUCH = "nested too deeply, or its anchors repeat themselves without end"
_TAG = "tag:yaml.org,2002:"


def failure(source: str, mistakes: list[Mistake]) -> StudyError:
    """The error that lists all mistakes, in the order of the file."""
    ordered = sorted(mistakes, key=lambda mistake: mistake.line or 0)
    return StudyError(f"{source}: {len(ordered)} mistake{'s' if len(ordered) > 1 else ''}", tuple(ordered))


class _Loader(yaml.SafeLoader):
    """Plain words are text unless they are a number as one writes it, `true`, `false` or `null`."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  (as PyYAML has it)


for _kind, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(0|[1-9][0-9]*)?(\.[0-9]+|(?<=[0-9])\.|(?<=[0-9])(?=[eE]))([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(f"(?:{_pattern})$"), list(_first))


class Document:
    """The values of a YAML text, and the line on which each of them stands.

    Attributes:
        value: the settings, as dicts, lists, text, numbers, booleans and None. Keys are text, as written.
        lines: line of each setting, counted from 1, by its dotted path.

    Raises:
        StudyError: the text is no YAML, no mapping, or holds a key twice; all such mistakes are listed.
    """

    def __init__(self, text: str, source: str) -> None:
        self.lines: dict[str, int] = {}
        self._mistakes: list[Mistake] = []
        self._budget = _BUDGET
        root = _compose(text, source)
        if root is None:
            raise StudyError(f"{source}: the file is empty; `fluence new NAME` writes a study to start from")
        if not isinstance(root, yaml.MappingNode):
            raise StudyError(f"{source}: a study is a list of settings such as `name: my-study`, found something else")
        try:
            self.value = self._mapping(root, ())
        except RecursionError as error:
            raise StudyError(f"{source}: {_TOO_MUCH}") from error
        if self._mistakes:
            raise failure(source, self._mistakes)

    def line_of(self, key: str) -> int | None:
        """Line of a setting, or of the section that should hold it."""
        while key and key not in self.lines:
            key = key.rpartition(".")[0]
        return self.lines.get(key)

    def _report(self, path: tuple[str, ...], node: yaml.Node, message: str, hint: str = "") -> None:
        self._mistakes.append(Mistake(".".join(path) or "study", message, _line(node), hint))

    def _any(self, node: yaml.Node, path: tuple[str, ...]) -> Any:
        self._spend(node)
        if len(path) > _DEEPEST:
            raise RecursionError
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return self._sequence(node, path)
        return self._scalar(node, path)

    def _sequence(self, node: yaml.SequenceNode, path: tuple[str, ...]) -> list[Any]:
        if node.tag != _TAG + "seq":
            self._refuse_tag(node, path)
        items = []
        for place, item in enumerate(node.value):
            self.lines[".".join((*path, str(place)))] = _line(item)
            items.append(self._any(item, (*path, str(place))))
        return items

    def _mapping(self, node: yaml.MappingNode, path: tuple[str, ...]) -> dict[str, Any]:
        if node.tag != _TAG + "map":
            self._refuse_tag(node, path)
        own: dict[str, yaml.Node] = {}
        merged: list[yaml.Node] = []
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._report(path, key, "a key must be a word, found a list or a section")
            elif key.tag == _TAG + "merge" and not merged:
                merged = value.value if isinstance(value, yaml.SequenceNode) else [value]
            elif key.value in own or key.tag == _TAG + "merge":
                self._report((*path, key.value), key, self._twice(path, key), "keep one of the two")
            else:
                own[key.value] = value
                self.lines[".".join((*path, key.value))] = _line(key)
        values = self._merge(merged, path, frozenset(own)) if merged else {}
        return values | {key: self._any(value, (*path, key)) for key, value in own.items()}

    def _merge(self, nodes: list[yaml.Node], path: tuple[str, ...], own: frozenset[str]) -> dict[str, Any]:
        """The settings that `<<: *anchor` brings in: of several anchors the first wins, and a key beside it always."""
        values: dict[str, Any] = {}
        lines = {key: line for key, line in self.lines.items() if key.startswith(".".join((*path, "")))}
        for node in reversed(nodes):
            if isinstance(node, yaml.MappingNode):
                self._spend(node)
                values |= self._mapping(node, path)
            else:
                self._report(path, node, "`<<` needs an anchor of a section, such as `<<: *base`")
        self.lines |= lines
        return {key: value for key, value in values.items() if key not in own}

    def _spend(self, node: yaml.Node) -> None:
        """Counts what anchors unfold to, so that ten lines cannot fill the memory."""
        self._budget -= _COST_OF_A_VALUE + (len(node.value) if isinstance(node, yaml.ScalarNode) else 0)
        if self._budget < 0:
            raise RecursionError

    def _twice(self, path: tuple[str, ...], key: yaml.ScalarNode) -> str:
        first = self.lines.get(".".join((*path, key.value)))
        return "is written twice" + (f", first on line {first}" if first else "")

    def _scalar(self, node: yaml.ScalarNode, path: tuple[str, ...]) -> Any:
        kind = node.tag.removeprefix(_TAG)
        try:
            match kind:
                case "str":
                    node.value.encode()
                    return node.value
                case "null":
                    return None
                case "bool":
                    return {"true": True, "false": False}[node.value.lower()]
                case "int" | "float":
                    return int(node.value) if kind == "int" else float(node.value)
        except (ValueError, KeyError):
            self._report(path, node, f"{node.value[:40]!r} is no {kind}")
            return None
        self._refuse_tag(node, path)
        return None

    def _refuse_tag(self, node: yaml.Node, path: tuple[str, ...]) -> None:
        tag = node.tag.replace(_TAG, "!!")
        self._report(path, node, f"tags such as {tag} have no meaning in a study", "leave it out")


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _compose(text: str, source: str) -> yaml.Node | None:
    """The tree of the text, or the place where it is not YAML."""
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        found = f"the character U+{ord(text[error.position]):04X} is not allowed"
        raise failure(source, [Mistake("text", found, line, "delete it")]) from error
    except yaml.MarkedYAMLError as error:
        raise failure(source, [_not_yaml(error)]) from error
    except RecursionError as error:
        raise StudyError(f"{source}: {_TOO_MUCH}") from error


def _not_yaml(error: yaml.MarkedYAMLError) -> Mistake:
    mark = error.problem_mark or error.context_mark
    problem = f"{error.problem or error.context}"
    if "'\\t'" in problem:
        return Mistake("YAML", f"a tab in column {mark.column + 1}", mark.line + 1, "indent with spaces")
    if "expected a single document" in f"{error.context}":
        return Mistake("YAML", "a second document begins (`---`); a study is one", mark.line + 1, "use two files")
    where = f" (it began on line {error.context_mark.line + 1})" if error.context_mark else ""
    hint = "look for a missing colon, quote or bracket, or an indentation that does not fit, here or just above"
    return Mistake("YAML", f"column {mark.column + 1}: {problem}{where}", mark.line + 1, hint)
