"""How a scene is told in words, in English and in Chinese, by varied templates."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from reverie.corpora.concepts import Concept
from reverie.corpora.scenes import COLOURS, DEFAULT_GROUND, Scene, scene_at

BARE = 3  # one caption in so many leaves the ground out
DEFAULT_ONLY = 0  # in place of such a number: grounds are told, but for the default one, by half the captions
SIZE_WORDS_ZH = {"small": "小", "large": "大", "": ""}

# Words that, at the head of an English name, take no article: substances, pursuits, states and proper names.
NO_ARTICLE = frozenset(
    """bacon beer blood bread broccoli butter coffee corn garlic hair ice milk money oden popcorn rice sake salt soap
    spaghetti sushi thread wine wood yarn earth fire fog lightning badminton bowling breast-feeding camping construction
    cooking dna hockey lacrosse people pong racing tennis locked bald dizzy foggy prohibited radioactive unlocked ZZZ
    Aries Taurus Gemini Cancer Leo Virgo Libra Scorpio Sagittarius Capricorn Aquarius Pisces Ophiuchus Claus""".split()  # noqa: SIM905
)
SINGULAR_IN_S = ("ss", "us", "is", "ros")  # a compass, a bus; other names that end in "s" are plural
CONSONANT_SOUND, VOWEL_SOUND = ("uni", "ewe", "euro", "one-"), ("hour", "x-ray")
HEAD_END = re.compile(r":| (with|without|and|of|on|in|at|over|behind|showing|holding|lifting|up)\b")

MEASURES_ZH = {  # Chinese measure word by CLDR label; the rest take 个
    "animal-mammal": "只",
    "animal-bird": "只",
    "animal-amphibian": "只",
    "animal-reptile": "只",
    "animal-marine": "只",
    "animal-bug": "只",
    "plant-flower": "朵",
    "plant-other": "棵",
    "transport-ground": "辆",
    "transport-air": "架",
    "transport-water": "艘",
    "musical-instrument": "把",
    "tool": "把",
    "clothing": "件",
}


def with_article(noun: str) -> str:
    """Put the indefinite article before a name, where English has one: "an apple", "a cut of meat", "grapes"."""
    head = HEAD_END.split(noun)[0].split()[-1]
    plural = head.endswith("s") and not head.endswith(SINGULAR_IN_S)
    if plural or head in NO_ARTICLE or noun.startswith("no "):
        return noun
    vowel = (noun[0].lower() in "aeiou" and not noun.startswith(CONSONANT_SOUND)) or noun.startswith(VOWEL_SOUND)
    return f"{'an' if vowel else 'a'} {noun}"


def english(scene: Scene, rng: np.random.Generator, bare: int = BARE) -> str:
    """Tell a scene in English; one caption in `bare` leaves the ground out, see `tells_ground`."""
    names = [_pick(placed.concept.en, rng) for placed in scene.objects]
    ground = f" on {with_article(scene.colour)} background" if tells_ground(scene, rng, bare) else ""
    if len(names) == 1:
        noun = " ".join(filter(None, (scene.size_word, scene.tint, names[0])))
        article = with_article(names[0])
        noun_phrase = noun if article == names[0] else with_article(noun)
        form = rng.integers(6)
        if form == 0:
            return f"{noun}, {scene.colour} background" if ground else noun
        return (f"a picture of {noun_phrase}" if form == 1 else noun_phrase) + ground
    first, second = (with_article(name) for name in names)
    if scene.relation == "beside":
        forms = (f"{first} next to {second}", f"{first} and {second}", f"{first} to the left of {second}")
    else:
        forms = (f"{first} above {second}", f"{second} below {first}", f"{first} on top of {second}")
    return forms[rng.integers(3)] + ground


def chinese(scene: Scene, rng: np.random.Generator, bare: int = BARE) -> str:
    """Tell a scene in Chinese; one caption in `bare` leaves the ground out, see `tells_ground`."""
    names = [_pick(placed.concept.zh, rng) for placed in scene.objects]
    ground = f"{COLOURS[scene.colour][0]}背景上的" if tells_ground(scene, rng, bare) else ""
    if len(names) == 1:
        tint = COLOURS[scene.tint][0] if scene.tint else ""
        noun = SIZE_WORDS_ZH[scene.size_word] + tint + names[0]
        counted = "一" + measure(scene.objects[0].concept) + noun
        form = rng.integers(4)
        if form == 0:
            return f"{noun}，{COLOURS[scene.colour][0]}背景" if ground else noun
        return ground + (noun if form == 1 else counted)
    first, second = names
    if scene.relation == "beside":
        forms = (f"{first}和{second}", f"{first}在{second}旁边", f"{first}在{second}左边")
    else:
        forms = (f"{first}在{second}上面", f"{second}在{first}下面", f"{first}在{second}上方")
    return ground + forms[rng.integers(3)]


def plain(scene: Scene) -> str:
    """Tell all of a scene that a caption can tell, always in the same words: its things by their first names."""
    names = [placed.concept.en[0] for placed in scene.objects]
    if len(names) == 1:
        return f"{' '.join(filter(None, (scene.size_word, scene.tint, *names)))}, {scene.colour} background"
    between = " next to " if scene.relation == "beside" else " above "
    return f"{between.join(map(with_article, names))} on {with_article(scene.colour)} background"


def caption(scene: Scene, rng: np.random.Generator, chinese_share: float = 0.4, bare: int = BARE) -> str:
    """Tell a scene in one of the two languages."""
    tell = chinese if rng.random() < chinese_share else english
    return tell(scene, rng, bare)


def scene_caption(things: Sequence[Concept], seed: int, index: int, variant: int = 0) -> str:
    """Tell scene `index` of the stream `seed` in words; every `variant` tells it anew."""
    return caption(scene_at(things, seed, index), telling(seed, index, variant))


def telling(seed: int, index: int, variant: int = 0) -> np.random.Generator:
    """Return the random numbers that choose the words for scene `index` of the stream `seed`."""
    return np.random.default_rng((seed, index, 2, variant))


def measure(concept: Concept) -> str:
    """Return the Chinese measure word of a concept."""
    return MEASURES_ZH.get(concept.label, "个")


def tells_ground(scene: Scene, rng: np.random.Generator, bare: int = BARE) -> bool:
    """Choose whether a caption names the ground: all but one in `bare` do, or by `DEFAULT_ONLY`."""
    if bare == DEFAULT_ONLY:
        return scene.colour != DEFAULT_GROUND or rng.random() < 0.5
    return bool(rng.integers(bare))


def _pick(names: tuple[str, ...], rng: np.random.Generator) -> str:
    return names[rng.integers(len(names))]
