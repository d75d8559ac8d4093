"""Each run's code in the plane: PCA, t-SNE and UMAP of the latents, one point per rated image.

    image_id, method, x, y                  metrics/<run>.embedding.parquet
        attributes                          layer, seed, num_images (of the run), reason (why there are no points), and
                                            of each method its `facts`: trustworthiness and its neighbours, the setting
                                            that says how local it is, of PCA the share of the variance on each axis

All is seeded and computed by one thread, so that the same latents have the same bits on any number of cores.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from fluence.errors import StudyError
from fluence.layout import Run
from fluence.store.activations import Activations
from fluence.store.files import write_tables
from fluence.study import EmbeddingMethod, Study

MIN_IMAGES = 10
"""Fewer images than this have no neighbourhoods to keep."""
MOST_IMAGES = 3000
"""More marks than this fill a panel: of more images, as many are drawn at random."""

_COMPONENTS = 50  # what t-SNE and UMAP see of larger codes
_PERPLEXITY = 30.0
_NEIGHBOURS = 15

Facts = dict[str, float]


@dataclass(frozen=True)
class Asked:
    """What is asked about a run's latents.

    Attributes:
        methods: `pca`, `tsne`, `umap`.
        seed: of everything random.
    """

    methods: tuple[EmbeddingMethod, ...]
    seed: int


def asked_embeddings(study: Study, run: Run) -> Asked | None:
    """What a study asks about a run's latents; None if nothing.

    Raises:
        StudyError: UMAP is asked for and not installed.
    """
    methods = study.embeddings_of(run.model, run.group, run.seed)
    if reason := why_not(methods):
        raise StudyError(f"analysis.embeddings: {reason}")
    return Asked(methods, study.analysis.seed) if methods else None


def why_not(methods: Sequence[EmbeddingMethod]) -> str:
    """Which package is lacking, and what to type; empty if all are there."""
    if "umap" in methods and importlib.util.find_spec("umap") is None:
        return "umap needs the package umap-learn; type pip install 'fluence[umap]', or leave umap out of the list"
    return ""


def write_embedding(source: Activations, asked: Asked, path: Path, key: str) -> None:
    """Puts the latents of every image (or of as many as a figure can show) into the plane, and writes where they lie.

    Args:
        source: the run's activations.
        asked: the methods.
        path: the file.
        key: hash of what determines the metrics; kept in the file.

    Raises:
        ArtifactError: the disk is full or the folder is not writable.
    """
    chosen = _drawn(len(source.image_ids), asked.seed)
    layer, latents, reason = _latents(source, chosen)
    found = {} if reason else dict(_embedded(latents, asked))
    tables = [_points(source.image_ids[chosen], method, points) for method, (points, _) in found.items()]
    about: dict[str, Any] = {"kind": "embedding", "format": 1, "key": key, "seed": asked.seed, "layer": layer}
    about |= {"num_images": len(source.image_ids), "reason": reason}
    facts = {method: one for method, (_, one) in found.items()}
    write_tables(path, tables or [_points(source.image_ids[:0], "", np.zeros((0, 2)))], about | {"facts": facts})


def _drawn(num_images: int, seed: int) -> np.ndarray:
    """Rows of the images that are shown, in their order."""
    if num_images <= MOST_IMAGES:
        return np.arange(num_images)
    return np.sort(np.random.default_rng(seed).choice(num_images, MOST_IMAGES, replace=False))


def _latents(source: Activations, rows: np.ndarray) -> tuple[str, np.ndarray, str]:
    """Name of the layer, its values float32 [images, units], and why it cannot be shown; empty if it can."""
    codes = [layer for layer in source.layers if layer.kind == "latent"]
    nothing = np.zeros((0, 0), dtype=np.float32)
    if not codes:
        return "", nothing, "the code was not recorded (record.layers)"
    layer = codes[-1]
    if layer not in source.stored:
        return layer.name, nothing, f"of {layer.name} only histograms are kept (record.store: metrics)"
    if len(rows) < MIN_IMAGES:
        return layer.name, nothing, f"{len(rows)} images, fewer than {MIN_IMAGES}"
    values = source.read(layer.name, 0, len(source.image_ids))[rows].astype(np.float32)
    varies = bool((values != values[0]).any())
    return layer.name, values, "" if varies else f"{layer.name} is the same for all images"


def _points(image_ids: np.ndarray, method: str, points: np.ndarray) -> pd.DataFrame:
    x, y = points.astype(np.float64).T
    return pd.DataFrame({"image_id": image_ids, "method": np.repeat(method, len(image_ids)), "x": x, "y": y})


# ── Methods ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _embedded(latents: np.ndarray, asked: Asked) -> Iterator[tuple[str, tuple[np.ndarray, Facts]]]:
    """Method → points [images, 2] and facts."""
    from sklearn.manifold import trustworthiness

    neighbours = min(_NEIGHBOURS, (len(latents) - 1) // 2)
    with threadpool_limits(1):
        components, shares = _components(latents, asked.seed)
        for method in dict.fromkeys(asked.methods):
            if method == "pca":
                points, facts = components[:, :2], {"share_x": shares[0], "share_y": shares[1]}
            elif method == "tsne":
                points, facts = _tsne(components, asked.seed)
            else:
                points, facts = _umap(components, asked.seed)
            trust = float(trustworthiness(latents, points, n_neighbors=neighbours))
            yield method, (points, facts | {"trustworthiness": trust, "neighbours": neighbours})


def _components(latents: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The first principal components [images, k] (two at least), and each one's share of the variance."""
    from sklearn.decomposition import PCA

    pca = PCA(min(_COMPONENTS, *latents.shape), random_state=seed)
    components, shares = pca.fit_transform(latents), pca.explained_variance_ratio_
    lacking = max(0, 2 - components.shape[1])  # a code of one number
    return np.pad(components, ((0, 0), (0, lacking))), np.pad(shares, (0, lacking)).astype(float)


def _tsne(components: np.ndarray, seed: int) -> tuple[np.ndarray, Facts]:
    """Source: van der Maaten & Hinton 2008; begun from the components, after Kobak & Berens 2019."""
    from sklearn.manifold import TSNE

    perplexity = min(_PERPLEXITY, (len(components) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed).fit_transform(components)
    return points, {"perplexity": perplexity}


def _umap(components: np.ndarray, seed: int) -> tuple[np.ndarray, Facts]:
    """Source: McInnes, Healy & Melville 2018."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # it misses TensorFlow, which nothing here needs
        from umap import UMAP

    neighbours = min(_NEIGHBOURS, len(components) - 1)
    points = UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1).fit_transform(components)
    return points, {"num_neighbours": neighbours}
