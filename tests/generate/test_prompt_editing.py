"""Do prompts change at the steps where A1111 changes them? Schedules worked by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reverie.generate.prompt import final_words, schedule


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("a bear", [(10, "a bear")]),
        ("a [red:blue:0.5] bear", [(5, "a red bear"), (10, "a blue bear")]),
        ("a [red:blue:3] bear", [(3, "a red bear"), (10, "a blue bear")]),
        ("a [blue:3]", [(3, "a "), (10, "a blue")]),
        ("a [blue: 3 ]", [(3, "a "), (10, "a blue")]),
        ("a [red::0.3] bear", [(3, "a red bear"), (10, "a  bear")]),
        ("a [:blue:0.3]", [(3, "a "), (10, "a blue")]),
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
        ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
        ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
        ("a [b:c:0] d", [(10, "a c d")]),
        ("a [b:c:99] d", [(10, "a b d")]),
        ("[a|(b:1.1)]x", [(n, "ax" if n % 2 else "(b:1.1)x") for n in range(1, 11)]),
        ("[fe|]male", [(n, "female" if n % 2 else "male") for n in range(1, 11)]),
        ("[a|b|c]", [(n, "cab"[n % 3]) for n in range(1, 11)]),
        # What does not fit the grammar is text; edits beside and in it still hold.
        ("a [unbalanced", [(10, "a [unbalanced")]),
        ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
        ("[a:b:c:3]", [(10, "[a:b:c:3]")]),
        ("[a:b:soon]", [(10, "[a:b:soon]")]),
        ("(a:b:c) [d:3]", [(3, "(a:b:c) "), (10, "(a:b:c) d")]),
        ("[a|b:3]", [(10, "[a|b:3]")]),
        ("a | b [c:3]", [(10, "a | b [c:3]")]),
        (r"\[a:3\] [b:3]", [(3, r"\[a:3\] "), (10, r"\[a:3\] b")]),
        ("[a:3] \\", [(10, "[a:3] \\")]),
        ("", [(10, "")]),
    ],
)
def test_stages(text: str, stages: list[tuple[int, str]]) -> None:
    assert schedule(text, 10) == tuple(stages)


def test_the_second_pass_counts_on() -> None:
    """As A1111's hires fix: fractions from 1 to 2 and steps beyond the first pass belong to the second."""
    assert schedule("a [b:.5] c", 10, after=10) == ((10, "a b c"),)
    assert schedule("a [b:1.5] c", 10, after=10) == ((5, "a  c"), (10, "a b c"))
    assert schedule("a [b:24]", 10, after=20) == ((4, "a "), (10, "a b"))
    assert schedule("a [b:.5] c", 10) == ((5, "a  c"), (10, "a b c"))


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab ()[]:|\\.12-e\n", max_size=40), st.integers(1, 5), st.sampled_from([None, 3]))
def test_any_text_has_stages(text: str, steps: int, after: int | None) -> None:
    stages = schedule(text, steps, after)
    ends = [stage.until for stage in stages]
    assert ends == sorted(set(ends))
    assert ends[-1] == steps
    assert min(ends) >= 1


@pytest.mark.parametrize(
    "text", ["[" * 5000, "(" * 3000 + ")" * 3000, "[" * 2000 + ":1]" * 2000, "[a|" * 2000 + "]" * 2000]
)
def test_any_depth_is_read(text: str) -> None:
    assert schedule(text, 2)[-1].until == 2


def test_deep_edits_are_text() -> None:
    deep = "[" * 40 + "a" + ":1]" * 40
    assert schedule(deep, 2) == ((1, ""), (2, "a"))
    deeper = "[" * 99 + "a" + ":1]" * 99
    assert schedule(deeper, 2)[-1].text.startswith("[[[")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a bear", "a bear"),
        ("a (red:1.2) bear, [dim] <lora:style:0.5>", "a red bear, dim"),
        ("a [cat:dog:0.5] BREAK on grass", "a dog on grass"),
        ("a bear :1.2 AND a hat AND rain :-1", "a bear a hat"),
        ("  <lora:style:1> ", ""),
    ],
)
def test_what_a_prompt_says_in_the_end(text: str, words: str) -> None:
    assert final_words(text, 10) == words
