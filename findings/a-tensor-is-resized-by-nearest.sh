#!/usr/bin/env bash
# diffusers 0.42.1: a start picture of another size is resized by Lanczos as a Pillow picture, by nearest neighbour as an array.
#
# VaeImageProcessor resizes what is not of the size drawn, or whose sides are no multiples of 8. A Pillow picture goes through
# Lanczos, a tensor or an array, also in 0 to 1, through torch's interpolate() with its default: rows and columns are left out or
# doubled. 517 pixels become 512 by leaving out five columns; 1024 become 512 with every second pixel, so a checkerboard of one
# pixel turns black instead of grey. The same picture, in two of the forms that the documentation allows, draws two. Resize a
# tensor before. Seen: 30 November 2026.
# What reverie does: start pictures, of whatever form, are resized by Lanczos (generate/canvas.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 numpy==2.4.6 pillow==13.0.0
"$work/venv/bin/python" - <<'PY'
import diffusers
import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

processor = VaeImageProcessor()
down, across = np.indices((1024, 1024))
checkers = (255 * ((down + across) % 2)).astype(np.uint8)[..., None].repeat(3, -1)
ramp = (np.arange(517) // 3).astype(np.uint8)[None, :, None].repeat(16, 0).repeat(3, -1)


def read(picture: np.ndarray, **size: int) -> dict[str, torch.Tensor]:
    """Give a picture as the pipelines see it, by the form in which it was given."""
    part = (picture / 255).astype(np.float32)
    forms = {"Pillow": Image.fromarray(picture), "array": part[None], "tensor": torch.from_numpy(part.transpose(2, 0, 1))[None]}
    return {name: processor.preprocess(form, **size) for name, form in forms.items()}


def levels(image: torch.Tensor) -> list[float]:
    """Give the darkest and the lightest value away from the edges."""
    inside = image[..., 8:-8, 8:-8]
    return [round(inside.min().item(), 2), round(inside.max().item(), 2)]


whole = {name: levels(image) for name, image in read(checkers, height=512, width=512).items()}
kept = ramp[:, np.arange(512) * 517 // 512]  # five columns are left out
alone = processor.preprocess(Image.fromarray(kept))
slight = {name: torch.equal(image, alone) for name, image in read(ramp).items()}
same = [torch.equal(image, alone) for image in read(kept).values()]
print("diffusers", diffusers.__version__, "a checkerboard halved, from -1 to 1:", whole)
print("517 columns are 512 of them:", slight, "| of 512 columns all forms are equal:", all(same))
assert whole["array"] == whole["tensor"] == [-1, -1], "an array is filtered now"
assert max(map(abs, whole["Pillow"])) < 0.02 and not slight["Pillow"], "Pillow's picture is not filtered"
assert slight["array"] and slight["tensor"] and all(same), "other columns are taken"
PY
