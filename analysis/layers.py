"""Measuring one layer: the ε of its reference images, and the metrics of a block of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from analysis.gates import GATE, gate_metrics
from analysis.histogram import nonzero_quantiles, nonzero_quantiles_of_float32
from analysis.partial import Piece, Reference
from analysis.places import gini_of_maps, gini_of_positions, has_places, lifetime_sparsity
from analysis.sparsity import NonFinite, counted, require_rows, sparsity, sparsity_of_histograms
from analysis.walk import steps
from fluence.store.activations import Activations, LayerInfo
from fluence.store.histograms import HistogramFile, Histograms

Result = TypeVar("Result")


@dataclass(frozen=True)
class Plan:
    """How a layer is measured.

    Attributes:
        layer: the layer.
        quantiles: of the ε rule; none for gates, which are open more or less, and never silent.
        per: over what sparsity is measured (`SparsityMetrics.per`).
        bytes_per_value: as it is stored; 2 means float16.
        keeps: whether histograms are kept.
    """

    layer: LayerInfo
    quantiles: tuple[float, ...]
    per: tuple[str, ...]
    bytes_per_value: int
    keeps: bool

    @property
    def bytes_per_image(self) -> int:
        """As it is stored."""
        return self.bytes_per_value * self.layer.num_units

    @property
    def needs_places(self) -> bool:
        """Whether it matters where in the layer a value stands."""
        return has_places(self.layer.shape) and not {"map", "position"}.isdisjoint(self.per)


def quantile_name(quantile: float) -> str:
    """How a quantile is written in the name of a metric: 0.25 → `q25`, 0.05 → `q05`, 0.995 → `q99.5`."""
    return f"q{100 * quantile:0>4.4g}" if 100 * quantile % 1 > 1e-9 else f"q{round(100 * quantile):02d}"


def choose_reference(source: Activations, plan: Plan, kept: HistogramFile | None) -> Reference:
    """ε of one layer, from the histograms of its reference images or from the images themselves.

    Raises:
        NonFinite: a value of a reference image is NaN or infinite.
    """
    name = plan.layer.name
    spans = list(steps(0, len(source.reference_ids), plan.bytes_per_image))
    if plan.bytes_per_value != 2:
        return Reference(
            nonzero_quantiles_of_float32(
                lambda: (_reference(source, name, span, _finite) for span in spans), plan.quantiles
            )
        )
    if kept is not None and name in kept.layers:
        histograms = kept.reference(name)
    else:
        histograms = Histograms.joined([_reference(source, name, span, counted) for span in spans])
    return Reference(nonzero_quantiles(histograms, plan.quantiles), histograms if plan.keeps else None)


def _reference(source: Activations, layer: str, span: tuple[int, int], use: Callable[[np.ndarray], Result]) -> Result:
    """Some reference images' values, used; the row of an error is counted over all reference images."""
    values = source.reference(layer, *span)
    try:
        return use(values)
    except NonFinite as error:
        raise NonFinite(error.count, span[0] + error.first_row, values.size) from error


def _finite(values: np.ndarray) -> np.ndarray:
    require_rows(values)
    return values


def measure_block(values: np.ndarray | Histograms, plan: Plan, epsilon: np.ndarray) -> Piece:
    """All metrics of some images, from their values [images, units] or their histograms.

    Raises:
        NonFinite: a value is NaN or infinite.
    """
    known = ~np.isnan(epsilon)
    if isinstance(values, Histograms):
        metrics, above = sparsity_of_histograms(values, epsilon[known], plan.layer.num_units)
        return Piece(_chosen(metrics, above, plan, known))
    histograms = counted(values) if values.dtype == np.float16 else None
    metrics, above = (
        sparsity(values, epsilon[known])
        if histograms is None
        else sparsity_of_histograms(histograms, epsilon[known], plan.layer.num_units)
    )
    metrics = _chosen(metrics, above, plan, known)
    metrics |= gate_metrics(values) if plan.layer.kind == GATE else {}
    if plan.needs_places:
        of_parts = {"map": gini_of_maps, "position": gini_of_positions}
        metrics |= {f"gini_{part}": of_parts[part](values, plan.layer.shape) for part in of_parts if part in plan.per}
    return Piece(metrics, histograms if plan.keeps else None)


def measure_units(values: np.ndarray) -> dict[str, np.ndarray]:
    """`lifetime_sparsity` of some units, [units, images]."""
    return lifetime_sparsity(values.T)


def _chosen(metrics: dict[str, np.ndarray], above: np.ndarray, plan: Plan, known: np.ndarray) -> dict[str, np.ndarray]:
    """Name → values [images]. Gates keep their Gini alone; without a scale (ε is NaN) L_ε is NaN too."""
    if plan.layer.kind == GATE:
        return {"gini": metrics["gini"]}
    counts = np.full((len(above), len(known)), np.nan)
    counts[:, known] = above
    metrics = dict(metrics)
    for quantile, count in zip(plan.quantiles, counts.T, strict=True):
        metrics[f"l_eps_count_{quantile_name(quantile)}"] = count
        metrics[f"l_eps_fraction_{quantile_name(quantile)}"] = count / plan.layer.num_units
    return metrics
