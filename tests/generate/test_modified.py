"""Drawings of one model that are interleaved or come from several threads are, to the bit, what each is alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest
import torch
from PIL import Image

from reverie.generate import image
from reverie.pipeline import Pipeline
from reverie.requests.films import Animation
from reverie.requests.music import Music
from reverie.requests.pictures import TextToImage

PLAIN = TextToImage(prompt="a bear", seed=7, steps=3)


def requests(ink: Path) -> dict[str, TextToImage]:
    """Ask for each way of changing a model, and for none."""
    return {
        "plain": PLAIN,
        "LoRA": PLAIN.replace(loras=(f"{ink}:0.7",)),
        "LoRA of another strength": PLAIN.replace(loras=(f"{ink}:-1.5",)),
        "DeepCache": PLAIN.replace(cache_steps=2),
        "token merging": PLAIN.replace(merge_tokens=0.5, width=64, height=64),
        "seamless edges": PLAIN.replace(tile="xy", count=2),
        "all at once": PLAIN.replace(loras=(str(ink),), cache_steps=3, merge_tokens=0.25, tile="x"),
    }


def state(system: Pipeline) -> list[object]:
    """Name all that a drawing may change, by identity."""
    found: list[object] = []
    for module in (*system.text_encoders, system.unet, system.autoencoder):
        for part in module.modules():
            hooks = len(part._forward_hooks) + len(part._forward_pre_hooks)
            found += [type(part), hooks, getattr(part, "padding", None), *map(id, part._parameters.values())]
    return found


def drawn(events: Iterator[image.Progress]) -> list[bytes]:
    return [picture.tobytes() for event in events for picture in event.pictures]


def test_interleaved_streams_are_what_each_is_alone(make_system: Callable[..., Pipeline], ink: Path) -> None:
    system = make_system()
    before, asked = state(system), requests(ink)
    alone = {name: drawn(system.stream(request)) for name, request in asked.items()}
    assert len({tuple(pictures) for pictures in alone.values()}) == len(asked)
    streams = {name: system.stream(request) for name, request in asked.items()}
    together: dict[str, list[bytes]] = {name: [] for name in asked}
    while streams:
        for name, stream in list(streams.items()):
            event = next(stream, None)
            if event is None:
                del streams[name]
            else:
                together[name] += [picture.tobytes() for picture in event.pictures]
    assert together == alone
    assert state(system) == before


def test_streams_closed_in_any_order_leave_nothing(make_system: Callable[..., Pipeline], ink: Path) -> None:
    system = make_system()
    before, asked = state(system), requests(ink)
    for order in (1, -1):
        streams = [system.stream(request) for request in asked.values()]
        for stream in streams:
            next(stream)
        assert drawn(system.stream(PLAIN)) == drawn(system.stream(PLAIN))
        for stream in streams[::order]:
            stream.close()  # type: ignore[attr-defined]
        assert state(system) == before


def test_a_preview_is_decoded_as_its_own_drawing_is(tiny: Pipeline) -> None:
    seamless, plain = tiny.stream(PLAIN.replace(tile="xy")), tiny.stream(PLAIN)
    step = next(seamless)
    here = step.preview()[0].tobytes()
    assert next(plain).preview()[0].tobytes() != here
    assert step.preview()[0].tobytes() == here


def test_two_threads_draw_what_each_draws_alone(make_system: Callable[..., Pipeline], ink: Path) -> None:
    system = make_system()
    before, asked = state(system), list(requests(ink).values())
    alone = [drawn(system.stream(request)) for request in asked]
    together: dict[int, list[bytes]] = {}

    def draw(start: int) -> None:
        torch.set_num_threads(1)
        for index in range(start, len(asked), 2):
            together[index] = drawn(system.stream(asked[index]))

    threads = [Thread(target=draw, args=(start,)) for start in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[index] for index in range(len(asked))] == alone
    assert state(system) == before


def test_a_film_music_and_pictures_take_turns(player: Pipeline, ink: Path) -> None:
    """The three share a U-Net, though they are asked of two pipelines."""
    film = Animation(keyframes=("a bear", "an apple"), frames=5, steps=3, seed=1, loras=(str(ink),), tile="x")
    music = Music(prompt="a bear", seed=1, steps=3, loop=True, cache_steps=2, loras=(f"{ink}:0.5",))

    def frames() -> Iterator[bytes]:
        return (frame.picture.tobytes() for frame in player.animate(film))

    def clips() -> Iterator[bytes]:
        return (step.clip.samples.numpy().tobytes() for step in player.play(music) if step.clip is not None)

    def pictures() -> Iterator[bytes]:
        return iter(drawn(player.stream(PLAIN)))

    alone = [list(kind()) for kind in (frames, clips, pictures)]
    running, together = [frames(), clips(), pictures()], [list[bytes]() for _ in range(3)]
    for _ in range(5):
        for events, found in zip(running, together, strict=True):
            found += [event for event in [next(events, None)] if event is not None]
    assert together == alone


def test_a_film_cannot_be_told_another_model_by_a_drawing_that_waits(tiny: Pipeline, ink: Path) -> None:
    """The key of a film's frames is of the model's own weights."""
    from reverie.animation.store import fingerprint

    plain = fingerprint(tiny)
    stream = tiny.stream(PLAIN.replace(loras=(str(ink),)))
    next(stream)
    assert fingerprint(tiny) == plain


def test_a_drawing_within_a_drawing(tiny: Pipeline, ink: Path) -> None:
    """A distance may draw with the same model, in the midst of a film."""
    film = Animation(keyframes=("a bear", "an apple"), frames=3, steps=2, seed=1, pace="perceptual", loras=(str(ink),))

    def plain(a: Image.Image, b: Image.Image) -> float:
        return 1.0

    def drawing(a: Image.Image, b: Image.Image) -> float:
        tiny.draw(PLAIN.replace(tile="xy", steps=1))
        return 1.0

    own, other = ([frame.picture.tobytes() for frame in tiny.animate(film, distance=d)] for d in (plain, drawing))
    assert own == other


@pytest.mark.parametrize("count", [1, 2])
def test_what_is_missing_is_told_and_changes_nothing(tiny: Pipeline, count: int) -> None:
    before = state(tiny)
    for _ in range(count):
        with pytest.raises(Exception, match="gone"):
            tiny.draw(PLAIN.replace(loras=("gone.safetensors",)))
    assert state(tiny) == before
