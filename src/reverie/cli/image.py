"""`reverie image`: pictures of a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter

from reverie.cli.flags import FurtherFlags, InitFlags, PictureAdapterFlags, PictureFlags
from reverie.cli.options import FileOptions, Flag, ModelOptions, ResultOptions, Several, Whole, parse_time
from reverie.errors import ReverieError

if TYPE_CHECKING:
    from reverie.jobs.batches import BatchJob
    from reverie.jobs.events import Job
    from reverie.requests.pictures import TextToImage

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


@Parameter(name="*", group="Draw many")
@dataclass(frozen=True, kw_only=True)
class ManyOptions:
    """Draw pictures that differ in more than their seeds."""

    style: Several = ()
    """Name of a style in --styles, which goes with the prompts; may be given several times."""
    styles: Path | None = None
    """A1111's file of styles: a .csv of name, prompt and negative_prompt, around the prompt where they say {prompt}."""
    dynamic: Flag = False
    """Draw each picture's prompts by its seed: {a|b}, {2$$a|b|c}, {3::a|b}, as A1111's extension dynamic prompts."""
    wildcards: Path | None = None
    """Folder of wildcards for --dynamic, which it implies: __animals__ is a line of animals.txt."""


def image(
    prompt: str,
    /,
    *,
    drawing: PictureFlags = PictureFlags(),
    init: InitFlags = InitFlags(),
    adapters: PictureAdapterFlags = PictureAdapterFlags(),
    further: FurtherFlags = FurtherFlags(),
    many: ManyOptions = ManyOptions(),
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
    output = result.output or Path(f"{slug(prompt)}-{request.seed}.png")
    options = {"model": model.model, "time_budget": within, **vars(judge), **finishing(model, result, files)}
    requests = draw_many(request, many)
    if len(requests) == 1:
        job: Job = PictureJob(request=requests[0], output=output, **options)
    else:
        job = batch(requests, output, options)
    check_preview(result.preview, requests)
    carry_out(job, model, result.as_json, result.preview)


def draw_many(request: TextToImage, many: ManyOptions) -> tuple[TextToImage, ...]:
    """Return the requests that a request becomes by the options; itself where they ask for nothing."""
    if many.style:
        request = style(request, many.style, many.styles)
    if not many.dynamic and many.wildcards is None:
        return (request,)
    from reverie.requests.templates import Wildcards, draw_prompts

    return draw_prompts(request, Wildcards(many.wildcards))


def style(request: TextToImage, names: Sequence[str], file: Path | None) -> TextToImage:
    """Return a request with the styles of these names. Raises ReverieError for names that the file has not."""
    from reverie.requests.templates import add_styles, read_styles

    if file is None:
        raise ReverieError("--style names a style of a file; give the file with --styles")
    return request.replace(**add_styles(names, read_styles(file), request.prompt, request.negative))


def batch(requests: tuple[TextToImage, ...], output: Path, options: dict[str, Any]) -> BatchJob:
    """Return the job for several requests, with `options` of a `PictureJob`; a grid is one file more."""
    from reverie.jobs.batches import BatchJob

    return BatchJob.of(requests, output, options)


def check_preview(preview: Path | None, requests: Iterable[TextToImage]) -> None:
    """Raise ReverieError where a preview cannot be written, or is a file that a request starts from."""
    from reverie.jobs.outputs import check_outputs, check_writable

    if preview is not None:
        check_writable([preview])
        for request in requests:
            check_outputs([preview], request)


def finishing(model: ModelOptions, result: ResultOptions, files: FileOptions) -> dict[str, Any]:
    """Return what the options say of how pictures are finished, as fields of a `PictureJob`."""
    names = ("grid", "taesd", "safety", "watermark", "c2pa")
    chosen = {name: getattr(result, name) for name in names}
    return {**chosen, **vars(files), "previews": PREVIEW_STEPS if result.preview else 0, "device": model.device}
