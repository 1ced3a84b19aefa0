"""Which models do both sides of the comparison run? SD 1.5, 2.1-v and XL of random weights, to scale."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import nn

from reverie.diffusion.denoiser import ScheduleConfig
from reverie.models.autoencoder import AUTOENCODERS, Autoencoder, AutoencoderConfig
from reverie.models.clip import CLIPTextConfig, TextTower, TextTowerWithProjection
from reverie.models.clip_presets import CLIPS
from reverie.models.unet import UNETS, UNet, UNetConfig
from reverie.pipeline import Pipeline
from reverie.tokenizer import Tokenizer
from untrained import random_weights

WORDS = ["a bear on a blue background", "an apple next to a bear", "red and green"]


@dataclass(frozen=True)
class Scale:
    """Choose the pictures' side in pixels, and what the widths of all networks and their heads are divided by."""

    side: int = 256
    width: int = 8
    heads: int = 4
    groups: int = 8


FULL = Scale(width=1, heads=1, groups=32)


@dataclass(frozen=True)
class Architecture:
    """Name the parts of a family and what its U-Net predicts; `channels` is what it takes, where that is not usual."""

    unet: str
    towers: tuple[str, ...]
    autoencoder: str
    prediction: str = "eps"
    channels: int | None = None

    @property
    def xl(self) -> bool:
        """Tell whether it conditions as SDXL does."""
        return len(self.towers) > 1


ARCHITECTURES = {
    "SD 1.5": Architecture("sd15", ("ViT-L/14",), "sd"),
    "SD 1.5 inpainting": Architecture("sd15-inpainting", ("ViT-L/14",), "sd"),
    "SD 2.1-v": Architecture("sd21", ("ViT-H/14",), "sd", "v"),
    "SDXL": Architecture("sdxl", ("ViT-L/14", "ViT-bigG/14"), "sdxl"),
    "SD 1.5 InstructPix2Pix": Architecture("sd15", ("ViT-L/14",), "sd", channels=8),
    "SDXL InstructPix2Pix": Architecture("sdxl", ("ViT-L/14", "ViT-bigG/14"), "sdxl", channels=8),
    "SD 2 depth": Architecture("sd21", ("ViT-H/14",), "sd", channels=5),
    "SD 2 x4 upscaler": Architecture("x4-upscaler", ("ViT-H/14",), "x4-upscaler", "v"),
}


def build(architecture: Architecture, scale: Scale) -> Pipeline:
    """Build a model of random weights to scale; levels, layers and depths are the family's."""
    torch.manual_seed(0)
    unet = UNETS[architecture.unet]
    unet = replace(unet, in_channels=architecture.channels or unet.in_channels)
    tokenizer = Tokenizer.train(WORDS * 2, 530, length=77)
    towers = []
    for name in architecture.towers:
        kind = TextTowerWithProjection if name == "ViT-bigG/14" else TextTower
        towers.append(kind(_text(CLIPS[name].text, tokenizer, scale.width)))
    return Pipeline(
        tokenizers=(tokenizer,) * len(towers),
        text_encoders=tuple(tower.eval() for tower in towers),
        unet=_random(UNet(_unet(unet, scale))),
        autoencoder=_random(Autoencoder(_autoencoder(AUTOENCODERS[architecture.autoencoder], scale))),
        schedule_config=ScheduleConfig(prediction=architecture.prediction),
        zero_empty=architecture.xl,
        name="random",
    )


M = TypeVar("M", bound=nn.Module)


def _random(module: M) -> M:
    module.load_state_dict(random_weights(module))
    return module.eval()


def _unet(config: UNetConfig, scale: Scale) -> UNetConfig:
    by, added = scale.width, config.addition_time_embed_dim
    return replace(
        config,
        sample_size=scale.side // 8,
        block_out_channels=tuple(width // by for width in config.block_out_channels),
        num_heads=tuple(max(1, heads // scale.heads) for heads in config.num_heads),
        cross_attention_dim=config.cross_attention_dim // by,
        norm_num_groups=scale.groups,
        addition_time_embed_dim=added and added // by,
        projection_input_dim=config.projection_input_dim and config.projection_input_dim // by,
    )


def _autoencoder(config: AutoencoderConfig, scale: Scale) -> AutoencoderConfig:
    widths = tuple(width // scale.width for width in config.block_out_channels)
    return replace(config, block_out_channels=widths, norm_num_groups=scale.groups, sample_size=scale.side)


def _text(config: CLIPTextConfig, tokenizer: Tokenizer, by: int) -> CLIPTextConfig:
    return replace(
        config,
        hidden_size=config.hidden_size // by,
        intermediate_size=config.intermediate_size // by,
        projection_dim=config.projection_dim // by,
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_id,
    )
