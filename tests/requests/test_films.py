"""Does a film's request hold what was asked, come back from its record, and refuse in one line what cannot be?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from reverie.diffusion.inversion import INVERTERS
from reverie.errors import ReverieError
from reverie.requests.films import Animation, Keyframe
from reverie.requests.references import looking_in

PROMPTS = ["a bear", "an apple"]
FILM = str(Path(__file__).parent)  # a folder stands for a film; it is read when it is drawn over


def test_texts_fields_and_keyframes_say_the_same() -> None:
    told = Keyframe(prompt="an apple", seed=3, time=2.0)
    ways = ["2s: an apple @seed 3", {"prompt": "an apple", "seed": 3, "time": 2}, told]
    assert [Animation(keyframes=["0s: a bear", way], seed=1).keyframes[1] for way in ways] == [told] * 3


def test_json_and_record_come_back(tmp_path: Path) -> None:
    picture = tmp_path / "red.png"
    Image.new("RGB", (32, 32), "red").save(picture)
    request = Animation(keyframes=[f"a bear @image {picture}", "an apple @seed 4"], frames=9, guidance=2.5)
    assert Animation.from_json(request.to_json()) == request
    recorded = request.to_record()
    assert recorded["keyframes"][0]["image"]["name"] == "red.png"
    with looking_in(tmp_path):
        again = Animation.of(recorded)
    assert again == request
    assert again.keyframes[0].image is not None
    assert again.keyframes[0].image.image().getpixel((0, 0)) == (255, 0, 0)


def test_a_film_without_a_seed_records_the_one_it_drew() -> None:
    request = Animation(keyframes=PROMPTS, seed=None)
    assert Animation.of(request.to_record()).seed == request.seed


def test_shared_steps_round_and_do_not_cut() -> None:
    """The reference's int() makes 9 of 50 * (1 - 0.8) = 10 (shared/numbers.md)."""
    assert Animation(keyframes=PROMPTS, steps=50, anchor=1 - 0.8).shared_steps == 10
    assert Animation(keyframes=PROMPTS, steps=50).shared_steps == 10
    assert Animation(keyframes=PROMPTS, steps=50, anchor=0).shared_steps == 0


def test_a_film_through_pictures_shares_no_steps() -> None:
    keyframes = [Keyframe(image=Image.new("RGB", (32, 32), colour)) for colour in ("red", "blue")]
    assert Animation(keyframes=keyframes).shared_steps == 0


def test_the_names_of_inversions_are_the_table() -> None:
    allowed = Animation.model_fields["inversion"].annotation
    assert set(allowed.__args__) == set(INVERTERS)  # type: ignore[union-attr]


PICTURES = [Keyframe(image=Image.new("RGB", size)) for size in ((32, 32), (64, 32))]
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({"keyframes": []}, "no keyframes"),
    "one": ({"keyframes": ["a bear"]}, "one keyframe makes no film"),
    "zero frames": ({"keyframes": PROMPTS, "frames": 0}, "frames 0 is not possible"),
    "too few": ({"keyframes": PROMPTS, "frames": 1}, "1 frame cannot show 2 keyframes"),
    "too short": ({"keyframes": PROMPTS, "seconds": 0.01}, "0 frames cannot show 2 keyframes"),
    "order": ({"keyframes": ["2s: a", "1s: b"]}, "let their times rise"),
    "one frame": ({"keyframes": ["1s: a", "1.01s: b"]}, "fall on one frame at 20 frames"),
    "some times": ({"keyframes": ["0s: a", "b"]}, "1 of 2 keyframes have a time"),
    "beyond": ({"keyframes": ["0s: a", "3s: b"], "seconds": 2}, "before its keyframe at 3 s"),
    "both": ({"keyframes": PROMPTS, "seconds": 2, "frames": 5}, "give one of them"),
    "times and frames": ({"keyframes": ["0s: a", "3s: b"], "frames": 5}, "give seconds, not frames"),
    "late loop": ({"keyframes": ["1s: a", "3s: b"], "loop": True}, "begins with its first keyframe"),
    "sizes": ({"keyframes": PICTURES}, "32x32 and 64x32 pixels; choose a fit: crop, pad or stretch"),
    "anchored pictures": ({"keyframes": PICTURES, "fit": "pad", "anchor": 0.2}, "lead away from the keyframes'"),
    "cached pictures": ({"keyframes": PICTURES, "fit": "pad", "cache_steps": 2}, "do not lead back to the keyframes'"),
    "interval": ({"keyframes": PROMPTS, "guidance_interval": (0.8, 0.2)}, "give the smaller first"),
    "anchor": ({"keyframes": PROMPTS, "anchor": 1}, "an anchor of 1 leaves none of 20 steps"),
    "two paces": ({"keyframes": PROMPTS, "easing": "smooth", "pace": "perceptual"}, "easing and a perceptual pace"),
    "paced between": ({"keyframes": PROMPTS, "in_between": 2, "pace": "perceptual"}, "leave out in_between"),
    "easing": ({"keyframes": PROMPTS, "easing": "smoth"}, "did you mean 'smooth'"),
    "option": ({"keyframes": ["a @sed 3", "b"]}, "did you mean '@seed'"),
    "seed": ({"keyframes": ["a @seed much", "b"]}, "keyframe seed 'much' is not possible"),
    "over and loop": ({"keyframes": ["a"], "init_video": FILM, "loop": True}, "loop does not go with a film"),
    "over and pace": ({"keyframes": ["a"], "init_video": FILM, "pace": "perceptual"}, "brings its own pace"),
    "over by nothing": ({"keyframes": ["a"], "init_video": FILM, "strength": 0.01}, "leaves none"),
    "unknown": ({"keyframes": PROMPTS, "frame": 3}, "did you mean 'frames'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(name: str) -> None:
    fields, message = REFUSED[name]
    with pytest.raises(ReverieError, match=message.replace("(", r"\(")) as error:
        Animation.of(fields)
    assert "\n" not in str(error.value)
