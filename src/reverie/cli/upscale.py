"""`reverie upscale`: a picture enlarged by a learned upscaler."""

from __future__ import annotations

from pathlib import Path

from reverie.cli.options import Flag, Output
from reverie.cli.output import say


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
        File of an upscaler: ESRGAN, Real-ESRGAN (x1 to x8), its compact kind or SwinIR (.pth, .safetensors).
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
    from reverie.jobs.upscale import Upscale, UpscaleJob

    request = Upscale.of({"picture": file, "upscaler": str(model), "scale": scale})
    job = UpscaleJob(request=request, output=output, device=device, no_clobber=no_clobber)
    for _ in show_progress(job.run()):
        pass
    say(str(output))
