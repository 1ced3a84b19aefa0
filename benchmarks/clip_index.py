"""How fast are pictures indexed, beside transformers' CLIPModel on the same weights, and how fast is a query?

Both read the same JPEG files from disk in batches of the same size on the same number of threads, turn by turn in one
run; what is compared is the best turn of each. `python benchmarks/clip_index.py --count 256`.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from reverie.data.concepts import concepts
from reverie.data.scenes import render, scene_at
from reverie.similarity.embed import BUNDLED, load_clip
from reverie.similarity.index import Entry, Header, _Writer, open_index, update
from reverie.similarity.search import exact
from reverie.similarity.sources import Place


def draw(folder: Path, count: int, side: int) -> None:
    """Write scenes as photographs are: large JPEG files."""
    things = concepts("common")
    for index in range(count):
        scene = Image.fromarray(render(scene_at(things, 1, index))).resize((side, side * 3 // 4))
        scene.save(folder / f"{index:05}.jpg", quality=90)


def peer(files: list[Path], batch: int) -> Callable[[], np.ndarray]:
    """Embed with transformers, as its documentation does."""
    from transformers import AutoImageProcessor, CLIPModel

    model = CLIPModel.from_pretrained(str(BUNDLED)).eval()
    processor = AutoImageProcessor.from_pretrained(str(BUNDLED))

    @torch.no_grad()
    def run() -> np.ndarray:
        rows = []
        for start in range(0, len(files), batch):
            pictures = [Image.open(file).convert("RGB") for file in files[start : start + batch]]
            inputs = processor(images=pictures, return_tensors="pt")
            found = model.get_image_features(**inputs)
            rows.append(found if isinstance(found, torch.Tensor) else found.pooler_output)
        return torch.nn.functional.normalize(torch.cat(rows), dim=-1).numpy()

    return run


def query_time(count: int = 20_000, width: int = 512, turns: int = 50) -> float:
    """Return the median milliseconds of a query over random rows, mapped from disk."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(count, width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with tempfile.TemporaryDirectory() as folder:
        writer = _Writer(Path(folder), Header(model="m", identity="i", width=width, source=folder))
        writer.append([Entry(Place(str(row), str(row), 0, 1, ""), row).line() for row in range(count)], [vectors])
        index, times = open_index(folder), []
        for turn in range(turns):
            start = time.perf_counter()
            exact(index, vectors[turn], 10)
            times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1000


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--side", type=int, default=640)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        pictures = Path(name, "pictures")
        pictures.mkdir()
        draw(pictures, asked.count, asked.side)
        clip, theirs = load_clip(device="cpu"), peer(sorted(pictures.glob("*.jpg")), asked.batch)
        assert clip.identity  # read once by every command; not part of the rate
        times: dict[str, list[float]] = {"reverie": [], "transformers": []}
        apart = 0.0
        for turn in range(asked.turns):
            folder = Path(name, f"index{turn}")
            start = time.perf_counter()
            for _ in update(folder, pictures, clip, batch=asked.batch, workers=asked.workers):
                pass
            times["reverie"].append(asked.count / (time.perf_counter() - start))
            start = time.perf_counter()
            rows = theirs()
            times["transformers"].append(asked.count / (time.perf_counter() - start))
            apart = max(apart, float(np.abs(open_index(folder).vectors - rows).max()))
    best = {key: round(max(values), 2) for key, values in times.items()}
    told = {"pictures a second": best, "times as fast": round(best["reverie"] / best["transformers"], 3)}
    told |= {"all turns": {key: [round(value, 2) for value in values] for key, values in times.items()}}
    told |= {"largest difference": apart, "query ms, 20,000 x 512": round(query_time(), 2)}
    told |= {"threads": torch.get_num_threads(), "machine": platform.processor() or platform.machine(), **vars(asked)}
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
