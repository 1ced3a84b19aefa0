"""`reverie animate`, and `reverie replay` of a film: how do prompts and pictures become film files?"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from reverie.animation.store import FrameStore, cache, prune
from reverie.cli.ask import Several, parse_interval
from reverie.cli.drawing import load
from reverie.cli.options import Flag, Json, ModelOptions, ResultOptions, Whole, parse_size
from reverie.cli.output import say, slug
from reverie.cli.progress import PLAIN_INTERVAL, Stopwatch, watched
from reverie.errors import ReverieError
from reverie.media import footage, video
from reverie.requests import metadata, storyboard
from reverie.requests.films import Animation

if TYPE_CHECKING:
    from PIL import Image

    from reverie.animation.pacing import Distance
    from reverie.media.encoder import Waveform
    from reverie.pipeline import Pipeline
    from reverie.requests.metadata import Record

SEEDS = 2**32  # that a command without one can come to
Fields = dict[str, Any]


@Parameter(name="*", group="Choose the path")
@dataclass(frozen=True, kw_only=True)
class PathOptions:
    """Choose what the film goes through, how and how fast."""

    keyframe: Several = ()
    """What to draw and when, such as "2s: an apple @seed 3" or "@image bear.png"; several times, for prompts."""
    storyboard: Path | None = None
    """TOML or JSON file of keyframes and of whatever else the film is; options given here go before."""
    frames: Whole | None = None
    """Frames from the first to the last keyframe."""
    seconds: float | None = None
    """Seconds from the first to the last keyframe; 2 between two, if neither is given."""
    fps: float | None = None
    """Frames a second; those of --init-video, or 20, if not given."""
    anchor: float | None = None
    """0 to 1, the share of the steps that all frames take together; 0.2 if not given."""
    in_between: Whole | None = None
    """Frames between two that are drawn, from the latents between theirs."""
    interpolation: str | None = None
    """How the prompts' embeddings are gone between: slerp or linear."""
    easing: str | None = None
    """How the film speeds up and slows down between keyframes: smooth, sine, ...; an unknown name lists them all."""
    pace: str | None = None
    """perceptual places the frames at equal visible change, as the bundled CLIP sees it."""
    ping_pong: Flag = False
    """Go back the same way."""
    loop: Flag = False
    """Let the last frame lead into the first."""

    def keyframes(self, prompts: Sequence[str]) -> Fields:
        """Return the keyframes of prompts, texts or a storyboard, and what else that says."""
        given = {"prompts": prompts, "--keyframe": self.keyframe, "--storyboard": self.storyboard}
        ways = [name for name, value in given.items() if value]
        if len(ways) > 1:
            raise ReverieError(f"{ways[0]} and {ways[1]} both say what the film shows; give one of them")
        if self.storyboard is not None:
            return storyboard.read(self.storyboard)
        return {"keyframes": [*prompts, *self.keyframe]}


@Parameter(name="*", group="Choose how it is drawn")
@dataclass(frozen=True, kw_only=True)
class DrawingOptions:
    """Choose how the frames are drawn."""

    negative: str | None = None
    """What to keep away from."""
    seed: Whole | None = None
    """Of keyframes that name none; if not given it follows from the rest, so that the same command goes on."""
    steps: Whole | None = None
    """Denoising steps of a frame; 20 if not given."""
    guidance: float | None = None
    """How strictly to follow the prompts; 1 switches guidance off; the model's own if not given."""
    size: str | None = None
    """WIDTHxHEIGHT in pixels; the pictures' or the model's own if not given."""
    sampler: str | None = None
    """How the noise is taken away: dpmpp_2m, euler, heun, ...; an unknown name lists them all."""
    schedule: str | None = None
    """How the noise levels are spaced: karras, exponential, ...; an unknown name lists them all."""
    guidance_rescale: float | None = None
    """0 to 1, against overexposure at high guidance."""
    guidance_interval: str | None = None
    """START,END: fractions of the way between which guidance acts, such as 0.2,0.8; the whole if not given."""
    cache_steps: Whole | None = None
    """Compute the U-Net's inner levels once for so many steps: quicker, and a little another film."""
    merge_tokens: float | None = None
    """0 to 0.75, share of the tokens that self-attention merges: quicker at large sizes, a little another film."""
    threshold: float | None = None
    """Percentile of dynamic thresholding, such as 0.995; none if not given."""
    clip_skip: Whole | None = None
    """2 reads the last but one layer of the text encoder, and so on."""
    lora: Several = ()
    """File of a LoRA, or FILE:weight; may be given several times."""
    embedding: Several = ()
    """Textual inversion, named in the prompts by its file's name; may be given several times."""
    lora_dir: Several = ()
    """Folder where LoRAs and embeddings are looked for by name, before REVERIE_LORA_DIR; several times."""
    tile: str | None = None
    """Directions in which the picture's edges fit each other: x, y or xy."""


@Parameter(name="*", group="Start from pictures and sound")
@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Choose the pictures and the sound that a film starts from."""

    init_video: Path | None = None
    """Film, or folder of pictures, whose frames are drawn anew."""
    strength: float | None = None
    """0 to 1, how far to go from the frames of --init-video; 0.5 if not given."""
    inversion: str | None = None
    """How keyframes' own pictures (@image FILE) become noise: edict or ddim."""
    fit: str | None = None
    """How pictures of another size are brought to the film's: crop, pad or stretch."""
    audio: Path | None = None
    """Sound file that moves the path, and that the film plays."""
    drive: str | None = None
    """What of the sound moves it: energy or onsets."""
    smooth: float | None = None
    """0 moves by the sound alone, 1 evenly."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class FilmOptions:
    """Choose where the film goes and how it is told of."""

    output: Annotated[tuple[Path, ...], Parameter(("--output", "-o"), negative=(), show_default=False)] = ()
    """Film (.mp4, .webm, .gif, .webp), contact sheet (.png, .jpg) or folder for frames; several times for several."""
    as_json: Json = False
    """Print one JSON object with files, frames, times and timings."""


def animate(
    *prompts: str,
    path: PathOptions = PathOptions(),
    drawing: DrawingOptions = DrawingOptions(),
    source: SourceOptions = SourceOptions(),
    model: ModelOptions = ModelOptions(),
    film: FilmOptions = FilmOptions(),
) -> None:
    """Make a film from prompt to prompt. Broken off, it goes on where it was when the same command is given again.

    Parameters
    ----------
    prompts
        What to show, one after the other: two or more, or one with | between them.
    """
    request = ask(prompts, path, drawing, source)
    shown = [keyframe.prompt for keyframe in request.keyframes if keyframe.prompt]
    make(request, film.output or (Path(f"{slug(' '.join(shown))}-{request.seed}.mp4"),), model, film.as_json)


def ask(prompts: Sequence[str], path: PathOptions, drawing: DrawingOptions, source: SourceOptions) -> Animation:
    """Make the request that the options mean. Raises ReverieError for values out of range and for what does not fit."""
    options = {**vars(path), **vars(drawing), **vars(source)}
    given = {name: value for name, value in options.items() if not (value is None or value is False or value == ())}
    renamed = {"lora": "loras", "embedding": "embeddings", "lora_dir": "folders"}
    fields = {renamed.get(name, name): value for name, value in given.items() if name not in ("keyframe", "storyboard")}
    if (size := fields.pop("size", None)) is not None:
        fields["width"], fields["height"] = parse_size(size)
    if "guidance_interval" in fields:
        fields["guidance_interval"] = parse_interval(fields["guidance_interval"])
    asked = path.keyframes(prompts)
    for one, other in (("frames", "seconds"), ("seconds", "frames")):
        if one in fields:  # goes before the other one of a storyboard
            asked.pop(other, None)
    asked |= fields
    if not asked["keyframes"]:
        raise ReverieError("nothing to show; give two prompts, --keyframe or --storyboard")
    if "init_video" in asked and "fps" not in asked and (rate := footage.read(asked["init_video"]).fps):
        asked["fps"] = rate
    return Animation.of({**asked, "seed": asked["seed"] if "seed" in asked else seed_of(asked)})


def seed_of(fields: Fields) -> int:
    """Derive a seed from all else that was asked, so that a film without one can go on."""
    text = json.dumps(fields, sort_keys=True, default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") % SEEDS


def again(file: Path, record: Record, moved: Fields, model: ModelOptions, result: ResultOptions) -> None:
    """Make a film again from what its file carries."""
    for name in ("grid", "preview", "taesd", "safety", "watermark", "c2pa"):
        if getattr(result, name):
            raise ReverieError(f"--{name} is about pictures; '{file}' is a film")
    request, drawn_by = record.request, record.model
    assert isinstance(request, Animation)
    if "init" in moved and request.init_video is not None:
        request = request.replace(init_video=str(moved.pop("init")))
    for name in moved:
        raise ReverieError(f"'{file}' was made without {name}; leave out --{name}")
    if model.model is None:
        from reverie.system import BUNDLED_NAME  # brings torch, which takes seconds

        if drawn_by != BUNDLED_NAME:
            raise ReverieError(f"'{file}' was drawn by the model '{drawn_by}'; say where that is with --model")
    output = result.output or file.with_name(f"{file.stem}-replay{file.suffix}")
    make(request, (output,), model, result.as_json, drawn_by)


@dataclass
class Made:
    """Count what becomes of a film's frames."""

    frames: int = 0
    kept: int = 0
    size: tuple[int, int] = (0, 0)


def make(
    request: Animation, outputs: Sequence[Path], model: ModelOptions, as_json: bool, drawn_by: str | None = None
) -> None:
    """Check where to write and what to read, load the model, draw, encode every frame as it comes, and report.

    `drawn_by` is the model of the film that is made again; another one is told of on stderr.
    """
    watch = Stopwatch()
    heard = check(request, outputs)
    with watch.measure("load"):
        system = load(model, drawn_by)
    request = request.settled(system.guidance)
    with watch.measure("draw"):
        made = film(system, request, outputs, heard)
    report(request, outputs, made, watch.seconds, as_json)


def check(request: Animation, outputs: Sequence[Path]) -> Waveform | None:
    """Return the film's sound. Raises ReverieError for what cannot be written or read."""
    for output in outputs:
        video.check(output, request.fps)
    if len({output.absolute() for output in outputs}) < len(outputs):
        raise ReverieError("two outputs have one name; give each its own")
    if request.init_video is not None:
        footage.read(request.init_video)
    if request.audio is None:
        return None
    from reverie.media import sound  # brings soundfile

    heard = sound.read(request.audio)
    for output in outputs:
        if not video.holds_sound(output):
            print(f"'{output}' moves to the sound but cannot hold it; .mp4 and .webm can", file=sys.stderr)
    return heard


def film(system: Pipeline, request: Animation, outputs: Sequence[Path], heard: Waveform | None) -> Made:
    """Draw a film into all its outputs at once, with the frames that an earlier run left."""
    from reverie.animation.draw import BATCH
    from reverie.animation.key import key_of

    texts, made = metadata.texts(request, system.name), Made()
    with FrameStore(cache() / key_of(system, request, batch=BATCH)) as store, ExitStack() as stack:
        made.kept = len(store)
        if made.kept:
            print(f"going on: {made.kept} pictures are there from an earlier run", file=sys.stderr)
        adding = []
        for output in outputs:
            sound = heard if video.holds_sound(output) else None
            adding.append(stack.enter_context(video.recording(output, request.fps, texts=texts, sound=sound)))
        frames = system.animate(request, distance=distance(request), store=store, heard=heard, batch=BATCH)
        try:
            for frame in watched(frames, lambda frame: (frame.index + 1, frame.total), "frame"):
                for add in adding:
                    add(frame.picture)
                made.frames, made.size = made.frames + 1, frame.picture.size
        except KeyboardInterrupt:
            print(f"stopped after frame {made.frames}; the same command goes on from there", file=sys.stderr)
            raise
    prune(cache())
    return made


def distance(request: Animation) -> Distance | None:
    """Return how far pictures are apart, for a film that is paced by it; while it is asked, stderr tells of it."""
    if request.pace != "perceptual":
        return None
    from reverie.animation.pacing import angle
    from reverie.similarity.embed import load_clip

    return told(angle(load_clip().embed_images))


def told(distance: Distance) -> Distance:
    """Tell on stderr, every few seconds, how many pictures were looked at to find an even pace."""
    last: Image.Image | None = None
    seen, since = 0, time.monotonic()

    def between(a: Image.Image, b: Image.Image) -> float:
        nonlocal last, seen, since
        if b is not last:
            last, seen = b, seen + 1
        if time.monotonic() - since >= PLAIN_INTERVAL:
            since = time.monotonic()
            print(f"finding an even pace: {seen} pictures looked at", file=sys.stderr)
        return distance(a, b)

    return between


def report(request: Animation, outputs: Sequence[Path], made: Made, seconds: dict[str, float], as_json: bool) -> None:
    """Tell what was made: the files on stdout, one a line, and a summary on stderr; or all of it as JSON on stdout."""
    lasting = made.frames / request.fps
    if as_json:
        timings = {part: round(taken, 3) for part, taken in seconds.items()}
        told = {"files": [str(output) for output in outputs], "frames": made.frames, "kept": made.kept}
        told |= {"fps": request.fps, "seconds": lasting, "size": made.size, "seed": request.seed, "timings": timings}
        say(json.dumps(told | {"request": request.recorded()}, ensure_ascii=False))
        return
    for output in outputs:
        say(str(output))
    rate = made.frames / max(seconds["draw"], 1e-9)
    told_in = f"loaded in {seconds['load']:.1f} s, drawn in {seconds['draw']:.1f} s ({rate:.1f} frames a second)"
    print(f"{made.frames} frames, {lasting:.1f} s, seed {request.seed}; {told_in}", file=sys.stderr)
