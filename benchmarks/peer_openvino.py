"""How long does a U-Net step take in OpenVINO? Converts a U-Net of random weights; answers each line with seconds.

Runs in OpenVINO's own environment, with torch and reverie on PYTHONPATH: `networks.py` starts it.
"""

from __future__ import annotations

import sys
import time

import openvino
import torch

from networks import random_unet, unet_inputs
from reverie.models.unet import UNet, UNetConfig


class Bare(torch.nn.Module):
    """Take tensors alone, as the conversion wants them."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Predict as the U-Net does."""
        return self.unet(x, t, context)


def main() -> None:
    """Convert, then time a step for each line of the input."""
    side, threads, precision = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    given = unet_inputs(UNetConfig(), side)
    with torch.no_grad():
        model = openvino.convert_model(Bare(random_unet(UNetConfig())), example_input=given)
    model.reshape({port: list(tensor.shape) for port, tensor in zip(model.inputs, given, strict=True)})
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
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
