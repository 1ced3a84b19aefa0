"""Is what can be asked for one frozen object, and what cannot be told in one line?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from reverie.errors import ReverieError
from reverie.media.sound import Sound, write
from reverie.requests.base import MAX_SEED
from reverie.requests.music import Film, Music, Stop

NOISE = Sound(torch.randn(1, 8000) / 10, 8000)


def test_a_request_survives_json() -> None:
    asked = Music.of({"prompt": "爵士", "to": ["blues @seed 3 @guidance 4", {"prompt": "rock"}], "walk": 4, "bpm": 96})
    assert asked.to == (Stop(prompt="blues", seed=3, guidance=4), Stop(prompt="rock"))
    assert Music.from_json(asked.to_json()) == asked
    assert Film.from_json(Film(prompts=("a bear",), move="jump").to_json()) == Film(prompts=("a bear",), move="jump")


@pytest.mark.parametrize(
    ("seconds", "bpm", "beats", "expected"),
    [
        (None, None, 4, 5.12),
        (12.0, None, 4, 12.0),
        (12.0, 96, 4, 12.5),
        (12.0, 120, 4, 12.0),
        (0.5, 96, 4, 2.5),
        (None, 96, 4, 5.0),
        (12.0, 90, 3, 12.0),
        (3.0, 90, 3, 4.0),
    ],
)
def test_a_tempo_makes_whole_bars(seconds: float | None, bpm: float | None, beats: int, expected: float) -> None:
    assert Music(seconds=seconds, bpm=bpm, beats=beats).lasting(5.12) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("jazz", "jazz, 96 bpm"),
        ("", "96 bpm"),
        ("jazz, 96 BPM", "jazz, 96 BPM"),
        ("slow 84bpm", "slow 84bpm"),
        ("bpm", "bpm, 96 bpm"),
        ("爵士萨克斯", "爵士萨克斯，每分钟96拍"),
        ("爵士萨克斯，每分钟84拍", "爵士萨克斯，每分钟84拍"),
    ],
)
def test_the_tempo_is_told_to_prompts_that_name_none(prompt: str, told: str) -> None:
    assert [stop.prompt for stop in Music(prompt=prompt, bpm=96).stops] == [told]
    assert [stop.prompt for stop in Music(prompt=prompt).stops] == [prompt]


@pytest.mark.parametrize(
    ("prompt", "bpm", "tempo"),
    [
        ("jazz", None, None),
        ("jazz", 96, 96),
        ("jazz, 84.5bpm", None, 84.5),
        ("爵士，每分钟84拍", None, 84),
        ("84 bpm", 96, 96),
        ("0 bpm", None, None),
        ("500 bpm", None, None),
    ],
)
def test_the_tempo_is_the_one_asked_or_named(prompt: str, bpm: float | None, tempo: float | None) -> None:
    assert Music(prompt=prompt, bpm=bpm).tempo == tempo


def test_stops_take_from_the_request_what_they_leave_open() -> None:
    asked = Music.of(
        {
            "prompt": "a",
            "negative": "drums",
            "seed": 5,
            "guidance": 3,
            "to": ["b @seed 9 @negative flute", "c"],
            "alpha": 1,
        }
    )
    first, second, third = asked.stops
    assert (first.prompt, first.negative, first.seed, first.guidance) == ("a", "drums", 5, 3)
    assert (second.prompt, second.negative, second.seed, second.guidance) == ("b", "flute", 9, 3)
    assert (third.prompt, third.negative, third.seed) == ("c", "drums", 5)


def test_one_clip_of_several_has_seeds_of_its_own() -> None:
    asked = Music.of({"seed": 5, "count": 3, "to": "b | c @seed 9", "alpha": 0.5})
    assert [stop.seed for stop in asked.only(2).stops] == [7, 11, 11]
    plain = Music.of({"seed": 5, "count": 3, "to": "b", "alpha": 0.5})
    assert [stop.seed for stop in plain.only(2).stops] == [7, 7]
    assert asked.only(2).count == 1


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"seconds": float("nan")}, "seconds nan is not possible"),
        ({"seconds": 0}, "greater than or equal to 0.1"),
        ({"seconds": 4000}, "less than or equal to 3600"),
        ({"bpm": 5}, "bpm 5 is not possible"),
        ({"sampler": "eular"}, "did you mean 'euler'"),
        ({"to": "b"}, "nothing says how far to go; give alpha or walk"),
        ({"alpha": 0.5}, "alpha needs a second prompt"),
        ({"walk": 3}, "a walk needs a second prompt"),
        ({"to": "b", "alpha": 0.5, "walk": 3}, "give one of them"),
        ({"to": "b", "alpha": 1.5}, "give 0 to 1"),
        ({"to": "b", "walk": 1}, "walk 1 is not possible"),
        ({"to": "b", "walk": 3, "loop": True}, "a walk does not come back"),
        ({"to": "b @image x.png", "alpha": 1}, "unknown stop option 'image'"),
        ({"to": "b @sed 3", "alpha": 1}, "did you mean '@seed'"),
        ({"init": NOISE, "seconds": 3}, "leave out seconds"),
        ({"init": NOISE, "bpm": 96}, "leave out bpm"),
        ({"init": NOISE, "strength": 0.01}, "leaves none; give at least 0.05"),
        ({"init": NOISE, "to": "b @strength 0.2", "walk": 3}, "give its stops no strength"),
        ({"init": 3}, "int is no sound"),
        ({"init": "gone.wav"}, "cannot read 'gone.wav'"),
        ({"mask": Image.new("L", (8, 8))}, "give the sound with init"),
        ({"seed": MAX_SEED, "count": 2}, "passes the largest seed"),
        ({"to": f"b @seed {MAX_SEED}", "alpha": 1, "count": 2}, "passes the largest seed"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ReverieError, match=told) as error:
        Music.of({"seed": 1, **fields})
    assert "\n" not in str(error.value)


def test_a_source_is_known_by_its_content(tmp_path: Path) -> None:
    file = tmp_path / "song.wav"
    write(NOISE, file)
    source = Music(init=str(file)).init  # type: ignore[arg-type]
    assert source is not None
    assert source == Music(init=file).init  # type: ignore[arg-type]
    asked = Music.from_json(Music.of({"init": file}).to_json())
    assert asked.init == source
    assert isinstance(read := asked.init.open(), Sound)
    assert read.samples.shape == NOISE.samples.shape
    write(NOISE.normalised(), file)
    with pytest.raises(ReverieError, match="has changed since"):
        Music.from_json(asked.to_json()).init.open()  # type: ignore[union-attr]


def test_what_was_given_in_memory_must_be_given_again() -> None:
    asked = Music.of({"init": NOISE})
    assert asked.init is not None
    assert asked.init.open() is NOISE
    with pytest.raises(ReverieError, match="given in memory is gone"):
        Music.from_json(asked.to_json()).init.open()  # type: ignore[union-attr]
