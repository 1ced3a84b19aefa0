#!/usr/bin/env bash
# soundfile 0.14.0 (libsndfile): floats become 16-bit samples by flooring in WAV and by rounding in FLAC.
#
# 0.6 and 0.9 of one level become 0 in WAV and 1 in FLAC, -0.1 becomes -1 and 0: the same clip has an offset of half a level
# and twice the rounding error in WAV. Seen: 28 November 2026. What reverie does: it rounds before it writes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet soundfile==0.14.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import io

import numpy as np
import soundfile

levels, found = np.array([0.6, 0.9, -0.1, -0.6, 0.4, 1.5]), {}
for form in ("WAV", "FLAC"):
    file = io.BytesIO()
    soundfile.write(file, levels / 32768, 8000, format=form, subtype="PCM_16")
    file.seek(0)
    found[form] = soundfile.read(file, dtype="int16")[0].tolist()
print("soundfile", soundfile.__version__, soundfile.__libsndfile_version__, levels.tolist(), found)
assert found == {"WAV": [0, 0, -1, -1, 0, 1], "FLAC": [1, 1, 0, -1, 0, 2]}, "it behaves otherwise now"
PY
