"""Tiny models of random weights in the structure of every family, as single files hold them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from reverie.checkpoints import families
from reverie.checkpoints.families import FAMILIES, Family
from reverie.checkpoints.single import Networks
from reverie.diffusion.noise import EmbeddingNoise
from reverie.diffusion.schedule import squared_cosine
from reverie.models.autoencoder import Autoencoder
from reverie.models.clip import TextTower, VisionTowerWithProjection
from reverie.models.unet import UNet
from reverie.tokenizer import Tokenizer

TINY_LEVELS = {
    "sample_size": 4,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "num_heads": (1, 2),
    "norm_num_groups": 4,
}
SMALL = tuple(name for names in (families.SMALL, families.SMALL2, families.SMALLXL) for name in names)


@pytest.fixture(scope="session")
def tiny_family(tokenizer: Tokenizer) -> Callable[[str], Family]:
    """Shrink a family; its towers are 16 wide, and an SDXL reads two of them."""

    def shrink(name: str) -> Family:
        family = FAMILIES[name]
        towers = tuple(
            replace(
                tower,
                config=replace(
                    tower.config,
                    hidden_size=16,
                    intermediate_size=32,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    vocab_size=len(tokenizer),
                    max_position_embeddings=tokenizer.length,
                    eos_token_id=tokenizer.eos_id,
                    projection_dim=16,
                ),
            )
            for tower in family.towers
        )
        xl = family.unet.takes_sizes
        sizes = 5 if name == "sdxl-refiner" else 6
        levels = len(family.unet.block_out_channels) if name in SMALL else 2
        structure = {
            **TINY_LEVELS,
            "transformer_depth": (0, 2) if xl else (1, 0),
            "mid_transformer_depth": 2 if xl else 1,
        }
        if name in SMALL:  # which their blocks tell apart
            structure = {
                "sample_size": 4,
                "block_out_channels": (8,) * levels,
                "num_heads": (1,) * levels,
                "norm_num_groups": 4,
            }
        unet = replace(
            family.unet,
            **structure,
            cross_attention_dim=16 * max(1, len(towers)),
            addition_time_embed_dim=4 if xl else None,
            projection_input_dim=16 + sizes * 4 if xl else family.unet.projection_input_dim and 2 * 16,
            only_cross_attention=family.unet.only_cross_attention and family.unet.only_cross_attention[:levels],
        )
        autoencoder = replace(
            family.autoencoder,
            block_out_channels=(8,) * len(family.autoencoder.block_out_channels),
            layers_per_block=1,
            norm_num_groups=4,
        )
        vision = family.vision and replace(
            family.vision,
            config=replace(
                family.vision.config,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=8,
                patch_size=4,
            ),
            projection_dim=16,
        )
        return replace(family, unet=unet, towers=towers, autoencoder=autoencoder, vision=vision)

    return shrink


@pytest.fixture(scope="session")
def tiny_networks(tiny_family: Callable[[str], Family]) -> Callable[[str], Networks]:
    """Give a tiny model of a family random weights."""

    def make(name: str) -> Networks:
        family = tiny_family(name)
        torch.manual_seed(0)
        towers: list[TextTower] = [tower.kind(tower.config).eval() for tower in family.towers]
        unet, autoencoder = UNet(family.unet).eval(), Autoencoder(family.autoencoder).eval()
        if family.vision is None:
            return Networks(family, unet, autoencoder, tuple(towers))
        vision = VisionTowerWithProjection(family.vision.config, 16).eval()
        noise = EmbeddingNoise(torch.randn(16), torch.rand(16), squared_cosine()) if towers else None
        return Networks(family, unet, autoencoder, tuple(towers), vision, noise)

    return make


@pytest.fixture
def single_file(
    tiny_networks: Callable[[str], Networks], tokenizer: Tokenizer, tmp_path: Path
) -> Callable[[str], tuple[Path, Networks]]:
    """Write a tiny model of a family as a single file, with a tokenizer beside it."""

    def write(name: str) -> tuple[Path, Networks]:
        networks = tiny_networks(name)
        tokenizer.save(tmp_path / "tokenizer")
        file = tmp_path / f"{name}.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in networks.tensors().items()}, file)
        return file, networks

    return write
