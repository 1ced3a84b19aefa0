"""A live session draws, to the bit, what image to image draws, and computes only what is new."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from reverie.errors import ReverieError, listen
from reverie.pipeline import Pipeline

FIXED = {"seed": 7, "steps": 4}


def sketch(width: int) -> Image.Image:
    picture = Image.new("RGB", (32, 32), "grey")
    ImageDraw.Draw(picture).rectangle((4, 4, 4 + width, 20), fill="red")
    return picture


@contextmanager
def counting(system: Pipeline) -> Iterator[list[str]]:
    """List what computes: a text for each call of a text encoder, of the U-Net and of the autoencoder."""
    calls: list[str] = []
    networks = {"text": system.text_encoders[0], "unet": system.unet, "autoencoder": system.autoencoder}
    hooks = [
        network.register_forward_hook(lambda *_, name=name: calls.append(name)) for name, network in networks.items()
    ]
    yield calls
    for hook in hooks:
        hook.remove()


def test_each_picture_is_that_of_image_to_image(make_system: Callable[..., Pipeline], ink: Path) -> None:
    system = make_system()
    live = system.live("a bear", strength=0.5, **FIXED)
    asked = [
        ({}, "a bear", {"strength": 0.5}),
        ({"prompt": "an apple"}, "an apple", {"strength": 0.5}),
        ({"strength": 1.0, "guidance": 3.0}, "an apple", {"strength": 1.0, "guidance": 3.0}),
        ({"loras": (str(ink),)}, "an apple", {"strength": 1.0, "guidance": 3.0, "loras": (str(ink),)}),
        ({"loras": (), "prompt": "a bear"}, "a bear", {"strength": 1.0, "guidance": 3.0}),
    ]
    for width, (changes, prompt, options) in enumerate(asked, start=5):
        live.change(**changes)
        for size in (width, width + 1):
            drawn = live.draw(sketch(size))
            (expected,) = system.image_to_image(prompt, sketch(size), **FIXED, **options)
            assert drawn.tobytes() == expected.tobytes()
            assert drawn.info == expected.info


def test_only_what_is_new_is_computed(make_system: Callable[..., Pipeline]) -> None:
    system = make_system()
    live = system.live("a bear", strength=0.5, **FIXED)
    first = live.draw(sketch(5))
    with counting(system) as calls:
        again = live.draw(sketch(5))
        assert calls == []
        assert again.tobytes() == first.tobytes()
        again.paste("white", (0, 0, 32, 32))
        assert live.draw(sketch(5)).tobytes() == first.tobytes()
        live.draw(sketch(6))
        assert set(calls) == {"autoencoder", "unet"}
        calls.clear()
        live.change("an apple")
        live.draw(sketch(6))
        assert "text" in calls
        calls.clear()
        live.change("a bear", strength=0.75)
        live.draw(sketch(6))
        assert "text" not in calls


def test_the_seed_is_drawn_once(make_system: Callable[..., Pipeline]) -> None:
    live = make_system().live("a bear")
    assert len({live.draw(sketch(width)).info["reverie"].split('"seed": ')[1][:12] for width in (3, 4)}) == 1


def test_notes_are_handed_on(make_system: Callable[..., Pipeline]) -> None:
    heard: list[str] = []
    live = make_system().live("a bear <hypernet:old:1>", **FIXED)
    with listen(heard.append):
        live.draw(sketch(5))
    (note,) = heard
    assert "hypernet" in note


def test_several_pictures_of_a_sketch_are_refused(make_system: Callable[..., Pipeline]) -> None:
    with pytest.raises(ReverieError, match="a live picture is one; leave out a count of 2"):
        make_system().live("a bear", count=2)
    live = make_system().live("a bear", **FIXED)
    with pytest.raises(ReverieError, match="count"):
        live.change(count=3)
    with pytest.raises(ReverieError, match="strength"):
        live.change(strength=7)
