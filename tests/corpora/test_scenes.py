"""Is a scene a pure function of (seed, index), free of held-out pairs, and drawn as it says?"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from reverie.corpora import scenes as module
from reverie.corpora.concepts import Concept
from reverie.corpora.scenes import (
    CANVAS,
    CELL,
    COLOUR_JITTER,
    COLOURS,
    DEFAULT_GROUND,
    HELD_OUT,
    PAIR_SIZE,
    SIZES,
    Placed,
    Scene,
    crop_at,
    draw_scene,
    glyph,
    is_held_out,
    render,
    scene_at,
)
from reverie.errors import ReverieError

SCENES = 1000


def pairs(scene: Scene) -> list[tuple[str, str]]:
    """Name every object-colour and object-object pair of a scene."""
    emojis = [placed.concept.emoji for placed in scene.objects]
    return [(emoji, scene.colour) for emoji in emojis] + list(combinations(emojis, 2))


def test_there_are_ten_colours_named_in_both_languages() -> None:
    assert len(COLOURS) >= 10
    assert len({chinese for chinese, _ in COLOURS.values()}) == len(COLOURS)
    rgb = np.array([value for _, value in COLOURS.values()], float)
    apart = np.linalg.norm(rgb[:, None] - rgb[None], axis=-1) + 1e3 * np.eye(len(rgb))
    assert apart.min() > 4 * COLOUR_JITTER


def test_held_out_pairs_never_occur_in_training(handmade: tuple[Concept, ...]) -> None:
    for index in range(SCENES):
        assert not any(is_held_out(*pair) for pair in pairs(scene_at(handmade, 0, index)))


def test_held_out_scenes_always_hold_one(handmade: tuple[Concept, ...]) -> None:
    for index in range(SCENES // 4):
        scene = scene_at(handmade, 0, index, held_out=True)
        assert any(is_held_out(*pair) for pair in pairs(scene))


def test_about_one_pair_in_twelve_is_held_out_whatever_its_order(everything: tuple[Concept, ...]) -> None:
    emojis = [concept.emoji for concept in everything[::20]]
    chosen = [is_held_out(a, b) for a, b in combinations(emojis, 2)]
    assert chosen == [is_held_out(b, a) for a, b in combinations(emojis, 2)]
    assert np.mean(chosen) == pytest.approx(1 / HELD_OUT, abs=0.02)
    assert np.mean([is_held_out(e, c) for e in emojis for c in COLOURS]) == pytest.approx(1 / HELD_OUT, abs=0.03)


def test_a_scene_depends_on_seed_and_index_alone(handmade: tuple[Concept, ...]) -> None:
    backwards = [scene_at(handmade, 5, index) for index in reversed(range(50))][::-1]
    assert backwards == [scene_at(handmade, 5, index) for index in range(50)]
    assert backwards != [scene_at(handmade, 6, index) for index in range(50)]


def test_scenes_keep_to_the_canvas_and_the_cells(handmade: tuple[Concept, ...]) -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_scene(handmade, rng) for _ in range(SCENES)]
    for scene in drawn:
        assert np.abs(np.subtract(scene.rgb, COLOURS[scene.colour][1])).max() <= COLOUR_JITTER
        for placed in scene.objects:
            assert placed.x % CELL == placed.y % CELL == 0
            assert 0 <= min(placed.x, placed.y) <= max(placed.x, placed.y) <= CANVAS - placed.size
        if len(scene.objects) == 1:
            assert (scene.objects[0].size, scene.relation) == (SIZES[scene.size_word], "")
        else:
            assert_stands_as_told(scene)
    assert {scene.colour for scene in drawn} == set(COLOURS)
    assert {scene.relation for scene in drawn} == {"", "beside", "above"}
    assert {scene.size_word for scene in drawn} == set(SIZES)
    assert np.mean([len(scene.objects) == 2 for scene in drawn]) == pytest.approx(0.25, abs=0.05)


def test_scatter_keeps_objects_near_the_middle(handmade: tuple[Concept, ...]) -> None:
    for scatter in (0, 1):
        for index in range(100):
            scene = scene_at(handmade, 2, index, scatter=scatter)
            middles = [(it.x + it.size / 2, it.y + it.size / 2) for it in scene.objects]
            off = np.abs(np.mean(middles, axis=0) - CANVAS / 2).max()  # of a pair, its common middle
            assert off <= scatter * CELL + CELL / 2, "an odd number of free cells has no middle one"


def assert_stands_as_told(scene: Scene) -> None:
    first, second = scene.objects
    assert first.size == second.size == PAIR_SIZE
    assert first.concept != second.concept
    if scene.relation == "beside":
        assert (first.x + PAIR_SIZE, first.y) == (second.x, second.y)
    else:
        assert (first.x, first.y + PAIR_SIZE) == (second.x, second.y)


def test_every_glyph_shows(everything: tuple[Concept, ...], font: None) -> None:
    seen = set()
    for concept in everything[::8]:
        pixels = glyph(concept.emoji, SIZES["small"])
        alpha = pixels[..., 3]
        assert pixels.shape == (48, 48, 4)
        assert alpha.mean() > 0.02, concept
        assert alpha.max() > 0.9, concept
        assert (pixels[..., :3].max(-1) <= 255 * alpha + 1e-3).all(), "not premultiplied"
        seen.add(pixels.tobytes())
    assert len(seen) == len(everything[::8])  # no two show the same, such as the box of a missing glyph


def test_render_draws_the_ground_and_the_object_in_its_place(handmade: tuple[Concept, ...], font: None) -> None:
    rgb = COLOURS["blue"][1]
    picture = render(Scene("blue", rgb, (Placed(handmade[0], 32, 64, 48),), "small"))
    assert (picture.shape, picture.dtype) == ((CANVAS, CANVAS, 3), np.uint8)
    drawn = (picture != rgb).any(-1)
    inside = np.zeros_like(drawn)
    inside[64:112, 32:80] = True
    assert not drawn[~inside].any()
    assert drawn[inside].mean() > 0.5


def test_a_crop_is_a_square_of_the_picture_on_the_object(handmade: tuple[Concept, ...], font: None) -> None:
    for index in range(30):
        scene = scene_at(handmade, 1, index)
        picture = render(scene).transpose(2, 0, 1)
        crop = crop_at(handmade, 1, index, 64)
        assert (crop.shape, crop.dtype) == ((3, 64, 64), np.uint8)
        places = [
            (x, y)
            for x in range(0, 65, CELL)
            for y in range(0, 65, CELL)
            if np.array_equal(picture[:, y : y + 64, x : x + 64], crop)
        ]
        first = scene.objects[0]
        assert any(x < first.x + first.size and first.x < x + 64 for x, _ in places)
        assert any(y < first.y + first.size and first.y < y + 64 for _, y in places)
    assert np.array_equal(crop_at(handmade, 1, 0, CANVAS), render(scene_at(handmade, 1, 0)).transpose(2, 0, 1))


def test_missing_font_tells_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "FONT", tmp_path / "none.ttf")
    with pytest.raises(ReverieError, match="install the Debian package fonts-noto-color-emoji"):
        module._font.__wrapped__()


def test_a_share_of_scenes_is_sure_of_the_default_ground(handmade: tuple[Concept, ...]) -> None:
    shown = [scene_at(handmade, 4, index, default_share=0.5) for index in range(SCENES)]
    share = sum(scene.colour == DEFAULT_GROUND for scene in shown) / SCENES
    assert 0.48 < share < 0.6  # a half, and a twelfth of the others; a few are held out


def test_a_scene_of_twice_the_size_is_the_same_scene() -> None:
    def square(emoji: str, size: int) -> np.ndarray:
        pixels = np.zeros((size, size, 4), np.float32)
        pixels[size // 4 : size // 2] = (10, 20, 30, 1)
        return pixels

    bear = Concept("🐻", "animal-mammal", ("bear",), ("熊",))
    scene = Scene("blue", COLOURS["blue"][1], (Placed(bear, 16, 32, 80),))
    small, large = render(scene, 1, square), render(scene, 2, square)
    assert large.shape == (256, 256, 3)
    assert np.array_equal(large, small.repeat(2, 0).repeat(2, 1))


def disc(rgb: tuple[int, int, int]) -> np.ndarray:
    """Draw a premultiplied glyph: a disc of one colour with a black eye."""
    y, x = np.mgrid[:32, :32] - 15.5
    pixels = np.zeros((32, 32, 4), np.float32)
    pixels[x**2 + y**2 < 200] = (*rgb, 1)
    pixels[x**2 + y**2 < 9] = (10, 10, 10, 1)
    return pixels


@pytest.mark.parametrize("colour", module.TINTS)
def test_a_tinted_glyph_has_the_colour_of_its_name_and_keeps_its_outline(colour: str) -> None:
    pixels = disc(COLOURS["orange"][1])
    tinted = module.recolour(pixels, colour)
    assert tinted[8, 16, :3] == pytest.approx(COLOURS[colour][1], abs=12)
    assert tinted[16, 16, :3] == pytest.approx((10, 10, 10), abs=2)
    assert np.array_equal(tinted[..., 3], pixels[..., 3])
    grey = disc((128, 128, 128))
    assert np.array_equal(module.recolour(grey, colour), grey)


def test_tints_go_to_things_that_have_a_colour_and_are_not_called_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = {"🍎": "red", "🐼": "", "💙": "blue"}
    monkeypatch.setattr(module, "own_colour", own.__getitem__)
    things = [
        Concept(emoji, "", (name,), ("",)) for emoji, name in (("🍎", "apple"), ("🐼", "panda"), ("💙", "blue heart"))
    ]
    shown = [scene_at(things, 4, i, pair_share=0, tint_share=0.5) for i in range(SCENES)]
    tints = {emoji: [s.tint for s in shown if s.objects[0].concept.emoji == emoji] for emoji in own}
    assert not any(tints["🐼"] + tints["💙"])
    assert set(tints["🍎"]) == {"", *module.TINTS}
    assert not any(scene.tint == scene.colour for scene in shown)
    plain = [scene_at(things, 4, i, pair_share=0) for i in range(50)]
    assert not any(scene.tint for scene in plain)
