"""How good is the bundled music model? A judge that the generator never saw hears what it plays, beside the goals.

The judge (recipes/music-judge.toml) hears waveforms in its own way; it is measured first on real clips, then on what
the autoencoder and the restored phases leave of them, and last on what prompts gave.
Writes quality.md, quality.json, a sheet of spectrograms beside real ones, and a few clips as FLAC.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track

import reverie
from figures import Figure, share, spread, write
from reverie.codecs.spectrograms import LIGHT, from_greys, hear, to_greys, to_picture
from reverie.corpora.music.captions import chinese, english
from reverie.corpora.music.clips import clip_at
from reverie.corpora.music.instruments import BASSES, INSTRUMENTS
from reverie.corpora.music.score import MusicClip
from reverie.corpora.music.synth import render
from reverie.media.sound import Sound
from reverie.media.sound import write as write_sound
from reverie.music.draw import hearing
from reverie.requests.music import Music
from reverie.sound.spectrogram import SpectrogramParams, waveform
from reverie.train.listener import MusicJudge, Verdict, load_judge
from sheets import contact_sheet

ROOT = Path(__file__).parents[1]
SEED = 20_000  # no recipe draws from it
REAL = 200
EACH = 3  # prompts for each instrument
TELLINGS = 50  # captions of a clip that are tried until one names the tempo
NEAR = 0.1  # of the asked tempo
SHOWN, LISTENED = 12, 4

Tell = Callable[[MusicClip, np.random.Generator], str]


@dataclass(frozen=True, eq=False)
class Played:
    """Hold what was asked for in words and as a clip, what came of it, and what the judge heard."""

    text: str
    clip: MusicClip
    sound: Sound
    heard: Verdict


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure the quality of the music model beside the goals.")
    parser.add_argument("--model", default="reverie-music", help="folder, or the bundled one")
    parser.add_argument("--judge", type=Path, default=ROOT / "benchmarks" / "music-judge", help="folder of the judge")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of a clip")
    parser.add_argument("--guidance", type=float, default=3.0, help="classifier-free guidance")
    parser.add_argument("--limit", type=int, help="at most so many clips for each figure")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "music", help="folder for tables, sheets and sounds")
    return parser.parse_args()


def main() -> int:
    """Measure all figures, telling each on stderr as it comes; return the exit status."""
    options, figures = arguments(), list[Figure]()
    try:
        judge, model = load_judge(options.judge), reverie.load(options.model)
        options.out.mkdir(parents=True, exist_ok=True)
        for part in (real_figures, played_figures):
            for figure in part(options, judge, model):
                print(f"{figure.name}: {figure.value:.1f} {figure.unit}", file=sys.stderr)
                figures.append(figure)
    except reverie.ReverieError as error:
        print(error, file=sys.stderr)
        return 2
    settings = {"model": model.name, "steps": options.steps, "guidance": options.guidance}
    for path in write(figures, settings, [], options.out):
        print(path)
    return 0


def real_figures(options: argparse.Namespace, judge: MusicJudge, model: reverie.Pipeline) -> Iterator[Figure]:
    """Measure the judge on clips that it never heard, whole, and through each part of the way back to sound."""
    params = hearing(model)
    clips = [clip_at(SEED, index) for index in spread(range(REAL), options.limit)]
    sounds = [Sound(torch.from_numpy(render(clip)), params.sample_rate) for clip in clips]
    yield from figures_of("real clips", judged(judge, clips, sounds))
    again = [through_autoencoder(sound, model) for sound in track(sounds, "through the autoencoder")]
    yield from figures_of("through the autoencoder", judged(judge, clips, again))


@torch.no_grad()
def through_autoencoder(sound: Sound, model: reverie.Pipeline) -> Sound:
    """Encode a sound's spectrogram, filled up with silence to whole latents; decode it and give it phases."""
    params, images = hearing(model), model.codec
    mel = hear(sound, params)
    mel = torch.nn.functional.pad(mel, (0, -mel.shape[-1] % images.factor))
    latents = images.encode_tensor(to_greys(mel, params)[None] / (LIGHT / 2) - 1)
    greys = (images.decode(latents) + 1) * (LIGHT / 2)
    return Sound(waveform(from_greys(greys[0], params), params), params.sample_rate).normalised()


def played_figures(options: argparse.Namespace, judge: MusicJudge, model: reverie.Pipeline) -> Iterator[Figure]:
    """Play prompts for every instrument, in both languages, and measure what is heard of what was asked."""
    clips = spread([asked(number) for number in range(EACH * len(INSTRUMENTS))], options.limit)
    for title, tell, goals in (("English prompts", english, (60, 60, 90)), ("Chinese prompts", chinese, (None,) * 3)):
        texts = [told(clip, tell, number) for number, clip in enumerate(clips)]
        start, played = time.monotonic(), list[Sound]()
        for number, text in track(list(enumerate(texts)), "playing"):
            request = Music(prompt=text, seed=SEED + number, steps=options.steps, guidance=options.guidance)
            played += [step.clip for step in model.play(request) if step.clip is not None]
        rate = sum(sound.seconds for sound in played) / (time.monotonic() - start)
        found = judged(judge, clips, played, texts)
        yield from figures_of(title, found, goals)
        yield Figure(f"{title}, sound a second of computing", rate, len(played), "s")
        keep(options.out, title.split()[0].lower(), found, model)


def asked(number: int) -> MusicClip:
    """Choose clip `number` to ask for: each instrument leads in turn, in what style and tempo the draw gives."""
    lead = list(INSTRUMENTS)[number % len(INSTRUMENTS)]
    draws = (clip_at(SEED, 1000 * number + turn) for turn in count())
    clip = next(one for one in draws if lead not in (one.chords, one.bass))
    return replace(clip, lead=lead, bass="" if lead in BASSES else clip.bass)


def told(clip: MusicClip, tell: Tell, number: int) -> str:
    """Tell a clip in words that name its tempo as a number, and whether there are drums."""
    for turn in range(TELLINGS):
        text = tell(clip, np.random.default_rng((SEED, number, turn)))
        if str(clip.tempo) in text and (
            clip.has_drums or any(word in text for word in ("no drums", "solo", "无鼓", "独奏"))
        ):
            return text
    raise reverie.ReverieError(f"no caption of {clip.lead} names its tempo and drums")


def judged(
    judge: MusicJudge, clips: Sequence[MusicClip], sounds: Sequence[Sound], texts: Sequence[str] | None = None
) -> list[Played]:
    """Let the judge hear sounds."""
    rows = zip(texts or [clip.lead for clip in clips], clips, sounds, strict=True)
    return [Played(text, clip, sound, judge(sound)) for text, clip, sound in rows]


def figures_of(
    title: str, played: Sequence[Played], goals: Sequence[float | None] = (None, None, None)
) -> Iterator[Figure]:
    """Count what was heard as asked."""
    hits = {
        "lead instrument": [one.heard.lead == one.clip.lead for one in played],
        "tempo within 10 %": [abs(one.heard.tempo / one.clip.tempo - 1) <= NEAR for one in played],
        "drums or none": [one.heard.drums == one.clip.has_drums for one in played],
    }
    for (name, right), goal in zip(hits.items(), goals, strict=True):
        yield Figure(f"{title}, {name}", share(right), len(right), goal=goal, gpu_goal=90 if goal == 60 else None)


def keep(folder: Path, name: str, played: Sequence[Played], model: reverie.Pipeline) -> None:
    """Write a sheet of spectrograms, each drawn above a real one of the same description, and some sounds."""
    params = hearing(model)
    cells = []
    for one in played[:: max(1, len(played) // SHOWN)][:SHOWN]:
        real = Sound(torch.from_numpy(render(clip_like(one.clip))), params.sample_rate)
        both = [picture_of(sound, params) for sound in (one.sound, real)]
        cells.append((stacked(both), f"{one.text}\nheard: {one.heard.lead}, {one.heard.tempo}"))
    contact_sheet(cells, columns=3).save(folder / f"{name}.png")
    for number, one in enumerate(played[:: max(1, len(played) // LISTENED)][:LISTENED]):
        write_sound(one.sound, folder / f"{name}-{number}.flac", texts={"title": one.text})


def clip_like(clip: MusicClip) -> MusicClip:
    """Return a real clip with the same lead and drums, for the eye."""
    candidates = (clip_at(SEED, index) for index in range(100_000))
    return next(one for one in candidates if (one.lead, one.has_drums) == (clip.lead, clip.has_drums))


def picture_of(sound: Sound, params: SpectrogramParams) -> Image.Image:
    """Draw a sound's spectrogram."""
    return to_picture(hear(sound, params), params)


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Lay pictures below one another."""
    sheet = Image.new("RGB", (pictures[0].width, sum(picture.height for picture in pictures)))
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (0, number * picture.height))
    return sheet


if __name__ == "__main__":
    sys.exit(main())
