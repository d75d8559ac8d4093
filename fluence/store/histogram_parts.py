"""Histograms on their way to one file, for an extraction that may be killed, or shared by several processes.

    <run>.histograms.parts/<first>-<behind last>.h5     of these images
    <run>.histograms.parts/reference.h5                 of the training images that ε is chosen on

Each part is a file of histograms, whole or not there. A part counts if it was made from the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from fluence.errors import ArtifactError
from fluence.store.histograms import HistogramFile, Histograms, HistogramWriter

_REFERENCE = "reference"


class HistogramParts:
    """The parts of one file of histograms.

    Args:
        path: the file that they become.
        folder: where they are meanwhile.
        made_from: what determines them.
        image_ids: all images, in their order.
    """

    def __init__(self, path: Path, folder: Path, made_from: str, image_ids: Sequence[str]) -> None:
        self._path, self._folder, self._made_from, self._ids = path, folder, made_from, list(image_ids)
        self._held: list[dict[str, Histograms]] = []

    def begin(self, images: range) -> None:
        """Removes what is there of some images, to write them anew from the first on."""
        self._held = []
        for span in self._spans():
            if span.start in images:
                self._part(span).unlink()
        if images.start == 0:
            self._reference.unlink(missing_ok=True)

    def add_reference(self, blocks: Sequence[Mapping[str, Histograms]]) -> None:
        """Keeps those of the training images, block by block, by layer."""
        with HistogramWriter(self._reference, made_from=self._made_from, image_ids=[]) as file:
            for block in blocks:
                for layer, histograms in block.items():
                    file.append_reference(layer, histograms)

    def add(self, histograms: dict[str, Histograms]) -> None:
        """Holds those of the next images, by layer, until `keep` is called."""
        self._held.append(histograms)

    def keep(self, stop: int) -> None:
        """Writes what is held; it ends before image `stop`."""
        if not self._held:
            return
        layers = {name: Histograms.joined([block[name] for block in self._held]) for name in self._held[0]}
        num_images = sum(len(next(iter(block.values()))) for block in self._held)
        span = range(stop - num_images, stop)
        with HistogramWriter(
            self._part(span), made_from=self._made_from, image_ids=self._ids[span.start : span.stop]
        ) as file:
            for layer, histograms in layers.items():
                file.append(layer, histograms)
        self._held = []

    def has(self, images: range) -> bool:
        """Whether the parts of some images follow each other from the first to the last."""
        done = images.start
        for span in self._spans():
            done = span.stop if span.start == done and self._is_whole(self._part(span)) else done
        return done >= images.stop and (images.start > 0 or self._is_whole(self._reference))

    def cut(self, images: range, stop: int) -> None:
        """Of parts of some images, removes those that do not end before image `stop`: they do not count."""
        self._held = []
        for span in self._spans():
            if span.start in images and span.stop > stop:
                self._part(span).unlink()

    def join(self) -> None:
        """Makes the parts one file.

        Raises:
            ArtifactError: a part is missing or damaged, or the disk is full.
        """
        if not self.has(range(len(self._ids))):
            raise ArtifactError(f"{self._folder}: histograms are missing; delete this folder and run again")
        with (
            ExitStack() as stack,
            HistogramWriter(self._path, made_from=self._made_from, image_ids=self._ids) as file,
        ):
            reference = stack.enter_context(HistogramFile(self._reference))
            for layer in sorted(reference.reference_layers):
                file.append_reference(layer, reference.reference(layer))
            for span in self._spans():
                part = stack.enter_context(HistogramFile(self._part(span)))
                for layer in sorted(part.layers):
                    file.append(layer, part.read(layer, 0, len(span)))

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _reference(self) -> Path:
        return self._folder / f"{_REFERENCE}.h5"

    def _part(self, span: range) -> Path:
        return self._folder / f"{span.start:08}-{span.stop:08}.h5"

    def _spans(self) -> list[range]:
        """The images of each part, in their order."""
        return sorted(self._named(), key=lambda span: span.start)

    def _named(self) -> Iterator[range]:
        for path in self._folder.glob("*-*.h5"):
            start, _, stop = path.stem.partition("-")
            if start.isdigit() and stop.isdigit():
                yield range(int(start), int(stop))

    def _is_whole(self, path: Path) -> bool:
        try:
            with HistogramFile(path) as part:
                return part.made_from == self._made_from
        except ArtifactError:
            return False
