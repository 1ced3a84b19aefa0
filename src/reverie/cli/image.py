"""`reverie image` and `reverie replay`: how does a prompt become picture files?"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from reverie.cli.options import ModelOptions, ResultOptions, Whole, parse_size
from reverie.cli.output import check_writable, numbered, say, slug
from reverie.cli.progress import watched
from reverie.codecs.pictures import grid, save
from reverie.errors import ReverieError
from reverie.generate.metadata import read_metadata, texts
from reverie.generate.requests import TextToImage

DEFAULT = TextToImage(seed=0)


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
    request = TextToImage(
        prompt=prompt,
        negative=negative,
        seed=seed,
        steps=steps,
        guidance=guidance,
        width=width,
        height=height,
        count=count,
        sampler=sampler,
        schedule=schedule,
        guidance_rescale=guidance_rescale,
        threshold=threshold,
    )
    draw(request, Path(f"{slug(prompt)}-{request.seed}.png"), model, result)


def replay(file: Path, /, *, model: ModelOptions = ModelOptions(), result: ResultOptions = ResultOptions()) -> None:
    """Make a picture again from the request that it carries.

    Parameters
    ----------
    file
        A picture that reverie made.
    """
    request, name = read_metadata(file)
    if model.model is None:
        from reverie.system import BUNDLED_NAME  # brings torch, which takes seconds

        if name != BUNDLED_NAME:
            raise ReverieError(f"'{file}' was drawn by the model '{name}'; say where that is with --model")
    if request.count > 1:  # only a grid carries a request for several pictures
        result = ResultOptions(output=result.output, grid=True, as_json=result.as_json)
    draw(request, file.with_name(f"{file.stem}-replay.png"), model, result)


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


def draw(request: TextToImage, default: Path, model: ModelOptions, result: ResultOptions) -> None:
    """Check where to write, load the model, draw, write each picture as soon as it is done, and report."""
    output, watch = result.output or default, Stopwatch()
    paths = [output] if result.grid else numbered(output, request.count)
    check_writable(paths)
    with watch.measure("load"):
        import reverie  # brings torch, which takes seconds

        system = reverie.load(model.model, device=model.device, dtype=model.dtype)
    pictures: list[Image.Image] = []
    with watch.measure("draw"):
        for progress in watched(system.stream(request), lambda step: (step.index + 1, step.total), "drawing"):
            for picture in progress.pictures:
                if not result.grid:
                    with watch.measure("save"):
                        save(picture, paths[len(pictures)])
                pictures.append(picture)
    if result.grid:
        with watch.measure("save"):
            pictures = [sheet(pictures, request, system.name)]
            save(pictures[0], output)
    report(request, paths, pictures, watch.seconds, result.as_json)


def sheet(pictures: list[Image.Image], request: TextToImage, model: str) -> Image.Image:
    """Lay pictures out on one sheet that carries the request for all of them."""
    laid_out = grid(pictures)
    width, height = pictures[0].size
    laid_out.info.update(texts(request.replace(width=width, height=height), model))
    return laid_out


def report(
    request: TextToImage, paths: list[Path], pictures: list[Image.Image], seconds: dict[str, float], as_json: bool
) -> None:
    """Tell what was made: the files on stdout, one a line, and a summary on stderr; or all of it as JSON on stdout."""
    seeds = [request.seed + index for index in range(request.count)]
    if as_json:
        timings = {part: round(taken, 3) for part, taken in seconds.items()}
        sizes = [picture.size for picture in pictures]
        told = {"files": [str(path) for path in paths], "seeds": seeds, "sizes": sizes, "timings": timings}
        say(json.dumps(told | {"request": request.model_dump()}, ensure_ascii=False))
        return
    for path in paths:
        say(str(path))
    last = f" to {seeds[-1]}" if request.count > 1 else ""
    print(
        f"seed {seeds[0]}{last}; loaded in {seconds['load']:.1f} s, drawn in {seconds['draw']:.1f} s", file=sys.stderr
    )
