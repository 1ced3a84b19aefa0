"""Do T2I-Adapters steer as diffusers' do, whoever wrote their files?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionAdapterPipeline
from diffusers import T2IAdapter as Oracle
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from reverie.adapters.features import FeatureControl, bind_features, find_t2i_adapter
from reverie.errors import ReverieError
from reverie.models.unet import UNet
from reverie.pipeline import Pipeline, load

pytestmark = pytest.mark.filterwarnings("ignore")  # the oracles warn of their own affairs
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
SEED = 7
KINDS = {
    "full": {"adapter_type": "full_adapter", "channels": [8, 16], "num_res_blocks": 2, "downscale_factor": 8},
    "light": {"adapter_type": "light_adapter", "channels": [8, 8], "num_res_blocks": 3, "downscale_factor": 8},
    "xl": {"adapter_type": "full_adapter_xl", "channels": [8, 8, 16, 16], "num_res_blocks": 2, "downscale_factor": 16},
}


def oracle(kind: str) -> Oracle:
    """Make diffusers' adapter of random weights."""
    torch.manual_seed(0)
    adapter = Oracle(**KINDS[kind]).eval()
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return adapter


def original(kind: str, adapter: Oracle) -> dict[str, Tensor]:
    """Lay the weights out as the authors do: light levels have a body, others' blocks are counted through."""
    state = {}
    for name, tensor in adapter.adapter.state_dict().items():
        parts = name.replace(".resnets.", ".body.").split(".")
        if kind != "light" and parts[0] == "body":
            number, rest = (int(parts[3]), parts[4:]) if parts[2] == "body" else (0, parts[2:])
            parts = ["body", str(2 * int(parts[1]) + number), *rest]
        state[".".join(parts)] = tensor
    return state


@pytest.mark.parametrize("kind", KINDS)
def test_both_layouts_give_the_features_of_diffusers(kind: str, tmp_path: Path) -> None:
    adapter = oracle(kind)
    adapter.save_pretrained(tmp_path)
    save_file(original(kind, adapter), file := tmp_path / "original.safetensors")
    pixels = torch.rand(2, 3, 48, 80)
    with torch.no_grad():
        b = adapter(pixels)
        for path in (tmp_path, file):
            found = find_t2i_adapter(path)
            assert found is not None
            a = found(pixels)
            assert len(a) == len(b)
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(a, b, strict=True))


def test_the_network_is_steered_as_diffusers_steers_it(tiny: Pipeline, tmp_path: Path) -> None:
    """A U-Net with SDXL's levels: features join where the image is halved already, and in the middle."""
    config = replace(tiny.unet.config, block_out_channels=(8, 8, 16), transformer_depth=(0, 1, 1), num_heads=(2, 2, 2))
    torch.manual_seed(1)
    system = replace(tiny, unet=UNet(config).eval())
    system.save(tmp_path / "model")
    adapter = oracle("xl")
    adapter.save_pretrained(tmp_path / "adapter")
    pipeline = StableDiffusionAdapterPipeline.from_pretrained(tmp_path / "model", adapter=adapter, safety_checker=None)
    found = find_t2i_adapter(tmp_path / "adapter")
    assert found is not None
    said, x, t = system.encode_prompt(["a bear", ""]), torch.randn(2, 4, 8, 8), torch.full((2,), 501)
    picture = PICTURE.resize((64, 64))
    with torch.no_grad():
        pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255).permute(2, 0, 1)[None]
        features = [0.7 * feature for feature in adapter(pixels.expand(2, -1, -1, -1))]
        b = pipeline.unet(x, t, said.tokens, down_intrablock_additional_residuals=features).sample
        a = bind_features(system, [FeatureControl(found, picture, weight=0.7)], system.network)(said)(x, t)
        plain = system.network(said)(x, t)
        late = bind_features(system, [FeatureControl(found, picture, start=0.6)], system.network)(said)(x, t)
    assert (a - b).abs().max() < 1e-5
    assert (a - plain).abs().max() > 1e-2
    assert torch.equal(late, plain)


def test_draws_what_diffusers_draws(tiny: Pipeline, tmp_path: Path) -> None:
    tiny.save(tmp_path / "model")
    adapter = oracle("full")
    adapter.save_pretrained(tmp_path / "adapter")
    pipeline = StableDiffusionAdapterPipeline.from_pretrained(tmp_path / "model", adapter=adapter, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="leading")
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.randn((1, 4, 4, 4), generator=torch.Generator("cpu").manual_seed(SEED))
    asked = {"latents": latents, "num_inference_steps": 4, "guidance_scale": 6.0, "output_type": "np"}
    theirs = pipeline("a bear", image=PICTURE, adapter_conditioning_scale=0.8, **asked).images[0]
    control = {"model": str(tmp_path / "adapter"), "image": PICTURE, "weight": 0.8}
    ways = {"seed": SEED, "steps": 4, "guidance": 6.0, "sampler": "ddim", "schedule": "ddim"}
    system = load(tmp_path / "model", device="cpu")
    picture = system.text_to_image("a bear", controls=[control], **ways)[0]
    assert np.abs(np.asarray(picture, dtype=float) - theirs * 255).max() <= 1
    plain = system.text_to_image("a bear", **ways)[0]
    assert np.abs(np.asarray(picture, dtype=float) - np.asarray(plain)).max() > 5
    with pytest.raises(ReverieError, match="a T2I-Adapter is for one kind of pictures; leave out kind depth"):
        system.text_to_image("a bear", controls=[control | {"kind": "depth"}], **ways)


def test_one_of_another_family_or_damaged_is_refused(tiny_xl: Pipeline, tmp_path: Path) -> None:
    adapter = oracle("full")
    adapter.save_pretrained(tmp_path)
    found = find_t2i_adapter(tmp_path)
    assert found is not None
    with pytest.raises(
        ReverieError, match=r"\(8, 16\) channels from 8 pixels each; the model takes \(8, 16, 16\) from 16"
    ):
        bind_features(tiny_xl, [FeatureControl(found, PICTURE)], tiny_xl.network)
    state = original("full", adapter)
    save_file({name: tensor for name, tensor in state.items() if name != "conv_in.weight"}, file := tmp_path / "cut.pt")
    with pytest.raises(ReverieError, match="is no T2I-Adapter that is known here, whole and undamaged"):
        find_t2i_adapter(file)
