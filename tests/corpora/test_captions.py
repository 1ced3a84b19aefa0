"""Do captions say what the scene shows? They are parsed back."""

from __future__ import annotations

import re

import numpy as np
import pytest

from reverie.corpora.captions import DEFAULT_ONLY, caption, chinese, english, measure, scene_caption, with_article
from reverie.corpora.concepts import Concept
from reverie.corpora.scenes import COLOURS, DEFAULT_GROUND, Scene, scene_at

SCENES = 600
SIZES_ZH = {"小": "small", "大": "large", "": ""}
RELATIONS = {  # words between two names -> the relation, and whether the first name is the first object
    " next to ": ("beside", True),
    " and ": ("beside", True),
    " to the left of ": ("beside", True),
    " above ": ("above", True),
    " on top of ": ("above", True),
    " below ": ("above", False),
}
RELATIONS_ZH = {  # what follows the first name and the second
    ("和", ""): ("beside", True),
    ("在", "旁边"): ("beside", True),
    ("在", "左边"): ("beside", True),
    ("在", "上面"): ("above", True),
    ("在", "上方"): ("above", True),
    ("在", "下面"): ("above", False),
}


@pytest.mark.parametrize(
    ("noun", "told"),
    [
        ("apple", "an apple"),
        ("bear", "a bear"),
        ("umbrella", "an umbrella"),
        ("unicorn", "a unicorn"),
        ("ewe", "a ewe"),
        ("one-piece swimsuit", "a one-piece swimsuit"),
        ("euro banknote", "a euro banknote"),
        ("hourglass done", "an hourglass done"),
        ("horse", "a horse"),
        ("OK hand", "an OK hand"),
        ("orange", "an orange"),
        ("grapes", "grapes"),
        ("french fries", "french fries"),
        ("small grapes", "small grapes"),
        ("bus", "a bus"),
        ("compass", "a compass"),
        ("rhinoceros", "a rhinoceros"),
        ("glass of milk", "a glass of milk"),
        ("ear of corn", "an ear of corn"),
        ("corn", "corn"),
        ("money with wings", "money with wings"),
        ("umbrella with rain drops", "an umbrella with rain drops"),
        ("person lifting weights", "a person lifting weights"),
        ("people with bunny ears", "people with bunny ears"),
        ("no smoking", "no smoking"),
        ("Leo", "Leo"),
    ],
)
def test_article(noun: str, told: str) -> None:
    assert with_article(noun) == told


def scenes(things: tuple[Concept, ...]) -> list[Scene]:
    return [scene_at(things, 11, index) for index in range(SCENES)]


def parse_english(text: str) -> tuple[str, str, str, list[str]]:
    """Return colour, size word, relation and names, in the order of the objects, without articles."""
    text, colour = split_off(r"(.*?)(?: on an? (\w+) background|, (\w+) background)", text)
    for words, (relation, forward) in RELATIONS.items():
        if words in text:
            names = [re.sub("^an? ", "", name) for name in text.split(words)]
            return colour, "", relation, names if forward else names[::-1]
    size, name = re.fullmatch("(?:a picture of )?(?:an? )?(?:(small|large) )?(.+)", text).groups(default="")
    return colour, size, "", [name]


def parse_chinese(text: str) -> tuple[str, str, str, list[str]]:
    named = {zh: en for en, (zh, _) in COLOURS.items()}
    text, colour = split_off("(.+)，(..)背景", text)
    if match := re.match("(..)背景上的", text):
        colour, text = match[1], text[match.end() :]
    for (middle, end), (relation, forward) in RELATIONS_ZH.items():
        if match := re.fullmatch(f"(.+?){middle}(.+){end}", text):
            names = list(match.groups())
            return named.get(colour, ""), "", relation, names if forward else names[::-1]
    size, name = re.fullmatch("(?:一[只朵棵辆架艘把件个])?([小大]?)(.+)", text).groups()
    return named.get(colour, ""), SIZES_ZH[size], "", [name]


def split_off(pattern: str, text: str) -> tuple[str, str]:
    match = re.fullmatch(pattern, text)
    return (match[1], next(filter(None, match.groups()[1:]))) if match else (text, "")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_captions_parse_back(handmade: tuple[Concept, ...], language: str) -> None:
    tell, parse = (english, parse_english) if language == "en" else (chinese, parse_chinese)
    grounds = 0
    for index, scene in enumerate(scenes(handmade)):
        text = tell(scene, np.random.default_rng(index))
        colour, size, relation, names = parse(text)
        assert colour in ("", scene.colour), text
        assert (size, relation) == (scene.size_word, scene.relation), text
        assert names == [getattr(placed.concept, language)[0] for placed in scene.objects], text
        grounds += colour != ""
    assert 0.6 < grounds / SCENES < 0.73  # two of three name the ground


def test_templates_vary(handmade: tuple[Concept, ...]) -> None:
    one = next(scene for scene in scenes(handmade) if len(scene.objects) == 1 and scene.size_word)
    two = next(scene for scene in scenes(handmade) if len(scene.objects) == 2)
    for scene, least in ((one, 5), (two, 6)):
        for tell in (english, chinese):
            assert len({tell(scene, np.random.default_rng(seed)) for seed in range(60)}) >= least


def test_four_captions_of_ten_are_chinese(handmade: tuple[Concept, ...]) -> None:
    scene = scene_at(handmade, 0, 0)
    told = [caption(scene, np.random.default_rng(seed)) for seed in range(400)]
    assert 0.33 < sum(not text.isascii() for text in told) / len(told) < 0.47


def test_a_caption_depends_on_seed_index_and_variant_alone(handmade: tuple[Concept, ...]) -> None:
    told = [scene_caption(handmade, 3, 8, variant) for variant in range(12)]
    assert told == [scene_caption(handmade, 3, 8, variant) for variant in range(12)]
    assert len(set(told)) > 4


def test_measure_words(handmade: tuple[Concept, ...]) -> None:
    measures = {concept.en[0]: measure(concept) for concept in handmade}
    assert measures["bear"] == "只"
    assert measures["car"] == "辆"
    assert measures["umbrella"] == "个"


def test_every_english_name_takes_its_article(everything: tuple[Concept, ...]) -> None:
    for name in (name for concept in everything for name in concept.en):
        assert re.fullmatch(rf"(an? )?{re.escape(name)}", with_article(name))


def test_the_stream_of_captions_stays(handmade: tuple[Concept, ...]) -> None:
    """A changed caption would change the vocabulary that a resumed run learns, and so its meaning."""
    assert [scene_caption(handmade, 2, index) for index in range(8)] == [
        "saxophone, black background",
        "绿色背景上的熊在郁金香旁边",
        "一只小独角兽",
        "熊，白色背景",
        "large grapes, black background",
        "灰色背景上的一个大葡萄",
        "a large car",
        "a picture of corn on a pink background",
    ]


def test_where_only_the_default_ground_is_left_out_every_other_is_told(handmade: tuple[Concept, ...]) -> None:
    rng = np.random.default_rng(0)
    shown = [scene_at(handmade, 9, index, default_share=0.5) for index in range(SCENES)]
    for tell, word in ((english, "background"), (chinese, "背景")):
        told = {scene: word in tell(scene, rng, DEFAULT_ONLY) for scene in shown}
        assert all(named for scene, named in told.items() if scene.colour != DEFAULT_GROUND)
        default = [named for scene, named in told.items() if scene.colour == DEFAULT_GROUND]
        assert 0.4 < sum(default) / len(default) < 0.6
