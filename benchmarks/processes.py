"""How long does a user wait? Imports, `reverie --help`, and a prompt to a file, in new processes and in a warm one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import first_step as first
import peer_picture
import reverie
from architectures import ARCHITECTURES, FULL, build
from measure import GUIDANCE, PROMPT, Row, Run, alternate, borrowed, run, seconds
from reverie.media.pictures import save
from reverie.models.clip import CLIPTextConfig, TextTower
from reverie.requests.options import TextToImageOptions
from reverie.requests.references import BUNDLED, BUNDLED_NAME

# Without the hub: the peer would wait for it.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TQDM_DISABLE": "1"}
REVERIE = str(Path(sys.executable).with_name("reverie"))
IMPORT = "import time, torch; start = time.perf_counter(); {}; print(time.perf_counter() - start)"


def starting(rounds: int) -> Iterator[Row]:
    """Measure imports and --help."""
    ours, theirs = "import reverie; reverie.load", "from diffusers import StableDiffusionPipeline"
    times = alternate(partial(imported, ours), partial(imported, theirs), rounds)
    yield Row("imports that drawing needs, beyond torch", "s", *times)
    yield Row("`reverie --help`", ours=[run([REVERIE, "--help"]).seconds for _ in range(rounds)], note="no torch")


def imported(statement: str) -> float:
    """Time a statement in a new process that has torch already."""
    return float(run([sys.executable, "-c", IMPORT.format(statement)], **OFFLINE).output.split()[-1])


@dataclass(frozen=True)
class Model:
    """Name a folder in diffusers' layout and the size in pixels that it draws at."""

    name: str
    folder: Path
    pixels: int


BUNDLED_MODEL = Model("bundled model", BUNDLED[BUNDLED_NAME], 128)


def random_model(folder: Path) -> Model:
    """Write a model in SD 1.5's shapes, of random weights: 4.3 GB."""
    built, text = build(ARCHITECTURES["SD 1.5"], FULL), TextTower(CLIPTextConfig())
    replace(built, text_encoders=(text.eval(),)).save(folder)
    return Model("SD 1.5", folder, 256)


def cold(model: Model, steps: int, rounds: int, scratch: Path, openvino: Path | None = None) -> Iterator[Row]:
    """Measure whole processes from the prompt to the file: time and peak memory. The disk's cache is warm.

    OpenVINO takes its turn where the Python of its environment is given.
    """
    file = str(scratch / "theirs.png")
    theirs = [sys.executable, peer_picture.__file__, str(model.folder), file, str(steps), str(model.pixels)]
    sides: dict[str, Callable[[], Run]] = {
        "reverie": partial(draw_ours, model, steps, scratch),
        "diffusers": partial(run, theirs, **OFFLINE),
    }
    if openvino is not None:
        sides["OpenVINO"] = in_openvino(model, steps, openvino, scratch)
    for part in model.folder.rglob("*.safetensors"):  # into the disk's cache
        part.read_bytes()
    turns = [{side: draw() for side, draw in sides.items()} for _ in range(rounds)]
    for peer in list(sides)[1:]:
        yield from whole(model, steps, [turn["reverie"] for turn in turns], [turn[peer] for turn in turns], peer)


def in_openvino(model: Model, steps: int, python: Path, scratch: Path) -> Callable[[], Run]:
    """Convert a model for OpenVINO, and return how its pictures are drawn in a new process."""
    converted = scratch / f"openvino-{model.pixels}"
    script, borrows = str(Path(__file__).with_name("peer_openvino_picture.py")), {"PYTHONPATH": borrowed()}
    run([str(python), script, "convert", str(model.folder), str(converted), str(model.pixels)], **borrows)
    drawing = [str(python), script, "draw", str(converted), str(scratch / "openvino.png"), str(steps)]
    return partial(run, drawing, **borrows)


def whole(
    model: Model, steps: int, ours: Sequence[Run], theirs: Sequence[Run], peer: str = "diffusers"
) -> Iterator[Row]:
    """Tell the time and the peak memory of whole processes."""
    drawn = f"cold, {model.pixels} px, {steps} steps"
    times = [one.seconds for one in ours], [one.seconds for one in theirs]
    yield Row(f"{model.name} prompt to file, {drawn}", "s", *times, peer=peer)
    peaks = [one.peak_mib for one in ours], [one.peak_mib for one in theirs]
    yield Row(f"{model.name} peak memory, {drawn}", "MiB", *peaks, peer=peer)


def draw_ours(model: Model, steps: int, scratch: Path) -> Run:
    """Draw the prompt in a new process."""
    options = ["--steps", str(steps), "--guidance", str(GUIDANCE), "--seed", "7", "--model", str(model.folder)]
    options += ["--size", f"{model.pixels}x{model.pixels}", "--device", "cpu", "--dtype", "float32"]
    command = [REVERIE, "image", PROMPT, "-o", str(scratch / "ours.png"), *options]
    return run(command, **kept_in(scratch))


def kept_in(scratch: Path) -> dict[str, str]:
    """Return the environment in which packed weights are kept in `scratch`, not in the user's cache."""
    return {"REVERIE_CACHE": str(scratch / "cache")}


def first_step(model: Model, rounds: int, scratch: Path) -> Row:
    """Time, in new processes, what lies between the imports and the first denoised latents."""

    def taken(side: str) -> float:
        command = [sys.executable, first.__file__, side, str(model.folder), str(model.pixels)]
        return float(run(command, **kept_in(scratch), **OFFLINE).output.split()[-1])

    name = f"{model.name} load to first step done, {model.pixels} px"
    return Row(name, "s", *alternate(lambda: taken("reverie"), lambda: taken("diffusers"), rounds))


def warm(model: Model, steps: int, rounds: int, scratch: Path) -> Row:
    """Time prompt to file in this process, with the model loaded."""
    system, pipeline = reverie.load(model.folder, device="cpu", dtype="float32"), peer_picture.load(model.folder)
    pixels = model.pixels

    def ours() -> None:
        options = TextToImageOptions(seed=7, steps=steps, guidance=GUIDANCE, width=pixels, height=pixels)
        save(system.text_to_image(PROMPT, **options)[0], scratch / "ours.png")

    def theirs() -> None:
        peer_picture.draw(pipeline, steps, pixels).save(scratch / "theirs.png")

    ours()
    theirs()
    times = alternate(lambda: seconds(ours), lambda: seconds(theirs), rounds)
    return Row(f"{model.name} prompt to file, loaded, {pixels} px, {steps} steps", "s", *times)
