"""Does each keyframe stand on the frame of its time, and do loops and returns repeat no frame?"""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reverie.animation.timeline import Timeline, order, timeline
from reverie.errors import ReverieError
from reverie.requests.films import Animation


def film(*keyframes: str, **fields: object) -> Timeline:
    lasting = fields.pop("lasting", None)
    return timeline(Animation.of({"keyframes": keyframes, **fields}), lasting)  # type: ignore[arg-type]


def test_keyframes_without_times_are_spread_evenly() -> None:
    assert film("a", "b", "c", frames=9) == Timeline((0, 4, 8), 9)
    assert film("a", "b", seconds=1, fps=10) == Timeline((0, 9), 10)
    assert film("a", "b", fps=10) == Timeline((0, 20), 21)  # two seconds from one to the next


def test_keyframes_with_times_stand_on_their_frames() -> None:
    assert film("0s: a", "0.5s: b", "2s: c", fps=10) == Timeline((0, 5, 20), 21)
    assert film("0.2s: a", "0.5s: b", seconds=1, fps=10) == Timeline((2, 5), 10)


def test_a_loop_leads_back_to_its_first_keyframe() -> None:
    looped = film("a", "b", "c", frames=9, loop=True)
    assert looped == Timeline((0, 3, 6, 9), 9)
    assert looped.closed
    assert looped.places(["linear"] * 3) == pytest.approx([k / 3 for k in range(9)])
    assert film("0s: a", "1s: b", fps=10, loop=True) == Timeline((0, 10, 20), 20)


def test_before_the_first_keyframe_and_after_the_last_the_film_stands() -> None:
    assert film("0.2s: a", "0.4s: b", seconds=0.7, fps=10).places(["linear"] * 2) == (0, 0, 0, 0.5, 1, 1, 1)


def test_each_way_has_its_easing() -> None:
    places = film("a", "b", "c", frames=9).places(["linear", "ease_in", "linear"])
    assert places == (0, 0.25, 0.5, 0.75, 1, 1 + 1 / 64, 1.125, 1 + 27 / 64, 2)


def test_a_film_lasts_as_its_sound_where_it_does_not_say() -> None:
    assert film("a", "b", lasting=31).count == 31
    assert film("a", "b", lasting=31, frames=5).count == 5
    assert film("0s: a", "1s: b", fps=10, lasting=31) == Timeline((0, 10), 31)


def test_too_short_a_sound_is_refused() -> None:
    with pytest.raises(ReverieError, match="2 frames do not reach 3 keyframes"):
        film("a", "b", "c", lasting=2)


def test_the_way_back_repeats_no_turning_frame() -> None:
    assert order(4, ping_pong=True, loop=False) == [0, 1, 2, 3, 2, 1, 0]
    assert order(4, ping_pong=True, loop=True) == [0, 1, 2, 3, 2, 1]
    assert order(4, ping_pong=False, loop=True) == [0, 1, 2, 3]
    assert order(2, ping_pong=True, loop=True) == [0, 1]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 6), st.integers(0, 50), st.booleans(), st.booleans())
def test_every_keyframe_is_reached_and_looping_films_step_evenly(
    many: int, extra: int, loop: bool, ping_pong: bool
) -> None:
    frames = many + extra
    laid = film(*"abcdef"[:many], frames=frames, loop=loop, ping_pong=ping_pong)
    places = laid.places(["linear"] * many)
    assert len(places) == frames
    assert set(map(float, range(many))) <= set(places)
    shown = [places[frame] for frame in order(laid.count, ping_pong, loop)]
    if loop:  # neither a pause nor a jump where the film begins again
        end = shown[0] + many if laid.closed else shown[0]
        steps = [abs(b - a) for a, b in pairwise([*shown, end])]
        assert min(steps) > 0
        assert steps[-1] <= 2 * max(steps[:-1])
