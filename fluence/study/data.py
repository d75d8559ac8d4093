"""Settings of the images: which data sets there are, and how they become pixels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fluence.study.section import Name, Section


class ImageSet(Section):
    """What every kind of data set on disk has in common."""

    root: str
    """Folder of the data set. `~` and environment variables such as `${FACES}` are expanded."""
    values: dict[str, dict[str, str]] = {}
    """Renames values of a column, so that two data sets speak of the same groups:
    `ethnicity: {East Asian: asian, Southeast Asian: asian}`. The original is kept in `source_<column>`."""
    redistribute: bool = False
    """Whether images and ratings may leave your laboratory. `false` keeps them out of every export."""


class CsvDataset(ImageSet):
    """Any folder of images with a table (CSV) that has one row per image."""

    kind: Literal["csv"]
    """A table with one row per image."""
    manifest: str = "manifest.csv"
    """The table, relative to `root`. It needs a column `path` (relative to `root`); `image_id`, `beauty`,
    `beauty_sd`, `n_ratings`, `ethnicity`, `sex`, `age`, `person_id`, `split` are understood; others are kept."""
    columns: dict[str, str] = {}
    """Standard name: name in your table, for example `beauty: attractiveness_mean`."""


class FolderDataset(ImageSet):
    """Images in folders that name their group, such as `asian/female/x.jpg`."""

    kind: Literal["folder"]
    """Folders that name the groups."""
    levels: tuple[str, ...] = ("ethnicity", "sex")
    """What each level of folders names, from the outermost."""


class CfdDataset(ImageSet):
    """Chicago Face Database 3.0, as downloaded: the folder `Images` and the norming workbook."""

    kind: Literal["cfd"]
    """Chicago Face Database 3.0."""
    subsets: tuple[Literal["CFD", "CFD-MR", "CFD-INDIA"], ...] = ("CFD",)
    """`CFD-INDIA` is rated on another scale and by other raters; pool it with the others only on purpose."""
    india_raters: Literal["US", "INDIA"] = "US"
    """Which of the two rater pools of CFD-INDIA to read."""


class FairFaceDataset(ImageSet):
    """FairFace, as downloaded: two label files and the folders `train` and `val`. It has no ratings."""

    kind: Literal["fairface"]
    """FairFace."""
    padding: Literal["0.25", "1.25"] = "0.25"
    """Which of the two published croppings to read (write it in quotes)."""


class Effect(Section):
    """The dependence of beauty on a property of the synthetic images."""

    property: Literal["edge_sparsity"] = "edge_sparsity"
    """`edge_sparsity`: Gini index of the image's gradient magnitudes, standardised within its group."""
    r2: Annotated[float, Field(ge=0, le=0.95)] = 0.2
    """Share of the variance of true beauty that the property explains (0 plants nothing)."""


class SyntheticDataset(Section):
    """Parametric faces drawn by fluence itself, with beauty scores whose cause is known."""

    kind: Literal["synthetic"]
    """Faces that fluence draws."""
    num_images: Annotated[int, Field(ge=1)] = 600
    """Number of faces, spread evenly over the groups."""
    num_ethnicities: Annotated[int, Field(ge=1, le=6)] = 3
    """Number of ethnicity-like clusters of face parameters; each comes in both sexes."""
    effect: Effect | None = Effect()
    """The planted effect; `null` plants none (the negative control)."""
    num_raters: Annotated[int, Field(ge=1)] = 20
    """Number of simulated raters, each in a column `rater_00`, `rater_01`, …"""
    rater_noise_sd: Annotated[float, Field(ge=0)] = 1.0
    """Standard deviation of one rater's error, in units of the standard deviation of true beauty."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the faces and the ratings."""
    values: dict[str, dict[str, str]] = {}
    """As for other data sets."""
    redistribute: bool = True
    """Synthetic faces belong to nobody."""


Dataset = Annotated[
    CsvDataset | FolderDataset | CfdDataset | FairFaceDataset | SyntheticDataset, Field(discriminator="kind")
]


class Data(Section):
    """Which images the models learn from, which ones were rated, and how they become pixels."""

    datasets: Annotated[dict[Name, Dataset], Field(min_length=1)]
    """The image sets, by a name of your choice."""
    training: str
    """The data set that models are trained on."""
    rated: str
    """The data set with beauty ratings. It may be the training set, if you have no other; the report says so."""
    score: str = "beauty"
    """The column that holds the ratings to be explained."""
    group_by: Annotated[tuple[str, ...], Field(min_length=1)] = ("ethnicity", "sex")
    """Columns whose combinations are the groups, such as `asian-female`."""
    image_size_px: Annotated[int, Field(ge=8, le=1024)] = 64
    """Side of the square images that the networks see, in pixels."""
    fit: Literal["crop", "pad"] = "crop"
    """How an oblong image becomes square: cut its longer sides, or pad its shorter ones. Never stretched."""
    min_group_size: Annotated[int, Field(ge=2)] = 20
    """Groups with fewer training images get no model of their own; their runs are skipped and say so."""
