#!/usr/bin/env bash
# blend-modes 2.2.0: subtract() turns all that is not black into white.
#
# Its functions divide both pictures by 255 and blend from 0 to 1. subtract() takes the layer, which was divided, away from the
# picture as it was given, from 0 to 255, and cuts the result at 1: whatever is a little brighter than black becomes white where
# the layer lies, and at an opacity of a hundredth all above 72; the layer's colour plays no part. 200 less 50 is 255, not 150; a
# black layer, which should take nothing away, whitens as well. Other functions of the package, difference() with
# the same subtraction among them, divide both. Seen: 1 December 2026.
# What reverie does: it lays pictures over each other by weight alone, around a mask (generate/canvas.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet blend-modes==2.2.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

import blend_modes
import numpy as np


def plain(colour: tuple[float, float, float]) -> np.ndarray:
    return np.full((4, 4, 4), (*colour, 255.0))


picture, meant = plain((200.0, 100.0, 2.0)), {}
found = {}
for layer in ((50.0, 20.0, 1.0), (0.0, 0.0, 0.0)):
    for opacity in (1.0, 0.5):
        result = blend_modes.subtract(picture, plain(layer), opacity)[0, 0, :3]
        found[layer, opacity] = [round(float(level)) for level in result]
        meant[layer, opacity] = [level - opacity * less for level, less in zip((200, 100, 2), layer)]
print("blend-modes", version("blend-modes"), found, "meant", meant)
assert set(map(tuple, found.values())) == {(255, 255, 255)}, "it subtracts otherwise now"
other = blend_modes.difference(picture, plain((50.0, 20.0, 1.0)), 1.0)[0, 0, :3]
assert np.allclose(other, (150, 80, 1)), "difference() subtracts otherwise now"
PY
