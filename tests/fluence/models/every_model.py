"""Settings of one small model for each thing that a model can be; every contract test runs on each of them."""

from __future__ import annotations

import itertools

from pydantic import TypeAdapter

from fluence.models.architectures import ARCHITECTURES
from fluence.study import Model

LATENTS = {"conv": {"kind": "conv", "channels": 3}, "dense": {"kind": "dense", "size": 7}}
NORMS = ("none", "batch", "instance")
_NARROW = {"width": 1 / 16}


def model(**settings: object) -> Model:
    """A model from settings as they stand in a study; a narrow `vae` by default."""
    return TypeAdapter(Model).validate_python({"kind": "vae"} | _NARROW | settings)


EVERY_MODEL: dict[str, Model] = {
    "-".join(("vae", architecture, latent, norm)): model(architecture=architecture, latent=LATENTS[latent], norm=norm)
    for architecture, latent, norm in itertools.product(ARCHITECTURES, LATENTS, NORMS)
} | {
    "sparse": model(
        norm="batch",
        sparsity=[
            {"penalty": "kl", "layers": "everywhere"},
            {"penalty": "l1", "layers": "all but conv1"},
            {"penalty": "l0", "layers": "all but conv1 and the means"},
        ],
    ),
    "cbam": model(attention={"kind": "cbam", "layers": "all but conv1", "reduction": 1}, latent=LATENTS["dense"]),
    "sigmoid-l0": model(
        attention={"kind": "sigmoid", "layers": ["conv2", 4], "reduction": 1},
        sparsity=[{"penalty": "l0", "layers": ["conv2", "conv5"]}],
    ),
    "softmax": model(attention={"kind": "softmax", "layers": "everywhere", "temperature": 0.5, "reduction": 1}),
    "tilted": model(prior={"kind": "tilted", "tau": 5}),
    "tilted-dense": model(prior={"kind": "tilted", "tau": 0.5}, latent=LATENTS["dense"]),
    "ar-vae": model(kind="ar-vae", attributes=[{"column": "age", "unit": 2}, {"column": "light", "unit": 0}]),
    "ar-vae-dense": model(kind="ar-vae", attributes=[{"column": "age", "unit": 6}], latent=LATENTS["dense"]),
    "ae": model(kind="ae", norm="batch"),
    "ae-dense-l0": model(kind="ae", latent=LATENTS["dense"], sparsity=[{"penalty": "l0", "layers": ["conv2"]}]),
    "vq-vae": model(kind="vq-vae", codebook_size=5, latent=LATENTS["conv"]),
}


def smallest_size_px(settings: Model) -> int:
    """A size that every architecture divides, and that leaves a map to normalise."""
    return 64 if settings.norms.encoder == "instance" else 32
