#!/usr/bin/env bash
# invisible-watermark 0.2.0: writing a watermark turns the finest blue stripes of a picture by 90 degrees.
#
# dwtDct and dwtDctSvd write into the Haar transform of the blue difference (U of YUV), and transform it back with the horizontal
# and the vertical details in each other's place: within every square of 2 x 2 pixels the upper right and the lower left change
# places. Columns of blue one pixel wide come out as rows, wherever the mark's bits lie and whatever they are; edges of blue get
# teeth. Luma has no part in it, so greys keep their details. diffusers 0.42.1 marks every picture of its SDXL pipelines in this
# way where the package is installed; add_watermarker=False leaves it out. Seen: 30 November 2026.
# What reverie does: marks are written into the luma, with every detail in its place (media/provenance.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 numpy==2.4.6 \
    opencv-python-headless==5.0.0.93 PyWavelets==1.9.0
"$work/venv/bin/pip" install --quiet --no-deps invisible-watermark==0.2.0  # it asks for the OpenCV that needs a display's libraries
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion_xl.watermark import StableDiffusionXLWatermarker
from imwatermark import WatermarkEncoder

picture = np.full((256, 256, 3), 128, np.uint8)
picture[:, ::2, 0] = 228  # blue, as OpenCV has it: columns, one pixel wide


def changes(image: np.ndarray) -> tuple[float, float]:
    """Give by how much blue changes from pixel to pixel, across and down."""
    blue = image[..., 0].astype(float)
    return tuple(round(float(np.abs(np.diff(blue, axis=axis)).mean()), 1) for axis in (1, 0))


def marked(method: str, bits: list[int]) -> np.ndarray:
    encoder = WatermarkEncoder()
    encoder.set_watermark("bits", bits)
    return encoder.encode(picture, method)


def drawn() -> np.ndarray:
    """Mark the picture as diffusers' SDXL pipelines do."""
    image = torch.from_numpy(picture[..., ::-1] / 127.5 - 1).permute(2, 0, 1)[None]
    image = StableDiffusionXLWatermarker().apply_watermark(image)[0].permute(1, 2, 0)
    return ((image.numpy() + 1) * 127.5)[..., ::-1]


found = {f"{method}, {bits[0]}": changes(marked(method, bits)) for method in ("dwtDct", "dwtDctSvd") for bits in ([0] * 8, [1] * 8)}
found["SDXL"] = changes(drawn())
print("invisible-watermark", version("invisible-watermark"), "changes of blue across and down:", changes(picture), found)
assert changes(picture) == (100, 0)
assert all(across < 15 and down > 85 for across, down in found.values()), "blue stripes keep their direction now"
PY
