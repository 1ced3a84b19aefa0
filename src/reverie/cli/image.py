"""`reverie image` and `reverie replay`: how does a prompt, or a file that was made, become a request?"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from reverie.cli.ask import AdapterOptions, BasicOptions, FurtherOptions, InitOptions, ask
from reverie.cli.drawing import draw
from reverie.cli.judge import JudgeOptions
from reverie.cli.options import ModelOptions, ResultOptions, parse_time
from reverie.cli.output import slug
from reverie.errors import ReverieError
from reverie.requests.pictures import TextToImage


def image(
    prompt: str,
    /,
    *,
    basics: BasicOptions = BasicOptions(),
    init: InitOptions = InitOptions(),
    adapters: AdapterOptions = AdapterOptions(),
    further: FurtherOptions = FurtherOptions(),
    judge: JudgeOptions = JudgeOptions(),
    model: ModelOptions = ModelOptions(),
    result: ResultOptions = ResultOptions(),
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
    request, within = ask({"prompt": prompt, **basics.fields()}, init, adapters, further), parse_time(time_budget)
    default = Path(f"{slug(prompt)}-{request.seed}.png")
    draw(request, default, model, result, judge=judge, within=within)


def replay(
    file: Path,
    /,
    *,
    init: Path | None = None,
    mask: Path | None = None,
    model: ModelOptions = ModelOptions(),
    result: ResultOptions = ResultOptions(),
) -> None:
    """Make a picture, a film or music again from the request that it carries.

    Parameters
    ----------
    file
        A film or a sound of reverie's, or a picture that reverie, AUTOMATIC1111, ComfyUI, InvokeAI or diffusers made.
    init
        The picture, film or sound it started from, where that has moved.
    mask
        The mask it was painted under, where that has moved.
    """
    moved = {name: path for name, path in (("init", init), ("mask", mask)) if path is not None}
    from reverie.requests.records import read_record  # brings the readers of all programs

    record = read_record(file)
    for note in record.notes:
        print(f"not honoured: {note}", file=sys.stderr)
    request, drawn_by = record.request, record.model
    if request.kind == "music":
        from reverie.cli import music  # which builds upon this module

        music.again(file, record, moved, model, result)
        return
    if request.kind == "animation":
        from reverie.cli import animate  # which builds upon this module

        animate.again(file, record, moved, model, result)
        return
    assert isinstance(request, TextToImage)
    for other in moved.keys() - type(request).model_fields.keys():
        raise ReverieError(f"'{file}' was made without {other}; leave out --{other}")
    request = request.replace(**moved)
    if model.model is None:
        from reverie.system import BUNDLED_NAME  # brings torch, which takes seconds

        if drawn_by != BUNDLED_NAME:
            raise ReverieError(f"'{file}' was drawn by the model '{drawn_by}'; say where that is with --model")
    if request.count > 1:  # only a grid carries a request for several pictures
        result = replace(result, grid=True)
    draw(request, file.with_name(f"{file.stem}-replay.png"), model, result, drawn_by=drawn_by)
