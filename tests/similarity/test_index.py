"""Is an index what embedding each picture alone gives, and does it survive being stopped, changed and damaged?"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reverie.errors import ReverieError
from reverie.similarity.index import Index, IndexEntry, IndexHeader, IndexWriter, PicturePlace, open_index
from reverie.similarity.search import NEAREST, Query, by_faiss, exact, search
from reverie.similarity.update import IndexUpdate, prefetch, update

WORDS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}


class MeanColour:
    """Embed a picture by its mean colour, and a word by that of its colour: what is alike is plain to see."""

    name, identity, width = "mean colour", "1", 3

    def levels(self, pictures: Sequence[object]) -> torch.Tensor:
        rows = [np.asarray(_opened(picture).resize((4, 4))) for picture in pictures]
        return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2)

    def embed_levels(self, levels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(levels.float().mean((2, 3)) + 1, dim=-1)

    def embed_images(self, pictures: Sequence[object], batch: int = 32) -> torch.Tensor:
        return self.embed_levels(self.levels(pictures))

    def embed_texts(self, texts: Sequence[str], batch: int = 256) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.tensor([WORDS[text] for text in texts]).float() + 1, dim=-1)


class Other(MeanColour):
    name, identity = "other", "2"


def _opened(picture: object) -> Image.Image:
    assert isinstance(picture, Image.Image | Path)
    return picture if isinstance(picture, Image.Image) else Image.open(picture).convert("RGB")


def paint(path: Path, colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 7), colour).save(path)


def run(folder: Path, source: Path, clip: MeanColour | None = None, batch: int = 2) -> IndexUpdate:
    return list(update(folder, source, clip or MeanColour(), batch=batch))[-1]


def names(folder: Path) -> set[str]:
    return {entry.place.name for entry in open_index(folder).by_row.values()}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name, colour in WORDS.items():
        paint(tmp_path / "pictures" / f"{name}.png", colour)
    paint(tmp_path / "pictures/below/dark.png", (80, 10, 10))
    (tmp_path / "pictures/torn.jpg").write_bytes(b"\xff\xd8\xff torn")
    (tmp_path / "pictures/readme.txt").write_text("no picture")
    return tmp_path / "pictures"


def test_every_row_is_its_pictures_embedding(pictures: Path, tmp_path: Path) -> None:
    last = run(tmp_path / "index", pictures)
    index, clip = open_index(tmp_path / "index"), MeanColour()
    assert (last.done, last.total, last.added, last.gone) == (6, 6, 5, 0)
    assert isinstance(index.vectors, np.memmap)
    for row, entry in index.by_row.items():
        alone = clip.embed_images([pictures / entry.place.name])[0]
        np.testing.assert_allclose(index.vectors[row], alone, atol=1e-6)
    assert [skipped.name for skipped in index.skipped] == ["torn.jpg"]
    assert "cannot identify" in index.skipped[0].reason


def test_only_what_is_new_or_changed_is_embedded(pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    run(folder, pictures)
    assert run(folder, pictures).total == 0
    paint(pictures / "new.png", (1, 2, 3))
    paint(pictures / "red.png", (0, 0, 250))
    os.utime(pictures / "red.png", ns=(1, 1))  # a clock too coarse to see the change must not decide
    (pictures / "green.png").unlink()
    paint(pictures / "torn.jpg", (9, 9, 9))
    last = run(folder, pictures)
    assert (last.added, last.kept, last.gone) == (3, 3, 1)
    assert names(folder) == {"red.png", "blue.png", "yellow.png", "below/dark.png", "new.png", "torn.jpg"}
    hits = search(open_index(folder), MeanColour(), Query(("blue",)), top=2).hits
    assert {hit.name for hit in hits} == {"red.png", "blue.png"}
    assert not open_index(folder).skipped


def test_dead_rows_are_cleared_away_in_time(pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    for turn in range(4):
        for name in WORDS:
            paint(pictures / f"{name}.png", (turn, 10, 20))
            os.utime(pictures / f"{name}.png", ns=(turn, turn))
        run(folder, pictures)
        index = open_index(folder)
        assert len(index) == 5
        assert index.header.rows <= 5 / 0.75
        assert len(list(folder.glob("vectors-*"))) == 1
    np.testing.assert_allclose(
        index.vectors[index.entries["red.png"].row], MeanColour().embed_images([pictures / "red.png"])[0], atol=1e-6
    )


@pytest.mark.parametrize("events", [1, 2, 3])
def test_stopped_it_goes_on_and_ends_the_same(pictures: Path, tmp_path: Path, events: int) -> None:
    run(tmp_path / "whole", pictures)
    running = update(tmp_path / "stopped", pictures, MeanColour(), batch=2)
    done = [next(running) for _ in range(events)][-1].done
    running.close()
    header = open_index(tmp_path / "stopped").header
    with (tmp_path / "stopped/vectors-0.f32").open("ab") as file:  # a batch whose header was never written
        file.write(b"half a row")
    with (tmp_path / "stopped/pictures-0.jsonl").open("ab") as file:
        file.write(b'{"name": "hal')
    assert open_index(tmp_path / "stopped").header == header
    assert run(tmp_path / "stopped", pictures).total == 6 - done
    whole, again = open_index(tmp_path / "whole"), open_index(tmp_path / "stopped")
    assert whole.entries == again.entries
    np.testing.assert_array_equal(whole.vectors, again.vectors)


def test_shards_are_searched_like_folders(pictures: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    with tarfile.open(shards / "00000.tar", "w") as tar:
        for name in WORDS:
            tar.add(pictures / f"{name}.png", f"{name}.png")
        link = tarfile.TarInfo("evil.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(pictures / "red.png")
        tar.addfile(link)
    (shards / "00001.tar").write_bytes((shards / "00000.tar").read_bytes()[:700])
    last = run(tmp_path / "index", shards)
    assert [skipped.name for skipped in last.skipped] == ["00001.tar"]
    index = open_index(tmp_path / "index")
    hit = search(index, MeanColour(), Query(("green",)), top=1).hits[0]
    assert hit.name == "00000.tar/green.png"
    assert index.picture(hit.entry).getpixel((0, 0)) == (0, 255, 0)
    assert "00000.tar/evil.png" not in index.entries


def test_a_shard_that_is_being_written_forgets_nothing(pictures: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    with tarfile.open(shards / "a.tar", "w") as tar:
        tar.add(pictures / "red.png", "red.png")
    (shards / "b.tar").write_bytes((shards / "a.tar").read_bytes())
    run(tmp_path / "index", shards)
    (shards / "b.tar").write_bytes((shards / "a.tar").read_bytes()[:600])
    assert run(tmp_path / "index", shards).gone == 0
    assert names(tmp_path / "index") == {"a.tar/red.png", "b.tar/red.png"}


def test_another_model_or_source_or_folder_is_refused(pictures: Path, tmp_path: Path) -> None:
    run(tmp_path / "index", pictures)
    with pytest.raises(ReverieError, match="of the model 'mean colour'"):
        run(tmp_path / "index", pictures, Other())
    with pytest.raises(ReverieError, match="of the model 'mean colour'"):
        search(open_index(tmp_path / "index"), Other(), Query(("red",)))
    with pytest.raises(ReverieError, match="is of"):
        run(tmp_path / "index", pictures / "below")
    with pytest.raises(ReverieError, match="no index"):
        run(pictures, pictures / "below")
    with pytest.raises(ReverieError, match="no index in"):
        open_index(tmp_path / "nowhere")


def test_a_collection_that_was_moved_is_not_embedded_again(pictures: Path, tmp_path: Path) -> None:
    run(tmp_path / "index", pictures)
    moved = pictures.rename(tmp_path / "elsewhere")
    assert run(tmp_path / "index", moved).total == 0
    index = open_index(tmp_path / "index")
    assert index.picture(index.entries["red.png"]).size == (9, 7)


def test_two_processes_do_not_write_at_once(pictures: Path, tmp_path: Path) -> None:
    running = update(tmp_path / "index", pictures, MeanColour(), batch=2)
    next(running)
    with pytest.raises(ReverieError, match="another process"):
        run(tmp_path / "index", pictures)
    running.close()
    assert run(tmp_path / "index", pictures).added == 5


@pytest.mark.parametrize("damage", ["index.json", "pictures-0.jsonl", "vectors-0.f32"])
def test_damage_is_told_in_one_line(pictures: Path, tmp_path: Path, damage: str) -> None:
    run(tmp_path / "index", pictures)
    file = tmp_path / "index" / damage
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ReverieError, match="damaged"):
        open_index(tmp_path / "index")


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    paint(tmp_path / "pictures/red.png", (255, 0, 0))
    try:
        (tmp_path / "pictures/red.png").rename(tmp_path / "pictures" / os.fsdecode(b"r\xe9d.png"))
    except OSError:
        pytest.skip("this file system wants Unicode")
    run(tmp_path / "index", tmp_path / "pictures")
    assert run(tmp_path / "index", tmp_path / "pictures").total == 0


@pytest.mark.parametrize("top", [1, 7, 300, 1000])
def test_the_nearest_are_those_that_sorting_all_gives(tmp_path: Path, top: int) -> None:
    index, vectors = _random(tmp_path, 300)
    query = vectors[17]
    order = np.argsort(-(vectors @ query), kind="stable")[:top]
    rows, cosines = exact(index, query, top)
    np.testing.assert_array_equal(rows, order)
    np.testing.assert_allclose(cosines, (vectors @ query)[order], atol=1e-6)


@pytest.mark.parametrize("cells_from", [10_000, 100])
def test_faiss_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cells_from: int) -> None:
    """By comparing all, and by cells of which every one is looked into; what is gone is not found."""
    pytest.importorskip("faiss")
    monkeypatch.setattr("reverie.similarity.search.CELLS_FROM", cells_from)
    monkeypatch.setattr("reverie.similarity.search.CELL_SHARE", 1)
    index, vectors = _random(tmp_path, 3000)
    IndexWriter(tmp_path, index.header).forget(["17", "1"])
    index = open_index(tmp_path)
    for _ in range(2):  # built, then read from its file
        rows, cosines = by_faiss(index, vectors[17], 20)
        expected = exact(index, vectors[17], 20)
        np.testing.assert_array_equal(rows, expected[0])
        np.testing.assert_allclose(cosines, expected[1], atol=1e-6)
        index = open_index(tmp_path)
    assert len(list(tmp_path.glob("faiss-*"))) == (cells_from == 100)
    assert NEAREST["faiss"] is by_faiss


def test_equals_come_in_the_same_order_from_both(tmp_path: Path) -> None:
    """Copies of a picture have one score: the earlier row goes first, also where the last place is shared."""
    pytest.importorskip("faiss")
    index, vectors = _random(tmp_path, 60)
    writer = IndexWriter(tmp_path, index.header)
    copies = [IndexEntry(PicturePlace(f"copy {k}", f"copy {k}", 0, 1, "")) for k in range(40)]
    writer.add(copies, [np.repeat(vectors[17:18], 40, axis=0)])
    index = open_index(tmp_path)
    for top in (1, 5, 41, 60):
        rows = exact(index, vectors[17], top)[0]
        np.testing.assert_array_equal(by_faiss(index, vectors[17], top)[0], rows)
        np.testing.assert_array_equal(rows[:41], [17, *range(60, 100)][:top])


def _random(folder: Path, count: int) -> tuple[Index, np.ndarray]:
    """Make an index of random directions, without pictures."""
    vectors = np.random.default_rng(0).normal(size=(count, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    writer = IndexWriter(folder, IndexHeader(model="m", identity="i", width=16, source=str(folder)))
    writer.add([IndexEntry(PicturePlace(f"{row}", f"{row}", 0, 1, "")) for row in range(count)], [vectors])
    return open_index(folder), vectors


def test_prefetching_keeps_the_order_and_holds_few() -> None:
    started: list[int] = []
    results = prefetch(lambda item: started.append(item) or -item, iter(range(100)), workers=3, ahead=5)
    assert next(results) == (0, 0)
    assert len(started) <= 6
    assert [result for _, result in results] == [-item for item in range(1, 100)]


def test_png_bytes_do_not_run_past_their_member(tmp_path: Path) -> None:
    """A picture is read from its own bytes: what follows in the shard is not part of it."""
    out = io.BytesIO()
    Image.new("RGB", (3, 3), (1, 2, 3)).save(out, "PNG")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        member = tarfile.TarInfo("a.png")
        member.size = 30  # cut off
        tar.addfile(member, io.BytesIO(out.getvalue()[:30]))
        member = tarfile.TarInfo("b.png")
        member.size = len(out.getvalue())
        tar.addfile(member, io.BytesIO(out.getvalue()))
    run(tmp_path / "index", tmp_path / "0.tar")
    assert names(tmp_path / "index") == {"0.tar/b.png"}
