"""The networks of a study in words, for the methods paragraph, and what these words cite."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fluence.study import AutoencoderModel, ConvLatent

SOURCES = {
    "vgg": "Simonyan K, Zisserman A (2015). Very deep convolutional networks for large-scale image recognition. ICLR.",
    "alexnet": "Krizhevsky A (2014). One weird trick for parallelizing convolutional neural networks. arXiv:1404.5997.",
    "imagenet": "Deng J, Dong W, Socher R, Li LJ, Li K, Fei-Fei L (2009). ImageNet: a large-scale hierarchical image "
    "database. CVPR.",
    "pixelshuffle": "Shi W et al. (2016). Real-time single image and video super-resolution using an efficient "
    "sub-pixel convolutional neural network. CVPR.",
    "icnr": "Aitken A et al. (2017). Checkerboard artifact free sub-pixel convolution. arXiv:1707.02937.",
    "transposed": "Dumoulin V, Visin F (2016). A guide to convolution arithmetic for deep learning. arXiv:1603.07285.",
    "resize": "Odena A, Dumoulin V, Olah C (2016). Deconvolution and checkerboard artifacts. Distill.",
    "residual": "He K, Zhang X, Ren S, Sun J (2016). Deep residual learning for image recognition. CVPR.",
    "separable": "Howard AG et al. (2017). MobileNets: efficient convolutional neural networks for mobile vision "
    "applications. arXiv:1704.04861.",
    "lwta": "Srivastava RK, Masci J, Kazerounian S, Gomez F, Schmidhuber J (2013). Compete to compute. NeurIPS.",
    "batch": "Ioffe S, Szegedy C (2015). Batch normalization: accelerating deep network training by reducing internal "
    "covariate shift. ICML.",
    "instance": "Ulyanov D, Vedaldi A, Lempitsky V (2016). Instance normalization: the missing ingredient for fast "
    "stylization. arXiv:1607.08022.",
    "spectral": "Miyato T, Kataoka T, Koyama M, Yoshida Y (2018). Spectral normalization for generative adversarial "
    "networks. ICLR.",
}

_ENCODERS = {
    "small": "5 convolutions",
    "vgg16": "the 13 convolutions of VGG16 (Simonyan & Zisserman 2015)",
    "vgg19": "the 16 convolutions of VGG19 (Simonyan & Zisserman 2015)",
    "alexnet": "the 5 convolutions of AlexNet (Krizhevsky 2014)",
}
_UPSAMPLINGS = {
    "pixelshuffle": "PixelShuffle (Shi et al. 2016; initialised as in Aitken et al. 2017)",
    "transposed": "transposed convolutions (Dumoulin & Visin 2016)",
    "nearest": "nearest-neighbour interpolation, each followed by a convolution (Odena et al. 2016)",
    "bilinear": "bilinear interpolation, each followed by a convolution (Odena et al. 2016)",
}
_NORMS = {
    "batch": "batch normalisation (Ioffe & Szegedy 2015)",
    "instance": "instance normalisation (Ulyanov et al. 2016)",
    "spectral": "spectral normalisation of the weights (Miyato et al. 2018)",
}


def describe(model: AutoencoderModel) -> str:
    """A model's encoder, code, normalisation and decoder, as they follow after “is an autoencoder, ”."""
    return f"with {_encoder(model)}, {_latent(model)}, {_norm(model)}, and a decoder of {_decoder(model)}"


def cited(models: Iterable[AutoencoderModel]) -> list[str]:
    """Keys of `SOURCES` that the words on these models cite, each once."""
    return list(dict.fromkeys(key for model in models for key in _cited(model)))


def _encoder(model: AutoencoderModel) -> str:
    width = "" if model.width == 1 else f" with {model.width:g} times the usual number of channels"
    separable = f" ({_filters(model)} but for the first)" if _is_separable(model, "encoder") else ""
    words = [f"{_ENCODERS[_network(model)]}{width}{separable} as encoder"]
    if model.pretrained is not None:
        weights = "ImageNet (Deng et al. 2009)" if model.pretrained == "imagenet" else "a file"
        words.append(f"starting from the weights of {weights}")
    if model.activation == "lwta":
        words.append("in which of every two neighbouring channels only the larger passes (Srivastava et al. 2013)")
    return ", ".join(words)


def _latent(model: AutoencoderModel) -> str:
    latent = model.latent
    if isinstance(latent, ConvLatent):
        return f"a convolutional latent of {latent.channels} channels"
    return f"a fully connected latent of {latent.size} numbers"


def _norm(model: AutoencoderModel) -> str:
    """`no normalisation`, or each kind with the parts that have it."""
    parts = {"encoder": model.norms.encoder, "layer of the code": model.norms.latent, "decoder": model.norms.decoder}
    words = []
    for norm, name in _NORMS.items():
        where = [f"the {part}" for part, chosen in parts.items() if chosen == norm]
        if where:
            words.append(f"{name} in {', '.join(where[:-1])}{' and ' if where[1:] else ''}{where[-1]}")
    return ", ".join(words) or "no normalisation"


def _decoder(model: AutoencoderModel) -> str:
    num_layers = 10 if model.architecture.endswith("-10") else 5
    separable = f" ({_filters(model)} but for the last)" if _is_separable(model, "decoder") else ""
    residual = " with a residual block (He et al. 2016) after each size but the last" if model.residual else ""
    return f"{num_layers} layers{separable}{residual} that enlarges by {_UPSAMPLINGS[model.upsampling]}"


def _filters(model: AutoencoderModel) -> str:
    side = model.separable.kernel_px if model.separable else 0
    return f"depthwise-separable with {side} × {side} filters, Howard et al. 2017,"


def _network(model: AutoencoderModel) -> str:
    return model.architecture.partition("-")[0]


def _is_separable(model: AutoencoderModel, part: str) -> bool:
    return model.separable is not None and part in model.separable.parts


def _cited(model: AutoencoderModel) -> Iterator[str]:
    network = _network(model)
    yield from {"vgg16": ["vgg"], "vgg19": ["vgg"], "alexnet": ["alexnet"]}.get(network, [])
    yield from {"pixelshuffle": ["pixelshuffle", "icnr"], "transposed": ["transposed"]}.get(
        model.upsampling, ["resize"]
    )
    used = {
        "imagenet": model.pretrained == "imagenet",
        "residual": model.residual,
        "separable": model.separable is not None,
        "lwta": model.activation == "lwta",
    }
    yield from (key for key, there in used.items() if there)
    yield from (norm for norm in _NORMS if norm in (model.norms.encoder, model.norms.latent, model.norms.decoder))
