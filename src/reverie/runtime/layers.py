"""Linear layers and convolutions with packed weights.

They take what may be added in the same pass, and compute plainly where the packed kernels cannot: with gradients, on
another device, in another dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reverie.runtime import kernels, winograd
from reverie.runtime.kernels import let_go
from reverie.runtime.weights import PackedLayer, PackedStore, pack_together, version

LAST = torch.channels_last
NARROW = 16  # channels below which packing gains nothing, and the layer at a network's edge stays plain


class EdgeConv2d(nn.Conv2d):
    """Convolve with a plain weight: from any layout into channels-last, and out of it where the image is finished."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out h2 w2"]:
        y = super().forward(x.contiguous(memory_format=LAST))
        return y.contiguous() if self.out_channels < NARROW else y


class PackedConv2d(PackedLayer, nn.Conv2d):
    """Convolve with a packed weight, in channels-last; at large images by Winograd, with the plain weight kept too."""

    seen: torch.Size | None = None  # the input's size that it is packed for
    tiled: tuple[nn.Parameter, int, winograd.Transformed] | None = None  # of which weight, as of when: its kernel

    def pack(self, weight: Float[Tensor, "out in kh kw"]) -> kernels.Packed:
        """Pack for the size that was seen."""
        assert self.seen is not None
        assert not isinstance(self.padding, str)
        return kernels.pack_conv2d(weight, self.seen, self.stride, self.padding, self.dilation)

    @property
    def rows(self) -> int:
        """Return the number of output channels."""
        return self.out_channels

    def forward(
        self, x: Float[Tensor, "b c h w"], add: Float[Tensor, "b out #h2 #w2"] | None = None
    ) -> Float[Tensor, "b out h2 w2"]:
        """Return the convolution of x plus `add`, which may be one pixel for all."""
        if not self.computes(x):
            y = nn.Conv2d.forward(self, x)
            return y if add is None else y + add
        x = x.contiguous(memory_format=LAST)
        if (tiling := self._tiling(x)) is not None:
            return winograd.conv2d(x, self._transform(tiling), self.bias, add)
        self.__dict__.pop("tiled", None)
        if self.seen is None or self.seen[2:] != x.shape[2:]:  # another order may suit this height and width
            self.release()
            self.seen = x.shape
        (weight,) = pack_together([self]).parts
        assert not isinstance(self.padding, str)
        return kernels.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, add)

    def _tiling(self, x: Float[Tensor, "b c h w"]) -> winograd.Tiling | None:
        """Choose a tiling for Winograd's way; None where the direct way is the quicker."""
        shape = (self.kernel_size, self.stride, self.padding, self.dilation)
        if shape != ((3, 3), (1, 1), (1, 1), (1, 1)) or x.dtype != torch.float32:
            return None
        return winograd.choose_tiling(self.in_channels, self.out_channels, *x.shape[2:])

    def _transform(self, tiling: winograd.Tiling) -> winograd.Transformed:
        """Return the transformed kernel: the one that was kept, unless the tiling or the weight is another."""
        weight = self.weight
        now = version(weight)
        if self.tiled is not None:
            of, then, kernel = self.tiled
            if of is weight and then == now and kernel.tiling is tiling:
                return kernel
        self.tiled, kernel = None, winograd.transform_kernel(weight, tiling)
        let_go(weight)
        if tiling.kept:
            kernel = winograd.pack_kernel(kernel)
            self.tiled = weight, now, kernel
        return kernel

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name not in ("seen", "tiled")}


class PackedPointwise(PackedLayer, nn.Conv2d):
    """Convolve 1x1 as what it is, a product for each pixel: oneDNN's own 1x1 kernels can be 15 times slower."""

    @staticmethod
    def pack(weight: Float[Tensor, "out in 1 1"]) -> kernels.Packed:
        """Pack the weight as a linear layer's."""
        return kernels.pack_linear(weight.flatten(1))

    @property
    def rows(self) -> int:
        """Return the number of output channels."""
        return self.out_channels

    def forward(
        self, x: Float[Tensor, "b c h w"], add: Float[Tensor, "b out h w"] | None = None
    ) -> Float[Tensor, "b out h w"]:
        """Return the convolution of x plus `add`."""
        if not self.computes(x):
            y = nn.Conv2d.forward(self, x)
            return y if add is None else y + add
        (weight,) = pack_together([self]).parts
        pixels, added = x.permute(0, 2, 3, 1), None if add is None else add.permute(0, 2, 3, 1)
        return kernels.linear(pixels, weight, self.bias, add=added).permute(0, 3, 1, 2)


class PackedLinear(PackedLayer, nn.Linear):
    """Multiply by a packed weight."""

    pack = staticmethod(kernels.pack_linear)

    @property
    def rows(self) -> int:
        """Return the number of outputs."""
        return self.out_features

    def forward(self, x: Float[Tensor, "*b d"], add: Float[Tensor, "*b out"] | None = None) -> Float[Tensor, "*b out"]:
        """Return the product of x plus `add`."""
        if not self.computes(x):
            y = F.linear(x, self.weight, self.bias)
            return y if add is None else y + add
        if (store := self.shared_store()) is not None:  # asked for alone, as by a hook: not worth packing anew
            y = dict(zip(store.layers, _product(store, x), strict=True))[self]
            return y if add is None else y + add
        (weight,) = pack_together([self]).parts
        return kernels.linear(x, weight, self.bias, add=add)


def project(layers: Sequence[PackedLinear], x: Float[Tensor, "b l d"]) -> tuple[Tensor, ...]:
    """Return what each of several layers makes of x, in one product. All have a bias, or none has."""
    if not all(layer.computes(x) for layer in layers):
        return tuple(layer(x) for layer in layers)
    return _product(pack_together(layers), x)


def _product(store: PackedStore, x: Tensor) -> tuple[Tensor, ...]:
    biases = [layer.bias for layer in store.layers if isinstance(layer.bias, Tensor)]
    product = kernels.linear(x, store.parts[0], torch.cat(biases) if biases else None)
    return product.split([layer.rows for layer in store.layers], dim=-1)
