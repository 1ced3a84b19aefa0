"""`reverie replay`, `upscale` and `watermark`: files made again or larger, and what is written in them invisibly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cyclopts import App

from reverie.cli.image import check_preview, finishing
from reverie.cli.options import FileOptions, Flag, ModelOptions, Output, ResultOptions, Several, Whole, say


def replay(
    file: Path,
    /,
    *,
    init: Path | None = None,
    mask: Path | None = None,
    seed: Whole | None = None,
    steps: Whole | None = None,
    variations: Whole | None = None,
    subseed_strength: float = 0.2,
    lora: Several = (),
    model: ModelOptions = ModelOptions(),
    result: ResultOptions = ResultOptions(),
    files: FileOptions = FileOptions(),
) -> None:
    """Make a picture, a film or music again from the request that it carries.

    Parameters
    ----------
    file
        A picture, film or sound that reverie made, or another program such as AUTOMATIC1111, ComfyUI or InvokeAI.
    init
        The picture, film or sound it started from, where that has moved.
    mask
        The mask it was painted under, where that has moved.
    seed
        Another seed than the file's.
    steps
        Other denoising steps than the file's.
    variations
        How many variations of the picture to draw: its noise goes some way towards that of other seeds.
    subseed_strength
        0 to 1, how far --variations go.
    lora
        File of a LoRA, or FILE:weight, in place of the file's; may be given several times.
    """
    from reverie.cli.jobs import carry_out, show
    from reverie.jobs.pictures import PictureJob
    from reverie.jobs.replay import replay_job

    given = {"init": init, "mask": mask, "seed": seed, "steps": steps, "loras": lora or None}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if variations is not None:
        from reverie.requests.base import MAX_SEED, random_seed
        from reverie.requests.parts import Variation

        other = min(random_seed(), MAX_SEED + 1 - variations)  # the last is to be a seed too
        changes |= {"count": variations, "variation": Variation(seed=other, strength=subseed_strength)}
    options = finishing(model, result, files)
    job, notes = replay_job(file, changes, output=result.output, model=model.model, **options)
    for note in notes:
        show(note)
    if isinstance(job, PictureJob):
        check_preview(result.preview, [job.request])
    carry_out(job, model, result.as_json, result.preview)


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


watermark_app = App(name="watermark", help="Read and write invisible watermarks.", help_format="plaintext")


@watermark_app.command(name="read")
def read_watermark(file: Path, /) -> None:
    """Print the text of a picture's invisible watermark.

    Parameters
    ----------
    file
        A picture; one saved as JPEG since still tells.
    """
    from reverie.media import provenance

    say(provenance.read_watermark(file))


@watermark_app.command(name="write")
def write_watermark(file: Path, /, *, output: Output, text: str = "reverie") -> None:
    """Write an invisible watermark into a copy of a picture, whose metadata is kept.

    Parameters
    ----------
    file
        A picture.
    output
        Where the copy goes (.png, .jpg, .webp).
    text
        What it says: up to 12 bytes in 128 x 128 pixels, 60 in 256 x 256 and more.
    """
    from reverie.jobs.outputs import check_writable
    from reverie.media import provenance
    from reverie.media.pictures import open_picture, save

    check_writable([output], [file])
    save(provenance.write_watermark(open_picture(file), text), output)
    say(str(output))
