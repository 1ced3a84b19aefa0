"""Configurations of the published CLIPs."""

from __future__ import annotations

from reverie.models.clip import CLIPConfig, CLIPTextConfig, CLIPVisionConfig


def _preset(
    text: tuple[int, int, int],
    vision: tuple[int, int, int, int],
    patch: int,
    space: int,
    activation: str,
    size: int = 224,
) -> CLIPConfig:
    """Build a config; `text` is (width, layers, heads), `vision` is (width, MLP width, layers, heads)."""
    return CLIPConfig(
        text=CLIPTextConfig(
            hidden_size=text[0],
            intermediate_size=4 * text[0],
            num_hidden_layers=text[1],
            num_attention_heads=text[2],
            hidden_act=activation,
            projection_dim=space,
        ),
        vision=CLIPVisionConfig(
            hidden_size=vision[0],
            intermediate_size=vision[1],
            num_hidden_layers=vision[2],
            num_attention_heads=vision[3],
            hidden_act=activation,
            image_size=size,
            patch_size=patch,
        ),
        projection_dim=space,
    )


# OpenAI's four (CLIP paper, table 20), then OpenCLIP's two that Stable Diffusion 2 and XL use.
CLIPS = {
    "ViT-B/32": _preset((512, 12, 8), (768, 3072, 12, 12), 32, 512, "quick_gelu"),
    "ViT-B/16": _preset((512, 12, 8), (768, 3072, 12, 12), 16, 512, "quick_gelu"),
    "ViT-L/14": _preset((768, 12, 12), (1024, 4096, 24, 16), 14, 768, "quick_gelu"),
    "ViT-L/14@336": _preset((768, 12, 12), (1024, 4096, 24, 16), 14, 768, "quick_gelu", 336),
    "ViT-H/14": _preset((1024, 24, 16), (1280, 5120, 32, 16), 14, 1024, "gelu"),
    "ViT-bigG/14": _preset((1280, 32, 20), (1664, 8192, 48, 16), 14, 1280, "gelu"),
}
