"""How near is a sound to itself after a picture, and how fast? Against the reference's algorithm, on real instruments.

    python benchmarks/phases.py --clips 10

Each clip (data/music, 5.12 s of sampled instruments) becomes a spectrogram's picture by Riffusion's formula, and sound
again in three ways: ours; Griffin-Lim of 32 iterations as riffusion/spectrogram_converter.py sets it after the inverse
mel that it asks for (200 steps of gradient descent, torchaudio below 2.0); and the same after the inverse mel of
torchaudio 2 (least squares). Both are written out here from torchaudio's description, without padding changed.

Spectral convergence is 20 log10(|S - |STFT(x)|| / |S|): S of the sound before the picture, windows of 100 ms, 10 ms
apart; x after the best gain, as all ways normalise loudness. Mel convergence is the same on mel amplitudes. The
log-spectral distance is the RMS difference in dB over 80 dB below the loudest, mean over frames.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from reverie.codecs.spectrograms import from_picture, to_picture
from reverie.corpora.music.clips import clip_at
from reverie.corpora.music.synth import render
from reverie.sound.spectrogram import FULL_SCALE, SMALL, SpectrogramParams, mel_filters, spectrogram, waveform

Way = Callable[[Tensor, SpectrogramParams], Tensor]
DEEP = 80  # dB below the loudest bin, where the log-spectral distance ends
DESCENT, RATE, INERTIA = 200, 0.1, 0.9  # of the reference's inverse mel: max_mel_iters, torchaudio's sgdargs
ROUNDS, MOMENTUM = 32, 0.99  # of its Griffin-Lim


def by_descent(mel: Tensor, params: SpectrogramParams) -> Tensor:
    """Invert a mel spectrogram as torchaudio 0.13's InverseMelScale does: gradient descent from uniform noise."""
    filters, wanted = mel_filters(params), mel.mT
    bins = torch.rand(*wanted.shape[:2], len(filters), generator=torch.Generator().manual_seed(0))
    bins.requires_grad_()
    descent = torch.optim.SGD([bins], lr=RATE, momentum=INERTIA)
    for _ in range(DESCENT):
        descent.zero_grad()
        (wanted - bins @ filters).square().sum(-1).mean().backward()
        descent.step()
        bins.data.clamp_(min=0)
    return bins.detach().mT


def by_least_squares(mel: Tensor, params: SpectrogramParams) -> Tensor:
    """Invert a mel spectrogram as torchaudio 2's InverseMelScale does."""
    return torch.linalg.lstsq(mel_filters(params).T[None], mel, driver="gels").solution.relu()


def griffin_lim(magnitudes: Tensor, params: SpectrogramParams) -> Tensor:
    """Find phases as torchaudio's GriffinLim does by default."""
    window = torch.hann_window(params.window)
    layout = params.n_fft, params.hop, params.window, window
    angles = torch.rand(magnitudes.shape, dtype=torch.cfloat, generator=torch.Generator().manual_seed(0))
    before = torch.zeros(())
    for _ in range(ROUNDS):
        now = torch.stft(torch.istft(magnitudes * angles, *layout), *layout, pad_mode="reflect", return_complex=True)
        ahead = now - MOMENTUM / (1 + MOMENTUM) * before
        angles, before = ahead / (ahead.abs() + 1e-16), now
    return torch.istft(magnitudes * angles, *layout) / FULL_SCALE


def descended(mel: Tensor, params: SpectrogramParams) -> Tensor:
    """Sound a mel spectrogram as the reference does."""
    return griffin_lim(by_descent(mel, params), params)


def solved(mel: Tensor, params: SpectrogramParams) -> Tensor:
    """Sound a mel spectrogram as the reference would over torchaudio 2."""
    return griffin_lim(by_least_squares(mel, params), params)


SEED = 20_000  # of clips that nothing was tuned on
WAYS: dict[str, Way] = {"reverie": waveform, "reference": descended, "reference, torchaudio 2": solved}


def distances(
    before: Float[Tensor, "1 n"], after: Float[Tensor, "1 m"], params: SpectrogramParams
) -> tuple[float, float, float]:
    """Return spectral convergence, mel convergence and log-spectral distance, all in dB."""
    count = min(before.shape[1], after.shape[1])
    s, x = (_bins(sound[:, :count], params) for sound in (before, after))
    gain = (s * x).sum() / x.square().sum()
    mel_s, mel_x = spectrogram(before[:, :count], params), spectrogram(after[:, :count] * gain, params)
    deep = s.max() * 10 ** (-DEEP / 20)
    levels = [20 * part.clamp(min=deep).log10() for part in (s, x * gain)]
    apart = (levels[0] - levels[1]).square().mean(1).sqrt().mean().item()
    return _convergence(s, x * gain), _convergence(mel_s, mel_x), apart


def _bins(sound: Tensor, params: SpectrogramParams) -> Tensor:
    window = torch.hann_window(params.window)
    return torch.stft(sound, params.window, params.hop, window=window, return_complex=True).abs()


def _convergence(wanted: Tensor, found: Tensor) -> float:
    return 20 * float(((wanted - found).norm() / wanted.norm()).log10())


def main() -> None:
    """Measure, and print a table in Markdown, a row as soon as it is known."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--clips", type=int, default=10)
    options.add_argument("--small", action="store_true", help="the bundled model's parameters")
    options.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    chosen = options.parse_args()
    params = SMALL if chosen.small else SpectrogramParams()
    totals = {name: torch.zeros(4) for name in chosen.ways}
    waveform(torch.ones(1, params.mels, 8), params)  # what is laid out once is not timed
    print(f"{torch.get_num_threads()} threads\n\n| clip | way | spectral, dB | mel, dB | log-spectral, dB | s |")
    print("|---|---|---|---|---|---|")
    for index in range(chosen.clips):
        clip = clip_at(SEED, index)
        before = torch.from_numpy(render(clip, params.sample_rate, params.seconds)).mean(0, keepdim=True)
        mel, _ = from_picture(to_picture(spectrogram(before, params), params))
        what = ", ".join([*clip.instruments, *(["drums"] if clip.has_drums else [])])
        for name in chosen.ways:
            start = time.perf_counter()
            after = WAYS[name](mel, params)
            took = time.perf_counter() - start
            figures = torch.tensor([*distances(before, after, params), took])
            totals[name] += figures / chosen.clips
            _row(what, name, figures)
    for name, figures in totals.items():
        _row("**mean**", name, figures)


def _row(what: str, name: str, figures: Tensor) -> None:
    print(f"| {what} | {name} | " + " | ".join(f"{value:.2f}" for value in figures.tolist()) + " |", flush=True)


if __name__ == "__main__":
    main()
