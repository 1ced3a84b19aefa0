"""Linear layers and convolutions that compute with packed weights; norms and attention.

`weights.py` says which form a weight has. Layers that are always multiplied together, such as query, key and value, are
packed as one. Layers take what may be added in the same pass, and compute plainly where the packed kernels cannot: with
gradients, on another device, in another dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reverie.models.layers import GroupNormSiLU
from reverie.models.layers import attend as attend_plainly
from reverie.runtime import extension, kernels, winograd
from reverie.runtime.cache import keep
from reverie.runtime.extension import FEW, SMALL, convolve_small, few, lay_panels, multiply, stamp
from reverie.runtime.kernels import let_go, native
from reverie.runtime.weights import LOCK, HeldLayer, PackedStore, as_held

Pack = Callable[[Tensor], Any]
"""Give a weight another form, whose `to_dense` gives the plain one."""


class PackedLayer(HeldLayer):
    """Be a layer whose weight may be packed."""

    pack: Pack

    @staticmethod
    def multiply(x: Tensor, weight: Any, bias: Tensor | None, *, add: Tensor | None = None) -> Tensor:
        """Multiply rows by a packed weight, and add `add`."""
        return kernels.linear(x, weight, bias, add=add)

    @property
    def rows(self) -> int:
        """Return how many outputs the layer has."""
        raise NotImplementedError

    def form(self) -> str:
        """Say how the weight is packed, besides its values."""
        return type(self).__name__

    def shared_store(self) -> PackedStore | None:
        """Return the store, where it holds this layer together with others."""
        store = self.store
        return store if store is not None and len(store.layers) > 1 and store.holds(store.layers) else None

    def computes(self, x: Tensor) -> bool:
        """Tell whether the packed kernels may take this input: on the CPU, of the weight's dtype, no gradients."""
        held, store = self._parameters.get("weight"), self.store
        if held is None and store is not None:
            held = store.parts[0]
        if held is None:  # parametrised: its weight is computed anew at each call
            return False
        fits = held.is_cpu and x.is_cpu and native(held.dtype) and x.dtype == held.dtype
        padded_by_zeros = vars(self).get("padding_mode", "zeros") == "zeros"  # some let convolutions wrap by it
        return fits and padded_by_zeros and not extension.operators_compute()


def pack_together(layers: Sequence[PackedLayer], parts: int = 1) -> PackedStore:
    """Return the store that holds exactly these layers in so many parts, packing them where they are not."""
    store = layers[0].store
    if store is not None and len(store.parts) == parts and store.holds(layers):
        return store
    with LOCK:
        dtype, weights = layers[0].dtype, [as_held(layer) for layer in layers]

        def pack() -> list[Any]:
            rows = [own.detach().to(dtype) for own in weights]
            return [layers[0].pack(part) for part in (torch.cat(rows) if len(rows) > 1 else rows[0]).chunk(parts)]

        packed = keep(weights, f"{layers[0].form()} in {parts}", pack)
        store = PackedStore(layers, packed, [own.shape for own in weights])
        for layer, own in zip(layers, weights, strict=True):
            layer.trainable, layer.store = own.requires_grad, store
            layer._parameters["weight"] = None
    return store


LAST = torch.channels_last
NARROW = 16  # channels below which packing gains nothing, and the layer at a network's edge stays plain


class EdgeConv2d(nn.Conv2d):
    """Convolve with a plain weight: from any layout into channels-last, and out of it where the image is finished."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out h2 w2"]:
        y = super().forward(x.contiguous(memory_format=LAST))
        return y.contiguous() if self.out_channels < NARROW else y


class Narrow(HeldLayer):
    """Be a layer whose weight is kept in panels too (`c/products.c`), beside the one it is held as."""

    panels: tuple[Any, tuple[int, ...], list[Tensor]] | None = None  # of which weight, in how many parts, as of when

    def in_panels(self, parts: int = 1) -> list[Tensor]:
        """Return the weight's rows, in so many parts, made anew where the weight is another or was written to."""
        held = as_held(self)
        now = (parts, *stamp(held))
        if self.panels is None or self.panels[0][0] is not held or self.panels[1] != now:
            halves = held.to(self.dtype).chunk(parts)
            made = [lay_panels(half.flatten(2).mT if half.dim() > 2 else half[:, None]) for half in halves]
            let_go(held)
            self.panels = (held, held.untyped_storage()), now, made
            return made
        return self.panels[2]

    def multiplies(self, x: Float[Tensor, "*b d"], add: Tensor | None = None) -> bool:
        """Tell whether the kernel in C is to multiply rows: few, and as many to be added; by a weight that counts."""
        held = as_held(self)
        fits = add is None or add.shape == (*x.shape[:-1], len(held))
        counts = not held.is_inference() and held.is_contiguous()
        return fits and counts and held.is_cpu and self.dtype == x.dtype and few(x, add)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "panels"}


class NarrowLinear(Narrow, nn.Linear):
    """Multiply by a matrix so narrow that oneDNN's packing gains nothing."""

    def forward(self, x: Float[Tensor, "*b d"], add: Float[Tensor, "*b out"] | None = None) -> Float[Tensor, "*b out"]:
        """Return the product of x plus `add`."""
        if self.multiplies(x, add):
            (panels,), mode = self.in_panels(), "plain" if add is None else "add"
            return multiply(x, panels, self.bias, self.out_features, mode, add)
        y = nn.Linear.forward(self, x)
        return y if add is None else y + add


class Pointwise(Narrow, nn.Conv2d):
    """Convolve 1x1 as what it is, a product for each pixel, with a plain weight."""

    def forward(
        self, x: Float[Tensor, "b c h w"], add: Float[Tensor, "b out h w"] | None = None
    ) -> Float[Tensor, "b out h w"]:
        """Return the convolution of x plus `add`."""
        pixels, added = x.permute(0, 2, 3, 1), None if add is None else add.permute(0, 2, 3, 1)
        if self.multiplies(pixels, added):
            (panels,), mode = self.in_panels(), "plain" if added is None else "add"
            y = multiply(pixels, panels, self.bias, self.out_channels, mode, added)
            return y.permute(0, 3, 1, 2)
        y = F.linear(pixels, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        return y if add is None else y + add


# Measured with AMX (docs/measured/performance.md): pixels of an image up to which, and input times output channels from
# which, a weight is read faster by a product than by a convolution.
UNFOLDED, HEAVY = 64, 1 << 19


class PackedConv2d(PackedLayer, Narrow, nn.Conv2d):
    """Convolve in channels-last: 3x3 kernels by Winograd, with the plain weight, others with a packed one."""

    seen: torch.Size | None = None  # the input's size that it is packed for

    def pack(self, weight: Float[Tensor, "out in kh kw"]) -> kernels.Packed:
        """Pack for the size that was seen."""
        assert self.seen is not None
        assert not isinstance(self.padding, str)
        if self.unfolds(self.seen):
            return kernels.pack_taps(weight)
        return kernels.pack_conv2d(weight, self.seen, self.stride, self.padding, self.dilation)

    def form(self) -> str:
        """Say for which size."""
        assert self.seen is not None
        if self.unfolds(self.seen):
            return "taps"
        return f"conv2d {self.seen} {self.stride} {self.padding} {self.dilation}"

    @property
    def rows(self) -> int:
        """Return the number of output channels."""
        return self.out_channels

    def forward(
        self, x: Float[Tensor, "b c h w"], add: Float[Tensor, "b out #h2 #w2"] | None = None, relu: bool = False
    ) -> Float[Tensor, "b out h2 w2"]:
        """Return the convolution of x plus `add`, which may be one pixel for all, or the ReLU of it."""
        if not self.computes(x):
            y = nn.Conv2d.forward(self, x)
            y = y if add is None else y + add
            return torch.relu(y) if relu else y
        x = x.contiguous(memory_format=LAST)
        if self.is_small(x, add) and not relu:
            (panels,), stride = self.in_panels(), int(self.stride[0])
            return convolve_small(x, panels, self.bias, self.out_channels, stride=stride, add=add)
        if (padding := self.winograd_padding(x)) is not None:
            return winograd.conv2d(x, self.weight, self.bias, padding, add, relu)
        if self.seen is None or self.seen[2:] != x.shape[2:]:  # another order may suit this height and width
            as_held(self)  # no longer packed
            self.seen = x.shape
        (weight,) = pack_together([self]).parts
        assert not isinstance(self.padding, str)
        if self.unfolds(x.shape):
            taken = None if add is None else add.expand(len(x), -1, *x.shape[2:]).permute(0, 2, 3, 1).contiguous()
            y = kernels.linear(kernels.unfold(x), weight, self.bias, add=taken).permute(0, 3, 1, 2)
            return y.relu_() if relu else y
        return kernels.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, add, relu)

    def unfolds(self, size: torch.Size) -> bool:
        """Tell whether a product of all that kernels see is the quicker way for images of a size: for small ones."""
        shape = (self.kernel_size, self.stride, self.padding, self.dilation)
        few = math.prod(size[2:]) <= UNFOLDED and self.in_channels * self.out_channels >= HEAVY
        return few and shape == ((3, 3), (1, 1), (1, 1), (1, 1)) and kernels.has_tiles(self.dtype)

    def is_small(self, x: Float[Tensor, "b c h w"], add: Float[Tensor, "b out #h2 #w2"] | None = None) -> bool:
        """Tell whether the kernel in C is to convolve: few pixels to few channels, by 3x3 kernels."""
        shape, given = (self.kernel_size, self.padding, self.dilation), (x,) if add is None else (x, add)
        return (
            shape == ((3, 3), (1, 1), (1, 1))
            and self.stride in ((1, 1), (2, 2))
            and self.in_channels * self.out_channels <= SMALL
            and len(x) * math.prod(x.shape[2:]) <= FEW
            and (add is None or len(add) == len(x))
            and not as_held(self).is_inference()
            and extension.takes(*given)
            and all(image.is_contiguous(memory_format=LAST) for image in given)
        )

    def doubles(self, x: Float[Tensor, "b c h w"]) -> bool:
        """Tell whether Winograd's way in C is the quicker for x doubled, which it reads as it is."""
        taken = extension.library() is not None and self.computes(x) and self.padding == (1, 1)
        return taken and self.winograd_padding(x, doubled=True) is not None

    def winograd_padding(self, x: Tensor, doubled: bool = False) -> tuple[int, int] | None:
        """Return the padding where Winograd's way is the quicker for x, or for x doubled; else None."""
        if (self.kernel_size, self.stride, self.dilation) != ((3, 3), (1, 1), (1, 1)):
            return None
        down, across = map(int, self.padding)
        high, wide = ((side << doubled) + 2 * pad - 2 for side, pad in ((x.shape[2], down), (x.shape[3], across)))
        suits = max(down, across) < 2 and winograd.wins(self.in_channels, self.out_channels, high, wide, x.dtype)
        return (down, across) if suits else None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "seen"}


class PackedPointwise(PackedLayer, Pointwise):
    """Convolve 1x1 by a packed product: oneDNN's own 1x1 kernels can be 15 times slower."""

    @staticmethod
    def pack(weight: Float[Tensor, "out in 1 1"]) -> Any:
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
        return self.multiply(pixels, weight, self.bias, add=added).permute(0, 3, 1, 2)


class PackedLinear(PackedLayer, nn.Linear):
    """Multiply by a packed weight."""

    pack: Pack = staticmethod(kernels.pack_linear)

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
        return self.multiply(x, weight, self.bias, add=add)


def project(layers: Sequence[PackedLinear | NarrowLinear], x: Float[Tensor, "b l d"]) -> tuple[Tensor, ...]:
    """Return what each of several layers makes of x, in one product. All have a bias, or none has."""
    packed = [layer for layer in layers if isinstance(layer, PackedLinear) and layer.computes(x)]
    if len(packed) < len(layers):
        return tuple(layer(x) for layer in layers)
    return _product(pack_together(packed), x)


def _product(store: PackedStore, x: Tensor) -> tuple[Tensor, ...]:
    biases = [layer.bias for layer in store.layers if isinstance(layer.bias, Tensor)]
    first = cast(PackedLayer, store.layers[0])
    product = first.multiply(x, store.parts[0], torch.cat(biases) if biases else None)
    return product.split([shape[0] for shape in store.shapes], dim=-1)


class FastGroupNorm(nn.GroupNorm):
    """Normalise the groups of a channels-last image in two passes over it (`c/norms.c`)."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return _normalise(self, x, silu=False) if _normalises(self, x) else super().forward(x)


class FastGroupNormSiLU(GroupNormSiLU):
    """Normalise the groups of a channels-last image, and take the SiLU, in two passes over it (`c/norms.c`)."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return _normalise(self, x, silu=True) if _normalises(self, x) else super().forward(x)


NORMS = {torch.float32: "group_norm", torch.bfloat16: "group_norm_bfloat16"}  # kernels in C


class FastLayerNorm(nn.LayerNorm):
    """Normalise tokens, where they are few, by the kernel in C (`c/products.c`)."""

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        if (
            self.weight is None
            or self.bias is None
            or not few(x, self.weight, self.bias)
            or self.weight.shape != x.shape[-1:]
        ):
            return super().forward(x)
        y = torch.empty_like(x)
        extension.call(
            "layer_norm", x, y, self.weight, self.bias, x.numel() // x.shape[-1], x.shape[-1], float(self.eps)
        )
        return y


def _normalises(norm: nn.GroupNorm, x: Tensor) -> bool:
    """Tell whether the extension may take this input, by a norm that has a weight and a bias."""
    affine = [weight for weight in (norm.weight, norm.bias) if weight is not None]
    taken = len(affine) == 2 and x.dtype in NORMS and extension.takes(x, *affine, dtype=x.dtype)
    return taken and x.dim() == 4 and x.is_contiguous(memory_format=LAST)


def _normalise(norm: nn.GroupNorm, x: Float[Tensor, "b c h w"], *, silu: bool) -> Float[Tensor, "b c h w"]:
    images, channels, height, width = x.shape
    y, shape = torch.empty_like(x), (images, height * width, channels, norm.num_groups)
    extension.call(NORMS[x.dtype], x, y, norm.weight, norm.bias, *shape, float(norm.eps), int(silu))
    return y


ATTENTION = {torch.float32: "attention_float32", torch.bfloat16: "attention_bfloat16"}  # kernels in C
WIDEST = 256  # width of a head up to which it gains with AVX2 or tiles; with AVX-512 it always does
WORD = 4  # bytes that it moves at once: a float, or two of bfloat16


def attend(
    q: Float[Tensor, "b l d"], k: Float[Tensor, "b m d"], v: Float[Tensor, "b m d"], heads: int
) -> Float[Tensor, "b l d"]:
    """Attend by a kernel in C (`c/attention.c`), where it is there and the faster.

    Queries, keys and values may be slices of one product, which are not copied.
    """
    if not _attends(q, k, v, heads):
        return attend_plainly(q, k, v, heads)
    (images, queries, wide), keys, size = q.shape, k.shape[1], q.element_size()
    gathered = torch.empty(q.shape, dtype=q.dtype, device="cpu")
    strides = [stride * size // WORD for x in (q, k, v) for stride in x.stride()[:2]]
    shape, width = (images, queries, keys, heads), wide // heads
    extension.call(ATTENTION[q.dtype], q, k, v, gathered, *shape, width, *strides, width**-0.5)
    return gathered


def _attends(q: Tensor, k: Tensor, v: Tensor, heads: int) -> bool:
    """Tell whether the kernel may take these: on the CPU, without gradients, as many images, whole words in a row."""
    kernel = ATTENTION.get(q.dtype)
    if kernel is None or extension.operators_compute() or not hasattr(extension.library(), kernel):
        return False
    if not all(x.is_cpu and x.dtype == q.dtype and x.stride(2) == 1 for x in (q, k, v)):
        return False
    if (len(q), q.shape[2]) != (len(k), k.shape[2]) or k.shape != v.shape or not k.numel():
        return False
    width = q.shape[2] // heads
    wide_vectors = hasattr(extension.library(), ATTENTION[torch.bfloat16])  # AVX-512
    if width > WIDEST and (kernels.has_tiles(q.dtype) or not wide_vectors):
        return False
    counts = (width, *(stride for x in (q, k, v) for stride in x.stride()[:2]))
    return not any(count * q.element_size() % WORD for count in counts)
