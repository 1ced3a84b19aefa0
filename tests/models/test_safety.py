"""Does the safety checker hold back what diffusers' does, and nothing else?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig

from reverie.checkpoints.load import load_safety
from reverie.codecs.clip_images import NOTE, screen_pictures
from reverie.errors import ReverieError
from reverie.models.clip import CLIPVisionConfig, SafetyChecker, SafetyConfig

pytestmark = pytest.mark.filterwarnings("ignore")  # the oracle warns of its own affairs
SHARED = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY = {**SHARED, "image_size": 16, "patch_size": 4}


@pytest.fixture(scope="module")
def oracle() -> StableDiffusionSafetyChecker:
    """Give diffusers' checker of random concepts, with thresholds that some pictures pass."""
    torch.manual_seed(0)
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=TINY, text_config=SHARED, projection_dim=24))
    for parameter in checker.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    torch.nn.init.uniform_(checker.concept_embeds_weights, 0.3, 0.5)
    torch.nn.init.uniform_(checker.special_care_embeds_weights, 0.05, 0.2)
    return checker.eval()


def test_agrees_with_diffusers(oracle: StableDiffusionSafetyChecker, tmp_path: Path) -> None:
    oracle.save_pretrained(tmp_path / "model" / "safety_checker")
    ours = load_safety(tmp_path / "model")
    pixels = torch.randn(200, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    _, expected = oracle(clip_input=pixels, images=np.zeros((200, 1)))
    assert 20 < sum(expected) < 180
    assert ours(pixels).tolist() == expected


def test_special_care_lowers_the_thresholds() -> None:
    checker = SafetyChecker(SafetyConfig(vision=CLIPVisionConfig(**TINY), projection_dim=8))
    pixels = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        features = checker.visual_projection(checker.vision_model(pixels).pooled)
        checker.concept_embeds.copy_(features)
        checker.special_care_embeds.copy_(features)
        checker.concept_embeds_weights.fill_(1.005)
        for threshold, held in ((1.1, False), (0.9, True)):
            checker.special_care_embeds_weights.fill_(threshold)
            assert checker(pixels).item() is held


def test_older_files_name_the_tower_twice(oracle: StableDiffusionSafetyChecker, tmp_path: Path) -> None:
    oracle.save_pretrained(tmp_path)
    expected = load_safety(tmp_path).state_dict()
    tower = "vision_model."
    state = {tower + name if name.startswith(tower) else name: tensor for name, tensor in expected.items()}
    state["vision_model.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(state, tmp_path / "model.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_safety(tmp_path).state_dict().items())


def test_what_is_held_back_is_black_and_says_so() -> None:
    checker = SafetyChecker(SafetyConfig(vision=CLIPVisionConfig(**TINY), projection_dim=8)).eval()
    pictures = [Image.new("RGB", (40, 30), colour) for colour in ("red", "white")]
    pictures[0].info["parameters"] = "a bear"
    for threshold, held in ((2.0, False), (-2.0, True)):
        torch.nn.init.constant_(checker.concept_embeds_weights, threshold)
        results, flags = screen_pictures(checker, pictures)
        assert flags == [held] * 2
        assert [result.getextrema() == ((0, 0),) * 3 for result in results] == [held] * 2
        assert (results[0].info.get("safety"), results[0].info["parameters"]) == (NOTE if held else None, "a bear")
    assert screen_pictures(checker, []) == ([], [])


def test_published_size() -> None:
    with torch.device("meta"):
        checker = SafetyChecker()
    names = checker.state_dict()
    assert tuple(names["concept_embeds"].shape) == (17, 768)
    assert tuple(names["special_care_embeds_weights"].shape) == (3,)
    assert sum(tensor.numel() for tensor in names.values()) == 303_981_588


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ReverieError, match="no safety checker in"):
        load_safety(tmp_path)
