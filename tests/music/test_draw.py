"""Is music what was asked for: as long, as steered, repeatable, whole across its windows and around its loops?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reverie.codecs.spectrograms import from_picture, to_picture
from reverie.errors import ReverieError
from reverie.media.sound import Sound
from reverie.music.draw import Progress, stream
from reverie.music.sections import Recording
from reverie.pipeline import Pipeline
from reverie.requests.music import Music
from reverie.sound.spectrogram import SpectrogramParams, spectrogram

QUICK = {"prompt": "a bear", "seed": 7, "steps": 2, "guidance": 3.0}


def play(system: Pipeline, **fields: object) -> Recording:
    (clip,) = clips(system, **fields)
    return clip


def clips(system: Pipeline, **fields: object) -> list[Recording]:
    steps = list(stream(system, Music.of({**QUICK, **fields})))
    assert [step.index for step in steps] == list(range(steps[0].total))
    return [step.clip for step in steps if step.clip is not None]


def levels(clip: Recording) -> np.ndarray:
    return np.asarray(clip.picture, dtype=float)


def same(a: Recording, b: Recording) -> bool:
    return torch.equal(a.samples, b.samples) and np.array_equal(levels(a), levels(b))


@pytest.fixture
def song(hearing: SpectrogramParams) -> Sound:
    """Give 0.7 s that fill no whole latents."""
    time = torch.arange(5_613) / hearing.sample_rate
    wave = (2 * torch.pi * 440 * time).sin() * (1 + (2 * torch.pi * 5 * time).sin()) / 4
    return Sound(wave[None], hearing.sample_rate)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"negative": "an apple"},
        {"sampler": "euler_ancestral"},
        {"guidance": 1.0},
        {"guidance_interval": (0.3, 0.7)},
        {"cache_steps": 2},
        {"merge_tokens": 0.5},
        {"perturbed_guidance": 3.0},
        {"freeu": (1.5, 1.6, 0.9, 0.2)},
        {"cfg_pp": True, "guidance": 0.6, "sampler": "euler"},
    ],
)
def test_a_clip_of_the_models_own_length_is_its_picture(player: Pipeline, fields: dict[str, object]) -> None:
    """To the bit what `text_to_image` draws of the same prompt and seed: negative prompts, samplers and all."""
    (picture,) = player.text_to_image(**{**QUICK, **fields})  # type: ignore[arg-type]
    assert np.array_equal(levels(play(player, **fields)), np.asarray(picture, dtype=float))


def test_what_is_kept_away_from_is_heard(player: Pipeline) -> None:
    assert not same(play(player, seconds=1.0, negative="an apple"), play(player, seconds=1.0))


@pytest.mark.parametrize("fields", [{}, {"loop": True}, {"stereo": True}])
@pytest.mark.parametrize(("seconds", "bpm", "samples"), [(0.2, None, 1600), (1.234, None, 9872), (1.0, 170, 11294)])
def test_clips_are_as_long_as_asked_to_the_sample(
    player: Pipeline, seconds: float, bpm: float | None, samples: int, fields: dict[str, object]
) -> None:
    clip = play(player, seconds=seconds, bpm=bpm, **fields)
    assert clip.samples.shape == (2 if "stereo" in fields else 1, samples)
    assert clip.peak == pytest.approx(10 ** (-1 / 20), abs=1e-4)
    assert clip.picture.size == (round(samples / 80) if "loop" in fields else -(-samples // 80), 32)


def test_the_same_request_gives_the_same_clip_and_clip_k_is_the_one_alone(player: Pipeline) -> None:
    several = clips(player, seconds=0.9, count=3)
    assert [clip.request.seed for clip in several] == [7, 8, 9]
    for clip in several:
        again = [step.clip for step in stream(player, clip.request)][-1]
        assert again is not None
        assert same(again, clip)
    assert not same(several[0], several[1])


def test_alpha_leads_from_one_prompt_to_the_other(player: Pipeline) -> None:
    to = "an apple @seed 9 @guidance 2 @negative blue"
    assert same(play(player, seconds=0.9, to=to, alpha=0), play(player, seconds=0.9))
    there = play(player, seconds=0.9, prompt="an apple", seed=9, guidance=2.0, negative="blue")
    assert same(play(player, seconds=0.9, to=to, alpha=1), there)
    middle = play(player, seconds=0.9, to=to, alpha=0.5)
    assert not same(middle, there)
    beyond = play(player, seconds=0.9, to=["rock", to], alpha=2)
    assert same(beyond, there)


def test_a_walk_begins_with_the_first_prompt_and_ends_with_the_last(player: Pipeline) -> None:
    """Its first and its last window are told what the prompts alone are, over the noise of their seeds."""
    told: list[torch.Tensor] = []
    hook = player.unet.register_forward_pre_hook(lambda _, inputs: told.append(inputs[2]), with_kwargs=False)
    try:
        clip = play(player, to="an apple @seed 9", walk=5, seconds=0.32, guidance=1.0, steps=1)
        windows = torch.cat(told)
        told.clear()
        ends = [play(player, prompt=prompt, guidance=1.0, steps=1) for prompt in ("a bear", "an apple")]
    finally:
        hook.remove()
    assert clip.seconds == pytest.approx(5 * 0.32)
    assert len(windows) == 9
    assert torch.allclose(windows[0], told[0][0], atol=1e-6)
    assert torch.allclose(windows[-1], told[1][0], atol=1e-6)
    assert torch.allclose(windows[4], (told[0][0] + told[1][0]) / 2, atol=1e-6)  # linear, as Riffusion's
    assert len(ends) == 2


def test_prompts_of_several_lengths_and_guidances_share_a_walk(player: Pipeline) -> None:
    long = " ".join(["a bear on a blue background"] * 4)
    assert play(player, to=[f"{long} @guidance 5", "an apple AND a bear"], walk=3, seconds=0.5).seconds == 1.5


def test_a_given_sound_keeps_its_length_and_is_followed_as_far_as_strength_says(player: Pipeline, song: Sound) -> None:
    near, far = (play(player, init=song, steps=10, strength=strength) for strength in (0.1, 0.9))
    assert near.samples.shape == far.samples.shape == song.samples.shape
    heard = play(player, init=song, mask=Image.new("L", (70, 32), "black"), steps=3)
    distances = [np.abs(levels(clip) - levels(heard)).mean() for clip in (near, far)]
    assert distances[0] < distances[1]


def test_another_rate_and_two_channels_are_heard(player: Pipeline, song: Sound) -> None:
    clip = play(player, init=song.stereo().resampled(44_100), strength=0.5)
    assert clip.samples.shape == (1, song.samples.shape[1])
    assert clip.rate == song.rate


def test_the_picture_of_a_spectrogram_stands_for_its_sound(
    player: Pipeline, song: Sound, hearing: SpectrogramParams
) -> None:
    picture = to_picture(spectrogram(song.samples, hearing), hearing)
    of_picture = play(player, init=picture, strength=0.5)
    assert of_picture.samples.shape == (1, 70 * hearing.hop)
    assert np.abs(levels(of_picture) - levels(play(player, init=song, strength=0.5))[:, :70]).mean() < 3
    other = replace(hearing, sample_rate=4_000, high=2_000, mels=24)
    elsewhere = to_picture(spectrogram(song.resampled(4_000).samples, other), other)
    assert play(player, init=elsewhere, strength=0.5).rate == 8_000


def test_a_picture_that_says_nothing_is_taken_with_a_warning(player: Pipeline) -> None:
    with pytest.warns(UserWarning, match="does not say"):
        clip = play(player, init=Image.new("RGB", (64, 32), "gray"), strength=0.5)
    assert clip.picture.size == (64, 32)


def test_what_a_mask_keeps_stays(player: Pipeline, song: Sound, hearing: SpectrogramParams) -> None:
    mask = Image.new("L", (70, 32), "black")
    mask.paste(255, (40, 0, 70, 32))
    clip = play(player, init=song, mask=mask, strength=1.0)
    original = np.asarray(to_picture(spectrogram(song.samples, hearing), hearing), dtype=float)
    difference = np.abs(levels(clip)[:, :70] - original)
    assert difference[:, :40].max() <= 1  # truncated there, rounded here
    assert difference[:, 40:].mean() > 10


def test_every_clip_of_a_walk_begins_the_given_sound_anew(player: Pipeline, song: Sound) -> None:
    dark = Image.new("L", (70, 32), "black")
    clip = play(player, init=song, mask=dark, to="an apple", walk=3)
    assert clip.samples.shape == (1, 3 * song.samples.shape[1])
    begins = [round(k * song.samples.shape[1] / 640) * 8 for k in range(3)]
    first = levels(clip)[:, :64]
    assert all(np.array_equal(levels(clip)[:, begin : begin + 64], first) for begin in begins)


def test_windows_are_denoised_together_whatever_the_batch(player: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    together = play(player, seconds=2.0)
    monkeypatch.setattr("reverie.music.windows.BATCH", 1)
    assert np.abs(levels(play(player, seconds=2.0)) - levels(together)).max() <= 1


def test_the_picture_of_a_loop_goes_over_its_wrap_as_over_any_edge(player: Pipeline) -> None:
    """The step from the last column to the first is one among those from latent to latent; without a loop, a jump."""

    def rank(seed: int, loop: bool) -> float:
        clip = play(player, seconds=1.28, loop=loop, seed=seed, guidance=1.0, steps=2)
        steps = np.abs(levels(clip) - np.roll(levels(clip), 1, axis=1)).mean((0, 2))[::8]
        return float((steps[0] > steps[1:]).mean())

    loops, lines = (np.mean([rank(seed, loop) for seed in range(5)]) for loop in (True, False))
    assert 0.1 < loops < 0.9
    assert lines > loops


def test_a_loop_played_twice_is_at_the_wrap_what_its_spectrogram_says(
    player: Pipeline, hearing: SpectrogramParams
) -> None:
    clip = play(player, seconds=1.28, loop=True)
    frames = spectrogram(clip.samples.repeat(1, 2), hearing)[0, :, 64:192].roll(64, -1)  # none at an end of the sound
    mel = from_picture(clip.picture)[0][0]
    mel *= (frames * mel).sum() / mel.square().sum()
    errors = (frames - mel).norm(dim=0) / mel.norm(dim=0)
    assert errors[[-2, -1, 0, 1]].mean() < errors.quantile(0.95)


def test_a_model_of_pictures_is_refused(tiny: Pipeline, player: Pipeline) -> None:
    with pytest.raises(ReverieError, match="draws pictures 32 pixels high"):
        stream(tiny, Music(seed=1))
    odd = replace(player, spectrogram=replace(player.spectrogram, mels=36))  # type: ignore[type-var]
    with pytest.raises(ReverieError, match="no whole latents of 8"):
        stream(odd, Music(seed=1))


def test_a_mask_of_another_size_is_refused(player: Pipeline, song: Sound) -> None:
    with pytest.raises(ReverieError, match="64x32 pixels and the sound's spectrogram 70x32"):
        stream(player, Music.of({**QUICK, "init": song, "mask": Image.new("L", (64, 32))}))


def test_a_generator_that_is_closed_leaves_the_model_as_it_was(player: Pipeline) -> None:
    before = player.text_to_image(**QUICK)  # type: ignore[arg-type]
    steps = stream(player, Music.of({**QUICK, "loop": True}))
    assert isinstance(next(steps), Progress)
    steps.close()  # type: ignore[attr-defined]
    after = player.text_to_image(**QUICK)  # type: ignore[arg-type]
    assert before[0].tobytes() == after[0].tobytes()


def test_a_recording_plays_in_notebooks_and_carries_its_request(player: Pipeline, tmp_path: Path) -> None:
    (clip,) = player.music("a bear", seed=7, steps=2, seconds=0.5)
    assert "<audio" in clip._repr_html_()
    assert repr(clip) == "Sound(0.50 s, 8000 Hz, mono)"
    assert (clip.request.prompt, clip.request.seed, clip.model) == ("a bear", 7, "tiny")
