"""How does a request become files of pictures? Drawn, chosen, finished and written one by one, and told of."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from reverie.cli.downloads import fetch
from reverie.cli.judge import JudgeOptions, explain_beside
from reverie.cli.options import ModelOptions, ResultOptions
from reverie.cli.output import check_writable, numbered, say
from reverie.cli.progress import Stopwatch, watched
from reverie.errors import ReverieError
from reverie.media.pictures import grid, save
from reverie.requests.metadata import read_own, texts
from reverie.requests.pictures import TextToImage

if TYPE_CHECKING:
    from reverie.generate.image import Show
    from reverie.pipeline import Pipeline

PREVIEW_STEPS = 4  # steps between two previews


def draw(
    request: TextToImage,
    default: Path,
    model: ModelOptions,
    result: ResultOptions,
    *,
    judge: JudgeOptions = JudgeOptions(),
    drawn_by: str | None = None,
    within: float | None = None,
) -> None:
    """Check where to write, load the model, draw, write each picture as soon as it is done, and report.

    `drawn_by` is the model of the picture that is made again; another one is told of on stderr. `within` is how many
    seconds the drawing may take, for which settings are then chosen.
    """
    if within is not None and model.compile:
        raise ReverieError("--time-budget does not know how long compiling takes; leave out --compile")
    from reverie.generate.notes import notes as told  # brings torch

    output, watch = result.output or default, Stopwatch()
    paths, sign = places(output, request.count, result), signing(result)
    asked = judge.asked(request, result)
    with watch.measure("load"):
        clip = judge.load(model.device)
        system = load(model, drawn_by)
        finish = finishing(system, result)
        if within is not None:
            changes = chosen_for(system, asked, within)
            request, asked = request.replace(**changes), asked.replace(**changes)

    def write(picture: Image.Image, path: Path) -> None:
        with watch.measure("save"):
            save(picture, path)
            sign(path)

    for note in told(asked, system):
        print(note, file=sys.stderr)
    which, pictures, files = [], [], list(paths)
    with watch.measure("draw"):
        for index, picture in judge.chosen(drawn(system, asked, result), request, clip):
            which.append(asked.only(index))
            pictures.append(finish(picture))
            if not result.grid:
                write(pictures[-1], paths[len(pictures) - 1])
    if judge.explain:
        with watch.measure("explain"):
            files += [explain_beside(system, one, path) for one, path in zip(which, paths, strict=True)]
    if result.grid:
        pictures = [sheet(pictures, request, system.name)]
        write(pictures[0], output)
    report(request, files, pictures, [one.seed for one in which], watch.seconds, result.as_json)


def places(output: Path, count: int, result: ResultOptions) -> list[Path]:
    """Return where the pictures go. Raises ReverieError where they cannot, and for results that make no sense."""
    paths = [output] if result.grid else numbered(output, count)
    check_writable([*paths, *([result.preview] if result.preview else [])])
    if result.taesd is not None and result.preview is None:
        raise ReverieError("--taesd is about the preview; ask for one with --preview look.png")
    if result.watermark == "":
        raise ReverieError("--watermark '' says nothing; give a text, or leave it out")
    return paths


def load(model: ModelOptions, drawn_by: str | None) -> Pipeline:
    """Fetch the model where it is not there yet, and load it; say where it is not the one that drew before."""
    fetch(model)
    import reverie  # brings torch, which takes seconds
    from reverie.runtime import native

    system = reverie.load(
        model.model,
        device=model.device,
        dtype=model.dtype,
        config=model.config,
        revision=model.revision,
        variant=model.variant,
        vae=model.vae,
        fast=model.fast,
        int8=model.int8,
        offload=model.offload,
        compile=model.compile,
    )
    if system.device.type == "cpu" and not native(system.dtype):
        print(f"this processor does not compute in {model.dtype}: float32 is many times as fast", file=sys.stderr)
    if drawn_by not in (None, system.name):
        print(f"not honoured: it was drawn by '{drawn_by}', this is '{system.name}'", file=sys.stderr)
    return system


def chosen_for(system: Pipeline, request: TextToImage, within: float) -> dict[str, object]:
    """Choose the settings that draw a request within a time, and say on stderr which, and why."""
    from reverie.generate.budget import plan, profiled

    planned = plan(profiled(system, request), request, within)
    profile, settings = planned.profile, ", ".join(f"{name} {value}" for name, value in planned.changes.items())
    print(
        f"for {within:g} s: {settings}: about {planned.seconds:.1f} s (a step takes {profile.step:.2g} s, "
        f"one on cached levels {profile.reused:.2g} s, decoding {profile.rest:.2g} s)",
        file=sys.stderr,
    )
    return planned.changes


def drawn(system: Pipeline, request: TextToImage, result: ResultOptions) -> Iterator[Image.Image]:
    """Draw and show how far it is; where the options name a file for it, also how it looks, every few steps."""
    preview = None if result.preview is None else look(system, result.taesd)
    events = system.stream(request, preview=preview)
    for progress in watched(events, lambda step: (step.index + 1, step.total), "drawing"):
        if result.preview is not None and progress.index % PREVIEW_STEPS == 0:
            save(grid(progress.preview()), result.preview)
        yield from progress.pictures


def look(system: Pipeline, taesd: Path | None) -> Show:
    """Choose how previews are decoded: by a TAESD where one is given, by colours alone where not."""
    from reverie.checkpoints.taesd import load_tiny
    from reverie.codecs.image import TinyPreview, fit_preview

    if taesd is None:
        return fit_preview(system.codec).pictures
    tiny = load_tiny(taesd, device=system.device, dtype=system.dtype)
    return TinyPreview(tiny, system.device, system.dtype).pictures


def finishing(system: Pipeline, result: ResultOptions) -> Callable[[Image.Image], Image.Image]:
    """Return what becomes of each picture before it is written: the safety checker's and the watermark's."""
    from reverie.checkpoints.safety import load_safety
    from reverie.codecs.clip_images import screened
    from reverie.media import watermark

    checker = None if result.safety is None else load_safety(result.safety, device=system.device)

    def finish(picture: Image.Image) -> Image.Image:
        if checker is not None:
            (picture,), (held,) = screened(checker, [picture])
            if held:
                print("a picture was held back by the safety checker; it is black", file=sys.stderr)
        return picture if result.watermark is None else watermark.write(picture, result.watermark)

    return finish


def signing(result: ResultOptions) -> Callable[[Path], None]:
    """Return what becomes of each file once it is written: nothing, or a signature."""
    if result.c2pa is None:
        return lambda path: None
    from reverie.media.provenance import signer

    return signer(result.c2pa)


def sheet(pictures: list[Image.Image], request: TextToImage, model: str) -> Image.Image:
    """Lay pictures out on one sheet that carries the request for all of them."""
    record = read_own(pictures[0].info)
    assert record is not None  # which drew it
    laid_out, first = grid(pictures), record.request
    filled = {name: getattr(first, name) for name in ("guidance", "width", "height", "hires")}
    laid_out.info.update(texts(request.replace(**filled), model))
    return laid_out


def report(
    request: TextToImage,
    files: Sequence[Path],
    pictures: Sequence[Image.Image],
    seeds: Sequence[int],
    seconds: dict[str, float],
    as_json: bool,
) -> None:
    """Tell what was made: the files on stdout, one a line, and a summary on stderr; or all of it as JSON on stdout."""
    if as_json:
        timings = {part: round(taken, 3) for part, taken in seconds.items()}
        sizes = [picture.size for picture in pictures]
        told = {"files": [str(path) for path in files], "seeds": seeds, "sizes": sizes, "timings": timings}
        say(json.dumps(told | {"request": request.recorded()}, ensure_ascii=False))
        return
    for path in files:
        say(str(path))
    last = f" to {seeds[-1]}" if seeds[-1] != seeds[0] else ""
    print(
        f"seed {seeds[0]}{last}; loaded in {seconds['load']:.1f} s, drawn in {seconds['draw']:.1f} s", file=sys.stderr
    )
