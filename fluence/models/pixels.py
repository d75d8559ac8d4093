"""The image itself in the place of a network: what is found in it needs no visual system."""

from __future__ import annotations

from torch import Tensor, nn

from fluence.architectures import PIXELS
from fluence.store.activations import LayerInfo


class Pixels(nn.Module):
    """No weights; the one layer is the image, values in [0, 1].

    Attributes:
        recordable: that layer, `pixels`, of shape (3, H, W).
    """

    def __init__(self, image_size_px: int) -> None:
        super().__init__()
        self.image = nn.Identity()
        self.recordable = (LayerInfo(PIXELS, (3, image_size_px, image_size_px), tap="post", kind="input"),)

    def forward(self, x: Tensor) -> None:
        """Images [B, 3, H, W] in [0, 1] pass as they are; nothing is made of them."""
        self.image(x)

    def place(self, layer: str, tap: str) -> nn.Module:
        """The module whose output is the layer's value, the same before and after."""
        return self.image
