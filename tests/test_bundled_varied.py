"""Does the bundled model vary pictures, alike through every door, and say what it does not?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import reverie
from reverie.adapters.ip_adapter import OWN
from reverie.cli.app import run
from reverie.corpora.scenes import COLOURS
from reverie.errors import ReverieError
from reverie.pipeline import Pipeline
from reverie.requests.parts import IPAdapterInput
from reverie.requests.references import CLIP_FOLDER
from reverie.similarity.embed import load_clip

SEED, STEPS = 7, 4


@pytest.fixture(scope="module")
def bundled() -> Pipeline:
    return reverie.load(device="cpu")


@pytest.fixture(scope="module")
def pictures(bundled: Pipeline) -> list[Image.Image]:
    """Draw what is varied: two things on two grounds."""
    prompts = ("a penguin on an orange background", "a trophy on a blue background")
    return [bundled.text_to_image(prompt, seed=SEED)[0] for prompt in prompts]


def vary(bundled: Pipeline, *shown: object, **options: object) -> Image.Image:
    return bundled.text_to_image("", **{"vary": shown, "seed": SEED + 1, "steps": STEPS} | options)[0]  # type: ignore


@pytest.mark.parametrize(("name", "steps"), [("reverie-emoji", 10), ("reverie-turbo", 2)])
def test_it_draws_what_it_is_shown_on_its_ground(name: str, steps: int, pictures: list[Image.Image]) -> None:
    model = reverie.load(name, device="cpu")
    clip = load_clip(device=model.device)
    names = clip.embed_texts(["a penguin", "a trophy", "a bear", "a rocket", "a piano", "a shoe", "a tree"])
    for number, (picture, colour) in enumerate(zip(pictures, ("orange", "blue"), strict=True)):
        drawn = vary(model, picture, steps=steps)
        ground = np.asarray(drawn, float)[:8].mean((0, 1))
        assert min(COLOURS, key=lambda name: float(np.square(ground - COLOURS[name][1]).sum())) == colour
        assert (clip.embed_images([drawn]) @ names.T).argmax() == number
        assert drawn.tobytes() != model.text_to_image("", seed=SEED + 1, steps=steps)[0].tobytes()
        assert drawn.tobytes() == vary(model, picture, steps=steps).tobytes()


def test_it_is_its_own_adapter_and_blends_are_two_of_them(bundled: Pipeline, pictures: list[Image.Image]) -> None:
    parts = {"model": str(OWN), "encoder": str(CLIP_FOLDER)}
    own = [
        IPAdapterInput(**parts, images=(one,), weight=weight)
        for one, weight in zip(pictures, (0.75, 0.25), strict=True)
    ]
    plain = {"seed": SEED + 1, "steps": STEPS}
    (drawn,) = bundled.text_to_image("", ip_adapters=own, **plain)
    shown = [{"image": one, "weight": weight} for one, weight in zip(pictures, (3, 1), strict=True)]
    assert vary(bundled, *shown).tobytes() == drawn.tobytes()
    alone = bundled.text_to_image("a bear", ip_adapters=[own[0].replace(weight=1.0)], **plain)[0]
    apart = np.asarray(alone, int) - np.asarray(vary(bundled, pictures[0]), int)
    assert np.abs(apart).max() <= 1  # a picture of weight 1 leaves words no part, but for rounding


def test_a_picture_kept_away_from_is_one_of_the_words(bundled: Pipeline, pictures: list[Image.Image]) -> None:
    drawn = vary(bundled, pictures[0], guidance=1.0)
    assert drawn.tobytes() == vary(bundled, pictures[0], guidance=1.0, negative="a bear").tobytes()
    assert vary(bundled, pictures[0]).tobytes() != vary(bundled, pictures[0], negative="a bear").tobytes()


def test_the_command_draws_the_same(bundled: Pipeline, pictures: list[Image.Image], tmp_path: Path) -> None:
    pictures[0].save(shown := tmp_path / "shown.png")
    given = [f"--vary={shown}", f"--seed={SEED + 1}", f"--steps={STEPS}", "-o", str(tmp_path / "drawn.png")]
    assert run(["image", *given]) == 0
    with Image.open(tmp_path / "drawn.png") as drawn:
        assert drawn.tobytes() == vary(bundled, pictures[0]).tobytes()


def test_what_does_not_go_is_said(bundled: Pipeline, pictures: list[Image.Image]) -> None:
    with pytest.raises(ReverieError, match="sees the pictures that it varies in the place of words; leave out"):
        bundled.text_to_image("a bear", vary=[pictures[0]])
    with pytest.raises(ReverieError, match="does not noise what it sees; leave out `noise_level`"):
        vary(bundled, pictures[0], noise_level=3)
    with pytest.raises(ReverieError, match="goes between no pictures that it varies"):
        next(bundled.animate(reverie.Animation.of({"keyframes": [{"vary": one} for one in pictures], "frames": 2})))
