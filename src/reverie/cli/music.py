"""`reverie music`: the music, and the film to it, that prompts and sounds ask for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from reverie.cli.flags import AdapterFlags, FilmFlags, PlayingFlags, SoundFlags, WayFlags
from reverie.cli.options import FileOptions, Json, ModelOptions


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
    playing: PlayingFlags = PlayingFlags(),
    way: WayFlags = WayFlags(),
    sound: SoundFlags = SoundFlags(),
    adapters: AdapterFlags = AdapterFlags(),
    film: FilmFlags = FilmFlags(),
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
    from reverie.cli.ask import ask_film_of_music, ask_music
    from reverie.cli.jobs import carry_out
    from reverie.jobs.music import MusicJob
    from reverie.jobs.outputs import slug
    from reverie.requests.references import MUSIC_NAME

    request, shown = ask_music(prompt, playing, way, sound, adapters), ask_film_of_music(film)
    outputs = sounds.output or ((Path(f"{slug(prompt, 'music')}-{request.seed}.wav"),) if film.film is None else ())
    own = model.model or MUSIC_NAME
    job = MusicJob(request=request, outputs=outputs, film=shown, film_output=film.film, model=own, **vars(files))
    carry_out(job, model, sounds.as_json)
