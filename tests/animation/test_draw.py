"""Is a film what its keyframes are, whole at any batch, the same after a break, and drawn no more than it must be?"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reverie.animation.draw import Frame, animate
from reverie.animation.pacing import unevenness
from reverie.diffusion.noise import Noise, slerp
from reverie.diffusion.samplers import SAMPLERS
from reverie.diffusion.schedule import to_ve
from reverie.errors import ReverieError
from reverie.generate.conditioning import encode, steady
from reverie.generate.sample import guided_denoiser, noise_levels, resume
from reverie.pipeline import Pipeline
from reverie.requests.films import Animation, Keyframe
from reverie.requests.pictures import TextToImage

WORDS = ["a bear @seed 3", "an apple @seed 4", "blue @seed 5"]
PLAIN: dict[str, object] = {
    **{"guidance_interval": (0.0, 1.0), "cache_steps": 1, "merge_tokens": 0.0, "perturbed_guidance": 0.0},
    **{"freeu": None, "cfg_pp": False, "guidance": 3.0, "sampler": "dpmpp_2m", "regions": ()},
}


def film(system: Pipeline, *keyframes: object, batch: int = 4, **fields: object) -> list[Frame]:
    told = {"seed": 7, "steps": 3, "guidance": 3.0, "keyframes": keyframes, **fields}
    return list(animate(system, Animation.of(told), batch=batch))


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and a.tobytes() == b.tobytes()


def apart(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean())


@contextmanager
def counted(system: Pipeline) -> Iterator[list[int]]:
    """List the rows of each call of the U-Net."""
    calls: list[int] = []
    hook = system.unet.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    yield calls
    hook.remove()


class Kept(dict[float, Image.Image]):
    """Keep frames in memory."""

    def put(self, drawn: Mapping[float, Image.Image]) -> None:
        assert not self.keys() & drawn.keys()
        self.update(drawn)


@pytest.mark.parametrize(
    ("shape", "sampler"),
    [("tiny", "dpmpp_2m"), ("tiny", "dpmpp_sde"), ("tiny_v", "unipc"), ("tiny_xl", "euler_ancestral")],
)
def test_keyframes_are_what_their_requests_draw_alone(shape: str, sampler: str, request: pytest.FixtureRequest) -> None:
    system: Pipeline = request.getfixturevalue(shape)
    frames = film(system, *WORDS, frames=5, anchor=0, sampler=sampler)
    assert [frame.place for frame in frames] == [0, 0.5, 1, 1.5, 2]
    for frame, (prompt, seed) in zip(frames[::2], [("a bear", 3), ("an apple", 4), ("blue", 5)], strict=True):
        alone = system.text_to_image(prompt, seed=seed, steps=3, guidance=3.0, sampler=sampler)[0]
        assert same(frame.picture, alone)
    assert not same(frames[1].picture, frames[0].picture)
    assert not same(frames[1].picture, frames[2].picture)


@pytest.mark.parametrize(
    "changes",
    [
        {"guidance_interval": (0.3, 0.7)},
        {"cache_steps": 2},
        {"merge_tokens": 0.5},
        {"perturbed_guidance": 3.0},
        {"freeu": (1.5, 1.6, 0.9, 0.2)},
        {"cfg_pp": True, "guidance": 0.6, "sampler": "euler"},
        {"regions": [{"prompt": "an apple", "negative": "blue", "box": "left"}]},
    ],
)
def test_what_changes_pictures_changes_films_so(tiny: Pipeline, changes: dict[str, object]) -> None:
    frames = film(tiny, *WORDS, frames=5, anchor=0, **changes)
    for frame, (prompt, seed) in zip(frames[::2], [("a bear", 3), ("an apple", 4), ("blue", 5)], strict=True):
        request = TextToImage.of({"prompt": prompt, "seed": seed, "steps": 3, "guidance": 3.0, **changes})
        assert same(frame.picture, tiny.draw(request)[0])
        assert not same(frame.picture, tiny.draw(request.replace(**{name: PLAIN[name] for name in changes}))[0])
    assert not same(frames[1].picture, frames[0].picture)


def test_a_film_on_cached_levels_goes_on_as_the_unbroken_one(tiny: Pipeline) -> None:
    """What an earlier batch left in the cache is not served to a later one."""
    asked = Animation.of({"keyframes": WORDS, "seed": 7, "steps": 5, "guidance": 3.0, "frames": 9, "cache_steps": 3})
    whole = list(animate(tiny, asked, store=Kept(), batch=2))
    kept = Kept({frame.place: frame.picture for frame in whole if frame.place < 1})
    assert all(
        same(a.picture, b.picture) for a, b in zip(animate(tiny, asked, store=kept, batch=2), whole, strict=True)
    )


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_3m_sde", "unipc", "euler_ancestral"])
def test_the_anchor_hands_over_within_one_run(tiny: Pipeline, sampler: str) -> None:
    """One unbroken run, told of the middle for two steps and of the keyframe then, ends in the keyframe's latents."""
    base = TextToImage(seed=7, steps=5, guidance=3.0, sampler=sampler, width=32, height=32)
    ends = [encode(tiny, base.replace(prompt=prompt)) for prompt in ("a bear", "an apple")]
    conditionings = [prompts.positive[0].stages[0][1] for prompts in ends]
    middle = steady(conditionings[0].slerp(conditionings[1], 0.5), ends[0].negative.stages[0][1])
    sigmas, noise = noise_levels(tiny, base), Noise([7], (4, 4, 4))
    first, then = (guided_denoiser(tiny, base, prompts, sigmas) for prompts in (middle, ends[1]))

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return (first if float(sigma) > sigmas[2].item() * (1 + 1e-6) else then)(x, sigma)

    *_, last = resume(denoise, sigmas, noise, SAMPLERS[sampler], to_ve(noise.initial(), sigmas[0].item()))
    frames = film(tiny, "a bear", "an apple", frames=3, steps=5, anchor=0.4, sampler=sampler)
    assert frames[-1].latents is not None
    torch.testing.assert_close(frames[-1].latents, last.x, rtol=1e-4, atol=1e-5)


def test_the_anchor_is_computed_once_and_frames_share_calls(tiny: Pipeline) -> None:
    with counted(tiny) as calls:
        film(tiny, "a bear", "an apple", frames=10, steps=5, anchor=0.4, batch=4)
    # Two shared steps of one picture; then three of each keyframe alone and of eight frames by four, each guided.
    assert calls == [2] * 2 + [2] * 3 + [8] * 3 + [8] * 3 + [2] * 3


@pytest.mark.parametrize("shape", ["tiny", "tiny_xl"])
def test_any_batch_gives_the_same_film(shape: str, request: pytest.FixtureRequest) -> None:
    system: Pipeline = request.getfixturevalue(shape)
    words = ["a bear @seed 1", "an apple AND blue :0.5", "next to a bear on a blue background next to an apple a bear"]
    films = [film(system, *words, frames=7, sampler="euler_ancestral", batch=batch) for batch in (1, 3)]
    for frames in zip(*films, strict=True):
        rows = [frame.latents for frame in frames]
        assert rows[0] is not None
        for other in rows[1:]:
            torch.testing.assert_close(other, rows[0], rtol=1e-3, atol=1e-4)


def test_guidance_goes_between(tiny: Pipeline) -> None:
    frames = film(tiny, "a bear @guidance 2", "a bear @guidance 4", frames=3, anchor=0)
    alone = tiny.text_to_image("a bear", seed=7, steps=3, guidance=3.0)[0]
    assert apart(frames[1].picture, alone) < 0.1
    assert apart(frames[1].picture, frames[0].picture) > 0


def test_noise_goes_between_along_the_great_circle(tiny: Pipeline) -> None:
    frames = film(tiny, "a bear @seed 1", "a bear @seed 2", frames=3, anchor=0)
    request = TextToImage(prompt="a bear", steps=3, guidance=3.0, width=32, height=32)
    sigmas, noise = noise_levels(tiny, request), Noise([1, 2], (4, 4, 4)).initial()
    half = slerp(noise[:1], noise[1:], 0.5)
    denoise = guided_denoiser(tiny, request, encode(tiny, request), sigmas)
    start = to_ve(half, sigmas[0].item())
    *_, last = resume(denoise, sigmas, Noise([1], (4, 4, 4)), SAMPLERS["dpmpp_2m"], start)
    assert frames[1].latents is not None
    torch.testing.assert_close(frames[1].latents, last.x, rtol=1e-4, atol=1e-5)


def test_a_loop_steps_from_its_end_into_its_beginning(tiny: Pipeline) -> None:
    """The loop a, b is the first half of a, b, a, b without its end: the closing way is the way from b to a."""
    plain = film(tiny, "a bear", "an apple", frames=6, loop=True, anchor=0)
    long = film(tiny, "a bear", "an apple", "a bear", frames=7, anchor=0)
    assert all(same(a.picture, b.picture) for a, b in zip(plain, long[:-1], strict=True))
    assert same(long[-1].picture, plain[0].picture)


def test_the_way_back_is_shown_and_not_drawn(tiny: Pipeline) -> None:
    with counted(tiny) as there:
        one = film(tiny, "a bear", "an apple", frames=5)
    with counted(tiny) as both:
        two = film(tiny, "a bear", "an apple", frames=5, ping_pong=True)
    assert both == there
    assert [frame.place for frame in two] == [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0]
    assert all(same(two[8 - k].picture, one[k].picture) for k in range(5))
    assert [frame.index for frame in two] == list(range(9))
    assert {frame.total for frame in two} == {9}
    assert two[3].time == pytest.approx(0.15)


def test_what_stands_is_drawn_once(tiny: Pipeline) -> None:
    with counted(tiny) as calls:
        frames = film(tiny, "a bear", "an apple", frames=20, easing="jump", anchor=0)
    assert len(calls) == 2 * 3
    assert all(frame.picture is frames[0].picture for frame in frames[:19])


def test_in_between_frames_lie_between_latents(tiny: Pipeline) -> None:
    with counted(tiny) as calls:
        frames = film(tiny, "a bear", "an apple", frames=9, in_between=3, anchor=0)
    assert len(calls) == 3 * 3  # of nine frames three are drawn, each in a batch of its own
    a, b, quarter = frames[4].latents, frames[8].latents, frames[5].latents
    assert a is not None
    assert b is not None
    assert quarter is not None
    torch.testing.assert_close(quarter, slerp(a, b, 0.25))


@pytest.mark.parametrize("fields", [{}, {"in_between": 2}, {"ping_pong": True}])
def test_a_film_that_broke_off_goes_on_to_the_bit(tiny: Pipeline, fields: dict[str, object]) -> None:
    asked = Animation.of({"keyframes": WORDS, "seed": 1, "steps": 2, "frames": 9, **fields})
    whole = list(animate(tiny, asked, batch=3))
    for stop in (1, 6):
        kept = Kept()
        broken = animate(tiny, asked, batch=3, store=kept)
        list(itertools.islice(broken, stop))
        broken.close()  # type: ignore[attr-defined]
        again = list(animate(tiny, asked, batch=3, store=kept))
        assert all(same(a.picture, b.picture) for a, b in zip(whole, again, strict=True))
        with counted(tiny) as calls:
            third = list(animate(tiny, asked, batch=3, store=kept))
        assert len(calls) == asked.shared_steps * 3  # the anchors of three seeds alone
        assert all(same(a.picture, b.picture) for a, b in zip(whole, third, strict=True))


def test_a_frame_that_is_lost_is_drawn_again_as_it_was(tiny: Pipeline) -> None:
    asked = Animation.of({"keyframes": WORDS, "seed": 1, "steps": 2, "frames": 12, "in_between": 1})
    kept = Kept()
    whole = list(animate(tiny, asked, batch=3, store=kept))
    for lost in list(kept)[::3]:
        del kept[lost]
        again = list(animate(tiny, asked, batch=3, store=kept))
        assert all(same(a.picture, b.picture) for a, b in zip(whole, again, strict=True))


def test_frames_come_as_they_are_drawn(tiny: Pipeline) -> None:
    asked = Animation.of({"keyframes": ["a bear", "an apple"], "seed": 1, "steps": 2, "frames": 1000, "anchor": 0})
    with counted(tiny) as calls:
        frames = animate(tiny, asked, batch=4)
        for _ in range(1 + 4 + 1):  # the keyframe, a batch, and one of the next
            next(frames)
        frames.close()  # type: ignore[attr-defined]
    assert calls == [2, 2, 8, 8, 8, 8]


def test_a_perceptual_pace_is_evener(tiny: Pipeline) -> None:
    asked = Animation.of({"keyframes": WORDS[:2], "seed": 1, "steps": 2, "frames": 12, "loop": True})
    even = list(animate(tiny, asked.replace(pace="perceptual"), distance=apart))
    plain = list(animate(tiny, asked))

    def steps(frames: list[Frame]) -> list[float]:
        closed = [*frames, frames[0]]
        return [apart(a.picture, b.picture) for a, b in itertools.pairwise(closed)]

    assert len(even) == 12
    assert {0.0, 1.0} <= {frame.place for frame in even}
    assert unevenness(steps(even)) < min(1.5, unevenness(steps(plain)))


def test_a_film_goes_through_pictures(tiny: Pipeline) -> None:
    y, x = np.mgrid[:32, :32]
    rows = [np.stack([x * 8, y * 8, x * 0 + 90], -1), np.stack([y * 0 + 40, x * 4 + y * 4, 255 - x * 8], -1)]
    pictures = [Image.fromarray(row.astype(np.uint8)) for row in rows]
    frames = film(tiny, *[Keyframe(prompt="a bear", image=picture) for picture in pictures], frames=5, steps=6)
    for frame, picture in ((frames[0], pictures[0]), (frames[-1], pictures[1])):
        through = tiny.codec.pictures(tiny.codec.encode([picture]))[0]
        error = np.square(np.asarray(frame.picture, dtype=float) - np.asarray(through, dtype=float)).mean()
        assert 10 * np.log10(255**2 / max(error, 1e-9)) > 45  # all that is lost is lost in the autoencoder


def test_a_film_is_drawn_over_another(tiny: Pipeline, tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (32, 32), (60 * k, 255 - 60 * k, 90)) for k in range(3)]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    asked = Animation.of(
        {"keyframes": ["a bear"], "seed": 1, "steps": 4, "init_video": tmp_path, "strength": 0.5, "fps": 10}
    )
    for batch in (1, 2):
        frames = list(animate(tiny, asked, batch=batch))
        for frame, picture in zip(frames, pictures, strict=True):
            alone = tiny.image_to_image("a bear", picture, seed=1, steps=4, strength=0.5)[0]
            assert same(frame.picture, alone) if batch == 1 else apart(frame.picture, alone) < 0.1


def test_wrong_sizes_cost_nothing(tiny: Pipeline) -> None:
    picture = Keyframe(image=Image.new("RGB", (48, 36)))
    with counted(tiny) as calls:
        with pytest.raises(ReverieError, match="48x36 pixels and the film 48x32; choose a fit"):
            animate(tiny, Animation(keyframes=["a bear", picture]))
        with pytest.raises(ReverieError, match="give a distance"):
            animate(tiny, Animation(keyframes=WORDS, pace="perceptual"))
        with pytest.raises(ReverieError, match="batches of 0"):
            animate(tiny, Animation(keyframes=WORDS), batch=0)
    assert calls == []
    assert film(tiny, "a bear", picture, frames=2, fit="crop")[0].picture.size == (48, 32)


def test_a_lora_has_one_weight_in_a_film(tiny: Pipeline) -> None:
    with pytest.raises(ReverieError, match="'x' with several weights"):
        film(tiny, "a bear <lora:x:1>", "an apple <lora:x:0.5>", frames=3)


def test_a_loaded_model_makes_films(tiny: Pipeline) -> None:
    frames = tiny.animate(Animation(keyframes=["a bear", "an apple"], frames=3, steps=2, seed=1))
    assert [frame.place for frame in frames] == [0, 0.5, 1]
