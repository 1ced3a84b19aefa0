"""Does the CLIP that ships know the things it was trained on, in scenes that no training drew?"""

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
