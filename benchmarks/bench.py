"""Where does reverie stand beside diffusers? Measures in turns; prints a table and writes it, as JSON too."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import networks
import processes
from measure import Row, machine
from report import markdown, write

ROOT = Path(__file__).parents[1]
BUNDLED = ROOT / "src" / "reverie" / "assets" / "bundled"


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="tiny networks, few rounds: does the benchmark itself work?"
    )
    parser.add_argument("--full", action="store_true", help="VAE decoding at 512x512 and a step of SDXL too (21 GB)")
    parser.add_argument("--compile", action="store_true", help="beside torch.compile too, which compiles for minutes")
    parser.add_argument("--openvino-python", type=Path, help="Python of an environment with openvino, to measure too")
    parser.add_argument("--rounds", type=int, help="rounds of A and B (5; 2 with --quick)")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of a picture")
    parser.add_argument("--model", type=Path, default=BUNDLED, help="folder in diffusers' layout for prompt to file")
    parser.add_argument("--out", type=Path, default=ROOT / "out", help="folder for bench.md and bench.json")
    return parser.parse_args()


def main() -> None:
    """Measure all rows, telling each on stderr as it comes."""
    options = arguments()
    rounds = options.rounds or (2 if options.quick else 5)
    folder = options.model if (options.model / "model_index.json").is_file() else None
    if folder is None:
        print(f"no model in {options.model}: prompt to file is left out", file=sys.stderr)
    sizes = networks.QUICK if options.quick else networks.Sizes()
    if options.full:
        sizes = replace(sizes, decoder_latents=(32, 64))
    described, rows = machine(), []
    with tempfile.TemporaryDirectory() as scratch:
        rows += told(processes.rows(folder, options.steps, rounds, Path(scratch)))
    rows += told(networks.rows(sizes, rounds, networks.Peers(options.openvino_python, options.compile)))
    if options.full:
        rows += told(networks.unet_rows(networks.XL, rounds))
    print(markdown(rows, described))
    print("written to", *write(rows, described, options.out))


def told(rows: Iterable[Row]) -> list[Row]:
    """Collect rows and name each on stderr when it is done."""
    collected = []
    for row in rows:
        print(f"{row.name}: {'' if row.ratio is None else f'{row.ratio:.2f}'}", file=sys.stderr, flush=True)
        collected.append(row)
    return collected


if __name__ == "__main__":
    main()
