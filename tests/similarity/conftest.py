"""A tiny CLIP of random weights with transformers' twin, and pictures to embed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel

from reverie.checkpoints.load import CLIPComponents
from reverie.checkpoints.save import save_clip
from reverie.models.clip import CLIP, CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from reverie.similarity.embed import Clip, load_clip
from reverie.tokenizer import Tokenizer

SIZE = 32


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """Give the folder of a tiny CLIP of random weights, in transformers' layout."""
    text = CLIPTextConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.length,
        eos_token_id=tokenizer.eos_id,
        projection_dim=16,
    )
    vision = CLIPVisionConfig(
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=8,
    )
    torch.manual_seed(0)
    clip = CLIP(CLIPConfig(text=text, vision=vision, projection_dim=16))
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    folder = tmp_path_factory.mktemp("clip")
    save_clip(CLIPComponents(clip, tokenizer), folder)
    return folder


@pytest.fixture(scope="session")
def clip(clip_folder: Path) -> Clip:
    return load_clip(clip_folder, device="cpu")


@pytest.fixture(scope="session")
def oracle(clip_folder: Path) -> CLIPModel:
    return CLIPModel.from_pretrained(clip_folder, attn_implementation="eager").eval()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Write seven pictures of different sizes and kinds."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    files = []
    for index, size in enumerate([(40, 40), (64, 33), (33, 65), (32, 32), (100, 50), (50, 90), (48, 47)]):
        waves = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        picture = Image.fromarray(waves).resize(size, Image.Resampling.BICUBIC)
        files.append(folder / f"{index}{('.png', '.jpg', '.webp')[index % 3]}")
        picture.save(files[-1])
    return files
