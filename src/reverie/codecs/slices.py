"""Large pictures through an autoencoder: layer by layer, each in strips of rows, or beyond that in tiles.

Strips take little memory, and have no seams, as no tiles overlap. Tiles are for pictures for which even one layer's
output is too much: all but the middle is tiled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reverie.models.autoencoder import (
    AutoencoderMidBlock,
    Decoder,
    DiagonalGaussian,
    Encoder,
    ImageAutoencoder,
    TinyAutoencoder,
    TinyBlock,
    TinyDecoder,
    TinyEncoder,
)
from reverie.models.layers import AsymmetricDownsample, GroupNormSiLU, ResidualBlock

FOLD = 8  # tiles begin where upscalers that fold pixels, or look within windows, would cut the whole picture
STRIP = 102  # rows of a layer's output that are computed at once; of 512, five times 104 with one above and below
LARGE = 2**23  # numbers of an image from which a residual block's layers pass in strips
SUMMED = 8  # rows that are added up in float32

Layer = Callable[[Tensor], Tensor]
Rows = Callable[[int, int], Tensor]
"""(top, bottom) -> these rows of what a convolution reads, [1, c, bottom - top, w]."""


def decode_in_strips(autoencoder: ImageAutoencoder, z: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 out h2 w2"]:
    """Decode unscaled latents as `autoencoder.decode` does, in strips."""
    return autoencoder.decode(z, _pass_tiny if isinstance(autoencoder, TinyAutoencoder) else _pass_decoder)


def encode_in_strips(autoencoder: ImageAutoencoder, images: Float[Tensor, "1 c h w"]) -> DiagonalGaussian:
    """Encode images in [-1, 1] as `autoencoder.encode` does, in strips."""
    return autoencoder.encode(images, _pass_tiny if isinstance(autoencoder, TinyAutoencoder) else _pass_encoder)


def _pass_decoder(decoder: Decoder, z: Tensor) -> Tensor:
    x = _middle(decoder.mid_block, decoder.conv_in(z))
    blocks: Iterable[Any] = decoder.up_blocks
    for block in blocks:
        for resnet in block.resnets:
            x = _residual(resnet, x)
        for upsample in block.upsamplers:
            x = _upsample(upsample.conv, upsample, x)
    return _convolve(decoder.conv_out, _normalise(decoder.conv_norm_out, x), x.shape[2])


def _pass_encoder(encoder: Encoder, images: Tensor) -> Tensor:
    x = _convolve(encoder.conv_in, _read_rows(images), images.shape[2])
    blocks: Iterable[Any] = encoder.down_blocks
    for block in blocks:
        for resnet in block.resnets:
            x = _residual(resnet, x)
        for downsample in block.downsamplers:
            x = _downsample(downsample, x)
    return _pass_end(encoder, x)


def _pass_end(encoder: Encoder, x: Tensor) -> Tensor:
    """Pass what comes after an encoder's levels."""
    x = _middle(encoder.mid_block, x)
    return _convolve(encoder.conv_out, _normalise(encoder.conv_norm_out, x), x.shape[2])


CELLS = (128, 16, 8)  # latents: a tile's side, what is thrown away at its cuts, over what tiles are blended


def decode_in_tiles(autoencoder: ImageAutoencoder, z: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 out h2 w2"]:
    """Decode unscaled latents nearly as `autoencoder.decode` does, tile by tile, in the memory of one.

    The middle is passed whole. The norms after it take their statistics from a smaller image of what it gives, and a
    tile sees as far as any layer does: there are no seams. So does "Tiled VAE" (pkuliyi2015), with its middle tiled.
    """
    side = autoencoder.factor // autoencoder.config.patch_size

    def in_tiles(decoder: Decoder, z: Tensor) -> Tensor:
        x = _middle(decoder.mid_block, decoder.conv_in(z))

        def run(x: Tensor) -> Tensor:
            return decoder.conv_out(decoder.conv_norm_out(decoder.up_blocks(x)))

        with _fixed_norms([decoder.up_blocks, decoder.conv_norm_out], run, _shrink(x, CELLS[0], "nearest-exact")):
            return _in_tiles(run, x, 1, side)

    tiny = isinstance(autoencoder, TinyAutoencoder)
    return autoencoder.decode(z, (lambda half, x: _in_tiles(half.layers, x, 1, side)) if tiny else in_tiles)


def encode_in_tiles(autoencoder: ImageAutoencoder, images: Float[Tensor, "1 c h w"]) -> DiagonalGaussian:
    """Encode images in [-1, 1] nearly as `autoencoder.encode` does; see `decode_in_tiles`."""
    side = autoencoder.factor // autoencoder.config.patch_size

    def in_tiles(encoder: Encoder, images: Tensor) -> Tensor:
        def run(x: Tensor) -> Tensor:
            return encoder.down_blocks(encoder.conv_in(x))

        with _fixed_norms([encoder.down_blocks], run, _shrink(images, CELLS[0] * side, "area")):
            return _pass_end(encoder, _in_tiles(run, images, side, 1))

    tiny = isinstance(autoencoder, TinyAutoencoder)
    return autoencoder.encode(images, (lambda half, x: _in_tiles(half.layers, x, side, 1)) if tiny else in_tiles)


def _shrink(x: Tensor, side: int, mode: str) -> Tensor:
    """Shrink an image to the size of a tile."""
    return F.interpolate(x, [min(side, length) for length in x.shape[2:]], mode=mode)


@contextmanager
def _fixed_norms(networks: Sequence[nn.Module], run: Callable[[Tensor], Tensor], sample: Tensor) -> Iterator[None]:
    """Within the block, let the norms of networks normalise by the statistics that they meet as a sample passes."""
    found: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    norms = [part for network in networks for part in network.modules() if isinstance(part, nn.GroupNorm)]

    def meet(norm: Any, given: tuple[Tensor, ...]) -> None:
        found[norm] = _statistics(norm, given[0])

    def normalise(norm: Any, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        normalised = _affine(norm, given[0], *found[norm])
        return F.silu(normalised, inplace=True) if isinstance(norm, GroupNormSiLU) else normalised

    with ExitStack() as hooks:
        for norm in norms:
            hooks.callback(norm.register_forward_pre_hook(meet).remove)
        run(sample)
    with ExitStack() as hooks:
        for norm in norms:
            hooks.callback(norm.register_forward_hook(normalise).remove)
        yield


def _in_tiles(run: Callable[[Tensor], Tensor], x: Tensor, given: int, made: int) -> Tensor:
    """Pass an image of `given` pixels a latent tile by tile through what makes `made` of them."""
    rows, columns = (lay_tiles(length // given, made, CELLS) for length in x.shape[2:])
    whole = x.new_zeros(())
    for (top, bottom, down), (left, right, across) in product(rows, columns):
        part = run(x[:, :, top * given : bottom * given, left * given : right * given])
        if not whole.ndim:
            whole = part.new_zeros(*part.shape[:2], *(length // given * made for length in x.shape[2:]))
        share = (down[:, None] * across).to(part)
        whole[:, :, top * made : bottom * made, left * made : right * made] += part * share
    return whole


def _middle(block: AutoencoderMidBlock, x: Tensor) -> Tensor:
    """Pass the lowest resolution, where all pixels look at one another."""
    resnets: Any = block.resnets
    x = _residual(resnets[0], x)
    if block.attentions is not None:
        x = block.attentions(x)
    return _residual(resnets[1], x)


def _residual(block: ResidualBlock, x: Tensor) -> Tensor:
    """Pass a residual block without embedding; a large x is overwritten where the width stays."""
    if x.numel() <= LARGE:
        return block(x)
    height = x.shape[2]
    h = _convolve(block.conv1, _normalise(block.norm1, x), height)
    if block.conv_shortcut is not None:
        x = _convolve(block.conv_shortcut, _read_rows(x), height)
    for top, strip in _strips(block.conv2, _normalise(block.norm2, h), height):
        x[:, :, top : top + strip.shape[2]] += strip
        del strip  # before the next is made
    return x


def _upsample(conv: nn.Conv2d, upsample: nn.Module, x: Tensor) -> Tensor:
    """Double an image, and convolve it, by what does both."""
    return _join_strips(_strips(conv, _read_rows(x), x.shape[2], run=upsample, scale=2), 2 * x.shape[2])


def _downsample(downsample: AsymmetricDownsample, x: Tensor) -> Tensor:
    return _join_strips(_strips(downsample.conv, _read_rows(x), x.shape[2], beyond=1), x.shape[2] // 2)


def _pass_tiny(half: TinyEncoder | TinyDecoder, x: Tensor) -> Tensor:
    """Pass the layers of a tiny autoencoder's half."""
    before: Any = None  # the layer before
    for layer in half.layers:
        height = x.shape[2]
        if isinstance(layer, TinyBlock):
            x = _tiny_block(layer, x)
        elif isinstance(layer, nn.Conv2d) and isinstance(before, nn.Upsample):
            x = _upsample(layer, nn.Sequential(before, layer), x)
        elif isinstance(layer, nn.Conv2d):
            x = _join_strips(_strips(layer, _read_rows(x), height), height // layer.stride[0])
        elif isinstance(layer, nn.ReLU):
            x = x.relu_()
        before = layer
    return x


def _tiny_block(block: TinyBlock, x: Tensor) -> Tensor:
    """Pass a block of a tiny autoencoder; x is overwritten."""
    convolutions: Any = block.conv[::2]
    h = x
    for conv in convolutions[:2]:
        h = _convolve(conv, _read_rows(h), x.shape[2]).relu_()
    for top, strip in _strips(convolutions[2], _read_rows(h), x.shape[2]):
        x[:, :, top : top + strip.shape[2]] += strip
    return x.relu_()


def _read_rows(x: Tensor) -> Rows:
    return lambda top, bottom: x[:, :, top:bottom]


def _normalise(norm: GroupNormSiLU, x: Tensor) -> Rows:
    """Read x through a GroupNorm over all of x, and the SiLU."""
    found = _statistics(norm, x)
    return lambda top, bottom: F.silu(_affine(norm, x[:, :, top:bottom], *found), inplace=True)


def _statistics(norm: nn.GroupNorm, x: Float[Tensor, "1 c h w"]) -> tuple[Tensor, Tensor]:
    """Return the variance and the mean of each group."""
    if not x.is_cpu:
        groups = [torch.var_mean(group.float(), correction=0) for group in x.unflatten(1, (norm.num_groups, -1))[0]]
        variance, mean = (torch.stack(parts) for parts in zip(*groups, strict=True))
        return variance, mean
    pieces = x.split(SUMMED, dim=2)  # its kernel is 14 times as fast, but adds up one by one
    found = zip(*(torch.batch_norm_update_stats(piece.float(), None, None, 0.0) for piece in pieces), strict=True)
    means, variances = (torch.stack(parts).double().unflatten(1, (norm.num_groups, -1)) for parts in found)
    share = torch.tensor([piece.shape[2] / x.shape[2] for piece in pieces], dtype=torch.double)[:, None, None]
    mean = (share * means).sum(0).mean(1)
    variance = (share * (variances + (means - mean[:, None]).square())).sum(0).mean(1)
    return variance.float(), mean.float()


def _affine(norm: nn.GroupNorm, x: Tensor, variance: Tensor, mean: Tensor) -> Tensor:
    """Normalise by given statistics, in float32."""
    each = x.shape[1] // norm.num_groups
    variance, mean = variance.repeat_interleave(each), mean.repeat_interleave(each)
    weight, bias = norm.weight.float(), norm.bias.float()
    if x.is_cpu:  # one pass, without an image in float32: in bfloat16 30 times as fast
        return F.batch_norm(x, mean, variance, weight, bias, eps=norm.eps)
    scale = weight * (variance + norm.eps).rsqrt()
    shift = bias - scale * mean
    return torch.addcmul(shift.view(1, -1, 1, 1), x.float(), scale.view(1, -1, 1, 1)).to(x.dtype)


def _convolve(conv: nn.Conv2d, rows: Rows, height: int) -> Tensor:
    """Convolve `height` rows to as many, with a 3x3 or a 1x1 kernel."""
    return _join_strips(_strips(conv, rows, height), height)


def _join_strips(strips: Iterator[tuple[int, Tensor]], height: int) -> Tensor:
    """Write strips into one tensor, made with the first."""
    whole = torch.empty(0)
    for top, strip in strips:
        if not top:
            last = strip.is_contiguous(memory_format=torch.channels_last)
            layout = torch.channels_last if last else torch.contiguous_format
            shape = (*strip.shape[:2], height, strip.shape[3])
            whole = torch.empty(shape, dtype=strip.dtype, device=strip.device, memory_format=layout)
        whole[:, :, top : top + strip.shape[2]] = strip
        del strip  # before the next is made
    return whole


def _strips(
    conv: nn.Conv2d,
    rows: Rows,
    height: int,
    beyond: int = 0,
    run: nn.Module | None = None,
    scale: int = 1,
) -> Iterator[tuple[int, Tensor]]:
    """Convolve `height` rows, strip by strip: yield each strip and its first row in the output.

    All are read from as many rows, for which the layer packs its weight: the last begins above the end of the one
    before. The layer pads each as it does an image; rows that see that within the image are left out. `beyond` are
    zeros on the right of the image and below it, besides. What is to `run` in place of the convolution sees as far,
    and makes `scale` rows of each. A convolution that wraps (`runtime.changes.seamless`) is given the rows of the other
    side, and what it makes by wrapping within a strip is left out.
    """
    layer: Layer = run or conv
    if not beyond and (wrapped := conv.kernel_size[0] // 2 - int(conv.padding[0])):
        layer, rows = _cut(layer, wrapped * scale), _wrap(rows, height, wrapped)
        height += 2 * wrapped
    stride, kernel, around = conv.stride[0], conv.kernel_size[0], int(conv.padding[0])
    whole = height + beyond
    total = (whole + 2 * around - kernel) // stride + 1
    inner = max(1, total - 2 * around)  # the first and the last strip make rows at the image's edge besides
    each = math.ceil(inner / math.ceil(inner * scale / STRIP))
    read = min(whole, (each + around - 1) * stride + kernel - around)
    done = 0
    while done < total:
        start = min(max(done - around, 0) * stride, whole - read)
        first, end = start // stride, min(start + read, height)
        last = total if start + read == whole else first + (read - kernel + around) // stride + 1
        right = slice((done - first) * scale, (last - first) * scale)
        edge = (0, beyond, 0, start + read - end)
        yield done * scale, layer(F.pad(rows(start, end), edge) if beyond else rows(start, end))[:, :, right]
        done = last


def _cut(layer: Layer, rows: int) -> Layer:
    return lambda x: layer(x)[:, :, rows:-rows]


def _wrap(rows: Rows, height: int, around: int) -> Rows:
    """Return the rows of an image to which `around` rows of its other side were added above and below."""

    def read(start: int, end: int) -> Tensor:
        start, end = start - around, end - around
        above = [rows(height + start, height)] if start < 0 else []
        below = [rows(0, end - height)] if end > height else []
        return torch.cat([*above, rows(max(start, 0), min(end, height)), *below], dim=2)

    return read


def lay_tiles(length: int, scale: int, layout: tuple[int, int, int]) -> list[tuple[int, int, Float[Tensor, " n"]]]:
    """Return where tiles along a side begin and end, and the share that each has in the pixels of its result.

    `layout` is a tile's length, what is thrown away at its cuts, and over what tiles are blended.
    """
    tile, margin, ramp = layout
    count = 1 + max(0, math.ceil((length - tile) / (tile - 2 * margin - ramp - FOLD)))
    starts = [index * (length - tile) // max(1, count - 1) // FOLD * FOLD for index in range(count)]
    sides = [(start, start + tile) for start in starts[:-1]] + [(starts[-1], length)]
    shares = []
    for start, end in sides:
        places = (torch.arange((end - start) * scale) + 0.5) / scale
        before, after = math.inf if start == 0 else 0, math.inf if end == length else 0  # edges are no cuts
        cut = torch.minimum(places + before, end - start - places + after)
        shares.append(((cut - margin) / ramp).clamp(0, 1))
    sums = torch.zeros(length * scale)
    for (start, end), share in zip(sides, shares, strict=True):
        sums[start * scale : end * scale] += share
    return [(*side, share / sums[side[0] * scale : side[1] * scale]) for side, share in zip(sides, shares, strict=True)]
