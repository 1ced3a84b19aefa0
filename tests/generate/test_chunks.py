"""Are long prompts cut where A1111 cuts them? Token by token, by hand."""

from __future__ import annotations

import pytest
import torch

from reverie.errors import ReverieError
from reverie.generate.conditioning import Chunk, split
from reverie.generate.prompt import weigh
from reverie.tokenizer import Tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def letters() -> Tokenizer:
    """Give a tokenizer of CLIP's length, to which every letter that stands alone is one token."""
    return Tokenizer.train([" ".join(LETTERS)], 514, length=77)


def texts(prompt: str, tokenizer: Tokenizer) -> list[str]:
    """Return the letters of each chunk."""
    names = {tokenizer.vocab[f"{letter}</w>"]: letter for letter in LETTERS + ","}
    return ["".join(names[token] for token in chunk.ids) for chunk in split(weigh(prompt), tokenizer, {})]


def spaced(text: str) -> str:
    return " ".join(text)


def test_a_prompt_that_fits_is_the_tokenizers_row(letters: Tokenizer) -> None:
    for prompt in ("a b, c", "", spaced("z" * 75)):
        (chunk,) = split(weigh(prompt), letters, {})
        assert chunk.row(letters).equal(letters([prompt]))
        assert chunk.multipliers(letters).eq(1).all()
    padded = Tokenizer(letters.vocab, letters.merges, length=77, pad="!</w>")
    (chunk,) = split(weigh("a b"), padded, {})
    assert chunk.row(padded).equal(padded(["a b"]))
    assert Chunk().row(padded).equal(padded([""]))


def test_weights_stand_at_their_tokens(letters: Tokenizer) -> None:
    (chunk,) = split(weigh("a (b c:1.5) [d]"), letters, {})
    wanted = torch.ones(77)
    wanted[2:4], wanted[4] = 1.5, 1 / 1.1
    torch.testing.assert_close(chunk.multipliers(letters)[:, 0], wanted)


def test_long_prompts_are_cut_into_chunks_of_75(letters: Tokenizer) -> None:
    assert texts(spaced("a" * 75), letters) == ["a" * 75]
    assert texts(spaced("a" * 76), letters) == ["a" * 75, "a"]
    assert texts(spaced("a" * 75 + "b" * 75 + "c"), letters) == ["a" * 75, "b" * 75, "c"]


@pytest.mark.parametrize(
    ("prompt", "chunks"),
    [
        # The comma is the 56th token, the 20th from the end: what follows it moves on.
        ("a" * 55 + "," + "b" * 19 + "c", ["a" * 55 + ",", "b" * 19 + "c"]),
        # One further away it is too far.
        ("a" * 54 + "," + "b" * 20 + "c", ["a" * 54 + "," + "b" * 20, "c"]),
        # The last of several counts.
        ("a" * 60 + "," + "b" * 5 + "," + "c" * 8 + "d", ["a" * 60 + "," + "b" * 5 + ",", "c" * 8 + "d"]),
        # A comma at the very end of a chunk moves nothing, nor does one that comes when the chunk is full.
        ("a" * 74 + "," + "b", ["a" * 74 + ",", "b"]),
        ("a" * 70 + "," + "b" * 4 + ",c", ["a" * 70 + "," + "b" * 4, ",c"]),
        # A prompt that fits is not cut at its comma.
        ("a" * 70 + "," + "b" * 4, ["a" * 70 + "," + "b" * 4]),
    ],
)
def test_full_chunks_end_after_a_comma(letters: Tokenizer, prompt: str, chunks: list[str]) -> None:
    assert texts(spaced(prompt), letters) == chunks


def test_weights_move_with_their_tokens(letters: Tokenizer) -> None:
    prompt = f"{spaced('a' * 70 + ',')} ({spaced('b' * 8)}:1.5) c"
    first, second = split(weigh(prompt), letters, {})
    assert (len(first.ids), len(second.ids)) == (71, 9)
    assert first.weights == (1.0,) * 71
    assert second.weights == (1.5,) * 8 + (1.0,)


def test_break_begins_a_chunk(letters: Tokenizer) -> None:
    assert texts("a b BREAK c", letters) == ["ab", "c"]
    assert texts("a BREAK", letters) == ["a"]
    assert texts("BREAK a", letters) == ["", "a"]
    assert texts("a BREAK BREAK b", letters) == ["a", "", "b"]


def test_the_vectors_of_a_word_stay_together(letters: Tokenizer) -> None:
    a, x = letters.vocab["a</w>"], letters.vocab["x</w>"]
    vectors = tuple(range(1000, 1010))
    words = {x: [((x,), vectors)]}
    first, second = split(weigh(spaced("a" * 70 + "x")), letters, words)
    assert (first.ids, second.ids) == ((a,) * 70, vectors)
    (only,) = split(weigh(spaced("a" * 65 + "x")), letters, words)
    assert only.ids == (a,) * 65 + vectors
    with pytest.raises(ReverieError, match=r"^a textual inversion of 80 vectors does not fit the context of 75 tokens"):
        split(weigh("x"), letters, {x: [((x,), tuple(range(80)))]})


def test_a_small_context_has_small_chunks(tokenizer: Tokenizer) -> None:
    """The bundled model's context is shorter than CLIP's; the tiny one's has ten tokens beside start and end."""
    rows = split(weigh("a bear next to a bear on a blue background next to a bear"), tokenizer, {})
    assert [len(row.ids) for row in rows[:-1]] == [tokenizer.length - 2] * (len(rows) - 1)
    ids = [token for row in rows for token in row.ids]
    assert ids == tokenizer.encode("a bear next to a bear on a blue background next to a bear")
