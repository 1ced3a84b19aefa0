"""Learned upscalers of pictures: RRDBNet of ESRGAN and Real-ESRGAN, its compact SRVGGNet, and SwinIR.

Sources: Wang et al. 2018, "ESRGAN", arXiv 1809.00219; Wang et al. 2021, "Real-ESRGAN", arXiv 2107.10833; Liang et al.
2021, "SwinIR", arXiv 2108.10257. Parameters are named as in Real-ESRGAN (xinntao/BasicSR, basicsr/archs/rrdbnet_arch.py
and srvgg_arch.py) and SwinIR (JingyunLiang/SwinIR, models/network_swinir.py); `today_names` gives those names to files
of the older layouts. What a network is, is told from names and shapes: files hold no more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

SLOPE = 0.2  # of LeakyReLU
RESIDUAL = 0.2  # the share of a block's output that is added to its input (1809.00219, section 3.1)
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class RRDBConfig:
    """Describe an RRDBNet: the size is doubled `doublings` times, after pixels were folded, `unshuffle` a side."""

    channels: int = 3
    features: int = 64
    growth: int = 32
    blocks: int = 23
    doublings: int = 2
    unshuffle: int = 1

    @property
    def scale(self) -> int:
        """Return how many times larger the result is."""
        return 2**self.doublings // self.unshuffle


class ResidualDenseBlock(nn.Module):
    """Five convolutions, each of the input and of all before it (1809.00219, figure 4)."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        for number in range(1, 5):
            self.add_module(f"conv{number}", _conv(features + (number - 1) * growth, growth))
        self.conv5 = _conv(features + 4 * growth, features)

    def forward(self, x: Float[Tensor, "b f h w"]) -> Float[Tensor, "b f h w"]:
        maps = x
        for number in range(1, 5):
            maps = torch.cat([maps, F.leaky_relu(self.get_submodule(f"conv{number}")(maps), SLOPE)], dim=1)
        return x + RESIDUAL * self.conv5(maps)


class ResidualInResidual(nn.Module):
    """Three dense blocks, and what they add to their input."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (ResidualDenseBlock(features, growth) for _ in range(3))

    def forward(self, x: Float[Tensor, "b f h w"]) -> Float[Tensor, "b f h w"]:
        return x + RESIDUAL * self.rdb3(self.rdb2(self.rdb1(x)))


class RRDBNet(nn.Module):
    """Enlarge pictures by residual-in-residual dense blocks at their own size, and by doublings after them."""

    def __init__(self, config: RRDBConfig = RRDBConfig()) -> None:
        super().__init__()
        self.config, features = config, config.features
        self.channels, self.scale = config.channels, config.scale
        self.conv_first = _conv(config.channels * config.unshuffle**2, features)
        self.body = nn.Sequential(*(ResidualInResidual(features, config.growth) for _ in range(config.blocks)))
        self.conv_body = _conv(features, features)
        for number in range(1, config.doublings + 1):
            self.add_module(f"conv_up{number}", _conv(features, features))
        self.conv_hr = _conv(features, features)
        self.conv_last = _conv(features, config.channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Enlarge images in [0, 1]; their sides are filled up, mirrored, to what `unshuffle` divides."""
        height, width = (side * self.scale for side in x.shape[2:])
        if (fold := self.config.unshuffle) > 1:
            x = F.pixel_unshuffle(_fill(x, fold), fold)
        x = self.conv_first(x)
        x = x + self.conv_body(self.body(x))
        for number in range(1, self.config.doublings + 1):
            larger = F.interpolate(x, scale_factor=2, mode="nearest")
            x = F.leaky_relu(self.get_submodule(f"conv_up{number}")(larger), SLOPE)
        return self.conv_last(F.leaky_relu(self.conv_hr(x), SLOPE))[:, :, :height, :width]


@dataclass(frozen=True, kw_only=True)
class CompactConfig:
    """Describe an SRVGGNet; the defaults are those of realesr-animevideov3."""

    channels: int = 3
    features: int = 64
    layers: int = 16
    scale: int = 4


class SRVGGNet(nn.Module):
    """Enlarge pictures by plain convolutions at their own size, and add them, each pixel repeated."""

    def __init__(self, config: CompactConfig = CompactConfig()) -> None:
        super().__init__()
        self.config, features = config, config.features
        self.channels, self.scale = config.channels, config.scale
        layers: list[nn.Module] = [_conv(config.channels, features), nn.PReLU(features)]
        for _ in range(config.layers):
            layers += [_conv(features, features), nn.PReLU(features)]
        self.body = nn.Sequential(*layers, _conv(features, config.channels * config.scale**2))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Enlarge images in [0, 1]."""
        return F.pixel_shuffle(self.body(x), self.scale) + F.interpolate(x, scale_factor=self.scale, mode="nearest")


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
MEAN = (0.4488, 0.4371, 0.4040)  # of RGB, of DIV2K


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
        bias = self.relative_position_bias_table[self._index(x.device)].permute(2, 0, 1)[None]
        gathered = F.scaled_dot_product_attention(q, k, v, bias if mask is None else bias + mask)
        return self.proj(gathered.transpose(1, 2).flatten(2))

    def _index(self, device: torch.device) -> Int64[Tensor, "n n"]:
        """Number how far two places lie apart, down and across."""
        along = torch.arange(self.window, device=device)
        down, across = (one.flatten() for one in torch.meshgrid(along, along, indexing="ij"))
        apart = (one[:, None] - one + self.window - 1 for one in (down, across))
        return next(apart) * (2 * self.window - 1) + next(apart)


class SwinBlock(nn.Module):
    """Attention within windows, every other time shifted by half a window, and a perceptron."""

    def __init__(self, config: SwinIRConfig, *, shifted: bool) -> None:
        super().__init__()
        self.shift = config.window // 2 if shifted else 0
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.attn = WindowAttention(config.width, config.window, config.heads)
        layers = nn.Linear(config.width, config.hidden), nn.Linear(config.hidden, config.width)
        self.mlp = nn.ModuleDict({"fc1": layers[0], "fc2": layers[1]})

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        """Pass an image whose sides are whole windows."""
        window, shift, (height, width) = self.attn.window, self.shift, x.shape[1:3]
        h = self.norm1(x)
        mask = None
        if shift:
            h = h.roll((-shift, -shift), (1, 2))
            mask = self._mask(height, width, x).repeat(len(x), 1, 1, 1)
        h = self.attn(_to_windows(h, window), mask)
        h = h.unflatten(0, (-1, height // window, width // window)).unflatten(3, (window, window))
        h = h.permute(0, 1, 3, 2, 4, 5).reshape(x.shape)
        x = x + (h.roll((shift, shift), (1, 2)) if shift else h)
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))

    def _mask(self, height: int, width: int, like: Tensor) -> Float[Tensor, "windows 1 n n"]:
        """Keep apart, by -100, places that the roll brought into one window from opposite edges."""
        window = self.attn.window
        rows, columns = (
            (torch.arange(side, device=like.device) >= side - window).long()
            + (torch.arange(side, device=like.device) >= side - self.shift)
            for side in (height, width)
        )
        parts = _to_windows((3 * rows[:, None] + columns)[None, :, :, None], window)[..., 0]
        return (parts[:, None] != parts[:, :, None]).to(like)[:, None] * -100


def _to_windows(x: Tensor, window: int) -> Tensor:
    """Cut an image, "b h w d", into windows, "windows n d"."""
    cut = x.unflatten(1, (-1, window)).unflatten(3, (-1, window))
    return cut.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(0, 2)


class SwinGroup(nn.Module):
    """Blocks, a convolution, and what they add to their input (2108.10257, section 3.2)."""

    def __init__(self, config: SwinIRConfig, depth: int) -> None:
        super().__init__()
        blocks = (SwinBlock(config, shifted=number % 2 == 1) for number in range(depth))
        self.residual_group = nn.ModuleDict({"blocks": nn.Sequential(*blocks)})
        self.conv = _between(config)

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        return x + self.conv(self.residual_group["blocks"](x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SwinIR(nn.Module):
    """Enlarge pictures, or mend them, by groups of attention within windows at their own size."""

    def __init__(self, config: SwinIRConfig = SwinIRConfig()) -> None:
        super().__init__()
        self.config, width, features = config, config.width, config.features
        self.channels, self.scale = config.channels, config.scale
        self.conv_first = _conv(config.channels, width)
        self.patch_embed = nn.ModuleDict({"norm": nn.LayerNorm(width)})
        self.layers = nn.Sequential(*(SwinGroup(config, depth) for depth in config.depths))
        self.norm = nn.LayerNorm(width)
        self.conv_after_body = _between(config)
        if config.upsampler == "pixelshuffledirect":
            self.upsample = nn.Sequential(
                _conv(width, config.channels * config.scale**2), nn.PixelShuffle(config.scale)
            )
            return
        if config.upsampler:
            self.conv_before_upsample = nn.Sequential(_conv(width, features), nn.LeakyReLU())
        if config.upsampler == "pixelshuffle":
            folds = [3] if config.scale == 3 else [2] * (config.scale.bit_length() - 1)
            steps = ((_conv(features, features * fold**2), nn.PixelShuffle(fold)) for fold in folds)
            self.upsample = nn.Sequential(*(layer for step in steps for layer in step))
        elif config.upsampler:
            for number in range(1, config.scale.bit_length()):
                self.add_module(f"conv_up{number}", _conv(features, features))
            self.conv_hr = _conv(features, features)
        self.conv_last = _conv(features if config.upsampler else width, config.channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Enlarge images in [0, 1]; their sides are filled up, mirrored, to whole windows."""
        height, width = (side * self.scale for side in x.shape[2:])
        mean = x.new_tensor(MEAN if self.channels == len(MEAN) else (0.0,))[:, None, None]
        most = 255.0 if self.config.window == JPEG_WINDOW else 1.0
        x = (_fill(x, self.config.window) - mean) * most
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


Upscaler = RRDBNet | SRVGGNet | SwinIR


def _conv(channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1)


def _between(config: SwinIRConfig) -> nn.Module:
    """Make what is convolved after a group, and after all."""
    width, narrow = config.width, config.width // 4
    if not config.slim:
        return _conv(width, width)
    layers = _conv(width, narrow), nn.LeakyReLU(SLOPE), nn.Conv2d(narrow, narrow, 1), nn.LeakyReLU(SLOPE)
    return nn.Sequential(*layers, _conv(narrow, width))


def _fill(x: Tensor, multiple: int) -> Tensor:
    """Fill the sides of images up to a multiple, mirrored; those that are too small for that, by their edge."""
    right, below = -x.shape[3] % multiple, -x.shape[2] % multiple
    mirrored = right < x.shape[3] and below < x.shape[2]
    return F.pad(x, (0, right, 0, below), mode="reflect" if mirrored else "replicate")


def recognise(shapes: Shapes) -> Callable[[], Upscaler] | None:
    """Return what makes the network of these names, which are today's, and shapes; None where they are of no kind."""
    if {"conv_first.weight", "conv_last.weight", "body.0.rdb1.conv1.weight"} <= shapes.keys():
        rrdb = _read_rrdb(shapes)
        return lambda: RRDBNet(rrdb)
    if {"body.0.weight", "body.1.weight"} <= shapes.keys() and len(shapes["body.0.weight"]) == 4:
        compact = _read_compact(shapes)
        return lambda: SRVGGNet(compact)
    if {"conv_first.weight", "conv_last.weight"} & shapes.keys() and f"{SWIN_FIRST}.attn.qkv.weight" in shapes:
        swin = _read_swin(shapes)
        return lambda: SwinIR(swin)
    return None


def _read_rrdb(shapes: Shapes) -> RRDBConfig:
    (features, folded), channels = shapes["conv_first.weight"][:2], shapes["conv_last.weight"][0]
    return RRDBConfig(
        channels=channels,
        features=features,
        growth=shapes["body.0.rdb1.conv1.weight"][0],
        blocks=len({name.split(".")[1] for name in shapes if name.startswith("body.")}),
        doublings=sum(re.fullmatch(r"conv_up\d\.weight", name) is not None for name in shapes),
        unshuffle=math.isqrt(max(1, folded // channels)),
    )


def _read_compact(shapes: Shapes) -> CompactConfig:
    features, channels = shapes["body.0.weight"][:2]
    last = max(int(name.split(".")[1]) for name in shapes if re.fullmatch(r"body\.\d+\.weight", name))
    scale = math.isqrt(shapes[f"body.{last}.weight"][0] // channels)
    return CompactConfig(channels=channels, features=features, layers=last // 2 - 1, scale=scale)


SWIN_FIRST = "layers.0.residual_group.blocks.0"


def _read_swin(shapes: Shapes) -> SwinIRConfig:
    """Read the config of a SwinIR off its shapes, as far as they tell it; others do not fit it."""
    width, channels = shapes["conv_first.weight"][:2]
    places, heads = shapes.get(f"{SWIN_FIRST}.attn.relative_position_bias_table", (1, 1))
    blocks = {tuple(name.split(".")[1:5:3]) for name in shapes if name.startswith("layers.") and ".blocks." in name}
    groups = len({group for group, _ in blocks})
    ups = sum(re.fullmatch(r"conv_up\d\.weight|upsample\.\d\.weight", name) is not None for name in shapes)
    features = shapes.get("conv_before_upsample.0.weight", (64,))[0]
    upsampler, scale = "", 1
    if "conv_up1.weight" in shapes:
        upsampler, scale = "nearest+conv", 2**ups
    elif "conv_before_upsample.0.weight" in shapes:
        upsampler = "pixelshuffle"
        scale = 3 if shapes.get("upsample.0.weight", (0,))[0] == 9 * features else 2**ups
    elif "upsample.0.weight" in shapes:
        upsampler, scale = "pixelshuffledirect", math.isqrt(shapes["upsample.0.weight"][0] // channels)
    return SwinIRConfig(
        channels=channels,
        width=width,
        depths=tuple(sum(group == str(number) for group, _ in blocks) for number in range(groups)),
        heads=heads,
        window=(math.isqrt(places) + 1) // 2,
        hidden=shapes.get(f"{SWIN_FIRST}.mlp.fc1.weight", (width,))[0],
        features=features,
        scale=scale,
        upsampler=upsampler,
        slim="conv_after_body.0.weight" in shapes,
    )


WRAPPERS = ("params_ema.", "params.")  # BasicSR's tables of weights, the averaged ones first
COMPUTED = (".attn_mask", ".relative_position_index")  # of SwinIR, what follows from sizes
NUMBERED = re.compile(r"model\.(\d+)\.(?:weight|bias)")  # a convolution of ESRGAN's first layout, at the top
OLD = {  # how names of ESRGAN's first layout, and of its second, begin, and those of today
    r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.": r"body.\1.rdb\2.conv\3.",
    r"model\.1\.sub\.\d+\.(?=weight|bias)": "conv_body.",
    r"RRDB_trunk\.(\d+)\.RDB(\d)\.": r"body.\1.rdb\2.",
    "trunk_conv": "conv_body",
    "upconv": "conv_up",
    "HRconv": "conv_hr",
}


def today_names(names: Iterable[str]) -> dict[str, str]:
    """Return the names in a file, of those that count, by the names that they have today."""
    given = list(names)
    wrapper = next((prefix for prefix in WRAPPERS if any(name.startswith(prefix) for name in given)), "")
    counted = [name for name in given if name.startswith(wrapper) and not name.endswith(COMPUTED)]
    bare = {name.removeprefix(wrapper): name for name in counted}
    numbers = sorted({int(found[1]) for name in bare if (found := NUMBERED.fullmatch(name))})
    middle = [f"conv_up{number}" for number in range(1, len(numbers) - 2)]
    placed = dict(zip(numbers, ["conv_first", *middle, "conv_hr", "conv_last"], strict=False))
    return {_rename(name, placed): theirs for name, theirs in bare.items()}


def _rename(name: str, placed: Mapping[int, str]) -> str:
    if found := NUMBERED.fullmatch(name):
        return f"{placed[int(found[1])]}.{name.rpartition('.')[2]}"
    for old, new in OLD.items():
        if found := re.match(old, name):
            return found.expand(new) + name[found.end() :]
    return name
