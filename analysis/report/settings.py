"""Settings as rows: every one by its path, and in which of them models or studies differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from fluence.study import PixelsModel, Study


def text_of(value: Any) -> str:
    """A value of a study as text: lists and sections in one line, a dash for none."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {text_of(part)}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(text_of, value)) or "none"
    return "–" if value is None else str(value)


def flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every setting of a section, by its path: `training.epochs`."""
    if isinstance(value, dict) and value:
        for name, part in value.items():
            yield from flat(part, f"{key}.{name}" if key else str(name))
    else:
        yield key, text_of(value)


def of_model(study: Study, name: str) -> dict[str, Any]:
    """The settings of a model as a study would say them, with those of its training, defaults included."""
    settings = study.models[name].model_dump(mode="json")
    if isinstance(study.models[name], PixelsModel):
        return settings
    return settings | {"training": study.training_of(name).model_dump(mode="json")}


def peculiarities(study: Study) -> dict[str, dict[str, str]]:
    """What is special about each model: the settings in which it departs from what most models of the study have.

    Returns:
        path and value of these settings by the name of the model; with two models, all in which they differ. Where no
        value is the most common one, all models have theirs.
    """
    settings = {name: dict(flat(of_model(study, name))) for name in study.model_names}
    common = _common(settings)
    return {
        name: {key: value for key, value in own.items() if common.get(key) != value} for name, own in settings.items()
    }


def _common(settings: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The value that more than half of the models have of a setting; a setting without one is left out."""
    counts: dict[str, Counter[str]] = {}
    for own in settings.values():
        for key, value in own.items():
            counts.setdefault(key, Counter())[value] += 1
    most = {key: counter.most_common(1)[0] for key, counter in counts.items()}
    return {key: value for key, (value, number) in most.items() if 2 * number > len(settings)}
