"""Is a seam heard? The spectral flux where windows meet, and where loops close, among that of everywhere else.

Every figure is a percentile: how much of the same sound has less flux than its join. Music without seams gives joins
that are anywhere: half of them above 50, one in twenty above 95. Clips that are only put end to end are measured beside
it: cut, and cross-faded as the reference does (riffusion/util/audio_util.py: stitch_segments, here 0.2 s).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import reverie
from reverie.errors import ReverieError
from reverie.media.sound import Sound
from reverie.music.draw import hearing
from reverie.music.plan import plan
from reverie.music.sections import Recording
from reverie.requests.music import Music

# None names a tempo: windows that begin on bars would join where music itself begins anew.
PROMPTS = ("jazz saxophone with piano and drums", "techno, drums", "piano solo, minor")
WINDOW, HOP = 512, 128  # samples at 16 kHz: a join is found to 8 ms
NEAR = 0.04  # seconds around a join that belong to it
FADE = 0.2  # seconds


@dataclass(frozen=True)
class Joined:
    """Hold a sound and the seconds at which something joins in it."""

    sound: Sound
    joins: Sequence[float]


def flux(sound: Sound) -> Tensor:
    """Return how far the spectrum moves from frame to frame: the norm of the change over that of both."""
    samples = sound.mono().resampled(16_000).samples[0]
    frames = torch.stft(samples, WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True).abs()
    return frames.diff(dim=1).norm(dim=0) / (frames[:, 1:] + frames[:, :-1]).norm(dim=0).clamp(min=1e-6)


def percentiles(joined: Joined) -> list[float]:
    """Return how much of the sound, in percent, has less flux than each join; each place counts with what is near."""
    reach = round(NEAR * 16_000 / HOP)
    values = flux(joined.sound)
    nearby = torch.nn.functional.max_pool1d(values[None], 2 * reach + 1, 1, reach)[0]
    at = [round(join * 16_000 / HOP) for join in joined.joins]
    elsewhere = torch.ones_like(nearby, dtype=torch.bool)
    for frame in at:
        elsewhere[max(0, frame - 2 * reach) : frame + 2 * reach + 1] = False
    return [100 * (nearby[elsewhere] < nearby[frame]).float().mean().item() for frame in at if frame < len(nearby)]


def windows(system: reverie.Pipeline, music: Music) -> Joined:
    """Play one long clip; windows begin and end where it joins."""
    params = hearing(system)
    laid = plan(music, params, system.codec.factor)
    edges = {edge for start in laid.windows.starts for edge in (start, start + laid.width)} - {0, laid.length}
    second = params.sample_rate / params.hop / system.codec.factor
    return Joined(played(system, music)[0], [edge / second for edge in sorted(edges)])


def end_to_end(system: reverie.Pipeline, music: Music, fade: float) -> Joined:
    """Play clips of the model's own length and put them end to end, faded into one another."""
    own, rate = hearing(system).seconds, hearing(system).sample_rate
    count = round((music.seconds or own) / own)
    pieces = played(system, music.replace(seconds=None, count=count))
    overlap = round(fade * rate)
    rising = (torch.arange(overlap) + 0.5) / max(1, overlap)
    samples, joins = pieces[0].samples, []
    for piece in pieces[1:]:
        joins.append((samples.shape[1] - overlap / 2) / rate)
        both = samples[:, samples.shape[1] - overlap :] * rising.flip(0) + piece.samples[:, :overlap] * rising
        samples = torch.cat([samples[:, : samples.shape[1] - overlap], both, piece.samples[:, overlap:]], dim=1)
    return Joined(Sound(samples, rate), joins)


def repeated(system: reverie.Pipeline, music: Music, times: int = 4) -> Joined:
    """Play a clip several times over."""
    clip = played(system, music)[0]
    return Joined(Sound(clip.samples.repeat(1, times), clip.rate), [k * clip.seconds for k in range(1, times)])


def played(system: reverie.Pipeline, music: Music) -> list[Recording]:
    """Play all clips of a request."""
    return [step.clip for step in system.play(music) if step.clip is not None]


def rows(system: reverie.Pipeline, options: argparse.Namespace) -> Iterator[tuple[str, list[float]]]:
    """Measure each way over all prompts."""
    asked = [
        Music(prompt=prompt, seed=seed, steps=options.steps, seconds=options.seconds)
        for prompt in PROMPTS
        for seed in range(options.seeds)
    ]
    short = [one.replace(seconds=None, bpm=112) for one in asked]
    ways = {
        "windows denoised together": lambda: [windows(system, one) for one in asked],
        "clips cross-faded over 0.2 s": lambda: [end_to_end(system, one, FADE) for one in asked],
        "clips end to end": lambda: [end_to_end(system, one, 0.0) for one in asked],
        "a loop": lambda: [repeated(system, one.replace(loop=True)) for one in short],
        "the same clip, no loop": lambda: [repeated(system, one) for one in short],
    }
    for name, play in ways.items():
        print(name, file=sys.stderr, flush=True)
        yield name, [value for joined in play() for value in percentiles(joined)]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="reverie-music", help="folder of a model of music, or a bundled one's name")
    parser.add_argument("--seconds", type=float, default=30.72, help="of a long clip")
    parser.add_argument("--seeds", type=int, default=2, help="clips of each prompt")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps")
    options = parser.parse_args()
    try:
        system = reverie.load(options.model)
        print(f"| {system.name} | joins | median percentile | above the 95th |\n|---|---:|---:|---:|")
        for name, found in rows(system, options):
            values = torch.tensor(found)
            share = 100 * (values > 95).float().mean()
            print(f"| {name} | {len(values)} | {values.median():.0f} | {share:.0f} % |", flush=True)
    except ReverieError as error:
        print(f"seams: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
