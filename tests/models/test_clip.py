"""CLIP against transformers with random weights; initial values, loss and preprocessing against their definitions."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPConfig as OracleConfig
from transformers import CLIPModel as Oracle
from transformers import CLIPTextConfig as OracleTextConfig
from transformers import CLIPTextModel as OracleTextModel
from transformers import CLIPTextModelWithProjection

from reverie.errors import ReverieError
from reverie.models.clip import (
    CLIP,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    TextTower,
    TextTowerWithProjection,
    contrastive_loss,
    similarity_logits,
)
from reverie.models.clip_presets import CLIPS

TOLERANCE = 1e-5
BOS, EOS = 97, 98


def tiny(activation: str = "quick_gelu") -> CLIPConfig:
    layers = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_act": activation}
    return CLIPConfig(
        text=CLIPTextConfig(
            hidden_size=32,
            intermediate_size=80,
            vocab_size=99,
            max_position_embeddings=12,
            eos_token_id=EOS,
            projection_dim=24,
            **layers,
        ),
        vision=CLIPVisionConfig(hidden_size=48, intermediate_size=64, image_size=24, patch_size=8, **layers),
        projection_dim=24,
    )


def oracle_text_config(config: CLIPTextConfig) -> OracleTextConfig:
    return OracleTextConfig(**dataclasses.asdict(config), bos_token_id=config.eos_token_id - 1)


def oracle_config(config: CLIPConfig) -> OracleConfig:
    return OracleConfig(
        text_config=oracle_text_config(config.text).to_dict(),
        vision_config=dataclasses.asdict(config.vision),
        projection_dim=config.projection_dim,
        logit_scale_init_value=config.logit_scale_init_value,
    )


def tokens_for(config: CLIPTextConfig, batch: int = 3) -> Tensor:
    """Rows that end at different places; padding repeats the end token in one and is token 0 in the others."""
    rows = torch.randint(1, config.eos_token_id - 1, (batch, config.max_position_embeddings))
    for i, row in enumerate(rows):
        end = config.max_position_embeddings - 1 - 3 * i
        row[end:] = 0 if i % 2 else config.eos_token_id
        row[end] = config.eos_token_id
    return rows


def scatter(model: nn.Module) -> nn.Module:
    """Move every parameter off its initial value, so that gains and biases count too."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.fixture(params=["quick_gelu", "gelu"])
def pair(request: pytest.FixtureRequest) -> tuple[CLIP, Oracle]:
    torch.manual_seed(0)
    config = tiny(request.param)
    ours, theirs = CLIP(config), Oracle(oracle_config(config))
    scatter(ours)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs.eval()


@torch.no_grad()
def test_text_tower_equals_transformers(pair: tuple[CLIP, Oracle]) -> None:
    ours, theirs = pair
    tokens = tokens_for(ours.config.text)
    features, oracle = ours.text_model(tokens), theirs.text_model(tokens, output_hidden_states=True)
    assert len(features.hidden) == len(oracle.hidden_states) == 4
    for mine, other in zip(features.hidden, oracle.hidden_states, strict=True):
        assert error(mine, other) < TOLERANCE
    assert error(features.last, oracle.last_hidden_state) < TOLERANCE
    assert error(features.pooled, oracle.pooler_output) < TOLERANCE


@torch.no_grad()
def test_vision_tower_equals_transformers(pair: tuple[CLIP, Oracle]) -> None:
    ours, theirs = pair
    pixels = torch.randn(2, 3, 24, 24)
    features, oracle = ours.vision_model(pixels), theirs.vision_model(pixels, output_hidden_states=True)
    for mine, other in zip(features.hidden, oracle.hidden_states, strict=True):
        assert error(mine, other) < TOLERANCE
    assert error(features.last, oracle.last_hidden_state) < TOLERANCE
    assert error(features.pooled, oracle.pooler_output) < TOLERANCE


def test_embeddings_logits_and_loss_equal_transformers(pair: tuple[CLIP, Oracle]) -> None:
    ours, theirs = pair
    tokens, pixels = tokens_for(ours.config.text), torch.randn(3, 3, 24, 24)
    oracle = theirs(tokens, pixels, return_loss=True)
    image, text = ours(pixels, tokens)
    assert error(F.normalize(text, dim=-1), oracle.text_embeds) < TOLERANCE
    assert error(F.normalize(image, dim=-1), oracle.image_embeds) < TOLERANCE
    assert error(similarity_logits(image, text, ours.logit_scale), oracle.logits_per_image) < TOLERANCE
    loss = contrastive_loss(image, text, ours.logit_scale)
    assert error(loss, oracle.loss) < TOLERANCE
    loss.backward()
    oracle.loss.backward()
    gradients = dict(theirs.named_parameters())
    # Keys' biases have no effect on attention: their gradient is rounding alone.
    for name, parameter in ours.named_parameters():
        if not name.endswith("k_proj.bias"):
            assert error(parameter.grad, gradients[name].grad) < 10 * TOLERANCE, name


@torch.no_grad()
def test_text_towers_load_into_transformers(tmp_path: Path) -> None:
    config = tiny("gelu").text
    ours = scatter(TextTowerWithProjection(config))
    theirs = CLIPTextModelWithProjection(oracle_text_config(config)).eval()
    theirs.load_state_dict(ours.state_dict())
    tokens = tokens_for(config)
    assert error(ours(tokens).pooled, theirs(tokens).text_embeds) < TOLERANCE

    # The hub's files carry the prefix `text_model.`, which transformers 5 has dropped from its own module.
    plain = scatter(TextTower(config))
    save_file(plain.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    oracle_text_config(config).save_pretrained(tmp_path)
    loaded, report = OracleTextModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert error(plain(tokens).pooled, loaded.eval()(tokens).pooler_output) < TOLERANCE


@pytest.mark.parametrize("name", CLIPS)
def test_presets_have_transformers_keys_and_shapes(name: str) -> None:
    config = CLIPS[name]
    with torch.device("meta"):
        ours, theirs = CLIP(config), Oracle(oracle_config(config))
        text, oracle_text = TextTowerWithProjection(config.text), theirs.text_model
    assert shapes(ours) == shapes(theirs)
    oracle = {f"text_model.{key}": shape for key, shape in shapes(oracle_text).items()}
    oracle["text_projection.weight"] = (config.projection_dim, config.text.hidden_size)
    assert shapes(text) == oracle
    assert shapes(text).keys() - {"text_projection.weight"} == {f"text_model.{k}" for k in shapes(ours.text_model)}


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def test_published_sizes() -> None:
    """ViT-B/32 has 151,277,313 parameters (OpenAI's notebook), ViT-H/14 986.11 M (OpenCLIP's model profile)."""
    with torch.device("meta"):
        sizes = {name: sum(p.numel() for p in CLIP(CLIPS[name]).parameters()) for name in ("ViT-B/32", "ViT-H/14")}
    assert sizes["ViT-B/32"] == 151_277_313
    assert sizes["ViT-H/14"] == pytest.approx(986.11e6, abs=1e4)


def test_initial_values() -> None:
    torch.manual_seed(0)
    small = CLIPTextConfig(hidden_size=256, num_hidden_layers=2, num_attention_heads=4, vocab_size=999)
    config = dataclasses.replace(tiny(), text=small)
    model = CLIP(config)
    layer = model.text_model.encoder.layers[1]
    expected = [
        (model.text_model.embeddings.token_embedding, 0.02),
        (model.text_model.embeddings.position_embedding, 0.01),
        (layer.self_attn.q_proj, 256**-0.5),
        (layer.self_attn.out_proj, 256**-0.5 * 4**-0.5),
        (layer.mlp.fc1, 512**-0.5),
        (layer.mlp.fc2, 256**-0.5 * 4**-0.5),
        (model.text_projection, 256**-0.5),
        (model.visual_projection, 48**-0.5),
    ]
    for module, std in expected:
        assert module.weight.std().item() == pytest.approx(std, rel=0.05)
    assert layer.self_attn.q_proj.bias.abs().max() == 0
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07)


def test_logit_scale_is_clamped() -> None:
    model = CLIP(tiny())
    for start, end in ((9.0, math.log(100)), (-1.0, 0.0), (3.0, 3.0)):
        nn.init.constant_(model.logit_scale, start)
        model.clamp_logit_scale_()
        assert model.logit_scale.item() == pytest.approx(end)


def test_contrastive_loss_of_known_features() -> None:
    eye = torch.eye(4)
    # Orthogonal pairs: the loss is log(e^s + 3) - s; equal features cannot be told apart: log 4.
    assert contrastive_loss(eye * 5, eye, torch.tensor(0.0)).item() == pytest.approx(math.log(math.e + 3) - 1)
    assert contrastive_loss(torch.ones(4, 2), torch.ones(4, 2), torch.tensor(2.0)).item() == pytest.approx(math.log(4))


def test_pooling_takes_the_first_end_token() -> None:
    config = tiny().text
    tower = scatter(TextTower(config))
    tokens = torch.tensor([[BOS, 5, EOS, EOS, EOS], [BOS, EOS, 0, 0, EOS], [BOS, 5, 6, 7, EOS]])
    features = tower(tokens)
    assert torch.equal(features.pooled, features.last[torch.arange(3), torch.tensor([2, 1, 4])])


def test_later_tokens_do_not_reach_earlier_ones() -> None:
    tower = scatter(TextTower(tiny().text))
    tokens = tokens_for(tower.config)
    other = tokens.clone()
    other[:, 6:] = 1
    torch.testing.assert_close(tower(tokens).last[:, :6], tower(other).last[:, :6])


def test_errors_say_what_is_allowed() -> None:
    model = CLIP(tiny())
    with pytest.raises(ReverieError, match="unknown activation 'relu'; choose from gelu, quick_gelu"):
        CLIPTextConfig(hidden_act="relu")
    with pytest.raises(ReverieError, match="width 30 does not divide into 4 heads"):
        CLIPTextConfig(hidden_size=30, num_attention_heads=4)
    with pytest.raises(ReverieError, match="13 tokens do not fit the text tower; give at most 12"):
        model.encode_text(torch.zeros(1, 13, dtype=torch.long))
    with pytest.raises(ReverieError, match="image of 32 x 24 does not fit the vision tower; resize to 24 x 24"):
        model.encode_image(torch.zeros(1, 3, 24, 32))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-L/14", "ViT-H/14"])
@torch.no_grad()
def test_full_size_equals_transformers(name: str) -> None:
    torch.manual_seed(0)
    config = CLIPS[name]
    with torch.device("meta"):
        ours, theirs = CLIP(config), Oracle(oracle_config(config))
    ours.to_empty(device="cpu")
    for key, parameter in ours.named_parameters():
        nn.init.normal_(parameter, std=0.5 * parameter.shape[-1] ** -0.5 if parameter.ndim else 0.1)
        if "norm" in key and key.endswith("weight"):
            parameter.add_(1)
    # Buffers of positions are not in the state: transformers' are made anew, its weights are ours.
    theirs.load_state_dict(ours.state_dict(), assign=True)
    for module in theirs.modules():
        if "position_ids" in dict(module.named_buffers(recurse=False)):
            module.position_ids = torch.arange(module.position_embedding.num_embeddings)[None]
    tokens, pixels = tokens_for(config.text, 2), torch.randn(1, 3, 224, 224)
    oracle = theirs.eval()(tokens, pixels)
    assert error(F.normalize(ours.encode_text(tokens), dim=-1), oracle.text_embeds) < TOLERANCE
    assert error(F.normalize(ours.encode_image(pixels), dim=-1), oracle.image_embeds) < TOLERANCE
    assert error(ours.text_model(tokens).last, oracle.text_model_output.last_hidden_state) < TOLERANCE


def test_without_the_end_token_the_largest_is_pooled() -> None:
    """As transformers pools where config.json says `eos_token_id` 2, whatever the vocabulary: modeling_clip.py."""
    config = CLIPTextConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=6,
        eos_token_id=19,
    )
    tower = TextTower(config).eval()
    with torch.no_grad():
        told = tower.text_model(torch.tensor([[0, 5, 9, 2, 2, 2], [0, 19, 3, 19, 2, 2]]))
    assert told.pooled.equal(torch.stack([told.last[0, 2], told.last[1, 1]]))
