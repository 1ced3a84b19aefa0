#!/usr/bin/env bash
# diffusers 0.42.1: find_nearest_bucket() sends a picture to the smallest bucket, not to the nearest in shape.
#
# It takes the least |h * bucket_w - w * bucket_h|. That is the difference of the two shapes times the bucket's own size, so small
# buckets win: of 1024 x 1024 and 512 x 512 neither is off, and the last in the list is taken, for a picture of 1024 x 1024 too; of
# (1024, 768) and (640, 512) a picture of 3000 x 2000 (3 : 2) gets 5 : 4 and not 4 : 3. A picture of 1023 x 1024 goes to 512 x 512
# wherever that stands. With --aspect_ratio_buckets the DreamBooth scripts take their sizes from it: where the list names several
# sizes, as to train at more than one, nearly all is learned at the smallest. Lists of one area, such as
# generate_aspect_ratio_buckets() makes, are hardly concerned. Seen: 30 November 2026.
# What reverie does: the nearest ratio of sides is taken, and of equal ones the largest bucket (train/folders.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import math

import diffusers
from diffusers.training_utils import find_nearest_bucket, parse_buckets_string

buckets = parse_buckets_string("512,512;1024,1024;768,1024;1024,768;640,512")
found, nearest = {}, {}
for height, width in ((1024, 1024), (1023, 1024), (2000, 2000), (3000, 2000)):
    found[height, width] = buckets[find_nearest_bucket(height, width, buckets)]
    nearest[height, width] = min(buckets, key=lambda size: abs(math.log(height / width * size[1] / size[0])))
print("diffusers", diffusers.__version__, "of", buckets, "taken:", found, "nearest in shape:", nearest)
assert find_nearest_bucket(1024, 1024, [(1024, 1024), (512, 512)]) == 1, "of equal shapes the last is not taken any more"
assert found[1023, 1024] == (512, 512) and nearest[3000, 2000] == (1024, 768), "it behaves otherwise now"
assert found[3000, 2000] == (640, 512), "the nearest in shape is taken"
PY
