"""What does OpenVINO take for one prompt? The same loop around its networks, from converted files to a picture file.

First, and not timed, as an export is not: `python peer_openvino_picture.py convert FOLDER CONVERTED PIXELS`. Then, the
cold side of the benchmark, `python peer_openvino_picture.py draw CONVERTED FILE STEPS`. In float32; runs in an
environment with openvino, and with torch and reverie on PYTHONPATH, whose tokenizer, sampler and pictures it takes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import openvino
import torch
from torch import Tensor, nn

import reverie
from measure import GUIDANCE, PROMPT
from peer_openvino import Decoder
from reverie.codecs.image import to_pictures, unscale_latents
from reverie.diffusion.denoiser import ScheduleConfig, denoiser, eps_scalings
from reverie.diffusion.guidance import guide, linear, together
from reverie.diffusion.noise import Noise
from reverie.diffusion.samplers import dpmpp_2m
from reverie.diffusion.spacings import karras
from reverie.models.autoencoder import AutoencoderConfig
from reverie.models.clip import TextTower
from reverie.tokenizer import Tokenizer
from untrained import Predict

SEED = 7


class Encoder(nn.Module):
    """Encode tokens by the text encoder's last layer, which SD 1 is conditioned on."""

    def __init__(self, tower: TextTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode as the tower does."""
        return self.tower(tokens).last


@torch.no_grad()
def convert(folder: Path, converted: Path, pixels: int) -> None:
    """Write the networks of a model of SD 1's kind in OpenVINO's format, for guided pictures of one size."""
    system, side = reverie.load(folder, device="cpu", dtype="float32", fast=False), pixels // 8
    tokens = system.tokenizers[0](["", PROMPT])
    context, z = system.encode_prompt(["", PROMPT]).tokens, torch.randn(1, 4, side, side)
    networks: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {
        "text": (Encoder(system.text_encoders[0]), (tokens,)),
        "unet": (Predict(system.unet), (z.repeat(2, 1, 1, 1), torch.full((2,), 500.0), context)),
        "decoder": (Decoder(system.autoencoder), (z,)),
    }
    for name, (network, given) in networks.items():
        model = openvino.convert_model(network, example_input=given)
        model.reshape({port: list(tensor.shape) for port, tensor in zip(model.inputs, given, strict=True)})
        openvino.save_model(model, converted / f"{name}.xml", compress_to_fp16=False)
    system.tokenizers[0].save(converted)


@torch.no_grad()
def draw(converted: Path, file: Path, steps: int) -> None:
    """Draw the prompt as reverie does by default, by OpenVINO's networks, which keep what they compiled."""
    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32", "CACHE_DIR": str(converted / "cache")}
    text, unet, decoder = (
        core.compile_model(converted / f"{name}.xml", "CPU", options) for name in ("text", "unet", "decoder")
    )
    context = text([Tokenizer.load(converted)(["", PROMPT]).numpy()])[0]

    def predict(x: Tensor, t: Tensor) -> Tensor:
        return torch.from_numpy(unet([x.numpy(), t.numpy(), context])[0])

    schedule = ScheduleConfig().schedule()
    sigmas, noise = karras(schedule, steps), Noise([SEED], decoder.input(0).shape[1:])
    denoise = denoiser(guide(together(predict), linear(GUIDANCE)), schedule, eps_scalings)
    *_, step = dpmpp_2m(denoise, noise.initial() * sigmas[0], sigmas, noise)
    image = decoder([unscale_latents(step.x, AutoencoderConfig()).numpy()])[0]
    to_pictures(torch.from_numpy(image))[0].save(file)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["convert", folder, converted, pixels]:
            convert(Path(folder), Path(converted), int(pixels))
        case ["draw", converted, file, steps]:
            draw(Path(converted), Path(file), int(steps))
