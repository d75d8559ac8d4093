"""What a measuring reads: activations, and the histograms that stand in their place."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np

from analysis.partial import source_stamp
from fluence.errors import ArtifactError
from fluence.layout import Layout, Run
from fluence.store.activations import Activations, LayerInfo
from fluence.store.histograms import HistogramFile, is_kept


def refuse_empty(source: Activations, path: Path) -> None:
    """Refuses activations of no image.

    Raises:
        ArtifactError: there are none to measure.
    """
    if not len(source.image_ids):
        raise ArtifactError(f"{path}: holds no image, so there is nothing to measure; extract this run again")


def kept_histograms(run: Run, layout: Layout, source: Activations, open_files: ExitStack) -> HistogramFile | None:
    """Histograms that were made in the place of activations, or by an earlier measuring; None if there are none."""
    if len(source.stored) < len(source.layers):
        return _counted(run, layout, source, open_files)
    path = layout.histograms(run.id)
    if not path.is_file():
        return None
    try:
        kept = open_files.enter_context(HistogramFile(path))
    except ArtifactError as error:
        print(f"{error}: it is counted again", flush=True)
        return None
    needed = {layer.name for layer in source.layers if is_kept(layer, dtype_of(source, layer))}
    is_same = kept.made_from == source_stamp(layout, run, source) and needed <= kept.layers
    return kept if is_same and np.array_equal(kept.image_ids, source.image_ids) else None


def _counted(run: Run, layout: Layout, source: Activations, open_files: ExitStack) -> HistogramFile:
    """The histograms of layers whose activations are not stored.

    Raises:
        ArtifactError: they are missing or damaged, or belong to another extraction.
    """
    path = layout.counted(run.id)
    again = f"delete {layout.activations(run.id)} and run again: this run is then extracted again"
    try:
        found = open_files.enter_context(HistogramFile(path))
    except ArtifactError as error:
        raise ArtifactError(f"{error}; {again}") from error
    needed = {layer.name for layer in source.layers} - {layer.name for layer in source.stored}
    is_same = found.made_from == source.attributes["key"] and needed <= found.layers
    if not (is_same and np.array_equal(found.image_ids, source.image_ids)):
        raise ArtifactError(f"{path}: belongs to another extraction than {layout.activations(run.id)}; {again}")
    return found


def dtype_of(source: Activations, layer: LayerInfo) -> np.dtype:
    """The type of a layer's values, also where only their histograms are kept."""
    return source.dtype(layer.name)[0] if layer in source.stored else np.dtype("float16")
