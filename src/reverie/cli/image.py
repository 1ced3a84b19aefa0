"""`reverie image`: pictures of a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cyclopts import Parameter

from reverie.cli.flags import FurtherFlags, InitFlags, PictureAdapterFlags, PictureFlags
from reverie.cli.options import FileOptions, Flag, ModelOptions, ResultOptions, Whole, parse_time
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
