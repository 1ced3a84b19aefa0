"""How long does a network take in OpenVINO? Converts one of random weights; answers each line with seconds.

Runs in OpenVINO's own environment, with torch and reverie on PYTHONPATH: `networks.py` starts it.
"""

from __future__ import annotations

import sys
import time

import openvino
import torch
from torch import Tensor, nn

from networks import Predict, random_autoencoder, random_unet, unet_inputs
from reverie.models.autoencoder import Autoencoder, AutoencoderConfig
from reverie.models.unet import UNetConfig


class Decoder(nn.Module):
    """Decode by calling the module, as the conversion does."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, z: Tensor) -> Tensor:
        """Decode as the autoencoder does."""
        return self.autoencoder.decode(z)


def build(network: str, side: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return the network and what one call is given, at `side` x `side` latents."""
    if network == "unet":
        return Predict(random_unet(UNetConfig())), unet_inputs(UNetConfig(), side)
    return Decoder(random_autoencoder(AutoencoderConfig())), (torch.randn(1, 4, side, side),)


def main() -> None:
    """Convert, then time a call for each line of the input."""
    network, side, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    module, given = build(network, side)
    with torch.no_grad():
        model = openvino.convert_model(module, example_input=given)
    model.reshape({port: list(tensor.shape) for port, tensor in zip(model.inputs, given, strict=True)})
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(model, "CPU", options)
    arrays = [tensor.numpy() for tensor in given]
    compiled(arrays)
    print("ready", flush=True)
    for _ in sys.stdin:
        wall, processor = time.perf_counter(), time.process_time()
        compiled(arrays)
        print(time.perf_counter() - wall, time.process_time() - processor, flush=True)


if __name__ == "__main__":
    main()
