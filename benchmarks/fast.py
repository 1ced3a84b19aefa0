"""What do packed weights gain on this CPU? Fast reverie, plain reverie and the peer, in turns, in one process."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import networks
from measure import ISAS, Row, machine, restrict
from networks import QUICK, Call, Sizes
from report import markdown, write
from reverie.models.autoencoder import Autoencoder
from reverie.models.clip import TextTower
from reverie.models.unet import UNet
from reverie.runtime import pack
from untrained import random_weights

M = TypeVar("M", bound=nn.Module)
Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
OUT = Path(__file__).parents[1] / "out" / "fast"


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny networks: does the benchmark itself work?")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of fast, plain, peer")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), help="which networks")
    parser.add_argument("--latents", nargs="+", type=int, help="sides of the U-Net's latents (32 64)")
    parser.add_argument(
        "--clock",
        default="wall",
        choices=list(CLOCKS),
        help="cpu counts this process' own time: for one thread on a machine that others use too",
    )
    parser.add_argument("--isa", default="native", choices=list(ISAS), help="compute as with these instructions")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for bench.md and bench.json")
    return parser.parse_args()


def unet(sizes: Sizes, rounds: int, clock: Clock) -> Iterator[Row]:
    """Measure a U-Net step of batch 2."""
    fast, theirs = networks.unet_pair(sizes.unet)
    ours = plain_twin(fast, lambda: UNet(sizes.unet))
    for side in sizes.unet_latents:
        given = networks.unet_inputs(sizes.unet, side)
        calls = (partial(fast, *given), partial(ours, *given), sample(theirs, *given))
        yield from compare(f"U-Net step, batch 2, {side}x{side} latents", calls, rounds, clock)


def decoder(sizes: Sizes, rounds: int, clock: Clock) -> Iterator[Row]:
    """Measure the decoding of one picture."""
    fast, theirs = networks.decoder_pair(sizes.autoencoder)
    ours = plain_twin(fast, lambda: Autoencoder(sizes.autoencoder))
    for side in sizes.decoder_latents:
        z = torch.randn(1, sizes.autoencoder.latent_channels, side, side)
        calls = (partial(fast.decode, z), partial(ours.decode, z), sample(theirs.decode, z))
        yield from compare(f"VAE decode, {8 * side}x{8 * side} pixels", calls, rounds, clock)


def text(sizes: Sizes, rounds: int, clock: Clock) -> Iterator[Row]:
    """Measure the embedding of one prompt."""
    with torch.device("meta"):
        ours = TextTower(sizes.text)
    ours.load_state_dict(random_weights(ours), assign=True)
    ours.eval()
    fast = pack(plain_twin(ours, lambda: TextTower(sizes.text)))
    _, peer = networks.text_calls(sizes.text)
    tokens = torch.randint(0, sizes.text.eos_token_id - 1, (1, sizes.text.max_position_embeddings))
    calls = (lambda: fast(tokens).last, lambda: ours(tokens).last, peer)
    yield from compare("CLIP text, 77 tokens", calls, rounds, clock, "transformers")


PARTS = {"unet": unet, "decoder": decoder, "text": text}


def sample(peer: Callable[..., Any], *given: Tensor) -> Call:
    """Call what diffusers wraps its result in."""
    return lambda: peer(*given).sample


def plain_twin(network: M, make: Callable[[], M]) -> M:
    """Build the same network around the same weights, not packed."""
    with torch.device("meta"):
        twin = make()
    twin.load_state_dict(network.state_dict(), assign=True)
    return twin.eval()


@torch.no_grad()
def compare(
    name: str, calls: tuple[Call, Call, Call], rounds: int, clock: Clock, peer_name: str = "diffusers"
) -> Iterator[Row]:
    """Time the first fast call, which packs, and then fast, plain and peer in turns; note how far the results are."""
    fast, plain, peer = calls

    def seconds(call: Call) -> float:
        start = clock()
        call()
        return clock() - start

    first = seconds(fast)
    expected = plain()
    error = ((fast() - expected).norm() / expected.norm()).item()
    peer()
    times = [(seconds(fast), seconds(plain), seconds(peer)) for _ in range(rounds)]
    ours, own, theirs = ([row[k] for row in times] for k in range(3))
    yield Row(name, "s", ours, own, "plain", note=f"relative difference {error:.0e}")
    yield Row(name, "s", ours, theirs, peer_name, note=f"first call, packing too: {first:.2f} s")


def main() -> None:
    """Measure what is asked for, telling each row on stderr as it comes."""
    options = arguments()
    restrict(options.isa)
    sizes = QUICK if options.quick else Sizes()
    if options.latents:
        sizes = Sizes(unet_latents=tuple(options.latents))
    rows = []
    for part in options.parts:
        for row in PARTS[part](sizes, options.rounds, CLOCKS[options.clock]):
            ratios = f"{min(row.theirs) / min(row.ours):.2f} of the least, {row.gain or 1:.2f} of the medians"
            print(f"{row.name}, {row.peer} / fast: {ratios}; {row.note}", file=sys.stderr, flush=True)
            rows.append(row)
    described = {**machine(), "clock": options.clock}
    print(markdown(rows, described))
    print("written to", *write(rows, described, options.out))


if __name__ == "__main__":
    main()
