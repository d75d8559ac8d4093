"""Extraction: every rated image passes through a trained network once, and what its layers say is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fluence import exhibits
from fluence.allocator import keep_freed_memory
from fluence.data.images import ResidentImages, rows_of_group, split_rows
from fluence.errors import ArtifactError, Interrupted, LostProcess
from fluence.features import trained_features
from fluence.layout import Layout, Run
from fluence.losses import Objective
from fluence.models import Output
from fluence.models.pixels import Pixels
from fluence.models.recording import Recorder, record
from fluence.models.trained import TrainedModel, load_recordable
from fluence.probes import ErrorProbe, Probe, SharpnessProbe
from fluence.rows import Behind, Rows
from fluence.store.activations import ActivationWriter, LayerInfo, NeedsFloat32, Which
from fluence.store.histogram_parts import HistogramParts
from fluence.store.histograms import is_kept
from fluence.store.layers import CHUNK_IMAGES, UNIT_ORDER
from fluence.store.outcome import provenance, write_progress
from fluence.store.packed import Packed
from fluence.store.precision import MOST_LOST
from fluence.store.shards import Shards, share
from fluence.study import Model, PixelsModel, Record

_BLOCK_IMAGES, _BLOCK_BYTES = 128, 2**28
_POLL_S, _LOST_S = 0.2, 1800.0


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


def extract(
    spec: ExtractSpec, stop: Callable[[], bool] = lambda: False, rank: int = 0, world_size: int = 1, gpu: int = 0
) -> None:
    """Writes the activation file of one run; continues one that was interrupted behind its last block on the disk.

    The network is in eval mode, z = μ, float32. A block's size depends on the network alone, so that an interrupted
    extraction, or one that several processes share, ends with the same bits as an undisturbed one.

    Args:
        spec: what it is made from.
        stop: asked after every block.
        rank: which share of the images this process takes. Process 0 waits for the others and joins their shards, the
            others wait until it has; they may be array elements, as long as they run at the same time.
        world_size: number of processes.
        gpu: number of the GPU that it takes, of those it sees; without one it takes the CPU.

    Raises:
        ArtifactError: weights or images are missing or damaged, a value is not finite, or the disk is full.
        Interrupted: `stop` answered True; what is done is kept.
        LostProcess: another process gave up, or has not been heard of for long.
    """
    keep_freed_memory()
    shards = Shards(spec.layout.activations(spec.run.id), spec.layout.activation_parts(spec.run.id), spec.key)
    shards.forget(rank)
    try:
        extraction = _Extraction(spec, shards, rank, world_size, gpu)
        while not extraction.is_done(shards.float32_layers(), stop):
            pass
    except (Interrupted, LostProcess):
        raise
    except Exception as error:
        if world_size > 1:
            shards.give_up(rank, str(error))
        raise


class _OthersDiffer(Exception):
    """Another process has found a layer that has to be float32."""


class _Extraction:
    """A network in eval mode with the images it is shown."""

    def __init__(self, spec: ExtractSpec, shards: Shards, rank: int, world_size: int, gpu: int) -> None:
        self._spec, self._shards = spec, shards
        self._device = torch.device("cuda", gpu) if torch.cuda.is_available() else torch.device("cpu")
        self._rated, self._training = Packed(spec.rated), Packed(spec.training)
        if not len(self._rated):
            raise ArtifactError(f"{spec.rated}: holds no image; look at its manifest with: fluence check")
        if rank == 0 and world_size > 1:
            spec.layout.activations(spec.run.id).unlink(missing_ok=True)  # the others take it for this one
        size, weights = self._rated.image_size_px, spec.layout.weights(spec.run.id)
        self._network = load_recordable(spec.model, size, weights).to(self._device)
        self._probes = self._probes_of_network()
        self._names = "encoder" if isinstance(spec.model, PixelsModel) else spec.record.layers
        with record(self._network, self._names, spec.record.tap) as recorder:
            self._layers: tuple[LayerInfo, ...] = recorder.layers
        self._units = {layer.name: exhibits.units_of(layer) for layer in self._layers}
        self._picks = {name: torch.from_numpy(units).to(self._device) for name, units in self._units.items()}
        self._block = block_images(4 * sum(layer.num_units for layer in self._layers))
        step = max(self._block, CHUNK_IMAGES)
        self._ids = list(self._rated.table["image_id"])
        where = spec.layout.counted(spec.run.id), spec.layout.counted_parts(spec.run.id)
        self._parts = HistogramParts(*where, spec.key, self._ids)
        self._shares = [share(len(self._rated), step, place, world_size) for place in range(world_size)]
        self._rank, self._images = rank, self._shares[rank]

    def _probes_of_network(self) -> list[Probe]:
        """What is measured of each image besides its activations; nothing where no network makes anything of it."""
        spec, network = self._spec, self._network
        if isinstance(network, Pixels) or isinstance(spec.model, PixelsModel):
            return []
        probes: list[Probe] = [ErrorProbe(spec.record, self._device)]
        if spec.record.sharpness:
            size = self._rated.image_size_px
            objective = Objective(spec.model, trained_features(spec.trained, size)).to(self._device)
            probes.append(SharpnessProbe(spec.record.sharpness, network, objective, size))
        return probes

    def is_done(self, float32_layers: Mapping[str, str], stop: Callable[[], bool]) -> bool:
        """Writes this process' share and waits for the others; False if a layer turned out to need float32."""
        try:
            if len(self._shares) == 1:
                self._write(self._spec.layout.activations(self._spec.run.id), float32_layers, stop)
                self._shards.remove()
                self._parts.remove()
                return True
            if self._images and not self._shards.is_finished(self._images, list(float32_layers)):
                self._write(self._shards.of(self._images), float32_layers, stop)
            self._meet(float32_layers, stop)
            return True
        except NeedsFloat32 as problem:
            print(f"{problem}; it is stored as float32", flush=True)
            self._shards.need_float32(problem.layer, problem.reason)
        except _OthersDiffer:
            pass
        return False

    def _meet(self, float32_layers: Mapping[str, str], stop: Callable[[], bool]) -> None:
        """Process 0 waits for all shards and joins them, the others wait for the file."""
        if self._rank:
            return self._wait(self._shards.is_joined, float32_layers, stop)
        missing = [images for images in self._shares if images]

        def all_there() -> bool:
            while missing and self._shards.is_finished(missing[0], list(float32_layers)):
                missing.pop(0)
            return not missing

        self._wait(all_there, float32_layers, stop)
        self._join_histograms(float32_layers)
        self._shards.join(self._shares)
        self._parts.remove()

    def _counted(self, float32_layers: Mapping[str, str]) -> frozenset[str]:
        """Layers of which only histograms are kept."""
        if self._spec.record.store == "activations":
            return frozenset()
        halves = (layer for layer in self._layers if layer.name not in float32_layers)
        return frozenset(layer.name for layer in halves if is_kept(layer, np.dtype("float16")))

    def _join_histograms(self, float32_layers: Mapping[str, str]) -> None:
        if self._counted(float32_layers):
            self._parts.join()
        else:
            self._spec.layout.counted(self._spec.run.id).unlink(missing_ok=True)

    def _wait(self, condition: Callable[[], bool], float32_layers: Mapping[str, str], stop: Callable[[], bool]) -> None:
        while not condition():
            self._look_at_others(float32_layers)
            if stop():
                raise Interrupted("stopped while it waited for the other processes")
            if time.time() - self._shards.last_change() > _LOST_S:
                raise LostProcess(f"nothing was heard of the other processes for {_LOST_S / 60:.0f} minutes")
            time.sleep(_POLL_S)

    def _look_at_others(self, float32_layers: Mapping[str, str]) -> None:
        self._shards.check_others()
        if self._shards.float32_layers() != float32_layers:
            raise _OthersDiffer

    def _write(self, path: Path, float32_layers: Mapping[str, str], stop: Callable[[], bool]) -> None:
        """One pass over the images of this process, with some layers stored as float32."""
        spec, counted = self._spec, self._counted(float32_layers)
        reference = self._reference_rows() if self._images.start == 0 else np.arange(0)
        with (
            ActivationWriter(
                path,
                key=spec.key,
                image_ids=self._ids[self._images.start : self._images.stop],
                reference_ids=list(self._training.table["image_id"].iloc[reference]),
                layers=self._layers,
                probes=[name for probe in self._probes for name in probe.names],
                float32_layers=float32_layers,
                attributes=self._attributes(),
                compression=spec.record.compression,
                counted=counted,
                units=self._units,
                before_keep=lambda num_images: self._parts.keep(self._images.start + num_images),
            ) as writer,
            record(self._network, self._names, spec.record.tap) as recorder,
        ):
            if writer.rows_done == 0:
                self._parts.begin(self._images)
            else:
                self._parts.cut(self._images, self._images.start + writer.rows_done)
            if writer.rows_done == 0 and self._images.start == 0:
                histograms = []
                for start, rows, _, _ in self._blocks(self._training, reference, recorder, float32_layers):
                    writer.write_reference(start, rows)
                    histograms.append(rows.histograms())
                if counted:
                    self._parts.add_reference(histograms)
                if not isinstance(self._network, Pixels):
                    self._write_samples(writer)
                    self._write_exhibits(writer, recorder, float32_layers)
            self._write_rated(writer, recorder, float32_layers, stop)

    def _write_rated(
        self, writer: ActivationWriter, recorder: Recorder, float32_layers: Mapping[str, str], stop: Callable[[], bool]
    ) -> None:
        """Each block is written while the next one passes through the network."""
        first, total = self._images.start, self._images.stop
        if writer.rows_done:
            print(f"{self._spec.run.label} continues at image {first + writer.rows_done} of {total}", flush=True)
        images = np.arange(first + writer.rows_done, total)
        said = partial(self._say, writer, writer.rows_done, time.monotonic())
        with Behind() as behind:
            for offset, rows, pixels, output in self._blocks(self._rated, images, recorder, float32_layers):
                probes = self._measure(pixels, output)
                behind(partial(self._write_block, writer, int(images[offset]) - first, rows, probes, said))
                if len(self._shares) > 1:
                    self._look_at_others(float32_layers)
                if stop() and offset + len(pixels) < len(images):
                    behind.wait()
                    writer.keep()
                    said()
                    raise Interrupted(f"stopped at image {first + writer.rows_kept} of {total}")
            behind.wait()
        writer.keep()
        if len(self._shares) == 1:
            self._join_histograms(float32_layers)
        writer.finish()
        said()

    def _write_block(
        self,
        writer: ActivationWriter,
        start: int,
        rows: Rows,
        probes: dict[str, np.ndarray],
        said: Callable[[], None],
    ) -> None:
        """Writes a block, and says so if the disk has it."""
        kept = writer.rows_kept
        if histograms := rows.histograms():
            self._parts.add(histograms)
        writer.write_block(start, rows, probes, rows.units())
        if writer.rows_kept != kept:
            said()

    def _say(self, writer: ActivationWriter, begun: int, begun_at: float) -> None:
        """How far this process is for good, and how fast; the first share speaks for all."""
        if self._images.start == 0:
            kept, total, seconds = writer.rows_kept, self._images.stop, max(time.monotonic() - begun_at, 1e-9)
            bytes_per_s = 2 * (kept - begun) * sum(layer.num_units for layer in self._layers) / seconds
            progress = self._spec.layout.progress("extract", self._spec.run.id)
            text = f"image {kept} of {total}, {bytes_per_s / 1e6:.0f} MB/s"
            write_progress(progress, self._spec.key, kept / total, text, bytes_per_s=round(bytes_per_s))

    @torch.inference_mode()
    def _blocks(
        self, packed: Packed, rows: np.ndarray, recorder: Recorder, float32_layers: Mapping[str, str]
    ) -> Iterator[tuple[int, Rows, torch.Tensor, Output]]:
        """Start, layers, and the images with their output, of each block of images."""
        ids, counted = list(packed.table["image_id"].iloc[rows]), self._counted(float32_layers)
        for start in range(0, len(rows), self._block):
            images = self._read(packed, rows[start : start + self._block])
            output = self._network(images)
            block_ids = ids[start : start + self._block]
            yield start, Rows(recorder.take(), float32_layers, block_ids, counted, self._picks), images, output

    def _measure(self, images: torch.Tensor, output: Output) -> dict[str, np.ndarray]:
        """What the probes say of each image, float64 [images] by name."""
        found = [probe(images, output) for probe in self._probes]
        return {name: values.cpu().numpy() for one in found for name, values in one.items()}

    def _read(self, packed: Packed, rows: np.ndarray) -> torch.Tensor:
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
            output = self._network(self._read(packed, chosen))
            pixels = (output.reconstruction * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
            writer.write_samples(which, list(packed.table["image_id"].iloc[chosen]), originals, pixels.cpu().numpy())

    def _write_exhibits(self, writer: ActivationWriter, recorder: Recorder, float32_layers: Mapping[str, str]) -> None:
        """Keeps what the network makes of a few rated images, which are the same in every run."""
        chosen = _spread(np.arange(len(self._rated)), exhibits.NUM_IMAGES)
        ids = list(self._rated.table["image_id"].iloc[chosen])
        images, originals = self._read(self._rated, chosen), self._rated.read(chosen)
        writer.write_exhibits(exhibits.show(self._network, recorder, images, originals, ids, float32_layers))

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
            "store": chosen.store,
            "unit_order": UNIT_ORDER,
            "dtype_policy": "float16; float32 where a value is too large for it or an image would lose more than "
            f"{MOST_LOST:g} of its sum of magnitudes",
            "device": str(self._device),
            "made_by": provenance(time.time(), {}),
            "lpips": f"{chosen.lpips.net}, {chosen.lpips.weights} weights" if chosen.lpips else "",
        }


def block_images(bytes_per_image: int) -> int:
    """Images that pass through the network at once: whole chunks of the file, or a part of one that divides it."""
    most = int(np.clip(_BLOCK_BYTES // bytes_per_image, 1, _BLOCK_IMAGES))
    return most // CHUNK_IMAGES * CHUNK_IMAGES or 1 << (most.bit_length() - 1)


def _spread(rows: np.ndarray, number: int) -> np.ndarray:
    """So many of the rows, evenly spread, or all if there are fewer."""
    return rows if len(rows) <= number else rows[np.linspace(0, len(rows) - 1, number).round().astype(int)]
