"""Extraction: every rated image passes through a trained network once, and what its layers say is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from fluence.allocator import keep_freed_memory
from fluence.data.images import ResidentImages, rows_of_group, split_rows
from fluence.errors import Interrupted
from fluence.features import trained_features
from fluence.layout import Layout, Run
from fluence.losses import Objective
from fluence.models import Output
from fluence.models.recording import Recorder, record
from fluence.models.trained import TrainedModel, load_trained
from fluence.probes import ErrorProbe, Probe, SharpnessProbe
from fluence.store.activations import ActivationWriter, LayerInfo, NeedsFloat32, Which
from fluence.store.outcome import write_progress
from fluence.store.packed import Packed
from fluence.study import Model, Record

_BLOCK_IMAGES, _BLOCK_BYTES = 128, 2**29


@dataclass(frozen=True)
class ExtractSpec:
    """What one extraction is made from.

    Attributes:
        model: settings of the network.
        record: what is recorded.
        run: the training whose weights are used.
        layout: the study's folder.
        rated: the packed rated images.
        training: the packed training images.
        group_by: columns that define the groups.
        validation_fraction: share of the training images that was held out.
        key: hash of what determines the result.
        trained: models of the study whose features the loss of this one compares, by `ModelFeatures.label`; used for
            its sharpness.
    """

    model: Model
    record: Record
    run: Run
    layout: Layout
    rated: Path
    training: Path
    group_by: tuple[str, ...]
    validation_fraction: float
    key: str
    trained: Mapping[str, TrainedModel] = field(default_factory=dict)


def extract(spec: ExtractSpec, stop: Callable[[], bool] = lambda: False) -> None:
    """Writes the activation file of one run; continues one that was interrupted at its first missing block.

    The network is in eval mode, z = μ, float32. A block's size depends on the network alone, so that an interrupted
    extraction ends with the same bits as an undisturbed one.

    Raises:
        ArtifactError: weights or images are missing or damaged, a value is not finite, or the disk is full.
        Interrupted: `stop` answered True; what is done is kept.
    """
    keep_freed_memory()
    extraction = _Extraction(spec)
    float32_layers: frozenset[str] = frozenset()
    while True:
        try:
            return extraction.write(float32_layers, stop)
        except NeedsFloat32 as problem:
            print(f"{problem}; it is stored as float32")
            float32_layers |= {problem.layer}


class _Extraction:
    """A network in eval mode with the images it is shown."""

    def __init__(self, spec: ExtractSpec) -> None:
        self._spec = spec
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._rated, self._training = Packed(spec.rated), Packed(spec.training)
        self._network = load_trained(spec.model, self._rated.image_size_px, spec.layout.weights(spec.run.id)).to(
            self._device
        )
        self._probes: list[Probe] = [ErrorProbe(spec.record, self._device)]
        if spec.record.sharpness:
            size = self._rated.image_size_px
            objective = Objective(spec.model, trained_features(spec.trained, size)).to(self._device)
            self._probes.append(SharpnessProbe(spec.record.sharpness, self._network, objective, size))
        with record(self._network, spec.record.layers, spec.record.tap) as recorder:
            self._layers: tuple[LayerInfo, ...] = recorder.layers
        bytes_per_image = 4 * sum(layer.num_units for layer in self._layers)
        self._block = int(np.clip(_BLOCK_BYTES // bytes_per_image, 1, _BLOCK_IMAGES))

    def write(self, float32_layers: frozenset[str], stop: Callable[[], bool]) -> None:
        """One pass over all images, with some layers stored as float32."""
        spec = self._spec
        rated_ids, reference = list(self._rated.table["image_id"]), self._reference_rows()
        with (
            ActivationWriter(
                spec.layout.activations(spec.run.id),
                key=spec.key,
                image_ids=rated_ids,
                reference_ids=list(self._training.table["image_id"].iloc[reference]),
                layers=self._layers,
                probes=[name for probe in self._probes for name in probe.names],
                float32_layers=float32_layers,
                attributes=self._attributes(),
            ) as writer,
            record(self._network, spec.record.layers, spec.record.tap) as recorder,
        ):
            if writer.rows_done == 0:
                for start, values, _, _ in self._blocks(self._training, reference, recorder):
                    writer.write_reference(start, values)
                self._write_samples(writer)
            self._write_rated(writer, recorder, stop)
            writer.finish()

    def _write_rated(self, writer: ActivationWriter, recorder: Recorder, stop: Callable[[], bool]) -> None:
        total = len(self._rated)
        if writer.rows_done:
            print(f"{self._spec.run.label} continues at image {writer.rows_done} of {total}", flush=True)
        rows = np.arange(writer.rows_done, total)
        for offset, values, images, output in self._blocks(self._rated, rows, recorder):
            writer.write_block(int(rows[offset]), values, self._measure(images, output))
            done = writer.rows_done
            progress = self._spec.layout.progress("extract", self._spec.run.id)
            write_progress(progress, self._spec.key, done / total, f"image {done} of {total}")
            if stop() and done < total:
                raise Interrupted(f"stopped at image {done} of {total}")

    @torch.inference_mode()
    def _blocks(
        self, packed: Packed, rows: np.ndarray, recorder: Recorder
    ) -> Iterator[tuple[int, dict[str, np.ndarray], torch.Tensor, Output]]:
        """Start, layers [images, units], and the images with their output, of each block of images."""
        for start in range(0, len(rows), self._block):
            images = self._images(packed, rows[start : start + self._block])
            output = self._network(images)
            values = {name: _as_rows(value) for name, value in recorder.values.items()}
            yield start, values, images, output

    def _measure(self, images: torch.Tensor, output: Output) -> dict[str, np.ndarray]:
        """What the probes say of each image, float64 [images] by name."""
        found = [probe(images, output) for probe in self._probes]
        return {name: values.cpu().numpy() for one in found for name, values in one.items()}

    def _images(self, packed: Packed, rows: np.ndarray) -> torch.Tensor:
        resident = ResidentImages(packed.read(rows), self._device)
        return resident.batch(torch.arange(len(rows), device=self._device))

    @torch.inference_mode()
    def _write_samples(self, writer: ActivationWriter) -> None:
        """Keeps images beside their reconstructions: rated ones, and held-out ones of the training set."""
        split = split_rows(self._training.table, self._own(self._training), self._spec.validation_fraction)
        held_out = split.validation if len(split.validation) else split.training
        own_rated = self._own(self._rated)
        choices: tuple[tuple[Which, Packed, np.ndarray], ...] = (
            ("rated", self._rated, own_rated if len(own_rated) else np.arange(len(self._rated))),
            ("training", self._training, held_out),
        )
        for which, packed, rows in choices:
            chosen = _spread(rows, self._spec.record.sample_images)
            originals = packed.read(chosen)
            output = self._network(self._images(packed, chosen))
            pixels = (output.reconstruction * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
            writer.write_samples(which, list(packed.table["image_id"].iloc[chosen]), originals, pixels.cpu().numpy())

    def _reference_rows(self) -> np.ndarray:
        """Training images, none of them held out, that ε is chosen on."""
        split = split_rows(self._training.table, self._own(self._training), self._spec.validation_fraction)
        return _spread(split.training, self._spec.record.reference_images)

    def _own(self, packed: Packed) -> np.ndarray:
        return rows_of_group(packed.table, self._spec.run.group, self._spec.group_by)

    def _attributes(self) -> dict[str, object]:
        run, chosen = self._spec.run, self._spec.record
        return {
            "run": run.id,
            "model": run.model,
            "group": run.group,
            "seed": run.seed,
            "tap": chosen.tap,
            "unit_order": "channel, row, column",
            "lpips": f"{chosen.lpips.net}, {chosen.lpips.weights} weights" if chosen.lpips else "",
        }


def _as_rows(values: torch.Tensor) -> np.ndarray:
    """[B, *shape] → float32 [B, units], units in the order (channel, row, column)."""
    return values.float().flatten(1).cpu().numpy()


def _spread(rows: np.ndarray, number: int) -> np.ndarray:
    """So many of the rows, evenly spread, or all if there are fewer."""
    return rows if len(rows) <= number else rows[np.linspace(0, len(rows) - 1, number).round().astype(int)]
