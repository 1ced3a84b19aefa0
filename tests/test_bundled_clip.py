"""The CLIP that ships knows the things it was trained on, in scenes that no training drew."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import reverie
from reverie.checkpoints.load import load_clip
from reverie.codecs.clip_images import Preprocessing
from reverie.corpora.concepts import CLDR, concepts
from reverie.corpora.scenes import FONT, render, scene_at
from reverie.similarity.index import open_index
from reverie.similarity.search import Query, exact, search
from reverie.similarity.update import update

FOLDER = Path(reverie.__file__).parent / "assets" / "clip"
SEED = 20_000  # as in benchmarks/quality.py: no recipe draws from it


@pytest.mark.skipif(not (FONT.is_file() and CLDR.is_dir()), reason="needs the emoji font and its names")
def test_names_what_it_sees() -> None:
    parts, things = load_clip(FOLDER), concepts("common")
    scenes = [scene_at(things, SEED, index, pair_share=0) for index in range(40)]
    with torch.no_grad():
        names = parts.clip.encode_text(parts.tokenizer([f"a {thing.en[0]}" for thing in things]))
        seen = parts.clip.encode_image(
            Preprocessing(size=128, edge=128)([Image.fromarray(render(scene)) for scene in scenes])
        )
    names, seen = F.normalize(names), F.normalize(seen)
    best = (seen @ names.T).argmax(1).tolist()
    right = [things[index] == scene.objects[0].concept for index, scene in zip(best, scenes, strict=True)]
    assert sum(right) >= 30


@pytest.mark.skipif(not (FONT.is_file() and CLDR.is_dir()), reason="needs the emoji font and its names")
def test_a_bear_without_snow_is_a_bear_first(tmp_path: Path) -> None:
    """Among what a difference of embeddings finds instead: lipstick, amphora, doughnut, teddy bear, red apple."""
    things = concepts("all")
    for place in (205, 241, 393, 509, 621, 748, 846, 1169, 1293):
        scene = scene_at(things, 99, place)
        Image.fromarray(render(scene)).save(tmp_path / f"{scene.objects[0].concept.en[0]}.png")
    clip = reverie.load_clip()
    list(update(tmp_path / "index", tmp_path, clip))
    index = open_index(tmp_path / "index")
    assert search(index, clip, Query(("a bear",)), top=1).hits[0].name == "bear.png"
    assert search(index, clip, Query(("a bear",), without_texts=("snow",)), top=1).hits[0].name == "bear.png"
    difference = torch.tensor([1.0, -1.0]) @ clip.embed_texts(["a bear", "snow"])
    assert index.by_row[int(exact(index, difference.numpy(), 1)[0][0])].place.name != "bear.png"
