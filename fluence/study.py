"""The whole schema of a study: every setting that can change a result, and nothing else.

A study is one YAML file. This module only describes it; `fluence.studyfile` reads it. It imports neither torch nor
pandas, so that the command line starts at once.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$")]


class Section(BaseModel):
    """A part of the study file: frozen, and with no room for a misspelt key."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


# ── Data ─────────────────────────────────────────────────────────────────────────────────────────────────────────


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


# ── Models ───────────────────────────────────────────────────────────────────────────────────────────────────────


class PixelLoss(Section):
    """L1 or L2 distance of the pixels, summed over the image."""

    loss: Literal["l1", "l2"]
    """`l1`: absolute differences; `l2`: squared differences."""
    weight: Positive = 1.0
    """Factor of this term."""


class SsimLoss(Section):
    """1 − SSIM (Wang et al. 2004), a mean over the image."""

    loss: Literal["ssim"]
    """Structural similarity."""
    weight: Positive = 1.0
    """Factor of this term. A mean weighs little beside a sum over pixels: try 1000 and look at the effective β."""


class LpipsLoss(Section):
    """Learned perceptual distance (Zhang et al. 2018)."""

    loss: Literal["lpips"]
    """LPIPS."""
    net: Literal["alex", "vgg", "squeeze"] = "vgg"
    """Trunk: `vgg` is meant for training, `alex` for measuring."""
    weights: str = "imagenet"
    """`imagenet` (looked for in `$TORCH_HOME/hub/checkpoints`), the path of a weights file, or `random`, which is
    no perceptual distance and is named so in every output."""
    weight: Positive = 1.0
    """Factor of this term."""


Reconstruction = Annotated[PixelLoss | SsimLoss | LpipsLoss, Field(discriminator="loss")]


class ConvLatent(Section):
    """A latent image: μ and σ come from a convolution and keep their place."""

    kind: Literal["conv"] = "conv"
    """Convolutional latent."""
    channels: Annotated[int, Field(ge=1)] = 16
    """Latent numbers per position of the encoder's last map."""


class DenseLatent(Section):
    """A latent vector: μ and σ come from a fully connected layer."""

    kind: Literal["dense"]
    """Fully connected latent."""
    size: Annotated[int, Field(ge=1)] = 128
    """Number of latent numbers."""


Latent = Annotated[ConvLatent | DenseLatent, Field(discriminator="kind")]


class Training(Section):
    """How a model is trained. A model may override single settings under its own `training:`."""

    epochs: Annotated[int, Field(ge=0)] = 30
    """Passes over the training images. 0 leaves the network untrained: the negative control."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Images per optimiser step over all processes together; the number of processes never changes it."""
    learning_rate: Positive = 1e-3
    """Highest learning rate of Adam."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay (AdamW)."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """`cosine` falls to zero at the last step."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 1.0
    """The learning rate rises linearly over these epochs."""
    kl_warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """The weight of the KL term rises linearly over these epochs; validation always uses the full weight."""
    gradient_clip_norm: Positive | None = 10_000.0
    """Largest L2 norm of the gradient over all parameters; `null` does not clip. Losses are sums over pixels."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto`: bf16 on GPUs that have it, fp16 with loss scaling on older ones such as V100, fp32 on CPU."""
    horizontal_flip: bool = True
    """Mirror half of the training images at random."""
    validation_fraction: Annotated[float, Field(ge=0, lt=0.9)] = 0.1
    """Share of the images held out, unless the data set has a column `split`. The same images for every run."""
    early_stopping_epochs: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many epochs without a better validation loss; `null` trains to the end."""


class TrainingOverride(Section):
    """Settings of `training` that one model changes; what is left out keeps the study's value."""

    epochs: Annotated[int, Field(ge=0)] | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = None
    learning_rate: Positive | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    kl_warmup_epochs: Annotated[float, Field(ge=0)] | None = None


class VaeModel(Section):
    """A convolutional variational autoencoder (Kingma & Welling 2014)."""

    kind: Literal["vae"]
    """Variational autoencoder."""
    architecture: Literal["small", "vgg16-5"] = "small"
    """Encoder and decoder. `small`: 5 convolutions each way. `vgg16-5`: the 13 convolutions of VGG16, 5 back."""
    width: Annotated[float, Field(gt=0, le=4)] = 1.0
    """Multiplies the number of channels of every layer; 0.25 lets VGG16 train on a CPU."""
    latent: Latent = ConvLatent()
    """The latent space."""
    upsampling: Literal["pixelshuffle"] = "pixelshuffle"
    """How the decoder enlarges its maps."""
    norm: Literal["none", "batch", "instance"] = "none"
    """Normalisation after each convolution of encoder and decoder."""
    reconstruction: Annotated[tuple[Reconstruction, ...], Field(min_length=1)] = (PixelLoss(loss="l2"),)
    """Terms of the reconstruction loss; they are added up."""
    kl_weight: Annotated[float, Field(ge=0)] = 1.0
    """β, the weight of the KL divergence from the prior N(0, I)."""
    training: TrainingOverride = TrainingOverride()
    """Training settings of this model alone."""


Model = VaeModel  # becomes a union discriminated by `kind` with the second kind of model


# ── What is recorded, how it is analysed, what is run ────────────────────────────────────────────────────────────


class LpipsProbe(Section):
    """LPIPS between each image and its reconstruction."""

    net: Literal["alex", "vgg", "squeeze"] = "alex"
    """Trunk; `alex` is the one to measure with."""
    weights: str = "imagenet"
    """`imagenet`, a file, or `random` (no perceptual distance; named so in every output)."""


class Record(Section):
    """What is kept of each rated image's way through a network."""

    layers: Literal["encoder"] | Annotated[tuple[str, ...], Field(min_length=1)] = "encoder"
    """`encoder` records every convolution of the encoder and the latent means `mu`; or a list of their names."""
    tap: Literal["post", "pre"] = "post"
    """Record a layer after (`post`) or before (`pre`) its non-linearity."""
    lpips: LpipsProbe | None = None
    """Also measure LPIPS; it needs weights on disk. L1, L2 and SSIM errors are always measured."""
    reference_images: Annotated[int, Field(ge=1)] = 64
    """Training images whose activations are kept to choose ε; never the rated images' own ratings."""
    sample_images: Annotated[int, Field(ge=1, le=64)] = 12
    """Reconstructions kept for the report, of rated and of training images each."""


class Epsilon(Section):
    """The rule that chooses ε of L_ε for each layer, on training images."""

    quantiles: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1)] = (0.25, 0.5, 0.75)
    """ε is this quantile of the layer's non-zero magnitudes over the reference images. All are computed."""
    report: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The quantile that enters the tests; the others are the sweep."""


class Ridge(Section):
    """Nested ridge regression, scored by pooled out-of-fold R²."""

    folds: Annotated[int, Field(ge=2)] = 10
    """Outer folds, shuffled, stratified by group; a person and duplicates stay on one side."""
    repeats: Annotated[int, Field(ge=1)] = 10
    """Random divisions into folds."""


class Analysis(Section):
    """The statistics."""

    epsilon: Epsilon = Epsilon()
    """How ε is chosen."""
    covariates: tuple[str, ...] = ("group", "luminance_mean", "luminance_contrast", "pixel_gini", "age")
    """The confound baseline: `group` and any column of the packed images. One that a data set lacks is left out,
    and the report says so."""
    permutations: Annotated[int, Field(ge=99)] = 999
    """Permutations of the ratings within groups behind every permutation p."""
    bootstrap: Annotated[int, Field(ge=99)] = 999
    """Bootstrap samples behind every interval of a difference of R²."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Level of the intervals."""
    correction: Literal["bh", "max-r"] = "bh"
    """Correction that decides what is called significant: Benjamini-Hochberg or max-|r|. Both are computed."""
    ridge: Ridge = Ridge()
    """The regression."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of folds, permutations and bootstrap."""


class Grid(Section):
    """The runs: every model × group × seed."""

    models: Literal["every"] | Annotated[tuple[str, ...], Field(min_length=1)] = "every"
    """Names of models, or `every`."""
    groups: Annotated[tuple[str, ...], Field(min_length=1)] = ("all",)
    """`all`, and groups such as `asian-female` that get models of their own."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    """Each seed is a training of its own."""


class Study(Section):
    """One study: data, models, training, records, analysis and the grid of runs."""

    name: Name
    """Name of the study and of its folder."""
    description: str = ""
    """What the study asks; printed at the top of the report."""
    data: Data
    """The images."""
    models: Annotated[dict[Name, Model], Field(min_length=1)]
    """The models, by a name of your choice."""
    training: Training = Training()
    """How they are trained."""
    record: Record = Record()
    """What is recorded."""
    analysis: Analysis = Analysis()
    """The statistics."""
    grid: Grid = Grid()
    """What is run."""

    @model_validator(mode="after")
    def _names_exist(self) -> Study:
        for key in ("training", "rated"):
            if getattr(self.data, key) not in self.data.datasets:
                raise ValueError(
                    f"data.{key}: no data set is called {getattr(self.data, key)!r}; "
                    f"there are: {', '.join(self.data.datasets)}"
                )
        for name in self.model_names:
            if name not in self.models:
                raise ValueError(f"grid.models: no model is called {name!r}; there are: {', '.join(self.models)}")
        if self.analysis.epsilon.report not in self.analysis.epsilon.quantiles:
            raise ValueError("analysis.epsilon.report: must be one of analysis.epsilon.quantiles")
        return self

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names of the models in the grid, in the order of the study."""
        return tuple(self.models) if self.grid.models == "every" else self.grid.models

    def training_of(self, model: str) -> Training:
        """The training settings of one model: the study's, with the model's own on top."""
        own = self.models[model].training.model_dump(exclude_none=True)
        return self.training.model_copy(update=own)


def group_slug(values: tuple[str, ...]) -> str:
    """The name of a group, from its values: `("East Asian", "Female")` → `east_asian-female`."""
    return "-".join("".join(c if c.isalnum() else "_" for c in str(value).strip().lower()) for value in values)
