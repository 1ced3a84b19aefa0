"""`reverie animate`: the film that prompts, keyframes or a storyboard ask for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from reverie.cli.ask import Several, parse_interval
from reverie.cli.jobs import carry_out
from reverie.cli.options import FileOptions, Flag, Json, ModelOptions, Whole, parse_size
from reverie.errors import ReverieError
from reverie.jobs.films import FilmJob
from reverie.jobs.outputs import slug
from reverie.media import footage
from reverie.requests import storyboard
from reverie.requests.films import Animation

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
    """Choose where the film goes and how it is reported."""

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
    files: FileOptions = FileOptions(),
) -> None:
    """Make a film from prompt to prompt. Broken off, it goes on where it was when the same command is given again.

    Parameters
    ----------
    prompts
        What to show, one after the other: two or more, or one with | between them.
    """
    request = ask(prompts, path, drawing, source)
    shown = [keyframe.prompt for keyframe in request.keyframes if keyframe.prompt]
    outputs = film.output or (Path(f"{slug(' '.join(shown))}-{request.seed}.mp4"),)
    job = FilmJob(request=request, outputs=outputs, model=model.model, **vars(files))
    carry_out(job, model, film.as_json)


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
