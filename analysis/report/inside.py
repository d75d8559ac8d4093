"""What the networks do inside, shown: from the exhibits that each extraction has kept, without the networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from analysis import figures
from analysis.report.compared import Case
from analysis.report.evidence import Evidence, first_runs, short
from analysis.report.page import Item, Text, drawn, listed
from analysis.report.summary import ALL_IMAGES, Summary, controls
from fluence.architectures import CHANNELS, PLACES
from fluence.errors import FluenceError
from fluence.layout import Run
from fluence.store.activations import Activations, LayerInfo
from fluence.store.exhibits import Exhibits
from fluence.study import Model, Study

_TAPS = {"post": "after its non-linearity", "pre": "before its non-linearity"}
_LAYERS_COMPARED = 4  # with and without a constraint: first, last, and what lies evenly between
_NETWORKS_COMPARED = 4


@dataclass(frozen=True)
class _Inside:
    """What is to be shown of one run.

    Attributes:
        run: the run.
        layers: what was recorded, in the order of the network.
        exhibits: what it makes of a few images.
        units: some units of each layer on every image, [images, units] by layer.
    """

    run: Run
    layers: tuple[LayerInfo, ...]
    exhibits: Exhibits
    units: dict[str, np.ndarray]

    @property
    def of_network(self) -> list[LayerInfo]:
        """The layers without the gates."""
        return [layer for layer in self.layers if layer.kind != "gate"]

    @property
    def image(self) -> str:
        """The image that single layers are shown on."""
        return str(self.exhibits.image_ids[0])

    def histogram(self, layer: str, label: str) -> figures.LayerHistogram:
        """How the values of a layer are distributed on that image."""
        one = self.exhibits.layers[layer]
        return figures.LayerHistogram(label, one.counts[0], one.edges[0], float(one.active[0]))

    def row(self, layer: str, label: str) -> figures.MapRow:
        """The maps of a layer on that image."""
        one = self.exhibits.layers[layer]
        return figures.MapRow(label, one.maps[0], f"{one.active[0]:.0%}")


def inside(evidence: Evidence, summary: Summary, model: str) -> Iterator[Item]:
    """Maps, gates and units of one model, and ways between its codes: of its first run that is done."""
    run = next(iter(first_runs(evidence, model).values()), None)
    found = _read(evidence, run) if run else None
    if run and found is None:
        yield Text("nothing has been kept of what its layers do.", heading=model, missing=True)
    if found:
        yield from _maps(evidence, found)
        yield from _attention(evidence, found)
        yield from _distributions(evidence, found)
        if model not in controls(evidence):
            yield from _ways(evidence, found)


def _read(evidence: Evidence, run: Run) -> _Inside | None:
    try:
        with Activations(evidence.layout.activations(run.id)) as file:
            exhibits = file.exhibits()
            units = {layer.name: file.shown_units(layer.name)[1] for layer in file.layers}
            return _Inside(run, file.layers, exhibits, units) if exhibits else None
    except FluenceError as error:
        evidence.note(f"{run.label}, its layers: {short(error, evidence.layout)}")
        return None


def _maps(evidence: Evidence, found: _Inside) -> Iterator[Item]:
    layers = [layer for layer in found.of_network if len(layer.shape) == 3]
    if layers:
        yield drawn(
            evidence.layout,
            f"inside-maps-{found.run.model}",
            f"Feature maps of {found.run.model}.",
            f"The first channels of each layer on image {found.image}, {_how(found)}. Within a row, dark is the "
            "smallest value and bright the largest. Behind: how much of the whole layer is not "
            f"zero.{_pooled(found)} After a ReLU, a map that is dark all over is a channel that does not answer to "
            "this face.",
            figures.feature_maps,
            found.exhibits.originals[0],
            [found.row(layer.name, layer.name) for layer in layers],
        )


def _how(found: _Inside) -> str:
    """Where the values were recorded, and in which run."""
    taps = sorted({layer.tap for layer in found.layers}, reverse=True)
    return f"recorded {listed([_TAPS[tap] for tap in taps])} (run {found.run.label})"


def _pooled(found: _Inside) -> str:
    names = [name for name, one in found.exhibits.layers.items() if one.pooled_px > 1]
    return f" Means of neighbouring places: {listed(names)}." if names else ""


def _attention(evidence: Evidence, found: _Inside) -> Iterator[Item]:
    maps = {name: one.maps for name, one in found.exhibits.layers.items()}
    parts = [(*name.partition("."), values) for name, values in maps.items()]
    places = [(layer, values[:, 0]) for layer, _, which, values in parts if which == PLACES]
    channels = [(layer, values) for layer, _, which, values in parts if which == CHANNELS]
    images = listed(list(found.exhibits.image_ids))
    if places:
        yield drawn(
            evidence.layout,
            f"inside-attention-{found.run.model}",
            f"Attention maps of {found.run.model}.",
            f"Images {images}, and over them what the gates of each layer's places multiply it by (run "
            f"{found.run.label}): dark is the smallest gate of the layer, bright the largest; both stand above. A "
            "layer whose two numbers are almost the same attends to nothing in particular.",
            figures.attention_maps,
            found.exhibits.originals,
            places,
        )
    if channels:
        yield drawn(
            evidence.layout,
            f"inside-gates-{found.run.model}",
            f"Gates of the channels of {found.run.model}.",
            f"What each channel is multiplied by on images {images} (run {found.run.label}); channels are sorted by "
            "their mean gate. Where the marks of the "
            "images coincide, the gates are the same for every face.",
            figures.gate_values,
            channels,
        )


def _distributions(evidence: Evidence, found: _Inside) -> Iterator[Item]:
    layers, model = found.of_network, found.run.model
    yield drawn(
        evidence.layout,
        f"inside-units-{model}",
        f"Single units of {model} over all images.",
        f"Histograms of 25 units of each layer, drawn at random, over all rated images, {_how(found)}. The units of a "
        "layer share the axis below it; each is as high as its fullest bin. Orange: the same value for every image, "
        "most often a unit that is always silent.",
        figures.unit_histograms,
        [figures.UnitPanel(layer.name, found.units[layer.name]) for layer in layers],
    )
    yield drawn(
        evidence.layout,
        f"inside-layers-{model}",
        f"Layers of {model} on one image.",
        f"The distribution of each layer's values on image {found.image}, {_how(found)}; zeros are not drawn: the "
        "number in the corner is their share. On the logarithmic axis, a straight fall is an exponential distribution.",
        figures.layer_histograms,
        [(layer.name, [found.histogram(layer.name, model)]) for layer in layers],
        figures.style_of([model]),
    )


def _ways(evidence: Evidence, found: _Inside) -> Iterator[Item]:
    if len(found.exhibits.interpolations):
        yield drawn(
            evidence.layout,
            f"inside-ways-{found.run.model}",
            f"From face to face through the code of {found.run.model}.",
            f"Outside: images {listed(list(found.exhibits.image_ids))}. Between two of them: what the decoder makes of "
            "codes at even steps from the one to the other, along the arc between their directions (spherical linear "
            f"interpolation), the first and the last being their reconstructions (z = μ, run {found.run.label}). In a "
            "good code every step is a face; in a poor one two faces fade into each other.",
            figures.ways_between,
            found.exhibits.originals,
            found.exhibits.interpolations,
        )


# ── With and without a constraint ────────────────────────────────────────────────────────────────────────────────


def with_and_without(case: Case) -> Iterator[Item]:
    """Maps, layers and units of networks that differ by nothing but their constraint on activity, side by side."""
    chosen = differing_by_constraint(case.evidence.study, case.models)
    runs = {model: first_runs(case.evidence, model).get(ALL_IMAGES) for model in chosen}
    read = {model: _read(case.evidence, run) for model, run in runs.items() if run}
    found = {case.label(model): one for model, one in read.items() if one}
    first = next(iter(found.values()), None)
    if first is None or len(found) < 2 or next(iter(found)) != case.label(chosen[0]):
        return
    layers = [layer for layer in first.of_network if all(layer in one.layers for one in found.values())]
    if layers:
        yield from _compared(case, found, first, layers)


def differing_by_constraint(study: Study, models: Sequence[str]) -> tuple[str, ...]:
    """A model without a constraint, and those of the others that would be the same without theirs; or nothing."""
    best: tuple[str, ...] = ()
    for base in models:
        if not _is_constrained(study.models[base]) and study.training_of(base).epochs:
            same = [
                name
                for name in models
                if _is_constrained(study.models[name]) and _free(study, name) == _free(study, base)
            ]
            best = max(best, (base, *same), key=len)
    return best[:_NETWORKS_COMPARED] if len(best) > 1 else ()


def _is_constrained(model: Model) -> bool:
    return any(constraint.layers != "none" for constraint in model.sparsity)


def _free(study: Study, name: str) -> tuple[object, object]:
    """The settings of a model and of its training but for its constraint."""
    return study.models[name].model_copy(update={"sparsity": (), "training": None}), study.training_of(name)


def _compared(case: Case, found: dict[str, _Inside], first: _Inside, layers: Sequence[LayerInfo]) -> Iterator[Item]:
    some = [layers[place] for place in np.unique(np.linspace(0, len(layers) - 1, _LAYERS_COMPARED).round().astype(int))]
    with_maps = [layer for layer in some if len(layer.shape) == 3]
    stem, how = f"comparison-{case.name}", f"on image {first.image}, recorded {_TAPS[first.layers[0].tap]}"
    by_layer = [(layer, label, one) for layer in some for label, one in found.items()]
    styles = {case.label(model): style for model, style in case.styles.items()}
    if with_maps:
        yield drawn(
            case.evidence.layout,
            f"{stem}-inside-maps",
            "Feature maps with and without the constraint.",
            f"The first channels of some layers {how}; within a row, dark is the smallest value and bright the "
            "largest. Behind: how much of the whole layer is not zero. Networks of one seed start from the same "
            "weights, so that their channels may look alike; nothing keeps them so. Compare how much is lit.",
            figures.feature_maps,
            first.exhibits.originals[0],
            [one.row(layer.name, f"{layer.name} {label}") for layer, label, one in by_layer if layer in with_maps],
        )
    yield drawn(
        case.evidence.layout,
        f"{stem}-inside-layers",
        "Layers on one image, with and without the constraint.",
        f"The distribution of each layer's values {how}. Zeros are not drawn: the numbers in the corner are their "
        "share, in the colours of the networks and in their order.",
        figures.layer_histograms,
        [(layer.name, [one.histogram(layer.name, label) for label, one in found.items()]) for layer in layers],
        styles,
    )
    yield drawn(
        case.evidence.layout,
        f"{stem}-inside-units",
        "Single units over all images, with and without the constraint.",
        "Histograms of 25 units of some layers, drawn at random, over all rated images; the units of a layer share the "
        "axis below, and each is as high as its fullest bin. Orange: the same value for every image, most often a unit "
        "that is always silent.",
        figures.unit_histograms,
        [
            figures.UnitPanel(f"{layer.name} {label}", one.units[layer.name], _limits(layer, found))
            for layer, label, one in by_layer
        ],
        len(found),
    )


def _limits(layer: LayerInfo, found: dict[str, _Inside]) -> tuple[float, float]:
    """The smallest and the largest value of the units of a layer in all networks, and zero."""
    values = [one.units[layer.name] for one in found.values()]
    return min(float(each.min(initial=0)) for each in values), max(float(each.max(initial=0)) for each in values)
