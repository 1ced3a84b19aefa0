#!/usr/bin/env bash
# img2dataset 1.47.0: pictures of 16 bits become white.
#
# Its resizer, through which all that is downloaded goes, decodes with IMREAD_UNCHANGED, so a PNG or TIFF of 16 bits stays at 0 to
# 65535, and encodes to JPEG, which has 8 bits: OpenCV cuts everything above 255 off. An even ramp from black to white comes out
# with a mean of 255 where 127.5 is meant, in every mode of resizing and without any, and is counted as a success. Scans, depth
# maps and renders are of that kind; a data set made of them trains on white squares with captions. disable_all_reencoding=True
# keeps the file as it is. Seen: 30 November 2026.
# What reverie does: the whole range of 16 bits becomes that of 8, wherever pictures are read (media/pictures.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet img2dataset==1.47.0 opencv-python-headless==4.14.0.94 albumentations==1.4.24 numpy==2.4.6 pillow==13.0.0
"$work/venv/bin/python" - <<'PY'
import io
from importlib.metadata import version

import numpy
from img2dataset.resizer import Resizer
from PIL import Image


def mean(picture: Image.Image, mode: str) -> float:
    """Store a picture as img2dataset does; give the mean of what is stored."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    stored, *_, error = Resizer(image_size=32, resize_mode=mode, resize_only_if_bigger=True)(file)
    assert error is None, error
    return float(numpy.asarray(Image.open(io.BytesIO(stored)).convert("L")).mean())


ramp = numpy.linspace(0, 1, 4096).reshape(64, 64)
deep, plain = Image.fromarray((ramp * 65535).astype(numpy.uint16)), Image.fromarray((ramp * 255).round().astype(numpy.uint8))
modes = ("no", "keep_ratio", "center_crop", "border", "keep_ratio_largest")
found = {mode: (mean(plain, mode), mean(deep, mode)) for mode in modes}
print("img2dataset", version("img2dataset"), "mean of 8 bits and of 16 bits, by mode:", found)
assert all(abs(eight - 127.5) < 2 for eight, _ in found.values()), "pictures of 8 bits are changed too"
assert all(sixteen > 250 for _, sixteen in found.values()), "it behaves otherwise now"
PY
