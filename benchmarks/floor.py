"""How fast could a step be at best? All its operations, at the best rate that this machine reaches in the same run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from measure import Row, seconds
from reverie.models.unet import UNet, UNetConfig
from reverie.runtime import kernels

TRIES = 5
IMAGES = ((320, 64), (640, 32), (1280, 16))  # channels and sides of Stable Diffusion's convolutions, at 512 pixels


def operations(config: UNetConfig, given: Sequence[Tensor]) -> int:
    """Count the multiplications and additions of a step, attention's too, without computing any."""
    with torch.device("meta"):
        unet = UNet(config)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(*(tensor.to("meta") for tensor in given))
    return int(counter.get_total_flops())


@torch.no_grad()
def best_rate(dtype: torch.dtype = torch.float32) -> float:
    """Return the operations a second of the fastest of the convolutions and products that a U-Net is made of."""
    return max(max(_rates(channels, side, dtype)) for channels, side in IMAGES)


def _rates(channels: int, side: int, dtype: torch.dtype) -> Iterator[float]:
    x = torch.randn(2, channels, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last)
    shape = ((1, 1), (1, 1), (1, 1))  # stride, padding, dilation
    kernel = kernels.pack_conv2d(torch.randn(channels, channels, 3, 3, dtype=dtype), x.shape, *shape)
    weight = kernels.pack_linear(torch.randn(channels, channels, dtype=dtype))
    pixels, count = x.permute(0, 2, 3, 1), 2 * x.numel() * channels
    for _ in range(TRIES):
        yield 9 * count / seconds(lambda: kernels.conv2d(x, kernel, None, *shape))
        yield count / seconds(lambda: kernels.linear(pixels, weight, None))


def row(name: str, ours: list[float], config: UNetConfig, given: Sequence[Tensor], rate: float) -> Row:
    """Tell how near a step's times come to the floor."""
    count = operations(config, given)
    note = f"{count / 1e9:.0f} G operations at {rate / 1e9:.0f} G a second; convolutions computed directly"
    return Row(name, "s", ours, [count / rate], peer="the floor", note=note)
