"""Settings of the models: the networks, and what each kind of autoencoder minimises."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from fluence.study.loss import Attribute, DfcLoss, Layers, ModelFeatures, PixelLoss, Reconstruction, Sparsity
from fluence.study.section import NotNegative, Positive, Section
from fluence.study.training import TrainingOverride

# ── Parts of a network ───────────────────────────────────────────────────────────────────────────────────────────


class ConvLatent(Section):
    """A latent image: the code comes from a convolution and keeps its place."""

    kind: Literal["conv"] = "conv"
    """Convolutional latent."""
    channels: Annotated[int, Field(ge=1)] = 16
    """Latent numbers per position of the encoder's last map."""


class DenseLatent(Section):
    """A latent vector: the code comes from a fully connected layer."""

    kind: Literal["dense"]
    """Fully connected latent."""
    size: Annotated[int, Field(ge=1)] = 128
    """Number of latent numbers."""


Latent = Annotated[ConvLatent | DenseLatent, Field(discriminator="kind")]

Norm = Literal["none", "batch", "instance", "spectral"]


class Norms(Section):
    """Normalisation of each part of a network."""

    encoder: Norm = "none"
    """After each convolution of the encoder (`spectral`: of its weights)."""
    latent: Literal["none", "spectral"] = "none"
    """Of the layer that makes the code."""
    decoder: Norm = "none"
    """After each convolution of the decoder but the last (`spectral`: of the weights of all)."""


class Separable(Section):
    """Depthwise-separable convolutions (Howard et al. 2017): one k × k filter per channel, then a 1 × 1 convolution."""

    kernel_px: Literal[3, 5, 7, 9, 11] = 7
    """Side of the filters."""
    parts: Annotated[tuple[Literal["encoder", "decoder"], ...], Field(min_length=1)] = ("encoder",)
    """Where they stand. The first convolution, which sees three colours, and the last one stay whole."""


class CbamAttention(Section):
    """CBAM (Woo et al. 2018): channel gates, then spatial gates, with L1 on the spatial maps."""

    kind: Literal["cbam"]
    """Channels, then places."""
    layers: Layers
    """The layers whose output is gated."""
    weight: NotNegative = 1e-3
    """Factor of the L1 norm of the spatial maps."""
    reduction: Annotated[int, Field(ge=1)] = 16
    """By how much the shared perceptron narrows the channels."""


class SigmoidAttention(Section):
    """Channel gates between 0 and 1, with L1 on the gates."""

    kind: Literal["sigmoid"]
    """Channels alone, each for itself."""
    layers: Layers
    """The layers whose output is gated."""
    weight: NotNegative = 1e-3
    """Factor of the L1 norm of the gates."""
    reduction: Annotated[int, Field(ge=1)] = 16
    """By how much the shared perceptron narrows the channels."""


class SoftmaxAttention(Section):
    """Channel gates that compete: a softmax with temperature, times the number of channels."""

    kind: Literal["softmax"]
    """Channels alone, against each other. In short: `attention: "57-5.0"` for layers 5 and 7, t = 5."""
    layers: Layers
    """The layers whose output is gated."""
    temperature: Positive = 1.0
    """t: large values let all channels through alike, small ones only the strongest."""
    reduction: Annotated[int, Field(ge=1)] = 16
    """By how much the shared perceptron narrows the channels."""


_SHORT_ATTENTION = re.compile(r"(?P<layers>[1-9]+|[1-9]\d?(?:,[1-9]\d?)+)-(?P<temperature>\d+(?:\.\d+)?)")


def _written_out(value: Any) -> Any:
    """`57-5.0` and `4,10-2.5` are short for softmax gates on these layers with this temperature."""
    if isinstance(value, dict):  # behind a validator of our own, pydantic no longer takes a list for a tuple
        return {key: tuple(entry) if isinstance(entry, list) else entry for key, entry in value.items()}
    found = _SHORT_ATTENTION.fullmatch(value) if isinstance(value, str) else None
    if isinstance(value, str) and not found:
        raise ValueError(
            "must be a section with `kind:` cbam, sigmoid or softmax; or null; or layers and temperature of a softmax, "
            f'such as "57-5.0" or "4,10-2.5"; found {value!r}'
        )
    if not found:
        return value
    layers = found["layers"].split(",") if "," in found["layers"] else list(found["layers"])
    return {"kind": "softmax", "layers": tuple(map(int, layers)), "temperature": float(found["temperature"])}


Attention = Annotated[
    CbamAttention | SigmoidAttention | SoftmaxAttention, Field(discriminator="kind"), BeforeValidator(_written_out)
]


class StandardPrior(Section):
    """N(0, I)."""

    kind: Literal["normal"] = "normal"
    """Standard normal."""


class TiltedPrior(Section):
    """N(0, I) tilted by e^(τ‖z‖): the mass of the prior lies on a shell, and σ is fixed to 1 (Floto et al. 2023)."""

    kind: Literal["tilted"]
    """Exponentially tilted Gaussian."""
    tau: NotNegative = 15.0
    """τ: the means are drawn to a shell of radius about √(τ² − D) for D latent numbers, and to the origin where τ is
    below √D; 0 is the standard normal. `fluence check` says the radius."""


Prior = Annotated[StandardPrior | TiltedPrior, Field(discriminator="kind")]

# ── Kinds of model ───────────────────────────────────────────────────────────────────────────────────────────────

ArchitectureName = Literal["small", "small-10", "vgg16-5", "vgg16-10", "vgg19-5", "vgg19-10", "alexnet-5", "alexnet-10"]


class AutoencoderSettings(Section):
    """What every kind of model has in common: an encoder, a code, a decoder and a reconstruction loss."""

    architecture: ArchitectureName = "small"
    """Encoder and number of layers of the decoder. `small`: 5 convolutions each way; `vgg16`, `vgg19`, `alexnet`: the
    convolutions of these networks, with 5 or 10 layers back."""
    width: Annotated[float, Field(gt=0, le=4)] = 1.0
    """Multiplies the number of channels of every layer; 0.25 lets VGG16 train on a CPU."""
    pretrained: str | None = None
    """Start the encoder from `imagenet` (torchvision's weights in `$TORCH_HOME/hub/checkpoints`) or from a weights
    file; `null` starts from random numbers. It needs width 1 and the encoder as its authors built it."""
    latent: Latent = ConvLatent()
    """The latent space."""
    upsampling: Literal["pixelshuffle", "transposed", "nearest", "bilinear"] = "pixelshuffle"
    """How the decoder enlarges its maps: PixelShuffle with ICNR, transposed convolution, or a parameter-free
    enlargement followed by a convolution."""
    residual: bool = False
    """Whether the decoder has residual blocks. The encoder never has: it stays like VGG."""
    norm: Norm | Norms = "none"
    """Normalisation: one word for encoder and decoder (`spectral`: for the whole network), or one for each part."""
    separable: Separable | None = None
    """Depthwise-separable convolutions; `null` has none."""
    activation: Literal["relu", "lwta"] = "relu"
    """Non-linearity of the encoder. `lwta`: of every two neighbouring channels only the larger value passes
    (Srivastava et al. 2013)."""
    attention: Attention | None = None
    """Gates on the encoder's layers; `null` has none."""
    reconstruction: Annotated[tuple[Reconstruction, ...], Field(min_length=1)] = (PixelLoss(loss="l2"),)
    """Terms of the reconstruction loss; they are added up."""
    sparsity: tuple[Sparsity, ...] = ()
    """Constraints on the activations of the encoder; they are added to the loss."""
    training: TrainingOverride = TrainingOverride()
    """Training settings of this model alone."""

    @property
    def compared_models(self) -> tuple[ModelFeatures, ...]:
        """The models of the study whose features a term of the loss compares."""
        networks = (term.network for term in self.reconstruction if isinstance(term, DfcLoss))
        return tuple(network for network in networks if isinstance(network, ModelFeatures))

    @property
    def norms(self) -> Norms:
        """The normalisation of each part."""
        if isinstance(self.norm, Norms):
            return self.norm
        return Norms(encoder=self.norm, latent="spectral" if self.norm == "spectral" else "none", decoder=self.norm)


class VaeModel(AutoencoderSettings):
    """A convolutional variational autoencoder (Kingma & Welling 2014)."""

    kind: Literal["vae"]
    """Variational autoencoder."""
    kl_weight: NotNegative = 1.0
    """β, the weight of the KL divergence from the prior."""
    prior: Prior = StandardPrior()
    """The prior of the latents."""


class ArVaeModel(AutoencoderSettings):
    """A variational autoencoder some of whose latent units follow attributes of the images (Pati & Lerch 2021)."""

    kind: Literal["ar-vae"]
    """Attribute-regularised variational autoencoder."""
    kl_weight: NotNegative = 1.0
    """β, the weight of the KL divergence from the prior."""
    attributes: Annotated[tuple[Attribute, ...], Field(min_length=1)]
    """Which latent unit follows which attribute."""

    @model_validator(mode="after")
    def _one_to_one(self) -> ArVaeModel:
        units = [attribute.unit for attribute in self.attributes]
        columns = [attribute.column for attribute in self.attributes]
        if len(set(units)) < len(units):
            raise ValueError(f"attributes: a latent unit can follow one attribute; found units {units}")
        if len(set(columns)) < len(columns):
            raise ValueError(f"attributes: one latent unit can follow an attribute; found columns {columns}")
        return self


class AeModel(AutoencoderSettings):
    """An autoencoder: the code is a plain function of the image, and nothing limits it but its size."""

    kind: Literal["ae"]
    """Plain autoencoder."""


class VqVaeModel(AutoencoderSettings):
    """An autoencoder whose code is made of entries of a learned codebook (van den Oord et al. 2017).

    Its recorded layer `mu` is the code before it is quantised.
    """

    kind: Literal["vq-vae"]
    """Vector-quantised autoencoder."""
    latent: ConvLatent = ConvLatent()
    """The latent image; each of its positions becomes one entry of the codebook."""
    codebook_size: Annotated[int, Field(ge=2)] = 512
    """K, the number of entries."""
    commitment_weight: NotNegative = 0.25
    """β, which keeps the encoder near the entries it chose."""


class PixelsModel(Section):
    """No network: the image itself is the only layer, `pixels`. The control for what needs no visual system.

    It is neither trained nor specialised: it makes one run, whatever groups and seeds the grid has.
    """

    kind: Literal["pixels"]
    """The pixels of the image."""

    @property
    def training(self) -> TrainingOverride:
        """There is nothing to train."""
        return TrainingOverride(epochs=0)

    @property
    def reconstruction(self) -> tuple[Reconstruction, ...]:
        """None: nothing is reconstructed."""
        return ()

    @property
    def sparsity(self) -> tuple[Sparsity, ...]:
        """No constraint."""
        return ()

    @property
    def attention(self) -> Attention | None:
        """No gates."""
        return None

    @property
    def pretrained(self) -> str | None:
        """No weights."""
        return None

    @property
    def compared_models(self) -> tuple[ModelFeatures, ...]:
        """No other model is needed."""
        return ()


AutoencoderModel = VaeModel | ArVaeModel | AeModel | VqVaeModel
Model = Annotated[AutoencoderModel | PixelsModel, Field(discriminator="kind")]
