"""`reverie music`, and `reverie replay` of a sound: how do prompts become files of sound, and films to them?"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from reverie.cli.ask import Several, parse_interval
from reverie.cli.drawing import load
from reverie.cli.options import Flag, Json, ModelOptions, ResultOptions, Whole, parse_size
from reverie.cli.output import check_writable, numbered, say, slug, warned
from reverie.cli.progress import Stopwatch, watched
from reverie.errors import ReverieError
from reverie.media.pictures import FORMATS
from reverie.requests import metadata
from reverie.requests.music import Film, Music

if TYPE_CHECKING:
    from reverie.music.sections import Recording
    from reverie.pipeline import Pipeline
    from reverie.requests.metadata import Record

DEFAULT = Music(seed=0)
FILM = Film()


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
class FileOptions:
    """Choose where the music goes and how it is told of."""

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
    files: FileOptions = FileOptions(),
) -> None:
    """Make music of a prompt, from prompt to prompt, or over a sound.

    Parameters
    ----------
    prompt
        What to play.
    """
    request, shown = ask(prompt, playing, way, sound, adapters), ask_film(film)
    outputs = files.output or ((Path(f"{slug(prompt, 'music')}-{request.seed}.wav"),) if film.film is None else ())
    make(request, Outputs(outputs, film.film, shown), model, files.as_json)


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


def again(file: Path, record: Record, moved: dict[str, Path], model: ModelOptions, result: ResultOptions) -> None:
    """Make a sound, or a film to one, again from what its file carries."""
    for name in ("grid", "preview", "taesd", "safety", "watermark", "c2pa"):
        if getattr(result, name):
            raise ReverieError(f"--{name} is about pictures; '{file}' is music")
    request = record.request
    assert isinstance(request, Music)
    for name in moved:
        if getattr(request, name) is None:
            raise ReverieError(f"'{file}' was made without {name}; leave out --{name}")
    if model.model is None:
        from reverie.system import MUSIC_NAME  # brings torch, which takes seconds

        if record.model != MUSIC_NAME:
            raise ReverieError(f"'{file}' was played by the model '{record.model}'; say where that is with --model")
    output = result.output or file.with_name(f"{file.stem}-replay{file.suffix}")
    outputs = Outputs((output,)) if record.film is None else Outputs((), output, record.film)
    make(request.replace(**moved), outputs, model, result.as_json, record.model)


@dataclass(frozen=True)
class Outputs:
    """Hold the files that music goes to: sounds and pictures, and the film to it."""

    files: tuple[Path, ...]
    film: Path | None = None
    shown: Film | None = None

    def check(self, count: int) -> None:
        """Raise ReverieError for what cannot be written."""
        for path in self.files:
            if path.suffix.lower() in FORMATS:
                check_writable(numbered(path, count))
            else:
                from reverie.media import sound  # brings torch, which takes seconds

                sound.check_writable(path)
        every = [path.absolute() for path in (*self.files, *filter(None, [self.film]))]
        if len(set(every)) < len(every):
            raise ReverieError("two outputs have one name; give each its own")
        if self.film is not None and self.shown is not None:
            from reverie.media import video

            video.check(self.film, self.shown.fps, sound=True)
            if count > 1:
                raise ReverieError(f"one film goes to one clip, and count is {count}; leave out one of them")


def make(music: Music, outputs: Outputs, model: ModelOptions, as_json: bool, played_by: str | None = None) -> None:
    """Check where to write, load the models, play, write each clip as soon as it is done, and report.

    `played_by` is the model of the sound that is made again; another one is told of on stderr.
    """
    outputs.check(music.count)
    watch = Stopwatch()
    with watch.measure("load"):
        from reverie.system import MUSIC_NAME

        system = load(replace(model, model=model.model or MUSIC_NAME), played_by)
        painter = None if outputs.shown is None else load(_of_film(outputs.shown, model), None)
    music = music.settled(system.guidance)
    _check_texts(music, outputs, system.name)
    clips, files = [], []
    with watch.measure("draw"):
        for clip in played(system, music):
            clips.append(clip)
            with watch.measure("save"):
                files += written(clip, outputs.files, len(clips) - 1, music.count)
    if outputs.film is not None and outputs.shown is not None and painter is not None:
        with watch.measure("film"):
            filmed(painter, clips[0], outputs.film, outputs.shown)
        files.append(outputs.film)
    report(music, files, clips, watch.seconds, as_json)


def _check_texts(music: Music, outputs: Outputs, model: str) -> None:
    """Raise ReverieError, before anything is played, where a WAV file cannot hold the request."""
    from reverie.media import sound

    texts = metadata.texts(music, model)
    for path in outputs.files:
        sound.check_texts(texts, path.suffix.lower())


def played(system: Pipeline, music: Music) -> Iterator[Recording]:
    """Play, and show how far it is."""
    with warned():
        events = system.play(music)
    for progress in watched(events, lambda step: (step.index + 1, step.total), "playing"):
        if progress.clip is not None:
            yield progress.clip


def written(clip: Recording, paths: Sequence[Path], index: int, count: int) -> list[Path]:
    """Write a clip to each of the outputs, numbered where there are several clips."""
    places = [numbered(path, count)[index] for path in paths]
    for place in places:
        clip.save(place)
    return places


def _of_film(film: Film, music: ModelOptions) -> ModelOptions:
    """Return the model of a film's pictures, which computes as that of the music does."""
    return replace(music, model=film.model, config=None, revision=None, variant=None, vae=None)


def filmed(system: Pipeline, clip: Recording, path: Path, film: Film) -> None:
    """Draw the film to a clip and write it with its sound."""
    from reverie.media import video

    film = film.settled(system.guidance)
    reel = watched(system.film(clip, film), lambda frame: (frame.index + 1, frame.total), "frame")
    video.write(reel, path, film.fps, texts=metadata.texts(clip.request, clip.model, film), sound=clip)


def report(
    music: Music, files: Sequence[Path], clips: Sequence[Recording], seconds: dict[str, float], as_json: bool
) -> None:
    """Tell what was made: the files on stdout, one a line, and a summary on stderr; or all of it as JSON on stdout."""
    lasting = sum(clip.seconds for clip in clips)
    factor = lasting / max(seconds["draw"], 1e-9)
    if as_json:
        timings = {part: round(taken, 3) for part, taken in seconds.items()}
        told = {"files": [str(path) for path in files], "seeds": [clip.request.seed for clip in clips]}
        told |= {"seconds": [clip.seconds for clip in clips], "rate": clips[0].rate, "channels": clips[0].channels}
        told |= {"timings": timings, "real_time_factor": round(factor, 3), "request": music.recorded()}
        say(json.dumps(told, ensure_ascii=False))
        return
    for path in files:
        say(str(path))
    seeds = f"seed {music.seed}" + (f" to {clips[-1].request.seed}" if len(clips) > 1 else "")
    took = f"loaded in {seconds['load']:.1f} s, played in {seconds['draw']:.1f} s"
    print(f"{lasting:.2f} s, {seeds}; {took} ({factor:.2f} s of sound a second)", file=sys.stderr)
