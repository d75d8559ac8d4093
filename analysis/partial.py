"""What a measuring has finished: pieces of layers on disk, kept until the tables of the run are written.

    <layer>.<made from>.reference        ε, and the histograms of the reference images
    <layer>.<made from>.<first>-<last>   metrics, and histograms, of the images from `first` to before `last`
    <layer>.<made from>.units            metrics of each unit
    <layer>.<made from>.failed           why the layer cannot be measured

A piece counts only if its checksum fits and it was made from the same: the task's key and these very activations, whose
hash is part of its name. Anything else is as if it were not there. Several processes that share the layers of a run
tell each other by these files what they have done.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fluence.errors import ArtifactError, Interrupted
from fluence.layout import Layout, Run
from fluence.store.activations import Activations, LayerInfo
from fluence.store.files import atomic_path, write_text
from fluence.store.histograms import Histograms
from fluence.store.outcome import write_progress

_FORMAT = 2
_OF_TYPICALITY = (".typicality", ".gram")  # which say themselves what they were made from
_SAVE_EVERY_S = 5.0
_SAVE_BYTES = 64 << 20  # of histograms that are held in memory
_POLL_S = 2.0
_EPSILON, _NAMES, _METRICS, _HISTOGRAM = "epsilon", "names", "metrics", "histogram/"
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Reference:
    """What the reference images say about a layer.

    Attributes:
        epsilon: thresholds, float64 [quantiles].
        histograms: of the reference images, if the layer's histograms are kept.
    """

    epsilon: np.ndarray
    histograms: Histograms | None = None


@dataclass(frozen=True)
class Piece:
    """Some images of a layer as far as they are measured.

    Attributes:
        metrics: name → values [images].
        histograms: of the same images, if the layer's histograms are kept.
    """

    metrics: Arrays = field(default_factory=dict)
    histograms: Histograms | None = None

    @property
    def num_images(self) -> int:
        """How many images are measured."""
        return len(next(iter(self.metrics.values()), ()))

    @staticmethod
    def joined(pieces: list[Piece]) -> Piece:
        """One after the other."""
        if not pieces:
            return Piece()
        metrics = {name: np.concatenate([piece.metrics[name] for piece in pieces]) for name in pieces[0].metrics}
        histograms = [piece.histograms for piece in pieces if piece.histograms is not None]
        return Piece(metrics, Histograms.joined(histograms) if histograms else None)


class PartialMetrics:
    """The finished part of one run's metrics, on disk.

    Args:
        run: the run that is measured.
        layout: the study's folder.
        source: its activations.
        key: hash of what determines the metrics.
        stop: asked after every block.
        made: what else determines the pieces; the key if empty.
        tells: whether this process says how far the run has come; of several processes one does.
    """

    def __init__(
        self,
        run: Run,
        layout: Layout,
        source: Activations,
        key: str,
        stop: Callable[[], bool],
        *,
        made: str = "",
        tells: bool = True,
    ) -> None:
        self._run, self._layout, self._key, self._stop, self._tells = run, layout, key, stop, tells
        self._layers, self._num_images = source.layers, len(source.image_ids)
        made_from = json.dumps([_FORMAT, made or key, source_stamp(layout, run, source)])
        self._made_from = hashlib.sha256(made_from.encode()).hexdigest()[:16]
        self._held: list[Piece] = []
        self._saved = time.monotonic()
        self._read_bytes, self._began = 0, time.monotonic()
        self._is_continuing = True  # until this process has measured a block of its own

    # ── What there is ────────────────────────────────────────────────────────────────────────────────────────────

    def begin(self, own: Sequence[LayerInfo]) -> None:
        """Removes pieces that were made from something else, and reasons why the layers `own` could not be measured."""
        for layer in own:
            self._path(layer, "failed").unlink(missing_ok=True)
        folder = self._layout.partial_metrics(self._run.id)
        for path in folder.iterdir() if folder.is_dir() else ():
            if f".{self._made_from}." not in path.name and path.suffix not in _OF_TYPICALITY:
                path.unlink(missing_ok=True)

    def reference_of(self, layer: LayerInfo) -> Reference | None:
        """ε of a layer and the histograms that it was chosen by, None if it was not chosen yet."""
        arrays = _read(self._path(layer, "reference"))
        return None if arrays is None else Reference(arrays[_EPSILON], _histograms(arrays))

    def units_of(self, layer: LayerInfo) -> Arrays | None:
        """Metrics of each unit of a layer, name → values [units]; None if they were not measured yet."""
        return _read(self._path(layer, "units"))

    def metrics_of(self, layer: LayerInfo) -> Arrays:
        """The metrics of a layer that is finished, name → values [images].

        Raises:
            ArtifactError: a piece of it is gone or damaged.
        """
        found = Piece.joined(list(self.pieces_of(layer, with_histograms=False)))
        if found.num_images != self._num_images:
            place = self._place(layer, found.num_images)
            raise ArtifactError(f"{self._path(layer, '*')}: nothing behind {place}; type the same command again")
        return found.metrics

    def pieces_of(self, layer: LayerInfo, *, with_histograms: bool = True) -> Iterator[Piece]:
        """The pieces of a layer that follow each other from the first image on; what lies behind a gap is removed."""
        spans, done = self._spans(layer), 0
        for position, (start, stop) in enumerate(spans):
            skip = "\n" if with_histograms else _HISTOGRAM
            arrays = _read(self._path(layer, f"{start}-{stop}"), skip) if start == done else None
            if arrays is None:
                for gone in spans[position:]:
                    self._path(layer, f"{gone[0]}-{gone[1]}").unlink(missing_ok=True)
                return
            yield Piece(dict(zip(arrays[_NAMES].tolist(), arrays[_METRICS], strict=True)), _histograms(arrays))
            done = stop

    def num_images_of(self, layer: LayerInfo) -> int:
        """How many images of a layer are there by their pieces' names."""
        done = 0
        for start, stop in self._spans(layer):
            done = stop if start == done else done
        return done

    def _spans(self, layer: LayerInfo) -> list[tuple[int, int]]:
        folder, prefix = self._layout.partial_metrics(self._run.id), self._path(layer, "").name
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        ends = [name.removeprefix(prefix).split("-") for name in names if name.startswith(prefix)]
        return sorted((int(end[0]), int(end[1])) for end in ends if len(end) == 2)

    def _path(self, layer: LayerInfo, what: str) -> Path:
        return self._layout.partial_metrics_of(self._run.id, f"{layer.name}.{self._made_from}.{what}")

    # ── What is done ─────────────────────────────────────────────────────────────────────────────────────────────

    def starts_at(self, layer: LayerInfo, num_images: int) -> None:
        """Says once where the measuring goes on."""
        if self._is_continuing and num_images < self._num_images:
            self._is_continuing = False
            self._began = time.monotonic()
            if self._tells and (num_images or layer != self._layers[0]):
                print(f"{self._run.label} continues at {self._place(layer, num_images)}", flush=True)

    def keep_reference(self, layer: LayerInfo, reference: Reference) -> None:
        """Keeps ε of a layer."""
        _write(self._path(layer, "reference"), {_EPSILON: reference.epsilon, **_arrays(reference.histograms)})

    def keep_units(self, layer: LayerInfo, units: Arrays) -> None:
        """Keeps the metrics of each unit of a layer."""
        _write(self._path(layer, "units"), units)

    def keep(self, layer: LayerInfo, start: int, piece: Piece, num_bytes: int) -> None:
        """Keeps the next images of a layer, on disk every few seconds and at its end.

        Args:
            layer: the layer.
            start: position of the first image.
            piece: what was measured.
            num_bytes: how much was read for it.

        Raises:
            Interrupted: `stop` answered True, and there is more to measure.
            UnwritableError: the disk is full.
        """
        self._held.append(piece)
        self._read_bytes += num_bytes
        stop = start + piece.num_images
        is_end = stop == self._num_images
        held = sum(one.histograms.num_bytes for one in self._held if one.histograms is not None)
        if is_end or held >= _SAVE_BYTES or time.monotonic() - self._saved >= _SAVE_EVERY_S:
            self._save(layer, stop)
        if self._stop() and not (is_end and layer == self._layers[-1]):
            if self._held:
                self._save(layer, stop)
            raise Interrupted(f"stopped at {self._place(layer, stop)}")

    def stop_if_asked(self, layer: LayerInfo) -> None:
        """Between blocks that leave nothing to keep.

        Raises:
            Interrupted: `stop` answered True.
        """
        if self._stop():
            raise Interrupted(f"stopped at {self._place(layer, self._num_images)}")

    def _save(self, layer: LayerInfo, stop: int) -> None:
        piece = Piece.joined(self._held)
        metrics = np.array([values.astype(np.float64) for values in piece.metrics.values()])
        arrays = {_NAMES: np.array(list(piece.metrics)), _METRICS: metrics}
        _write(self._path(layer, f"{stop - piece.num_images}-{stop}"), arrays | _arrays(piece.histograms))
        self._held, self._saved = [], time.monotonic()
        if self._tells:
            self._progress(layer, stop)

    def _progress(self, layer: LayerInfo, num_images: int) -> None:
        speed = round(self._read_bytes / 1e6 / max(time.monotonic() - self._began, 1e-3), 1)
        text = f"{self._place(layer, num_images)}, {speed:.0f} MB/s"
        path = self._layout.progress("measure", self._run.id)
        write_progress(path, self._key, self._fraction(), text, mb_per_s=speed)

    def remove(self) -> None:
        """Removes it all: the tables are written."""
        shutil.rmtree(self._layout.partial_metrics(self._run.id), ignore_errors=True)

    # ── Several processes ────────────────────────────────────────────────────────────────────────────────────────

    def fail(self, layer: LayerInfo, reason: str) -> None:
        """Tells the other processes why a layer cannot be measured."""
        write_text(self._path(layer, "failed"), reason)

    def wait_for(self, layer: LayerInfo, needs_units: bool) -> None:
        """Waits until another process has measured a layer.

        Raises:
            ArtifactError: it could not.
            Interrupted: `stop` answered True.
        """
        told = False
        while self.num_images_of(layer) < self._num_images or (
            needs_units and not self._path(layer, "units").is_file()
        ):
            if self._path(layer, "failed").is_file():
                raise ArtifactError(self._path(layer, "failed").read_text(encoding="utf-8"))
            if self._stop():
                raise Interrupted(f"stopped while it waited for layer {layer.name}")
            if not told:
                print(f"{self._run.label} waits for the process that measures layer {layer.name}", flush=True)
                told = True
            time.sleep(_POLL_S)

    def _place(self, layer: LayerInfo, num_images: int) -> str:
        number = self._layers.index(layer) + 1
        return f"layer {layer.name} ({number} of {len(self._layers)}), image {num_images} of {self._num_images}"

    def _fraction(self) -> float:
        """Share of the values that are measured, by whichever process."""
        done = sum(layer.num_units * self.num_images_of(layer) for layer in self._layers)
        return done / max(1, sum(layer.num_units for layer in self._layers) * self._num_images)


def source_stamp(layout: Layout, run: Run, source: Activations) -> str:
    """What tells these activations from others, also from those of the same settings extracted once more."""
    written = layout.activations(run.id).stat()
    return json.dumps([source.attributes.get("key", ""), written.st_size, written.st_mtime_ns])


def _arrays(histograms: Histograms | None) -> Arrays:
    names = ("bits", "counts", "start")
    return {} if histograms is None else {f"{_HISTOGRAM}{name}": getattr(histograms, name) for name in names}


def _histograms(arrays: Arrays) -> Histograms | None:
    names = [f"{_HISTOGRAM}{name}" for name in ("bits", "counts", "start")]
    return Histograms(*(arrays[name] for name in names)) if names[0] in arrays else None


def _write(path: Path, arrays: Arrays) -> None:
    """A line of JSON with name, type, shape and checksum of each array, the checksum of that line, and the arrays."""
    contents = [np.ascontiguousarray(array).reshape(-1).view(np.uint8).data for array in arrays.values()]
    facts = [
        [name, array.dtype.str, array.shape, zlib.crc32(content)]
        for (name, array), content in zip(arrays.items(), contents, strict=True)
    ]
    header = json.dumps(facts).encode()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(b"%08x%s\n" % (zlib.crc32(header), header))
        for content in contents:
            file.write(content)


def _read(path: Path, skip: str = "\n") -> Arrays | None:
    """The arrays whose name does not begin with `skip`; None if there is no such file, or if it is damaged."""
    try:
        with path.open("rb") as file:
            arrays = _arrays_of(file, skip)
    except FileNotFoundError:
        return None
    except OSError as error:
        print(f"{path}: cannot be read ({error.strerror}); this piece is measured again", flush=True)
        return None
    if arrays is None:
        print(f"{path}: damaged; this piece is measured again", flush=True)
    return arrays


def _arrays_of(file: BinaryIO, skip: str) -> Arrays | None:
    """None if a checksum does not fit."""
    line, arrays = file.readline(), {}
    digest, header = line[:8], line[8:-1]
    if digest != b"%08x" % zlib.crc32(header) or line[-1:] != b"\n":
        return None
    for name, kind, shape, checksum in json.loads(header):
        num_bytes = np.dtype(kind).itemsize * int(np.prod(shape))
        if name.startswith(skip):
            file.seek(num_bytes, os.SEEK_CUR)
            continue
        content = file.read(num_bytes)
        if len(content) != num_bytes or zlib.crc32(content) != checksum:
            return None
        arrays[name] = np.frombuffer(content, kind).reshape(shape)
    return arrays if file.read(1) == b"" else None
