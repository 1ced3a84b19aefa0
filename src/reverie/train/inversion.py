"""Training of textual inversions: the embeddings of one new word learn, and nothing else (Gal et al. 2208.01618)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import PositiveInt
from torch import Tensor, nn

from reverie.adapters.inversion import ENCODERS, Words
from reverie.checkpoints.save import write_tensors
from reverie.errors import ReverieError
from reverie.generate.conditioning import split
from reverie.generate.prompt import Piece
from reverie.models.clip import TextTower
from reverie.tokenizer import Tokenizer
from reverie.train.recipe import section


@dataclass(frozen=True)
class InversionSettings:
    """Choose a word and how many vectors stand for it; without [inversion] in a recipe no word is learned so."""

    word: str = ""
    vectors: PositiveInt = 1
    start: str = ""  # known words, whose embeddings the vectors begin as, in turn

    def __post_init__(self) -> None:
        """Raise ReverieError for what cannot be a word, or a file's name."""
        if self.word != "".join(self.word.split()) or set(self.word) & set('/\\:<>|"?*'):
            raise ReverieError(f"word = {self.word!r} in [inversion] of the recipe cannot name a file; give 'my-dog'")


def settings_of(sections: dict[str, Any]) -> InversionSettings:
    """Read a recipe's [inversion]; its word is "" where there is none. Raises ReverieError where one is left out."""
    settings = section(sections, "inversion", InversionSettings)
    if "inversion" in sections and not (settings.word and settings.start.strip()):
        raise ReverieError("[inversion] of the recipe needs a word such as 'my-dog', and start = 'dog', a known one")
    return settings


class LearnedEmbedding(nn.Embedding):
    """A frozen table of embeddings, and learned vectors, whose tokens are numbered on from its last."""

    def __init__(self, table: Float[Tensor, "n d"], vectors: Float[Tensor, "v d"]) -> None:
        super().__init__(len(table), table.shape[1], _weight=table)
        self.weight.requires_grad_(False)
        self.vectors = nn.Parameter(vectors)

    def forward(self, tokens: Int64[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        """Look up tokens."""
        first = len(self.weight)
        known = F.embedding(tokens.clamp(max=first - 1), self.weight)
        learned = F.embedding((tokens - first).clamp(0, len(self.vectors) - 1), self.vectors)
        return torch.where(tokens[..., None] < first, known, learned)


def install(
    towers: Sequence[TextTower], tokenizers: Sequence[Tokenizer], settings: InversionSettings
) -> nn.ParameterList:
    """Give text towers the vectors of a new word, which begin as the embeddings of `start`; return the vectors."""
    learned = nn.ParameterList()
    for tower, tokenizer in zip(towers, tokenizers, strict=True):
        embeddings = tower.text_model.embeddings
        table, ids = embeddings.token_embedding.weight, tokenizer.encode(settings.start)
        rows = [ids[number % len(ids)] for number in range(settings.vectors)]
        embeddings.token_embedding = LearnedEmbedding(table.detach(), table.detach()[rows].clone())
        learned.append(embeddings.token_embedding.vectors)
    return learned


def encode(
    captions: Sequence[str], tower: TextTower, tokenizer: Tokenizer, settings: InversionSettings
) -> Int64[Tensor, "b l"]:
    """Return the tokens of captions, as they are drawn with; those that are too long lose their tail.

    The tokens that stand for the word are numbered on from the table.
    """
    ids, first = tuple(tokenizer.encode(settings.word)), len(tower.text_model.embeddings.token_embedding.weight)
    words: Words = {ids[0]: [(ids, tuple(range(first, first + settings.vectors)))]}
    return torch.cat([split([[Piece(caption, 1.0)]], tokenizer, words)[0].row(tokenizer) for caption in captions])


def check_captions(
    captions: Sequence[str], tower: TextTower, tokenizer: Tokenizer, settings: InversionSettings
) -> None:
    """Raise ReverieError where no caption says the word among the tokens that are read."""
    if encode(captions, tower, tokenizer, settings).max() < len(tower.text_model.embeddings.token_embedding.weight):
        raise ReverieError(
            f"none of {len(captions)} captions says '{settings.word}' in the {tokenizer.length - 2} tokens that are "
            f"read; write it into them, or give caption = 'a photo of {settings.word}' in [data]"
        )


def save(vectors: Iterable[Tensor], word: str, file: Path) -> None:
    """Write an inversion: {word: vectors}, which A1111, ComfyUI and diffusers read; SDXL's as `clip_l` and `clip_g`.

    Source: AUTOMATIC1111 1.10, modules/textual_inversion/textual_inversion.py; diffusers 0.42, its loader.
    """
    tables = list(vectors)
    write_tensors(dict(zip(ENCODERS, tables, strict=True)) if len(tables) > 1 else {word: tables[0]}, file)
