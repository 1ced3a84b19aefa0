"""Captioned pictures on disk: webdataset shards in img2dataset's layout.

A shard 00000.tar holds 000000000.jpg, .txt and .json, then 000000001 and so on (five digits of the shard, four of the
place in it); 00000_stats.json tells of it. Source: img2dataset, writer.py, WebDatasetSampleWriter.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reverie.corpora.captions import chinese, english, scene_caption
from reverie.corpora.concepts import Concept, concepts
from reverie.corpora.scenes import CANVAS, Scene, render, scene_at
from reverie.errors import ReverieError
from reverie.files import SHARD, tar_writer, unwritable, write_text
from reverie.progress import Progress

LARGEST_SHARD = 10_000  # four digits
# Readers of this layout ask for "jpg". Without chroma subsampling a scene keeps 41 dB or more, with it 30 dB, as its
# edges are of pure colours; PNG would be exact and a seventh larger.
JPEG = {"quality": 95, "subsampling": 0}


@dataclass(frozen=True)
class Corpus:
    """Describe a stream of samples: its seed, what else determines them, and how sample n is made under a key.

    `identity` holds plain values; `members` gives the extension and the content of each file of a sample.
    """

    seed: int
    identity: dict[str, Any]
    members: Callable[[str, int], Iterable[tuple[str, bytes]]]

    def __post_init__(self) -> None:
        """Raise ReverieError for a seed that numpy cannot draw from."""
        if self.seed < 0:
            raise ReverieError(f"a seed of {self.seed} is not possible; give 0 or more")


def write(folder: Path, *, subset: str = "all", count: int, seed: int, shard_size: int = 1000) -> Iterator[Progress]:
    """Write emoji scenes 0 to `count` of the stream `seed` into a folder, as `write_corpus` does.

    Raises ReverieError for an unknown subset too.
    """
    corpus = Corpus(seed, {"subset": subset}, partial(_members, concepts(subset), seed))
    yield from write_corpus(folder, corpus, count, shard_size)


def write_corpus(folder: Path, corpus: Corpus, count: int, shard_size: int = 1000) -> Iterator[Progress]:
    """Write samples 0 to `count` of a stream into a folder, yielding how far it is.

    Shards that are there already are passed over, so that a stopped job goes on; the same call writes the same bytes.
    Raises ReverieError for bad numbers, or a folder that holds other shards.
    """
    if count < 1 or not 1 <= shard_size <= LARGEST_SHARD:
        raise ReverieError(
            f"cannot write {count} samples, {shard_size} a shard; "
            f"give at least 1 sample and 1 to {LARGEST_SHARD} a shard"
        )
    folder = Path(folder)
    corpus = replace(corpus, identity=corpus.identity | {"seed": corpus.seed, "shard_size": shard_size})
    _check(folder, corpus.identity, count)
    with unwritable(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, count, shard_size)):
        indices = range(start, min(start + shard_size, count))
        if _is_whole(folder, number, len(indices)):
            yield Progress(indices.stop, count, "samples")
        else:
            for done in _write_shard(folder, number, corpus, indices):
                yield Progress(done, count, "samples")


def _check(folder: Path, identity: dict[str, Any], count: int) -> None:
    """Raise ReverieError where the folder holds shards that are not a part of this corpus."""
    for tar in folder.glob("*.tar"):
        record = _stats(tar)
        if {name: record.get(name) for name in identity} != identity:
            raise ReverieError(f"{folder} holds other shards ({tar.name}); choose another folder")
        held = int(tar.stem) * identity["shard_size"] + record.get("count", 0)
        if held > count:
            raise ReverieError(f"{folder} holds more than {count} samples; choose another folder or a larger count")


def _is_whole(folder: Path, number: int, count: int) -> bool:
    tar = folder / f"{number:05}.tar"
    return tar.exists() and _stats(tar).get("count") == count


def _stats(tar: Path) -> dict[str, Any]:
    try:
        record = json.loads(tar.with_name(f"{tar.stem}_stats.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _write_shard(folder: Path, number: int, corpus: Corpus, indices: range) -> Iterator[int]:
    """Write one shard; its statistics come first, so that no shard is without them."""
    with tar_writer(folder / f"{number:05}{SHARD}") as add:
        for place, index in enumerate(indices):
            key = f"{number:05}{place:04}"
            for extension, content in corpus.members(key, index):
                add(f"{key}.{extension}", content)
            yield index + 1
        stats = {"count": len(indices), "successes": len(indices), "failed_to_download": 0, "failed_to_resize": 0}
        write_text(folder / f"{number:05}_stats.json", json.dumps(stats | corpus.identity, indent=1))


def _members(things: Sequence[Concept], seed: int, key: str, index: int) -> Iterator[tuple[str, bytes]]:
    scene, caption = scene_at(things, seed, index), scene_caption(things, seed, index)
    picture = io.BytesIO()
    Image.fromarray(render(scene)).save(picture, "JPEG", **JPEG)
    rng = np.random.default_rng((seed, index, 5))
    record = {
        "key": key,
        "caption": caption,
        "caption_en": english(scene, rng),
        "caption_zh": chinese(scene, rng),
        "width": CANVAS,
        "height": CANVAS,
        **_description(scene),
    }
    yield "jpg", picture.getvalue()
    yield "txt", caption.encode()
    yield "json", json.dumps(record, ensure_ascii=False).encode()


def _description(scene: Scene) -> dict[str, Any]:
    """Say what a scene shows; boxes are left, top, right and bottom in pixels."""
    return {
        "emoji": [placed.concept.emoji for placed in scene.objects],
        "boxes": [[it.x, it.y, it.x + it.size, it.y + it.size] for it in scene.objects],
        "colour": scene.colour,
        "rgb": scene.rgb,
        "size": scene.size_word,
        "relation": scene.relation,
    }
