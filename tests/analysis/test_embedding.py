from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA

from analysis import embedding, embedding_words
from analysis.embedding import Asked, asked_embeddings, write_embedding
from analysis.measure import measure
from fluence.errors import StudyError
from fluence.layout import Layout, Run
from fluence.store.activations import Activations, ActivationWriter, LayerInfo
from fluence.store.files import read_table
from fluence.study import EmbeddingMethod, Epsilon, Study
from tests.analysis.invented_study import settings

RUN = Run("small", "all", 0, "small-all-s0-1a2b3c4d")


def clouds(num_images: int, num_units: int = 12, seed: int = 0) -> np.ndarray:
    """Two clouds of latents, [images, units]: the first half of the images in one, the second half in the other."""
    values = np.random.default_rng(seed).normal(size=(num_images, num_units))
    values[num_images // 2 :, 0] += 12
    return values


def activations(layout: Layout, latents: np.ndarray, kind: str = "latent") -> Path:
    ids = [f"j{number:04d}" for number in range(len(latents))]
    layer = LayerInfo("mu", (latents.shape[1], 1, 1), "post", kind)  # type: ignore[arg-type]
    path = layout.activations(RUN.id)
    with ActivationWriter(
        path, key="k", image_ids=ids, reference_ids=["t0"], layers=[layer], probes=["l1_error"]
    ) as writer:
        writer.write_reference(0, {"mu": latents[:1]})
        writer.write_block(0, {"mu": latents}, {"l1_error": np.arange(len(ids), dtype=float)})
        writer.finish()
    return path


def embedded(tmp_path: Path, latents: np.ndarray, *methods: EmbeddingMethod, kind: str = "latent") -> pd.DataFrame:
    layout = Layout(tmp_path)
    with Activations(activations(layout, latents, kind)) as source:
        write_embedding(source, Asked(methods, 3), layout.embedding(RUN.id), "k")
    return read_table(layout.embedding(RUN.id))


@pytest.mark.parametrize(
    "methods", [("pca", "tsne"), pytest.param(("umap",), marks=pytest.mark.slow)]
)  # umap compiles when it is imported
def test_every_image_has_a_point_by_each_method_and_clouds_stay_apart(
    tmp_path: Path, methods: tuple[EmbeddingMethod, ...]
) -> None:
    table = embedded(tmp_path, clouds(60), *methods)
    assert list(table.columns) == ["image_id", "method", "x", "y"]
    assert table.groupby("method", sort=False)["image_id"].nunique().to_dict() == dict.fromkeys(methods, 60)
    for method, rows in table.groupby("method", sort=False):
        first, second = np.split(rows[["x", "y"]].to_numpy(), 2)
        between = np.linalg.norm(first.mean(axis=0) - second.mean(axis=0))
        assert between > 2 * first.std(axis=0).max(), method
        assert table.attrs["facts"][method]["trustworthiness"] > 0.7
    assert table.attrs["layer"] == "mu"


def test_pca_is_that_of_scikit_learn(tmp_path: Path) -> None:
    latents = clouds(40).astype(np.float16).astype(np.float64)
    table = embedded(tmp_path, latents, "pca")
    expected = PCA(2).fit(latents)
    found = table[["x", "y"]].to_numpy()
    assert np.abs(found) == pytest.approx(np.abs(expected.transform(latents)), abs=1e-4)
    shares = [table.attrs["facts"]["pca"][f"share_{axis}"] for axis in "xy"]
    assert shares == pytest.approx(expected.explained_variance_ratio_, rel=1e-4)


def test_the_same_latents_give_the_same_bits(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        embedded(tmp_path / folder, clouds(30), "pca", "tsne")
    first, second = (Layout(tmp_path / folder).embedding(RUN.id).read_bytes() for folder in ("a", "b"))
    assert first == second


@pytest.mark.parametrize(
    ("latents", "kind", "reason"),
    [
        (clouds(9), "latent", "9 images, fewer than 10"),
        (np.ones((12, 4)), "latent", "mu is the same for all images"),
        (clouds(12), "conv", "the code was not recorded (record.layers)"),
    ],
)
def test_where_nothing_can_be_shown_the_file_says_why(
    tmp_path: Path, latents: np.ndarray, kind: str, reason: str
) -> None:
    table = embedded(tmp_path, latents, "pca", "tsne", kind=kind)
    assert table.empty
    assert table.attrs["reason"] == reason


def test_a_code_of_one_number_lies_on_a_line(tmp_path: Path) -> None:
    table = embedded(tmp_path, clouds(20, 1), "pca", "tsne")
    assert (table.query("method == 'pca'")["y"] == 0).all()
    assert np.isfinite(table.query("method == 'tsne'")[["x", "y"]]).all(axis=None)


def test_ten_images_are_enough(tmp_path: Path) -> None:
    table = embedded(tmp_path, clouds(10), "pca", "tsne")
    assert len(table) == 20
    assert table.attrs["facts"]["tsne"]["perplexity"] == 3


@pytest.mark.slow  # umap compiles when it is imported
def test_umap_of_ten_images_sees_them_all(tmp_path: Path) -> None:
    table = embedded(tmp_path, clouds(10), "umap")
    assert table.attrs["facts"]["umap"]["num_neighbours"] == 9
    again = embedded(tmp_path, clouds(10), "umap")
    assert again.equals(table)


def test_of_very_many_images_some_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "MOST_IMAGES", 20)
    table = embedded(tmp_path, clouds(50), "pca")
    assert table["image_id"].is_unique
    assert list(table["image_id"]) == sorted(table["image_id"])
    assert (len(table), table.attrs["num_images"]) == (20, 50)


def test_only_the_general_run_of_the_first_seed_is_shown() -> None:
    study = Study.model_validate(settings(analysis={}))
    runs = [Run(*cell, "x") for cell in study.trainings]
    asked = {run.label: one for run in runs if (one := asked_embeddings(study, run))}
    assert asked == dict.fromkeys(("small-all-s0", "vgg16-5-all-s0", "untrained-all-s0"), Asked(("pca", "tsne"), 0))


def test_umap_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    analysis = {"permutations": 99, "bootstrap": 99, "embeddings": ["umap"]}
    study = Study.model_validate(settings(analysis=analysis))
    with pytest.raises(StudyError, match=r"analysis\.embeddings: umap needs .*pip install 'fluence\[umap\]'"):
        asked_embeddings(study, RUN)


def test_measuring_writes_the_map_and_removes_one_that_is_no_longer_asked_for(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    activations(layout, clouds(20))
    measure(RUN, layout, Epsilon(), key="k", embeddings=Asked(("pca",), 0))
    assert len(read_table(layout.embedding(RUN.id))) == 20
    measure(RUN, layout, Epsilon(), key="l")
    assert not layout.embedding(RUN.id).exists()


def test_the_methods_name_what_was_asked_for() -> None:
    assert embedding_words.sentence(()) == ""
    words = embedding_words.sentence(("pca", "umap"))
    assert "principal components and UMAP (McInnes" in words
    assert "t-SNE" not in words
    assert embedding_words.cited(("pca", "umap")) == ["umap", "trust"]
    assert embedding_words.cited(()) == []
