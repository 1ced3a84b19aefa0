"""`reverie image` and `reverie replay`: how does a prompt become picture files?"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from reverie.cli.ask import AdapterOptions, FurtherOptions, InitOptions, ask
from reverie.cli.downloads import fetch
from reverie.cli.options import ModelOptions, ResultOptions, Whole, parse_size
from reverie.cli.output import check_writable, numbered, say, slug
from reverie.cli.progress import watched
from reverie.codecs.pictures import REQUEST, grid, open_picture, read_texts, save
from reverie.errors import ReverieError
from reverie.generate.foreign import read_foreign
from reverie.generate.metadata import read_metadata, texts
from reverie.generate.requests import TextToImage

if TYPE_CHECKING:
    from reverie.generate.image import Progress, Show
    from reverie.generate.pipeline import Pipeline

DEFAULT = TextToImage(seed=0)
PREVIEW_STEPS = 4  # steps between two previews


def image(
    prompt: str,
    /,
    *,
    negative: str = DEFAULT.negative,
    seed: Whole | None = None,
    steps: Whole = DEFAULT.steps,
    guidance: float = DEFAULT.guidance,
    size: str | None = None,
    count: Whole = DEFAULT.count,
    sampler: str = DEFAULT.sampler,
    schedule: str = DEFAULT.schedule,
    guidance_rescale: float = DEFAULT.guidance_rescale,
    threshold: float | None = DEFAULT.threshold,
    init: InitOptions = InitOptions(),
    adapters: AdapterOptions = AdapterOptions(),
    further: FurtherOptions = FurtherOptions(),
    model: ModelOptions = ModelOptions(),
    result: ResultOptions = ResultOptions(),
) -> None:
    """Draw pictures of a prompt.

    Parameters
    ----------
    prompt
        What to draw.
    negative
        What to keep away from.
    seed
        Picture k is drawn from seed + k; random if not given.
    steps
        Denoising steps.
    guidance
        How strictly to follow the prompt; 1 switches guidance off.
    size
        WIDTHxHEIGHT in pixels, multiples of 8, or what the model asks; the model's own if not given.
    count
        How many pictures.
    sampler
        How the noise is taken away: dpmpp_2m, euler, heun, ...; an unknown name lists them all.
    schedule
        How the noise levels are spaced: karras, exponential, ...; an unknown name lists them all.
    guidance_rescale
        0 to 1, against overexposure at high guidance.
    threshold
        Percentile of dynamic thresholding, such as 0.995; none if not given.
    """
    width, height = (None, None) if size is None else parse_size(size)
    basics = {
        "prompt": prompt,
        "negative": negative,
        "seed": seed,
        "steps": steps,
        "guidance": guidance,
        "width": width,
        "height": height,
        "count": count,
        "sampler": sampler,
        "schedule": schedule,
        "guidance_rescale": guidance_rescale,
        "threshold": threshold,
    }
    request = ask(basics, init, adapters, further)
    draw(request, Path(f"{slug(prompt)}-{request.seed}.png"), model, result)


def replay(
    file: Path,
    /,
    *,
    init: Path | None = None,
    mask: Path | None = None,
    model: ModelOptions = ModelOptions(),
    result: ResultOptions = ResultOptions(),
) -> None:
    """Make a picture again from the request that it carries.

    Parameters
    ----------
    file
        A picture that reverie, AUTOMATIC1111, ComfyUI, InvokeAI or diffusers made.
    init
        The picture it started from, where that has moved.
    mask
        The mask it was painted under, where that has moved.
    """
    request, drawn_by = known(file)
    moved = {name: path for name, path in (("init", init), ("mask", mask)) if path is not None}
    for other in moved.keys() - type(request).model_fields.keys():
        raise ReverieError(f"'{file}' was made without {other}; leave out --{other}")
    request = request.replace(**moved)
    if model.model is None:
        from reverie.system import BUNDLED_NAME  # brings torch, which takes seconds

        if drawn_by != BUNDLED_NAME:
            raise ReverieError(f"'{file}' was drawn by the model '{drawn_by}'; say where that is with --model")
    if request.count > 1:  # only a grid carries a request for several pictures
        result = replace(result, grid=True)
    draw(request, file.with_name(f"{file.stem}-replay.png"), model, result, drawn_by)


def known(file: Path) -> tuple[TextToImage, str]:
    """Read a picture's request and model, ours or another program's; say on stderr what cannot be honoured."""
    picture = open_picture(file)
    if REQUEST in read_texts(picture):
        return read_metadata(picture)
    reading = read_foreign(file)
    for told in reading.not_honoured:
        print(f"not honoured: {told}", file=sys.stderr)
    return reading.request, reading.model


@dataclass
class Stopwatch:
    """Collect how many seconds each part of the work took."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Add the time that the block takes to a part, less what is measured within it."""
        start, before = time.perf_counter(), sum(self.seconds.values())
        yield
        within = sum(self.seconds.values()) - before
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start - within


def draw(
    request: TextToImage, default: Path, model: ModelOptions, result: ResultOptions, drawn_by: str | None = None
) -> None:
    """Check where to write, load the model, draw, write each picture as soon as it is done, and report.

    `drawn_by` is the model of the picture that is made again; another one is told of on stderr.
    """
    output, watch = result.output or default, Stopwatch()
    paths = [output] if result.grid else numbered(output, request.count)
    check_writable([*paths, *([result.preview] if result.preview else [])])
    if result.taesd is not None and result.preview is None:
        raise ReverieError("--taesd is about the preview; ask for one with --preview look.png")
    if result.watermark == "":
        raise ReverieError("--watermark '' says nothing; give a text, or leave it out")
    sign = signing(result)
    with watch.measure("load"):
        fetch(model)
        import reverie  # brings torch, which takes seconds

        system = reverie.load(
            model.model,
            device=model.device,
            dtype=model.dtype,
            config=model.config,
            revision=model.revision,
            variant=model.variant,
            vae=model.vae,
        )
        if drawn_by not in (None, system.name):
            print(f"not honoured: it was drawn by '{drawn_by}', this is '{system.name}'", file=sys.stderr)
        finish = finishing(system, result)
    pictures: list[Image.Image] = []
    with watch.measure("draw"):
        for progress in watched(drawn(system, request, result), lambda step: (step.index + 1, step.total), "drawing"):
            for picture in progress.pictures:
                finished = finish(picture)
                if not result.grid:
                    with watch.measure("save"):
                        save(finished, paths[len(pictures)])
                        sign(paths[len(pictures)])
                pictures.append(finished)
    if result.grid:
        with watch.measure("save"):
            pictures = [sheet(pictures, request, system.name)]
            save(pictures[0], output)
            sign(output)
    report(request, paths, pictures, watch.seconds, result.as_json)


def drawn(system: Pipeline, request: TextToImage, result: ResultOptions) -> Iterator[Progress]:
    """Draw, and show every few steps how it looks where the options name a file for it."""
    if result.preview is None:
        yield from system.stream(request)
        return
    for progress in system.stream(request, preview=look(system, result.taesd)):
        if progress.index % PREVIEW_STEPS == 0:
            save(grid(progress.preview()), result.preview)
        yield progress


def look(system: Pipeline, taesd: Path | None) -> Show:
    """Choose how previews are decoded: by a TAESD where one is given, by colours alone where not."""
    from reverie.checkpoints.taesd import load_tiny
    from reverie.codecs.preview import TinyPreview, fit_preview

    if taesd is None:
        return fit_preview(system.codec).pictures
    tiny = load_tiny(taesd, device=system.device, dtype=system.dtype)
    return TinyPreview(tiny, system.device, system.dtype).pictures


def finishing(system: Pipeline, result: ResultOptions) -> Callable[[Image.Image], Image.Image]:
    """Return what becomes of each picture before it is written: the safety checker's and the watermark's."""
    from reverie.checkpoints.safety import load_safety
    from reverie.codecs import watermark
    from reverie.codecs.safety import screened

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
    from reverie.codecs.provenance import signer

    return signer(result.c2pa)


def sheet(pictures: list[Image.Image], request: TextToImage, model: str) -> Image.Image:
    """Lay pictures out on one sheet that carries the request for all of them."""
    laid_out, first = grid(pictures), read_metadata(pictures[0])[0]
    laid_out.info.update(texts(request.replace(width=first.width, height=first.height, hires=first.hires), model))
    return laid_out


def report(
    request: TextToImage, paths: list[Path], pictures: list[Image.Image], seconds: dict[str, float], as_json: bool
) -> None:
    """Tell what was made: the files on stdout, one a line, and a summary on stderr; or all of it as JSON on stdout."""
    seeds = [request.only(index).seed for index in range(request.count)]
    if as_json:
        timings = {part: round(taken, 3) for part, taken in seconds.items()}
        sizes = [picture.size for picture in pictures]
        told = {"files": [str(path) for path in paths], "seeds": seeds, "sizes": sizes, "timings": timings}
        say(json.dumps(told | {"request": request.recorded()}, ensure_ascii=False))
        return
    for path in paths:
        say(str(path))
    last = f" to {seeds[-1]}" if seeds[-1] != seeds[0] else ""
    print(
        f"seed {seeds[0]}{last}; loaded in {seconds['load']:.1f} s, drawn in {seconds['draw']:.1f} s", file=sys.stderr
    )
