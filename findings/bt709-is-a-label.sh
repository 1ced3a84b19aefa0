#!/usr/bin/env bash
# av 18.1.0 (PyAV): setting a stream's colorspace to BT.709 labels the film and converts by BT.601, so its colours change.
#
# An RGB frame that is given to an encoder of yuv420p is converted on the way, by BT.601's weights of red, green and blue. Setting
# codec_context.colorspace (with color_primaries and color_trc) to 1, as for any film of 720 lines or more, changes what the file
# says, not the conversion: players undo it by BT.709, and green of 255 comes back as 215, red with 23 of green. Without the label
# a green of 255 comes back through PyAV, and players that take BT.709 for large films show the same shift. Converting the frame
# first, frame.reformat(format="yuv420p", dst_colorspace=1), makes the label true. Seen: 30 November 2026.
# What reverie does: frames are converted by BT.709 and labelled so (media/encoder.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet av==18.1.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import io

import av
import numpy as np

BT709 = 1  # ITU-T H.273


def played(colour: tuple[int, int, int], label: bool, convert: bool) -> tuple[int, list[int]]:
    """Encode one colour and decode it; give what the file says of its colours, and the colour."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as film:
        stream = film.add_stream("libx264", rate=8, options={"qp": "0"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        if label:
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = BT709
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), colour, np.uint8), format="rgb24")
        if convert:
            frame = frame.reformat(format="yuv420p", dst_colorspace=BT709)
        film.mux([*stream.encode(frame), *stream.encode()])
    file.seek(0)
    with av.open(file) as film:
        frame = next(film.decode(video=0))
    return int(frame.colorspace), frame.to_ndarray(format="rgb24")[32, 32].tolist()


colours = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
ways = {"plain": (False, False), "labelled": (True, False), "converted": (True, True)}
found = {way: {name: played(colour, *how) for name, colour in colours.items()} for way, how in ways.items()}
print("av", av.__version__, found)


def off(way: str) -> int:
    return max(abs(a - b) for name, colour in colours.items() for a, b in zip(found[way][name][1], colour))


assert {mark for mark, _ in found["labelled"].values()} == {mark for mark, _ in found["converted"].values()} == {BT709}
assert off("plain") < 5 and off("converted") < 5, "a colour does not come back"
assert off("labelled") > 30, "the label decides the conversion now"
PY
