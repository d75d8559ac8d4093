"""What belongs to a user and to no study: accounts, folders and other words that site files leave open as `{name}`.

They are in one YAML file, `~/.config/fluence/settings.yaml` or where `$FLUENCE_SETTINGS` says:

    placeholders:
      project: xyz
    sites:
      meso-lr:
        account: my_group
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fluence.errors import Mistake, StudyError
from fluence.plainyaml import Document, failure


def settings_path() -> Path:
    """Where the settings of this user are; the file need not exist unless $FLUENCE_SETTINGS names it."""
    given = os.environ.get("FLUENCE_SETTINGS")
    if given:
        return Path(given).expanduser()
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(home).expanduser() / "fluence" / "settings.yaml"


def placeholders_for(site: str, given: Mapping[str, str]) -> dict[str, str]:
    """Values of the placeholders: the command line's over those of the site over those of all sites.

    Raises:
        StudyError: the file is not readable, or not as above; each mistake has its line.
    """
    path = settings_path()
    text = _read(path)
    if all(line.strip().startswith("#") for line in text.splitlines() if line.strip()):
        return dict(given)
    document = Document(text, str(path))
    mistakes = [
        Mistake(name, "is not a setting; allowed here: placeholders, sites", document.line_of(name))
        for name in document.value
        if name not in ("placeholders", "sites")
    ]
    sites = _section(document, "sites", document.value.get("sites"), mistakes)
    values: dict[str, str] = {}
    for key, section in (("placeholders", document.value.get("placeholders")), (f"sites.{site}", sites.get(site))):
        for name, value in _section(document, key, section, mistakes).items():
            values[name] = _word(document, f"{key}.{name}", value, mistakes)
    if mistakes:
        raise failure(str(path), mistakes)
    return values | dict(given)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        if os.environ.get("FLUENCE_SETTINGS"):
            raise StudyError(f"{path}: there is no such file, but $FLUENCE_SETTINGS names it") from error
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: the settings cannot be read: {error}") from error


def _section(document: Document, key: str, value: Any, mistakes: list[Mistake]) -> dict[str, Any]:
    if value is None or isinstance(value, dict):
        return value or {}
    mistakes.append(Mistake(key, f"must be a section; found {value!r}", document.line_of(key)))
    return {}


def _word(document: Document, key: str, value: Any, mistakes: list[Mistake]) -> str:
    """Text or a whole number, as text."""
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)
    mistakes.append(Mistake(key, f"must be text; found {value!r}", document.line_of(key), "write it in quotes"))
    return ""
