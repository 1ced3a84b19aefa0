#!/usr/bin/env bash
# blend-modes 2.2.0: normal() takes a picture without alpha for one that is transparent all over.
#
# The package's other functions refuse three channels by name. normal() lets them pass and adds the alpha that is missing, as
# zeros where an opaque picture has ones: two RGB pictures become one of four channels that is black and transparent everywhere,
# whatever they show. Of an RGBA layer upon an RGB picture the layer alone is left, half transparent at opacity 0.5, and an RGB
# layer upon an RGBA picture changes nothing. Saved as JPEG, which drops alpha, these are a black square, the layer without
# its ground, and the ground alone. With an alpha of 255 added by hand both are blended. Seen: 1 December 2026.
# What reverie does: a picture without alpha is opaque, wherever pictures are read (media/pictures.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet blend-modes==2.2.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import warnings
from importlib.metadata import version

import blend_modes
import numpy as np

warnings.simplefilter("ignore")  # 0 divided by 0, which is where the black comes from


def plain(*colour: float) -> np.ndarray:
    return np.full((4, 4, len(colour)), colour)


ground, layer = (200.0, 100.0, 50.0), (0.0, 0.0, 200.0)
pairs = {
    "RGBA on RGBA": (plain(*ground, 255.0), plain(*layer, 255.0)),
    "RGB on RGB": (plain(*ground), plain(*layer)),
    "RGBA on RGB": (plain(*ground), plain(*layer, 255.0)),
    "RGB on RGBA": (plain(*ground, 255.0), plain(*layer)),
}
found = {name: blend_modes.normal(*pair, 0.5)[0, 0].tolist() for name, pair in pairs.items()}
print("blend-modes", version("blend-modes"), found)
assert found["RGBA on RGBA"] == [100, 50, 125, 255], "opaque pictures are blended otherwise now"
assert found["RGB on RGB"] == [0, 0, 0, 0], "pictures without alpha are seen now"
assert found["RGBA on RGB"] == [0, 0, 200, 127.5], "the picture below is seen now"
assert found["RGB on RGBA"] == [200, 100, 50, 255], "the layer is seen now"
try:
    blend_modes.multiply(*pairs["RGB on RGB"], 0.5)
except TypeError:
    pass
else:
    raise AssertionError("multiply() takes pictures without alpha now")
PY
