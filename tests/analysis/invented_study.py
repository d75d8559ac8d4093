"""A small study folder whose every artifact was written by the real writers, but whose networks are invented."""

from __future__ import annotations

import json
import time
import zlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.analyse import analyse
from analysis.embedding import asked_embeddings
from analysis.measure import measure
from analysis.tables import asked_typicality
from fluence.layout import Layout, Run, RunRow
from fluence.store.activations import ActivationWriter, LayerInfo
from fluence.store.exhibits import Exhibits, LayerShown
from fluence.store.outcome import Outcome, provenance, write_outcome
from fluence.store.packed import PackedWriter
from fluence.study import Study

SIZE_PX = 24
UNITS = np.arange(0, 125, 5)
"""Units of each layer that are kept to be looked at."""
LAYERS = {"vgg16-5": 3}
"""Convolutions of models that have more than two."""
TERMS = {"sparse": {"sparsity/kl/conv1": 3.0, "sparsity/kl/conv2": 5.0}}
"""What models have beyond a reconstruction error and KL, and its value in the first epoch."""
ENDS = {
    "small-white-male-s1": ("diverged", "train: the loss became NaN in epoch 3 & <b>stopped</b>"),
    "vgg16-5-white-male-s0": ("skipped", "train: 12 training images, fewer than data.min_group_size = 20"),
}
"""Runs that came to nothing."""
CELLS = [(e, s) for e in ("Asian", "Black", "White") for s in ("Female", "Male")]


@dataclass(frozen=True)
class MadeStudy:
    """A study folder and what `fluence run` would know about it."""

    study: Study
    layout: Layout
    runs: list[RunRow]


def settings(**changes: object) -> dict[str, object]:
    """The invented study, as its file would say it."""
    return {
        "name": "invented",
        "description": "Do sparse activations predict beauty? <script>alert(2)</script>",
        "data": {
            "datasets": {
                "web": {"kind": "folder", "root": "/web"},
                "jury": {"kind": "csv", "root": "/jury"},
            },
            "training": "web",
            "rated": "jury",
            "image_size_px": SIZE_PX,
        },
        "models": {
            "small": {"kind": "vae"},
            "vgg16-5": {"kind": "vae", "architecture": "vgg16-5", "reconstruction": [{"loss": "l1"}]},
            "untrained": {"kind": "vae", "training": {"epochs": 0}},
        },
        "training": {"epochs": 8},
        "analysis": {
            "permutations": 99,
            "bootstrap": 99,
            "ridge": {"folds": 3, "repeats": 1},
            "embeddings": ["pca"],
        },
        "grid": {"groups": ["all", "asian-female", "white-male"], "seeds": [0, 1]},
    } | changes


def faces(rng: np.random.Generator, count: int, light: np.ndarray) -> np.ndarray:
    """Ellipses with eyes, uint8 [count, SIZE_PX, SIZE_PX, 3]: enough to see an image and its blurred copy."""
    y, x = np.mgrid[-1 : 1 : SIZE_PX * 1j, -1 : 1 : SIZE_PX * 1j]
    skin = rng.uniform(0.3, 0.9, (count, 1, 1, 1)) * np.array([1.0, 0.8, 0.7]) * light[:, None, None, None]
    shape = (x**2 / 0.45 + y**2 / 0.75)[None] < rng.uniform(0.8, 1.1, (count, 1, 1))
    eyes = ((np.abs(x) - 0.3) ** 2 + (y + 0.2) ** 2 < 0.012)[None, ..., None]
    pixels = np.where(shape[..., None], skin, rng.uniform(0, 1, (count, 1, 1, 3)))
    return (255 * np.clip(np.where(eyes, 0.05, pixels), 0, 1)).astype(np.uint8)


def blurred(pixels: np.ndarray) -> np.ndarray:
    """What a poor autoencoder makes of images."""
    shifted = [np.roll(pixels.astype(float), (dy, dx), (1, 2)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return np.mean(shifted, axis=0).astype(np.uint8)


def manifest(rng: np.random.Generator, count: int, effect: float, prefix: str) -> tuple[pd.DataFrame, np.ndarray]:
    """A table of images, and the hidden property that their beauty depends on."""
    cells = [CELLS[number % len(CELLS)] for number in range(count)]
    hidden, light = rng.normal(size=count), rng.uniform(0.5, 1, count)
    group_effect = np.array([0.5 * (sex == "Female") for _, sex in cells])
    beauty = 5 + effect * hidden + group_effect + 0.8 * light + rng.normal(size=count)
    table = pd.DataFrame(
        {
            "image_id": [f"{prefix}{number:04d}" for number in range(count)],
            "path": [f"{prefix}{number:04d}.jpg" for number in range(count)],
            "sha256": [f"hash of {prefix}{number}" for number in range(count)],
            "ethnicity": [cell[0] for cell in cells],
            "sex": [cell[1] for cell in cells],
            "beauty": beauty,
            "beauty_sd": 1.5,
            "n_ratings": 30.0,
            "luminance_mean": light,
            "luminance_contrast": rng.uniform(0.1, 0.3, count),
            "pixel_gini": 0.3 - 0.1 * light + rng.normal(0, 0.02, count),
        }
    )
    return table, hidden


def write_packed(path: Path, table: pd.DataFrame, rng: np.random.Generator, problems: pd.DataFrame) -> np.ndarray:
    pixels = faces(rng, len(table), table["luminance_mean"].to_numpy())
    with PackedWriter(path, SIZE_PX, {"key": "k"}) as writer:
        writer.append(pixels)
        writer.finish(table, problems)
    return pixels


def write_training_log(layout: Layout, run: Run, rng: np.random.Generator, epochs: int) -> None:
    layout.run(run.id).mkdir(parents=True)
    term = "reconstruction/l1" if run.model == "vgg16-5" else "reconstruction/l2"
    rows = []
    for epoch in range(1, epochs + 1):
        for phase, factor in (("train", 1.0), ("validation", 1.08)):
            error, kl = factor * 90 / epoch + rng.uniform(5, 8), 12 + 2 * np.log(epoch) + rng.uniform(0, 0.5)
            row = {"epoch": epoch, "step": 10 * epoch, "phase": phase, "loss": error + kl, term: error, "kl": kl}
            row |= {name: factor * first / epoch for name, first in TERMS.get(run.model, {}).items()}
            rows.append(row)
    layout.metrics_log(run.id).write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_activations(
    layout: Layout, run: Run, ids: list[str], hidden: np.ndarray, pixels: np.ndarray, training: np.ndarray
) -> None:
    """Activations that are the sparser the larger the hidden property is, the more so in deeper layers."""
    rng = np.random.default_rng(zlib.crc32(run.label.encode()))
    names = [*(f"conv{number + 1}" for number in range(LAYERS.get(run.model, 2))), "mu"]
    layers = [LayerInfo(name, (8, 4, 4), "post", "latent" if name == "mu" else "conv") for name in names]
    known = 0.0 if run.model == "untrained" else 1.0
    values, reference = {}, {}
    for depth, name in enumerate(names, start=1):
        spread = np.exp(0.25 * known * depth / len(names) * hidden + 0.15 * rng.normal(size=len(ids)))
        values[name] = np.maximum(rng.normal(size=(len(ids), 128)), 0) ** spread[:, None]
        reference[name] = np.maximum(rng.normal(size=(16, 128)), 0)
    probes = {name: rng.uniform(0.1, 0.4, len(ids)) for name in ("l1_error", "l2_error", "ssim_error")}
    with ActivationWriter(
        layout.activations(run.id),
        key="k",
        image_ids=ids,
        reference_ids=[f"t{number:04d}" for number in range(16)],
        layers=layers,
        probes=list(probes),
        units={name: UNITS for name in names},
    ) as writer:
        writer.write_reference(0, reference)
        shown = rng.permutation(12)  # readers go by the ids, not by the order
        writer.write_samples("rated", [ids[n] for n in shown], pixels[shown], blurred(pixels[shown]))
        writer.write_samples("training", [f"t{n:04d}" for n in range(8)], training[:8], blurred(training[:8]))
        writer.write_exhibits(exhibits(ids, pixels, values))
        writer.write_block(0, values, probes, {name: values[name][:, UNITS] for name in names})
        writer.finish()


def exhibits(ids: list[str], pixels: np.ndarray, values: dict[str, np.ndarray]) -> Exhibits:
    """Of three images: all maps, and the way from each to the next as a fade."""
    shown = [0, len(ids) // 2, len(ids) - 1]
    layers = {}
    for name, all_values in values.items():
        own = all_values[shown]
        histograms = [np.histogram(one[one != 0], 16) for one in own]
        counts, edges = (np.stack(part) for part in zip(*histograms, strict=True))
        layers[name] = LayerShown(own.reshape(3, 8, 4, 4).astype(np.float16), 1, counts, edges, (own == 0).sum(1))
    faded = [pixels[a] * (1 - t) + pixels[b] * t for a, b in pairwise(shown) for t in np.linspace(0, 1, 8)]
    ways = np.reshape(faded, (2, 8, SIZE_PX, SIZE_PX, 3)).astype(np.uint8)
    return Exhibits([ids[row] for row in shown], pixels[shown], layers, ways)


def grid(study: Study, ends: dict[str, tuple[str, str]]) -> list[RunRow]:
    """Every run, those in `ends` with what became of them."""
    rows = []
    for model, group, seed in study.trainings:
        run = Run(model, group, seed, f"{model}-{group}-s{seed}-1a2b3c4d")
        rows.append(RunRow(run, *ends.get(run.label, ("done", ""))))
    return rows


def build(
    root: Path,
    *,
    effect: float = 0.6,
    num_images: int = 198,
    ends: dict[str, tuple[str, str]] = ENDS,
    **changes: object,
) -> MadeStudy:
    """Writes the folder of an invented study and analyses it."""
    study, layout = Study.model_validate(settings(**changes)), Layout(root)
    rng = np.random.default_rng(5)
    table, hidden = manifest(rng, num_images, effect, "j")
    problems = pd.DataFrame(
        [
            ("j9001", "<img src=x onerror=alert(1)>.jpg", 7.0, "truncated: 312 of 90211 bytes", 0.0),
            ("j0003", "j0003.jpg", 5.0, "the same picture as j0002", 1.0),
        ],
        columns=["image_id", "path", "line", "reason", "kept"],
    )
    pixels = write_packed(layout.packed(study.data.rated), table, rng, problems)
    training_table, _ = manifest(rng, 60, effect, "t")
    training = write_packed(layout.packed("web"), training_table, rng, problems.iloc[:0])
    runs = grid(study, ends)
    for row in runs:
        trained = study.training_of(row.run.model).epochs
        if row.status in ("done", "diverged", "unfinished"):
            write_training_log(layout, row.run, rng, 3 if row.status == "diverged" else trained)
        if row.status == "done":
            write_activations(layout, row.run, list(table["image_id"]), hidden, pixels, training)
            asked = asked_typicality(study, layout)
            maps, asks = asked_embeddings(study, row.run), study.analysis
            measure(row.run, layout, asks.epsilon, asks.sparsity, key="k", typicality=asked, embeddings=maps)
        made = provenance(time.time(), {"pack/web": "k"}) if row.status == "done" else {}
        write_outcome(layout.outcome("train", row.run.id), Outcome(row.status, "0a1b2c3d", row.reason, {}, made))
    analyse(study, layout, runs, num_workers=1)
    return MadeStudy(study, layout, runs)
