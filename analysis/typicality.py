"""Typicality: how likely is a layer's response to an image, given its responses to other images?

Fluency theory expects it to be high where an image is beautiful (+). A density is fitted to the principal components
of some images and judges others: never an image that it was fitted on, nor the same person, nor a duplicate. All
components of a layer come from sub-blocks of one Gram matrix. Metrics, per image and layer, as natural logarithms:

    typicality_gaussian   density on the first k components, covariance shrunk (Ledoit & Wolf)
    typicality_residual   density of what the components leave
    typicality_ppca       density of the whole response: PPCA
    typicality_gmm        density on the components, mixture of Gaussians chosen by BIC
    …_k10                 with that k, where the study lists several
    …_group               fitted to the image's own group alone
    …_matched             fitted to as many images of all groups
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.density import (
    Components,
    log_gaussian,
    log_mixture,
    log_ppca,
    log_residual,
    principal_components,
    project,
)
from analysis.gates import GATE
from analysis.gram import Kept, Progress, Units, gram
from analysis.ridge import divide
from analysis.typicality_words import metric_name
from fluence.errors import ArtifactError, Interrupted, StudyError
from fluence.store.activations import LayerInfo
from fluence.study.typicality import IMAGES_PER_COMPONENT, Typicality

_FORMAT = 1
_TELL_EVERY_S = 1.0
Metrics = dict[str, np.ndarray]
Stop = Callable[[], bool]


@dataclass(frozen=True)
class Asked:
    """What a study asks for, and what has to be known of its images.

    Attributes:
        settings: of the study.
        seed: of folds, drawn images and mixtures.
        images: the packed rated images, indexed by image_id, with columns `group`, `cluster` and `sha256` of the
            pixels; in any order.
        reference_sha256: the same of the training images, by image_id.
    """

    settings: Typicality
    seed: int
    images: pd.DataFrame
    reference_sha256: pd.Series


@dataclass(frozen=True)
class Fit:
    """One density: the rows of the Gram matrix that it is fitted to, and those that it judges.

    Attributes:
        kind: what its metrics end in: nothing, `_group` or `_matched`.
        train: int [n].
        judged: int [m]; none of them is in `train`.
    """

    kind: str
    train: np.ndarray
    judged: np.ndarray


def typicality_of(
    source: Units,
    layers: Sequence[LayerInfo],
    asked: Asked,
    *,
    folder: Path,
    made_from: str,
    tell: Callable[[float, str], None] = lambda fraction, text: None,
    stop: Stop = lambda: False,
) -> dict[str, Metrics]:
    """Typicality of every image in some layers; interrupted, it continues at the layer and unit where it was.

    Args:
        source: the activations.
        layers: layers of the file; those that the study does not ask for are left out.
        asked: the settings, and the images.
        folder: where finished layers and the unfinished Gram matrix are kept.
        made_from: everything that determines the activations and the settings, in one text.
        tell: told the share of the values read, and a text.
        stop: asked again and again.

    Returns:
        Layer → metric → float64 [images], in the order of the file. NaN where a layer does not vary.

    Raises:
        ArtifactError: an activation is NaN or infinite, or the file holds images that are no longer packed.
        Interrupted: `stop` answered True; what is done is kept.
        StudyError: there are too few images for these components, folds or groups.
    """
    chosen = [layer for layer in layers if is_asked(layer, asked.settings)]
    fits = plan_fits(source, asked) if chosen else []
    found: dict[str, Metrics] = {}
    for number, layer in enumerate(chosen):
        made_of = json.dumps([_FORMAT, made_from, layer.name])
        finished = Kept(folder / f"{layer.name}.typicality", made_of)
        metrics = finished.read()
        if metrics is None:
            unfinished = Kept(folder / f"{layer.name}.gram", made_of)
            metrics = _of_layer(source, layer, fits, asked, unfinished, _teller(tell, chosen, number), stop)
            finished.write(**metrics)
            unfinished.path.unlink(missing_ok=True)
            if layer != chosen[-1] and stop():
                raise Interrupted(f"stopped after the typicality of layer {layer.name}")
        found[layer.name] = metrics
    return found


def _of_layer(
    source: Units, layer: LayerInfo, fits: Sequence[Fit], asked: Asked, kept: Kept, progress: Progress, stop: Stop
) -> Metrics:
    matrix = gram(
        source, layer.name, layer.num_units, with_reference=asked.settings.reference == "training",
        kept=kept, progress=progress, stop=stop,
    )  # fmt: skip
    return judge(matrix, layer, fits, len(source.image_ids), asked.settings, asked.seed)


def _teller(tell: Callable[[float, str], None], layers: Sequence[LayerInfo], number: int) -> Progress:
    """What tells every second or so of the progress in one of the layers: the share of all values, and the place."""
    before, total = sum(layer.num_units for layer in layers[:number]), sum(layer.num_units for layer in layers)
    told_s = 0.0

    def progress(units: int, rate: float) -> None:
        nonlocal told_s
        if time.monotonic() - told_s < _TELL_EVERY_S and units < layers[number].num_units:
            return
        told_s = time.monotonic()
        place = f"typicality of layer {layers[number].name} ({number + 1} of {len(layers)})"
        tell((before + units) / total, f"{place}, {rate / 1e6:,.0f} MB/s")

    return progress


def is_asked(layer: LayerInfo, settings: Typicality) -> bool:
    """Whether a layer's typicality is computed: `all` means all but gates."""
    return layer.kind != GATE if settings.layers == "all" else layer.name in settings.layers


# ── Who is fitted, and who is judged ─────────────────────────────────────────────────────────────────────────────


def plan_fits(source: Units, asked: Asked) -> list[Fit]:
    """Every density of a layer, the same for all layers.

    Images are found by their image_id: neither the order of the table nor that of a folder matters.

    Raises:
        ArtifactError: the file holds images that are no longer packed.
        StudyError: there are too few images for these components, folds or groups.
    """
    _refuse_unknown(source.image_ids, asked.images.index)
    images = asked.images.loc[source.image_ids]
    if asked.settings.reference == "training":
        return [_fit_to_training_images(source, images, asked)]
    folds = _folds(images, asked.settings, asked.seed)
    fits = list(_cross_fits(folds))
    _require(min(len(fit.train) for fit in fits), asked.settings, "training images in each fold", "")
    if asked.settings.groups:
        fits += _group_fits(images["group"].to_numpy(), folds, asked.settings, asked.seed)
    return fits


def _refuse_unknown(recorded: np.ndarray, packed: pd.Index) -> None:
    missing = pd.Index(recorded).difference(packed)
    if len(missing):
        raise ArtifactError(
            f"{len(missing)} of {len(recorded)} recorded images are no longer packed, first {missing[0]}; "
            "extract this run again"
        )


def _fit_to_training_images(source: Units, images: pd.DataFrame, asked: Asked) -> Fit:
    """Rows of reference images follow those of the rated ones. One that is a rated image too is left out."""
    hashes = asked.reference_sha256
    _refuse_unknown(source.reference_ids, hashes.index)
    others = ~hashes.loc[source.reference_ids].isin(images["sha256"]).to_numpy()
    advice = f", or `record.reference_images: {asked.settings.fewest_images}` or more"
    _require(int(others.sum()), asked.settings, "reference images that are not rated", advice)
    return Fit("", len(images) + np.flatnonzero(others), np.arange(len(images)))


def _require(found: int, settings: Typicality, what: str, advice: str) -> None:
    if found < settings.fewest_images:
        most = found // IMAGES_PER_COMPONENT
        write = f"write at most {most}{advice}" if most else "write `typicality: null`"
        raise StudyError(
            f"analysis.typicality.components: {max(settings.each_components)} components need "
            f"{settings.fewest_images} {what}, and there are {found}; {write}"
        )


def _folds(images: pd.DataFrame, settings: Typicality, seed: int) -> np.ndarray:
    """Fold of each image, int [images]: stratified by group, clusters kept whole."""
    num_clusters = images["cluster"].nunique()
    if num_clusters < settings.folds:
        raise StudyError(
            f"analysis.typicality.folds: {settings.folds} folds need as many persons or images, and there are "
            f"{num_clusters}; write fewer, or `typicality: null`"
        )
    return divide(images["group"].to_numpy(), images["cluster"].to_numpy(), settings.folds, 1, seed).folds[0]


def _cross_fits(folds: np.ndarray) -> Iterator[Fit]:
    for fold in np.unique(folds):
        yield Fit("", np.flatnonzero(folds != fold), np.flatnonzero(folds == fold))


def _group_fits(groups: np.ndarray, folds: np.ndarray, settings: Typicality, seed: int) -> Iterator[Fit]:
    """For every group and fold a density of the group, and one of as many images of all groups."""
    names, counts = np.unique(groups, return_counts=True)
    sizes = {name: min(np.count_nonzero(groups[folds != fold] == name) for fold in np.unique(folds)) for name in names}
    usable = [name for name in names if sizes[name] >= settings.fewest_images]
    if not usable:
        largest = max(sizes, key=sizes.__getitem__)
        raise StudyError(
            f"analysis.typicality.groups: no group has {settings.fewest_images} training images in each fold, as "
            f"{max(settings.each_components)} components need; the largest, {largest}, has {sizes[largest]}; "
            "write fewer components, or `groups: false`"
        )
    if len(usable) < len(names):
        small = [f"{name} ({count})" for name, count in zip(names, counts, strict=True) if name not in usable]
        print(f"too few images for a typicality of their own: {', '.join(small)}", flush=True)
    size = min(sizes[name] for name in usable)
    rng = np.random.default_rng(seed)
    for fit in _cross_fits(folds):
        matched = rng.choice(fit.train, size, replace=False)
        yield Fit("_matched", np.sort(matched), fit.judged[np.isin(groups[fit.judged], usable)])
        for name in usable:
            own = rng.choice(fit.train[groups[fit.train] == name], size, replace=False)
            yield Fit("_group", np.sort(own), fit.judged[groups[fit.judged] == name])


# ── Log-densities of one layer ───────────────────────────────────────────────────────────────────────────────────


def judge(
    matrix: np.ndarray, layer: LayerInfo, fits: Sequence[Fit], num_images: int, settings: Typicality, seed: int
) -> Metrics:
    """Every density's opinion of the images that it judges.

    All densities of a layer use the same number of components: k, or as many as the poorest training images have.

    Args:
        matrix: Gram matrix of the layer, float64 [rows, rows].
        layer: the layer.
        fits: from `plan_fits`.
        num_images: the first rows, which are judged.
        settings: of the study.
        seed: of the mixtures.

    Returns:
        Metric → float64 [num_images]; NaN for images that no density judges, and where a layer does not vary.
    """
    most = max(settings.each_components)
    components = [principal_components(matrix, fit.train, layer.num_units, most) for fit in fits]
    rank = min(len(one.variances) for one in components)
    if rank < most:
        words = f"varies in {rank} components alone: its typicality is that on these" if rank else "does not vary"
        print(f"layer {layer.name} {words}", flush=True)
    metrics: Metrics = {}
    for wanted in settings.each_components:
        for fit, one in zip(fits, components, strict=True):
            found = _log_densities(one.first(min(wanted, rank)), matrix, fit.judged, settings.estimators, seed)
            for estimator, values in found:
                name = metric_name(estimator, wanted, fit.kind, settings)
                metrics.setdefault(name, np.full(num_images, np.nan))[fit.judged] = values
    return metrics


def _log_densities(
    components: Components, matrix: np.ndarray, rows: np.ndarray, estimators: Iterable[str], seed: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Name of each density, and what it says of some rows, float64 [rows]."""
    unknown = np.full(len(rows), np.nan)
    if not len(components.variances) or not len(rows):
        yield from ((name, unknown) for name in (*estimators, "residual"))
        return
    seen = project(components, matrix, rows)
    train_scores = project(components, matrix, components.train).scores
    if "gaussian" in estimators:
        yield "gaussian", log_gaussian(train_scores, seen.scores)
    if "gmm" in estimators:
        yield "gmm", log_mixture(train_scores, seen.scores, seed)
    if "ppca" in estimators:
        yield "ppca", log_ppca(components, seen)
    yield "residual", log_residual(components, seen.squared_residual)
