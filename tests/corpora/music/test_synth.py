"""Does a clip sound as it is written: its pitches, its pulse, its parts by their levels, and every time the same?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from reverie.corpora.music import fluidsynth
from reverie.corpora.music.clips import KEYS, TEMPOS, clip_at
from reverie.corpora.music.compose import compose
from reverie.corpora.music.instruments import INSTRUMENTS
from reverie.corpora.music.score import LEAD, MusicClip, ScoreNote
from reverie.corpora.music.styles import STYLES
from reverie.corpora.music.synth import RATE, SECONDS, render
from reverie.errors import ReverieError

pytestmark = pytest.mark.usefixtures("synthesizer")
HOP, WINDOW = 160, 1024  # samples: an onset is told within 10 ms


def spectra(samples: NDArray[np.float32], bands: int = 64) -> NDArray[np.float64]:
    """Return magnitudes (bands, frames) of a mono mix; the bands widen evenly by the octave above 200 Hz."""
    mono = np.pad(samples.mean(0), WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(mono, WINDOW)[::HOP] * np.hanning(WINDOW)
    bins = np.abs(np.fft.rfft(frames))
    edges = np.unique(np.geomspace(200 * WINDOW / RATE, WINDOW / 2, bands).astype(int))
    return np.add.reduceat(bins, np.concatenate([[0], edges[:-1]]), axis=1).T


def beats_per_minute(samples: NDArray[np.float32], near: float) -> float:
    """Tell the tempo by the autocorrelation of onsets, within a factor of 1.4 of what is expected."""
    loud = np.log1p(100 * spectra(samples) / spectra(samples).max())
    onsets = np.maximum(0, np.diff(loud, axis=1)).mean(0)
    onsets = np.convolve(onsets - onsets.mean(), np.hanning(9), "same")
    tempos = np.arange(near / 1.4, near * 1.4, 0.25)
    likeness = np.correlate(onsets, onsets, "full")[len(onsets) - 1 :]
    lags = 60 / tempos * RATE / HOP  # of a beat; two of them count as well
    scores = sum(np.interp(lags * count, np.arange(len(likeness)), likeness) for count in (1, 2))
    return float(tempos[np.argmax(scores)])


@pytest.mark.parametrize("tempo", TEMPOS)
@pytest.mark.parametrize(
    ("style", "lead", "has_drums"),
    [("rock", "piano", False), ("jazz", "saxophone", True), ("waltz", "strings", False), ("techno", "synth", True)],
)
def test_the_tempo_can_be_heard(tempo: int, style: str, lead: str, has_drums: bool) -> None:
    clip = compose(MusicClip(style, tempo, 0, "major", lead, has_drums=has_drums), np.random.default_rng(tempo))
    assert beats_per_minute(render(clip), tempo) == pytest.approx(tempo, rel=0.03)


def test_levels_and_length() -> None:
    for index in range(6):
        samples = render(clip_at(1, index))
        assert samples.shape == (2, round(RATE * SECONDS))
        assert samples.dtype == np.float32
        assert np.abs(samples).max() == pytest.approx(10 ** (-1 / 20), rel=1e-6)
        assert np.sqrt(np.square(samples).mean()) > 0.03  # above -30 dBFS on the mean
        assert np.square(samples[:, : RATE // 10]).mean() > 1e-5  # it sounds from the start


def test_a_clip_sounds_the_same_whatever_was_played_before() -> None:
    clips = [clip_at(2, index) for index in range(4)]
    first = [render(clip) for clip in clips]
    assert all(np.array_equal(render(clip), heard) for clip, heard in reversed(list(zip(clips, first, strict=True))))


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("pitch", [57, 69])
def test_pitches(rate: int, pitch: int) -> None:
    """The A below middle C, and the one above it, which is 440 Hz: the strongest peak is of its overtones."""
    clip = MusicClip("rock", 60, 9, "minor", "clarinet", notes=(ScoreNote(LEAD, 0.0, 2.0, pitch, 100),))
    spectrum = np.abs(np.fft.rfft(render(clip, rate, 2.0).mean(0) * np.hanning(2 * rate)))
    hertz = np.argmax(spectrum) / 2.0
    overtone = hertz / (440 * 2 ** ((pitch - 69) / 12))
    assert overtone == pytest.approx(round(overtone), rel=0.01)


def test_notes_start_and_end_in_time() -> None:
    clip = MusicClip("rock", 60, 0, "major", "organ", notes=(ScoreNote(LEAD, 1.0, 1.0, 69, 100),))
    power = np.square(render(clip, RATE, 4.0)).mean(0).reshape(-1, RATE // 100).mean(1)  # every 10 ms
    heard = np.flatnonzero(power > 0.1 * power.max())
    assert heard[0] * 0.01 == pytest.approx(1.0, abs=0.06)
    assert heard[-1] * 0.01 == pytest.approx(2.0, abs=0.35)  # the pipes ring a little


def test_who_leads_is_heard_above_the_others() -> None:
    plan = MusicClip("funk", 96, 7, "major", "trumpet", chords="piano", bass="slap bass", has_drums=True)
    clip = compose(plan, np.random.default_rng(0))
    whole = render(clip).mean(0)
    likeness = {}
    for part in ("lead", "chords", "bass", "drums"):
        alone = render(replace(clip, notes=tuple(note for note in clip.notes if note.part == part))).mean(0)
        likeness[part] = whole @ alone / np.linalg.norm(whole) / np.linalg.norm(alone)
    assert min(likeness.values()) > 0.15  # all of them are heard
    assert likeness["lead"] > 1.3 * max(likeness[part] for part in ("chords", "bass", "drums"))


def test_a_clip_goes_round() -> None:
    clip = compose(MusicClip("waltz", 144, 0, "major", "kalimba"), np.random.default_rng(0))
    turn = clip.beats * 60 / clip.tempo  # seconds: 10
    samples = render(clip, RATE, 2 * turn).mean(0)
    first, second = samples[: len(samples) // 2], samples[len(samples) // 2 :]
    assert first @ second / np.linalg.norm(first) / np.linalg.norm(second) > 0.9


def test_instruments_can_be_told_apart() -> None:
    """By the nearest mean spectrum of a dozen, over other melodies in other styles: chance would be 8 %."""
    names = list(INSTRUMENTS)[::3]
    voices: dict[str, list[NDArray[np.float64]]] = {}
    for name in names:
        voices[name] = []
        for seed in range(5):
            rng = np.random.default_rng(seed)
            mode = ("major", "minor")[seed % 2]
            style = list(STYLES)[seed]
            clip = compose(MusicClip(style, TEMPOS[seed], KEYS[mode][seed % 3], mode, name), rng)
            heard = np.log(1e-3 + spectra(render(clip, seconds=2.5)))
            voices[name].append(np.concatenate([heard.mean(1), heard.max(1)]) - heard.mean())
    known = np.array([np.mean(voices[name][:3], 0) for name in names])
    guesses = [np.linalg.norm(known - voice, axis=1).argmin() for name in names for voice in voices[name][3:]]
    right = np.mean(np.array(guesses) == np.repeat(range(len(names)), 2))
    assert right > 0.6


def test_a_rate_that_is_not_possible() -> None:
    with pytest.raises(ReverieError, match="fluidsynth does not compute at 200000 Hz; 8000 to 96000 Hz are possible"):
        render(clip_at(0, 0), rate=100_000)


def test_what_is_no_sound_font(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    font = tmp_path / "mine.sf2"
    font.write_bytes(b"RIFF" + bytes(100))
    with pytest.raises(ReverieError, match=r"cannot read the sound font .*mine\.sf2; name a \.sf2 file"):
        render(clip_at(0, 0), font=font)
    assert capfd.readouterr() == ("", "")  # nor do fluidsynth's libraries say anything


def test_without_a_font(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fluidsynth, "FONTS", ())
    with pytest.raises(ReverieError, match="no sound font; install the Debian package fluid-soundfont-gm"):
        render(clip_at(0, 0))


def test_without_fluidsynth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fluidsynth, "find_library", lambda name: None)
    with pytest.raises(ReverieError, match="playing music needs fluidsynth 2; install the Debian package"):
        fluidsynth._library.__wrapped__()
