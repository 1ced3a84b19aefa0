"""Is a LoRA as strong as the program that wrote it says, in its header or in the file beside it?

The numbers for headers and configs are those that diffusers 0.42.1 with peft 0.21.2 loads such files at.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from reverie.adapters import lora
from reverie.errors import ReverieError
from reverie.pipeline import Pipeline

RANK, WIDTH = 4, 16
LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
OTHER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_k"
TEXT = "encoder.layers.1.mlp.fc1"


@pytest.fixture
def halves() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(RANK, WIDTH, generator=generator), torch.randn(WIDTH, RANK, generator=generator)


def strength(system: Pipeline, path: Path, halves: tuple[Tensor, Tensor], layer: str = LAYER) -> float:
    """Measure how many times the product of the halves a file adds to a layer."""
    network = system.unet if layer.startswith("mid") else system.text_encoders[0].text_model
    module, product = (
        network.get_submodule(layer),
        halves[1][: network.get_submodule(layer).weight.shape[0]] @ halves[0],
    )
    before = module.weight.detach().clone()
    with lora.apply(system, [(path, 1.0, 1.0)]):
        added = module.weight.detach() - before
    factor = (added * product).sum() / (product * product).sum()
    torch.testing.assert_close(added, factor * product, atol=1e-4, rtol=1e-4)
    return factor.item()


def pair(name: str, halves: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.lora_A.weight": halves[0].clone(), f"{name}.lora_B.weight": halves[1].clone()}


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        ({}, 1.0),
        ({"unet.r": 4, "unet.lora_alpha": 1}, 0.25),
        ({"unet.r": 4, "unet.lora_alpha": 1, "unet.use_rslora": True}, 0.5),
        ({"unet.r": 4, "unet.lora_alpha": 16}, 4.0),
        ({"text_encoder.r": 4, "text_encoder.lora_alpha": 1}, 1.0),
        ({"unet.r": 8, "unet.lora_alpha": 8, "unet.rank_pattern": {"attn1.to_q": 4}}, 2.0),
        ({"unet.r": 4, "unet.lora_alpha": 8, "unet.alpha_pattern": {"to_k": 8, "(mid|up).*attn1.to_q": 2}}, 0.5),
        ({"unet.r": 4, "unet.lora_alpha": 8, "unet.alpha_pattern": {"q": 2}}, 2.0),  # no whole part of the path
    ],
)
def test_headers_of_diffusers(
    told: dict[str, Any], wanted: float, tiny: Pipeline, tmp_path: Path, halves: tuple[Tensor, Tensor]
) -> None:
    file = tmp_path / "pytorch_lora_weights.safetensors"
    save_file(
        pair(f"unet.{LAYER}", halves),
        file,
        {"format": "pt", "lora_adapter_metadata": json.dumps(told)} if told else None,
    )
    assert strength(tiny, file, halves) == pytest.approx(wanted, rel=1e-5)
    assert strength(tiny, tmp_path, halves) == pytest.approx(wanted, rel=1e-5)  # the folder that diffusers saves


def test_a_folder_of_pefts(tiny: Pipeline, tmp_path: Path, halves: tuple[Tensor, Tensor]) -> None:
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 16, "use_rslora": True, "alpha_pattern": {"to_k": 4}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    state = pair(f"base_model.model.{LAYER}", halves) | pair(f"base_model.model.{OTHER}", halves)
    save_file(state, tmp_path / "adapter_model.safetensors")
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        assert strength(tiny, path, halves) == pytest.approx(8)
        assert strength(tiny, path, halves, OTHER) == pytest.approx(2)


def test_a_folder_for_each_network(tiny: Pipeline, tmp_path: Path, halves: tuple[Tensor, Tensor]) -> None:
    """As peft's examples/lora_dreambooth keeps them; the text encoder as transformers 5 names it."""
    wide = (halves[0], torch.cat([halves[1], halves[1]]))
    for network, layer, drawn, alpha in (("unet", LAYER, halves, 2), ("text_encoder", TEXT, wide, 12)):
        folder = tmp_path / network
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": alpha}))
        save_file(pair(f"base_model.model.{layer}", drawn), folder / "adapter_model.safetensors")
    assert strength(tiny, tmp_path, halves) == pytest.approx(0.5)
    assert strength(tiny, tmp_path, wide, TEXT) == pytest.approx(3)
    with pytest.raises(ReverieError, match=r"^no LoRA at '.*': it holds no adapter_config.json$"):
        strength(tiny, tmp_path.parent, halves)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"peft_type": "VERA"}, "peft_type is 'VERA', which is not supported; it should be LORA, LOHA"),
        ({"init_lora_weights": "pissa_niter_4"}, "which changes the model's own weights too"),
        ({"r": 4, "lora_alpha": 4, "rank_pattern": {"(a+)+q": 4}}, "is not one that reverie runs"),
        ({"r": 4, "lora_alpha": "much"}, "says wrongly how strong"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    config: dict[str, Any], told: str, tiny: Pipeline, tmp_path: Path, halves: tuple[Tensor, Tensor]
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file(pair(f"base_model.model.{LAYER}", halves), tmp_path / "adapter_model.safetensors")
    with pytest.raises(ReverieError, match=told) as error:
        strength(tiny, tmp_path, halves)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("alpha", "header", "rank", "wanted"),
    [
        (4.0, {}, None, 1.0),
        (8.0, {}, None, 1.0),  # nothing says that the dimension is 4
        (8.0, {"ss_network_dim": "4"}, None, 2.0),
        (8.0, {"ss_network_dim": "8"}, None, 1.0),
        (8.0, {}, 4, 2.0),
        (4.0, {}, 4, 1.0),
        (8.0, {"ss_network_dim": "8", "ss_network_args": '{"conv_dim": "4", "rs_lora": "True"}'}, None, 2.0),
    ],
)
def test_a_whole_lokr(
    alpha: float, header: dict[str, str], rank: int | None, wanted: float, tiny: Pipeline, write: Callable[..., Path]
) -> None:
    """lycoris-lora 4.1.3 (modules/lokr.py) writes alpha * dim / sqrt(dim) where `rs_lora` trained it at sqrt(dim)."""
    module, name = tiny.unet.get_submodule(LAYER), f"lora_unet_{LAYER.replace('.', '_')}"
    first, second = torch.eye(4), torch.ones(4, 4)
    state = {f"{name}.lokr_w1": first, f"{name}.lokr_w2": second, f"{name}.alpha": torch.tensor(alpha)}
    if rank:
        other = f"lora_unet_{OTHER.replace('.', '_')}"
        state |= {f"{other}.lokr_w1": first.clone(), f"{other}.lokr_w2_a": torch.ones(4, rank)}
        state |= {f"{other}.lokr_w2_b": torch.zeros(rank, 4), f"{other}.alpha": torch.tensor(float(rank))}
    file = write(state)
    save_file(state, file, header or None)
    before = module.weight.detach().clone()
    with lora.apply(tiny, [(file, 1.0, 1.0)]):
        torch.testing.assert_close(module.weight - before, wanted * torch.kron(first, second))


def test_a_rank_stabilised_glora(tiny: Pipeline, write: Callable[..., Path], halves: tuple[Tensor, Tensor]) -> None:
    """lycoris-lora 4.1.3 (modules/glora.py) writes its alpha as it is, and scales by alpha / sqrt(rank)."""
    name, (down, up) = f"lora_unet_{LAYER.replace('.', '_')}", halves
    state = {f"{name}.a1.weight": torch.zeros(WIDTH, RANK), f"{name}.a2.weight": torch.zeros(RANK, WIDTH)}
    state |= {f"{name}.b1.weight": up, f"{name}.b2.weight": down, f"{name}.alpha": torch.tensor(3.0)}
    file = write(state)
    assert strength(tiny, file, halves) == pytest.approx(3 / RANK)
    save_file(state, file, {"ss_network_args": '{"algo": "glora", "rs_lora": "true"}'})
    assert strength(tiny, file, halves) == pytest.approx(3 / math.sqrt(RANK))
