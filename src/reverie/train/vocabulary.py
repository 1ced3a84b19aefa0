"""Growth of a text encoder's vocabulary: each new token begins as the mean of its pieces.

Byte-pair encoding (Sennrich et al. 2016) goes on where it stopped: the most frequent pair of neighbours in the new
captions becomes a token, again and again. The old tokens keep their embeddings, and new merges come after the old ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise

import torch
from torch import nn

from reverie.models.clip import TextTower
from reverie.tokenizer import END_OF_WORD, Tokenizer

Word = tuple[str, ...]
RARE = 2  # a pair that is seen less often is not merged, as in `Tokenizer.train`


def extend(tokenizer: Tokenizer, captions: Iterable[str], count: int) -> Tokenizer:
    """Return a tokenizer with up to `count` more tokens, learned from captions; start and end stay the last two."""
    words = Counter(_words(tokenizer, captions))
    vocab, merges = dict.fromkeys(sorted(tokenizer.vocab, key=tokenizer.vocab.__getitem__)), list(tokenizer.merges)
    for end in (tokenizer.bos, tokenizer.eos):
        del vocab[end]
    size = len(vocab) + count
    while len(vocab) < size and (pair := _most_frequent(words)):
        merges.append(pair)
        vocab["".join(pair)] = None
        words = _merge(words, pair)
    ids = {token: index for index, token in enumerate([*vocab, tokenizer.bos, tokenizer.eos])}
    special = {"bos": tokenizer.bos, "eos": tokenizer.eos, "pad": tokenizer.pad}
    return Tokenizer(ids, merges, length=tokenizer.length, **special)


@torch.no_grad()
def grow_(tower: TextTower, old: Tokenizer, new: Tokenizer) -> None:
    """Give a text tower of the tokenizer `old` the embeddings of `new`, which extends it."""
    spelled: dict[str, Word] = {}
    for left, right in new.merges[len(old.merges) :]:
        spelled[left + right] = spelled.get(left, (left,)) + spelled.get(right, (right,))
    embeddings = tower.text_model.embeddings
    before = embeddings.token_embedding.weight
    rows = []
    for token in sorted(new.vocab, key=new.vocab.__getitem__):
        pieces = (token,) if token in old.vocab else spelled[token]
        rows.append(before[[old.vocab[piece] for piece in pieces]].mean(0))
    embeddings.token_embedding = nn.Embedding.from_pretrained(torch.stack(rows), freeze=False)
    config = replace(tower.config, vocab_size=len(new), eos_token_id=new.eos_id)
    tower.config = tower.text_model.config = config


def _words(tokenizer: Tokenizer, captions: Iterable[str]) -> Iterator[Word]:
    """Yield the words of captions, each as its tokens; the last token of a word says so."""
    names = {index: token for token, index in tokenizer.vocab.items()}
    for caption in captions:
        word: list[str] = []
        for index in tokenizer.encode(caption):
            word.append(names[index])
            if word[-1].endswith(END_OF_WORD):
                yield tuple(word)
                word = []


def _most_frequent(words: Counter[Word]) -> tuple[str, str] | None:
    pairs: Counter[tuple[str, str]] = Counter()
    for word, count in words.items():
        for pair in pairwise(word):
            pairs[pair] += count
    best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
    return best if best is not None and pairs[best] >= RARE else None


def _merge(words: Counter[Word], pair: tuple[str, str]) -> Counter[Word]:
    """Write every word with the pair as one token."""
    merged: Counter[Word] = Counter()
    for word, count in words.items():
        pieces: list[str] = []
        for token in word:
            if pieces and (pieces[-1], token) == pair:
                pieces[-1] += token
            else:
                pieces.append(token)
        merged[tuple(pieces)] += count
    return merged
