"""Concepts for the tests of the corpus."""

from __future__ import annotations

import pytest

from reverie.corpora.concepts import Concept


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
