"""Do the pictures of a film stand on the beat, last as long as the sound and move by it?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from reverie.errors import ReverieError
from reverie.music.draw import animation, frames
from reverie.music.sections import Recording
from reverie.pipeline import Pipeline
from reverie.requests.music import Film, Music


def laid(seconds: float, film: Film = Film(), **fields: Any) -> list[tuple[str, int, float]]:
    keyframes = animation(Music.of({"seed": 5, **fields}), seconds, film).keyframes
    return [(keyframe.prompt, keyframe.seed or 0, keyframe.time or 0.0) for keyframe in keyframes]


def test_a_keyframe_stands_on_every_downbeat_and_on_the_last_frame() -> None:
    film = laid(10.0, prompt="jazz", bpm=96)
    assert film == [("jazz", 5 + k, time) for k, time in enumerate([0, 2.5, 5, 7.5, 119 / 12])]
    assert [time for _, _, time in laid(10.0, bpm=90, beats=3)] == [0, 2, 4, 6, 8, 119 / 12]


def test_a_loop_leads_back_to_its_first_keyframe() -> None:
    assert [time for _, _, time in laid(10.0, bpm=96, loop=True)] == [0, 2.5, 5, 7.5]
    assert animation(Music(loop=True), 10.0, Film()).loop


def test_prompts_are_spread_over_the_walk() -> None:
    shown = [prompt for prompt, _, _ in laid(10.0, prompt="a", to=["b", "c"], walk=4, bpm=96)]
    assert shown == ["a", "a", "b", "c", "c"]
    own = [prompt for prompt, _, _ in laid(10.0, Film(prompts=("x", "y")), prompt="a", bpm=96)]
    assert own == ["x", "x", "x", "y", "y"]
    assert {prompt for prompt, _, _ in laid(10.0, prompt="a", to="b", alpha=0.8, bpm=96)} == {"b"}


def test_easings_and_the_sound_both_move_it() -> None:
    by_sound, cuts = (animation(Music(seed=1), 4.0, Film(move=move)) for move in ("onsets", "jump"))
    assert (by_sound.drive, by_sound.audio is not None, by_sound.easing) == ("onsets", True, "linear")
    assert (cuts.easing, cuts.audio) == ("jump", None)
    with pytest.raises(ReverieError, match="unknown film move 'cut'"):
        Film.of({"move": "cut"})


def test_cuts_fall_on_the_beat(tiny: Pipeline, player: Pipeline) -> None:
    clip = player.music("a bear", seed=7, steps=1, guidance=1.0, seconds=1.0, bpm=240)[0]
    film = Film(prompts=("a bear", "an apple"), steps=2, guidance=1.0, fps=4, move="jump")
    assert clip.seconds == 1.0
    longer = Recording(clip.samples.repeat(1, 3), clip.rate, clip.picture, clip.request, clip.model)
    pictures = [np.asarray(frame.picture) for frame in frames(tiny, longer, film)]
    assert len(pictures) == 12
    cuts = [k for k in range(1, 12) if not np.array_equal(pictures[k], pictures[k - 1])]
    assert cuts == [4, 8, 11]
