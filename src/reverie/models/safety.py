"""Stable Diffusion's safety checker: cosines of a CLIP image embedding with fixed concepts.

Source: CompVis/stable-diffusion-safety-checker; Rando et al. 2022, "Red-Teaming the Stable Diffusion Safety Filter",
arXiv 2210.04610. The parameters are named as in diffusers' `StableDiffusionSafetyChecker`, less a `vision_model.`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from reverie.models.clip import CLIPVisionConfig, VisionTower

# A picture near to a concept that asks for special care is held to thresholds lower by so much.
CARE = 0.01


@dataclass(frozen=True, kw_only=True)
class SafetyConfig:
    """Describe a safety checker; the defaults are the published one's, on CLIP ViT-L/14."""

    vision: CLIPVisionConfig = CLIPVisionConfig()
    projection_dim: int = 768
    concepts: int = 17
    special_concepts: int = 3


class SafetyChecker(nn.Module):
    """Compare pictures with concepts, each of which has a threshold of its own."""

    def __init__(self, config: SafetyConfig = SafetyConfig()) -> None:
        super().__init__()
        self.config = config
        self.vision_model = VisionTower(config.vision)
        self.visual_projection = nn.Linear(config.vision.hidden_size, config.projection_dim, bias=False)
        self.concept_embeds = nn.Parameter(torch.ones(config.concepts, config.projection_dim))
        self.special_care_embeds = nn.Parameter(torch.ones(config.special_concepts, config.projection_dim))
        self.concept_embeds_weights = nn.Parameter(torch.ones(config.concepts))
        self.special_care_embeds_weights = nn.Parameter(torch.ones(config.special_concepts))

    @torch.no_grad()
    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Bool[Tensor, " b"]:
        """Tell which pictures, made by `codecs.clip_images`, are to be held back."""
        features = self.visual_projection(self.vision_model(pixels.to(self.visual_projection.weight.dtype)).pooled)
        special = _excess(features, self.special_care_embeds, self.special_care_embeds_weights)
        care = CARE * (special.round(decimals=3) > 0).any(dim=1, keepdim=True)
        excess = _excess(features, self.concept_embeds, self.concept_embeds_weights) + care
        return (excess.round(decimals=3) > 0).any(dim=1)


def _excess(
    features: Float[Tensor, "b d"], concepts: Float[Tensor, "n d"], thresholds: Float[Tensor, " n"]
) -> Float[Tensor, "b n"]:
    """Return by how much the cosine of each picture with each concept passes its threshold, in float32."""
    cosines = F.normalize(features) @ F.normalize(concepts).T
    return cosines.float() - thresholds.float()
