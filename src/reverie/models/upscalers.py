"""Learned upscalers of pictures: RRDBNet of ESRGAN and Real-ESRGAN and its compact SRVGGNet; and what a file holds.

Sources: Wang et al. 2018, "ESRGAN", arXiv 1809.00219; Wang et al. 2021, "Real-ESRGAN", arXiv 2107.10833. Parameters are
named as in Real-ESRGAN (xinntao/BasicSR, basicsr/archs/rrdbnet_arch.py and srvgg_arch.py); `today_names` gives those
names to files of the older layouts. What a network is, these or one of `window_upscalers`, is told from names and
shapes: files hold no more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reverie.models.window_upscalers import DAT, SLOPE, DATConfig, SwinIR, SwinIRConfig, conv, fill

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
            self.add_module(f"conv{number}", conv(features + (number - 1) * growth, growth))
        self.conv5 = conv(features + 4 * growth, features)

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
        self.conv_first = conv(config.channels * config.unshuffle**2, features)
        self.body = nn.Sequential(*(ResidualInResidual(features, config.growth) for _ in range(config.blocks)))
        self.conv_body = conv(features, features)
        for number in range(1, config.doublings + 1):
            self.add_module(f"conv_up{number}", conv(features, features))
        self.conv_hr = conv(features, features)
        self.conv_last = conv(features, config.channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Enlarge images in [0, 1]; their sides are filled up, mirrored, to what `unshuffle` divides."""
        height, width = (side * self.scale for side in x.shape[2:])
        if (fold := self.config.unshuffle) > 1:
            x = F.pixel_unshuffle(fill(x, fold), fold)
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
        layers: list[nn.Module] = [conv(config.channels, features), nn.PReLU(features)]
        for _ in range(config.layers):
            layers += [conv(features, features), nn.PReLU(features)]
        self.body = nn.Sequential(*layers, conv(features, config.channels * config.scale**2))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Enlarge images in [0, 1]."""
        return F.pixel_shuffle(self.body(x), self.scale) + F.interpolate(x, scale_factor=self.scale, mode="nearest")


Upscaler = RRDBNet | SRVGGNet | SwinIR | DAT


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
    if {"before_RG.1.weight", f"{DAT_FIRST}.attn.attns.0.pos.pos3.2.weight"} <= shapes.keys():
        dat = _read_dat(shapes)
        return lambda: DAT(dat)
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
    ups = _ups(shapes)
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


def _ups(shapes: Shapes) -> int:
    """Count the convolutions before the enlargements."""
    return sum(re.fullmatch(r"conv_up\d\.weight|upsample\.\d\.weight", name) is not None for name in shapes)


DAT_FIRST = "layers.0.blocks.0"
DAT_SIDES = [2**power for power in range(8)]  # of windows


def _read_dat(shapes: Shapes) -> DATConfig:
    width, channels = shapes["conv_first.weight"][:2]
    blocks = {tuple(name.split(".")[1:4:2]) for name in shapes if re.match(r"layers\.\d+\.blocks\.", name)}
    groups = len({group for group, _ in blocks})
    apart = shapes.get(f"{DAT_FIRST}.attn.attns.0.rpe_biases", (0,))[0]
    windows = (
        one for one in combinations_with_replacement(DAT_SIDES, 2) if math.prod(2 * side - 1 for side in one) == apart
    )
    direct, ups = "conv_last.weight" not in shapes, _ups(shapes)
    features = shapes.get("conv_before_upsample.0.weight", (64,))[0]
    scale = 3 if shapes.get("upsample.0.weight", (0,))[0] == 9 * features else 2**ups
    return DATConfig(
        channels=channels,
        width=width,
        depths=tuple(sum(group == str(number) for group, _ in blocks) for number in range(groups)),
        heads=2 * shapes[f"{DAT_FIRST}.attn.attns.0.pos.pos3.2.weight"][0],
        window=next(windows, (8, 32)),
        hidden=shapes.get(f"{DAT_FIRST}.ffn.fc1.weight", (width,))[0],
        features=features,
        scale=math.isqrt(shapes.get("upsample.0.weight", (1,))[0] // channels) if direct else scale,
        direct=direct,
        slim="conv_after_body.0.weight" in shapes,
    )


WRAPPERS = ("params_ema.", "params.")  # BasicSR's tables of weights, the averaged ones first
COMPUTED = (".attn_mask", ".attn_mask_0", ".attn_mask_1", ".relative_position_index")  # what follows from sizes
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
