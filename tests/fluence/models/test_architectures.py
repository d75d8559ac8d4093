"""The tables of the architectures beside those of torchvision and of the papers, and the refusals."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
import torchvision
from torch import nn

from fluence.architectures import ARCHITECTURES, check_pretrained
from fluence.errors import StudyError
from fluence.models import build
from fluence.study.model import ArchitectureName
from tests.fluence.models.every_model import model as settings_of

PRETRAINABLE = [name for name, plan in ARCHITECTURES.items() if plan.imagenet]


def test_every_architecture_of_the_schema_is_there():
    assert set(get_args(ArchitectureName)) == set(ARCHITECTURES)


@pytest.mark.parametrize("name", PRETRAINABLE)
def test_convolutions_are_those_of_torchvision(name):
    plan = ARCHITECTURES[name]
    with torch.device("meta"):
        theirs = torchvision.models.get_model(plan.imagenet, weights=None).features
        convolutions = [module for module in theirs if isinstance(module, nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size[0], c.stride[0]) for c in convolutions] == [
        (layer.channels, layer.kernel_px, layer.stride) for layer in plan.encoder
    ]
    pools = [i for i, module in enumerate(m for m in theirs if not isinstance(m, nn.ReLU))
             if isinstance(module, nn.MaxPool2d)]  # fmt: skip
    ours = [kind for layer in plan.encoder for kind in ("conv", *["pool"] * bool(layer.pool_px))]
    assert pools == [i for i, kind in enumerate(ours) if kind == "pool"]
    windows = {layer.pool_px for layer in plan.encoder if layer.pool_px}
    assert {module.kernel_size for module in theirs if isinstance(module, nn.MaxPool2d)} == windows


@pytest.mark.parametrize("name", ["vgg16-5", "vgg19-5"])
def test_convolutions_of_a_vgg_have_the_names_of_the_paper(name):
    blocks = {"vgg16-5": (2, 2, 3, 3, 3), "vgg19-5": (2, 2, 4, 4, 4)}[name]
    names = [f"conv{i}_{j}" for i, count in enumerate(blocks, start=1) for j in range(1, count + 1)]
    assert ARCHITECTURES[name].layer_names == (*names, "mu")


def test_alexnet_differs_from_torchvisions_in_padding_alone():
    """One more position at the sides, so that 11 × 11 filters with stride 4 and poolings of 3 × 3 divide exactly."""
    paddings = [layer.padding_px for layer in ARCHITECTURES["alexnet-5"].encoder]
    theirs = [m for m in torchvision.models.alexnet(weights=None).features if not isinstance(m, nn.ReLU)]
    assert paddings == [4, 2, 1, 1, 1]
    assert [m.padding[0] for m in theirs if isinstance(m, nn.Conv2d)] == [2, 2, 1, 1, 1]
    pools = [m for m in build(settings_of(architecture="alexnet-5"), 32, 0).modules() if isinstance(m, nn.MaxPool2d)]
    assert [(pool.kernel_size, pool.stride, pool.padding) for pool in pools] == [(3, 2, 1)] * 3
    assert {(m.kernel_size, m.stride, m.padding) for m in theirs if isinstance(m, nn.MaxPool2d)} == {(3, 2, 0)}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("size_px", [32, 96, 224])
def test_every_map_is_an_exact_division(name, size_px):
    with torch.device("meta"):
        network = build(settings_of(architecture=name), size_px, 0)
        image = network(torch.empty(1, 3, size_px, size_px)).reconstruction
    assert image.shape == (1, 3, size_px, size_px)
    side = size_px
    for info, layer in zip(network.recordable, ARCHITECTURES[name].encoder, strict=False):
        assert side % layer.stride == 0
        side //= layer.stride
        assert info.shape[1:] == (side, side)
        assert side % layer.pooling == 0
        side //= layer.pooling
    assert side == size_px // ARCHITECTURES[name].reduction == size_px // 32


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_decoder_has_as_many_layers_as_the_name_says(name):
    layers = ARCHITECTURES[name].decoder
    assert len(layers) == (10 if name.endswith("-10") else 5)
    assert math.prod(2 if layer.doubles else 1 for layer in layers) == ARCHITECTURES[name].reduction
    assert layers[0].doubles
    assert layers[-1].channels == 3
    assert [layer.doubles for layer in layers] == [True, False] * 5 if name.endswith("-10") else [True] * 5


# ── What does not go with pretrained weights ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"architecture": "small"}, "architecture small"),
        ({"width": 0.5}, "width 0.5"),
        ({"norm": "batch"}, "norm batch"),
        ({"norm": "spectral"}, "norm spectral"),
        ({"norm": {"encoder": "instance"}}, "norm instance"),
        ({"separable": {}}, "separable convolutions"),
        ({"activation": "lwta"}, "activation lwta"),
        ({"activation": "lwta", "width": 2}, "width 2, activation lwta"),
    ],
)
def test_another_encoder_is_refused(settings, found):
    chosen = settings_of(**({"architecture": "vgg16-5", "width": 1, "pretrained": "imagenet"} | settings))
    with pytest.raises(StudyError, match=rf"^models\.\*\.pretrained: found with {found}, but the weights belong to"):
        check_pretrained(chosen)
    with pytest.raises(StudyError, match="pretrained"):
        build(chosen, 32, 0)
    check_pretrained(chosen.model_copy(update={"pretrained": None}))


def test_the_decoder_is_free():
    check_pretrained(
        settings_of(
            architecture="vgg19-10", width=1, pretrained="imagenet", residual=True, upsampling="nearest",
            norm={"decoder": "batch"}, separable={"parts": ["decoder"]},
        )
    )  # fmt: skip


def test_random_is_not_a_file():
    with pytest.raises(StudyError, match="`null` starts the encoder from random numbers"):
        check_pretrained(settings_of(architecture="alexnet-5", width=1, pretrained="random"))
