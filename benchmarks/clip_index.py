"""How fast are pictures indexed, beside transformers' CLIPModel on the same weights, and how fast is a query?

All read the same JPEG files from disk in batches of the same size, in float32 on the same number of threads, turn by
turn in one run. transformers is asked twice: as its documentation does it, where the model waits for the pictures, and
with as many threads beside it that decode and preprocess as `reverie index` has. The best turn of each is compared, by
the clock and by the CPU's time, which does not depend on what else the machine does.
`python benchmarks/clip_index.py --count 256`.
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

from reverie.corpora.concepts import concepts
from reverie.corpora.scenes import render, scene_at
from reverie.requests.references import CLIP_FOLDER
from reverie.similarity.embed import Clip, load_clip
from reverie.similarity.index import IndexEntry, IndexHeader, IndexWriter, PicturePlace, open_index
from reverie.similarity.search import exact
from reverie.similarity.update import prefetch, update

Run = Callable[[], np.ndarray]


def draw(folder: Path, count: int, side: int) -> None:
    """Write scenes as photographs are: large JPEG files."""
    things = concepts("common")
    for index in range(count):
        scene = Image.fromarray(render(scene_at(things, 1, index))).resize((side, side * 3 // 4))
        scene.save(folder / f"{index:05}.jpg", quality=90)


def ours(clip: Clip, pictures: Path, folder: Path, batch: int, workers: int) -> Run:
    """Index, each time anew, and return the rows in the order of the files' names."""

    def run() -> np.ndarray:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            for _ in update(Path(name, "index"), pictures, clip, batch=batch, workers=workers):
                pass
            return np.array(open_index(Path(name, "index")).vectors)

    return run


def peer(files: list[Path], batch: int, workers: int) -> Run:
    """Embed with transformers; without `workers` as its documentation does, else with threads that decode ahead."""
    from transformers import AutoImageProcessor, CLIPModel

    # in float32, or it computes in the file's halves
    model = CLIPModel.from_pretrained(str(CLIP_FOLDER), dtype=torch.float32).eval()
    processor = AutoImageProcessor.from_pretrained(str(CLIP_FOLDER))
    parts = [files[start : start + batch] for start in range(0, len(files), batch)]

    def prepare(part: list[Path]) -> torch.Tensor:
        pixels: torch.Tensor = processor(
            images=[Image.open(file).convert("RGB") for file in part], return_tensors="pt"
        )["pixel_values"]
        return pixels

    @torch.no_grad()
    def run() -> np.ndarray:
        prepared = prefetch(prepare, parts, workers, 2) if workers else ((part, prepare(part)) for part in parts)
        found = [model.get_image_features(pixel_values=pixels) for _, pixels in prepared]
        rows = torch.cat([it if isinstance(it, torch.Tensor) else it.pooler_output for it in found])
        return torch.nn.functional.normalize(rows, dim=-1).numpy()

    return run


def query_time(count: int = 20_000, width: int = 512, turns: int = 50) -> float:
    """Return the median milliseconds of a query over random rows, mapped from disk."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(count, width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with tempfile.TemporaryDirectory() as folder:
        writer = IndexWriter(Path(folder), IndexHeader(model="m", identity="i", width=width, source=folder))
        writer.add([IndexEntry(PicturePlace(str(row), str(row), 0, 1, "")) for row in range(count)], [vectors])
        index, times = open_index(folder), []
        for turn in range(turns):
            start = time.perf_counter()
            exact(index, vectors[turn], 10)
            times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1000


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--side", type=int, default=640)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        pictures = Path(name, "pictures")
        pictures.mkdir()
        draw(pictures, asked.count, asked.side)
        clip, files = load_clip(device="cpu"), sorted(pictures.glob("*.jpg"))
        assert clip.identity  # read once by every command; not part of the rate
        runs = {
            "reverie": ours(clip, pictures, Path(name), asked.batch, asked.workers),
            "transformers": peer(files, asked.batch, 0),
            "transformers, decoding ahead": peer(files, asked.batch, asked.workers),
        }
        wall, cpu, rows = measured(runs, asked.turns)
    told: dict[str, object] = {"pictures a second": {key: round(asked.count / min(it), 1) for key, it in wall.items()}}
    told["CPU milliseconds a picture"] = {key: round(min(it) / asked.count * 1000, 2) for key, it in cpu.items()}
    others = [key for key in runs if key != "reverie"]
    told["times as fast"] = {key: round(min(wall[key]) / min(wall["reverie"]), 2) for key in others}
    told["times as fast by CPU time"] = {key: round(min(cpu[key]) / min(cpu["reverie"]), 2) for key in others}
    told["largest difference"] = max(float(np.abs(rows["reverie"] - rows[key]).max()) for key in others)
    told["seconds of all turns"] = {key: [round(value, 2) for value in values] for key, values in wall.items()}
    told["query ms, 20,000 x 512"] = round(query_time(), 2)
    told |= {"threads": torch.get_num_threads(), "machine": platform.processor() or platform.machine(), **vars(asked)}
    print(json.dumps(told, indent=1))


def measured(
    runs: dict[str, Run], turns: int
) -> tuple[dict[str, list[float]], dict[str, list[float]], dict[str, np.ndarray]]:
    """Run all in turns; return the seconds by the clock and by the CPU, and the rows of the last."""
    wall: dict[str, list[float]] = {key: [] for key in runs}
    cpu: dict[str, list[float]] = {key: [] for key in runs}
    rows = {}
    for _ in range(turns):
        for key, run in runs.items():
            start, used = time.perf_counter(), time.process_time()
            rows[key] = run()
            wall[key].append(time.perf_counter() - start)
            cpu[key].append(time.process_time() - used)
    return wall, cpu, rows


if __name__ == "__main__":
    main()
