"""The tokenizer of a single file, which holds none: from the user's disk, else from the hub."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from tokenizers import pre_tokenizers

from reverie.checkpoints import hub
from reverie.errors import ReverieError
from reverie.tokenizer import BOS, END_OF_WORD, EOS, Tokenizer

VARIABLE = "REVERIE_TOKENIZER"
OPENAI = "openai/clip-vit-large-patch14"
FILES = ("vocab.json", "merges.txt")
MERGES = "bpe_simple_vocab_16e6.txt.gz"  # OpenAI's own form, which the packages clip and open_clip carry
MERGES_USED = 49152 - 256 - 2  # the file goes on with more
GZIP = b"\x1f\x8b"
HELP = (
    f"a single file holds no vocabulary; put vocab.json and merges.txt of {OPENAI} beside it, "
    f"or give their folder in {VARIABLE}"
)


def find_tokenizer(near: Path, size: int) -> Tokenizer:
    """Find CLIP's tokenizer of `size` tokens for a checkpoint.

    Looked for in the folder (or merges file) that REVERIE_TOKENIZER names, beside the checkpoint, in the hub's cache,
    in the packages clip and open_clip, and at last fetched from the hub. Raises ReverieError.
    """
    if given := os.environ.get(VARIABLE):
        return _check(Path(given), size)
    for place in (near.parent, near.parent / "tokenizer", near.parent / MERGES):
        if _is_vocabulary(place):
            return _check(place, size)
    for place in (*_cached_files(), *_installed_files()):
        with suppress(ReverieError):  # the cache holds those of other models too, which need not be like CLIP's
            tokenizer = read_tokenizer(place)
            if len(tokenizer) == size:
                return tokenizer
    try:
        return _check(hub.fetch(OPENAI, FILES), size)
    except ReverieError as error:
        raise ReverieError(f"no tokenizer for '{near}': {HELP} ({error})") from error


def read_tokenizer(place: Path) -> Tokenizer:
    """Read the folder of a tokenizer, or OpenAI's file of merges."""
    return Tokenizer.load(place) if place.is_dir() else _from_merges(place)


def _check(place: Path, size: int) -> Tokenizer:
    tokenizer = read_tokenizer(place)
    if len(tokenizer) != size:
        raise ReverieError(f"the tokenizer in '{place}' has {len(tokenizer)} tokens; this model was made with {size}")
    return tokenizer


def _is_vocabulary(place: Path) -> bool:
    return place.is_file() or all((place / name).is_file() for name in FILES)


def _cached_files() -> Iterator[Path]:
    """Find the tokenizers of models in the hub's cache: CLIP's own first."""
    models = sorted(_hub_cache().glob("models--*"), key=lambda path: (OPENAI.replace("/", "--") not in path.name, path))
    for model in models:
        for name in (".", "tokenizer", "tokenizer_2"):
            yield from (place for snapshot in model.glob("snapshots/*") if _is_vocabulary(place := snapshot / name))


def _hub_cache() -> Path:
    home = os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE", Path(home, "hub")))


def _installed_files() -> Iterator[Path]:
    """Find OpenAI's file in packages that have it, without importing them."""
    for package in ("open_clip", "clip"):
        spec = find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            if (file := Path(folder, MERGES)).is_file():
                yield file


def _from_merges(file: Path) -> Tokenizer:
    """Read OpenAI's merges: the vocabulary is the bytes, the bytes that end a word, the merges, start and end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    try:
        data = file.read_bytes()
        lines = (gzip.decompress(data) if data.startswith(GZIP) else data).decode("utf-8").splitlines()
        merges = [(left, right) for left, right in (line.split() for line in lines[1 : MERGES_USED + 1])]
        symbols = alphabet + [symbol + END_OF_WORD for symbol in alphabet]
        tokens = [*symbols, *(left + right for left, right in merges), BOS, EOS]
        return Tokenizer({token: index for index, token in enumerate(tokens)}, merges)
    except Exception as error:  # the tokenizers library raises no narrower one
        reason = " ".join(f"{error}".split())
        raise ReverieError(f"{file} is no file of CLIP's merges ({reason}); fetch it again") from error
