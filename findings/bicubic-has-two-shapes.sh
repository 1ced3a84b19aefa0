#!/usr/bin/env bash
# torch 2.13.0: interpolate(mode="bicubic") enlarges by another curve with antialias=True than without.
#
# Antialiasing widens the kernel where a picture shrinks; where it grows there is nothing to widen, and bilinear gives the
# same with and without. Bicubic does not: Keys' kernel (1981) has a = -0.75 without antialiasing and a = -0.5 with it, so
# one bright row overshoots to -0.1099 or to -0.0732 beside itself. Latents that are enlarged for a second pass differ as
# much ("Latent (bicubic)" and "Latent (bicubic antialiased)" of A1111's menu). Seen: 29 November 2026.
# What reverie does: has both, each under A1111's name (docs/guide/pictures.md, "--hires-upscaler").
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import torch
import torch.nn.functional as F


def keys(t: float, a: float) -> float:
    t = abs(t)
    return (a + 2) * t**3 - (a + 3) * t**2 + 1 if t < 1 else a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a


def enlarged(mode: str, antialias: bool) -> torch.Tensor:
    row = torch.zeros(1, 1, 1, 8)
    row[..., 4] = 1
    return F.interpolate(row, size=(1, 32), mode=mode, antialias=antialias, align_corners=False)[0, 0, 0]


distances = ((torch.arange(32) + 0.5) / 4 - 0.5 - 4)[10:26].tolist()
for antialias, a in ((False, -0.75), (True, -0.5)):
    seen, curve = enlarged("bicubic", antialias)[10:26], torch.tensor([keys(t, a) for t in distances])
    print("torch", torch.__version__, "antialias", antialias, "lowest", round(seen.min().item(), 4), "a", a)
    assert torch.allclose(seen, curve, atol=1e-6), f"antialias={antialias} no longer follows a = {a}"
assert torch.allclose(enlarged("bilinear", False), enlarged("bilinear", True), atol=1e-6), "bilinear differs now"
PY
