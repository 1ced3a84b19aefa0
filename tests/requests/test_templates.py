"""Templates of prompts give, seed for seed, what the library of A1111's extension gives.

`DRAWN` is what dynamicprompts 0.31.0 drew: `RandomPromptGenerator(WildcardManager(folder)).generate(template, 4,
seeds=SEEDS)`, of a variable that is drawn once by a call for each seed.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from reverie.errors import ReverieError
from reverie.media.pictures import PARAMETERS
from reverie.requests.foreign.a1111 import split
from reverie.requests.parts import Variation
from reverie.requests.pictures import TextToImage
from reverie.requests.records import texts
from reverie.requests.templates import Wildcards, add_styles, draw_prompts, expand, read_styles

SEEDS = (0, 1, 7, 2**32 - 1)
NONE = Wildcards(None)
MANY = "9" * 5000  # more digits than Python reads
DOUBLING = "${a=}" + "".join(f"${{{b}=${{{a}}}${{{a}}}}}" for a, b in pairwise("abcdefghijklmnop")) + "${p}"
DRAWN = {
    "a {red|blue} bear": ["a blue bear", "a blue bear", "a blue bear", "a red bear"],
    "{0.7::a|b}": ["b", "b", "b", "a"],
    "{2$$a|b|c}": ["c,a", "b,c", "c,a", "a,c"],
    "{1-2$$ and $$a|b|c}": ["c and a", "b", "c and a", "a"],
    "{-2$$a|b|c}": ["c,a", "b", "c,a", "a"],
    "a { b |{c|d} e} f": ["a c e f", "a c e f", "a d e f", "a b  f"],
    "__animals__": ["red fox", "cat", "dog", "cat"],
    "{2$$__animals__}": ["blue fox,cat", "dog,red fox", "red fox,cat", "wren,dog"],
    "__*__ __**/b*__": ["owl wren", "cat owl", "dog owl", "red fox wren"],
    "__birds__": ["wren", "owl", "wren", "owl"],
    "${c={red|blue}}a ${c} and ${c}": ["a blue and red", "a blue and red", "a blue and blue", "a red and blue"],
    "${c=!{red|blue}}a ${c} and ${c}": ["a blue and blue", "a blue and blue", "a blue and blue", "a red and red"],
    "${c:green} {|[a|b]} (x:1.2)": ["green b] (x:1.2)", "green [a (x:1.2)", "green b] (x:1.2)", "green  (x:1.2)"],
    "{0-1$$a|b} 100": ["b 100", " 100", "b 100", " 100"],
}


@pytest.fixture
def wildcards(tmp_path: Path) -> Wildcards:
    (tmp_path / "sub").mkdir()
    (tmp_path / "animals.txt").write_text("cat\n# a comment\n\n dog \n{red|blue} fox\n__sub/birds__\n")
    (tmp_path / "sub/birds.txt").write_text("owl\nwren\n")
    return Wildcards(tmp_path)


@pytest.mark.parametrize("template", DRAWN)
def test_a_seed_gives_the_prompt_that_it_gives_there(template: str, wildcards: Wildcards) -> None:
    assert [expand(template, seed, wildcards) for seed in SEEDS] == DRAWN[template]


@pytest.mark.parametrize(
    "text", ["", "a bear", "a | b", "snow_man", "100% wool, 5$", "(a:1.2) [b|c] }", "a __ b", "_", MANY + "$$ b"]
)
def test_what_is_no_template_stays(text: str) -> None:
    assert expand(text, 0, NONE) == text


def test_weights_are_shares() -> None:
    drawn = Counter(expand("{3::a|b}", seed, NONE) for seed in range(2000))
    assert drawn["a"] / 2000 == pytest.approx(0.75, abs=0.03)  # three deviations


def test_options_are_taken_once_each_and_never_without_weight() -> None:
    for seed in range(50):
        assert sorted(expand("{3$$a|b|c}", seed, NONE).split(",")) == ["a", "b", "c"]
        assert expand("{9$$a|0::b}", seed, NONE) == "a"


def test_a_comment_is_left_out() -> None:
    assert expand("a bear # in oil\non ice", 0, NONE) == "a bear \non ice"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a {b|c", "'{b|c' is not closed"),
        ("${c={a|b} x", "is not closed"),
        ("a ${c}", r"nothing says what \$\{c\} stands for"),
        ("{@a|b}", "'@' asks for each in turn"),
        ("%{a $$ b}", "is not read"),
        ("{0::a|0::b}", "weighs nothing"),
        ("__none__", "no wildcard '__none__'; .* has animals, sub/birds"),
        ("__self__", "no wildcard"),
        ("${c=${c}}${c}", "names itself"),
        ("{" * 5000, "nested too deep"),
        (DOUBLING, "10000 times"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_a_line(template: str, message: str, wildcards: Wildcards) -> None:
    with pytest.raises(ReverieError, match=message):
        expand(template, 0, wildcards)


def test_wildcards_need_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ReverieError, match="give the folder of its file"):
        expand("__animals__", 0, NONE)
    with pytest.raises(ReverieError, match="no folder of wildcards"):
        Wildcards(tmp_path / "none")
    (tmp_path / "self.txt").write_text("a __self__")
    with pytest.raises(ReverieError, match="names itself"):
        expand("__self__", 0, Wildcards(tmp_path))


def test_each_picture_of_a_request_has_its_own_prompt_and_says_what_of() -> None:
    template = "a {red|blue} {cat|dog}"
    drawn = draw_prompts(TextToImage(prompt=template, negative="{x|y}", seed=5, count=20), NONE)
    assert [one.seed for one in drawn] == list(range(5, 25))
    assert {one.prompt for one in drawn} == {f"a {c} {a}" for c in ("red", "blue") for a in ("cat", "dog")}
    assert all((one.template, one.negative_template, one.count) == (template, "{x|y}", 1) for one in drawn)
    (alone,) = draw_prompts(TextToImage(prompt=template, negative="{x|y}", seed=8), NONE)
    assert alone == drawn[3]


def test_variations_of_a_seed_share_its_prompt() -> None:
    variation = Variation(seed=3, strength=0.2)
    drawn = draw_prompts(TextToImage(prompt="{a|b|c|d}", seed=5, count=8, variation=variation), NONE)
    assert len({one.prompt for one in drawn}) == 1


def test_a_prompt_without_syntax_keeps_no_template() -> None:
    plain = TextToImage(prompt="a bear", seed=5, count=3)
    assert draw_prompts(plain, NONE) == (plain,)


def test_styles_are_merged_as_a1111_merges_them(tmp_path: Path) -> None:
    """modules/styles.py of stable-diffusion-webui 1.10: merge_prompts; `text` is the prompt's column of old files."""
    file = tmp_path / "styles.csv"
    file.write_text(
        '\ufeffname,prompt,negative_prompt\nink,"{prompt}, in ink",oil\nold, old ,\n,x,y\n', encoding="utf-8"
    )
    styles = read_styles(file)
    assert list(styles) == ["ink", "old"]
    assert add_styles(["ink"], styles, "a bear", "") == {"prompt": "a bear, in ink", "negative": "oil"}
    assert add_styles(["old"], styles, " a bear ", " blur ") == {"prompt": "a bear, old", "negative": "blur"}
    file.write_text("name,text\nold,sepia\n")
    assert add_styles(["old"], read_styles(file), "", "") == {"prompt": "sepia", "negative": ""}
    for text in ("a,b\nc,d\n", "name,prompt\n\xff"):
        file.write_bytes(text.encode("latin-1"))
        with pytest.raises(ReverieError, match=r"styles.csv"):
            read_styles(file)


def test_a1111_reads_the_template_beside_the_prompt() -> None:
    (drawn,) = draw_prompts(TextToImage(prompt="a {red|blue} bear", seed=1, guidance=5, width=64, height=64), NONE)
    prompt, _, fields = split(texts(drawn, "m")[PARAMETERS])
    assert (prompt, fields["Template"]) == ("a blue bear", "a {red|blue} bear")
