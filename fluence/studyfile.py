"""Reads a study file, and says every mistake at once with its line and what is allowed."""

from __future__ import annotations

import difflib
import json
import os
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from fluence.errors import Mistake, StudyError
from fluence.plainyaml import Document, failure
from fluence.schema import Node, allowed, child, options, study_schema, variants, walk
from fluence.study import Study

_MOST_BYTES = 200_000
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


def load_study(path: Path, roots: dict[str, str] | None = None) -> Study:
    """Reads and validates a study file.

    Args:
        path: the file.
        roots: folders of data sets, by name, that replace those in the file (`--data faces=FOLDER`).

    Raises:
        StudyError: the file cannot be read, or holds mistakes; all of them are listed.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise StudyError(f"{path}: no such file; `fluence new NAME` writes a study to start from") from error
    except OSError as error:
        raise StudyError(f"{path}: cannot be read ({error.strerror})") from error
    if len(content) > _MOST_BYTES:
        raise StudyError(f"{path}: larger than 200 kB, which no study is; is it the right file?")
    return parse_study(_decode(content, str(path)), str(path), roots)


def parse_study(text: str, source: str, roots: dict[str, str] | None = None) -> Study:
    """Reads and validates the text of a study.

    Args:
        text: YAML.
        source: what messages call it, such as the name of the file.
        roots: folders of data sets, by name, that replace those in the text.

    Raises:
        StudyError: the text holds mistakes; all of them are listed.
    """
    document = Document(text, source)
    _replace_roots(document, roots or {}, source)
    try:
        return Study.model_validate_json(json.dumps(document.value), strict=True)
    except ValidationError as error:
        mistakes = _explain(error.errors(include_url=False), document)
    raise failure(source, mistakes)


def expand_root(text: str, dataset: str = "NAME") -> Path:
    """The folder that a data set's `root` means: `~`, `$FACES` and `${FACES}` are expanded.

    Args:
        text: the root as it stands in the study.
        dataset: name of the data set, for the message.

    Raises:
        StudyError: an environment variable is not set.
    """

    def value_of(found: re.Match[str]) -> str:
        variable = found[1] or found[2]
        if not os.environ.get(variable):
            raise StudyError(
                f"data.datasets.{dataset}.root: the environment variable {variable} in {text!r} is not set; "
                f"set {variable}, or give --data {dataset}=FOLDER"
            )
        return os.environ[variable]

    return Path(os.path.expanduser(_VARIABLE.sub(value_of, text)))


def _decode(content: bytes, source: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        found = f"byte 0x{content[error.start]:02x} is not UTF-8"
        raise failure(source, [Mistake("encoding", found, line, "save the file as UTF-8")]) from error


def _replace_roots(document: Document, roots: dict[str, str], source: str) -> None:
    """Puts the folders of the command line in the place of those of the file."""
    data = document.value.get("data")
    sets = data.get("datasets") if isinstance(data, dict) else None
    if not isinstance(sets, dict):
        return  # the mistake in `data` is reported with the others
    for name, root in roots.items():
        dataset = sets.get(name)
        if name not in sets:
            near = _did_you_mean(name, list(sets))
            raise StudyError(f"--data {name}={root}: {source} has no such data set; there are: {', '.join(sets)}{near}")
        if isinstance(dataset, dict) and dataset.get("kind") == "synthetic":
            raise StudyError(f"--data {name}={root}: fluence draws this data set itself, it has no folder")
        if isinstance(dataset, dict):
            dataset["root"] = root


# ── What pydantic found, in plain words ──────────────────────────────────────────────────────────────────────────


def _explain(errors: list[ErrorDetails], document: Document) -> list[Mistake]:
    """One mistake for each setting that is wrong, in the order of the schema."""
    found: dict[str, Mistake] = {}
    for error in errors:
        for mistake in _value_errors(error, document) or [_mistake(error, document)]:
            found.setdefault(mistake.key, mistake)
    return [mistake for mistake in found.values() if not _said_already(mistake, list(found.values()))]


def _said_already(mistake: Mistake, others: list[Mistake]) -> bool:
    """Whether a missing setting is only misspelt, or a section is only wrong because of something inside it."""
    if mistake.message.startswith("is missing"):
        return any(other.hint == f"did you mean {mistake.key}?" for other in others)
    return any(other.key.startswith(f"{mistake.key}.") for other in others)


def _mistake(error: ErrorDetails, document: Document) -> Mistake:
    path, node, value = _locate(error, document.value)
    kind, key = error["type"], ".".join(path)
    if kind.startswith("union_tag"):
        key, node = f"{key}.{node['discriminator']['propertyName']}", {"enum": list(variants(node))}
        missing, value = kind == "union_tag_not_found", error.get("ctx", {}).get("tag")
    else:
        missing = kind == "missing"
    line = document.line_of(key)
    if missing:
        return Mistake(key, f"is missing; it must be {allowed(node)}", line)
    if kind == "extra_forbidden":
        return _not_a_setting(path, node, line)
    if error["loc"][-1] == "[key]":
        value, node = path[-1], {"type": "string", "pattern": "name"}
    return Mistake(key, f"must be {allowed(node)}; found {_show(value)}", line, _hint(value, node))


def _locate(error: ErrorDetails, value: Any) -> tuple[tuple[str, ...], Node, Any]:
    """Follows pydantic's path through schema and values, leaving out what it adds: names of kinds and of types.

    Returns:
        The path as in the file, the schema of the last setting that exists, and its value.
    """
    path: list[str] = []
    node = study_schema()
    for step in error["loc"]:
        kinds = [kind for option in options(node) for kind in variants(option)]
        if step in kinds:
            node = child(node, step) or node
        elif isinstance(step, int) or _has(value, step) or (error["type"] == "missing" and isinstance(value, dict)):
            path.append(str(step))
            node = child(node, step) or node
            value = _get(value, step)
    return tuple(path), node, value


def _has(value: Any, step: str) -> bool:
    return isinstance(value, dict) and step in value


def _get(value: Any, step: str | int) -> Any:
    if isinstance(value, dict):
        return value.get(step)
    return value[step] if isinstance(value, list) and isinstance(step, int) and step < len(value) else None


def _value_errors(error: ErrorDetails, document: Document) -> list[Mistake]:
    """A validator's own words, one mistake on each line; `data.rated: …` belongs to the setting that it names."""
    if error["type"] != "value_error":
        return []
    section, _, _ = _locate(error, document.value)
    mistakes = []
    for line in str(error["ctx"]["error"]).splitlines():
        named = re.match(r"([\w.+-]+): ", line)
        key = ".".join([*section, *([named[1]] if named else [])]) or "study"
        choice = re.search(r"'(.*)'; there are: (.*)$", line)
        hint = _did_you_mean(choice[1], choice[2].split(", ")) if choice else ""
        message = line[named.end() :] if named else line
        mistakes.append(Mistake(key, message, document.line_of(key), hint.removeprefix("; ")))
    return mistakes


def _not_a_setting(path: tuple[str, ...], section: Node, line: int | None) -> Mistake:
    key, name = ".".join(path), path[-1]
    names = [n for option in options(section) for n in option.get("properties", {})]
    near = difflib.get_close_matches(name, names, n=1)
    elsewhere = sorted({".".join(p) for p, _ in walk(study_schema()) if p[-1] == name}, key=len)
    hint = f"it belongs under {elsewhere[0].rpartition('.')[0] or 'the study itself'}" if elsewhere else ""
    hint = f"did you mean {'.'.join((*path[:-1], near[0]))}?" if near else hint
    return Mistake(key, f"is not a setting; allowed here: {', '.join(names)}", line, hint)


def _hint(value: Any, node: Node) -> str:
    """What the user probably meant by a value that is not allowed."""
    choices = [choice for option in options(node) for choice in option.get("enum") or [option.get("const", "")]]
    words = [choice for choice in choices if isinstance(choice, str)]
    if isinstance(value, str):
        return _did_you_mean(value, words).removeprefix("; ") or _number_hint(value, node)
    types = {option.get("type") for option in options(node)}
    if value is None and types <= {"object"}:
        return "it is empty: give it settings, or delete the line"
    if "array" in types and not isinstance(value, list | dict):
        return f"write [{_show(value)}]"
    if "string" in types or any(words):
        return f'write it in quotes: "{_show(value)}"' if isinstance(value, bool | int | float) else ""
    whole = isinstance(value, float) and value.is_integer()
    return f"write {value:.0f}" if whole and types <= {"integer", "null"} else ""


def _number_hint(value: str, node: Node) -> str:
    types = {option.get("type") for option in options(node)}
    plain = value.replace("_", "").strip()
    if types & {"integer", "number"} and re.fullmatch(r"[-+]?[0-9]+", plain):
        return f"write {int(plain)}, without quotes, underscores or leading zeros"
    if "number" in types and re.fullmatch(r"[-+]?[0-9]*[.,]?[0-9]+([eE][-+]?[0-9]+)?", plain):
        return f"write {plain.replace(',', '.')}, without quotes and with a point"
    if "boolean" in types and value.lower() in ("yes", "on", "no", "off"):
        return f"write {'true' if value.lower() in ('yes', 'on') else 'false'}"
    return f"write [{value}]" if "array" in types else ""


def _did_you_mean(word: str, words: list[str]) -> str:
    near = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _show(value: Any) -> str:
    """A value as it would stand in the file, on one short line."""
    if isinstance(value, dict):
        return f"a section with {', '.join(map(str, value))}"[:60] if value else "an empty section"
    text = json.dumps(value, ensure_ascii=False)
    return "nothing" if value is None else text if len(text) <= 60 else f"{text[:57]}…"
