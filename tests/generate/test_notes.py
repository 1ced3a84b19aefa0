"""What a model was not taught is told."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import pytest

from reverie.checkpoints.load import Known
from reverie.errors import RequestWarning
from reverie.generate.notes import model_limits, nearest, unknown_words
from reverie.pipeline import Pipeline
from reverie.requests.films import Animation
from reverie.requests.music import Music
from reverie.requests.pictures import TextToImage

KNOWN = [
    Known("🌭", ("hot dog",), ("热狗",), ("sausage", "frankfurter")),
    Known("🐯", ("tiger face", "tiger"), ("老虎",), ("animal", "cat")),
    Known("🍒", ("cherries",), ("樱桃",), ("fruit",)),
    Known("🍎", ("red apple", "apple"), ("苹果",), ("fruit",)),
    Known("🐺", ("wolf",), ("狼",)),
]


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("an apple next to a tiger on a blue background", []),
        ("A picture of a small Tiger Face", []),
        ("three apples", ["three"]),
        ("two wolves", ["two"]),
        ("a cat and a dog", ["cat", "dog"]),  # "dog" is a part of a name, and none
        ("a hot dog and a dog", ["dog"]),
        ("蓝色背景上的一只老虎", []),
        ("一只老虎和一只熊猫", ["熊猫"]),
        ("", []),
        ("ein Bär und ねこ", ["ein", "bär", "und", "ねこ"]),  # of every script
        ("a tiger BREAK a break", ["break"]),  # a word of the syntax is none
    ],
)
def test_words_that_are_no_names_of_known_things_are_found(prompt: str, unknown: list[str]) -> None:
    assert unknown_words(prompt, KNOWN) == unknown


@pytest.mark.parametrize(
    ("word", "names"),
    [("cat", ["tiger face"]), ("fruits", ["cherries", "red apple"]), ("tigre", ["tiger"]), ("xylophone", [])],
)
def test_the_nearest_are_those_that_have_to_do_with_a_word_or_are_spelled_like_it(word: str, names: list[str]) -> None:
    assert nearest(word, KNOWN)[: len(names)] == names
    assert bool(nearest(word, KNOWN)) == bool(names)


def test_pictures_of_unknown_words_come_with_a_warning(tiny: Pipeline) -> None:
    taught = dataclasses.replace(tiny, known=tuple(KNOWN))
    with pytest.warns(RequestWarning, match=r"has not learned 'cat' \(nearest: tiger face\); it knows 5 things"):
        taught.text_to_image("a cat", seed=1, steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        taught.text_to_image("a tiger", seed=1, steps=1)
        tiny.text_to_image("a cat", seed=1, steps=1)  # says nothing of what it knows


def test_sizes_far_from_the_models_own_are_told(tiny: Pipeline) -> None:
    tiny, side = dataclasses.replace(tiny, known=tuple(KNOWN)), tiny.size
    assert model_limits(TextToImage(prompt="", width=side, height=side), tiny) == ()
    (told,) = model_limits(TextToImage(prompt="", width=4 * side, height=side), tiny)
    assert f"pictures of {side} pixels; at {4 * side}x{side}" in told


def test_words_that_adapters_bring_are_not_told(tiny: Pipeline) -> None:
    taught = dataclasses.replace(tiny, known=tuple(KNOWN))
    assert model_limits(TextToImage(prompt="a cat"), taught)
    for brought in ({"loras": ("cat.safetensors",)}, {"embeddings": ("cat.pt",)}, {"prompt": "a cat <lora:cat:1>"}):
        assert model_limits(TextToImage(**{"prompt": "a cat", **brought}), taught) == ()


def test_keyframes_of_unknown_words_and_far_sizes_are_told(tiny: Pipeline) -> None:
    taught, side = dataclasses.replace(tiny, known=tuple(KNOWN)), tiny.size
    film = Animation(keyframes=("a tiger", "a cat", "a dog"), seconds=1, width=4 * side, height=side)
    words, size = model_limits(film, taught)
    assert "has not learned 'cat' (nearest: tiger face), 'dog'" in words
    assert f"at {4 * side}x{side}" in size


MUSIC = (
    Known("", ("piano",), ("钢琴",), kind="instrument"),
    Known("", ("jazz", "swing"), ("爵士",), kind="style"),
    Known("", ("96 bpm",), ("96拍",), kind="tempo"),
    Known("", ("112 bpm",), ("112拍",), kind="tempo"),
    Known("", ("with", "drums", "bpm"), ("每分钟", "拍"), kind="word"),
)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"prompt": "jazz piano with drums, 112 bpm"}, []),
        ({"prompt": "爵士钢琴，每分钟96拍", "bpm": 112}, []),
        ({"prompt": "jazz zither"}, ["has not learned 'zither'; it knows 1 instruments, 1 styles, 2 tempos, 1 words"]),
        ({"prompt": "jazz", "bpm": 180}, ["has not learned 180 bpm (nearest: 112), and may play another"]),
        ({"prompt": "jazz, 60 bpm", "to": ("swing, 100 bpm",), "alpha": 0.5}, ["60 bpm (nearest: 96), 100 bpm"]),
        ({"prompt": "爵士二胡，每分钟180拍"}, ["'二胡'", "180 bpm"]),
    ],
)
def test_music_that_was_not_taught_is_told(tiny: Pipeline, fields: dict[str, Any], told: list[str]) -> None:
    """Fault 41: `--bpm 180` played 128 silently."""
    notes = model_limits(Music.of(fields), dataclasses.replace(tiny, known=MUSIC))
    assert len(notes) == len(told)
    assert all(part in note for part, note in zip(told, notes, strict=True))
    assert model_limits(Music.of(fields), tiny) == ()
