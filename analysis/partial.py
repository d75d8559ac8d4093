"""What a measuring that was stopped has finished: one file per layer, kept until the table of the run is written.

A file counts only if its checksum fits and it was made from the same: the task's key and these very activations.
Anything else is as if it were not there, and its layer is measured from its first image.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fluence.errors import Interrupted
from fluence.layout import Layout, Run
from fluence.store.activations import Activations, LayerInfo
from fluence.store.files import atomic_path
from fluence.store.outcome import write_progress

_FORMAT = 1
_MADE_FROM, _EPSILON, _METRIC = "made_from", "epsilon", "metric/"
_DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class MeasuredLayer:
    """A layer as far as it is measured.

    Attributes:
        epsilon: thresholds, float64 [quantiles].
        metrics: name → values [images so far], from the first image on.
    """

    epsilon: np.ndarray
    metrics: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def num_images(self) -> int:
        """How many images are measured."""
        return len(next(iter(self.metrics.values()), ()))

    def and_then(self, block: dict[str, np.ndarray]) -> MeasuredLayer:
        """The same with the metrics of the next images, values [images] by name."""
        before = self.metrics or {name: values[:0] for name, values in block.items()}
        return MeasuredLayer(self.epsilon, {name: np.concatenate([before[name], block[name]]) for name in block})


class PartialMetrics:
    """The finished part of one run's metrics, on disk.

    Args:
        run: the run that is measured.
        layout: the study's folder.
        source: its activations.
        key: hash of what determines the metrics.
        stop: asked after every block.
    """

    def __init__(self, run: Run, layout: Layout, source: Activations, key: str, stop: Callable[[], bool]) -> None:
        self._run, self._layout, self._key, self._stop = run, layout, key, stop
        self._layers, self._num_images = source.layers, len(source.image_ids)
        written = layout.activations(run.id).stat()
        self._made_from = json.dumps([_FORMAT, key, written.st_size, written.st_mtime_ns])
        self._is_continuing = True  # until this process has measured a block of its own

    def of(self, layer: LayerInfo) -> MeasuredLayer | None:
        """What is finished of a layer, None if nothing is; says once where the measuring goes on."""
        found = _read(self._layout.partial_metrics_of(self._run.id, layer.name), self._made_from)
        done = found.num_images if found else 0
        if self._is_continuing and done < self._num_images:
            self._is_continuing = False
            if done or layer != self._layers[0]:
                print(f"{self._run.label} continues at {self._place(layer, done)}", flush=True)
        return found

    def keep(self, layer: LayerInfo, measured: MeasuredLayer) -> None:
        """Keeps what is finished of a layer, and says how far the run has come.

        Raises:
            Interrupted: `stop` answered True, and there is more to measure.
            UnwritableError: the disk is full.
        """
        _write(self._layout.partial_metrics_of(self._run.id, layer.name), self._made_from, measured)
        place, fraction = self._place(layer, measured.num_images), self._fraction(layer, measured.num_images)
        write_progress(self._layout.progress("measure", self._run.id), self._key, fraction, place)
        is_end = layer == self._layers[-1] and measured.num_images == self._num_images
        if self._stop() and not is_end:
            raise Interrupted(f"stopped at {place}")

    def remove(self) -> None:
        """Removes it all: the table is written, or the activations are of no use."""
        shutil.rmtree(self._layout.partial_metrics(self._run.id), ignore_errors=True)

    def _place(self, layer: LayerInfo, num_images: int) -> str:
        number = self._layers.index(layer) + 1
        return f"layer {layer.name} ({number} of {len(self._layers)}), image {num_images} of {self._num_images}"

    def _fraction(self, layer: LayerInfo, num_images: int) -> float:
        """Share of the values that lie before a place."""
        before = sum(other.num_units for other in self._layers[: self._layers.index(layer)]) * self._num_images
        total = sum(other.num_units for other in self._layers) * self._num_images
        return (before + layer.num_units * num_images) / total


def _write(path: Path, made_from: str, measured: MeasuredLayer) -> None:
    arrays: dict[str, Any] = {_MADE_FROM: np.array(made_from), _EPSILON: measured.epsilon}
    arrays |= {f"{_METRIC}{name}": values for name, values in measured.metrics.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    content = buffer.getvalue()
    with atomic_path(path) as temporary:
        temporary.write_bytes(hashlib.sha256(content).digest() + content)


def _read(path: Path, made_from: str) -> MeasuredLayer | None:
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        print(f"{path}: cannot be read ({error.strerror}); this layer is measured again", flush=True)
        return None
    digest, content = found[:_DIGEST_BYTES], found[_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        print(f"{path}: damaged; this layer is measured again", flush=True)
        return None
    with np.load(io.BytesIO(content)) as arrays:
        if str(arrays[_MADE_FROM]) != made_from:
            return None
        metrics = {name.removeprefix(_METRIC): arrays[name] for name in arrays.files if name.startswith(_METRIC)}
        return MeasuredLayer(arrays[_EPSILON], metrics)
