"""Changes of a network for one drawing: seamless tiling, DeepCache, token merging, FreeU; and what combines with what.

Sources: Ma et al. 2312.00858, "DeepCache": the outermost layers alone are computed at every step, on what the inner
ones gave earlier. Bolya and Hoffman 2303.17604, "Token Merging for Fast Stable Diffusion": in self-attention at the
largest images one of four neighbours is kept, and the most similar of the others are merged into the kept ones. Si et
al. 2309.11497, "FreeU". Ahn et al. 2403.17377, "Perturbed-Attention Guidance".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from reverie.errors import ReverieError
from reverie.models.layers import Attend, Attention, SpatialTransformer
from reverie.models.unet import UNet, UpBlock

Hook = Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]


@contextmanager
def seamless(networks: Iterable[nn.Module], axes: str) -> Iterator[None]:
    """Within the block, let the convolutions of `networks` wrap along "x" (left to right), "y" (top to bottom) or "xy".

    Along "" nothing is touched, so that fast layers stay fast. Afterwards the networks are as they were. Attention and
    normalisation know no edges, so a picture whose latents are rolled is the rolled picture, for whole multiples of the
    lowest level's cells.
    """
    layers = (layer for network in networks for layer in network.modules()) if axes else ()
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d) and any(layer.padding)]
    before = [conv.padding for conv in convolutions]
    hooks = []
    try:
        for conv in convolutions:
            height, width = (int(pixels) for pixels in conv.padding)
            y, x = height * ("y" in axes), width * ("x" in axes)
            hooks.append(conv.register_forward_pre_hook(_around(y, x)))
            conv.padding = (height - y, width - x)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for conv, padding in zip(convolutions, before, strict=True):
            conv.padding = padding


def _around(y: int, x: int) -> Hook:
    """Pad a convolution's input by its own other side: y rows and x columns."""
    return lambda _, inputs: (F.pad(inputs[0], (x, x, y, y), mode="circular"),)


@dataclass
class Inner:
    """Hold what the inner levels gave, and the embeddings of the timesteps that it has served, the first its own."""

    output: Tensor
    served: list[Tensor]


class ReusingUNet(UNet):
    """Compute the inner levels at the first of every `every` timesteps alone, for each context by itself.

    The outermost is the last layer of the way up, which joins what `conv_in` made. A sampler that asks twice at one
    timestep is served as at one step.
    """

    every: int
    kept: WeakTensorKeyDictionary  # context -> Inner, for as long as the context lives

    def levels(
        self,
        x: Float[Tensor, "b c h w"],
        emb: Float[Tensor, "b e"],
        context: Float[Tensor, "b l d"],
        residuals: Sequence[Tensor] | None,
    ) -> Float[Tensor, "b c h w"]:
        inner = self.kept.get(context)
        if inner is not None and not any(torch.equal(emb, seen) for seen in inner.served):
            inner.served.append(emb)
        if inner is None or len(inner.served) > self.every:
            skips, middle = self.descend(x, emb, context, residuals)
            inner = self.kept[context] = Inner(self.ascend(middle, skips[1:], emb, context), [emb])
        outermost, skip = self.up_blocks[-1], x if residuals is None else x + residuals[0]
        assert isinstance(outermost, UpBlock)
        return outermost.layer(len(outermost.resnets) - 1, torch.cat([inner.output, skip], dim=1), emb, context)


@contextmanager
def reusing(unet: UNet, every: int, kept: WeakTensorKeyDictionary | None = None) -> Iterator[None]:
    """Within the block, let a U-Net compute its inner levels once for `every` timesteps; 1 changes nothing.

    `kept` is what an earlier block left, for a drawing that goes on.
    """
    if every == 1:
        yield
        return
    plain, unet.__class__ = type(unet), ReusingUNet
    changed = cast(ReusingUNet, unet)
    changed.every, changed.kept = every, WeakTensorKeyDictionary() if kept is None else kept
    try:
        yield
    finally:
        del changed.every, changed.kept
        unet.__class__ = plain


SIDE = 2  # of every square of so many tokens the first is kept


@contextmanager
def merging(unet: UNet, ratio: float) -> Iterator[None]:
    """Within the block, merge `ratio` of the tokens (0 to 0.75) in self-attention of the largest images."""
    hooks = []
    try:
        for transformer in _largest(unet) if ratio else ():
            watch = _Watch(ratio)
            hooks.append(transformer.register_forward_pre_hook(watch.see))
            for block in transformer.transformer_blocks:
                attention = block.get_submodule("attn1")
                hooks += [attention.register_forward_pre_hook(watch.before)]
                hooks += [attention.register_forward_hook(watch.after)]
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _largest(unet: UNet) -> list[SpatialTransformer]:
    """Return the transformers of the outermost level that has any."""
    levels = zip(unet.down_blocks, reversed(unet.up_blocks), strict=True)
    found = (
        [part for block in level for part in block.modules() if isinstance(part, SpatialTransformer)]
        for level in levels
    )
    return next(filter(None, found), [])


class _Watch:
    """Merge what the self-attention of one transformer is given, and undo it in what it answers."""

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio

    def see(self, module: nn.Module, given: tuple[Any, ...]) -> None:
        """Note the image's height and width, which tokens no longer tell."""
        self.height, self.width = given[0].shape[2:]

    def before(self, module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """Give self-attention fewer tokens."""
        self.merged = Merged.of(given[0], self.height, self.width, self.ratio)
        return (self.merged.merge(given[0]), *given[1:])

    def after(self, module: nn.Module, given: tuple[Tensor], answer: Tensor) -> Tensor:
        """Give every token its answer."""
        return self.merged.undo(answer)


@dataclass(frozen=True, eq=False)
class Merged:
    """Say which tokens are merged: those of `others` in `gone`, each into the one of `kept` in `into`.

    `stay` counts the others that are left alone. Rows differ in all but `kept` and `others`.
    """

    kept: Int64[Tensor, " k"]
    others: Int64[Tensor, " o"]
    gone: Int64[Tensor, "b g"]
    stay: Int64[Tensor, "b s"]
    into: Int64[Tensor, "b g"]

    @classmethod
    def of(cls, x: Float[Tensor, "b l d"], height: int, width: int, ratio: float) -> Merged:
        """Choose `ratio` of an image's tokens: the most like the first of some square, by the cosine between them."""
        first = torch.zeros(height, width, dtype=torch.bool, device=x.device)
        first[::SIDE, ::SIDE] = True
        count = first[::SIDE, ::SIDE].numel()
        order = first.flatten().byte().argsort(stable=True)  # nonzero() would wait for the device
        others, kept = order[:-count], order[-count:]
        directions = F.normalize(x, dim=-1)
        likeness, partner = (directions[:, others] @ directions[:, kept].mT).max(-1)
        gone, stay = likeness.argsort(-1, descending=True).tensor_split([int(ratio * height * width)], dim=1)
        return cls(kept, others, gone, stay, partner.gather(1, gone))

    def merge(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b m d"]:
        """Return the tokens that are left, the kept ones last, each the mean of all that went into it."""
        others = x[:, self.others]
        means = x[:, self.kept].scatter_reduce(1, _wide(self.into, x), _take(others, self.gone), "mean")
        return torch.cat([_take(others, self.stay), means], dim=1)

    def undo(self, x: Float[Tensor, "b m d"]) -> Float[Tensor, "b l d"]:
        """Return every token's answer: its own, or that of the one it went into."""
        alone, shared = x.split([self.stay.shape[1], len(self.kept)], dim=1)
        others = x.new_empty(len(x), len(self.others), x.shape[2])
        others.scatter_(1, _wide(self.stay, x), alone).scatter_(1, _wide(self.gone, x), _take(shared, self.into))
        whole = x.new_empty(len(x), len(self.kept) + len(self.others), x.shape[2])
        whole[:, self.kept], whole[:, self.others] = shared, others
        return whole


def _wide(index: Int64[Tensor, "b n"], x: Float[Tensor, "b l d"]) -> Int64[Tensor, "b n d"]:
    return index[..., None].expand(-1, -1, x.shape[2])


def _take(x: Float[Tensor, "b l d"], index: Int64[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
    return x.gather(1, _wide(index, x))


@contextmanager
def attending(ways: Mapping[Attention, Attend]) -> Iterator[None]:
    """Within the block, let attentions gather otherwise: each in the way that it is given. Blocks may be nested."""
    before = {attention: attention.__dict__.get("attend") for attention in ways}
    try:
        for attention, way in ways.items():
            attention.attend = way
        yield
    finally:
        for attention, way_before in before.items():
            attention.__dict__.pop("attend", None)
            if way_before is not None:
                attention.attend = way_before


@contextmanager
def perturbing(unet: UNet) -> Iterator[None]:
    """Within the block, let self-attention in the middle see each place alone: it gathers what each place has itself.

    Raises ReverieError for a U-Net whose middle has no attention.
    """
    middle = [] if unet.mid_block is None else list(unet.mid_block.named_modules())
    found = [module for name, module in middle if name.endswith("attn1") and isinstance(module, Attention)]
    if not found:
        raise ReverieError("this model has no attention in its middle to perturb; leave out perturbed guidance")
    with attending({attention: lambda q, k, v, heads: v for attention in found}):
        yield


Strengths = tuple[float, float, float, float]
"""FreeU's b1, b2, s1 and s2."""


@contextmanager
def freeing(unet: UNet, strengths: Strengths | None) -> Iterator[None]:
    """Within the block, let the two lowest levels of the way up rely more on themselves, less on the way down (FreeU).

    Half of what comes from below is multiplied by b1 and b2, and the lowest frequencies of what comes from the way
    down by s1 and s2. None changes nothing.
    """
    hooks = []
    levels = list(zip(unet.up_blocks, unet.config.block_out_channels[::-1], strict=True))[:2] if strengths else []
    below = unet.config.block_out_channels[-1]
    try:
        for (block, width), strength, damping in zip(levels, (strengths or ())[:2], (strengths or ())[2:], strict=True):
            for resnet in block.get_submodule("resnets").children():
                hooks.append(resnet.register_forward_pre_hook(_free(below, strength, damping)))
                below = width
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _free(below: int, strength: float, damping: float) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    """Change what a residual block of the way up is given: `below` channels from below, then those of the way down."""

    def change(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        half, rest, skip = given[0].tensor_split([below // 2, below], dim=1)
        spectrum = torch.fft.fftn(skip.float(), dim=(-2, -1))
        spectrum[..., (-1, -1, 0, 0), (-1, 0, -1, 0)] *= damping  # the authors' square of frequencies
        damped = torch.fft.ifftn(spectrum, dim=(-2, -1)).real.to(skip)
        return (torch.cat([half * strength, rest, damped], dim=1), *given[1:])

    return change


WAYS = ("fast", "int8", "offload", "compile", "cache_steps", "merge_tokens", "tile")


@dataclass(frozen=True)
class Rule:
    """Say what becomes of two ways asked for together: `wins` is the one that takes effect, None refuses both."""

    wins: str | None
    why: str


# `fast` (packed weights), `int8`, `offload` and `compile` are chosen as a model is loaded; `cache_steps` (DeepCache),
# `merge_tokens` and `tile` (seamless) change networks for one drawing. Pairs without a row both take effect.
RULES: dict[tuple[str, str], Rule] = {
    ("fast", "int8"): Rule("int8", "the U-Net's weights are rounded, and those of the other networks packed"),
    ("fast", "offload"): Rule("offload", "packed weights are for the CPU, offloaded ones for GPUs"),
    ("fast", "compile"): Rule(None, "on the CPU packed weights are quicker than compiled kernels"),
    ("int8", "offload"): Rule(None, "int8 computes on the CPU, and offload is for GPUs"),
    ("int8", "compile"): Rule(None, "int8 computes by kernels of its own"),
    ("offload", "compile"): Rule(None, "compiled kernels need their weights on the device"),
    ("compile", "cache_steps"): Rule("cache_steps", "the U-Net takes another class, and computes plainly"),
    ("compile", "merge_tokens"): Rule("merge_tokens", "what is compiled would not see hooks"),
    ("compile", "tile"): Rule("tile", "what is compiled would not see hooks"),
}
"""By two of WAYS, in their order."""


def check_combination(asked: Iterable[str]) -> None:
    """Raise ReverieError where two of the ways of computing that are asked for, and take effect, exclude each other."""
    asked = set(asked)
    asked -= {
        one for pair, rule in RULES.items() if rule.wins and asked.issuperset(pair) for one in pair if one != rule.wins
    }
    for pair, rule in RULES.items():
        if rule.wins is None and asked.issuperset(pair):
            raise ReverieError(f"{pair[0]} and {pair[1]} exclude each other: {rule.why}; leave out one of them")


def is_hooked(*modules: nn.Module) -> bool:
    """Tell whether a forward hook watches one of the modules themselves, or stands in for its forward.

    Fused and compiled forwards skip both.
    """
    return any(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) for module in modules)


def gathers_otherwise(*modules: nn.Module) -> bool:
    """Tell whether one of the modules is an attention that was given another way to gather."""
    return any("attend" in module.__dict__ for module in modules)
