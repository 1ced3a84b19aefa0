"""How is a large picture coded in little memory? Layer by layer, each in strips of rows: no tiles, no seams.

Tiles that pass the whole network on their own normalise by their own statistics, and differ. Here every GroupNorm takes
its statistics from the whole picture, and every convolution sees the rows beyond its strip; so the result is that of
the network but for rounding, while the widest layers hold their input, their output and a strip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reverie.models.autoencoder import Autoencoder, DiagonalGaussian, MidBlock
from reverie.models.layers import AsymmetricDownsample, ResidualBlock, Upsample

STRIP = 64  # rows of a layer's output that are computed at once

Padding = tuple[int, int, int, int]
"""Zeros on the left, on the right, above and below."""
AROUND, NOWHERE = (1, 1, 1, 1), (0, 0, 0, 0)

Rows = Callable[[int, int], Tensor]
"""(top, bottom) -> these rows of what a convolution reads, [1, c, bottom - top, w]."""


def decode(autoencoder: Autoencoder, z: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 out h2 w2"]:
    """Decode unscaled latents as `autoencoder.decode` does, in strips."""
    decoder = autoencoder.decoder
    x = _middle(decoder.mid_block, decoder.conv_in(autoencoder.post_quant_conv(z)))
    blocks: Iterable[Any] = decoder.up_blocks
    for block in blocks:
        for resnet in block.resnets:
            x = _residual(resnet, x)
        for upsample in block.upsamplers:
            x = _enlarged(upsample, x)
    return _convolved(decoder.conv_out, _normalised(decoder.conv_norm_out, x), x.shape[2])


def encode(autoencoder: Autoencoder, images: Float[Tensor, "1 c h w"]) -> DiagonalGaussian:
    """Encode images in [-1, 1] as `autoencoder.encode` does, in strips."""
    encoder = autoencoder.encoder
    x = _convolved(encoder.conv_in, _plain(images), images.shape[2])
    blocks: Iterable[Any] = encoder.down_blocks
    for block in blocks:
        for resnet in block.resnets:
            x = _residual(resnet, x)
        for downsample in block.downsamplers:
            x = _halved(downsample, x)
    x = _middle(encoder.mid_block, x)
    moments = _convolved(encoder.conv_out, _normalised(encoder.conv_norm_out, x), x.shape[2])
    mean, logvar = autoencoder.quant_conv(moments).chunk(2, dim=1)
    return DiagonalGaussian(mean, logvar.clamp(-30, 20))


def _middle(block: MidBlock, x: Tensor) -> Tensor:
    """Pass the lowest resolution, where all pixels look at one another."""
    resnets: Any = block.resnets
    x = _residual(resnets[0], x)
    if block.attentions is not None:
        x = block.attentions(x)
    return _residual(resnets[1], x)


def _residual(block: ResidualBlock, x: Tensor) -> Tensor:
    """Pass a residual block without embedding; x is overwritten where the width stays."""
    height = x.shape[2]
    h = _convolved(block.conv1, _normalised(block.norm1, x), height)
    if block.conv_shortcut is not None:
        x = _convolved(block.conv_shortcut, _plain(x), height)
    for top, strip in _strips(block.conv2, _normalised(block.norm2, h), height, AROUND):
        x[:, :, top : top + strip.shape[2]] += strip
    return x


def _enlarged(upsample: Upsample, x: Tensor) -> Tensor:
    def rows(top: int, bottom: int) -> Tensor:
        first = top // 2
        doubled = F.interpolate(x[:, :, first : (bottom + 1) // 2], scale_factor=2, mode="nearest")
        return doubled[:, :, top - 2 * first : bottom - 2 * first]

    return _convolved(upsample.conv, rows, 2 * x.shape[2])


def _halved(downsample: AsymmetricDownsample, x: Tensor) -> Tensor:
    return _joined(_strips(downsample.conv, _plain(x), x.shape[2], (0, 1, 0, 1)), x.shape[2] // 2)


def _plain(x: Tensor) -> Rows:
    return lambda top, bottom: x[:, :, top:bottom]


def _normalised(norm: nn.GroupNorm, x: Tensor) -> Rows:
    """Read x through a GroupNorm over all of x, and the SiLU that always follows."""
    statistics = [torch.var_mean(group.float(), correction=0) for group in x.unflatten(1, (norm.num_groups, -1))[0]]
    variance, mean = (torch.stack(parts) for parts in zip(*statistics, strict=True))
    each = x.shape[1] // norm.num_groups
    scale = norm.weight.float() * (variance + norm.eps).rsqrt().repeat_interleave(each)
    shift = norm.bias.float() - scale * mean.repeat_interleave(each)

    def rows(top: int, bottom: int) -> Tensor:
        affine = torch.addcmul(shift.view(1, -1, 1, 1), x[:, :, top:bottom].float(), scale.view(1, -1, 1, 1))
        return F.silu(affine.to(x.dtype))

    return rows


def _convolved(conv: nn.Conv2d, rows: Rows, height: int) -> Tensor:
    """Convolve `height` rows to as many, with a 3x3 or a 1x1 kernel."""
    return _joined(_strips(conv, rows, height, AROUND if conv.kernel_size[0] == 3 else NOWHERE), height)


def _joined(strips: Iterator[tuple[int, Tensor]], height: int) -> Tensor:
    """Write strips into one tensor, made with the first."""
    (_, first), rest = next(strips), strips
    whole = first.new_empty((*first.shape[:2], height, first.shape[3]))
    whole[:, :, : first.shape[2]] = first
    for top, strip in rest:
        whole[:, :, top : top + strip.shape[2]] = strip
    return whole


def _strips(conv: nn.Conv2d, rows: Rows, height: int, padding: Padding) -> Iterator[tuple[int, Tensor]]:
    """Convolve `height` rows, padded by zeros, strip by strip: yield each strip and its first row in the output."""
    left, right, above, below = padding
    stride, kernel, weight = conv.stride[0], conv.kernel_size[0], conv.weight  # a packed one is unpacked once
    total = (height + above + below - kernel) // stride + 1
    for top in range(0, total, STRIP):
        bottom = min(top + STRIP, total)
        first, last = top * stride - above, (bottom - 1) * stride + kernel - above
        piece = rows(max(first, 0), min(last, height))
        piece = F.pad(piece, (left, right, max(-first, 0), max(last - height, 0)))
        yield top, F.conv2d(piece, weight, conv.bias, conv.stride)
