"""The tables of a thesis on sparse codes: what a constraint changes, by the place where it acts and layer by layer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import astuple, dataclass

import pandas as pd

from fluence.study import Sparsity, Study

NONE = "none"
"""The place of the constraint in a model without one."""


@dataclass(frozen=True)
class Placed:
    """A model, seen as one of several that differ only in where a constraint acts.

    Attributes:
        base: the first of the models that are alike but for their constraints; it tells such sets apart.
        constraint: the constraint, without its place.
        place: the layers that it holds for, or `none`.
        model: name of the model.
    """

    base: str
    constraint: str
    place: str
    model: str


def placed_models(study: Study) -> list[Placed]:
    """The models of the grid that differ only in the place of a constraint, one without it among them.

    A model without a constraint stands beside each constraint that another one adds to it. A constraint that the study
    has in one place only, and no model without it, is left out.
    """
    alike: dict[str, list[str]] = {}
    for name in study.model_names:
        rest = study.models[name].model_dump(mode="json", exclude={"sparsity", "training"})
        training = study.training_of(name).model_dump(mode="json")
        alike.setdefault(json.dumps([rest, training], sort_keys=True), []).append(name)
    return [placed for names in alike.values() for placed in _placed(study, names)]


def _placed(study: Study, names: list[str]) -> Iterator[Placed]:
    """Those among models that are alike but for their constraints."""
    acting = {name: [one for one in study.models[name].sparsity if one.layers != NONE] for name in names}
    free = [Placed(names[0], "", NONE, name) for name in names if not acting[name]]
    for constraint in dict.fromkeys(_words(acting[name]) for name in names if acting[name]):
        same = [name for name in names if acting[name] and _words(acting[name]) == constraint]
        there = [Placed(names[0], constraint, " + ".join(map(_place, acting[name])), name) for name in same]
        there += [Placed(names[0], constraint, NONE, one.model) for one in free]
        if len({one.place for one in there}) > 1:
            yield from there


def _words(constraints: list[Sparsity]) -> str:
    """`kl, rho 0.05, weight 0.3, squash rational`: all settings of some constraints but their places."""
    dumped = [one.model_dump(mode="json", exclude={"layers"}) for one in constraints]
    return " + ".join(
        ", ".join([settings.pop("penalty"), *(f"{key} {value}" for key, value in settings.items())])
        for settings in dumped
    )


def _place(constraint: Sparsity) -> str:
    layers = constraint.layers
    return layers if isinstance(layers, str) else ", ".join(map(str, layers))


def summary_constraint(study: Study, ridge_over_seeds: pd.DataFrame) -> pd.DataFrame:
    """Metric × place of the constraint: R² and Δ R² of every set of predictors, a row each.

    Args:
        study: the study.
        ridge_over_seeds: that table.
    """
    means = {column: f"{column}_mean" for column in _R2}
    largest = {column: f"{column}_max" for column in ("p_delta", "p_delta_bh")}
    return _summary(study, ridge_over_seeds, means | largest)


def summary_layers(study: Study, correlations_over_seeds: pd.DataFrame) -> pd.DataFrame:
    """Metric × layer with and without the constraint: every correlation, a row each.

    Args:
        study: the study.
        correlations_over_seeds: that table.
    """
    means = {column: f"{column}_mean" for column in ("estimate", "ci_low", "ci_high")}
    largest = {column: f"{column}_max" for column in ("p_permutation", "p_adjusted")}
    return _summary(study, correlations_over_seeds, means | largest)


_R2 = tuple(f"{name}{end}" for name in ("r2_metrics", "delta_r2") for end in ("", "_low", "_high"))


_KEPT = {
    *("model", "trained_on", "scorer", "subset", "num_seeds", "missing_seeds", "n", "predictors", "layer", "metric"),
    *("estimator", "num_significant", "family", "family_size"),
}


def _summary(study: Study, over_seeds: pd.DataFrame, chosen: dict[str, str]) -> pd.DataFrame:
    """The rows of a table over seeds that belong to placed models; `chosen` names columns by those they come from."""
    placed = pd.DataFrame(map(astuple, placed_models(study)), columns=["base", "constraint", "place", "model"])
    kept = over_seeds[[column for column in over_seeds if column in _KEPT]]
    return placed.merge(kept.assign(**{new: over_seeds[old] for new, old in chosen.items()}), on="model")
