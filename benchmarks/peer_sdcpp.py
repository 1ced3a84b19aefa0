"""How long does stable-diffusion.cpp take? Its own program draws the prompt from a single file, and tells its times.

For processors with AVX2, from the sources in its Python binding's sdist:
`cmake -DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON -DSD_BUILD_EXAMPLES=ON`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch

import networks
import processes
from measure import GUIDANCE, PROMPT, Row, Run, run, seconds
from networks import Sizes
from reverie.runtime import pack

PEER = "stable-diffusion.cpp"
SAMPLED = re.compile(r"sampling completed, taking ([\d.]+)s")


@torch.no_grad()
def rows(program: Path, model: processes.Model, steps: int, rounds: int, scratch: Path) -> Iterator[Row]:
    """Measure a U-Net step and prompt to file; it computes the two halves of a guided step one after the other."""
    file, sizes = scratch / "model.safetensors", Sizes()
    run([processes.REVERIE, "convert", str(model.folder), str(file)])
    side = model.pixels // 8
    unet, given = pack(networks.random_unet(sizes.unet)), networks.unet_inputs(sizes.unet, side)
    unet(*given)
    ours, theirs, mine, other = [], [], [], []
    for _ in range(rounds):
        ours.append(seconds(lambda: unet(*given)))
        whole = draw(program, file, model.pixels, steps, scratch)
        theirs.append(sampled(whole) / steps)
        other.append(whole)
        mine.append(processes.draw_ours(model, steps, scratch))
    yield Row(networks.unet_name(sizes, side), "s", ours, theirs, PEER, "its own account of sampling, over the steps")
    yield from processes.whole(model, steps, mine, other, PEER)


def draw(program: Path, file: Path, pixels: int, steps: int, scratch: Path) -> Run:
    """Draw the prompt in float32 on as many threads as torch takes."""
    command = [str(program), "--model", str(file), "--prompt", PROMPT, "--output", str(scratch / "theirs.png")]
    command += ["--width", str(pixels), "--height", str(pixels), "--steps", str(steps), "--cfg-scale", str(GUIDANCE)]
    command += ["--sampling-method", "dpm++2m", "--scheduler", "karras", "--seed", "7", "--type", "f32"]
    return run([*command, "--threads", str(torch.get_num_threads())])


def sampled(whole: Run) -> float:
    """Read how many seconds all steps took. Raises RuntimeError where it does not say."""
    found = SAMPLED.search(whole.output)
    if found is None:
        raise RuntimeError(f"stable-diffusion.cpp told no time of sampling:\n{whole.output[-2000:]}")
    return float(found[1])
