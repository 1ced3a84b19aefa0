"""Are the settings for a time the nearest that fit, and is the profile measured once and right?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from reverie import TextToImage
from reverie.errors import ReverieError
from reverie.generate import budget
from reverie.generate.budget import LADDER, Profile, machine_profile, measure, plan
from reverie.pipeline import Pipeline
from reverie.requests.parts import ControlInput, Hires, Region
from reverie.requests.pictures import ImageToImage

PROFILE = Profile(step=2.0, reused=0.25, rest=3.0)
BEAR = TextToImage(prompt="a bear", seed=1, steps=20)


def test_time_is_counted_by_whole_and_reused_steps() -> None:
    assert PROFILE.seconds(20, 1) == 43
    assert PROFILE.seconds(20, 2) == 10 * 2 + 10 * 0.25 + 3
    assert PROFILE.seconds(7, 3) == 3 * 2 + 4 * 0.25 + 3


def test_with_time_enough_nothing_is_given_up() -> None:
    assert plan(PROFILE, BEAR, 60).changes == {"steps": 20, "cache_steps": 1, "sampler": "dpmpp_2m"}
    assert plan(PROFILE, BEAR.replace(steps=50), 120).changes["steps"] == 50


@pytest.mark.parametrize("within", [42.0, 30.0, 20.0, 16.0])
def test_the_first_of_the_ladder_that_fits_is_taken(within: float) -> None:
    planned = plan(PROFILE, BEAR, within)
    assert planned.seconds <= 0.95 * within
    place = LADDER.index((planned.changes["steps"], planned.changes["cache_steps"]))
    assert all(PROFILE.seconds(*pair) > 0.95 * within for pair in LADDER[:place])


def test_more_pictures_and_fewer_steps_count() -> None:
    one, three = plan(PROFILE, BEAR, 60), plan(PROFILE, BEAR.replace(count=3), 60)
    assert LADDER.index((three.changes["steps"], three.changes["cache_steps"])) > 0
    assert one.changes["cache_steps"] == 1
    assert plan(PROFILE, BEAR.replace(steps=8), 20).changes["steps"] == 8


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ReverieError, match="too short"):
        plan(PROFILE, BEAR, 5)
    for other in (BEAR.replace(hires=Hires()), BEAR.replace(sampler="lcm")):
        with pytest.raises(ReverieError, match="one pass"):
            plan(PROFILE, other, 60)
    with pytest.raises(ReverieError, match="takes the sampler dpmpp_2m; leave out `cfg_pp`"):
        plan(PROFILE, BEAR.replace(cfg_pp=True, guidance=0.6, sampler="euler"), 60)
    with pytest.raises(ReverieError, match="not measured in tiles; leave out `tile_size`"):
        plan(PROFILE, BEAR.replace(tile_size=64), 6)


def test_steps_are_told_apart_by_the_clock(tiny: Pipeline) -> None:
    """The clock is asked once before and after each of: a first step, a reused one, a whole one, a last one."""
    ticks = iter([0.0, 50.0, 51.0, 56.0, 60.0])
    request = BEAR.replace(width=32, height=32)
    assert measure(tiny, request, lambda: next(ticks)) == Profile(step=5.0, reused=1.0, rest=3.0)


def test_what_steers_is_measured(tiny: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """At every step, though it is to act at some; and what is measured without it is another profile."""
    monkeypatch.setenv("REVERIE_CACHE", str(tmp_path))
    probes: list[TextToImage] = []

    def fake(system: Pipeline, request: TextToImage) -> Iterator[int]:
        probes.append(request)
        return iter(range(4))

    monkeypatch.setattr(budget, "stream", fake)
    picture = Image.new("RGB", (32, 32))
    control = ControlInput(model=str(tmp_path), image=picture, start=0.2, end=0.4)
    regions = (Region(prompt="a bear", box="left"),)
    asked = ImageToImage.of({"init": picture, "seed": 1, "strength": 0.3, "controls": (control,), "regions": regions})
    for request in (asked, asked.replace(regions=()), asked.replace(controls=()), asked):
        machine_profile(tiny, request)
    assert [(len(one.controls), len(one.regions)) for one in probes] == [(1, 1), (1, 0), (0, 1)]
    assert (probes[0].controls[0].start, probes[0].controls[0].end, probes[0].steps) == (0, 1, 4)
    assert isinstance(probes[0], ImageToImage)
    assert probes[0].strength == 1
    with pytest.raises(ReverieError, match="one pass"):
        machine_profile(tiny, asked.replace(hires=Hires()))
    assert len(probes) == 3


def test_a_profile_is_kept_for_its_size_and_measured_again_where_damaged(
    tiny: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REVERIE_CACHE", str(tmp_path))
    measured: list[TextToImage] = []

    def fake(system: Pipeline, request: TextToImage) -> Profile:
        measured.append(request)
        return PROFILE

    monkeypatch.setattr(budget, "measure", fake)
    assert machine_profile(tiny, BEAR) == machine_profile(tiny, BEAR.replace(seed=5, prompt="an apple")) == PROFILE
    assert len(measured) == 1
    machine_profile(tiny, BEAR.replace(width=64, height=32))
    assert len(measured) == 2
    for file in (tmp_path / "profiles").iterdir():
        file.write_text('{"step": 1')
    assert machine_profile(tiny, BEAR) == PROFILE
    assert len(measured) == 3
    monkeypatch.setenv("REVERIE_CACHE", "/dev/null/nowhere")
    assert machine_profile(tiny, BEAR) == PROFILE
