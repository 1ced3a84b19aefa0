"""CLIP: text and image transformers with a shared embedding space (Radford et al. 2021, arXiv 2103.00020).

Parameter names are those of transformers' CLIPModel, CLIPTextModel (with the hub's `text_model.` prefix) and
CLIPTextModelWithProjection, so their files load with the identity map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from reverie.errors import ReverieError

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_LOG_SCALE = math.log(100)


def quick_gelu(x: Tensor) -> Tensor:
    """Approximate the GELU by x * sigmoid(1.702 x), as OpenAI's CLIP does and OpenCLIP does not."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Describe the stack of layers that both towers are made of."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.hidden_act not in ACTIVATIONS:
            raise ReverieError(f"unknown activation {self.hidden_act!r}; choose from {', '.join(sorted(ACTIVATIONS))}")
        if self.hidden_size % self.num_attention_heads:
            raise ReverieError(
                f"width {self.hidden_size} does not divide into {self.num_attention_heads} heads; choose a multiple"
            )


@dataclass(frozen=True, kw_only=True)
class CLIPTextConfig(TransformerConfig):
    """Describe a text tower; the defaults are ViT-L/14's, which conditions Stable Diffusion 1.

    Old config.json files say `eos_token_id` 2, which is wrong: read it as the last id, `vocab_size - 1`.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    vocab_size: int = 49408
    max_position_embeddings: int = 77
    eos_token_id: int = 49407
    projection_dim: int = 768


@dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig(TransformerConfig):
    """Describe a vision tower; the defaults are ViT-L/14's."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    image_size: int = 224
    patch_size: int = 14

    @property
    def places(self) -> int:
        """Return how many places of a picture the tower looks from: each patch, and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """Describe both towers and the space they meet in; the defaults are ViT-L/14's."""

    text: CLIPTextConfig = CLIPTextConfig()
    vision: CLIPVisionConfig = CLIPVisionConfig()
    projection_dim: int = 768
    logit_scale_init_value: float = math.log(1 / 0.07)


class TextFeatures(NamedTuple):
    """Hold what a text tower computes."""

    last: Float[Tensor, "b l d"]
    """The last layer after the final LayerNorm."""
    hidden: tuple[Float[Tensor, "b l d"], ...]
    """The embeddings and then every layer's output, none of them normalised."""
    pooled: Float[Tensor, "b p"]
    """`last` at the first end-of-text token, projected where the tower has a projection."""


class VisionFeatures(NamedTuple):
    """Hold what a vision tower computes; position 0 is the class token."""

    last: Float[Tensor, "b l d"]
    """The last layer, not normalised."""
    hidden: tuple[Float[Tensor, "b l d"], ...]
    """The normalised embeddings and then every layer's output."""
    pooled: Float[Tensor, "b d"]
    """The class token of `last`, after the final LayerNorm."""


class CLIPAttention(nn.Module):
    """Attend from every token to all tokens, or to itself and those before it."""

    def __init__(self, config: TransformerConfig, causal: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads, self.causal = config.num_attention_heads, causal
        self.k_proj, self.v_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.q_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Return the mixed tokens."""
        return self._mix(x, x)

    def first(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b 1 d"]:
        """Return the first token of them alone, where every token sees all."""
        return self._mix(x[:, :1], x)

    def _mix(self, queries: Tensor, x: Tensor) -> Tensor:
        asked = ((self.q_proj, queries), (self.k_proj, x), (self.v_proj, x))
        q, k, v = (project(given).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project, given in asked)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Transform every token by itself, through a wider layer."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Return the transformed tokens."""
        return self.fc2(self.activation(self.fc1(x)))


class Layer(nn.Module):
    """Add attention and then an MLP to the tokens, each on normalised input."""

    def __init__(self, config: TransformerConfig, causal: bool) -> None:
        super().__init__()
        self.self_attn = CLIPAttention(config, causal)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = MLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Return the updated tokens."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))

    def first(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b 1 d"]:
        """Return the first token of them alone."""
        x = x[:, :1] + self.self_attn.first(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class TransformerEncoder(nn.Module):
    """Stack the layers and give them OpenAI's initial values (openai/CLIP, `CLIP.initialize_parameters`).

    OpenAI does so for the text tower and leaves the vision tower to PyTorch; here both get the same.
    """

    def __init__(self, config: TransformerConfig, causal: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config, causal) for _ in range(config.num_hidden_layers))
        inner = config.hidden_size**-0.5
        outer = inner * (2 * config.num_hidden_layers) ** -0.5  # what is added to the residual stream
        stds = dict.fromkeys(("q_proj", "k_proj", "v_proj"), inner)
        stds |= {"out_proj": outer, "fc1": inner / 2**0.5, "fc2": outer}
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=stds[name.rpartition(".")[2]])
                nn.init.zeros_(module.bias)

    def forward(self, x: Float[Tensor, "b l d"]) -> tuple[Float[Tensor, "b l d"], ...]:
        """Return the input and every layer's output."""
        hidden = [x]
        for layer in self.layers:
            hidden.append(layer(hidden[-1]))
        return tuple(hidden)


class TextEmbeddings(nn.Module):
    """Look up tokens and add their positions."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.01)

    def forward(self, tokens: Int64[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        """Return the embedded tokens; raises ReverieError where there are more of them than positions."""
        length, limit = tokens.shape[1], self.position_embedding.num_embeddings
        if length > limit:
            raise ReverieError(f"{length} tokens do not fit the text tower; give at most {limit}")
        return self.token_embedding(tokens) + self.position_embedding.weight[:length]


class TextTransformer(nn.Module):
    """Hold a text tower's modules under transformers' names."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = TextEmbeddings(config)
        self.encoder = TransformerEncoder(config, causal=True)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, tokens: Int64[Tensor, "b l"]) -> TextFeatures:
        """Return the features of texts, pooled at the first end-of-text token (padding may repeat it)."""
        hidden = self.encoder(self.embeddings(tokens))
        last = self.final_layer_norm(hidden[-1])
        ends = tokens == self.config.eos_token_id
        end = torch.where(ends.any(1), ends.int().argmax(1), tokens.argmax(1))  # else the largest id, as in old files
        return TextFeatures(last, hidden, last[torch.arange(len(last), device=last.device), end])


class TextTower(nn.Module):
    """Embed texts; conditions Stable Diffusion 1 and 2."""

    def __init__(self, config: CLIPTextConfig = CLIPTextConfig()) -> None:
        super().__init__()
        self.config = config
        self.text_model = TextTransformer(config)

    def forward(self, tokens: Int64[Tensor, "b l"]) -> TextFeatures:
        """Return the features of texts."""
        return self.text_model(tokens)


class TextTowerWithProjection(TextTower):
    """Embed texts, the pooled feature in the space shared with images; the second text tower of SD XL."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__(config)
        self.text_projection = _projection(config.hidden_size, config.projection_dim)

    def forward(self, tokens: Int64[Tensor, "b l"]) -> TextFeatures:
        """Return the features of texts, `pooled` projected."""
        features = self.text_model(tokens)
        return features._replace(pooled=self.text_projection(features.pooled))


class VisionEmbeddings(nn.Module):
    """Cut an image into patches, project them, put a class token before them and add positions."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.image_size = config.image_size
        self.class_embedding = nn.Parameter(nn.init.normal_(torch.empty(width), std=width**-0.5))
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding(config.places, width)
        nn.init.normal_(self.position_embedding.weight, std=width**-0.5)

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b l d"]:
        """Return the embedded patches; raises ReverieError where the image does not have the tower's size."""
        height, width = pixels.shape[-2:]
        if (height, width) != (self.image_size, self.image_size):
            size = self.image_size
            raise ReverieError(f"image of {width} x {height} does not fit the vision tower; resize to {size} x {size}")
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        classes = self.class_embedding.expand(len(pixels), 1, -1)
        return torch.cat([classes, patches], 1) + self.position_embedding.weight


class VisionTower(nn.Module):
    """Embed images (a vision transformer, Dosovitskiy et al. 2020). In CLIP it is named `vision_model`."""

    def __init__(self, config: CLIPVisionConfig = CLIPVisionConfig()) -> None:
        super().__init__()
        self.config = config
        self.embeddings = VisionEmbeddings(config)
        # The misspelling is the published files'.
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.encoder = TransformerEncoder(config, causal=False)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> VisionFeatures:
        """Return the features of images made by `codecs.clip_images`."""
        hidden = self.encoder(self.pre_layrnorm(self.embeddings(pixels)))
        return VisionFeatures(hidden[-1], hidden, self.post_layernorm(hidden[-1][:, 0]))

    def pool(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Return `pooled` of the features alone; most of the last layer need not be computed for it."""
        x, last = self.pre_layrnorm(self.embeddings(pixels)), self.encoder.layers[-1]
        assert isinstance(last, Layer)
        for layer in self.encoder.layers[:-1]:
            x = layer(x)
        return self.post_layernorm(last.first(x)[:, 0])


class VisionTowerWithProjection(nn.Module):
    """Embed images, the pooled feature in the space shared with texts; what pictures condition a U-Net by."""

    def __init__(self, config: CLIPVisionConfig, projection_dim: int) -> None:
        super().__init__()
        self.config = config
        self.vision_model = VisionTower(config)
        self.visual_projection = _projection(config.hidden_size, projection_dim)

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> VisionFeatures:
        """Return the features of images made by `codecs.clip_images`, `pooled` projected."""
        features = self.vision_model(pixels)
        return features._replace(pooled=self.visual_projection(features.pooled))


class CLIP(nn.Module):
    """Embed texts and images in one space, where a text and its image point the same way."""

    def __init__(self, config: CLIPConfig = CLIPConfig()) -> None:
        super().__init__()
        self.config = config
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        self.text_model = TextTransformer(config.text)
        self.vision_model = VisionTower(config.vision)
        self.visual_projection = _projection(config.vision.hidden_size, config.projection_dim)
        self.text_projection = _projection(config.text.hidden_size, config.projection_dim)

    def encode_text(self, tokens: Int64[Tensor, "b l"]) -> Float[Tensor, "b d"]:
        """Return the projected features of texts, not normalised."""
        return self.text_projection(self.text_model(tokens).pooled)

    def encode_image(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Return the projected features of images made by `codecs.clip_images`, not normalised."""
        return self.visual_projection(self.vision_model.pool(pixels))

    def forward(
        self, pixels: Float[Tensor, "i 3 h w"], tokens: Int64[Tensor, "t l"]
    ) -> tuple[Float[Tensor, "i d"], Float[Tensor, "t d"]]:
        """Return the features of images and of texts, the two inputs of `contrastive_loss`."""
        return self.encode_image(pixels), self.encode_text(tokens)

    @torch.no_grad()
    def clamp_logit_scale_(self) -> None:
        """Keep the scale in [1, 100]; call it after every optimiser step (CLIP paper, section 2.5)."""
        self.logit_scale.clamp_(0, MAX_LOG_SCALE)


def similarity_logits(
    image_features: Float[Tensor, "i d"], text_features: Float[Tensor, "t d"], logit_scale: Float[Tensor, ""]
) -> Float[Tensor, "i t"]:
    """Return exp(logit_scale) times the cosine of every image with every text."""
    return logit_scale.exp() * F.normalize(image_features, dim=-1) @ F.normalize(text_features, dim=-1).T


def contrastive_loss(
    image_features: Float[Tensor, "b d"], text_features: Float[Tensor, "b d"], logit_scale: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Return the mean of the two cross-entropies of finding each image's text and each text's image (CLIP, figure 3).

    `logit_scale` is the model's parameter, a logarithm; the features need not be normalised.
    """
    logits = similarity_logits(image_features, text_features, logit_scale)
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def normalise(
    levels: Tensor, mean: Sequence[float] = IMAGE_MEAN, std: Sequence[float] = IMAGE_STD
) -> Float[Tensor, "b 3 h w"]:
    """Bring pixels of 0 to 255 to the mean and deviation that a model was trained with, where the pixels are."""
    middle, spread = (torch.tensor(values, device=levels.device)[:, None, None] for values in (mean, std))
    return (levels.float() / 255 - middle) / spread


def _projection(width: int, out: int) -> nn.Linear:
    layer = nn.Linear(width, out, bias=False)
    nn.init.normal_(layer.weight, std=width**-0.5)
    return layer


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
    """Compare pictures with concepts, each of which has a threshold of its own: Stable Diffusion's safety checker.

    Source: CompVis/stable-diffusion-safety-checker; Rando et al. 2022, "Red-Teaming the Stable Diffusion Safety
    Filter", arXiv 2210.04610. Parameters are named as in diffusers' `StableDiffusionSafetyChecker`, less a
    `vision_model.`.
    """

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
