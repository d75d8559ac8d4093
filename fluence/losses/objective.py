"""The objective: the terms that a model's settings name, weighted and added up.

Training and validation share it, so that the best epoch is chosen by the loss that is trained.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

from fluence.data.attributes import attribute_columns
from fluence.errors import StudyError
from fluence.losses.latent import latent_terms
from fluence.losses.reconstruction import SUMS, reconstruction_terms
from fluence.losses.sparsity import sparsity_terms
from fluence.losses.terms import ModelOutput, Pass, Term
from fluence.study import ArVaeModel, AutoencoderModel, VaeModel

NUM_CHANNELS = 3


class Objective(nn.Module):
    """Σ weight · term, for each image: reconstruction, what the kind of model adds, and constraints.

    Always computed in float32 at least, also inside autocast. It has no trainable parameters, and the networks in it
    are frozen.

    Attributes:
        layers: names of the layers whose values it needs, in no order.
        columns: columns of the packed images whose values it needs, in the order that it expects them.
    """

    def __init__(self, model: AutoencoderModel, trained: Mapping[str, nn.Module] | None = None) -> None:
        """Loads the feature networks that the model names.

        Args:
            model: settings of the model.
            trained: models of the same study whose features are compared, frozen, by `ModelFeatures.label`.

        Raises:
            StudyError: a term is listed twice, or weights are missing.
            ArtifactError: a weights file is damaged.
        """
        super().__init__()
        self._terms = {term.name: term for term in _no_two_alike(_terms_of(model, trained or {}))}
        self.networks = nn.ModuleList(term.network for term in self._terms.values() if term.network is not None)
        self.layers = tuple({layer for term in self._terms.values() for layer in term.layers})
        self.columns = attribute_columns(model)

    def forward(
        self,
        output: ModelOutput,
        images: Tensor,
        values: Mapping[str, Tensor] | None = None,
        attributes: Tensor | None = None,
        *,
        kl_scale: float = 1.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each image, and its terms.

        A term of the whole batch is added to every image alike, so that the mean over the (global) batch holds it once.

        Args:
            output: the model's output for these images.
            images: [B, 3, H, W] in [0, 1].
            values: values of `layers`, [B, ...] each.
            attributes: values of `columns`, [B, num_columns].
            kl_scale: factor of the terms that warm up, from 0 to 1; validation uses 1.

        Returns:
            the loss [B], and the detached terms [B] by name, without their weights, and `loss`. The mean over the
            (global) batch is the caller's.
        """
        with torch.autocast(images.device.type, enabled=False):
            seen = Pass.of(output, images, values or {}, attributes)
            terms = {name: term.function(seen).expand(len(images)) for name, term in self._terms.items()}
            # From the last term to the first: an order of additions that no setting changes.
            total = sum(
                (kl_scale if term.warms_up else 1.0) * term.weight * terms[name]
                for name, term in reversed(self._terms.items())
                if term.weight
            )
        terms["loss"] = total
        return total, {name: value.detach() for name, value in terms.items()}

    def names_alone(self, output: ModelOutput, images: Tensor, values: Mapping[str, Tensor]) -> tuple[str, ...]:
        """The terms that one image has by itself: those of the whole batch are left out. The images can be any two."""
        attributes = images.new_zeros((len(images), len(self.columns)))
        seen = Pass.of(output, images, values, attributes)
        return tuple(name for name, term in self._terms.items() if term.weight and term.function(seen).ndim)

    def alone(
        self, names: Collection[str], output: ModelOutput, images: Tensor, values: Mapping[str, Tensor]
    ) -> Tensor:
        """The weighted sum of the terms of these names, for each image by itself, [B]; for `torch.func` too."""
        seen = Pass.of(output, images, values, None)
        chosen = (self._terms[name] for name in names)
        return torch.stack([term.weight * term.function(seen) for term in chosen]).sum(0)


def _terms_of(model: AutoencoderModel, trained: Mapping[str, nn.Module]) -> Iterator[Term]:
    """Every family of terms, in the order in which they are logged and added up."""
    yield from reconstruction_terms(model, trained)
    yield from latent_terms(model)
    yield from sparsity_terms(model)


def _no_two_alike(terms: Iterator[Term]) -> Iterator[Term]:
    names: set[str] = set()
    for term in terms:
        if term.name in names:
            raise StudyError(f"models.*: the term {term.name} is listed twice; give it one weight")
        names.add(term.name)
        yield term


def effective_beta(model: VaeModel | ArVaeModel, image_size_px: int) -> float:
    """β on the scale on which reconstruction losses are sums over pixel values and have weight 1.

    A loss `w · m + β · KL` whose m is a mean over the N = 3 · image_size_px² pixel values equals w/N times
    `Σ + (β · N / w) · KL`. So a mean counts as w/N and a sum as w, and β_eff = β / (Σ_sums w + Σ_means w / N);
    with one L2 loss of weight 1 it is β itself. It compares scales only: the terms have different units.

    Source: Higgins et al. 2017, appendix A.1 (normalised β).
    """
    num_values = NUM_CHANNELS * image_size_px**2
    weights = (term.weight / (1 if term.loss in SUMS else num_values) for term in model.reconstruction)
    return model.kl_weight / sum(weights)
