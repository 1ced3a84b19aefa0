"""Do new words become tokens, without changing how old texts are read?"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from reverie.models.clip import TextTower
from reverie.tokenizer import Tokenizer
from reverie.train.vocabulary import extend, grow_

CAPTIONS = ["jazz saxophone, slow", "slow saxophone and drums", "放克贝斯，慢速", "爵士萨克斯，慢速", "jazz drums"] * 2


@pytest.fixture
def extended(tokenizer: Tokenizer) -> Tokenizer:
    return extend(tokenizer, CAPTIONS, 200)


def test_frequent_words_become_one_token(tokenizer: Tokenizer, extended: Tokenizer) -> None:
    for word in ("saxophone", "jazz", "slow", "drums", "慢速"):
        assert len(tokenizer.encode(word)) > len(extended.encode(word)) == 1
    assert extend(tokenizer, CAPTIONS, 200).vocab == extended.vocab


def test_at_most_so_many_tokens_are_added(tokenizer: Tokenizer) -> None:
    for count in (0, 1, 7):
        assert len(extend(tokenizer, CAPTIONS, count)) == len(tokenizer) + count
    assert len(extend(tokenizer, ["seldom"], 50)) == len(tokenizer)  # seen once


def test_old_tokens_keep_their_ids_and_the_special_ones_stay_last(tokenizer: Tokenizer, extended: Tokenizer) -> None:
    special = {tokenizer.bos, tokenizer.eos}
    assert all(extended.vocab[token] == index for token, index in tokenizer.vocab.items() if token not in special)
    assert [extended.bos_id, extended.eos_id] == [len(extended) - 2, len(extended) - 1]
    assert extended.pad_id == extended.eos_id
    assert extended.encode("a bear on a blue background") == tokenizer.encode("a bear on a blue background")
    assert extended.length == tokenizer.length


def test_new_tokens_begin_as_the_mean_of_their_pieces(
    tokenizer: Tokenizer, extended: Tokenizer, make_tower: Callable[[type[TextTower]], TextTower]
) -> None:
    tower = make_tower(TextTower)
    before = tower.text_model.embeddings.token_embedding.weight.detach().clone()
    texts = ["a bear on a blue background", ""]
    expected = tower(tokenizer(texts))
    grow_(tower, tokenizer, extended)
    after = tower.text_model.embeddings.token_embedding.weight
    assert after.requires_grad
    assert len(after) == len(extended) == tower.config.vocab_size
    for word in ("saxophone", "慢速"):
        pieces = before[tokenizer.encode(word)]
        torch.testing.assert_close(after[extended.encode(word)[0]], pieces.mean(0))
    found = tower(extended(texts))
    assert torch.equal(found.last, expected.last)
    assert torch.equal(found.pooled, expected.pooled)  # the end token has another id and is found
