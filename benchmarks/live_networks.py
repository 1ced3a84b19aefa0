"""How long does a live picture of 512 pixels take? TAESD encodes it, a U-Net takes one step, TAESD decodes it.

The networks of few-step models with random weights, and what a prompt would give them: no file of theirs is here.
`live.py` starts this as a process of its own, which answers each line with seconds, as peer_live.py does for OpenVINO.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from reverie.checkpoints.weights import blueprint, load_weights
from reverie.models.autoencoder import TinyAutoencoder
from reverie.models.unet import UNETS, UNet
from reverie.runtime import pack
from untrained import Predict, random_weights

SIDE, LENGTH = 512, 77
STEP = 999.0  # the only one
SIGNAL, NOISE = 0.0683, 0.9977  # of Stable Diffusion's schedule at that step
NAMES = {"sd-turbo": "sd21", "sdxs-512": "sdxs-0.9"}  # as `UNETS` calls their networks


class Encode(nn.Module):
    """Encode a picture, alone: a module for whoever converts modules."""

    def __init__(self, tiny: TinyAutoencoder) -> None:
        super().__init__()
        self.tiny = tiny

    def forward(self, images: Tensor) -> Tensor:
        """Encode."""
        return self.tiny.encode(images).mode()


class Decode(Encode):
    """Decode latents, alone."""

    def forward(self, z: Tensor) -> Tensor:
        """Decode."""
        return self.tiny.decode(z)


def parts(folder: Path, name: str, dtype: torch.dtype = torch.float32) -> dict[str, nn.Module]:
    """Read the networks that `write` wrote, mapped as a user's are."""
    tiny, unet = blueprint(TinyAutoencoder), blueprint(lambda: UNet(UNETS[NAMES[name]]))
    for network, file in ((tiny, "tiny"), (unet, name)):
        load_weights(network, [folder / f"{file}.safetensors"], device=torch.device("cpu"), dtype=dtype)
    return {"encode": Encode(tiny).eval(), "predict": Predict(unet).eval(), "decode": Decode(tiny).eval()}


def write(folder: Path, name: str) -> None:
    """Write random weights, where they are not yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, make in ((name, lambda: UNet(UNETS[NAMES[name]])), ("tiny", TinyAutoencoder)):
        if not (path := folder / f"{file}.safetensors").exists():
            save_file(random_weights(blueprint(make)), path)


def given(name: str) -> dict[str, tuple[Tensor, ...]]:
    """Return what each network is called with."""
    side, width = SIDE // 8, UNETS[NAMES[name]].cross_attention_dim
    latents, context = torch.randn(1, 4, side, side), torch.randn(1, LENGTH, width)
    return {
        "encode": (torch.rand(1, 3, SIDE, SIDE) * 2 - 1,),
        "predict": (latents, torch.tensor([STEP]), context),
        "decode": (latents,),
    }


def answer(draw: Callable[[], object]) -> None:
    """Draw once, and then for each line of the input: answer by seconds of the wall's clock and the processor's."""
    draw()
    print("ready", flush=True)
    for _ in sys.stdin:
        wall, processor = time.perf_counter(), time.process_time()
        draw()
        print(time.perf_counter() - wall, time.process_time() - processor, flush=True)


def side_options() -> argparse.Namespace:
    """Read what either side is told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("write", "draw"))
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("threads", type=int)
    parser.add_argument("dtype", choices=("float32", "bfloat16"))
    return parser.parse_args()


def main() -> None:
    """Write the weights, or draw with them."""
    options = side_options()
    torch.set_num_threads(options.threads)
    if options.what == "write":
        write(options.folder, options.name)
        return
    dtype = getattr(torch, options.dtype)
    network, called = parts(options.folder, options.name, dtype), given(options.name)
    for one in network.values():
        pack(one)
    image, (noise, t, context) = called["encode"][0], called["predict"]

    @torch.no_grad()
    def draw() -> Tensor:
        noisy = SIGNAL * network["encode"](image.to(dtype)) + NOISE * noise.to(dtype)
        eps = network["predict"](noisy, t, context.to(dtype))
        return network["decode"]((noisy - NOISE * eps) / SIGNAL).float()

    answer(draw)


if __name__ == "__main__":
    main()
