"""Settings of the terms that a training minimises: reconstruction, sparsity, and what ties latents to attributes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fluence.study.section import Name, NotNegative, Positive, Section

Layers = (
    Literal["everywhere", "all but conv1", "all but conv1 and the means", "none"]
    | Annotated[tuple[str | Annotated[int, Field(ge=1)], ...], Field(min_length=1)]
)
"""Layers of an encoder: in words (the means are the layer `mu`), or a list of names, or of numbers from 1."""

# ── Reconstruction ───────────────────────────────────────────────────────────────────────────────────────────────


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


class VggFeatures(Section):
    """The convolutions of a VGG that learned ImageNet."""

    kind: Literal["vgg16", "vgg19"]
    """Which VGG, without batch normalisation."""
    weights: str = "imagenet"
    """`imagenet` (looked for in `$TORCH_HOME/hub/checkpoints`), the path of a weights file, or `random`, which is
    named so in every output."""


class FaceFeatures(Section):
    """VGGFace: the convolutions of a VGG16 that learned to tell faces apart (Parkhi et al. 2015)."""

    kind: Literal["vggface"]
    """VGGFace."""
    weights: str
    """Path of the weights file: a state dict with `conv1_1.weight` … `conv5_3.bias`, as of `vgg_face_dag.pth`, or with
    torchvision's names `features.0.weight` …; or `random`, which is named so in every output."""


class AttganFeatures(Section):
    """The encoder of AttGAN (He et al. 2019): five convolutions that each halve the map."""

    kind: Literal["attgan"]
    """Encoder of AttGAN."""
    weights: str
    """Path of the weights file: a state dict in which the encoder's five convolutions stand in order, each followed by
    its batch normalisation; or `random`, which is named so in every output."""
    slope: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Slope of the leaky ReLU below 0, which no weights file tells. `null`: .2 as in the paper, or .01, PyTorch's own,
    if the layers are named `enc_layers.0.layers.0` … as in the PyTorch port that was trained with it."""


class ModelFeatures(Section):
    """The encoder of another model of this study, trained before."""

    kind: Literal["model"]
    """A model of this study."""
    model: Name
    """Its name. The run with the same seed is used, and waited for."""
    group: str = "all"
    """The group that it was trained on."""

    @property
    def label(self) -> str:
        """Model and group, as in the name of a run."""
        return f"{self.model}-{self.group}"


Features = Annotated[VggFeatures | FaceFeatures | AttganFeatures | ModelFeatures, Field(discriminator="kind")]


class DfcLoss(Section):
    """Deep feature consistency (Hou et al. 2017): half the mean squared difference of features, summed over layers."""

    loss: Literal["dfc"]
    """Deep feature consistency."""
    network: Features = VggFeatures(kind="vgg19")
    """The network whose features are compared. It is frozen."""
    layers: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names of its layers, such as `relu3_1` of a VGG; `null`: relu1_1, relu2_1 and relu3_1 of a VGG, every
    convolution of another network."""
    weight: Positive = 1.0
    """Factor of this term. A mean weighs little beside a sum over pixels: look at the effective β."""


Reconstruction = Annotated[PixelLoss | SsimLoss | LpipsLoss | DfcLoss, Field(discriminator="loss")]

# ── Sparsity of the activations ──────────────────────────────────────────────────────────────────────────────────


class KlSparsity(Section):
    """β Σ KL(ρ ‖ ρ̂) over units, where ρ̂ is a unit's mean squashed activation over the batch (Ng 2011)."""

    penalty: Literal["kl"]
    """Kullback-Leibler divergence from a low mean activation."""
    rho: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """ρ, the mean activation that is wanted."""
    weight: Positive = 1.0
    """β, the factor of this term."""
    squash: Literal["rational", "exponential", "sigmoid"] = "rational"
    """How an activation comes into 0 … 1: `rational` |x|/(1+|x|), `exponential` 1 − e^−|x|, `sigmoid` 1/(1+e^−x)."""
    layers: Layers = "everywhere"
    """The layers that are constrained."""


class L1Sparsity(Section):
    """Mean over images of the summed magnitudes of the activations."""

    penalty: Literal["l1"]
    """Sum of magnitudes."""
    weight: Positive = 1e-3
    """Factor of this term."""
    layers: Layers = "everywhere"
    """The layers that are constrained."""


class L0Sparsity(Section):
    """Hard concrete gates on channels, and the expected number of open ones (Louizos et al. 2018)."""

    penalty: Literal["l0"]
    """Expected number of open channels."""
    weight: Positive = 1.0
    """Factor of this term."""
    temperature: Annotated[float, Field(gt=0, lt=1)] = 2 / 3
    """How smooth the gates are in training."""
    layers: Layers = "everywhere"
    """The layers whose channels get gates. The means have none."""


Sparsity = Annotated[KlSparsity | L1Sparsity | L0Sparsity, Field(discriminator="penalty")]

# ── Attributes of the images ─────────────────────────────────────────────────────────────────────────────────────


class Attribute(Section):
    """One latent unit that is to rise with an attribute of the image (Pati & Lerch 2021)."""

    column: str
    """A numeric column of the packed training images, such as `beauty` or `luminance_mean`. Images without a value
    take no part."""
    unit: Annotated[int, Field(ge=0)]
    """Number of the latent unit, from 0, in the order (channel, row, column)."""
    weight: NotNegative = 10.0
    """γ, the factor of this term."""
    delta: Positive = 1.0
    """δ: how sharply differences of the latent unit count."""
