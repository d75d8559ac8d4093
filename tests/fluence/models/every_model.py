"""Settings of one small model for each thing that a model can be; every contract test runs on each of them."""

from __future__ import annotations

from pydantic import TypeAdapter

from fluence.models.autoencoders import HEADS
from fluence.study import Model

LATENTS = {"conv": {"kind": "conv", "channels": 3}, "dense": {"kind": "dense", "size": 7}}
_NARROW = {"width": 1 / 16}


def model(**settings: object) -> Model:
    """A model from settings as they stand in a study; a narrow `vae` by default."""
    return TypeAdapter(Model).validate_python({"kind": "vae"} | _NARROW | settings)


_BOTH = {"separable": {"kernel_px": 5, "parts": ["encoder", "decoder"]}}
_DENSE = {"latent": LATENTS["dense"]}

_CASES: dict[str, dict[str, object]] = {
    # Each kind of model, and each architecture with another latent and norm.
    **{f"{kind}-{latent}": {"kind": kind, "latent": LATENTS[latent]} for kind in HEADS for latent in LATENTS},
    "small-batch": {"norm": "batch"},
    "small-instance": {"norm": "instance"} | _DENSE,
    "small-spectral": {"norm": "spectral"},
    "small-10-batch": {"architecture": "small-10", "norm": "batch"} | _DENSE,
    "vgg16-5": {"architecture": "vgg16-5"},
    "vgg16-10-instance": {"architecture": "vgg16-10", "norm": "instance"},
    "vgg19-5": {"architecture": "vgg19-5"} | _DENSE,
    "vgg19-10-batch": {"architecture": "vgg19-10", "norm": "batch"},
    "alexnet-5": {"architecture": "alexnet-5"},
    "alexnet-10-instance": {"architecture": "alexnet-10", "norm": "instance"} | _DENSE,
    "norm-of-each-part": {"norm": {"encoder": "batch", "latent": "spectral", "decoder": "instance"}} | _DENSE,
    # Each upsampling, whole and separable, and what else a decoder can be.
    "transposed": {"upsampling": "transposed"},
    "nearest-10": {"architecture": "small-10", "upsampling": "nearest"},
    "bilinear-batch": {"upsampling": "bilinear", "norm": "batch"},
    "residual": {"residual": True},
    "residual-10-batch": {"architecture": "small-10", "residual": True, "norm": "batch"},
    "separable": _BOTH,
    "separable-alexnet": {"architecture": "alexnet-5", "separable": {"kernel_px": 3}, "norm": "batch"},
    "separable-transposed-residual-spectral": {"upsampling": "transposed", "residual": True, "norm": "spectral"}
    | _BOTH,
    # Encoders.
    "lwta": {"activation": "lwta"},
    "lwta-batch-separable": {"activation": "lwta", "norm": "batch", "separable": {"kernel_px": 7}},
}

EVERY_MODEL: dict[str, Model] = {name: model(**settings) for name, settings in _CASES.items()}
"""They cover what a study can say; they are not every combination of it."""


def smallest_size_px(settings: Model) -> int:
    """A size that every architecture divides, and that leaves a map to normalise."""
    return 64 if "instance" in (settings.norms.encoder, settings.norms.decoder) else 32
