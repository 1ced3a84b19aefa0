"""Does A1111's syntax mean what A1111 takes it for? Weights worked by hand, and any text without an error."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reverie.generate.prompt import Part, parts, weigh

UP, DOWN = 1.1, 1 / 1.1


def flat(text: str) -> list[tuple[str, float]]:
    """Return the pieces of a text without BREAK, empty ones left out."""
    (section,) = weigh(text)
    return [(piece.text, piece.weight) for piece in section if piece.text]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a plain prompt", [("a plain prompt", 1)]),
        ("an (important) word", [("an ", 1), ("important", UP), (" word", 1)]),
        ("((very)) red", [("very", UP**2), (" red", 1)]),
        ("[dull] red", [("dull", DOWN), (" red", 1)]),
        ("[[dull]]", [("dull", DOWN**2)]),
        ("(red:1.3) bear", [("red", 1.3), (" bear", 1)]),
        ("(red: 1.3 ) bear", [("red", 1.3), (" bear", 1)]),
        ("(red:.5)(bear:-1)", [("red", 0.5), ("bear", -1)]),
        ("(a (b:2) c:3)", [("a ", 3), ("b", 6), (" c", 3)]),
        ("([a])", [("a", UP * DOWN)]),
        (r"\(a\) \[b\] \\", [(r"(a) [b] " + "\\", 1)]),
        (r"(a\):1.5)", [("a)", 1.5)]),
        ("(a)(b)", [("ab", UP)]),
        ("(open", [("open", UP)]),
        ("[open", [("open", DOWN)]),
        ("shut) and] on", [("shut) and] on", 1)]),
        ("a:1.2)", [("a:1.2)", 1)]),
        ("(a:b)", [("a:b", UP)]),
        ("(a:1.2.3)", [("a:1.2.3", UP)]),
        ("(a", [("a", UP)]),
        ("()", []),
        ("", []),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1),
                ("house", 1.3 * UP**2),
                (" ", UP),
                ("on", 1),
                (" a ", UP),
                ("hill", 0.5 * UP),
                (", sun, ", UP),
                ("sky", UP**4),
                (".", UP),
            ],
        ),
    ],
)
def test_brackets_weigh(text: str, pieces: list[tuple[str, float]]) -> None:
    got = flat(text)
    assert [words for words, _ in got] == [words for words, _ in pieces]
    assert all(math.isclose(got[1], want[1]) for got, want in zip(got, pieces, strict=True))


def test_break_separates_sections() -> None:
    assert weigh("a BREAK b") == ((("a", 1),), (("b", 1),))
    assert [len(section) for section in weigh("BREAK a")] == [1, 1]
    assert len(weigh("a BREAK BREAK b")) == 3
    assert len(weigh("BREAKFAST break")) == 1
    one, two = weigh("(a BREAK b:1.5)")
    assert (one, two) == ((("a", 1.5),), (("b", 1.5),))


def test_and_joins_parts_with_weights() -> None:
    assert parts("a bear AND the sea :1.2 AND  x: -0.5 ") == (
        Part("a bear", 1),
        Part(" the sea", 1.2),
        Part("  x", -0.5),
    )
    assert parts("a bear") == (Part("a bear", 1),)
    assert parts("sand ANDY") == (Part("sand ANDY", 1),)
    assert parts("") == (Part("", 1),)
    assert parts("(a:1.2)") == (Part("(a:1.2)", 1),)
    assert parts("a :x") == (Part("a :x", 1),)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab ()[]:|\\.1,<>-BREAKND\n", max_size=40))
def test_any_text_has_a_meaning(text: str) -> None:
    for part in parts(text):
        assert math.isfinite(part.weight)
        for section in weigh(part.text):
            for piece in section:
                assert math.isfinite(piece.weight)
                assert set(piece.text) <= set(part.text)


def test_deep_brackets_take_no_time() -> None:
    assert flat("(" * 2000 + "a" + ")" * 2000)[0][0] == "a"
    (pieces,) = weigh("(a" * 10_000 + ")" * 10_000)
    assert "".join(piece.text for piece in pieces) == "a" * 10_000
    assert [piece.weight for piece in weigh("(" * 500 + "a" + ")" * 500)[0]] == [pytest.approx(1.1**100)]
