"""The measure stage: from one run's activations to a tidy table of metrics per image and layer.

    image_id, layer, metric, value          metrics/<run>.parquet
    layer, quantile, epsilon, num_reference metrics/<run>.epsilon.csv

Metrics of a layer are `gini`, and `l_eps_count_qNN` and `l_eps_fraction_qNN` for each quantile NN of the ε rule. The
layer `reconstruction` holds the errors of each image's reconstruction, the layer `loss` its sharpness and the norm of
its gradient, if they were recorded. Memory does not grow with the images.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.sparsity import NonFinite, gini, l_epsilon
from fluence.errors import ArtifactError
from fluence.store.activations import Activations, LayerInfo
from fluence.store.files import write_table
from fluence.study import Epsilon

RECONSTRUCTION = "reconstruction"
"""The layer that each image's errors are filed under."""
LOSS = "loss"
"""The layer that `LOSS_PROBES` are filed under: they tell how an image's loss lies, not what a layer says."""
LOSS_PROBES = ("sharpness", "gradient_norm")

_BLOCK_BYTES = 32 << 20  # of stored values; sorting and comparing them takes a few times as much
_CHUNK_IMAGES = 32  # images per chunk of the file: smaller steps would read chunks twice


def measure(activations: Path, out: Path, epsilon: Epsilon, *, key: str) -> None:
    """Measures every layer of every image and writes the metrics, and beside them the ε that was used.

    Args:
        activations: a finished activation file.
        out: `<run>.parquet`; `<run>.epsilon.csv` is written beside it, first.
        epsilon: the rule that chooses ε on the reference images.
        key: hash of what determines the metrics; kept in the file.

    Raises:
        ArtifactError: the activations are missing or damaged, or hold NaN or infinite values.
    """
    with Activations(activations) as source:
        thresholds = pd.concat([_thresholds(source, layer, epsilon) for layer in source.layers], ignore_index=True)
        pieces = [_measure_layer(source, layer, thresholds, activations) for layer in source.layers]
        metrics = pd.concat([*pieces, _probes(source)], ignore_index=True)
    metrics.attrs = {"kind": "metrics", "format": 1, "key": key}
    write_table(out.with_suffix(".epsilon.csv"), thresholds)
    write_table(out, metrics)


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


def _thresholds(source: Activations, layer: LayerInfo, epsilon: Epsilon) -> pd.DataFrame:
    chosen = choose_epsilon(source.reference(layer.name), epsilon.quantiles)
    return pd.DataFrame(
        {
            "layer": layer.name,
            "quantile": epsilon.quantiles,
            "epsilon": chosen,
            "num_reference": len(source.reference_ids),
        }
    )


def _measure_layer(source: Activations, layer: LayerInfo, thresholds: pd.DataFrame, path: Path) -> pd.DataFrame:
    """All metrics of one layer, long: image_id, layer, metric, value."""
    own = thresholds[thresholds["layer"] == layer.name]
    columns: dict[str, list[np.ndarray]] = {}
    for start, values in _blocks(source, layer):
        try:
            measured = _measure_block(values, own)
        except NonFinite as error:
            image = source.image_ids[start + error.first_row]
            raise ArtifactError(
                f"{path}: layer {layer.name}: {error.count} values are NaN or infinite, first in image {image}; "
                "extract this run again"
            ) from error
        for name, values_of_metric in measured.items():
            columns.setdefault(name, []).append(values_of_metric)
    return _long(source.image_ids, layer.name, {name: np.concatenate(parts) for name, parts in columns.items()})


def _blocks(source: Activations, layer: LayerInfo) -> Iterator[tuple[int, np.ndarray]]:
    """Position of the first image and values [images, units] of one block after the other."""
    images = _BLOCK_BYTES // (4 * layer.num_units)
    step = max(1, images // _CHUNK_IMAGES * _CHUNK_IMAGES or images)
    for start in range(0, len(source.image_ids), step):
        yield start, source.read(layer.name, start, start + step)


def _measure_block(values: np.ndarray, thresholds: pd.DataFrame) -> dict[str, np.ndarray]:
    """Metric name → float64 [images]. Without a scale (ε is NaN) L_ε is NaN too."""
    metrics = {"gini": gini(values)}
    for quantile, epsilon in zip(thresholds["quantile"], thresholds["epsilon"], strict=True):
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
