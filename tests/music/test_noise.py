"""Is the noise of music its seeds' alone, the longer beginning with the shorter, and clips alike where places are?"""

from __future__ import annotations

import pytest
import torch

from reverie.diffusion.noise import Noise, slerp
from reverie.music.plan import MusicPlan, plan
from reverie.music.windows import ClipNoise
from reverie.requests.music import Music
from reverie.sound.spectrogram import SMALL

SHAPE = (4, 16, 32)


def laid(**fields: object) -> MusicPlan:
    return plan(Music.of(fields), SMALL, 8)


def test_a_clip_of_the_models_own_length_has_the_noise_of_a_picture() -> None:
    ours, theirs = ClipNoise([7], SHAPE, laid(), [0.0]), Noise([7], SHAPE)
    assert torch.equal(ours.initial(), theirs.initial())
    assert torch.equal(ours.next(), theirs.next())


@pytest.mark.parametrize("loop", [False, True])
def test_a_longer_clips_noise_begins_with_a_shorter_ones(loop: bool) -> None:
    shorter, longer = (
        ClipNoise([7], SHAPE, laid(seconds=seconds, loop=loop), [0.0]).initial() for seconds in (5.5, 17)
    )
    assert shorter.shape[-1] < longer.shape[-1]
    assert torch.equal(longer[..., : shorter.shape[-1]], shorter)


def test_clips_of_a_walk_go_from_noise_to_noise() -> None:
    found = laid(to="b", walk=3, seconds=5.12)
    row = ClipNoise([7, 8], SHAPE, found, [0.0, 0.5, 1.0]).initial()
    a, b = Noise([7], SHAPE).initial(), Noise([8], SHAPE).initial()
    assert torch.equal(row, torch.cat([a, slerp(a, b, 0.5), b], dim=-1))
    same = ClipNoise([7, 7], SHAPE, found, [0.0, 0.5, 1.0]).initial()
    assert torch.equal(same, torch.cat([a, a, a], dim=-1))


def test_places_beyond_the_second_stop() -> None:
    row = ClipNoise([7, 8, 9], SHAPE, laid(), [1.25]).initial()
    b, c = Noise([8], SHAPE).initial(), Noise([9], SHAPE).initial()
    assert torch.equal(row, slerp(b, c, 0.25))
