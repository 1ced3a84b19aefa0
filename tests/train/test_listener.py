"""Does the judge of music learn what it hears, and come back from its folder? Its clips are clicks here, no fonts."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reverie.corpora.music.clips import TEMPOS, clip_at
from reverie.corpora.music.score import MusicClip
from reverie.errors import ReverieError
from reverie.media.sound import Sound
from reverie.sound.spectrogram import mel_filters
from reverie.train import listener
from reverie.train.listener import HEARING, ListenerObjective, ListenerSettings, blur_levels, hearing, load_judge

TINY = ListenerSettings(pool=24, widths=(4, 8), batch=24, coarsest=1, noise=0.0)


def clicks(clip: MusicClip, rate: int, seconds: float) -> np.ndarray:
    """Play a click on every beat, over a hiss: what tells the tempo, and nothing else."""
    times = np.arange(round(rate * seconds)) / rate
    since = times % (60 / clip.tempo)
    hiss = np.random.default_rng(0).normal(size=len(times))
    return np.tile((hiss * (0.01 + np.exp(-since / 0.02))).astype(np.float32) / 8, (2, 1))


@pytest.fixture
def objective(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ListenerObjective:
    monkeypatch.setattr(listener, "render", clicks)
    torch.manual_seed(0)
    return ListenerObjective(TINY, 6, tmp_path)


def learn(objective: ListenerObjective, steps: int) -> dict[str, float]:
    optimiser = torch.optim.AdamW(objective.networks.parameters(), 5e-3)
    for step in range(steps):
        ((_, loss, told),) = objective.losses(step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return told


def test_it_learns_the_tempo_of_clicks_and_comes_back(objective: ListenerObjective, tmp_path: Path) -> None:
    assert learn(objective, 60)["tempo"] == 1
    objective.averaged.eval()
    objective.export(tmp_path / "judge")
    judge = load_judge(tmp_path / "judge")
    for index in range(1000, 1006):  # clips that it never heard
        clip = clip_at(6, index)
        sound = Sound(torch.from_numpy(clicks(clip, 44_100, 6.0)), 44_100)  # of another rate, longer
        verdict = judge(sound)
        assert verdict.tempo == clip.tempo
        assert verdict == judge(Sound(0.1 * sound.samples, sound.rate))


def test_what_is_heard_is_kept_and_read_back(
    objective: ListenerObjective, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unheard(*_: Any) -> np.ndarray:
        raise AssertionError("played again")

    monkeypatch.setattr(listener, "render", unheard)
    assert torch.equal(ListenerObjective(TINY, 6, tmp_path).pool, objective.pool)
    for settings, seed in ((replace(TINY, pool=25), 6), (TINY, 7)):
        with pytest.raises(AssertionError, match="played again"):
            ListenerObjective(settings, seed, tmp_path)


def test_targets_are_those_of_the_clip(objective: ListenerObjective) -> None:
    for index in range(10):
        _, lead, tempo, drums = objective._item(index)
        clip = clip_at(6, index)
        assert (list(listener.INSTRUMENTS)[lead], TEMPOS[tempo], bool(drums)) == (clip.lead, clip.tempo, clip.has_drums)


@pytest.mark.parametrize("hertz", [440.0, 3000.0])
def test_a_tone_is_heard_in_its_band_however_short_and_at_any_rate(hertz: float) -> None:
    rate = 22_050
    tone = torch.sin(2 * math.pi * hertz * torch.arange(rate) / rate)[None]
    heard = hearing(Sound(tone, rate))
    assert heard.shape == (HEARING.mels, HEARING.columns)
    bins = torch.linspace(0, HEARING.sample_rate / 2, HEARING.n_fft // 2 + 1)
    centres = (mel_filters(HEARING) * bins[:, None]).sum(0) / mel_filters(HEARING).sum(0)
    assert heard[:, 20].argmax() == (centres - hertz).abs().argmin()


def test_dimming_leaves_the_mean_and_takes_the_detail() -> None:
    mel = torch.rand(4, 64, 320, generator=torch.Generator().manual_seed(1)) + 0.5
    clear, generator = ListenerSettings(coarsest=1, noise=0.0), torch.Generator().manual_seed(2)
    torch.testing.assert_close(blur_levels(mel, clear, generator), mel)
    dim = blur_levels(mel, ListenerSettings(coarsest=3, noise=0.0), generator)
    assert dim.std() < mel.std()
    assert dim.pow(0.25).mean().item() == pytest.approx(mel.pow(0.25).mean().item(), rel=0.01)


def test_no_judge_is_told(tmp_path: Path) -> None:
    with pytest.raises(ReverieError, match="no trained judge of music"):
        load_judge(tmp_path)
