"""Where does reverie stand on a GPU? Pictures beside diffusers', a large batch, offloading; told row by row.

`--device cpu --quick` shows with tiny networks that the benchmark itself works: torch then traces without compiling.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import networks
import peer_picture
from architectures import ARCHITECTURES, FULL, Scale, build
from measure import GUIDANCE, PROMPT, Row, machine, seconds
from report import markdown, write
from reverie import system
from reverie.models.autoencoder import AutoencoderConfig
from reverie.models.unet import UNetConfig
from reverie.pipeline import Pipeline
from reverie.requests.options import TextToImageOptions
from reverie.runtime.compiled import MODES, compile_network
from reverie.runtime.offload import OFFLOADS, Offloader
from reverie.runtime.transform import DTYPES, to_channels_last

Draw = Callable[[], Image.Image]
OUT = Path(__file__).parents[1] / "out" / "gpu"
ROWS = 16  # of the large batch
TRIES = 10  # products in a row, and how often
# What is wanted on one H200, in bfloat16.
SECONDS, SHARE = 0.5, 0.6
CEILINGS = {"SD 1.5": 2.0, "SDXL": 6.0}  # GB that a picture takes by blocks

SHALLOW = UNetConfig(
    sample_size=8,
    block_out_channels=(32, 64),
    layers_per_block=1,
    transformer_depth=(1, 0),
    num_heads=(2, 2),
    cross_attention_dim=96,
)
LITTLE = AutoencoderConfig(block_out_channels=(32, 32, 32, 32), layers_per_block=1, sample_size=64)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu with --quick")
    parser.add_argument("--dtype", default="bfloat16", choices=list(DTYPES))
    parser.add_argument("--quick", action="store_true", help="tiny networks: does the benchmark itself work?")
    parser.add_argument("--parts", nargs="+", default=["picture", "batch", "offload"], choices=list(PARTS))
    parser.add_argument("--rounds", type=int, help="how often the sides take turns (5; 2 with --quick)")
    parser.add_argument("--folder", type=Path, help="SD 1.5 in diffusers' layout, in place of one of random weights")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for bench.md and bench.json")
    return parser.parse_args()


class Bench:
    """Hold what is asked for; each method measures a part of it."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.device, self.dtype, self.quick = torch.device(options.device), DTYPES[options.dtype], options.quick
        self.rounds = options.rounds or (2 if self.quick else 5)
        self.given, self.scratch = options.folder, scratch
        self.backend = "eager" if self.quick else "inductor"
        self.steps = 3 if self.quick else 50

    def picture(self) -> Iterator[Row]:
        """Measure a prompt to its picture, all warm, the four sides in turns: plain and compiled, ours and theirs."""
        folder, pixels = self.folder("SD 1.5"), 64 if self.quick else 512
        sides: dict[str, Draw] = {
            "plain": partial(self.drawn, self.loaded(folder), pixels),
            "eager": partial(peer_picture.draw, self.peer(folder), self.steps, pixels),
            "compiled": partial(self.drawn, self.compiled(folder), pixels),
            "max-autotune": partial(peer_picture.draw, self.compiled_peer(folder), self.steps, pixels),
        }
        waits, shown = {}, {}
        for name, draw in sides.items():
            waits[name] = self.timed(draw)  # compiles
            shown[name] = np.asarray(draw(), np.int16)
            draw()  # a CUDA graph is recorded at the second call, and repeated from the third on
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(self.rounds):
            for name, draw in sides.items():
                times[name].append(self.timed(draw))
        title = f"SD 1.5 prompt to picture, loaded, {pixels} px, {self.steps} steps"
        for ours, theirs in (("plain", "eager"), ("compiled", "max-autotune")):
            apart = float(np.abs(shown[ours] - shown[theirs]).mean())
            note = f"first pictures: {waits[ours]:.1f} s and {waits[theirs]:.1f} s; {apart:.2g} levels of 255 apart"
            yield Row(f"{title}, {ours}", "s", times[ours], times[theirs], f"diffusers, {theirs}", note)
        yield Row(f"{title}, compiled", "s", times["compiled"], [SECONDS], "the goal")

    @torch.no_grad()
    def batch(self) -> Iterator[Row]:
        """Measure a U-Net at a large batch, as a share of the largest rate of products in the same run."""
        config, side = (SHALLOW, 8) if self.quick else (UNetConfig(), 64)
        given = tuple(part.repeat_interleave(ROWS // 2, 0) for part in networks.unet_inputs(config, side))
        count = networks.operations(config, given)
        unet = networks.random_unet(config).to(self.device, self.dtype)
        to_channels_last(unet)
        x, t, context = (part.to(self.device) for part in given)
        call = partial(unet, x.to(self.dtype), t, context.to(self.dtype))
        for name in ("plain", "compiled"):
            if name == "compiled":
                compile_network(unet, self.backend)
            for _ in range(3):
                call()
            rates, times = self.rates(), [self.timed(call) for _ in range(self.rounds)]
            yield share_of_peak(f"U-Net, batch {ROWS}, {8 * side} px, {name}", times, count, rates)

    def rates(self) -> list[float]:
        """Return the operations a second of large products."""
        found = []
        for side in (256,) if self.quick else (4096, 8192, 16384):
            a, b = (torch.randn(side, side, device=self.device).to(self.dtype) for _ in range(2))

            def products(a: torch.Tensor = a, b: torch.Tensor = b) -> None:
                for _ in range(TRIES):
                    a @ b

            products()
            found += [TRIES * 2 * side**3 / self.timed(products) for _ in range(TRIES)]
        return found

    def offload(self, family: str = "SD 1.5", side: int = 512) -> Iterator[Row]:
        """Measure a picture with all weights on the device, by networks and by blocks: time and peak memory."""
        folder, pixels = self.folder(family), 64 if self.quick else side
        for mode in (None, *OFFLOADS):
            offloader = None if mode is None else Offloader(self.device, OFFLOADS[mode])
            loaded = self.loaded(folder, offloader)
            draw = partial(self.drawn, loaded, pixels)
            draw()
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
            times = [self.timed(draw) for _ in range(self.rounds)]
            title = f"{family}, {pixels} px, {self.steps} steps, {f'offload {mode}' if mode else 'no offload'}"
            yield Row(title, "s", times)
            if self.device.type == "cuda":
                peak, kept = torch.cuda.max_memory_allocated(self.device), torch.cuda.max_memory_reserved(self.device)
                wanted = f"; wanted: {CEILINGS[family]:g} GB" if mode == "blocks" else ""
                note = f"reserved with its gaps: {kept / 2**20:.0f} MiB; CUDA's context is not counted{wanted}"
                yield Row(f"{title}, peak memory", "MiB", [peak / 2**20], note=note)
            del draw, loaded, offloader
            self.free()

    def xl(self) -> Iterator[Row]:
        """Measure offloading of SDXL."""
        return self.offload("SDXL", 1024)

    def folder(self, family: str) -> Path:
        """Return the folder of a family's model, writing one of random weights where none was given."""
        if family == "SD 1.5" and self.given is not None:
            return Path(self.given)
        folder = self.scratch / family
        if not folder.exists():
            built = build(ARCHITECTURES[family], Scale(side=64) if self.quick else FULL)
            if self.quick and family == "SD 1.5":
                unet, autoencoder = networks.random_unet(SHALLOW), networks.random_autoencoder(LITTLE)
                built = replace(built, unet=unet, autoencoder=autoencoder)
            built.save(folder)
        return folder

    def loaded(self, folder: Path, offloader: Offloader | None = None) -> Pipeline:
        """Load a model that computes plainly."""
        return Pipeline(
            **vars(system.load(folder, device=self.device, dtype=self.dtype, fast=False, offload=offloader))
        )

    def compiled(self, folder: Path) -> Pipeline:
        """Load a model and let it compile."""
        loaded = self.loaded(folder)
        for network in (loaded.unet, loaded.autoencoder.decoder):
            compile_network(network, self.backend)
        return loaded

    def drawn(self, loaded: Pipeline, pixels: int) -> Image.Image:
        """Draw the prompt."""
        asked = TextToImageOptions(seed=7, steps=self.steps, guidance=GUIDANCE, width=pixels, height=pixels)
        return loaded.text_to_image(PROMPT, **asked)[0]

    def peer(self, folder: Path) -> Any:
        """Load diffusers' pipeline in the layout that it recommends."""
        pipeline = peer_picture.load(folder).to(device=self.device, dtype=self.dtype)
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
        return pipeline

    def compiled_peer(self, folder: Path) -> Any:
        """Load diffusers' pipeline and compile it as its documentation shows."""
        pipeline = self.peer(folder)
        how: dict[str, Any] = {"fullgraph": True, "backend": self.backend, "mode": MODES.get(self.device.type)}
        pipeline.unet = torch.compile(pipeline.unet, **how)
        pipeline.vae.decode = torch.compile(pipeline.vae.decode, **how)
        return pipeline

    def timed(self, call: Callable[[], object]) -> float:
        """Time a call and all that it leaves the device to do."""

        def whole() -> None:
            call()
            self.settle()

        self.settle()
        return seconds(whole)

    def settle(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def free(self) -> None:
        """Give back the memory of what is gone."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def machine(self) -> dict[str, str]:
        """Describe the device beside the machine."""
        told = {"dtype": str(self.dtype).removeprefix("torch."), **machine()}
        if self.device.type != "cuda":
            return {"device": "none: the processor stands in, and no figure means anything", **told}
        name, memory = torch.cuda.get_device_name(self.device), torch.cuda.get_device_properties(self.device)
        return {"device": f"{name}, {memory.total_memory / 2**30:.0f} GiB", "CUDA": str(torch.version.cuda), **told}


def share_of_peak(name: str, times: list[float], count: int, rates: list[float]) -> Row:
    """Set calls of so many operations against the largest rate of products, in operations a second."""
    note = f"{count / 1e9:.0f} G operations, at most {max(rates) / 1e12:.3g} T a second; wanted: {SHARE:.2f}"
    return Row(name, "s", times, [count / max(rates)], "the peak", note)


PARTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "picture": Bench.picture,
    "batch": Bench.batch,
    "offload": Bench.offload,
    "xl": Bench.xl,
}


def missing(options: argparse.Namespace) -> str | None:
    """Say in a line why nothing can be measured; None where it can."""
    kind = options.device.split(":")[0]
    if kind == "cuda" and not torch.cuda.is_available():
        return "no CUDA device here; `--device cpu --quick` shows that the benchmark itself works"
    if kind not in ("cuda", "cpu"):
        return f"device '{options.device}' is not known here; choose from cuda, cpu"
    return (
        None if kind == "cuda" or options.quick else "the CPU stands in for a GPU with tiny networks alone; add --quick"
    )


def main() -> int:
    """Measure part by part; tell each row on stderr, and write all so far, as it comes."""
    options = arguments()
    if (reason := missing(options)) is not None:
        print(reason, file=sys.stderr)
        return 2
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options, Path(scratch))
        for part in options.parts:
            for row in PARTS[part](bench):
                gain = "" if row.gain is None else f", {row.gain:.2f} of {row.peer}"
                print(f"{row.name}: {statistics.median(row.ours):.3g} {row.unit}{gain}", file=sys.stderr, flush=True)
                rows.append(row)
                written = write(rows, bench.machine(), options.out)
            bench.free()
        print(markdown(rows, bench.machine()))
    print("written to", *written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
