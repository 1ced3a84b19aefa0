"""How long does a user wait? Imports, `reverie --help`, and a prompt to a file, in new processes and in a warm one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import peer_picture
import reverie
from measure import Row, alternate, run, seconds
from reverie.codecs.pictures import save

# Without the hub: the peer would wait for it.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TQDM_DISABLE": "1"}
REVERIE = str(Path(sys.executable).with_name("reverie"))
IMPORT = "import time, torch; start = time.perf_counter(); {}; print(time.perf_counter() - start)"


def rows(folder: Path | None, steps: int, rounds: int, scratch: Path) -> Iterator[Row]:
    """Measure imports and --help; where there is a model in `folder`, prompt to file too, into `scratch`."""
    yield import_time("import, beyond torch", "import reverie", "import diffusers", rounds)
    needed = "import reverie; reverie.load", "from diffusers import StableDiffusionPipeline"
    yield import_time("all imports that drawing needs, beyond torch", *needed, rounds)
    yield Row("`reverie --help`", ours=[run([REVERIE, "--help"]).seconds for _ in range(rounds)], note="no torch")
    if folder is not None:
        yield from cold(folder, steps, rounds, scratch)
        yield warm(folder, steps, rounds, scratch)


def import_time(name: str, ours: str, theirs: str, rounds: int) -> Row:
    """Time an import of each side, beyond `import torch`."""
    return Row(name, "s", *alternate(partial(imported, ours), partial(imported, theirs), rounds))


def imported(statement: str) -> float:
    """Time a statement in a new process that has torch already."""
    return float(run([sys.executable, "-c", IMPORT.format(statement)], **OFFLINE).output.split()[-1])


def cold(folder: Path, steps: int, rounds: int, scratch: Path) -> Iterator[Row]:
    """Measure whole processes from the prompt to the file: time and peak memory. The disk's cache is warm."""
    options = ["--steps", str(steps), "--guidance", str(peer_picture.GUIDANCE), "--seed", "7", "--model", str(folder)]
    options += ["--device", "cpu", "--dtype", "float32"]
    ours = [REVERIE, "image", peer_picture.PROMPT, "-o", str(scratch / "ours.png"), *options]
    theirs = [sys.executable, peer_picture.__file__, str(folder), str(scratch / "theirs.png"), str(steps)]
    run(ours)  # once for the disk's cache
    run(theirs, **OFFLINE)
    pairs = [(run(ours), run(theirs, **OFFLINE)) for _ in range(rounds)]
    name = f"prompt to file, new process, {steps} steps"
    yield Row(name, "s", [a.seconds for a, _ in pairs], [b.seconds for _, b in pairs])
    yield Row("peak memory of that process", "MiB", [a.peak_mib for a, _ in pairs], [b.peak_mib for _, b in pairs])


def warm(folder: Path, steps: int, rounds: int, scratch: Path) -> Row:
    """Time prompt to file in this process, with the model loaded."""
    model, pipeline = reverie.load(folder, device="cpu", dtype="float32"), peer_picture.load(folder)

    def ours() -> None:
        pictures = model.text_to_image(peer_picture.PROMPT, seed=7, steps=steps, guidance=peer_picture.GUIDANCE)
        save(pictures[0], scratch / "ours.png")

    theirs = partial(peer_picture.draw, pipeline, scratch / "theirs.png", steps)
    ours()
    theirs()
    times = alternate(lambda: seconds(ours), lambda: seconds(theirs), rounds)
    return Row(f"prompt to file, loaded model, {steps} steps", "s", *times)
