"""Where does reverie stand beside its peers? Measures in turns; prints a table and writes it, row by row."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import networks
import peer_sdcpp
import processes
from measure import ISAS, Row, machine, restrict
from processes import BUNDLED_MODEL, Model
from report import markdown, write

ROOT = Path(__file__).parents[1]
FEW, MANY = 4, 20  # steps of pictures
SMALL, COLD_ROUNDS = 256, 3  # pixels of SD 1.5's; rounds of what takes a minute


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="tiny networks, few rounds: does the benchmark itself work?"
    )
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), help="what to measure, in this order")
    parser.add_argument(
        "--pixels", nargs="+", type=int, help="sides of U-Net's and decoder's pictures (256 512), and whole ones (256)"
    )
    parser.add_argument("--steps", nargs="+", type=int, default=(FEW, MANY), help="steps of SD 1.5's pictures")
    parser.add_argument("--rounds", type=int, help="rounds of A and B (5, and 3 of pictures; 2 with --quick)")
    parser.add_argument("--isa", default="native", choices=list(ISAS), help="compute as with these instructions")
    parser.add_argument("--folder", type=Path, help="SD 1.5 in diffusers' layout, in place of one of random weights")
    parser.add_argument("--openvino-python", type=Path, help="Python of an environment with openvino, to measure too")
    parser.add_argument("--sdcpp", type=Path, help="stable-diffusion.cpp's program sd-cli, to measure too")
    parser.add_argument("--out", type=Path, default=ROOT / "out", help="folder for bench.md and bench.json")
    return parser.parse_args()


class Bench:
    """Hold what is asked for; each method measures a part of it."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.quick, self.sdcpp = options.quick, options.sdcpp
        self.openvino = None if options.quick else options.openvino_python
        self.folder, self.steps, self.scratch = options.folder, options.steps, scratch
        self.rounds = options.rounds or (2 if self.quick else 5)
        self.cold_rounds = options.rounds or (1 if self.quick else COLD_ROUNDS)
        self.sizes = networks.QUICK if self.quick else networks.Sizes()
        self.pixels = options.pixels or (BUNDLED_MODEL.pixels if self.quick else SMALL,)
        if options.pixels:
            sides = tuple(pixels // 8 for pixels in options.pixels)
            self.sizes = replace(self.sizes, unet_latents=sides, decoder_latents=sides)

    @cached_property
    def model(self) -> Model:
        """Return the model of the pictures, written where none was given."""
        if self.quick:
            return BUNDLED_MODEL
        return Model("SD 1.5", self.folder, SMALL) if self.folder else processes.random_model(self.scratch / "model")

    def unet(self) -> Iterator[Row]:
        """Measure a U-Net step."""
        return networks.unet_rows(self.sizes, self.rounds, self.openvino)

    def decoder(self) -> Iterator[Row]:
        """Measure the decoding of a picture."""
        return networks.decoder_rows(self.sizes, self.rounds, self.openvino)

    def text(self) -> Iterator[Row]:
        """Measure the embedding of a prompt."""
        yield networks.text_row(self.sizes, self.rounds)

    def picture(self) -> Iterator[Row]:
        """Measure whole processes from the prompt to the file, and their memory."""
        for pixels in self.pixels:
            for steps in self.steps:
                model = replace(self.model, pixels=pixels)
                yield from processes.cold(model, steps, self.cold_rounds, self.scratch, self.openvino)

    def loading(self) -> Iterator[Row]:
        """Measure from the files to the first step."""
        yield processes.first_step(self.model, self.cold_rounds, self.scratch)

    def starting(self) -> Iterator[Row]:
        """Measure imports."""
        return processes.starting(self.rounds)

    def bundled(self) -> Iterator[Row]:
        """Measure pictures of the bundled model, in new processes and in a warm one."""
        yield from processes.cold(BUNDLED_MODEL, MANY, self.rounds, self.scratch)
        yield processes.warm(BUNDLED_MODEL, MANY, self.rounds, self.scratch)

    def cpp(self) -> Iterator[Row]:
        """Measure beside stable-diffusion.cpp, where it is given."""
        if self.sdcpp is not None and not self.quick:
            yield from peer_sdcpp.rows(self.sdcpp, self.model, FEW, self.cold_rounds, self.scratch)

    def low(self) -> Iterator[Row]:
        """Measure a step in bfloat16 and in int8 beside OpenVINO, where it is given."""
        if self.openvino is not None:
            yield from networks.low_unet_rows(self.sizes, self.rounds, self.openvino)

    def compiled(self) -> Iterator[Row]:
        """Measure beside torch.compile, which takes minutes."""
        return networks.compiled_rows(self.sizes, self.rounds)

    def xl(self) -> Iterator[Row]:
        """Measure a step of SDXL."""
        return networks.large_unet_rows(networks.QUICK if self.quick else networks.XL, self.cold_rounds)


PARTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "unet": Bench.unet,
    "decoder": Bench.decoder,
    "text": Bench.text,
    "picture": Bench.picture,
    "loading": Bench.loading,
    "starting": Bench.starting,
    "bundled": Bench.bundled,
    "sdcpp": Bench.cpp,
    "low": Bench.low,
    "compiled": Bench.compiled,
    "xl": Bench.xl,
}
ASKED_FOR = ("low", "compiled", "xl")  # by name only: they take minutes


def main() -> None:
    """Measure part by part; tell each row on stderr, and write all so far, as it comes."""
    options = arguments()
    restrict(options.isa)
    described, rows = machine(), []
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options, Path(scratch))
        for part in options.parts or [part for part in PARTS if part not in ASKED_FOR]:
            for row in PARTS[part](bench):
                gain = "" if row.gain is None else f"{row.gain:.2f} times as fast as {row.peer}"
                print(f"{row.name}: {gain}", file=sys.stderr, flush=True)
                rows.append(row)
                written = write(rows, described, options.out)
    print(markdown(rows, described))
    print("written to", *written)


if __name__ == "__main__":
    main()
