#!/usr/bin/env bash
# diffusers 0.42.1: for some sizes an IP-Adapter's mask is laid over the picture askew in a layer, without a word.
#
# IPAdapterMaskProcessor.downsample() is told how many places a layer has, and guesses its height from the mask's aspect: the
# root, rounded down, and one more if the places do not divide by it. A picture of 520 x 1024 has 9 x 16 places in the deepest
# layer; guessed are 8 x 18, which are 144 as well, so nothing warns. Every row of the mask then begins two places further on, and
# a mask of the left half covers the left half at the top and the right half in the middle. Of the 65 widths from 512 to 1024 it
# meets nine at a height of 520, 512 among them; where both sides are multiples of 64 none. Seen: 30 November 2026.
# What reverie does: each layer's height and width are those of the latents, halved (adapters/ip_adapter.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 numpy==2.4.6 pillow==13.0.0
"$work/venv/bin/python" - <<'PY'
import warnings

import diffusers, torch
from diffusers.image_processor import IPAdapterMaskProcessor


def places(side: int, level: int) -> int:
    """Give the side of a level of the U-Net in places: each halves the one before and rounds up."""
    return side // 8 if level == 0 else -(-places(side, level - 1) // 2)


def laid(height: int, width: int, level: int) -> tuple[torch.Tensor, bool]:
    """Give a mask of the left half as a level sees it, and whether anything was said."""
    mask = torch.zeros(1, height, width)
    mask[..., : width // 2] = 1
    h, w = places(height, level), places(width, level)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = IPAdapterMaskProcessor.downsample(mask, 1, h * w, 1)
    return found.view(h, w), bool(said)


def askew(height: int, width: int) -> bool:
    """Tell whether some level's rows are not alike, and nothing was said."""
    found = [laid(height, width, level) for level in range(4)]
    return any(((mask - mask[0]).abs() > 0.1).any() and not said for mask, said in found)


good, bad = (laid(height, 1024, 3)[0].round().int().tolist() for height in (512, 520))
of_64 = [(h, w) for h in range(512, 1025, 64) for w in range(512, 1025, 64) if askew(h, w)]
of_520 = [w for w in range(512, 1025, 8) if askew(520, w)]
print("diffusers", diffusers.__version__, "512 x 1024, first and fifth row:", good[0], good[4])
print("520 x 1024:", bad[0], bad[4], "| askew of multiples of 64:", of_64, "| of 520 x:", of_520)
assert good == [[1] * 8 + [0] * 8] * 8 and not of_64, "a size that was laid straight is not"
assert bad[4] == [0] * 8 + [1] * 8 and of_520 == [512, *range(968, 1025, 8)], "520 x 1024 is laid as the picture is"
PY
