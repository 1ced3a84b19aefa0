"""Are a chart's colours its scale's, does a large one stay small, and is every name written or numbered?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageFont

from reverie.media import charts
from reverie.media.charts import VIRIDIS, colour_of, drawable_names, font_for, heat_map, labelled_grid, writes

CJK = "熊苹果"


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take the system's fonts away."""
    monkeypatch.setattr(charts, "wide_fonts", lambda: ())
    font_for.cache_clear()
    yield
    font_for.cache_clear()


def test_colours_are_the_ends_of_the_scale_and_rise() -> None:
    assert colour_of(-1.0, -1.0, 1.0)[0] == VIRIDIS[0]
    assert colour_of(1.0, -1.0, 1.0)[0] == VIRIDIS[-1]
    grey = [sum(colour_of(value / 50, 0.0, 1.0)[0]) for value in range(51)]
    assert grey == sorted(grey)
    assert colour_of(3.0, 3.0, 3.0)[0] == VIRIDIS[4]


def test_a_thousand_classes_are_drawn_small() -> None:
    count = 1000
    values = [[float(row == column) for column in range(count)] for row in range(count)]
    picture = heat_map(values, [str(i) for i in range(count)], [str(i) for i in range(count)])
    assert max(picture.size) < 1700
    assert picture.getpixel((picture.width - 9, picture.height - 9)) == VIRIDIS[-1]  # the last of the diagonal
    assert picture.getpixel((picture.width // 4, picture.height - 9)) == VIRIDIS[0]


def test_what_a_font_lacks_is_known() -> None:
    font = ImageFont.load_default(12)
    assert writes(font, "a bear, 5 %")
    assert not writes(font, CJK)
    assert charts.font_for("a bear", 12) is not None


@pytest.mark.usefixtures("bare")
def test_names_without_a_font_are_numbers() -> None:
    assert drawable_names(["bear", "熊", "apple", "苹果"]) == ["bear", "#2", "apple", "#4"]
    values = [[0.0, 1.0], [1.0, 0.0]]
    assert (
        heat_map(values, ["熊", "a"], ["苹", "果"]).tobytes() == heat_map(values, ["#1", "a"], ["#1", "#2"]).tobytes()
    )


def test_a_labelled_grid_holds_every_picture_in_its_place() -> None:
    colours = [(10 * number, 0, 255) for number in range(12)]
    pictures = [Image.new("RGB", (100, 60 if number % 2 else 120), colour) for number, colour in enumerate(colours)]
    long = "a very long prompt that needs many lines, " * 3
    sheet = labelled_grid(pictures, ["steps 1", long, "熊" * 40], ["euler", "ddim"], ["2", "7"])
    (left, width), (top, height) = (sheet.width - 300, 100), (sheet.height // 2 - 240, 120)
    for number, colour in enumerate(colours):
        block, row, column = number // 6, number // 3 % 2, number % 3
        place = (left + width * column + 50, block * (sheet.height // 2) + top + height * row + 60)
        assert sheet.getpixel(place) == colour
    ink = sheet.crop((left, 0, sheet.width, top)).convert("L")
    assert ink.getextrema() == (0, 255)
    assert labelled_grid(pictures[:1], [""]).size == (100, 120)  # without names, nothing but the picture


def test_a_font_of_the_system_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name, below the folders where fonts are, and not where it is damaged."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "NotoSansCJK-Regular.ttc").write_bytes(b"no font")
    (tmp_path / "deep" / "NotoSansCJK-Bold.ttc").write_bytes(b"no font")
    (tmp_path / "Papyrus.ttf").write_bytes(b"no font")
    monkeypatch.setattr(charts, "font_folders", lambda: iter([tmp_path, tmp_path / "nowhere"]))
    for name in ("XDG_DATA_HOME", "XDG_DATA_DIRS"):  # where Pillow looks for another file of the name
        monkeypatch.setenv(name, str(tmp_path))
    found = charts.wide_fonts.__wrapped__()
    assert [Path(file).name for file in found] == ["NotoSansCJK-Regular.ttc", "NotoSansCJK-Bold.ttc"]
    monkeypatch.setattr(charts, "wide_fonts", lambda: found)
    font_for.cache_clear()
    assert font_for(CJK, 12) is None
    font_for.cache_clear()
