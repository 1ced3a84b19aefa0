"""The image codec: pictures to scaled latents and back, large ones in strips of rows, and previews of latents.

The latent scale factor is applied here alone. A large picture passes layer by layer, each layer in strips: little
memory, no tiles and so no seams. Beyond 2048 x 2048 pixels even that is too much, and all but the middle is tiled.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from reverie.errors import ReverieError
from reverie.media.pictures import to_rgb
from reverie.models.autoencoder import (
    AutoencoderConfig,
    AutoencoderMidBlock,
    Decoder,
    DiagonalGaussian,
    Encoder,
    ImageAutoencoder,
    TinyAutoencoder,
    TinyBlock,
    TinyConfig,
    TinyDecoder,
    TinyEncoder,
)
from reverie.models.layers import AsymmetricDownsample, GroupNormSiLU, ResidualBlock
from reverie.models.upscalers import Upscaler
from reverie.progress import Progress

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
    rows, columns = (_tiles(length // given, made, CELLS) for length in x.shape[2:])
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


WHOLE = 768 * 768  # pixels, where the widest layer of a bfloat16 decoder holds 0.3 GB; at 1024 x 1024, 0.54 GB
STRIPS = 2048 * 2048  # pixels, where it holds 4.3 GB


@dataclass(frozen=True, eq=False)
class ImageCodec:
    """Encode pictures to scaled latents and decode scaled latents, through an autoencoder.

    Pictures of more than `whole` pixels pass it in slices, which takes less memory and changes rounding alone, those of
    more than `strips` in tiles. Where float16 overflows, as in the autoencoder that came with SDXL, the work is done
    again in float32.
    """

    autoencoder: ImageAutoencoder
    whole: int = WHOLE
    strips: int = STRIPS

    @property
    def factor(self) -> int:
        """Return how many pixels a latent spans in height and in width."""
        return self.autoencoder.factor

    def without_tiles(self) -> ImageCodec:
        """Return a codec for convolutions that wrap: in tiles they would not meet at the outer edges."""
        return replace(self, strips=sys.maxsize)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Return (channels, height, width) of a picture's latents; raise ReverieError where not whole."""
        for side, pixels in (("width", width), ("height", height)):
            if pixels <= 0 or pixels % self.factor:
                low = pixels // self.factor * self.factor
                near = f"{low} or {low + self.factor}" if low > 0 else f"{self.factor}"
                raise ReverieError(f"{side} {pixels} is not a multiple of {self.factor}; the nearest are {near}")
        return self.autoencoder.config.latent_channels, height // self.factor, width // self.factor

    @torch.no_grad()
    def encode(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "b c h w"]:
        """Encode pictures of one size to float32 latents of about unit variance, the likeliest of their posterior."""
        for picture in pictures:
            self.latent_shape(*picture.size)
        return self.encode_tensor(to_tensor(pictures))

    @torch.no_grad()
    def encode_tensor(self, images: Float[Tensor, "b 3 hf wf"]) -> Float[Tensor, "b c h w"]:
        """Encode images in [-1, 1] as `encode` does pictures; those that pass in slices, one by one."""
        pixels = images[0, 0].numel()
        large = encode_in_tiles if pixels > self.strips else encode_in_strips
        run, parts = (large, images.split(1)) if pixels > self.whole else (type(self.autoencoder).encode, (images,))
        latents = [self._finite(lambda model, part: run(model, part).mode(), part) for part in parts]
        return scale_latents(torch.cat(latents), self.autoencoder.config)

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 hf wf"]:
        """Decode scaled latents to float32 images in [-1, 1], clipped.

        They pass the decoder one by one, so a picture does not depend on its batch, and memory does not grow with it.
        """
        z = unscale_latents(latents, self.autoencoder.config)
        pixels = z[0, 0].numel() * self.factor**2
        large = decode_in_tiles if pixels > self.strips else decode_in_strips
        run = large if pixels > self.whole else type(self.autoencoder).decode
        return torch.cat([self._finite(run, one) for one in z.split(1)]).clamp(-1, 1)

    def _finite(self, run: Callable[[Any, Tensor], Tensor], x: Tensor) -> Tensor:
        """Run the autoencoder in its own dtype, and again in float32 where that overflows; float32."""
        model = self.autoencoder
        result: Tensor = model(lambda model, x: run(model, x.to(model.device, model.dtype)), x).float()
        if model.dtype == torch.float32 or result.isfinite().all():
            return result
        return run(deepcopy(model).float(), x.to(model.device))

    @torch.no_grad()
    def pictures(self, latents: Float[Tensor, "b c h w"]) -> list[Image.Image]:
        """Decode scaled latents to pictures."""
        return to_pictures(self.decode(latents))


def scale_latents(z: Float[Tensor, "b c h w"], config: AutoencoderConfig | TinyConfig) -> Float[Tensor, "b c h w"]:
    """Bring an autoencoder's latents to about unit variance, as a U-Net sees them."""
    scale, mean = _moments(config, z)
    return (z - mean) * scale


def unscale_latents(
    latents: Float[Tensor, "b c h w"], config: AutoencoderConfig | TinyConfig
) -> Float[Tensor, "b c h w"]:
    """Undo `scale_latents`."""
    scale, mean = _moments(config, latents)
    return latents / scale + mean


def _moments(config: AutoencoderConfig | TinyConfig, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """Return what latents are multiplied by, and their mean, which is taken off before (diffusers: SDXL's pipeline)."""
    if config.latents_mean is None or config.latents_std is None:
        return config.scaling_factor, 0.0
    mean, std = (like.new_tensor(values)[:, None, None] for values in (config.latents_mean, config.latents_std))
    return config.scaling_factor / std, mean


def to_tensor(pictures: Sequence[Image.Image]) -> Float[Tensor, "b 3 h w"]:
    """Turn pictures of one size into images in [-1, 1]; transparent ones are laid on white."""
    if len({picture.size for picture in pictures}) != 1:
        sizes = ", ".join(sorted({f"{picture.width}x{picture.height}" for picture in pictures})) or "none"
        raise ReverieError(f"pictures of sizes {sizes} do not stack; give one or more of one size")
    rows = np.stack([np.asarray(to_rgb(picture), dtype=np.float32) for picture in pictures])
    return torch.from_numpy(rows).permute(0, 3, 1, 2) / 127.5 - 1


def to_levels(images: Float[Tensor, "b 3 h w"]) -> UInt8[Tensor, "b 3 h w"]:
    """Turn images in [-1, 1] into levels of eight bits, rounded."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_pictures(images: Float[Tensor, "b 3 h w"]) -> list[Image.Image]:
    """Turn images in [-1, 1] into pictures of eight bits, rounded."""
    return [Image.fromarray(row) for row in to_levels(images).permute(0, 2, 3, 1).cpu().numpy()]


TILE, MARGIN, RAMP = 256, 16, 16  # pixels: a tile's side, what is thrown away at its cuts, over what tiles are blended
PASSES = 3
FOLD = 8  # tiles begin where upscalers that fold pixels, or look within windows, would cut the whole picture


@dataclass(frozen=True)
class Enlargement(Progress):
    """How far an enlargement is, in tiles; the last one has the `picture`."""

    picture: Image.Image | None = None


def enlarge(network: Upscaler, picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Enlarge a picture, RGB or RGBA, to a size in pixels by a learned upscaler. See `enlarge_to`."""
    *_, last = enlarge_to(network, picture, size)
    assert last.picture is not None
    return last.picture


def enlarge_to(network: Upscaler, picture: Image.Image, size: tuple[int, int]) -> Iterator[Enlargement]:
    """Enlarge a picture by a learned upscaler to at least a size, in up to PASSES, and bring it there by Lanczos.

    So does AUTOMATIC1111 (modules/upscaler.py). Yields how far it is, and last the picture.
    """
    for _ in range(PASSES):
        for step in enlarge_tiles(network, picture):
            picture = step.picture or picture
            yield replace(step, picture=None)
        if network.scale == 1 or (picture.width >= size[0] and picture.height >= size[1]):
            break
    yield replace(step, picture=picture.resize(size, Image.Resampling.LANCZOS))


@torch.no_grad()
def enlarge_tiles(network: Upscaler, picture: Image.Image) -> Iterator[Enlargement]:
    """Enlarge a picture, RGB or RGBA, by a learned upscaler, tile by tile; how transparent it is, by Lanczos.

    A tile sees MARGIN pixels beyond what is kept of it, and tiles are blended over RAMP: where the network sees no
    further, it is the picture that the whole would give. Memory for its layers is that of one tile.
    """
    image, weight = (to_tensor([picture.convert("RGB")]) + 1) / 2, next(network.parameters())
    rows, columns = (_tiles(length, network.scale, (TILE, MARGIN, RAMP)) for length in image.shape[2:])
    whole = image.new_zeros(1, 3, *(length * network.scale for length in image.shape[2:]))
    total = len(rows) * len(columns)
    for number, ((top, bottom, down), (left, right, across)) in enumerate(product(rows, columns), 1):
        tile = network(image[:, :, top:bottom, left:right].to(weight)).float().cpu()
        place = (slice(one * network.scale, other * network.scale) for one, other in ((top, bottom), (left, right)))
        whole[:, :, *place] += tile * down[:, None] * across
        if number < total:
            yield Enlargement(number, total, "tiles")
    (larger,) = to_pictures(whole.mul_(2).sub_(1))
    if picture.mode == "RGBA":
        larger.putalpha(picture.getchannel("A").resize(larger.size, Image.Resampling.LANCZOS))
    larger.info = dict(picture.info)
    yield Enlargement(total, total, "tiles", larger)


def _tiles(length: int, scale: int, layout: tuple[int, int, int]) -> list[tuple[int, int, Float[Tensor, " n"]]]:
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


PATCHES, PATCH = 8, 4  # the fit's picture is a mosaic: PATCHES x PATCHES colours, each of PATCH x PATCH latents


@dataclass(frozen=True, eq=False)
class LinearPreview:
    """Show scaled latents as pictures of a pixel for each latent, enlarged `factor` times: colour = latent A + b."""

    matrix: Float[Tensor, "c 3"]
    bias: Float[Tensor, " 3"]
    factor: int

    def pictures(self, latents: Float[Tensor, "b c h w"]) -> list[Image.Image]:
        """Draw the preview of each sample."""
        colours = torch.einsum("bchw,cr->brhw", latents.float().cpu(), self.matrix) + self.bias.view(1, 3, 1, 1)
        small = to_pictures(colours.clamp(-1, 1))
        return [
            one.resize((one.width * self.factor, one.height * self.factor), Image.Resampling.BICUBIC) for one in small
        ]


@dataclass(frozen=True, eq=False)
class TinyPreview:
    """Show scaled latents through a TAESD."""

    model: TinyAutoencoder
    device: torch.device
    dtype: torch.dtype

    @torch.no_grad()
    def pictures(self, latents: Float[Tensor, "b c h w"]) -> list[Image.Image]:
        """Decode the preview of each sample."""
        return to_pictures(self.model.decode(latents.to(self.device, self.dtype)))


def fit_preview(codec: ImageCodec) -> LinearPreview:
    """Fit by least squares the map from the latents of a mosaic of random colours to the colours."""
    generator = torch.Generator("cpu").manual_seed(0)
    colours = 2 * torch.rand((1, 3, PATCHES, PATCHES), generator=generator) - 1
    cells = F.interpolate(colours, scale_factor=PATCH, mode="nearest")
    latents = codec.encode_tensor(F.interpolate(cells, scale_factor=codec.factor, mode="nearest")).cpu()
    inputs, targets = latents[0].flatten(1).T.double(), cells[0].flatten(1).T.double()
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=torch.float64)], dim=1)
    solution = torch.linalg.lstsq(inputs, targets, driver="gelsd").solution.float()
    return LinearPreview(solution[:-1], solution[-1], codec.factor)
