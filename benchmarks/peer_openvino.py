"""How long does a network take in OpenVINO? Converts one of random weights; answers each line with seconds.

Runs in OpenVINO's own environment, with torch and reverie on PYTHONPATH: `networks.py` starts it. It first says how far
its result is from what reverie computes plainly in float32, relative to that. int8 needs NNCF there.
"""

from __future__ import annotations

import sys
import time

import openvino
import torch
from torch import Tensor, nn

from networks import random_autoencoder, random_unet, unet_inputs
from reverie.models.autoencoder import AutoencoderConfig, ImageAutoencoder
from reverie.models.unet import UNetConfig
from untrained import Predict

# What is not in 8 bits is in bfloat16, where the processor has that: OpenVINO's own choice.
HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}
SAMPLES = 4  # random inputs by which NNCF finds the ranges of what passes


class Decoder(nn.Module):
    """Decode by calling the module, as the conversion does."""

    def __init__(self, autoencoder: ImageAutoencoder) -> None:
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


def quantize(model: openvino.Model, given: tuple[Tensor, ...]) -> openvino.Model:
    """Round a network to 8 bits after training, as NNCF advises for transformers, by random inputs like `given`."""
    import nncf

    samples = [[torch.randn_like(given[0]).numpy(), *(one.numpy() for one in given[1:])] for _ in range(SAMPLES)]
    kind = nncf.ModelType.TRANSFORMER
    return nncf.quantize(model, nncf.Dataset(samples), model_type=kind, subset_size=SAMPLES)


def main() -> None:
    """Convert, then time a call for each line of the input."""
    network, side, threads, precision = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    module, given = build(network, side)
    with torch.no_grad():
        model = openvino.convert_model(module, example_input=given)
        expected = module(*given)
    model.reshape({port: list(tensor.shape) for port, tensor in zip(model.inputs, given, strict=True)})
    if precision == "int8":
        model = quantize(model, given)
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": HINTS[precision]}
    compiled = openvino.compile_model(model, "CPU", options)
    arrays = [tensor.numpy() for tensor in given]
    made = torch.from_numpy(compiled(arrays)[0])
    print(f"ready {((made - expected).norm() / expected.norm()).item()}", flush=True)
    for _ in sys.stdin:
        wall, processor = time.perf_counter(), time.process_time()
        compiled(arrays)
        print(time.perf_counter() - wall, time.process_time() - processor, flush=True)


if __name__ == "__main__":
    main()
