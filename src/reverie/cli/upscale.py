"""`reverie upscale`: a picture enlarged by a learned upscaler."""

from __future__ import annotations

from pathlib import Path

from reverie.cli.options import Flag, Output
from reverie.cli.output import say

LARGEST_SCALE = 16


def upscale(
    file: Path,
    /,
    *,
    model: Path,
    output: Output,
    scale: float | None = None,
    device: str = "auto",
    no_clobber: Flag = False,
) -> None:
    """Enlarge a picture by a learned upscaler, tile by tile; its metadata is kept.

    Parameters
    ----------
    file
        A picture.
    model
        File of an upscaler: ESRGAN, Real-ESRGAN (x1 to x8) or its compact kind (.pth, .safetensors).
    output
        Where the larger picture goes (.png, .jpg, .webp).
    scale
        How many times larger it is to be, in up to three passes; as the upscaler makes it if not given.
    device
        cpu, cuda or mps; auto takes a GPU where there is one.
    no_clobber
        Refuse to write over a file that is there.
    """
    from reverie.cli.progress import show_progress
    from reverie.errors import ReverieError
    from reverie.jobs.outputs import check_writable
    from reverie.media.pictures import open_picture, save

    if scale is not None and not 0 < scale <= LARGEST_SCALE:
        raise ReverieError(f"--scale {scale:g} is not possible; give a number above 0, up to {LARGEST_SCALE}")
    check_writable([output], [file])
    if no_clobber and output.exists():
        raise ReverieError(f"'{output}' is there already; give another name, or leave out --no-clobber")
    picture = open_picture(file)

    from reverie.checkpoints.load import load_upscaler  # these bring torch, which takes seconds
    from reverie.codecs.image import enlarge_to
    from reverie.runtime import pack
    from reverie.system import pick_device

    network = pack(load_upscaler(model, device=pick_device(device)))
    factor = network.scale if scale is None else scale
    size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
    *_, last = show_progress(enlarge_to(network, picture, size))
    assert last.picture is not None
    save(last.picture, output)
    say(str(output))
