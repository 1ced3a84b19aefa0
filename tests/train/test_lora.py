"""Is what a LoRA was trained as what its file does to a model, to the bit, and does the file fit other programs?"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from reverie.adapters.lora import apply
from reverie.errors import ReverieError
from reverie.pipeline import Pipeline
from reverie.train.lora import LoRASettings, install, save


def trained(network: nn.Module, settings: LoRASettings, kind: str) -> nn.ModuleDict:
    """Install products and give them the values of a training that went far."""
    products = install(network.requires_grad_(False), settings, kind)
    torch.manual_seed(1)
    for parameter in products.parameters():
        nn.init.normal_(parameter, std=0.3)
    return products


def predicted(system: Pipeline) -> torch.Tensor:
    torch.manual_seed(2)
    with torch.no_grad():
        context = system.text_encoders[0](system.tokenizers[0](["a bear", ""])).last
        return system.unet(torch.randn(2, 4, 4, 4), torch.tensor([10, 500]), context)


@pytest.mark.parametrize(
    "settings",
    [
        LoRASettings(rank=2),
        LoRASettings(rank=3, alpha=1.0, layers=("to_k", "conv1", "proj_in", "ff.net.0.proj", "fc1")),
    ],
)
def test_the_file_does_what_was_trained(tiny: Pipeline, tmp_path: Path, settings: LoRASettings) -> None:
    system = deepcopy(tiny)
    networks = [trained(system.unet, settings, "unet"), trained(system.text_encoders[0], settings, "text")]
    save(networks, tmp_path / "dog.safetensors")
    with apply(tiny, [(tmp_path / "dog.safetensors", 1.0, 1.0)]):
        assert torch.equal(predicted(tiny), predicted(system))
    assert not torch.allclose(predicted(tiny), predicted(system))


def test_a_lora_starts_as_the_model_itself_and_leaves_its_weights_alone(tiny: Pipeline) -> None:
    system = deepcopy(tiny)
    products = install(system.unet.requires_grad_(False), LoRASettings(rank=2), "unet")
    assert torch.equal(predicted(system), predicted(tiny))
    learning = {id(parameter) for parameter in products.parameters()}
    assert all(parameter.requires_grad == (id(parameter) in learning) for parameter in system.unet.parameters())


def test_the_keys_are_kohyas(tiny: Pipeline, tmp_path: Path) -> None:
    system, settings = deepcopy(tiny), LoRASettings(rank=2, alpha=4.0)
    networks = [install(system.unet, settings, "unet"), install(system.text_encoders[0], settings, "text")]
    save(networks, tmp_path / "dog.safetensors")
    tensors = load_file(tmp_path / "dog.safetensors")
    unet = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
    assert tensors[f"{unet}.lora_down.weight"].shape == (2, 8)
    assert tensors[f"{unet}.lora_up.weight"].shape == (8, 2)
    assert tensors[f"{unet}.alpha"].item() == 4.0
    assert "lora_te_text_model_encoder_layers_1_self_attn_q_proj.lora_up.weight" in tensors
    blocks, layers = 4, 2  # of one transformer block down, one in the middle and two up, with two attentions each
    assert len(tensors) == 3 * (blocks * 2 * 4 + layers * 4)


def test_settings_that_fit_no_layer(tiny: Pipeline) -> None:
    with pytest.raises(ReverieError, match=r"no layer's name ends in to_z, o_q; choose other layers in \[lora\]"):
        install(deepcopy(tiny.unet), LoRASettings(rank=2, layers=("to_z", "o_q")), "unet")
    with pytest.raises(ReverieError, match=r"rank = 100000 in \[lora\] of the recipe is not thin"):
        install(deepcopy(tiny.unet), LoRASettings(rank=100_000), "unet")
    with pytest.raises(ReverieError, match=r"rank = -1, alpha = 0.0 in \[lora\] of the recipe; give 0 or more"):
        LoRASettings(rank=-1)
