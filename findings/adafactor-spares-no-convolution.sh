#!/usr/bin/env bash
# torch 2.13.0 and transformers 5.23.0: Adafactor, which is chosen to save memory, keeps twice Adam's second moments of 1 x 1 layers.
#
# It keeps sums over rows and columns in place of the square of every gradient. Rows and columns are the last two dimensions, and of
# a convolution those are its kernel: of 320 x 320 x 3 x 3 two thirds stay, where 0.6% would do, and of 320 x 320 x 1 x 1 the
# "rows" and the "columns" are all squares, twice. The U-Net of Stable Diffusion 1 has 859.5 million parameters, 589 of them
# in convolutions, and keeps 457.6 million numbers: 53%, of a language model's layers 0.1%. Viewed as matrices (all but the
# first dimension in one) it would keep 1.5 million. CAME (came-pytorch 0.1.3) has four such sums and a momentum: 5 numbers for a
# parameter of 1 x 1 layers, where Adam has 2. Seen: 30 November 2026.
# What reverie does: `adafactor` is torch's own, and `--plan` counts these numbers as they are (train/plan.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.23.0 came-pytorch==0.1.3
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

import torch
from came_pytorch import CAME
from diffusers import UNet2DConditionModel
from transformers.optimization import Adafactor

SHAPES = (320, 320), (320, 320, 3, 3), (320, 320, 1, 1)
makers = {
    "Adam": torch.optim.Adam,
    "torch": torch.optim.Adafactor,
    "transformers": lambda parameters: Adafactor(parameters, lr=1e-3, relative_step=False, scale_parameter=False),
    "CAME": lambda parameters: CAME(parameters, lr=1e-3),
}


def kept(make, shape: tuple[int, ...]) -> float:
    """Take one step; give how many numbers the optimiser keeps for each parameter."""
    parameter = torch.nn.Parameter(torch.ones(shape))
    optimiser = make([parameter])
    parameter.square().sum().backward()
    optimiser.step()
    state = optimiser.state[parameter].values()
    return round(sum(value.numel() for value in state if torch.is_tensor(value) and value.ndim) / parameter.numel(), 3)


found = {name: [kept(make, shape) for shape in SHAPES] for name, make in makers.items()}
with torch.device("meta"):
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
shapes = [parameter.shape for parameter in unet.parameters()]
whole = sum(shape.numel() for shape in shapes)


def sums(shape: torch.Size) -> int:
    return shape.numel() if len(shape) < 2 else shape.numel() // shape[-1] + shape.numel() // shape[-2]


as_is, matrices = (sum(map(sums, each)) for each in (shapes, [torch.Size((s[0], s[1:].numel())) if s[1:] else s for s in shapes]))
print({name: version(name) for name in ("torch", "transformers", "came-pytorch")}, "numbers for each parameter,", SHAPES, found)
print("U-Net of Stable Diffusion 1:", whole, "parameters,", as_is, "numbers; as matrices:", matrices)
assert found["Adam"] == [2, 2, 2] and found["torch"] == found["transformers"] == [0.006, 0.667, 2], "convolutions are viewed otherwise"
assert found["CAME"][2] == 5 and (whole, as_is) == (859520964, 457589700)
PY
