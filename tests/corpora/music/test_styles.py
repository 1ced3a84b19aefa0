"""Are patterns read as they are written, and do all styles keep the pulse?"""

from __future__ import annotations

import pytest

from reverie.corpora.music.instruments import BASSES, INSTRUMENTS
from reverie.corpora.music.styles import STRAIGHT, STYLES, SWUNG, DrumHit, Style, hits


def test_sixteenths() -> None:
    assert hits("X--.x.-.1...8---", 4, STRAIGHT) == [
        DrumHit(0.0, 0.75, "X"),
        DrumHit(1.0, 0.25, "x"),
        DrumHit(2.0, 0.25, "1"),
        DrumHit(3.0, 1.0, "8"),
    ]


def test_swung_eighths() -> None:
    found = hits("XxX-.x", 3, SWUNG)
    assert [hit.start for hit in found] == pytest.approx([0, 2 / 3, 1, 2 + 2 / 3])
    assert [hit.length for hit in found] == pytest.approx([2 / 3, 1 / 3, 1, 1 / 3])


def test_sixteenths_do_not_swing() -> None:
    assert [hit.start for hit in hits("xxxx", 1, SWUNG)] == [0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("style", STYLES.values(), ids=list(STYLES))
def test_styles_keep_the_pulse(style: Style) -> None:
    patterns = [*style.drums.values(), *style.bass, style.chords, *style.melody]
    assert all(len(pattern) in (2 * style.metre, 4 * style.metre) for pattern in patterns)
    beats = set(map(float, range(style.metre)))
    for pattern in (*style.bass, *style.melody):
        assert beats <= {hit.start for hit in hits(pattern, style.metre, style.feel)}
    assert all(hit.sign in "1358" for pattern in style.bass for hit in hits(pattern, style.metre, style.feel))
    assert all(hit.sign in "Xx" for pattern in style.melody for hit in hits(pattern, style.metre, style.feel))
    assert set(style.comping) | set(style.basses) <= set(INSTRUMENTS)
    assert len(style.comping) > 1  # one is left where the other leads
    assert len(style.basses) > 1


def test_there_is_enough_to_choose_from() -> None:
    assert len(INSTRUMENTS) >= 30
    assert len(STYLES) == 8
    assert len({it.program for it in INSTRUMENTS.values()}) == len(INSTRUMENTS)
    for names in (
        [name for it in INSTRUMENTS.values() for name in it.en],
        [name for it in INSTRUMENTS.values() for name in it.zh],
    ):
        assert len(set(names)) == len(names)
    assert all(12 <= it.high - it.low <= 24 for it in INSTRUMENTS.values())  # one to two octaves
    assert set(BASSES) <= set(INSTRUMENTS)
