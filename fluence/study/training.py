"""Settings of the training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fluence.study.section import Positive, Section


class Sam(Section):
    """Sharpness-aware minimisation (Foret et al. 2021): the gradient is taken where the loss rises most nearby."""

    rho: Positive = 0.05
    """ρ, the radius of the neighbourhood: L2 norm over all parameters."""


class Training(Section):
    """How a model is trained. A model may override single settings under its own `training:`."""

    epochs: Annotated[int, Field(ge=0)] = 30
    """Passes over the training images. 0 leaves the network untrained: the negative control."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Images per optimiser step over all processes together; the number of processes never changes it."""
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Images per forward pass over all processes together, where a whole batch does not fit into memory; gradients
    are added up to the batch. `null` passes a batch at once. Batch normalisation, and terms of the whole batch such as
    KL sparsity, then see only these images."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """`adamw` (Loshchilov & Hutter 2019), or `sgd` with momentum 0.9; each wants a learning rate of its own."""
    learning_rate: Positive = 1e-3
    """Highest learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay; decoupled from the gradient with `adamw`."""
    sam: Sam | None = None
    """Sharpness-aware minimisation around the optimiser: two passes per step; `null` trains without."""
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
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    optimizer: Literal["adamw", "sgd"] | None = None
    sam: Sam | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    kl_warmup_epochs: Annotated[float, Field(ge=0)] | None = None
