"""The optimisers, by their name in the study. Both leave a step out on the device, where `found_inf` is 1."""

from __future__ import annotations

import torch
from torch import nn

from fluence.study import Training

MOMENTUM = 0.9


def build_optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """The fused optimiser that the settings name: it divides gradients by its attribute `grad_scale` (tensor, []).

    Source: `adamw` Loshchilov & Hutter 2019, algorithm 2; `sgd` Sutskever et al. 2013, section 2, as torch writes it:
    v ← 0.9 v + g, W ← W − learning rate · v, with weight decay as part of g.
    """
    if training.optimizer == "adamw":
        return torch.optim.AdamW(
            model.parameters(), training.learning_rate, weight_decay=training.weight_decay, fused=True
        )
    optimizer = torch.optim.SGD(
        model.parameters(), training.learning_rate, momentum=MOMENTUM, weight_decay=training.weight_decay, fused=True
    )
    # Left to itself torch makes the velocities in the first step, and leaves them unwritten if that step is left out.
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
