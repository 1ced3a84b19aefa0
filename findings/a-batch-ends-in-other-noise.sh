#!/usr/bin/env bash
# torch 2.13.0: of a batch's noise, the first picture's part is not the noise of the picture drawn alone, for some sizes.
#
# torch.randn on the CPU makes normal numbers sixteen at a time, and where sixteen does not divide their count it makes the
# last sixteen anew, from fresh draws. So a longer tensor from the same seed need not begin with the shorter one: latents of
# 4 x 64 x 64 do (512 pixels), those of 4 x 65 x 65 (520 pixels) differ in their last sixteen numbers, at the picture's lower
# edge, and below sixteen numbers nothing agrees. "The first of the batch has the seed's own noise" holds where sixteen divides
# one picture's numbers: height or width a multiple of 4 latent pixels, or both even. Seen: 29 November 2026.
# What reverie does: every picture of a batch draws from a generator of its own (diffusion/noise.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import torch


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def places(side: int) -> list[int]:
    """Tell where one picture's noise differs from that of the first of two."""
    return (noise(1, 4, side, side)[0] != noise(2, 4, side, side)[0]).flatten().nonzero().flatten().tolist()


found = {side: places(side) for side in (64, 66, 65, 75)}
short = int((noise(15) == noise(16)[:15]).sum())
print("torch", torch.__version__, "numbers that differ, by the side of the latents:", {s: len(p) for s, p in found.items()})
print("their places at 65:", found[65], "of", 4 * 65 * 65, "| of 15 numbers, as in 16:", short)
assert found[64] == found[66] == [], "sizes that agreed do not"
for side in (65, 75):
    assert found[side] == list(range(4 * side * side - 16, 4 * side * side)), "the last sixteen are no longer all that differs"
assert short == 0, "fewer than sixteen numbers begin as sixteen do now"
PY
