"""Did anything become slower? The ratios of the main rows in under two minutes, to look at before a release.

SD 1.5's full shapes at 256 pixels with random weights, and the bundled model's pictures: few rounds, so 10 % are noise.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

import networks
import processes
from measure import ISAS, Row, alternate, machine, restrict, seconds
from reverie.models.unet import UNet, UNetConfig
from reverie.runtime import kernels, pack

ROUNDS = 2


def rows() -> Iterator[Row]:
    """Measure the main rows."""
    yield from networks.rows(networks.Sizes(unet_latents=(32,), decoder_latents=(32,)), ROUNDS)
    if kernels.native(torch.bfloat16):
        yield halved()
    with tempfile.TemporaryDirectory() as scratch:
        yield processes.warm(processes.BUNDLED_MODEL, 20, ROUNDS, Path(scratch))


@torch.no_grad()
def halved() -> Row:
    """Measure a U-Net step in bfloat16 beside one in float32, both packed."""
    whole = networks.random_unet(UNetConfig())
    with torch.device("meta"):
        half = UNet(UNetConfig())
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in whole.state_dict().items()}
    half.load_state_dict(weights, assign=True)
    del weights
    given = networks.unet_inputs(UNetConfig(), 32)
    less = tuple(tensor.to(torch.bfloat16) for tensor in given)
    ours, theirs = partial(pack(half.eval()), *less), partial(pack(whole), *given)
    mine, other = ours(), theirs()
    error = ((mine - other).norm() / other.norm()).item()
    times = alternate(lambda: seconds(ours), lambda: seconds(theirs), ROUNDS)
    return Row("the same step in bfloat16", "s", *times, peer="reverie, float32", note=f"difference {error:.0e}")


def main() -> None:
    """Print how many times as fast as its peer each row is, by the least times, as it comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isa", default="native", choices=list(ISAS), help="compute as with these instructions")
    restrict(parser.parse_args().isa)
    start = time.perf_counter()
    for row in rows():
        print(f"{min(row.theirs) / min(row.ours):5.2f} x {row.peer}: {row.name} ({row.note})", flush=True)
    described = ", ".join(f"{name} {value}" for name, value in machine().items())
    print(f"{time.perf_counter() - start:.0f} s. {described}.", file=sys.stderr)


if __name__ == "__main__":
    main()
