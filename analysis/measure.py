"""The measure stage: from one run's activations to a tidy table of metrics per image and layer.

    image_id, layer, metric, value          metrics/<run>.parquet
    layer, quantile, epsilon, num_reference metrics/<run>.epsilon.csv

Metrics of a layer are `gini`, and `l_eps_count_qNN` and `l_eps_fraction_qNN` for each quantile NN of the ε rule; gates
have those of `analysis.gates` in the place of L_ε. The layer `reconstruction` holds the errors of each image's
reconstruction, the layer `loss` its sharpness and the norm of its gradient, if they were recorded. Memory does not grow
with the images, but for typicality (`analysis.typicality`), where it grows with their square.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis.gates import GATE, gate_metrics
from analysis.partial import MeasuredLayer, PartialMetrics
from analysis.sparsity import NonFinite, gini, l_epsilon
from fluence.errors import ArtifactError
from fluence.layout import Layout, Run
from fluence.store.activations import Activations, LayerInfo
from fluence.store.files import write_table
from fluence.store.outcome import write_progress
from fluence.study import Epsilon

if TYPE_CHECKING:
    from analysis.typicality import Asked

RECONSTRUCTION = "reconstruction"
"""The layer that each image's errors are filed under."""
LOSS = "loss"
"""The layer that `LOSS_PROBES` are filed under: they tell how an image's loss lies, not what a layer says."""
LOSS_PROBES = ("sharpness", "gradient_norm")

_BLOCK_BYTES = 32 << 20  # of stored values; sorting and comparing them takes a few times as much
_CHUNK_IMAGES = 32  # images per chunk of the file: smaller steps would read chunks twice


def measure(
    run: Run,
    layout: Layout,
    epsilon: Epsilon,
    *,
    key: str,
    typicality: Asked | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Measures every layer of every image and writes the metrics, after the ε that was used.

    One that was interrupted continues behind its last finished block of images, and ends with the same bits as an
    undisturbed one.

    Args:
        run: the run; its activations are finished.
        layout: the study's folder.
        epsilon: the rule that chooses ε on the reference images.
        key: hash of what determines the metrics; kept in the file.
        typicality: what is asked about it; None does not compute it.
        stop: asked after every block.

    Raises:
        ArtifactError: the activations are missing or damaged, or hold NaN or infinite values.
        StudyError: there are too few images for the typicality that is asked for.
        Interrupted: `stop` answered True; what is done is kept.
    """
    path = layout.activations(run.id)
    with Activations(path) as source:
        partial = PartialMetrics(run, layout, source, key, stop)
        typical = _typicality(source, source.layers, typicality, run, layout, key, stop)
        measured = {layer.name: _measure_layer(source, layer, epsilon, partial, path) for layer in source.layers}
        tables = [_thresholds(source, layer, epsilon, measured[layer.name]) for layer in source.layers]
        pieces = [_long(source.image_ids, name, measured[name].metrics | typical.get(name, {})) for name in measured]
        metrics = pd.concat([*pieces, _probes(source)], ignore_index=True)
    thresholds = pd.concat([table for table in tables if len(table)] or tables[:1])
    metrics.attrs = {"kind": "metrics", "format": 1, "key": key}
    write_table(layout.epsilon(run.id), thresholds)
    write_table(layout.metrics(run.id), metrics)
    partial.remove()


def _typicality(
    source: Activations,
    layers: Sequence[LayerInfo],
    asked: Asked | None,
    run: Run,
    layout: Layout,
    key: str,
    stop: Callable[[], bool],
) -> dict[str, dict[str, np.ndarray]]:
    """Layer → metric → values [images]; what is finished is kept beside the other metrics until all are written."""
    if asked is None:
        return {}
    from analysis.typicality import typicality_of

    written, progress = layout.activations(run.id).stat(), layout.progress("measure", run.id)
    return typicality_of(
        source,
        layers,
        asked,
        folder=layout.partial_metrics(run.id),
        made_from=json.dumps([key, written.st_size, written.st_mtime_ns]),
        tell=lambda fraction, text: write_progress(progress, key, fraction, text),
        stop=stop,
    )


def quantile_name(quantile: float) -> str:
    """How a quantile is written in the name of a metric: 0.25 → `q25`, 0.05 → `q05`, 0.995 → `q99.5`."""
    return f"q{100 * quantile:0>4.4g}" if 100 * quantile % 1 > 1e-9 else f"q{round(100 * quantile):02d}"


def choose_epsilon(reference: np.ndarray, quantiles: tuple[float, ...]) -> np.ndarray:
    """ε of one layer: quantiles of the non-zero magnitudes over all units of the reference images.

    Args:
        reference: values [reference images, units].
        quantiles: in (0, 1).

    Returns:
        float64 [quantiles]; NaN when every value is zero, so that no scale is known.
    """
    magnitudes = np.abs(reference[reference != 0]).astype(np.float32, copy=False)
    if magnitudes.size == 0:
        return np.full(len(quantiles), np.nan)
    return np.quantile(magnitudes, quantiles, overwrite_input=True).astype(np.float64)


def _thresholds(source: Activations, layer: LayerInfo, epsilon: Epsilon, measured: MeasuredLayer) -> pd.DataFrame:
    quantiles = _quantiles_of(layer, epsilon)
    return pd.DataFrame(
        {
            "layer": np.repeat(layer.name, len(quantiles)),
            "quantile": np.array(quantiles, dtype=np.float64),
            "epsilon": measured.epsilon,
            "num_reference": np.repeat(len(source.reference_ids), len(quantiles)),
        }
    )


def _quantiles_of(layer: LayerInfo, epsilon: Epsilon) -> tuple[float, ...]:
    """Gates have no ε: they are open more or less, and never silent."""
    return () if layer.kind == GATE else epsilon.quantiles


def _measure_layer(
    source: Activations, layer: LayerInfo, epsilon: Epsilon, partial: PartialMetrics, path: Path
) -> MeasuredLayer:
    """ε and all metrics of one layer, block by block from the first image that is missing."""
    quantiles = _quantiles_of(layer, epsilon)
    measured = partial.of(layer) or MeasuredLayer(choose_epsilon(source.reference(layer.name), quantiles))
    for start, values in _blocks(source, layer, measured.num_images):
        try:
            block = _measure_block(values, quantiles, measured.epsilon)
            block |= gate_metrics(values) if layer.kind == GATE else {}
        except NonFinite as error:
            partial.remove()
            image = source.image_ids[start + error.first_row]
            raise ArtifactError(
                f"{path}: layer {layer.name}: {error.count} values are NaN or infinite, first in image {image}; "
                "extract this run again"
            ) from error
        measured = measured.and_then(block)
        partial.keep(layer, measured)
    return measured


def _blocks(source: Activations, layer: LayerInfo, first: int) -> Iterator[tuple[int, np.ndarray]]:
    """Position of the first image and values [images, units] of one block after the other, from image `first` on."""
    images = _BLOCK_BYTES // (4 * layer.num_units)
    step = max(1, images // _CHUNK_IMAGES * _CHUNK_IMAGES or images)
    for start in range(first, len(source.image_ids), step):
        yield start, source.read(layer.name, start, start + step)


def _measure_block(values: np.ndarray, quantiles: tuple[float, ...], thresholds: np.ndarray) -> dict[str, np.ndarray]:
    """Metric name → values [images]. Without a scale (ε is NaN) L_ε is NaN too."""
    metrics = {"gini": gini(values)}
    for quantile, epsilon in zip(quantiles, thresholds, strict=True):
        missing = np.full(len(values), np.nan)
        count, fraction = (missing, missing) if np.isnan(epsilon) else l_epsilon(values, epsilon)
        metrics[f"l_eps_count_{quantile_name(quantile)}"] = count
        metrics[f"l_eps_fraction_{quantile_name(quantile)}"] = fraction
    return metrics


def _probes(source: Activations) -> pd.DataFrame:
    columns = {name: source.probes[name].to_numpy() for name in source.probes}
    landscape = {name: columns.pop(name) for name in LOSS_PROBES if name in columns}
    errors = _long(source.image_ids, RECONSTRUCTION, columns)
    return pd.concat([errors, _long(source.image_ids, LOSS, landscape)], ignore_index=True) if landscape else errors


def _long(image_ids: np.ndarray, layer: str, columns: dict[str, np.ndarray]) -> pd.DataFrame:
    """Columns of values [images] as a long table: image_id, layer, metric, value."""
    wide = pd.DataFrame({name: values.astype(np.float64) for name, values in columns.items()})
    wide.insert(0, "image_id", image_ids)
    long = wide.melt("image_id", var_name="metric", value_name="value")
    long.insert(1, "layer", layer)
    return long
