"""The networks in words: each setting says its own, cites its own, and nothing that was not used is said."""

from __future__ import annotations

import pytest

from analysis.methods import Facts, write_methods
from analysis.networks import SOURCES, cited, describe
from fluence.study import Study, VaeModel


def model(**settings: object) -> VaeModel:
    return VaeModel.model_validate({"kind": "vae"} | settings)


def test_the_default_by_hand() -> None:
    assert describe(model()) == (
        "with 5 convolutions as encoder, a convolutional latent of 16 channels, no normalisation, and a decoder of 5 "
        "layers that enlarges by PixelShuffle (Shi et al. 2016; initialised as in Aitken et al. 2017)"
    )
    assert cited([model()]) == ["pixelshuffle", "icnr"]


@pytest.mark.parametrize(
    ("settings", "words", "key"),
    [
        ({"architecture": "vgg16-5"}, "the 13 convolutions of VGG16 (Simonyan & Zisserman 2015) as encoder", "vgg"),
        ({"architecture": "vgg19-10"}, "the 16 convolutions of VGG19 (Simonyan & Zisserman 2015) as encoder", "vgg"),
        ({"architecture": "alexnet-10"}, "the 5 convolutions of AlexNet (Krizhevsky 2014) as encoder", "alexnet"),
        ({"architecture": "small-10"}, "a decoder of 10 layers that enlarges", "icnr"),
        ({"width": 0.25}, "5 convolutions with 0.25 times the usual number of channels as encoder", "icnr"),
        ({"latent": {"kind": "dense", "size": 40}}, "a fully connected latent of 40 numbers", "icnr"),
        (
            {"pretrained": "imagenet"},
            "starting from the weights of ImageNet (Deng et al. 2009),",
            "imagenet",
        ),
        ({"pretrained": "/w.pth"}, "as encoder, starting from the weights of a file,", "icnr"),
        ({"upsampling": "transposed"}, "enlarges by transposed convolutions (Dumoulin & Visin 2016)", "transposed"),
        ({"upsampling": "nearest"}, "enlarges by nearest-neighbour interpolation, each followed by a", "resize"),
        ({"upsampling": "bilinear"}, "enlarges by bilinear interpolation, each followed by a convolution", "resize"),
        (
            {"residual": True},
            "with a residual block (He et al. 2016) after each size but the last",
            "residual",
        ),
        (
            {"separable": {}},
            "5 convolutions (depthwise-separable with 7 × 7 filters, Howard et al. 2017, but for the first) as encoder",
            "separable",
        ),
        (
            {"separable": {"kernel_px": 3, "parts": ["decoder"]}},
            "5 layers (depthwise-separable with 3 × 3 filters, Howard et al. 2017, but for the last) that",
            "separable",
        ),
        ({"activation": "lwta"}, "in which of every two neighbouring channels only the larger passes (Sri", "lwta"),
        ({"norm": "batch"}, "batch normalisation (Ioffe & Szegedy 2015) in the encoder and the decoder,", "batch"),
        ({"norm": {"decoder": "instance"}}, "instance normalisation (Ulyanov et al. 2016) in the decoder,", "instance"),
        (
            {"norm": "spectral"},
            "spectral normalisation of the weights (Miyato et al. 2018) in the encoder, the layer of the code and the "
            "decoder,",
            "spectral",
        ),
        (
            {"norm": {"encoder": "batch", "latent": "spectral"}},
            "batch normalisation (Ioffe & Szegedy 2015) in the encoder, spectral normalisation of the weights "
            "(Miyato et al. 2018) in the layer of the code,",
            "spectral",
        ),
    ],
)
def test_each_setting_says_and_cites_its_own(settings: dict[str, object], words: str, key: str) -> None:
    assert words in describe(model(**settings))
    assert key in cited([model(**settings)])
    assert describe(model(**settings)) != describe(model())


def test_references_are_those_of_the_models_of_the_grid() -> None:
    study = Study.model_validate(
        {
            "name": "s",
            "data": {"datasets": {"a": {"kind": "synthetic"}}, "training": "a", "rated": "a", "image_size_px": 32},
            "models": {
                "x": {"kind": "vae", "architecture": "vgg19-5", "norm": "spectral", "upsampling": "nearest"},
                "y": {"kind": "vae", "residual": True, "activation": "lwta", "upsampling": "bilinear"},
            },
        }
    )
    methods = write_methods(study, Facts())
    assert sum(SOURCES[key] in methods.references for key in SOURCES) == 5
    for key in ("vgg", "spectral", "resize", "residual", "lwta"):
        assert SOURCES[key] in methods.references
    kind = "“x” is a convolutional variational autoencoder (Kingma & Welling 2014)"
    assert f"{kind}, {describe(study.models['x'])}. " in dict(methods.paragraphs)["Models"]
