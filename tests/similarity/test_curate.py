"""Are samples dropped for the reasons given, with nothing lost or doubled, however the work is spread?"""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from reverie.cli.app import run
from reverie.data.captioned import open_captioned
from reverie.errors import ReverieError
from reverie.similarity.curation.measure import load_aesthetic
from reverie.similarity.curation.report import Curated
from reverie.similarity.curation.rules import DUPLICATE, Measurement, Rules, reason_to_drop
from reverie.similarity.curation.run import curate, near_duplicates, words
from reverie.similarity.curation.samples import Spread, here, read_samples
from reverie.similarity.embed import load_clip

PLAIN = Rules(min_cosine=None, min_text=5, min_bytes=300, min_side=16)
GOOD = Measurement(key="a", text="a red apple", bytes=9000, width=640, height=512, cosine=0.31, aesthetic=5.5)


def picture(seed: int, size: tuple[int, int] = (24, 24)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def write_shard(path: Path, files: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Write three shards; what should become of a sample is its key."""
    folder = tmp_path / "shards"
    folder.mkdir()
    kept = [(f"kept{i}.png", picture(i)) for i in range(3)]
    first = [kept[0], ("kept0.txt", b"a first picture"), ("kept0.json", b'{"width": 24}')]
    first += [("short.png", picture(9)), ("short.txt", b" abc "), ("alone.png", picture(8))]
    first += [("textonly.txt", b"no picture at all"), ("torn.png", b"\x89PNG torn" * 40), ("torn.txt", b"a torn one")]
    second = [kept[1], ("kept1.txt", "红色的苹果 苹果".encode()), ("tiny.png", picture(7, (8, 99)))]
    second += [("tiny.txt", b"too narrow"), ("flat.png", picture(6, (2, 2))), ("flat.txt", b"a small file")]
    second += [("copy.png", picture(0)), ("copy.txt", b"the first again")]
    write_shard(folder / "00000.tar", first)
    write_shard(folder / "00001.tar", second)
    write_shard(folder / "00002.tar", [("bad.png", picture(5)), ("bad.txt", b"abc")])
    return folder


EXPECTED = {
    "kept0": "",
    "short": "short text",
    "alone": "no text",
    "textonly": "no picture",
    "torn": "damaged picture",
    "kept1": "",
    "tiny": "low resolution",
    "flat": "small file",
    "copy": "",
    "bad": "short text",
}


def outcome(source: Path, folder: Path, rules: Rules = PLAIN, spread: Spread = here) -> Curated:
    last = list(curate(source, folder, rules, spread=spread))[-1].outcome
    assert last is not None
    return last


def verdicts(folder: Path) -> dict[str, str]:
    lines = [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]
    return {line["key"]: line["reason"] for line in lines}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_each_sample_goes_for_its_reason_and_the_rest_stays_as_it_was(shards: Path, tmp_path: Path) -> None:
    found = outcome(shards, tmp_path / "out")
    assert verdicts(tmp_path / "out") == EXPECTED
    assert (found.seen, found.kept) == (10, 3)
    assert found.dropped == {
        "short text": 2, "no text": 1, "no picture": 1, "damaged picture": 1, "low resolution": 1, "small file": 1
    }  # fmt: skip
    before = {sample.key: sample for shard in sorted(shards.glob("*.tar")) for sample in read_samples(shard)}
    after = {s.key: s for shard in sorted((tmp_path / "out").glob("*.tar")) for s in read_samples(shard)}
    assert after == {key: before[key] for key in ("kept0", "kept1", "copy")}
    assert not (tmp_path / "out/00002.tar").exists()
    captioned = open_captioned(tmp_path / "out")
    assert sorted(captioned.caption(i) for i in range(len(captioned)))[0] == "a first picture"


def test_the_report_counts_what_is_there(shards: Path, tmp_path: Path) -> None:
    found = outcome(shards, tmp_path / "out")
    told = json.loads((tmp_path / "out/report.json").read_text())
    assert (told["seen"], told["kept"]) == (10, 3)
    sides = found.histograms["shorter side in pixels"]
    assert (sum(sides.seen), sum(sides.kept)) == (8, 3)
    counts = {word: (n, kept) for word, n, kept in found.words}
    assert counts["苹" if "苹" in counts else "果"] == (2, 2)
    assert counts["a"] == (3, 1)
    page = (tmp_path / "out/report.html").read_text()
    assert "10 samples were read and 3 kept" in page
    assert page.count("<svg") == len(found.histograms)


def test_near_duplicates_are_found_across_shards(shards: Path, tmp_path: Path) -> None:
    outcome(shards, tmp_path / "out", replace(PLAIN, duplicates=0.9999))
    assert verdicts(tmp_path / "out")["copy"] == DUPLICATE
    assert [verdicts(tmp_path / "out")[key] for key in ("kept0", "kept1")] == ["", ""]


def test_cosines_are_those_of_the_pair_alone(shards: Path, tmp_path: Path) -> None:
    outcome(shards, tmp_path / "out", replace(PLAIN, min_cosine=0.0))
    lines = [json.loads(line) for line in (tmp_path / "out/00000.jsonl").read_text().splitlines()]
    clip, first = load_clip(), lines[0]
    alone = clip.embed_images([Image.open(io.BytesIO(picture(0)))]) @ clip.embed_texts([first["text"]]).T
    assert first["cosine"] == pytest.approx(alone.item(), abs=1e-5)


def test_other_limits_measure_nothing_again(shards: Path, tmp_path: Path) -> None:
    outcome(shards, tmp_path / "out", replace(PLAIN, min_cosine=-0.9))
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out/measured").glob("0*")}
    found = outcome(shards, tmp_path / "out", replace(PLAIN, min_text=0))  # needs no CLIP, and forgets nothing of it
    outcome(shards, tmp_path / "out", replace(PLAIN, min_cosine=-0.8))
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out/measured").glob("0*")} == before
    assert found.kept == 5
    assert outcome(shards, tmp_path / "out").kept == 3
    assert not (tmp_path / "out/00002.tar").exists()


def test_shards_of_another_collection_are_not_mixed_in(shards: Path, tmp_path: Path) -> None:
    outcome(shards, tmp_path / "out")
    (shards / "00002.tar").unlink()
    with pytest.raises(ReverieError, match="holds '00002', no shard of"):
        outcome(shards, tmp_path / "out")


def test_two_processes_do_not_curate_into_one_folder(shards: Path, tmp_path: Path) -> None:
    running = curate(shards, tmp_path / "out", PLAIN)
    next(running)
    with pytest.raises(ReverieError, match="another process is writing"):
        outcome(shards, tmp_path / "out")
    running.close()
    assert outcome(shards, tmp_path / "out").kept == 3


@pytest.mark.parametrize("stop", [2, 4, 6])
def test_stopped_it_goes_on_and_ends_the_same(shards: Path, tmp_path: Path, stop: int) -> None:
    outcome(shards, tmp_path / "whole")
    running = curate(shards, tmp_path / "stopped", PLAIN)
    for _ in range(stop):
        next(running)
    running.close()
    outcome(shards, tmp_path / "stopped")
    assert contents(tmp_path / "whole") == contents(tmp_path / "stopped")


def test_a_damaged_shard_is_told_and_its_first_part_used(shards: Path, tmp_path: Path) -> None:
    whole = (shards / "00001.tar").read_bytes()
    (shards / "00001.tar").write_bytes(whole[: len(whole) // 2])
    found = outcome(shards, tmp_path / "out")
    assert list(found.damaged) == ["00001.tar"]
    assert verdicts(tmp_path / "out")["kept1"] == ""


@pytest.mark.parametrize(
    ("rules", "measured", "reason"),
    [
        (Rules(), GOOD, ""),
        (Rules(), replace(GOOD, cosine=0.2799), "low cosine"),
        (Rules(min_cosine=0.31), GOOD, ""),
        (Rules(), replace(GOOD, bytes=4999), "small file"),
        (Rules(), replace(GOOD, text="abcd"), "short text"),
        (Rules(min_side=513), GOOD, "low resolution"),
        (Rules(max_aspect=1.2), GOOD, "narrow"),
        (Rules(min_aesthetic=5.6), GOOD, "low aesthetic score"),
        (Rules(), replace(GOOD, cosine=None), "low cosine"),
    ],
)
def test_limits_are_met_by_what_equals_them(rules: Rules, measured: Measurement, reason: str) -> None:
    assert reason_to_drop(measured, rules) == reason


@given(st.integers(1, 40), st.floats(0.2, 0.99), st.integers(0, 5))
def test_near_duplicates_equal_those_found_one_by_one(count: int, threshold: float, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    kept: list[int] = []
    for row in range(count):
        if not any(vectors[row] @ vectors[other] >= threshold for other in kept):
            kept.append(row)
    assert np.flatnonzero(~near_duplicates(vectors, threshold)).tolist() == kept


def test_near_duplicates_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(1).normal(size=(500, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    whole = near_duplicates(vectors, 0.9)
    monkeypatch.setattr("reverie.similarity.curation.run.BLOCK", 64)
    np.testing.assert_array_equal(near_duplicates(vectors, 0.9), whole)


def test_both_of_laions_heads_are_read(tmp_path: Path) -> None:
    """The second predictor's layers stand at 0, 2, 4, 6 and 7 of a Sequential, with drop-out between them."""
    torch.manual_seed(0)
    sizes = (12, 8, 6, 5, 4, 1)
    layers = [torch.nn.Linear(a, b) for a, b in pairwise(sizes)]
    deep = {
        f"layers.{n}.{k}": v for n, it in zip((0, 2, 4, 6, 7), layers, strict=True) for k, v in it.state_dict().items()
    }
    torch.save(deep, tmp_path / "deep.pth")
    flat = torch.nn.Linear(12, 1)
    save_file(flat.state_dict(), tmp_path / "flat.safetensors")
    x = torch.randn(7, 12)
    expected = torch.nn.Sequential(*layers)(x)[:, 0]
    torch.testing.assert_close(load_aesthetic(tmp_path / "deep.pth", 12)(x), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(load_aesthetic(tmp_path / "flat.safetensors", 12)(x), flat(x)[:, 0])
    with pytest.raises(ReverieError, match="this CLIP makes 192"):
        load_aesthetic(tmp_path / "flat.safetensors", 192)


def test_words_of_languages_without_spaces() -> None:
    assert list(words("A red-hot Apple, 3 red 苹果")) == ["a", "red", "hot", "apple", "red", "苹", "果"]


def test_bad_input_is_told_before_work(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, told in (
        (["--min-cosine", "28"], "between -1 and 1"),
        (["--min-aesthetic", "5"], "--aesthetic"),
        (["--workers", "0"], "--workers 0"),
        (["--aesthetic", "nowhere.pth"], "no such file"),
        (["-o", str(shards)], "give another folder"),
        (["-o", str(tmp_path)], "something else"),
    ):
        out = [] if "-o" in wrong else ["-o", str(tmp_path / "out")]
        assert run(["curate", str(shards), *out, *wrong]) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_line(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = ["--min-cosine", "-1", "--min-bytes", "300", "--min-side", "16", "--json"]
    assert run(["curate", str(shards), "-o", str(tmp_path / "out"), *limits]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 3
    assert verdicts(tmp_path / "out") == EXPECTED
