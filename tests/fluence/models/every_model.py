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
    "tilted": model(prior={"kind": "tilted", "tau": 5}),
    "tilted-dense": model(prior={"kind": "tilted", "tau": 0.5}, latent=LATENTS["dense"]),
    "ar-vae": model(kind="ar-vae", attributes=[{"column": "age", "unit": 2}, {"column": "light", "unit": 0}]),
    "ar-vae-dense": model(kind="ar-vae", attributes=[{"column": "age", "unit": 6}], latent=LATENTS["dense"]),
    "ae": model(kind="ae", norm="batch"),
    "ae-dense": model(kind="ae", latent=LATENTS["dense"]),
    "vq-vae": model(kind="vq-vae", codebook_size=5, latent=LATENTS["conv"]),
}


def smallest_size_px(settings: Model) -> int:
    """A size that every architecture divides, and that leaves a map to normalise."""
    return 64 if settings.norms.encoder == "instance" else 32
