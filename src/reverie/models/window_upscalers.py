"""Learned upscalers of pictures that attend within windows: SwinIR and DAT.

Sources: Liang et al. 2021, "SwinIR", arXiv 2108.10257; Chen et al. 2023, "Dual Aggregation Transformer for Image
Super-Resolution", arXiv 2308.03364. Parameters are named as in JingyunLiang/SwinIR (models/network_swinir.py) and
zhengchen1999/DAT (basicsr/archs/dat_arch.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

SLOPE = 0.2  # of LeakyReLU
MEAN = (0.4488, 0.4371, 0.4040)  # of RGB, of DIV2K
Window = tuple[int, int]  # rows and columns


def conv(channels: int, out: int) -> nn.Conv2d:
    """Convolve 3x3, and keep the size."""
    return nn.Conv2d(channels, out, 3, padding=1)


def between(width: int, *, slim: bool) -> nn.Module:
    """Make what is convolved after a group, and after all; a `slim` one passes a quarter of the channels."""
    narrow = width // 4
    if not slim:
        return conv(width, width)
    layers = conv(width, narrow), nn.LeakyReLU(SLOPE), nn.Conv2d(narrow, narrow, 1), nn.LeakyReLU(SLOPE)
    return nn.Sequential(*layers, conv(narrow, width))


def pixel_shuffles(features: int, scale: int) -> nn.Sequential:
    """Enlarge by convolutions whose channels are unfolded: three times, or twice again and again."""
    folds = [3] if scale == 3 else [2] * (scale.bit_length() - 1)
    steps = ((conv(features, features * fold**2), nn.PixelShuffle(fold)) for fold in folds)
    return nn.Sequential(*(layer for step in steps for layer in step))


def fill(x: Tensor, multiple: int) -> Tensor:
    """Fill the sides of images up to a multiple, mirrored; those that are too small for that, by their edge."""
    right, below = -x.shape[3] % multiple, -x.shape[2] % multiple
    mirrored = right < x.shape[3] and below < x.shape[2]
    return F.pad(x, (0, right, 0, below), mode="reflect" if mirrored else "replicate")


def within_windows(
    x: Float[Tensor, "b h w d"], window: Window, attend: Callable[[Tensor, Tensor | None], Tensor], *, shifted: bool
) -> Float[Tensor, "b h w out"]:
    """Attend within the windows of an image whose sides are whole ones, or within those half a window further.

    `attend` takes windows, "windows n d", and what keeps places apart, "windows 1 n n".
    """
    (rows, columns), (batch, height, width) = window, x.shape[:3]
    shift = (rows // 2, columns // 2)
    if not shifted:
        return _join(attend(_cut(x, window), None), window, (batch, height, width))
    mask = _apart(height, width, window, x).repeat(batch, 1, 1, 1)
    rolled = x.roll((-shift[0], -shift[1]), (1, 2))
    return _join(attend(_cut(rolled, window), mask), window, (batch, height, width)).roll(shift, (1, 2))


def _cut(x: Tensor, window: Window) -> Tensor:
    """Cut an image, "b h w d", into windows, "windows n d"."""
    cut = x.unflatten(1, (-1, window[0])).unflatten(3, (-1, window[1]))
    return cut.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(0, 2)


def _join(x: Tensor, window: Window, shape: tuple[int, int, int]) -> Float[Tensor, "b h w d"]:
    (rows, columns), (batch, height, width) = window, shape
    whole = x.unflatten(0, (batch, height // rows, width // columns)).unflatten(3, window)
    return whole.permute(0, 1, 3, 2, 4, 5).reshape(batch, height, width, -1)


def _apart(height: int, width: int, window: Window, like: Tensor) -> Float[Tensor, "windows 1 n n"]:
    """Keep apart, by -100, places that a roll by half a window brought into one from opposite edges."""
    rows, columns = (
        (torch.arange(side, device=like.device) >= side - one).long()
        + (torch.arange(side, device=like.device) >= side - one // 2)
        for side, one in zip((height, width), window, strict=True)
    )
    parts = _cut((3 * rows[:, None] + columns)[None, :, :, None], window)[..., 0]
    return (parts[:, None] != parts[:, :, None]).to(like)[:, None] * -100


def _apart_by(window: Window, device: torch.device) -> Int64[Tensor, "n n"]:
    """Number how far two places of a window lie apart, down and across."""
    down, across = (
        one.flatten() for one in torch.meshgrid(*(torch.arange(side, device=device) for side in window), indexing="ij")
    )
    rows, columns = (one[:, None] - one + side - 1 for one, side in zip((down, across), window, strict=True))
    return rows * (2 * window[1] - 1) + columns


@dataclass(frozen=True, kw_only=True)
class SwinIRConfig:
    """Describe a SwinIR; the defaults are those of the real-world one of medium size.

    `depths` counts the blocks of each group. `upsampler` is "nearest+conv" (real-world), "pixelshuffle" (classical),
    "pixelshuffledirect" (lightweight), or "" for pictures that keep their size. `slim` are convolutions between groups
    that pass a quarter of the channels, as in the large one.
    """

    channels: int = 3
    width: int = 180
    depths: tuple[int, ...] = (6,) * 6
    heads: int = 6
    window: int = 8
    hidden: int = 360
    features: int = 64
    scale: int = 4
    upsampler: str = "nearest+conv"
    slim: bool = False


JPEG_WINDOW = 7  # of the models that mend JPEG, whose values go to 255


class WindowAttention(nn.Module):
    """Attention within windows, biased by how places lie to each other (2108.10257, eq. 6)."""

    def __init__(self, width: int, window: int, heads: int) -> None:
        super().__init__()
        self.window, self.heads = window, heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "windows n d"], mask: Float[Tensor, "windows 1 n n"] | None) -> Tensor:
        """Let the places of each window gather from those that the mask does not keep apart."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[_apart_by((self.window, self.window), x.device)].permute(2, 0, 1)[None]
        gathered = F.scaled_dot_product_attention(q, k, v, bias if mask is None else bias + mask)
        return self.proj(gathered.transpose(1, 2).flatten(2))


class SwinBlock(nn.Module):
    """Attention within windows, every other time shifted by half a window, and a perceptron."""

    def __init__(self, config: SwinIRConfig, *, shifted: bool) -> None:
        super().__init__()
        self.shifted = shifted
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.attn = WindowAttention(config.width, config.window, config.heads)
        layers = nn.Linear(config.width, config.hidden), nn.Linear(config.hidden, config.width)
        self.mlp = nn.ModuleDict({"fc1": layers[0], "fc2": layers[1]})

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        """Pass an image whose sides are whole windows."""
        window = (self.attn.window, self.attn.window)
        x = x + within_windows(self.norm1(x), window, self.attn, shifted=self.shifted)
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class SwinGroup(nn.Module):
    """Blocks, a convolution, and what they add to their input (2108.10257, section 3.2)."""

    def __init__(self, config: SwinIRConfig, depth: int) -> None:
        super().__init__()
        blocks = (SwinBlock(config, shifted=number % 2 == 1) for number in range(depth))
        self.residual_group = nn.ModuleDict({"blocks": nn.Sequential(*blocks)})
        self.conv = between(config.width, slim=config.slim)

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        return x + self.conv(self.residual_group["blocks"](x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SwinIR(nn.Module):
    """Enlarge pictures, or mend them, by groups of attention within windows at their own size."""

    def __init__(self, config: SwinIRConfig = SwinIRConfig()) -> None:
        super().__init__()
        self.config, width, features = config, config.width, config.features
        self.channels, self.scale = config.channels, config.scale
        self.conv_first = conv(config.channels, width)
        self.patch_embed = nn.ModuleDict({"norm": nn.LayerNorm(width)})
        self.layers = nn.Sequential(*(SwinGroup(config, depth) for depth in config.depths))
        self.norm = nn.LayerNorm(width)
        self.conv_after_body = between(config.width, slim=config.slim)
        if config.upsampler == "pixelshuffledirect":
            self.upsample = nn.Sequential(conv(width, config.channels * config.scale**2), nn.PixelShuffle(config.scale))
            return
        if config.upsampler:
            self.conv_before_upsample = nn.Sequential(conv(width, features), nn.LeakyReLU())
        if config.upsampler == "pixelshuffle":
            self.upsample = pixel_shuffles(features, config.scale)
        elif config.upsampler:
            for number in range(1, config.scale.bit_length()):
                self.add_module(f"conv_up{number}", conv(features, features))
            self.conv_hr = conv(features, features)
        self.conv_last = conv(features if config.upsampler else width, config.channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Enlarge images in [0, 1]; their sides are filled up, mirrored, to whole windows."""
        height, width = (side * self.scale for side in x.shape[2:])
        mean = x.new_tensor(MEAN if self.channels == len(MEAN) else (0.0,))[:, None, None]
        most = 255.0 if self.config.window == JPEG_WINDOW else 1.0
        x = (fill(x, self.config.window) - mean) * most
        first = self.conv_first(x)
        deep = self.norm(self.layers(self.patch_embed["norm"](first.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
        y = self._reconstruct(first + self.conv_after_body(deep))
        return (((y if self.config.upsampler else x + y) / most) + mean)[:, :, :height, :width]

    def _reconstruct(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c h2 w2"]:
        if self.config.upsampler == "pixelshuffledirect":
            return self.upsample(x)
        if self.config.upsampler == "pixelshuffle":
            return self.conv_last(self.upsample(self.conv_before_upsample(x)))
        if not self.config.upsampler:
            return self.conv_last(x)
        x = self.conv_before_upsample(x)
        for number in range(1, self.scale.bit_length()):
            larger = F.interpolate(x, scale_factor=2, mode="nearest")
            x = F.leaky_relu(self.get_submodule(f"conv_up{number}")(larger), SLOPE)
        return self.conv_last(F.leaky_relu(self.conv_hr(x), SLOPE))


@dataclass(frozen=True, kw_only=True)
class DATConfig:
    """Describe a DAT; the defaults are those of the one called DAT.

    `depths` counts the blocks of each group, `window` are the rows and columns of what half of the channels attend
    within; the other half's windows lie across. `direct` enlarges by one convolution (DAT-light).
    """

    channels: int = 3
    width: int = 180
    depths: tuple[int, ...] = (6,) * 6
    heads: int = 6
    window: Window = (8, 32)
    hidden: int = 720
    features: int = 64
    scale: int = 4
    direct: bool = False
    slim: bool = False


class PositionBias(nn.Module):
    """Bias attention by how places of a window lie to each other, through a perceptron."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        width //= 4
        self.pos_proj = nn.Linear(2, width)
        self.pos1, self.pos2, self.pos3 = (
            nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, out)) for out in (width, width, heads)
        )

    def forward(self, apart: Float[Tensor, "p 2"]) -> Float[Tensor, "p heads"]:
        return self.pos3(self.pos2(self.pos1(self.pos_proj(apart))))


class RectangleAttention(nn.Module):
    """Attend within windows, biased by how places lie to each other."""

    rpe_biases: Tensor

    def __init__(self, width: int, heads: int, window: Window):
        super().__init__()
        self.heads, self.window = heads, window
        self.pos = PositionBias(width // 4, heads)
        ways = (torch.arange(1 - side, side, dtype=torch.float32) for side in window)
        self.register_buffer("rpe_biases", torch.cartesian_prod(*ways))

    def forward(self, qkv: Float[Tensor, "windows n d"], mask: Tensor | None) -> Float[Tensor, "windows n out"]:
        """Let the places of each window gather from those that the mask does not keep apart."""
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.pos(self.rpe_biases)[_apart_by(self.window, qkv.device)].permute(2, 0, 1)[None]
        gathered = F.scaled_dot_product_attention(q, k, v, bias if mask is None else bias + mask)
        return gathered.transpose(1, 2).flatten(2)


class Interaction(nn.Module):
    """Attend, and convolve the values beside it; each is gated by the other (section 3.3)."""

    def __init__(self, width: int):
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.dwconv = nn.Sequential(depthwise, nn.BatchNorm2d(width), nn.GELU())
        self.channel_interaction = nn.Sequential(nn.AdaptiveAvgPool2d(1), *_gate(width, width // 8, width))
        self.spatial_interaction = nn.Sequential(*_gate(width, width // 16, 1))

    def by_channel(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d 1 1"]:
        return self.channel_interaction(x).sigmoid()

    def by_place(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 1 h w"]:
        return self.spatial_interaction(x).sigmoid()


def _gate(width: int, narrow: int, out: int) -> list[nn.Module]:
    return [nn.Conv2d(width, narrow, 1), nn.BatchNorm2d(narrow), nn.GELU(), nn.Conv2d(narrow, out, 1)]


class SpatialInteraction(Interaction):
    """Attend within windows: half of the channels in ones that lie, the other half in ones that stand."""

    def __init__(self, config: DATConfig, *, shifted: bool):
        super().__init__(config.width)
        rows, columns = config.window
        self.shifted, self.windows = shifted, ((rows, columns), (columns, rows))
        self.attns = nn.ModuleList(
            RectangleAttention(config.width // 2, config.heads // 2, window) for window in self.windows
        )

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        height, width = x.shape[1:3]
        qkv, side = self.qkv(x), max(self.windows[0])
        convolved = self.dwconv(qkv.chunk(3, dim=-1)[2].permute(0, 3, 1, 2))
        filled = F.pad(qkv, (0, 0, 0, -width % side, 0, -height % side))
        halves = (half.flatten(3) for half in filled.unflatten(-1, (3, -1)).chunk(2, dim=-1))
        attended = [
            within_windows(half, window, one, shifted=self.shifted)
            for one, window, half in zip(self.attns, self.windows, halves, strict=True)
        ]
        gathered = torch.cat(attended, dim=-1)[:, :height, :width].permute(0, 3, 1, 2)
        y = gathered * self.by_channel(convolved) + convolved * self.by_place(gathered)
        return self.proj(y.permute(0, 2, 3, 1))


class ChannelInteraction(Interaction):
    """Attend from channels to channels, over all places (section 3.2)."""

    def __init__(self, config: DATConfig):
        super().__init__(config.width)
        self.temperature = nn.Parameter(torch.ones(config.heads, 1, 1))

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        size = x.shape[1:3]
        q, k, v = self.qkv(x).flatten(1, 2).transpose(1, 2).unflatten(1, (3, len(self.temperature), -1)).unbind(1)
        share = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature).softmax(dim=-1)
        gathered, values = ((one.flatten(1, 2).unflatten(2, size)) for one in (share @ v, v))
        convolved = self.dwconv(values)
        y = gathered * self.by_place(convolved) + convolved * self.by_channel(gathered)
        return self.proj(y.permute(0, 2, 3, 1))


class GatedPerceptron(nn.Module):
    """Gate half of a hidden layer by the other half, which is convolved (section 3.4)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        half = hidden // 2
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(half, width)
        self.sg = nn.ModuleDict({"norm": nn.LayerNorm(half), "conv": nn.Conv2d(half, half, 3, padding=1, groups=half)})

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        plain, gate = F.gelu(self.fc1(x)).chunk(2, dim=-1)
        return self.fc2(plain * self.sg["conv"](self.sg["norm"](gate).permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class DualBlock(nn.Module):
    """Add attention, within windows or between channels, and then a perceptron."""

    def __init__(self, config: DATConfig, group: int, number: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        shifted = number % 4 == 0 if group % 2 else number % 4 == 2
        self.attn = ChannelInteraction(config) if number % 2 else SpatialInteraction(config, shifted=shifted)
        self.ffn = GatedPerceptron(config.width, config.hidden)

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class DualGroup(nn.Module):
    """Blocks, a convolution, and what they add to their input."""

    def __init__(self, config: DATConfig, group: int):
        super().__init__()
        self.blocks = nn.Sequential(*(DualBlock(config, group, number) for number in range(config.depths[group])))
        self.conv = between(config.width, slim=config.slim)

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        return x + self.conv(self.blocks(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class DAT(nn.Module):
    """Enlarge pictures by groups of attention at their own size."""

    def __init__(self, config: DATConfig = DATConfig()) -> None:
        super().__init__()
        self.config, width, features = config, config.width, config.features
        self.channels, self.scale = config.channels, config.scale
        self.conv_first = conv(config.channels, width)
        self.before_RG = nn.Sequential(nn.Identity(), nn.LayerNorm(width))
        self.layers = nn.Sequential(*(DualGroup(config, group) for group in range(len(config.depths))))
        self.norm = nn.LayerNorm(width)
        self.conv_after_body = between(width, slim=config.slim)
        if config.direct:
            self.upsample = nn.Sequential(conv(width, config.channels * config.scale**2), nn.PixelShuffle(config.scale))
            return
        self.conv_before_upsample = nn.Sequential(conv(width, features), nn.LeakyReLU())
        self.upsample = pixel_shuffles(features, config.scale)
        self.conv_last = conv(features, config.channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Enlarge images in [0, 1]."""
        mean = x.new_tensor(MEAN if self.channels == len(MEAN) else (0.0,))[:, None, None]
        first = self.conv_first(x - mean)
        deep = self.norm(self.layers(self.before_RG(first.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
        x = first + self.conv_after_body(deep)
        return mean + (
            self.upsample(x) if self.config.direct else self.conv_last(self.upsample(self.conv_before_upsample(x)))
        )
