"""`reverie image`, `replay` and `watermark`: pictures of a prompt, files made again, and what is written in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cyclopts import App, Parameter

from reverie.cli.flags import FurtherFlags, InitFlags, PictureAdapterFlags, PictureFlags
from reverie.cli.options import FileOptions, Flag, ModelOptions, Output, ResultOptions, Several, Whole, parse_time
from reverie.cli.output import say
from reverie.errors import ReverieError

PREVIEW_STEPS = 4  # steps between two previews


@Parameter(name="*", group="Judge")
@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Choose among the pictures, and explain them."""

    best_of: Whole | None = None
    """Draw so many and keep the --count that CLIP finds most like the prompt, best first."""
    clip: str | None = None
    """CLIP that ranks them: a folder, a file or owner/name on the hub; the bundled one if not given."""
    explain: Flag = False
    """Draw beside each picture, in NAME-explained.png, where the attention to each word was; draws it once more."""


def image(
    prompt: str,
    /,
    *,
    drawing: PictureFlags = PictureFlags(),
    init: InitFlags = InitFlags(),
    adapters: PictureAdapterFlags = PictureAdapterFlags(),
    further: FurtherFlags = FurtherFlags(),
    judge: JudgeOptions = JudgeOptions(),
    model: ModelOptions = ModelOptions(),
    result: ResultOptions = ResultOptions(),
    files: FileOptions = FileOptions(),
    time_budget: str | None = None,
) -> None:
    """Draw pictures of a prompt.

    Parameters
    ----------
    prompt
        What to draw.
    time_budget
        How long the drawing may take, such as 30s or 2m: steps, sampler and --cache-steps are chosen for this machine.
    """
    from reverie.cli.ask import ask_picture
    from reverie.cli.jobs import carry_out
    from reverie.jobs.outputs import slug
    from reverie.jobs.pictures import PictureJob

    request, within = ask_picture(prompt, drawing, init, adapters, further), parse_time(time_budget)
    if within is not None and model.compile:
        raise ReverieError("--time-budget does not know how long compiling takes; leave out --compile")
    job = PictureJob(
        request=request,
        output=result.output or Path(f"{slug(prompt)}-{request.seed}.png"),
        model=model.model,
        time_budget=within,
        **vars(judge),
        **finishing(model, result, files),
    )
    carry_out(job, model, result.as_json, result.preview)


def finishing(model: ModelOptions, result: ResultOptions, files: FileOptions) -> dict[str, Any]:
    """Return what the options say of how pictures are finished, as fields of a `PictureJob`."""
    names = ("grid", "taesd", "safety", "watermark", "c2pa")
    chosen = {name: getattr(result, name) for name in names}
    return {**chosen, **vars(files), "previews": PREVIEW_STEPS if result.preview else 0, "device": model.device}


def replay(
    file: Path,
    /,
    *,
    init: Path | None = None,
    mask: Path | None = None,
    seed: Whole | None = None,
    steps: Whole | None = None,
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
    lora
        File of a LoRA, or FILE:weight, in place of the file's; may be given several times.
    """
    from reverie.cli.jobs import carry_out, show
    from reverie.jobs.replay import replay_job

    given = {"init": init, "mask": mask, "seed": seed, "steps": steps, "loras": lora or None}
    changes = {name: value for name, value in given.items() if value is not None}
    options = finishing(model, result, files)
    job, notes = replay_job(file, changes, output=result.output, model=model.model, **options)
    for note in notes:
        show(note)
    carry_out(job, model, result.as_json, result.preview)


watermark_app = App(name="watermark", help="Read and write invisible watermarks.", help_format="plaintext")


@watermark_app.command(name="read")
def read_watermark(file: Path, /) -> None:
    """Print the text of a picture's invisible watermark.

    Parameters
    ----------
    file
        A picture; one saved as JPEG since still tells.
    """
    from reverie.media import watermark

    say(watermark.read(file))


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
    from reverie.media import watermark
    from reverie.media.pictures import open_picture, save

    check_writable([output], [file])
    save(watermark.write(open_picture(file), text), output)
    say(str(output))
