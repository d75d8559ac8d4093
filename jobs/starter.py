"""The study that `fluence new NAME` writes, for a table of one's own images."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from fluence.errors import StudyError
from fluence.schema import allowed, study_schema

_PLACEHOLDER = "NAME"


def write_starter(name: str, folder: Path) -> Path:
    """Writes a commented study to start from, `<folder>/<name>.yaml`.

    Args:
        name: name of the study.
        folder: an existing folder.

    Raises:
        StudyError: the name cannot be a study's, the file exists already, or the folder is not writable.
    """
    node = study_schema()["properties"]["name"]
    if not re.fullmatch(node["pattern"].strip("^$"), name):
        raise StudyError(f"{name!r} cannot be the name of a study; it must be {allowed(node)}")
    path = folder / f"{name}.yaml"
    text = files("jobs").joinpath("starter.yaml").read_text(encoding="utf-8").replace(_PLACEHOLDER, name)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise StudyError(f"{path} exists already; choose another name, or delete it first") from error
    except OSError as error:
        raise StudyError(f"{path} cannot be written ({error.strerror}); choose another folder") from error
    return path
