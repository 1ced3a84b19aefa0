"""Is every captioned picture of shards or folders found by its number, and nothing outside of them opened?"""

from __future__ import annotations

import gc
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reverie.corpora.shards import write
from reverie.data.captioned import open_captioned
from reverie.errors import RequestWarning, ReverieError
from reverie.similarity.curation.samples import read_samples


def png(colour: str) -> bytes:
    data = io.BytesIO()
    Image.new("RGBA", (4, 2), colour).save(data, "PNG")
    return data.getvalue()


def shard(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_shards_are_read_in_any_order(cldr: None, font: None, tmp_path: Path) -> None:
    list(write(tmp_path, subset="food", count=7, seed=3, shard_size=3))
    expected = []
    for path in sorted(tmp_path.glob("*.tar")):
        with tarfile.open(path) as tar:  # front to back
            files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        expected += [
            (content, files[name.replace("jpg", "txt")].decode()) for name, content in files.items() if "jpg" in name
        ]
    found = open_captioned(tmp_path)
    assert len(found) == 7
    for index in (6, 0, 3, 2, 5, 1, 4):
        picture, caption = expected[index]
        assert found.caption(index) == caption
        with Image.open(io.BytesIO(picture)) as opened:
            assert np.array_equal(np.asarray(found.picture(index)), np.asarray(opened))
    assert len(open_captioned(tmp_path / "00001.tar")) == 3


def test_shards_of_others(tmp_path: Path) -> None:
    long = "long/" * 30 + "5"  # its header takes three blocks
    members = {"a/1.png": png("red"), "a/1.txt": "红".encode(), "2.json": b"{}", "2.txt": b"no picture"}
    members |= {"3.TXT": b"blue", "3.json": b"{}", "3.PNG": png("blue"), f"{long}.txt": b"lime", f"{long}.webp": b"?"}
    shard(tmp_path / "00000.tar", members)
    found = open_captioned(tmp_path)
    assert [found.caption(index) for index in range(len(found))] == ["红", "blue", "lime"]
    assert found.picture(0).getpixel((0, 0)) == (255, 0, 0)
    assert found.picture(1).mode == "RGB"
    with pytest.raises(ReverieError, match=r"cannot read the picture at byte \d+ of .*00000\.tar"):
        found.picture(2)


def test_links_in_a_shard_are_no_files(tmp_path: Path) -> None:
    path = shard(tmp_path / "00000.tar", {"1.png": png("red"), "1.txt": b"red", "2.png": png("blue")})
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("2.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert len(open_captioned(path)) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves the file open
def test_keys_are_webdatasets(tmp_path: Path) -> None:
    """Folders belong to the key, dots after the first do not, and what the archive's maker noted is no sample."""
    webdataset = pytest.importorskip("webdataset", reason="needs the extra `train`")
    members = {"__meta__/1.png": png("lime"), "__meta__/1.txt": b"no sample"}
    for folder in ("a", "b.c", "d/e"):
        members |= {
            f"{folder}/1.v2.png": png("red"),
            f"{folder}/1.png": png("blue"),
            f"{folder}/1.txt": folder.encode(),
        }
    members |= {"x/1.png": png("red"), "y/1.txt": b"of another", "y/no_ending": b"", "y/1.png": png("blue")}
    path = shard(tmp_path / "00000.tar", members)
    theirs = [
        (sample["__key__"], sample["txt"].decode())
        for sample in webdataset.WebDataset(str(path), shardshuffle=False)
        if "txt" in sample and "png" in sample
    ]
    gc.collect()  # so that the warning comes here
    found = open_captioned(path)
    assert [found.caption(index) for index in range(len(found))] == [text for _, text in theirs]
    assert [sample.key for sample in read_samples(path) if sample.text and sample.picture] == [key for key, _ in theirs]
    assert theirs == [("a/1", "a"), ("b.c/1", "b.c"), ("d/e/1", "d/e"), ("y/1", "of another")]
    assert [found.picture(index).getpixel((0, 0)) for index in range(4)] == [(0, 0, 255)] * 4


@pytest.mark.parametrize("content", ["half", "no tar", "compressed"])
def test_damaged_shards_get_one_line(tmp_path: Path, content: str) -> None:
    mode = "w:gz" if content == "compressed" else "w"
    path = shard(tmp_path / "00000.tar", {"1.png": png("red") + bytes(4096), "1.txt": b"red"}, mode)
    if content == "half":
        path.write_bytes(path.read_bytes()[:2048])
    elif content == "no tar":
        path.write_bytes(b"not a tar" * 100)
    with pytest.raises(ReverieError, match=r"the shard .*00000\.tar is damaged or compressed"):
        open_captioned(tmp_path)


def test_what_is_left_of_damaged_shards_is_read_and_counted(tmp_path: Path) -> None:
    two = {"1.png": png("red"), "1.txt": b"red", "2.png": png("blue") + bytes(4096), "2.txt": b"blue"}
    cut = shard(tmp_path / "00000.tar", two)
    content = cut.read_bytes()
    cut.write_bytes(content[: content.index(png("blue")) + 3000])
    shard(tmp_path / "00001.tar", {"3.png": png("lime"), "3.txt": b"lime"})
    (tmp_path / "00002.tar").write_bytes(b"not a tar" * 100)
    said = r"2 of 3 shards are damaged .*00000\.tar after 1 pairs \('2.png' is cut off\), .*00002\.tar after 0 pairs \("
    with pytest.warns(RequestWarning, match=said):
        found = open_captioned(tmp_path)
    assert [found.caption(index) for index in range(len(found))] == ["red", "lime"]


def test_a_shard_that_cannot_be_opened_is_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(ReverieError, match=r"the shard .*0\.tar is damaged or compressed: no such file or directory"):
        open_captioned(tmp_path / "0.tar")
    shard(tmp_path / "0.tar", {"1.png": png("red"), "1.txt": b"red"})
    (tmp_path / "1.tar").symlink_to("gone")
    (tmp_path / "2.tar").mkdir()
    with pytest.warns(RequestWarning, match=r"2 of 3 shards are damaged .*1\.tar after 0 pairs \(no such file"):
        assert len(open_captioned(tmp_path)) == 1


def test_folders_with_a_text_beside_each_picture(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name, colour in (("b/2.png", "blue"), ("a.JPG", "red"), ("none.png", "lime")):
        Image.new("RGB", (3, 3), colour).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("a red one\n")
    (tmp_path / "b/2.txt").write_text("蓝")
    found = open_captioned(tmp_path)
    assert [found.caption(index) for index in range(len(found))] == ["a red one", "蓝"]
    assert found.picture(1).getpixel((0, 0)) == (0, 0, 255)


def test_pictures_without_a_caption_have_the_default(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (4, 3)).save(tmp_path / f"{name}.png")
    (tmp_path / "b.txt").write_text("a bear")
    assert [open_captioned(tmp_path).caption(0), len(open_captioned(tmp_path))] == ["a bear", 1]
    found = open_captioned(tmp_path, "a photo of sks dog")
    assert [found.caption(index) for index in range(len(found))] == ["a photo of sks dog", "a bear"]


def test_collections_know_when_their_files_change(tmp_path: Path) -> None:
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (4, 3)).save(tmp_path / folder / "a.png")
        os.utime(tmp_path / folder / "a.png", (7, 7))
    before = open_captioned(tmp_path / "one", "a dog").identity
    assert open_captioned(tmp_path / "other", "a cat").identity == before  # wherever they lie, whatever is told of them
    os.utime(tmp_path / "one" / "a.png", (8, 8))
    assert open_captioned(tmp_path / "one", "a dog").identity != before
    Image.new("RGB", (4, 3)).save(tmp_path / "other" / "b.png")
    assert len(open_captioned(tmp_path / "other", "a cat").identity) == len(before) + 1


def test_folders_with_a_list(tmp_path: Path) -> None:
    Image.new("RGB", (3, 3), "red").save(tmp_path / "1.png")
    lines = [{"file_name": "1.png", "text": "one"}, {"file_name": "gone.png", "caption": "two"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = open_captioned(tmp_path)
    assert [found.caption(index) for index in range(len(found))] == ["one", "two"]
    assert found.picture(0).size == (3, 3)
    with pytest.raises(ReverieError, match=r"cannot read the picture .*gone\.png"):
        found.picture(1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"file_name": "../1.png", "text": "one"}, r"line 1: '../1.png' lies outside; name files below it"),
        ({"file_name": str(Path(__file__).resolve()), "text": "one"}, "lies outside"),
        ({"text": "one"}, r'line 1: write {"file_name": "a.jpg", "text": "..."}'),
        ({"file_name": "1.png", "text": 3}, "line 1: write"),
        (["1.png", "one"], "line 1: write"),
    ],
)
def test_wrong_lists_get_one_line(tmp_path: Path, line: object, message: str) -> None:
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line))
    with pytest.raises(ReverieError, match=message):
        open_captioned(tmp_path)


def test_lists_are_cut_at_newlines_alone(tmp_path: Path) -> None:
    """JSON leaves U+2028, U+0085 and the form feed's kin unescaped; str.splitlines cuts there (jsonlines.org: \\n)."""
    Image.new("RGB", (3, 3), "red").save(tmp_path / "1.png")
    texts = ["one\u2028two", "three\u0085four", "five\x1csix"]
    lines = [json.dumps({"file_name": "1.png", "text": text}, ensure_ascii=False) for text in texts]
    (tmp_path / "metadata.jsonl").write_text("\r\n".join(lines).replace("\\u001c", "\u2029"), newline="")
    found = open_captioned(tmp_path)
    assert [found.caption(index) for index in range(3)] == [*texts[:2], "five\u2029six"]


def test_nothing_to_read(tmp_path: Path) -> None:
    Image.new("RGB", (3, 3)).save(tmp_path / "1.png")
    with pytest.raises(ReverieError, match=r"no pictures with captions in .*; give a folder of \.tar shards"):
        open_captioned(tmp_path)
