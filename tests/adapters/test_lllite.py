"""Do ControlNet-LLLites change what layers are given as kohya's network does, where and when they are to?"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from reverie.adapters.features import LayerControl, bind_layer_controls, find_lllite
from reverie.checkpoints.adapter_keys import targets
from reverie.checkpoints.weights import blueprint
from reverie.errors import ReverieError
from reverie.models.unet import SDXL, UNet, UNetConfig
from reverie.pipeline import Pipeline
from reverie.runtime import is_packed, pack

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
CONFIG = UNetConfig(
    block_out_channels=(8, 16),
    layers_per_block=2,
    transformer_depth=(1, 1),
    num_heads=(2, 2),
    cross_attention_dim=16,
    norm_num_groups=4,
)
KERNELS = {1: (4, 2), 2: (4, 4), 3: (4, 4, 2)}
# A layer's path here, its name in a file (the official U-Net's), the depth that kohya's code gives to its block, and
# its width; in a U-Net of two levels the second and the middle are half as large.
LAYERS = (
    ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "input_blocks_1_1_{}_attn1_to_q", 1, 8),
    ("down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_v", "input_blocks_2_1_{}_attn1_to_v", 1, 8),
    ("down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_q", "input_blocks_5_1_{}_attn2_to_q", 2, 16),
    ("mid_block.attentions.0.transformer_blocks.0.attn1.to_k", "middle_block_1_{}_attn1_to_k", 2, 16),
)


def weights(seed: int = 0) -> dict[str, Tensor]:
    """Draw a file's tensors, of embeddings of 6 numbers and hidden layers of 4."""
    random, state = torch.Generator().manual_seed(seed), {}

    def draw(name: str, *shape: int) -> None:
        state[f"{name}.weight"] = torch.randn(*shape, generator=random) * 0.3
        state[f"{name}.bias"] = torch.randn(shape[0], generator=random) * 0.3

    for _, name, depth, width in LAYERS:
        stem = f"lllite_unet_{name.format('transformer_blocks_0')}"
        widths = (3, *[3] * (len(KERNELS[depth]) - 1), 6)
        for index, kernel in enumerate(KERNELS[depth]):
            draw(f"{stem}.conditioning1.{2 * index}", widths[index + 1], widths[index], kernel, kernel)
        draw(f"{stem}.down.0", 4, width)
        draw(f"{stem}.mid.0", 4, 4 + 6)
        draw(f"{stem}.up.0", width, 4)
    return state


@pytest.fixture
def system(tiny: Pipeline) -> Pipeline:
    torch.manual_seed(0)
    return replace(tiny, unet=UNet(CONFIG).eval())


def change(unet: UNet, state: dict[str, Tensor], picture: Image.Image, strength: float) -> None:
    """Let layers of a U-Net compute as the published description says: an independent LLLite."""
    pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32)).permute(2, 0, 1)[None] / 255 * 2 - 1

    def compute(layer: nn.Module, stem: str, depth: int, x: Tensor) -> Tensor:
        def part(name: str) -> tuple[Tensor, Tensor]:
            return state[f"{stem}.{name}.weight"], state[f"{stem}.{name}.bias"]

        seen = pixels
        for index, kernel in enumerate(KERNELS[depth]):
            seen = F.conv2d(seen.relu() if index else seen, *part(f"conditioning1.{2 * index}"), stride=kernel)
        tokens = seen.flatten(2).transpose(1, 2).repeat(len(x), 1, 1)
        hidden = F.linear(x, *part("down.0")).relu()
        hidden = F.linear(torch.cat((tokens, hidden), 2), *part("mid.0")).relu()
        return F.linear(x + strength * F.linear(hidden, *part("up.0")), layer.get_parameter("weight"))

    for path, name, depth, _ in LAYERS:
        layer, stem = unet.get_submodule(path), f"lllite_unet_{name.format('transformer_blocks_0')}"
        layer.forward = lambda x, layer=layer, stem=stem, depth=depth: compute(layer, stem, depth, x)  # type: ignore


def control(tmp_path: Path, picture: Image.Image = PICTURE, **more: float) -> LayerControl:
    save_file(weights(), file := tmp_path / "lllite.safetensors")
    layers = find_lllite(file)
    assert layers is not None
    return LayerControl(layers, picture, **more)


def test_layers_are_given_what_an_independent_one_gives(system: Pipeline, tmp_path: Path) -> None:
    torch.manual_seed(1)
    said, x, t = system.encode_prompt(["", "a bear"]), torch.randn(2, 4, 8, 8), torch.full((2,), 501.0)
    bound = bind_layer_controls(system, [control(tmp_path, weight=0.7)], system.network)(said)
    with torch.no_grad():
        ours, plain = bound(x, t), system.network(said)(x, t)
        assert torch.equal(bound(x, t), ours)
        change(system.unet, weights(), PICTURE, 0.7)
        theirs = system.network(said)(x, t)
    assert (ours - theirs).abs().max() < 1e-5
    assert (ours - plain).abs().max() > 1e-2


def test_it_acts_for_a_part_of_the_way_and_leaves_nothing_behind(system: Pipeline, tmp_path: Path) -> None:
    said, x = system.encode_prompt(["a bear"]), torch.randn(1, 4, 8, 8)
    bound = bind_layer_controls(system, [control(tmp_path, start=0.5)], system.network)(said)
    with torch.no_grad():
        for t, acts in ((900.0, False), (100.0, True)):
            time = torch.full((1,), t)
            assert torch.equal(bound(x, time), system.network(said)(x, time)) is not acts
    assert not any(module._forward_pre_hooks for module in system.unet.modules())


def test_sides_of_any_number_of_latents(system: Pipeline, tmp_path: Path) -> None:
    """Seven latents are halved to four: the picture is continued to whole cells of each size."""
    said, x, t = system.encode_prompt(["a bear"]), torch.randn(1, 4, 7, 9), torch.full((1,), 501.0)
    flat = control(tmp_path, Image.new("RGB", (64, 64), (255, 128, 0)))
    with torch.no_grad():
        assert bind_layer_controls(system, [flat], system.network)(said)(x, t).shape == x.shape
    seen = flat.embeddings(56, 72)
    for tensor in seen.values():
        assert torch.allclose(tensor, tensor[:, :, :1, :1].expand_as(tensor), atol=1e-5)


def test_packed_networks_are_changed_the_same(tiny: Pipeline, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = replace(CONFIG, block_out_channels=(256,), layers_per_block=1, transformer_depth=(1,), num_heads=(4,))
    wide, layer = replace(tiny, unet=UNet(config).eval()), LAYERS[0][1].format("transformer_blocks_0")
    state = {name: tensor for name, tensor in weights().items() if layer in name}
    for part, shape in (("down.0.weight", (4, 256)), ("up.0.weight", (256, 4)), ("up.0.bias", (256,))):
        state[f"lllite_unet_{layer}.{part}"] = torch.randn(shape) * 0.3
    save_file(state, file := tmp_path / "wide.safetensors")
    layers = find_lllite(file)
    assert layers is not None
    said, x, t = tiny.encode_prompt(["a bear"]), torch.randn(1, 4, 8, 8), torch.full((1,), 500.0)
    bound = bind_layer_controls(wide, [LayerControl(layers, PICTURE)], wide.network)(said)
    with torch.no_grad():
        plain = bound(x, t)
        assert is_packed(pack(wide.unet))
        assert (bound(x, t) - plain).abs().max() < 1e-4
        assert (wide.network(said)(x, t) - plain).abs().max() > 1e-3


def test_a_request_names_it_as_any_control(system: Pipeline, tmp_path: Path) -> None:
    control(tmp_path)
    asked = {"model": str(tmp_path / "lllite.safetensors"), "image": PICTURE}
    drawn = partial(system.text_to_image, "a bear", seed=1, steps=2, width=64, height=64)
    picture = drawn(controls=[asked])[0]
    assert picture.tobytes() != drawn()[0].tobytes()
    assert "lllite.safetensors" in json.loads(picture.info["reverie"])["request"]["sums"]
    with pytest.raises(ReverieError, match="changes tokens that merge_tokens merges; leave out one of them"):
        system.text_to_image("a bear", controls=[asked], merge_tokens=0.5)
    with pytest.raises(ReverieError, match="a ControlNet-LLLite is for one kind of pictures; leave out kind depth"):
        system.text_to_image("a bear", controls=[asked | {"kind": "depth"}])


def test_the_names_of_files_for_sdxl() -> None:
    """sd-scripts 48d368f makes 136 parts: of queries, keys and values of the tokens, of queries to the prompt."""
    depths = {"input_blocks_4": 2, "input_blocks_5": 2, "input_blocks_7": 10, "input_blocks_8": 10, "middle_block": 10}
    layers = ("attn1_to_q", "attn1_to_k", "attn1_to_v", "attn2_to_q")
    places = targets(blueprint(partial(UNet, SDXL)), ())
    names = [f"{b}_1_transformer_blocks_{k}_{layer}" for b, n in depths.items() for k in range(n) for layer in layers]
    assert len(names) == 136
    assert all(f"unet {name}" in places for name in names)


def test_one_of_another_family_or_damaged_is_refused(system: Pipeline, tiny_xl: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(ReverieError, match="which the model does not have, or in another width"):
        bind_layer_controls(tiny_xl, [control(tmp_path)], tiny_xl.network)
    state = weights()
    del state[f"lllite_unet_{LAYERS[2][1].format('transformer_blocks_0')}.mid.0.weight"]
    save_file(state, file := tmp_path / "part.safetensors")
    with pytest.raises(ReverieError, match="is no ControlNet-LLLite that is known here, whole and undamaged"):
        find_lllite(file)
    save_file({"conv.weight": torch.ones(1)}, file)
    assert find_lllite(file) is None
