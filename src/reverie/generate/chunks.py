"""How do weighted pieces of text become rows of tokens? In chunks, cut where AUTOMATIC1111 cuts them.

Source of the facts: AUTOMATIC1111/stable-diffusion-webui 1.10, modules/sd_hijack_clip.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from reverie.adapters.inversion import Words
from reverie.errors import ReverieError
from reverie.generate.prompt import Piece
from reverie.tokenizer import END_OF_WORD, Tokenizer

BACKTRACK = 20  # a full chunk ends after a comma among its last so many tokens

Unit = list[tuple[int, float]]
"""Tokens that stay together, with their weights: one token, or all the vectors of a textual inversion."""


class Chunk(NamedTuple):
    """Hold the tokens of one pass through a text tower, without start, end and padding, and their weights."""

    ids: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()

    def row(self, tokenizer: Tokenizer) -> Int64[Tensor, "1 l"]:
        """Return the row of ids for the tower: start, tokens, end, padding."""
        row = torch.full((1, tokenizer.length), tokenizer.pad_id, dtype=torch.long)
        row[0, : len(self.ids) + 2] = torch.tensor([tokenizer.bos_id, *self.ids, tokenizer.eos_id])
        return row

    def multipliers(self, tokenizer: Tokenizer) -> Float[Tensor, "l 1"]:
        """Return the weights of a row's tokens; start, end and padding weigh 1."""
        row = torch.ones(tokenizer.length, 1)
        row[1 : len(self.weights) + 1, 0] = torch.tensor(self.weights)
        return row


def split(sections: Sequence[Sequence[Piece]], tokenizer: Tokenizer, words: Words) -> list[Chunk]:
    """Cut sections into chunks: at each section, and wherever a chunk is full.

    A full chunk gives what follows its last comma to the next one, unless that is more than BACKTRACK tokens. Raises
    ReverieError for a textual inversion that is longer than a chunk.
    """
    room, comma = tokenizer.length - 2, tokenizer.vocab.get("," + END_OF_WORD)
    done: list[Unit] = []
    current: Unit = []
    for number, pieces in enumerate(sections):
        if number:
            done.append(current)
            current = []
        for unit in _units(pieces, tokenizer, words):
            if len(current) + len(unit) > room:
                full = len(current) == room and unit[0][0] != comma
                kept = _kept(current, comma) if full else len(current)
                done.append(current[:kept])
                current = current[kept:]
            if len(current) + len(unit) > room:
                raise ReverieError(
                    f"a textual inversion of {len(unit)} vectors does not fit the context of {room} tokens"
                )
            current = current + unit
    if current or not done:
        done.append(current)
    return [Chunk(tuple(token for token, _ in unit), tuple(weight for _, weight in unit)) for unit in done]


def _kept(full: Unit, comma: int | None) -> int:
    """Count the tokens that a full chunk keeps."""
    for back in range(1, min(BACKTRACK, len(full) - 1) + 1):
        if full[-back][0] == comma:
            return len(full) - back + 1
    return len(full)


def _units(pieces: Sequence[Piece], tokenizer: Tokenizer, words: Words) -> Iterator[Unit]:
    """Yield the tokens of pieces of text, one by one, and the vectors in the place of a textual inversion's word."""
    for text, weight in pieces:
        ids, position = tuple(tokenizer.encode(text)), 0
        while position < len(ids):
            for word, vectors in words.get(ids[position], ()):
                if ids[position : position + len(word)] == word:
                    yield [(vector, weight) for vector in vectors]
                    position += len(word)
                    break
            else:
                yield [(ids[position], weight)]
                position += 1
