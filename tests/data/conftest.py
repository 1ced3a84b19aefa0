"""Concepts for the tests of the corpus: a few made by hand, and the real ones where Debian's packages are installed."""

from __future__ import annotations

import pytest

from reverie.data.concepts import CLDR, Concept, concepts
from reverie.data.scenes import FONT


@pytest.fixture(scope="session")
def handmade() -> tuple[Concept, ...]:
    """Give concepts that need neither font nor names on disk, enough for every held-out kind of pair to occur."""
    names = (
        ("🐻", "animal-mammal", "bear", "熊"),
        ("🍎", "food-fruit", "apple", "苹果"),
        ("🦉", "animal-bird", "owl", "猫头鹰"),
        ("🍇", "food-fruit", "grapes", "葡萄"),
        ("🎷", "musical-instrument", "saxophone", "萨克斯管"),
        ("🚗", "transport-ground", "car", "汽车"),
        ("☂", "sky & weather", "umbrella", "雨伞"),
        ("🌽", "food-vegetable", "corn", "玉米"),
        ("🦄", "animal-mammal", "unicorn", "独角兽"),
        ("🌷", "plant-flower", "tulip", "郁金香"),
    )
    return tuple(Concept(emoji, label, (en,), (zh,)) for emoji, label, en, zh in names)


@pytest.fixture(scope="session")
def cldr() -> None:
    """Skip where Unicode's names are not installed."""
    if not CLDR.is_dir():
        pytest.skip("needs the names of Debian's unicode-cldr-core")


@pytest.fixture(scope="session")
def font() -> None:
    """Skip where the emoji font is not installed."""
    if not FONT.is_file():
        pytest.skip("needs the font of Debian's fonts-noto-color-emoji")


@pytest.fixture(scope="session")
def everything(cldr: None) -> tuple[Concept, ...]:
    """Give all concepts of the corpus."""
    return concepts("all")
