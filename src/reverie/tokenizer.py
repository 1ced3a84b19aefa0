"""CLIP's tokenizer: byte-level byte-pair encoding, read from files or trained on captions."""

from __future__ import annotations

import gzip
import html
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
from jaxtyping import Int64
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from reverie.errors import ReverieError

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
CLIP_LENGTH = 77
MERGES_USED = 49152 - 256 - 2  # OpenAI's file goes on with more
GZIP = b"\x1f\x8b"
# openai/CLIP, simple_tokenizer.py, less the two special tokens, which are split off before.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


# Printable ASCII and white space, less "&": there is nothing to repair in it.
SOUND = re.compile(r"[\t\n\r -%'-~]*")


def clean(text: str) -> str:
    """Repair the encoding, resolve HTML entities (twice, as CLIP does), collapse white space and lower the case."""
    if not SOUND.fullmatch(text):
        import ftfy  # takes a quarter of a second, which an English prompt need not wait for

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip().lower()


class Tokenizer:
    """Turn texts into rows of token ids of one fixed length, as OpenAI's CLIP does.

    Raises ReverieError where a special token is not in the vocabulary.
    """

    def __init__(
        self,
        vocab: dict[str, int],
        merges: Sequence[tuple[str, str]],
        *,
        length: int = CLIP_LENGTH,
        bos: str = BOS,
        eos: str = EOS,
        pad: str = EOS,
    ) -> None:
        for token in (bos, eos, pad):
            if token not in vocab:
                raise ReverieError(f"special token {token!r} is not in the vocabulary; add it to vocab.json")
        if length < 2:
            raise ReverieError(f"token length {length} is too short; give at least 2, for the start and the end")
        self.vocab, self.merges, self.length = vocab, list(merges), length
        self.bos, self.eos, self.pad = bos, eos, pad
        self.bos_id, self.eos_id, self.pad_id = vocab[bos], vocab[eos], vocab[pad]
        self._backend = tokenizers.Tokenizer(
            models.BPE(vocab, self.merges, unk_token=eos, end_of_word_suffix=END_OF_WORD, continuing_subword_prefix="")
        )
        self._backend.pre_tokenizer = _words()
        # The padding token stays an ordinary one: SD 2 pads with "!", which is also a word.
        self._backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (bos, eos)])

    def __len__(self) -> int:
        """Return the vocabulary's size."""
        return len(self.vocab)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, all of them, without start, end and padding."""
        return self._backend.encode(clean(text), add_special_tokens=False).ids

    def __call__(self, texts: Sequence[str]) -> Int64[Tensor, "b l"]:
        """Return one row a text: start, tokens, end, padding. Long texts lose their tail and keep the end token."""
        rows = torch.full((len(texts), self.length), self.pad_id, dtype=torch.long)
        encodings = self._backend.encode_batch([clean(text) for text in texts], add_special_tokens=False)
        for row, encoding in zip(rows, encodings, strict=True):
            ids = [self.bos_id, *encoding.ids[: self.length - 2], self.eos_id]
            row[: len(ids)] = torch.tensor(ids)
        return rows

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int, length: int = CLIP_LENGTH) -> Tokenizer:
        """Learn merges from captions; the result depends on nothing but the captions.

        The vocabulary is laid out as CLIP's: 256 bytes, 256 bytes that end a word, merges, start, end. Pairs seen only
        once are not merged, so few captions give fewer than `vocab_size` tokens.
        """
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        symbols = alphabet + [symbol + END_OF_WORD for symbol in alphabet]
        if vocab_size < len(symbols) + 2:
            raise ReverieError(f"vocabulary size {vocab_size} is too small; give at least {len(symbols) + 2}")
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = _words()
        # Ties between pairs are broken by the symbols' ids. Left alone, the trainer numbers the word-ending symbols in
        # its hash map's random order; named as special tokens they keep the order given here.
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 2,
            min_frequency=2,
            show_progress=False,
            special_tokens=symbols,
            initial_alphabet=alphabet,
            end_of_word_suffix=END_OF_WORD,
        )
        backend.train_from_iterator((clean(caption) for caption in captions), trainer)
        merges = _merges(json.loads(backend.to_str()))
        tokens = dict.fromkeys([*symbols, *(left + right for left, right in merges), BOS, EOS])
        return cls({token: i for i, token in enumerate(tokens)}, merges, length=length)

    @classmethod
    def from_merges(cls, file: Path) -> Tokenizer:
        """Read OpenAI's merges: the vocabulary is the bytes, the bytes that end a word, the merges, start and end.

        Raises ReverieError where the file is damaged.
        """
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        try:
            data = file.read_bytes()
            lines = (gzip.decompress(data) if data.startswith(GZIP) else data).decode("utf-8").splitlines()
            merges = [(left, right) for left, right in (line.split() for line in lines[1 : MERGES_USED + 1])]
            symbols = alphabet + [symbol + END_OF_WORD for symbol in alphabet]
            tokens = [*symbols, *(left + right for left, right in merges), BOS, EOS]
            return cls({token: index for index, token in enumerate(tokens)}, merges)
        except Exception as error:  # the tokenizers library raises no narrower one
            reason = " ".join(f"{error}".split())
            raise ReverieError(f"{file} is no file of CLIP's merges ({reason}); fetch it again") from error

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read the folder of a CLIP tokenizer: vocab.json and merges.txt (or tokenizer.json alone), and its settings.

        As in transformers, special_tokens_map.json goes before tokenizer_config.json: SD 2's names the true padding.
        Raises ReverieError where files are missing, damaged or do not belong together.
        """
        folder = Path(folder)
        try:
            return cls._read(folder)
        except ReverieError:
            raise
        except Exception as error:  # the tokenizers library raises no narrower one
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ReverieError(f"the tokenizer in {folder} is damaged ({reason}); fetch it again") from error

    @classmethod
    def _read(cls, folder: Path) -> Tokenizer:
        config, special = _read_json(folder / "tokenizer_config.json"), _read_json(folder / "special_tokens_map.json")
        vocab, merges = _read_model(folder)

        def token(name: str, default: str) -> str:
            value = special.get(name) or config.get(name) or default
            return value["content"] if isinstance(value, dict) else value

        length = int(config.get("model_max_length", CLIP_LENGTH))
        eos = token("eos_token", EOS)
        return cls(
            vocab,
            merges,
            # transformers writes 1e30 for "no limit", which a text tower does not have.
            length=length if length < 10**6 else CLIP_LENGTH,
            bos=token("bos_token", BOS),
            eos=eos,
            pad=token("pad_token", eos),
        )

    def save(self, folder: str | Path) -> None:
        """Write the folder that transformers' CLIPTokenizer (4 and 5) and diffusers read; make it where missing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        special = {"bos_token": self.bos, "eos_token": self.eos, "unk_token": self.eos, "pad_token": self.pad}
        config = {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": self.length,
            "add_prefix_space": False,
            "do_lower_case": True,
            "errors": "replace",
        }
        _write(folder / "vocab.json", dict(sorted(self.vocab.items(), key=lambda item: item[1])))
        lines = ["#version: 0.2", *(f"{left} {right}" for left, right in self.merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
        _write(folder / "special_tokens_map.json", special)
        _write(folder / "tokenizer_config.json", {**config, **special})
        self._portable().save(str(folder / "tokenizer.json"))

    def _portable(self) -> tokenizers.Tokenizer:
        """Return the backend with the part of `clean` that the tokenizers library can express, and start and end."""
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        backend.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        backend.post_processor = processors.RobertaProcessing(
            (self.eos, self.eos_id), (self.bos, self.bos_id), trim_offsets=False, add_prefix_space=False
        )
        return backend


def _words() -> pre_tokenizers.PreTokenizer:
    words = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _read_model(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the vocabulary and merges; transformers 5 saves them in tokenizer.json alone."""
    vocab, merges, whole = folder / "vocab.json", folder / "merges.txt", folder / "tokenizer.json"
    if vocab.is_file() and merges.is_file():
        return _read_json(vocab), _read_merges(merges)
    if whole.is_file():
        data = _read_json(whole)
        return data["model"]["vocab"], _merges(data)
    raise ReverieError(f"no tokenizer in {folder}; it should hold vocab.json and merges.txt, or tokenizer.json")


def _read_merges(path: Path) -> list[tuple[str, str]]:
    lines = path.read_text(encoding="utf-8").split("\n")
    pairs = [line.split() for line in lines if line.strip() and not line.startswith("#version")]
    for pair in pairs:
        if len(pair) != 2:
            raise ReverieError(f"{path} is damaged: {' '.join(pair)!r} is no pair of symbols; fetch it again")
    return [(left, right) for left, right in pairs]


def _merges(data: dict) -> list[tuple[str, str]]:
    """Return the merges of a tokenizer.json; old files write them as "a b", new ones as ["a", "b"]."""
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in data["model"]["merges"])
    return [(left, right) for left, right in pairs]


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a file that is not there is an empty one."""
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReverieError(f"{path} is damaged ({error}); fetch it again") from error
    if not isinstance(data, dict):
        raise ReverieError(f"{path} is damaged: it should hold a JSON object; fetch it again")
    return data


def _write(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8", newline="\n")
