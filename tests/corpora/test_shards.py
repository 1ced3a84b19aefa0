"""Do shards hold what the scenes show, in a layout that others read, and does a stopped job go on?"""

from __future__ import annotations

import gc
import hashlib
import json
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from reverie.corpora.captions import scene_caption
from reverie.corpora.concepts import concepts
from reverie.corpora.scenes import render, scene_at
from reverie.corpora.shards import write
from reverie.data.captioned import open_captioned
from reverie.errors import ReverieError
from reverie.progress import Progress

COUNT, SIZE, SEED = 7, 3, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, cldr: None, font: None) -> Path:
    """Give seven scenes in three shards; tests must not change them."""
    folder = tmp_path_factory.mktemp("corpus") / "made" / "below"
    events = write(folder, subset="food", count=COUNT, seed=SEED, shard_size=SIZE)
    assert list(events) == [Progress(done, COUNT, "samples") for done in range(1, COUNT + 1)]
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_layout(folder: Path) -> None:
    shards = ["00000.tar", "00001.tar", "00002.tar"]
    stats = ["00000_stats.json", "00001_stats.json", "00002_stats.json"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(shards + stats)
    with tarfile.open(folder / "00001.tar") as tar:
        keys = [f"00001000{place}" for place in range(SIZE)]
        assert tar.getnames() == [f"{key}.{extension}" for key in keys for extension in ("jpg", "txt", "json")]
    assert [json.loads((folder / name).read_text())["count"] for name in stats] == [3, 3, 1]


def test_shards_hold_the_scenes(folder: Path) -> None:
    things = concepts("food")
    found = open_captioned(folder)
    assert len(found) == COUNT
    for index in range(COUNT):
        scene = scene_at(things, SEED, index)
        assert found.caption(index) == scene_caption(things, SEED, index)
        error = np.square(np.asarray(found.picture(index), float) - render(scene)).mean()
        assert 10 * np.log10(255**2 / error) > 38  # dB


def test_the_description_says_what_is_drawn(folder: Path) -> None:
    things = concepts("food")
    with tarfile.open(folder / "00000.tar") as tar:
        for index in range(SIZE):
            told = json.load(tar.extractfile(f"00000000{index}.json"))
            scene = scene_at(things, SEED, index)
            assert told["key"] == f"00000000{index}"
            assert told["caption"] == scene_caption(things, SEED, index)
            assert told["emoji"] == [placed.concept.emoji for placed in scene.objects]
            assert (told["colour"], tuple(told["rgb"])) == (scene.colour, scene.rgb)
            assert (told["size"], told["relation"]) == (scene.size_word, scene.relation)
            for (left, top, right, bottom), placed in zip(told["boxes"], scene.objects, strict=True):
                assert (left, top) == (placed.x, placed.y)
                assert right - left == bottom - top == placed.size
            assert any(name in told["caption_en"] for name in scene.objects[0].concept.en)
            assert any(name in told["caption_zh"] for name in scene.objects[0].concept.zh)
            assert (told["width"], told["height"]) == (128, 128)


def test_a_stopped_job_goes_on_to_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    options = {"subset": "food", "count": COUNT, "seed": SEED, "shard_size": SIZE}
    job = write(tmp_path, **options)
    assert [progress.done for progress in islice(job, 5)] == [1, 2, 3, 4, 5]
    job.close()
    assert set(digests(tmp_path)) == {"00000.tar", "00000_stats.json"}
    first = (tmp_path / "00000.tar").stat().st_mtime_ns
    assert [event.done for event in write(tmp_path, **options)] == [3, 4, 5, 6, 7]  # the first shard is passed over
    assert (tmp_path / "00000.tar").stat().st_mtime_ns == first
    assert digests(tmp_path) == digests(folder)


def test_a_corpus_can_grow(folder: Path, tmp_path: Path) -> None:
    list(write(tmp_path, subset="food", count=4, seed=SEED, shard_size=SIZE))
    list(write(tmp_path, subset="food", count=COUNT, seed=SEED, shard_size=SIZE))
    assert digests(tmp_path) == digests(folder)


def test_a_corpus_does_not_shrink(cldr: None, font: None, tmp_path: Path) -> None:
    list(write(tmp_path, subset="food", count=2, seed=SEED))
    before = digests(tmp_path)
    with pytest.raises(ReverieError, match="holds more than 1 samples"):
        list(write(tmp_path, subset="food", count=1, seed=SEED))
    assert digests(tmp_path) == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": SEED + 1}, "holds other shards"),
        ({"subset": "plants"}, "holds other shards"),
        ({"shard_size": SIZE + 1}, "holds other shards"),
        ({"count": SIZE}, "holds more than 3 samples"),
    ],
)
def test_other_shards_are_not_mixed(folder: Path, changed: dict[str, object], message: str) -> None:
    before = digests(folder)
    options = {"subset": "food", "count": COUNT, "seed": SEED, "shard_size": SIZE}
    with pytest.raises(ReverieError, match=message):
        list(write(folder, **options | changed))
    assert digests(folder) == before


def test_foreign_shards_are_left_alone(cldr: None, tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(b"mine")
    with pytest.raises(ReverieError, match="holds other shards"):
        list(write(tmp_path, subset="food", count=1, seed=0))
    assert (tmp_path / "00000.tar").read_bytes() == b"mine"


@pytest.mark.parametrize("numbers", [{"count": 0}, {"count": 1, "shard_size": 0}, {"count": 1, "shard_size": 10_001}])
def test_bad_numbers(cldr: None, tmp_path: Path, numbers: dict[str, int]) -> None:
    with pytest.raises(ReverieError, match="give at least 1 sample and 1 to 10000 a shard"):
        list(write(tmp_path / "new", subset="food", seed=0, **numbers))
    assert not (tmp_path / "new").exists()


def test_a_seed_below_zero(cldr: None, tmp_path: Path) -> None:
    with pytest.raises(ReverieError, match="a seed of -1 is not possible; give 0 or more"):
        list(write(tmp_path / "new", subset="food", count=1, seed=-1))
    assert not (tmp_path / "new").exists()


def test_an_unknown_subset_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(ReverieError, match="unknown subset 'beasts'"):
        list(write(tmp_path / "new", subset="beasts", count=1, seed=0))
    assert not (tmp_path / "new").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves the file open
def test_webdataset_reads_them(folder: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="needs the extra `train`")
    data = webdataset.WebDataset(str(folder / "00000.tar"), shardshuffle=False).decode("pil").to_tuple("jpg", "txt")
    read_by_others = list(data)
    del data
    gc.collect()  # so that the warning comes here
    found = open_captioned(folder)
    for index, (picture, caption) in enumerate(read_by_others):
        assert caption == found.caption(index)
        assert np.array_equal(np.asarray(picture), np.asarray(found.picture(index)))
