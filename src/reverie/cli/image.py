"""`reverie image`: pictures of a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter

from reverie.cli.flags import FurtherFlags, InitFlags, PictureAdapterFlags, PictureFlags
from reverie.cli.options import FileOptions, Flag, ModelOptions, ResultOptions, Several, Whole, parse_time
from reverie.errors import ReverieError

if TYPE_CHECKING:
    from reverie.jobs.batches import Axes, BatchJob, FolderJob
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
    axis: Several = ()
    """Values of a flag, steps=10,20,30, to draw a labelled grid of; up to three; replace=bear,fox goes into prompts."""


def image(
    prompt: str | None = None,
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
        What to draw; may be left out with --vary.
    time_budget
        How long the drawing may take, such as 30s or 2m: steps, sampler and --cache-steps are chosen for this machine.
    """
    from reverie.cli.ask import ask_picture
    from reverie.cli.jobs import carry_out
    from reverie.cli.options import tell_numbered
    from reverie.jobs.batches import BatchJob
    from reverie.jobs.outputs import slug
    from reverie.jobs.pictures import PictureJob

    if prompt is None and not further.vary:
        raise ReverieError('nothing to draw; give a prompt, such as "a bear", or a picture with --vary')
    prompt, flags = prompt or "", (drawing, init, adapters, further)
    within = parse_time(time_budget)
    if within is not None and model.compile:
        raise ReverieError("--time-budget does not know how long compiling takes; leave out --compile")
    options = {"model": model.model, "time_budget": within, **vars(judge), **finishing(model, result, files)}
    if init.init is not None and init.init.is_dir():
        check_preview(result.preview, ())
        carry_out(over_folder(prompt, flags, many, result.output, options), model, result.as_json, result.preview)
        return
    request = ask_picture(prompt, *flags)
    output = result.output or Path(f"{slug(prompt)}-{request.seed}.png")
    job: Job
    if many.axis:
        axes, requests = ask_grid(prompt, flags, request, many)
        tell_numbered([name for names in axes.names for name in names])
        batch = replace(BatchJob.of(requests, output, {**options, "grid": True}), asked_seed=request.seed)
        job = grid_job(axes, batch, model)
    elif len(requests := draw_many(request, many)) == 1:
        job = PictureJob(request=requests[0], output=output, **options)
    else:
        job = BatchJob.of(requests, output, options)
    check_preview(result.preview, requests)
    carry_out(job, model, result.as_json, result.preview)


def over_folder(
    prompt: str, flags: Sequence[Any], many: ManyOptions, output: Path | None, options: dict[str, Any]
) -> FolderJob:
    """Return the job that draws over each picture of the folder that --init is, into another one, names kept.

    Raises ReverieError where the result is no folder, and where each picture would become several of other prompts.
    """
    from reverie.cli.ask import ask_picture
    from reverie.files import list_files
    from reverie.jobs.batches import FolderJob
    from reverie.jobs.pictures import PictureJob
    from reverie.media.pictures import FORMATS, READABLE
    from reverie.requests.base import RANDOM_SEED, random_seed

    drawing, init, *others = flags
    if output is None or not output.is_dir():
        raise ReverieError(f"--init '{init.init}' is a folder; give another one that is there with --output")
    if many.axis:
        raise ReverieError("--axis draws a grid over one picture; give --init a file, or leave out --axis")
    seed = random_seed() if drawing.seed in (None, RANDOM_SEED) else drawing.seed
    targets = {
        file: output / (file.name if file.suffix.lower() in FORMATS else f"{file.stem}.png")
        for file in list_files(init.init, READABLE)
    }
    if len(set(targets.values())) < len(targets):
        raise ReverieError(f"two pictures in '{init.init}' would be written to one name; rename one of them")

    def ask(file: Path) -> PictureJob:
        request = ask_picture(prompt, replace(drawing, seed=seed), replace(init, init=file), *others)
        requests = draw_many(request, many)
        if len(requests) > 1:
            raise ReverieError("--dynamic draws one of each picture of a folder; leave out --count")
        return PictureJob(request=requests[0], output=targets[file], **options)

    return FolderJob(files=tuple(targets), ask=ask, seed=seed, model=options["model"])


def ask_grid(
    prompt: str, flags: Sequence[Any], first: TextToImage, many: ManyOptions
) -> tuple[Axes, tuple[TextToImage, ...]]:
    """Return a grid and the requests for its cells, each as if their values had been given as flags.

    All have the seed of `first`, which is what was asked but for the axes. Raises ReverieError for an axis that is no
    flag of a picture, and for values that are not possible.
    """
    from reverie.cli.ask import ask_picture, parse_axes
    from reverie.jobs.batches import SEARCH, Axes
    from reverie.requests.base import unknown

    axes = Axes(parse_axes(many.axis))
    allowed = sorted({SEARCH, "model", "prompt", *(name for group in flags for name in vars(group))} - {"count"})
    for name in axes.values.keys() - set(allowed):
        raise ReverieError(unknown("axis", name, allowed))
    if first.count > 1:
        raise ReverieError("--axis draws one picture a cell; leave out --count, and give an axis such as seed=1,2,3")
    requests: list[TextToImage] = []
    for cell in axes.cells():
        given: dict[str, Any] = {"seed": first.seed, **cell}
        groups = [replace(group, **_values(group, given)) for group in flags]
        requests += draw_many(axes.put_words(cell, ask_picture(given.get("prompt", prompt), *groups)), many)
    return axes, tuple(requests)


def grid_job(axes: Axes, job: BatchJob, model: ModelOptions) -> BatchJob:
    """Return a job that lays its pictures out as a grid does, each drawn by its cell's model.

    Raises ReverieError for options of one model beside several.
    """
    job = replace(job, lay_out=axes.lay_out)
    if "model" not in axes.values:
        return job
    for name in ("config", "prediction", "revision", "variant", "vae", "unet"):
        if getattr(model, name) is not None:
            raise ReverieError(f"--{name} is about one model; leave it out with --axis model=..., or draw one by one")
    drawn_by = (str(cell["model"]) for cell in axes.cells())
    return replace(job, jobs=tuple(replace(one, model=name) for one, name in zip(job.jobs, drawn_by, strict=True)))


def _values(group: object, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is given of the flags of a group; one that may be given several times is given once."""
    return {
        name: ((given[name],) if given[name] else ()) if isinstance(value, tuple) else given[name] or None
        for name, value in vars(group).items()
        if name in given
    }


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
