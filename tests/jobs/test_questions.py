"""Questions to CLIP are answered as the library answers them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from reverie.errors import ReverieError
from reverie.jobs.questions import Embedding, Search
from reverie.pipeline import Pipeline
from reverie.similarity.embed import load_clip
from reverie.similarity.update import update


def no_model(name: str | None) -> Pipeline:
    raise AssertionError("a model was loaded")


def test_an_index_is_searched_by_text_and_by_example(tmp_path: Path) -> None:
    for colour in ("red", "green", "blue"):
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{colour}.png")
    for _ in update(tmp_path / "index", tmp_path, load_clip()):
        pass
    like = Image.open(tmp_path / "green.png")
    hits = Search.of({"like": like, "top": 2}).answer(no_model, tmp_path / "index")["hits"]
    assert hits[0]["name"] == "green.png"
    assert hits[0]["cosine"] == pytest.approx(1, abs=1e-5)
    assert hits[0]["image"].startswith("data:image/jpeg;base64,")
    assert len(hits) == 2
    with pytest.raises(ReverieError, match="nothing to look for"):
        Search().answer(no_model, tmp_path / "index")
    with pytest.raises(ReverieError, match="no index"):
        Search(text="a bear").answer(no_model, None)


def test_embeddings_are_those_of_clip() -> None:
    rows = Embedding(texts=("a bear", "an apple")).answer(no_model, None)["vectors"]
    assert rows == load_clip().embed_texts(["a bear", "an apple"]).tolist()
