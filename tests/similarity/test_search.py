"""Queries add and take away, and the page that shows what they find is safe to open."""

from __future__ import annotations

import base64
import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reverie.cli.app import run
from reverie.errors import ReverieError
from reverie.similarity.index import open_index
from reverie.similarity.search import Query, Results, contact_sheet, find_picture, search
from reverie.similarity.update import update

from .test_index import WORDS, MeanColour, paint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, colour in WORDS.items():
        paint(tmp_path / "pictures" / f"{name}.png", colour)
    list(update(tmp_path / "index", tmp_path / "pictures", MeanColour()))
    return tmp_path / "index"


def test_a_text_finds_its_picture(folder: Path) -> None:
    for word in WORDS:
        hits = search(open_index(folder), MeanColour(), Query((word,)), top=4).hits
        assert hits[0].name == f"{word}.png"
        assert hits[0].cosine == pytest.approx(1, abs=1e-5)
        assert [hit.cosine for hit in hits] == sorted((hit.cosine for hit in hits), reverse=True)


def test_queries_add_and_subtract(folder: Path, tmp_path: Path) -> None:
    clip, index = MeanColour(), open_index(folder)
    assert search(index, clip, Query(("red", "green")), top=1).hits[0].name == "yellow.png"
    assert search(index, clip, Query(("yellow",), without_texts=("red",)), top=1).hits[0].name == "green.png"
    pictures = tmp_path / "pictures"
    mixed = Query(("red",), (pictures / "yellow.png",), ("red",), (pictures / "red.png",))
    assert search(index, clip, mixed, top=1).hits[0].name == "green.png"
    total = clip.embed_texts(["yellow"])[0] + clip.embed_texts(["blue"])[0]
    for unwanted in (("green",), ("green", "green"), ("green", "red")):
        found = Query(("yellow", "blue"), without_texts=unwanted).embed(clip)
        least = np.linalg.lstsq(clip.embed_texts(unwanted).T.numpy(), total.numpy(), rcond=1e-5)[0]
        expected = total.numpy() - clip.embed_texts(unwanted).T.numpy() @ least  # what the unwanted cannot explain
        np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-5)


def test_pictures_of_the_index_are_named_as_its_results_print_them(folder: Path, tmp_path: Path) -> None:
    index = open_index(folder)
    name = search(index, MeanColour(), Query(("red",)), top=1).hits[0].name
    query = Query((), (find_picture(index, name),))
    assert search(index, MeanColour(), query, top=1).hits[0].name == name
    assert find_picture(index, tmp_path / "pictures" / "red.png") == tmp_path / "pictures" / "red.png"
    with pytest.raises(ReverieError, match=r"no picture 'mauve.png': there is no such file, and the index .* has none"):
        find_picture(index, "mauve.png")


@pytest.mark.parametrize("query", [Query(), Query(("red",), without_texts=("red",))])
def test_a_query_of_nothing_is_refused(folder: Path, query: Query) -> None:
    with pytest.raises(ReverieError, match="nothing"):
        search(open_index(folder), MeanColour(), query)


class Page(HTMLParser):
    """Gather what a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[bytes] = []
        self.text = ""
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "img":
            source = dict(attrs)["src"] or ""
            assert source.startswith("data:image/jpeg;base64,")
            self.images.append(base64.b64decode(source.partition(",")[2]))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_pictures_and_runs_nothing(tmp_path: Path) -> None:
    evil = 'a"><script>alert(1)<&.png'
    paint(tmp_path / "pictures" / evil, (250, 0, 0))
    paint(tmp_path / "pictures/gone.png", (240, 0, 0))
    list(update(tmp_path / "index", tmp_path / "pictures", MeanColour()))
    (tmp_path / "pictures/gone.png").unlink()
    found = search(open_index(tmp_path / "index"), MeanColour(), Query(("red",)), top=9)
    results = Results(found.index, "<img src=x onerror=alert(1)>", found.hits)
    for html in (contact_sheet(results), results._repr_html_()):
        page = Page(html)
        assert "script" not in page.tags
        assert not any(name.startswith("on") for name, _ in page.attributes)
        assert len(page.images) == 1
        assert Image.open(io.BytesIO(page.images[0])).size == (9, 7)
        assert evil in page.text
        assert results.query in page.text
        assert "cannot be read any more" in page.text


@pytest.mark.slow
def test_a_browser_shows_the_page(tmp_path: Path) -> None:
    """In Chromium pictures and names are there, and neither what a name holds nor a script put in by hand runs."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    api = pytest.importorskip("playwright.sync_api")
    evil = 'a"><img src=x onerror="document.title=1"><&.png'
    paint(tmp_path / "pictures" / evil, (250, 0, 0))
    paint(tmp_path / "pictures/blue.png", (0, 0, 250))
    list(update(tmp_path / "index", tmp_path / "pictures", MeanColour()))
    html = contact_sheet(search(open_index(tmp_path / "index"), MeanColour(), Query(("red",))))
    (tmp_path / "found.html").write_text(html.replace("</body>", "<script>document.title = 'ran'</script></body>"))
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto((tmp_path / "found.html").as_uri())
        widths = page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth)")
        texts = page.locator("figcaption").all_inner_texts()
        title = page.title()
        browser.close()
    assert widths == [9, 9]
    assert [text.partition(" ")[2] for text in texts] == [evil, "blue.png"]
    assert title == "red"


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, colour in WORDS.items():
        paint(tmp_path / "pictures" / f"{name}.png", colour)
    (tmp_path / "pictures/torn.png").write_bytes(b"torn")
    index, page = str(tmp_path / "index"), str(tmp_path / "found.html")
    assert run(["index", str(tmp_path / "pictures"), "-o", index, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["pictures"], told["added"], [one["name"] for one in told["skipped"]]) == (4, 4, ["torn.png"])
    like = ["--like", str(tmp_path / "pictures/red.png"), "--top", "2"]
    assert run(["search", index, *like, "--json", "-o", page]) == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert hits[0] == {"name": "red.png", "cosine": pytest.approx(1, abs=1e-5)}
    assert len(Page(Path(page).read_text()).images) == 2
    for wrong, words in (
        ([index], "nothing to look for"),
        ([index, "a bear", "--top", "0"], "--top 0"),
        ([index, "a bear", "-o", "x.png"], ".html"),
        ([index, "--like", "nowhere.png"], "no such file"),
        ([index, "a bear", "--by", "magic"], "choose from numpy, faiss"),
        ([str(tmp_path / "nowhere"), "a bear"], "no index in"),
    ):
        assert run(["search", *wrong]) == 2
        assert words in capsys.readouterr().err
