"""Is CLIP's vocabulary found wherever a user may have it, and asked for in one line where there is none?"""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers

from reverie.checkpoints import hub
from reverie.checkpoints.hub import MERGES, OPENAI, VARIABLE, find_tokenizer, read_tokenizer
from reverie.errors import ReverieError
from reverie.tokenizer import Tokenizer


@pytest.fixture(autouse=True)
def nothing_at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "_installed_files", lambda: iter(()))

    def fetch(*_: object) -> Path:
        raise ReverieError("no network")

    monkeypatch.setattr(hub, "fetch", fetch)


def save(tokenizer: Tokenizer, folder: Path) -> None:
    tokenizer.save(folder)
    (folder / "tokenizer.json").unlink()  # the official folders of models have vocab.json and merges.txt


PLACES = [
    "models",
    "models/tokenizer",
    f"cache/models--{OPENAI.replace('/', '--')}/snapshots/0123",
    "cache/models--somebody--model/snapshots/0123/tokenizer",
    "cache/models--somebody--model/snapshots/0123/tokenizer_2",
]


@pytest.mark.parametrize("place", PLACES)
def test_found(place: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    save(tokenizer, tmp_path / place)
    found = find_tokenizer(tmp_path / "models/x.safetensors", len(tokenizer))
    assert found.vocab == tokenizer.vocab
    with pytest.raises(ReverieError, match=r"no tokenizer for|has \d+ tokens; this model was made with 49408"):
        find_tokenizer(tmp_path / "models/x.safetensors", 49408)


def test_other_models_in_the_cache_are_passed_over(tokenizer: Tokenizer, tmp_path: Path) -> None:
    other = tmp_path / "cache/models--another--model/snapshots/0123"
    other.mkdir(parents=True)
    (other / "vocab.json").write_text('{"a": 0}')  # no start and no end
    (other / "merges.txt").write_text("#version: 0.2\n")
    save(tokenizer, tmp_path / "cache/models--somebody--model/snapshots/0123/tokenizer")
    assert find_tokenizer(tmp_path / "x.safetensors", len(tokenizer)).vocab == tokenizer.vocab


def test_named_by_the_variable(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tokenizer, tmp_path / "mine")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "mine"))
    assert find_tokenizer(tmp_path / "x.safetensors", len(tokenizer)).vocab == tokenizer.vocab
    with pytest.raises(ReverieError, match=r"has \d+ tokens; this model was made with 49408"):
        find_tokenizer(tmp_path / "x.safetensors", 49408)


def test_fetched(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tokenizer, tmp_path / "fetched")
    monkeypatch.setattr(hub, "fetch", lambda repo, files: tmp_path / "fetched" if repo == OPENAI else None)
    assert find_tokenizer(tmp_path / "x.safetensors", len(tokenizer)).vocab == tokenizer.vocab


def test_asked_for(tmp_path: Path) -> None:
    told = f"put vocab.json and merges.txt of {OPENAI} beside it, or give their folder in {VARIABLE} .no network."
    with pytest.raises(ReverieError, match=told):
        find_tokenizer(tmp_path / "x.safetensors", 49408)


def test_openai_s_own_file(tmp_path: Path) -> None:
    """48,894 merges count, of the more that the file has; its vocabulary has CLIP's 49,408 tokens in CLIP's order."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    lines = ["version", *(f"{left} {right}" for left in alphabet for right in alphabet)]
    (tmp_path / MERGES).write_bytes(gzip.compress("\n".join(lines).encode()))
    tokenizer = find_tokenizer(tmp_path / "x.safetensors", 49408)
    assert len(tokenizer) == 49408
    assert (tokenizer.bos_id, tokenizer.eos_id) == (49406, 49407)
    assert (tokenizer.vocab["!"], tokenizer.vocab["a</w>"]) == (0, 320)
    (tmp_path / "bad").write_bytes(b"\x1f\x8b nonsense")
    with pytest.raises(ReverieError, match="is no file of CLIP's merges"):
        read_tokenizer(tmp_path / "bad")
