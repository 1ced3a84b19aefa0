"""`reverie music`: the music, and the film to it, that prompts and sounds ask for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from reverie.cli.ask import Several, parse_interval
from reverie.cli.jobs import carry_out
from reverie.cli.options import FileOptions, Flag, Json, ModelOptions, Whole, parse_size
from reverie.errors import ReverieError
from reverie.jobs.music import MusicJob
from reverie.jobs.outputs import slug
from reverie.requests.music import Film, Music

DEFAULT = Music(seed=0)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PlayingOptions:
    """Choose what most music chooses."""

    negative: str = DEFAULT.negative
    """What to keep away from."""
    seed: Whole | None = None
    """Clip k is played from seed + k; random if not given."""
    steps: Whole = DEFAULT.steps
    """Denoising steps."""
    guidance: float | None = DEFAULT.guidance
    """How strictly to follow the prompt; 1 switches guidance off; the model's own if not given."""
    seconds: float | None = DEFAULT.seconds
    """How long; as long as the model's own clips if not given."""
    bpm: float | None = DEFAULT.bpm
    """Beats a minute, told to the prompt; the length becomes whole bars."""
    beats: Whole = DEFAULT.beats
    """Beats of a bar."""
    loop: Flag = False
    """Let the end lead into the beginning."""
    stereo: Flag = False
    """Two channels, where the model hears one: the same sound from two sides."""
    count: Whole = DEFAULT.count
    """How many clips."""
    sampler: str = DEFAULT.sampler
    """How the noise is taken away: dpmpp_2m, euler, heun, ...; an unknown name lists them all."""
    schedule: str = DEFAULT.schedule
    """How the noise levels are spaced: karras, exponential, ...; an unknown name lists them all."""
    guidance_rescale: float = DEFAULT.guidance_rescale
    """0 to 1, against overdrive at high guidance."""
    guidance_interval: str | None = None
    """START,END: fractions of the way between which guidance acts, such as 0.2,0.8; the whole if not given."""
    cache_steps: Whole = DEFAULT.cache_steps
    """Compute the U-Net's inner levels once for so many steps: quicker, and a little another music."""
    merge_tokens: float = DEFAULT.merge_tokens
    """0 to 0.75, share of the tokens that self-attention merges."""
    threshold: float | None = DEFAULT.threshold
    """Percentile of dynamic thresholding, such as 0.995; none if not given."""


@Parameter(name="*", group="Go from prompt to prompt")
@dataclass(frozen=True, kw_only=True)
class WayOptions:
    """Choose where the music goes."""

    to: Several = ()
    """Prompt to go to, such as "blues @seed 3 @guidance 4"; several times, for several."""
    alpha: float | None = None
    """How far to go and stay: 0 is the prompt, 1 the first of --to, 2 the second."""
    walk: Whole | None = None
    """Clips from the prompt to the last of --to, in one piece; --seconds or --bpm are of each."""


@Parameter(name="*", group="Start from a sound")
@dataclass(frozen=True, kw_only=True)
class SoundOptions:
    """Choose the sound that the music starts from."""

    init: Path | None = None
    """Sound, or picture of a spectrogram, to play anew; it says how long the music is."""
    strength: float | None = None
    """0 to 1, how far to go from it; 0.75 if not given."""
    mask: Path | None = None
    """Picture over the spectrogram that is white where it is played anew; the rest stays."""


@Parameter(name="*", group="Adapt the model")
@dataclass(frozen=True, kw_only=True)
class AdapterOptions:
    """Choose what is added to the model and to its prompt."""

    lora: Several = ()
    """File of a LoRA, or FILE:weight; may be given several times."""
    embedding: Several = ()
    """Textual inversion, named in the prompt by its file's name, or a folder of them; may be given several times."""
    lora_dir: Several = ()
    """Folder where LoRAs and embeddings are looked for by name, before REVERIE_LORA_DIR; several times."""
    clip_skip: Whole = DEFAULT.clip_skip
    """2 reads the last but one layer of the text encoder, and so on."""


@Parameter(name="*", group="Draw a film to it")
@dataclass(frozen=True, kw_only=True)
class FilmOptions:
    """Choose the film to the music."""

    film: Path | None = None
    """Film with the music as its sound (.mp4, .webm), whose pictures move on the beat."""
    film_prompt: Several = ()
    """What it shows; several times, one after the other; what the music is asked for if not given."""
    film_model: str | None = None
    """Model of its pictures; the bundled one of pictures if not given."""
    film_size: str | None = None
    """WIDTHxHEIGHT in pixels; the model's own if not given."""
    film_fps: float | None = None
    """Frames a second; 12 if not given."""
    film_steps: Whole | None = None
    """Denoising steps of a frame; 12 if not given."""
    film_move: str | None = None
    """How the pictures go from beat to beat: energy, onsets, jump, ...; an unknown name lists them all."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SoundFileOptions:
    """Choose where the music goes and how it is reported."""

    output: Annotated[tuple[Path, ...], Parameter(("--output", "-o"), negative=(), show_default=False)] = ()
    """Sound (.wav, .flac, .ogg, .mp3) or picture of its spectrogram (.png, .jpg, .webp); several times for several."""
    as_json: Json = False
    """Print one JSON object with files, seeds, seconds, timings and seconds of sound per second of drawing."""


def music(
    prompt: str,
    /,
    *,
    playing: PlayingOptions = PlayingOptions(),
    way: WayOptions = WayOptions(),
    sound: SoundOptions = SoundOptions(),
    adapters: AdapterOptions = AdapterOptions(),
    film: FilmOptions = FilmOptions(),
    model: ModelOptions = ModelOptions(),
    sounds: SoundFileOptions = SoundFileOptions(),
    files: FileOptions = FileOptions(),
) -> None:
    """Make music of a prompt, from prompt to prompt, or over a sound.

    Parameters
    ----------
    prompt
        What to play.
    """
    request, shown = ask(prompt, playing, way, sound, adapters), ask_film(film)
    outputs = sounds.output or ((Path(f"{slug(prompt, 'music')}-{request.seed}.wav"),) if film.film is None else ())
    job = MusicJob(
        request=request, outputs=outputs, film=shown, film_output=film.film, model=model.model, **vars(files)
    )
    carry_out(job, model, sounds.as_json)


def ask(prompt: str, playing: PlayingOptions, way: WayOptions, sound: SoundOptions, adapters: AdapterOptions) -> Music:
    """Make the request that the options mean. Raises ReverieError for values out of range and for what does not fit."""
    options = _given({**vars(playing), **vars(way), **vars(sound), **vars(adapters)})
    renamed = {"lora": "loras", "embedding": "embeddings", "lora_dir": "folders"}
    if "guidance_interval" in options:
        options["guidance_interval"] = parse_interval(options["guidance_interval"])
    if "init" not in options and "strength" in options:
        raise ReverieError("--strength is about a sound to start from; give one with --init")
    return Music.of({"prompt": prompt, **{renamed.get(name, name): value for name, value in options.items()}})


def ask_film(options: FilmOptions) -> Film | None:
    """Make the request for a film that the options mean; None where they ask for none."""
    given = {name.removeprefix("film_"): value for name, value in _given(vars(options)).items()}
    if given.pop("film", None) is None:
        for name in given:
            raise ReverieError(f"--film-{name} is about a film to the music; ask for one with --film film.mp4")
        return None
    if "size" in given:
        given["width"], given["height"] = parse_size(given.pop("size"))
    if "prompt" in given:
        given["prompts"] = given.pop("prompt")
    return Film.of(given)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None and value != ()}
