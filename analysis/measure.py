"""The measure stage: from one run's activations to a tidy table of metrics per image and layer.

    image_id, layer, metric, value          metrics/<run>.parquet
    layer, quantile, epsilon, num_reference metrics/<run>.epsilon.csv
    histograms of each image and layer      metrics/<run>.histograms.h5   (fluence.store.histograms)
    layer, unit, gini, …                    metrics/<run>.units.parquet   if the study asks for it
    image_id, method, x, y                  metrics/<run>.embedding.parquet   likewise (analysis.embedding)

Metrics of a layer are those of `analysis.sparsity.METRICS`, and `l_eps_count_qNN` and `l_eps_fraction_qNN` for each
quantile NN of the ε rule; gates have `gini` and those of `analysis.gates`. The layer `reconstruction` holds the errors
of each image's reconstruction, the layer `loss` its sharpness and the norm of its gradient, if they were recorded.
Memory does not grow with the number of units, and with the images only by their metrics, but for typicality
(`analysis.typicality`), where it grows with their square.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis.gates import GATE
from analysis.layers import Plan, choose_reference, measure_block, measure_units, quantile_name
from analysis.partial import PartialMetrics, Piece, Reference, source_stamp
from analysis.sources import dtype_of, kept_histograms, refuse_empty
from analysis.sparsity import NonFinite
from analysis.walk import Shares, num_threads, read_ahead, steps
from fluence.allocator import keep_freed_memory
from fluence.errors import ArtifactError
from fluence.layout import Layout, Run
from fluence.store.activations import Activations, LayerInfo
from fluence.store.files import write_table, write_tables
from fluence.store.histograms import HistogramFile, Histograms, HistogramWriter, is_kept
from fluence.store.outcome import write_progress
from fluence.study import Epsilon, SparsityMetrics

if TYPE_CHECKING:
    from analysis.embedding import Asked as AskedEmbeddings
    from analysis.typicality import Asked

__all__ = ["LOSS", "LOSS_PROBES", "RECONSTRUCTION", "measure", "quantile_name"]

RECONSTRUCTION = "reconstruction"
"""The layer that each image's errors are filed under."""
LOSS = "loss"
"""The layer that `LOSS_PROBES` are filed under: they tell how an image's loss lies, not what a layer says."""
LOSS_PROBES = ("sharpness", "gradient_norm")


def measure(
    run: Run,
    layout: Layout,
    epsilon: Epsilon,
    sparsity: SparsityMetrics | None = None,
    *,
    key: str,
    typicality: Asked | None = None,
    embeddings: AskedEmbeddings | None = None,
    stop: Callable[[], bool] = lambda: False,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Measures every layer of every image and writes the metrics, after the ε that was used.

    One that was interrupted continues behind its last finished block of images, and ends with the same bits as an
    undisturbed one. If the histograms of the same activations are there, they are read in the place of the layers that
    they were counted from. Several processes share the layers; the first waits for the others and writes the tables.

    Args:
        run: the run; its activations are finished.
        layout: the study's folder.
        epsilon: the rule that chooses ε on the reference images.
        sparsity: over what sparsity is measured.
        key: hash of what determines the metrics; kept in the file.
        typicality: what is asked about it; None does not compute it.
        embeddings: what is asked about the latents in the plane; None makes no map.
        stop: asked after every block.
        rank: number of this process, from 0.
        world_size: number of processes that share the layers.

    Raises:
        ArtifactError: the activations are missing, damaged, of another run or of no image, or hold NaN or infinite
            values.
        StudyError: there are too few images for the typicality that is asked for.
        Interrupted: `stop` answered True; what is done is kept.
    """
    keep_freed_memory()  # blocks come and go
    with ExitStack() as open_files:
        source = open_files.enter_context(Activations(layout.activations(run.id), run.id))
        refuse_empty(source, layout.activations(run.id))
        kept = kept_histograms(run, layout, source, open_files)
        made = f"{key} {'from histograms' if kept else 'from activations'}"
        partial = PartialMetrics(run, layout, source, key, stop, made=made, tells=rank == 0)
        own = source.layers[rank::world_size]
        partial.begin(own)
        shares = open_files.enter_context(Shares(num_threads()))
        work = _Work(source, epsilon, sparsity or SparsityMetrics(), partial, kept, shares, layout.activations(run.id))
        if read := sum(work.is_read_from_histograms(layer) for layer in own):
            print(f"{run.label}: reads the histograms of {read} layers, not their activations", flush=True)
        typical = _Typicality(run, layout, source, typicality, key, stop, tells=rank == 0)
        typical.of(own)
        try:
            for layer in own:
                work.do(layer)
        except NotMeasurable:
            if world_size == 1:
                partial.remove()
            raise
        if rank:
            return
        for layer in source.layers:
            if layer not in own:
                partial.wait_for(layer, work.needs_units)
                work.do(layer)  # what is damaged of it
        _embed(run, layout, source, embeddings, key)
        _write(run, layout, work, typical.of(source.layers), key)
    partial.remove()


class NotMeasurable(ArtifactError):
    """Activations that are of no use, however often they are measured."""


class _Work:
    """What the measuring of a run consists of: each layer's ε, its metrics, and those of its units.

    Attributes:
        source: the activations.
        partial: what is finished.
        kept: histograms from an earlier measuring.
        needs_units: whether units are measured over the images.
    """

    def __init__(
        self,
        source: Activations,
        epsilon: Epsilon,
        sparsity: SparsityMetrics,
        partial: PartialMetrics,
        kept: HistogramFile | None,
        shares: Shares,
        path: Path,
    ) -> None:
        self.source, self.partial, self.kept = source, partial, kept
        self._epsilon, self._sparsity, self._shares, self._path = epsilon, sparsity, shares, path
        self.needs_units = "unit" in sparsity.per

    def plan(self, layer: LayerInfo) -> Plan:
        """How a layer is measured."""
        dtype = dtype_of(self.source, layer)
        quantiles = () if layer.kind == GATE else self._epsilon.quantiles
        return Plan(layer, quantiles, self._sparsity.per, dtype.itemsize, is_kept(layer, dtype))

    def is_read_from_histograms(self, layer: LayerInfo) -> bool:
        """Whether a layer's values themselves are not needed."""
        return self.kept is not None and layer.name in self.kept.layers and not self.plan(layer).needs_places

    def do(self, layer: LayerInfo) -> None:
        """Measures of a layer what is not measured yet.

        Raises:
            NotMeasurable: it holds NaN or infinite values.
        """
        plan = self.plan(layer)
        try:
            reference = self.reference(plan)
            done = sum(piece.num_images for piece in self.partial.pieces_of(layer))
            if done < len(self.source.image_ids):
                self.partial.starts_at(layer, done)
                self._images(plan, reference.epsilon, done)
            if self.needs_units and self.partial.units_of(layer) is None:
                self._units(plan)
        except NotMeasurable as error:
            self.partial.fail(layer, str(error))
            raise

    def reference(self, plan: Plan) -> Reference:
        """ε of a layer, chosen now if it is not yet."""
        found = self.partial.reference_of(plan.layer)
        if found is None:
            try:
                found = choose_reference(self.source, plan, self.kept)
            except NonFinite as error:
                raise NotMeasurable(
                    f"{self._path}: layer {plan.layer.name}: {error.count} values are NaN or infinite, first in "
                    f"reference image {self.source.reference_ids[error.first_row]}; extract this run again"
                ) from error
            self.partial.keep_reference(plan.layer, found)
        return found

    def _images(self, plan: Plan, epsilon: np.ndarray, done: int) -> None:
        """All metrics of a layer, block by block from the first image that is missing."""
        layer, total = plan.layer, len(self.source.image_ids)
        if self.kept is not None and self.is_read_from_histograms(layer):
            kept = self.kept
            for start, stop in steps(done, total, plan.bytes_per_image):
                histograms = kept.read(layer.name, start, stop)
                try:
                    piece = measure_block(histograms, plan, epsilon)
                except ValueError as error:
                    raise ArtifactError(
                        f"{kept.path}: layer {layer.name}: damaged ({error}); delete it and run again"
                    ) from error
                self.partial.keep(layer, start, piece, histograms.num_bytes)
            return
        blocks = read_ahead(
            lambda start, stop: self.source.read(layer.name, start, stop), steps(done, total, plan.bytes_per_image)
        )
        for start, values in blocks:
            try:
                pieces = self._shares.map(lambda rows: measure_block(rows, plan, epsilon), values)
            except NonFinite as error:
                raise self._explained(layer, start + error.first_row) from error
            self.partial.keep(layer, start, Piece.joined(pieces), values.nbytes)

    def _units(self, plan: Plan) -> None:
        """Metrics of each unit of a layer over all images."""
        layer, found = plan.layer, []
        for start, stop in steps(0, layer.num_units, plan.bytes_per_value * len(self.source.image_ids)):
            values = self.source.read_units(layer.name, start, stop)
            found += self._shares.map(measure_units, values.T)
            self.partial.stop_if_asked(layer)
        units = {name: np.concatenate([share[name] for share in found]) for name in found[0]}
        self.partial.keep_units(layer, units)

    def _explained(self, layer: LayerInfo, first: int) -> NotMeasurable:
        """Which layer and image hold values that are not finite, and how many there are in the whole layer."""
        count, images = 0, 0
        plan = self.plan(layer)
        for start, stop in steps(first, len(self.source.image_ids), plan.bytes_per_image):
            unfinite = np.count_nonzero(~np.isfinite(self.source.read(layer.name, start, stop)), axis=1)
            count, images = count + int(unfinite.sum()), images + int(np.count_nonzero(unfinite))
        where = f"in image {self.source.image_ids[first]}" + (f" and {images - 1} others" if images > 1 else "")
        return NotMeasurable(
            f"{self._path}: layer {layer.name}: {count} values are NaN or infinite, {where}; extract this run again"
        )


class _Typicality:
    """How typical the images are, which is kept beside the other metrics until all are written.

    Args:
        run: the run that is measured.
        layout: the study's folder.
        source: its activations.
        asked: what is asked; None computes nothing.
        key: hash of what determines the metrics.
        stop: asked after every block.
        tells: whether this process says how far the run has come.
    """

    def __init__(
        self, run: Run, layout: Layout, source: Activations, asked: Asked | None, key: str,
        stop: Callable[[], bool], *, tells: bool,
    ) -> None:  # fmt: skip
        self._source, self._asked, self._key, self._stop = source, asked, key, stop
        self._folder = layout.partial_metrics(run.id)
        self._progress = layout.progress("measure", run.id) if tells else None
        self._made_from = f"{key} {source_stamp(layout, run, source)}"

    def of(self, layers: Sequence[LayerInfo]) -> dict[str, dict[str, np.ndarray]]:
        """Layer → metric → values [images]; what is finished is read and not computed again."""
        if self._asked is None:
            return {}
        from analysis.typicality import typicality_of

        return typicality_of(
            self._source,
            layers,
            self._asked,
            folder=self._folder,
            made_from=self._made_from,
            tell=self._tell,
            stop=self._stop,
        )

    def _tell(self, fraction: float, text: str) -> None:
        if self._progress:
            write_progress(self._progress, self._key, fraction, text)


# ── Writing ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _embed(run: Run, layout: Layout, source: Activations, asked: AskedEmbeddings | None, key: str) -> None:
    """Writes the map of the latents, or removes that of an earlier study which asked for one."""
    if asked is None:
        layout.embedding(run.id).unlink(missing_ok=True)
        return
    from analysis.embedding import write_embedding

    write_embedding(source, asked, layout.embedding(run.id), key)


def _write(run: Run, layout: Layout, work: _Work, typical: dict[str, dict[str, np.ndarray]], key: str) -> None:
    """Writes every table, and then the histograms: once they are there, a later measuring reads them."""
    source, partial = work.source, work.partial
    thresholds = [_thresholds(work.plan(layer), work.reference(work.plan(layer)), source) for layer in source.layers]
    if work.needs_units:
        units = (_of_units(layer, partial.units_of(layer) or {}) for layer in source.layers)
        write_tables(layout.unit_metrics(run.id), units, {"kind": "unit metrics", "format": 1, "key": key})
    else:
        layout.unit_metrics(run.id).unlink(missing_ok=True)
    write_table(layout.epsilon(run.id), pd.concat([table for table in thresholds if len(table)] or thresholds[:1]))
    layers = (
        _long(source.image_ids, layer.name, partial.metrics_of(layer) | typical.get(layer.name, {}))
        for layer in source.layers
    )
    write_tables(layout.metrics(run.id), _and(layers, _probes(source)), {"kind": "metrics", "format": 2, "key": key})
    _write_histograms(run, layout, work)


def _write_histograms(run: Run, layout: Layout, work: _Work) -> None:
    """Keeps the histograms of what was counted; those that were read stay as they are."""
    source, path = work.source, layout.histograms(run.id)
    layers = [layer for layer in source.layers if work.plan(layer).keeps]
    if work.kept is not None:
        return
    if not layers:
        path.unlink(missing_ok=True)
        return
    stamp = source_stamp(layout, run, source)
    with HistogramWriter(path, made_from=stamp, image_ids=source.image_ids, attributes={"run": run.id}) as file:
        for layer in layers:
            file.append_reference(layer.name, work.reference(work.plan(layer)).histograms or Histograms.none())
            for piece in work.partial.pieces_of(layer):
                file.append(layer.name, piece.histograms or Histograms.none())


def _thresholds(plan: Plan, reference: Reference, source: Activations) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "layer": np.repeat(plan.layer.name, len(plan.quantiles)),
            "quantile": np.array(plan.quantiles, dtype=np.float64),
            "epsilon": reference.epsilon,
            "num_reference": np.repeat(len(source.reference_ids), len(plan.quantiles)),
        }
    )


def _of_units(layer: LayerInfo, metrics: dict[str, np.ndarray]) -> pd.DataFrame:
    table = pd.DataFrame({"unit": np.arange(layer.num_units), **metrics})
    table.insert(0, "layer", layer.name)
    return table


def _and(tables: Iterator[pd.DataFrame], last: pd.DataFrame) -> Iterator[pd.DataFrame]:
    yield from tables
    yield last


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
