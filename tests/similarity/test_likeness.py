"""The matrix as records, CSV, HTML and heat map."""

from __future__ import annotations

import csv
import io
import json

import pytest
import torch
from PIL import Image

from reverie.media.charts import colour_of
from reverie.similarity.classify import Likeness, picture_names

NAMES = ("a,b", 'a "bear" <script>', "熊")


@pytest.fixture
def likeness() -> Likeness:
    return Likeness(NAMES, ("x", "y"), torch.tensor([[0.5, -1.0], [0.25, 0.0], [1.0, 0.125]]), "tiny")


def test_one_kind_alone_is_compared_with_itself() -> None:
    eye = torch.eye(2)
    both = Likeness.between(("p", "q"), eye, ("t",), torch.tensor([[0.6, 0.8]]), "m")
    assert (both.rows, both.columns, both.cosines.tolist()) == (
        ("p", "q"),
        ("t",),
        [[pytest.approx(0.6)], [pytest.approx(0.8)]],
    )
    assert Likeness.between((), torch.empty(0, 2), ("t", "u"), eye, "m").cosines.tolist() == eye.tolist()
    assert Likeness.between(("p", "q"), eye, (), torch.empty(0, 2), "m").columns == ("p", "q")


def test_csv_and_json_read_back(likeness: Likeness) -> None:
    rows = list(csv.reader(io.StringIO(likeness.csv())))
    assert rows[0] == ["", "x", "y"]
    assert [row[0] for row in rows[1:]] == list(NAMES)
    assert [[float(value) for value in row[1:]] for row in rows[1:]] == likeness.cosines.tolist()
    told = json.loads(json.dumps(likeness.record()))
    assert told["cosines"] == likeness.cosines.tolist()
    assert told["rows"] == list(NAMES)


def test_html_escapes_names(likeness: Likeness) -> None:
    page = likeness._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert page.count("<td") == 6


def test_cells_have_their_values_colours(likeness: Likeness) -> None:
    picture = likeness.heat_map()
    colours = {picture.getpixel((x, y)) for x in range(picture.width) for y in range(picture.height)}
    for value in likeness.cosines.flatten().tolist():
        exact = colour_of(value, -1.0, 1.0)[0]
        assert any(max(abs(a - b) for a, b in zip(exact, colour, strict=True)) <= 1 for colour in colours)


def test_pictures_are_named_by_their_files() -> None:
    assert picture_names(["a.png", Image.new("RGB", (2, 2))]) == ("a.png", "picture 1")
