"""Is pair n a function of n alone, cropped within its picture, and is a damaged picture passed over?"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reverie.errors import ReverieError
from reverie.train.pairs import CaptionedPairs, crop_box, first_readable, open_pairs

SIZES = [(100, 100), (640, 480), (30, 900), (1, 1)]


def opened(folder: Path, smallest: float = 0.9) -> CaptionedPairs:
    pairs = open_pairs(str(folder), subset="common", seed=3, batch=2, naming=0, size=8, smallest=smallest)
    assert isinstance(pairs, CaptionedPairs)
    return pairs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give five pictures, each told by its level of grey."""
    for level in range(5):
        Image.new("RGB", (20, 10), (level * 50,) * 3).save(tmp_path / f"{level}.png")
        (tmp_path / f"{level}.txt").write_text(f"{level * 50}")
    return tmp_path


def test_every_pass_shows_every_picture_with_its_caption(folder: Path) -> None:
    pairs = opened(folder)
    seen = [pairs(index) for index in range(15)]
    for picture, caption in seen:
        assert (picture.shape, picture.dtype) == ((3, 8, 8), np.uint8)
        assert np.all(picture == int(caption))
    for turn in range(3):
        assert {caption for _, caption in seen[5 * turn : 5 * turn + 5]} == {"0", "50", "100", "150", "200"}
    assert [pairs(index)[1] for index in (14, 2, 7)] == [seen[index][1] for index in (14, 2, 7)]


def test_words_are_learned_from_all_over_the_collection(folder: Path) -> None:
    pairs = opened(folder)
    assert list(pairs.captions(100)) == ["0", "50", "100", "150", "200"]
    assert list(pairs.captions(2)) == ["0", "150"]


def test_a_damaged_picture_gives_its_turn_to_the_next(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "2.png").write_bytes(b"?")
    pairs = opened(folder)
    with caplog.at_level(logging.WARNING):
        captions = [pairs(index)[1] for index in range(5)]
    assert sorted(captions) == ["0", "150", "150", "200", "50"]
    assert "2.png" in caplog.text
    assert "the next is taken for it" in caplog.text
    for level in range(5):
        (folder / f"{level}.png").write_bytes(b"?")
    with pytest.raises(ReverieError, match="100 pictures in a row cannot be read"):
        pairs(0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("smallest", [0.05, 0.9])
def test_crops_lie_within_and_keep_enough(size: tuple[int, int], smallest: float) -> None:
    rng = np.random.default_rng(1)
    boxes = [crop_box(size, smallest, rng) for _ in range(200)]
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        width, height = right - left, bottom - top
        assert 3 / 4 - 1e-6 <= width / height <= 4 / 3 + 1e-6
        fitted = width == height == min(size)  # where no crop of that share fits
        assert fitted or smallest - 1e-6 <= width * height / (size[0] * size[1]) <= 1 + 1e-6
    assert len(set(boxes)) > 1 or size in {(30, 900), (1, 1)}


@pytest.mark.parametrize("size", SIZES)
def test_without_chance_the_largest_square_in_the_middle_is_kept(size: tuple[int, int]) -> None:
    left, top, right, bottom = crop_box(size, 1, np.random.default_rng(1))
    assert right - left == bottom - top == min(size)
    assert left + right == size[0]
    assert top + bottom == size[1]


def test_a_damaged_picture_gives_its_turn_to_the_next_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    def read(index: int) -> int:
        if index in (3, 0):
            raise ReverieError(f"cannot read the picture {index}.png")
        return index

    assert first_readable(read, 3, 4) == (1, 1)
    assert [record.message.split(";")[0] for record in caplog.records] == [
        "cannot read the picture 3.png",
        "cannot read the picture 0.png",
    ]
