"""Is every clip of a collection of sounds found by its number, cut where it should be, and what is damaged named?"""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from reverie.data.sounds import CaptionedSounds, open_sounds
from reverie.errors import ReverieError
from reverie.media import sound
from reverie.media.sound import Sound

pytest.importorskip("soundfile", reason="needs the extra `sound`")
RATE, SECONDS = 8_000, 0.5


def ramp(seconds: float) -> Sound:
    """Give a sound whose samples tell their time: a tenth of full scale a second."""
    return Sound(torch.arange(round(seconds * RATE))[None] / RATE / 10, RATE)


def opened(path: Path, default: str = "") -> CaptionedSounds[Sound]:
    return open_sounds(path, SECONDS, sound.duration, sound.read, default)


def save(path: Path, seconds: float, caption: str = "") -> None:
    sound.write(ramp(seconds), path)
    if caption:
        path.with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("seconds", "clips", "left"),
    [(0.1, 1, 0.1), (0.5, 1, 0.5), (0.7, 1, 0.5), (0.75, 2, 0.25), (2.4, 5, 0.4), (2.6, 5, 0.5)],
)
def test_long_files_are_cut(tmp_path: Path, seconds: float, clips: int, left: float) -> None:
    """What is half a clip or more at the end is kept, and silence follows it."""
    save(tmp_path / "a.wav", seconds, "a ramp")
    found = opened(tmp_path)
    assert len(found) == clips
    for index in range(clips):
        clip = found.sound(index)
        assert clip.samples.shape == (1, RATE * SECONDS)
        sounding = round((left if index == clips - 1 else SECONDS) * RATE)
        expected = (torch.arange(sounding) / RATE + index * SECONDS) / 10
        assert torch.allclose(clip.samples[0, :sounding], expected, atol=2**-15)
        assert not clip.samples[0, sounding:].any()


def test_clips_are_read_in_any_order(tmp_path: Path) -> None:
    for number, (suffix, seconds) in enumerate([("wav", 1.0), ("flac", 0.5), ("ogg", 1.5), ("mp3", 1.0)]):
        save(tmp_path / f"{number}.{suffix}", seconds, f"caption {number}")
    save(tmp_path / "none.wav", 1.0)
    found = opened(tmp_path)
    assert [found.caption(index) for index in range(len(found))] == [f"caption {n}" for n in (0, 0, 1, 2, 2, 2, 3, 3)]
    for index, start in reversed(list(enumerate((0, 0.5, 0, 0, 0.5, 1.0, 0, 0.5)))):
        middle = found.sound(index).samples[0, RATE // 8 : RATE // 4].mean().item()  # of what lossy codecs keep
        assert middle == pytest.approx((start + 0.1875) / 10, abs=0.004)
    with pytest.raises(IndexError):
        found.sound(8)
    assert len(opened(tmp_path, "anything")) == 10


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "mine.csv"])
def test_lists(tmp_path: Path, name: str) -> None:
    save(tmp_path / "b.wav", 0.5)
    save(tmp_path / "a.wav", 1.0)
    rows = [("b.wav", "two, or more"), ("a.wav", "钢琴")]
    if name.endswith(".csv"):
        text = "\ufefffile_name,text\r\n" + "".join(f'{file},"{told}"\r\n' for file, told in rows)
    else:
        text = "\n".join(json.dumps({"file_name": file, "text": told}) for file, told in rows)
    (tmp_path / name).write_text(text, encoding="utf-8")
    found = opened(tmp_path / name if name == "mine.csv" else tmp_path)
    assert [found.caption(index) for index in range(len(found))] == ["钢琴", "钢琴", "two, or more"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,text\na.wav,one\n", r"metadata\.csv, line 2: write file_name,text"),
        ("file_name,text\na.wav\n", "line 2: write file_name,text"),
        ("file_name,text\n../a.wav,one\n", "line 2: '../a.wav' lies outside; name files below it"),
        ("file_name,text\ngone.wav,one\n", r"cannot read '.*gone\.wav': no such file"),
        ("", r"no sounds with captions in .*; give a folder of \.tar shards, or of sounds, each with a \.txt"),
    ],
)
def test_wrong_lists_get_one_line(tmp_path: Path, text: str, message: str) -> None:
    save(tmp_path / "a.wav", 0.5)
    (tmp_path / "metadata.csv").write_text(text)
    with pytest.raises(ReverieError, match=message):
        opened(tmp_path)


def shard(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_shards_of_others(tmp_path: Path) -> None:
    flac, ogg = sound.encode(ramp(1.2), ".flac"), sound.encode(ramp(0.5), ".ogg")
    shard(tmp_path / "00000.tar", {"1.flac": flac, "1.txt": b"one", "1.json": b"{}", "2.txt": b"no sound"})
    shard(tmp_path / "00001.tar", {"a/3.OGG": ogg, "a/3.txt": "三".encode()})
    found = opened(tmp_path)
    assert [found.caption(index) for index in range(len(found))] == ["one", "one", "三"]
    assert found.sound(1).samples[0, 0].item() == pytest.approx(0.05, abs=2**-15)
    assert len(opened(tmp_path / "00001.tar")) == 1


@pytest.mark.parametrize("as_shard", [False, True])
def test_what_is_damaged_is_named(tmp_path: Path, as_shard: bool) -> None:
    if as_shard:
        shard(tmp_path / "00000.tar", {"1.wav": b"no sound", "1.txt": b"one"})
    else:
        (tmp_path / "bad.wav").write_bytes(b"no sound")
        (tmp_path / "bad.txt").write_text("one")
    place = r"at byte \d+ of .*00000\.tar" if as_shard else r".*bad\.wav"
    with pytest.raises(ReverieError, match=f"cannot read '{place}': no sound that is known, or damaged"):
        opened(tmp_path)


@pytest.mark.filterwarnings("ignore:.*is cut off:UserWarning")
def test_a_file_that_ends_early_is_named(tmp_path: Path) -> None:
    """The header promises two seconds, the file holds half of one."""
    save(tmp_path / "a.wav", 2.0, "a ramp")
    whole = (tmp_path / "a.wav").read_bytes()
    found = opened(tmp_path)
    (tmp_path / "a.wav").write_bytes(whole[: len(whole) // 4])
    assert np.isfinite(found.sound(0).samples.numpy()).all()
    with pytest.raises(ReverieError, match=r"'.*a\.wav': there is no sound in it"):
        found.sound(3)


def test_the_identity_tells_of_changes(tmp_path: Path) -> None:
    save(tmp_path / "a.wav", 1.0, "a ramp")
    before = opened(tmp_path).identity
    assert opened(tmp_path).identity == before == json.loads(json.dumps(before))
    os.utime(tmp_path / "a.wav", (1, 1))
    assert opened(tmp_path).identity != before
    assert open_sounds(tmp_path, 1.0, sound.duration, sound.read).identity != opened(tmp_path).identity
