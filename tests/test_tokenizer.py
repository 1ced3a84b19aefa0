"""The tokenizer against transformers and against byte-pair encoding written out; its files and training."""

from __future__ import annotations

import html
import itertools
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ftfy
import pytest
import regex
import torch
import transformers

from reverie.errors import ReverieError
from reverie.tokenizer import BOS, EOS, Tokenizer, clean

ENGLISH = [
    "a red cat sitting on a mat",
    "a photo of a dog's house",
    "the dog!! the cat? the mat...",
    "grinning face with big eyes",
    "a red house and a red dog",
]
CHINESE = ["一只红色的猫坐在垫子上", "咧嘴笑的脸", "一只狗的房子", "红色的房子和红色的狗", "一张猫的照片"]
CAPTIONS = ENGLISH * 4 + CHINESE * 4
# Texts of which ftfy and HTML change nothing: here transformers cleans as CLIP does.
PLAIN = [
    *ENGLISH,
    *CHINESE,
    "",
    "   ",
    "A Red   CAT\n\tsits",
    "the cat's mat, we'll, I'm, they've; it'd",
    "ÉCOLE à Zürich, Ωmega, Ёлка",
    "cafe\u0301 naïve",
    "İstanbul",
    "😀👍🏽 a 👩‍👩‍👧 family 🇨🇳",
    "3 猫cats和5只dogs!?",
    "ひらがな カタカナ 한국어",
    "x" * 100,
    "long text " * 60,
    "1234567890 --- *** ###",
    "a\u200bb",
]
# Texts that CLIP repairs and transformers does not.
BROKEN = [
    "fish &amp; chips",
    "fish &amp;amp; chips &lt;b&gt;",
    "l\u2019école \u201cquoted\u201d",
    "cafÃ© mojibake",
    "ｆｕｌｌ　ｗｉｄｔｈ",
    "ﬁne ligature",
    "ΟΔΟΣ",
    "&#29483; cat",
    f"stop {EOS} here",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CAPTIONS, 640, length=32)


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(path)
    return path


def oracle_rows(folder: Path, texts: list[str]) -> torch.Tensor:
    oracle = transformers.CLIPTokenizer.from_pretrained(folder)
    length = oracle.model_max_length
    return oracle(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids


def written_out(text: str, vocab: dict[str, int], merges: list[tuple[str, str]]) -> list[int]:
    """Byte-pair encoding as the CLIP paper's section 2.4 and Sennrich et al. 2016 define it, in the plainest way."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = dict(zip(visible, map(chr, visible), strict=True))
    letters |= {byte: chr(256 + i) for i, byte in enumerate(b for b in range(256) if b not in letters)}
    pattern = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    ids = []
    for word in regex.findall(pattern, regex.sub(r"\s+", " ", text).strip().lower()):
        if word in (BOS, EOS):
            ids.append(vocab[word])
            continue
        parts = [letters[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        for left, right in merges:
            i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == (left, right):
                    parts[i : i + 2] = [left + right]
                i += 1
        ids += [vocab[part] for part in parts]
    return ids


def nasty_texts() -> list[str]:
    """Every character of Latin-1, every pair of ASCII, and what ftfy looks for: escapes, breaks, quotes, mojibake."""
    pieces = ["\x1b[31m", "\x1b[0m", "\r\n", "\r", "\n", "\t", "\x0b", "\x0c", "\x1c", "\x7f", "\x00", "\x85", "\u2028"]
    pieces += [
        "&amp;",
        "&lt",
        "<b>",
        "&",
        ";",
        "#",
        "\\x1b[31m",
        "\\u2019",
        "``",
        "''",
        "ﬁ",
        "\ufeff",
        "\ud83d",
        "â€™",
        "Ã©",
    ]
    pieces += ["  ", "a", "Z", "9", "fi", "ffl", "[31m", "%20", "=E9", "?", "~", "0x1b"]
    mixes = random.Random(0)
    texts = ["".join(mixes.choices(pieces, k=mixes.randint(1, 8))) for _ in range(2000)]
    ascii_pairs = map("".join, itertools.product(map(chr, range(128)), repeat=2))
    return [*PLAIN, *BROKEN, *map(chr, range(0x250)), *ascii_pairs, *texts]


def test_cleaning_leaves_out_ftfy_only_where_it_changes_nothing() -> None:
    for text in nasty_texts():
        repaired = html.unescape(html.unescape(ftfy.fix_text(text)))
        assert clean(text) == re.sub(r"\s+", " ", repaired).strip().lower(), repr(text)


def test_an_english_prompt_does_not_wait_for_ftfy(folder: Path) -> None:
    code = (
        "import sys; from reverie.tokenizer import Tokenizer; tokenizer = Tokenizer.load(sys.argv[1]);"
        "tokenizer(['a red cat, 50% (big)!\\n']); assert 'ftfy' not in sys.modules;"
        "tokenizer(['fish &amp; chips']); assert 'ftfy' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


@pytest.mark.parametrize("text", PLAIN + BROKEN)
def test_equals_the_definition(tokenizer: Tokenizer, text: str) -> None:
    ids = written_out(text, tokenizer.vocab, tokenizer.merges)
    assert tokenizer.encode(text) == ids
    row = [tokenizer.bos_id, *ids[:30], tokenizer.eos_id]
    assert tokenizer([text])[0].tolist() == row + [tokenizer.pad_id] * (32 - len(row))


@pytest.mark.parametrize("files", [("tokenizer.json",), ("vocab.json", "merges.txt"), ()])
def test_transformers_reads_the_folder_and_agrees(
    tokenizer: Tokenizer, folder: Path, tmp_path: Path, files: tuple[str, ...]
) -> None:
    """transformers reads whichever of the two layouts is there; `files` are those left out."""
    for path in folder.iterdir():
        if path.name not in files:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert torch.equal(tokenizer(PLAIN), oracle_rows(tmp_path, PLAIN))
    assert torch.equal(tokenizer(BROKEN), oracle_rows(tmp_path, [clean(text) for text in BROKEN]))


def test_fast_and_auto_tokenizers_agree(tokenizer: Tokenizer, folder: Path) -> None:
    for kind in (transformers.CLIPTokenizerFast, transformers.AutoTokenizer):
        oracle = kind.from_pretrained(folder)
        assert oracle.model_max_length == 32
        assert oracle(CHINESE).input_ids == [
            [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id] for text in CHINESE
        ]


@pytest.mark.parametrize("text", ["a red cat", "红色的猫 3 只", "café, 😀 naïve!", "the dog's ΩЖ"])
def test_decoding_by_transformers_gives_the_text_back(tokenizer: Tokenizer, folder: Path, text: str) -> None:
    decoded = transformers.CLIPTokenizer.from_pretrained(folder).decode(tokenizer.encode(text))
    assert decoded.replace(" ", "") == text.lower().replace(" ", "")


def test_save_and_load_round_trip(tokenizer: Tokenizer, folder: Path, tmp_path: Path) -> None:
    loaded = Tokenizer.load(folder)
    assert (loaded.vocab, loaded.merges, loaded.length) == (tokenizer.vocab, tokenizer.merges, 32)
    loaded.save(tmp_path)
    for path in folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_loads_what_transformers_saves(tokenizer: Tokenizer, folder: Path, tmp_path: Path) -> None:
    transformers.CLIPTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    assert not (tmp_path / "vocab.json").exists()
    assert torch.equal(Tokenizer.load(tmp_path)(PLAIN), tokenizer(PLAIN))


def test_padding_of_sd2_is_read_and_stays_a_word(tokenizer: Tokenizer, folder: Path, tmp_path: Path) -> None:
    """SD 2 and SDXL's second encoder pad with "!"; the settings of SD 2 contradict each other as here."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    special = {"bos_token": {"content": BOS, "lstrip": False}, "eos_token": {"content": EOS}, "pad_token": "!"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    padded = Tokenizer.load(tmp_path)
    assert padded.pad_id == 0
    assert (
        padded(["a red cat"])[0].tolist() == [padded.bos_id, *tokenizer.encode("a red cat"), padded.eos_id] + [0] * 27
    )
    assert padded.encode("dog!!") == tokenizer.encode("dog!!")
    assert 0 not in padded.encode("dog!!")


def test_missing_settings_fall_back_to_clips(folder: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert Tokenizer.load(tmp_path).length == 77
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1000000000000000019884624838656}')
    assert Tokenizer.load(tmp_path).length == 77


def test_long_text_keeps_the_end_token(tokenizer: Tokenizer) -> None:
    (row,) = tokenizer(["cat mat " * 100])
    assert row[-1] == tokenizer.eos_id
    assert (row == tokenizer.eos_id).sum() == 1


def test_layout_of_the_vocabulary_is_clips(tokenizer: Tokenizer) -> None:
    assert len(tokenizer) == 512 + len(tokenizer.merges) + 2 <= 640
    assert sorted(tokenizer.vocab.values()) == list(range(len(tokenizer)))
    assert tokenizer.vocab["!"] == 0
    assert tokenizer.vocab["!</w>"] == 256
    assert (tokenizer.bos_id, tokenizer.eos_id) == (len(tokenizer) - 2, len(tokenizer) - 1)


def test_training_learns_words_of_both_languages_and_covers_every_byte(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("red cat")) == 2
    assert len(tokenizer.encode("一只狗的房子")) < len("一只狗的房子".encode())
    unseen = "".join(map(chr, [*range(0x250, 0x2AF), 0x1F600, 0x1F9FF]))
    assert tokenizer.eos_id not in tokenizer.encode(unseen)


def test_vocabulary_size_is_reached_where_captions_allow() -> None:
    assert len(Tokenizer.train(CAPTIONS, 560)) == 560


def test_training_is_the_same_in_every_process() -> None:
    """The trainer's hash maps are seeded anew in each process; ties between pairs must not follow them."""
    program = (
        "import hashlib, sys; from reverie.tokenizer import Tokenizer;"
        "t = Tokenizer.train(sys.argv[1:], 800); print(hashlib.sha256(repr((t.vocab, t.merges)).encode()).hexdigest())"
    )
    command = [sys.executable, "-c", program, *CAPTIONS]
    assert len({subprocess.run(command, capture_output=True, check=True).stdout for _ in range(3)}) == 1


def test_errors_say_what_to_do(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ReverieError, match=r"no tokenizer in .*; it should hold vocab\.json and merges\.txt"):
        Tokenizer.load(tmp_path)
    with pytest.raises(ReverieError, match="vocabulary size 100 is too small; give at least 514"):
        Tokenizer.train(CAPTIONS, 100)
    with pytest.raises(ReverieError, match="special token '<pad>' is not in the vocabulary"):
        Tokenizer(tokenizer.vocab, tokenizer.merges, pad="<pad>")
    with pytest.raises(ReverieError, match="token length 1 is too short"):
        Tokenizer(tokenizer.vocab, tokenizer.merges, length=1)


def cut(text: str) -> str:
    return text[: len(text) // 2]


DAMAGES = [
    (("vocab.json", "merges.txt"), "vocab.json", cut, r"vocab\.json is damaged \(.*\); fetch it again$"),
    (("vocab.json", "merges.txt"), "vocab.json", lambda _: "[]", r"vocab\.json is damaged: it should hold a JSON obj"),
    (("vocab.json", "merges.txt"), "vocab.json", lambda _: '{"a": 0}', r"special token '<\|startoftext\|>' is not in"),
    (("vocab.json", "merges.txt"), "vocab.json", lambda text: text.replace(": 7,", ': "x",'), "TypeError"),
    (("vocab.json", "merges.txt"), "vocab.json", lambda text: text.replace('"re', '"q'), "out of vocabulary"),
    (("vocab.json", "merges.txt"), "merges.txt", lambda text: text + "zz", r"merges\.txt is damaged: 'zz' is no pair"),
    (("vocab.json", "merges.txt"), "merges.txt", lambda text: text + "qq zz\n", r"the tokenizer in .* is damaged \("),
    (("vocab.json", "merges.txt"), "merges.txt", lambda text: text.encode("utf-16").decode("latin-1"), "is damaged"),
    (("tokenizer.json",), "tokenizer.json", cut, r"tokenizer\.json is damaged \("),
    (("tokenizer.json",), "tokenizer.json", lambda _: "{}", r"the tokenizer in .* is damaged \(KeyError: 'model'\)"),
    (("tokenizer.json",), "tokenizer.json", lambda _: '{"model": []}', r"the tokenizer in .* is damaged \(TypeError"),
    (("tokenizer_config.json", "tokenizer.json"), "tokenizer_config.json", cut, r"config\.json is damaged \("),
    (
        ("tokenizer_config.json", "tokenizer.json"),
        "tokenizer_config.json",
        lambda _: '{"model_max_length": null}',
        r"the tokenizer in .* is damaged \(TypeError",
    ),
]


@pytest.mark.parametrize(("files", "damaged", "damage", "told"), DAMAGES)
def test_damaged_files_are_named(
    folder: Path, tmp_path: Path, files: tuple[str, ...], damaged: str, damage: Callable[[str], str], told: str
) -> None:
    for name in files:
        text = (folder / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(damage(text) if name == damaged else text, encoding="utf-8")
    with pytest.raises(ReverieError, match=told) as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)
