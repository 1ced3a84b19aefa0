"""Does a loaded model draw the same pictures fast as plainly, with all that is put into it for a while?"""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import reverie
from reverie import ImageToImage, Pipeline, TextToImage, system
from reverie.adapters import lora
from reverie.adapters.control import Control, bind_controls
from reverie.checkpoints.load import load_folder
from reverie.checkpoints.save import Precision, save_folder
from reverie.codecs import slices
from reverie.codecs.image import WHOLE, WHOLE_PACKED, to_pictures
from reverie.diffusion.denoiser import ScheduleConfig
from reverie.generate.explain import explain
from reverie.models.autoencoder import Autoencoder, AutoencoderConfig
from reverie.models.controlnet import ControlNet, ControlNetConfig
from reverie.models.unet import UNet
from reverie.runtime import int8, is_packed, pack
from reverie.runtime.changes import seamless
from reverie.runtime.weights import HeldLayer, as_held

from .test_exact import UNET, error, given

BEAR = TextToImage(prompt="a bear", negative="red", seed=7, steps=2, width=64, height=48)
VAE = AutoencoderConfig(block_out_channels=(16, 32, 32, 32), layers_per_block=1, norm_num_groups=4)


@pytest.fixture(scope="module")
def folder(make_system: Callable[..., Pipeline], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a tiny model that predicts v, as SD 2's, wide enough to be packed."""
    base = make_system(ScheduleConfig(prediction="v"))
    torch.manual_seed(0)
    config = replace(UNET, cross_attention_dim=16, sample_size=8)
    path = tmp_path_factory.mktemp("wide")
    save_folder(replace(base, unet=UNet(config).eval(), autoencoder=Autoencoder(VAE).eval()), path)
    return path


@pytest.fixture(scope="module")
def plain(folder: Path) -> Pipeline:
    return reverie.load(folder, fast=False)


@pytest.fixture
def fast(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    monkeypatch.setattr(system, "WIDE_FROM", 0)  # as if it were wide
    return reverie.load(folder)


def latents(system: Pipeline, request: TextToImage) -> Tensor:
    return next(progress.latents for progress in system.stream(request) if progress.pictures)


def state(system: Pipeline) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in system.unet.state_dict().items()}


def test_what_is_loaded_is_fast_unless_it_is_not_wanted(plain: Pipeline, fast: Pipeline, folder: Path) -> None:
    assert is_packed(fast.unet)
    assert is_packed(fast.autoencoder)
    assert not is_packed(plain.unet)
    assert not is_packed(reverie.load(folder, dtype="float16").unet)


@torch.no_grad()
def test_a_narrow_model_is_packed_and_does_not_give_its_memory_back_at_every_call(plain: Pipeline) -> None:
    bundled, z = reverie.load(device="cpu"), torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    given = z.expand(2, -1, -1, -1), torch.tensor([500.0, 20.0]), bundled.encode_prompt(["a bear", ""]).tokens
    before = reverie.load(device="cpu", fast=False).unet(*given)
    assert error(bundled.unet(*given), before) < 1e-5
    assert is_packed(bundled.unet)
    faults = [resource.getrusage(resource.RUSAGE_SELF).ru_minflt]
    for _ in range(5):  # the first few take what the others use
        bundled.codec.decode(z)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    assert min(after - before for before, after in pairwise(faults)) < 1000  # 3,900 pages else


@pytest.mark.skipif(not int8.available(), reason="this processor multiplies no 8-bit numbers")
def test_a_model_may_be_rounded(plain: Pipeline, folder: Path, tmp_path: Path) -> None:
    small = reverie.load(folder, int8=True)
    assert small.name == f"{plain.name} in int8"
    assert is_packed(small.autoencoder)
    assert 1e-5 < error(latents(small, BEAR), latents(plain, BEAR)) < 0.2
    file = some_lora(plain, tmp_path / "ink.safetensors")
    without = latents(small, BEAR)
    with lora.apply(small, [(file, 1.0, 1.0)]):
        assert error(latents(small, BEAR), without) > 1e-3
    assert error(latents(small, BEAR), without) < 1e-2


def test_a_model_in_another_dtype_has_another_name(plain: Pipeline, folder: Path) -> None:
    """By which what was drawn in it is told apart."""
    assert reverie.load(folder, dtype="bfloat16").name == f"{plain.name} in bfloat16"


def test_pictures_are_the_same(plain: Pipeline, fast: Pipeline) -> None:
    assert error(latents(fast, BEAR), latents(plain, BEAR)) < 1e-5
    request = ImageToImage(**{**BEAR.model_dump(), "steps": 4, "strength": 0.5}, init=plain.draw(BEAR)[0])
    assert error(latents(fast, request), latents(plain, request)) < 1e-5


def test_picture_k_is_that_of_seed_plus_k_alone_to_the_bit(fast: Pipeline) -> None:
    request = BEAR.replace(count=3)
    together = [progress.latents for progress in fast.stream(request) if progress.pictures]
    for k, one in enumerate(together):
        assert torch.equal(one, latents(fast, request.only(k)))


def some_lora(system: Pipeline, path: Path) -> Path:
    """Write a LoRA for layers that are packed alone, together and in two parts."""
    drawn: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(3)
    for name, part in system.unet.named_modules():
        if name.endswith(("attn1.to_q", "attn2.to_v", "ff.net.0.proj", "proj_in", "resnets.0.conv1")):
            shape = part.weight.shape
            ones = [1] * (len(shape) - 2)
            key = f"lora_unet_{name.replace('.', '_')}"
            drawn[f"{key}.lora_down.weight"] = torch.randn(2, *shape[1:], generator=generator) / 4
            drawn[f"{key}.lora_up.weight"] = torch.randn(shape[0], 2, *ones, generator=generator) / 4
    save_file(drawn, path)
    return path


def test_a_lora_works_and_leaves_no_bit(plain: Pipeline, fast: Pipeline, tmp_path: Path) -> None:
    file, before = some_lora(plain, tmp_path / "ink.safetensors"), state(plain)
    without = latents(fast, BEAR)
    with lora.apply(plain, [(file, 0.7, 1.0)]):
        theirs = latents(plain, BEAR)
    with lora.apply(fast, [(file, 0.7, 1.0)]):
        assert error(latents(fast, BEAR), theirs) < 1e-5
    assert error(theirs, without) > 1e-3
    assert torch.equal(latents(fast, BEAR), without)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(fast).items())


def test_looking_for_layers_unpacks_none_of_them(fast: Pipeline, tmp_path: Path) -> None:
    file = some_lora(fast, tmp_path / "ink.safetensors")
    latents(fast, BEAR)
    untouched = fast.unet.get_submodule("mid_block.resnets.1.conv2")
    assert untouched._parameters["weight"] is None
    with lora.apply(fast, [(file, 1.0, 1.0)]):
        assert untouched._parameters["weight"] is None


def test_a_seamless_picture_is_the_same(plain: Pipeline, fast: Pipeline) -> None:
    for tile in ("x", "xy"):
        request = BEAR.replace(tile=tile)
        assert error(latents(fast, request), latents(plain, request)) < 1e-5
    with torch.no_grad(), seamless([fast.unet], "xy"):
        x, t, _ = given(side=(8, 8))
        context = torch.randn(2, 12, 16)
        rolled = fast.unet(x.roll((2, 2), (2, 3)), t, context)
        assert torch.allclose(rolled, fast.unet(x, t, context).roll((2, 2), (2, 3)), atol=1e-5)
    assert error(latents(fast, BEAR), latents(plain, BEAR)) < 1e-5


def test_a_controlnet_steers_the_same(plain: Pipeline, fast: Pipeline) -> None:
    torch.manual_seed(1)
    network = ControlNet(ControlNetConfig(fast.unet.config, hint_widths=(16, 16, 32, 32))).eval()
    for part in [*network.controlnet_down_blocks, network.controlnet_mid_block]:
        nn.init.normal_(part.weight, std=0.2)  # new ones are silent
    picture = plain.draw(BEAR)[0]
    conditioning = plain.encode_prompt(["a bear", "red"])
    x, t, _ = given(side=(6, 8))
    with torch.no_grad():
        theirs = bind_controls(plain, [Control(network, picture)])(conditioning)(x, t)
        pack(network)
        ours = bind_controls(fast, [Control(network, picture)])(conditioning)(x, t)
        alone = plain.network(conditioning)(x, t)
    assert error(ours, theirs) < 1e-5
    assert error(alone, theirs) > 1e-3


def test_an_explanation_sees_the_same_and_changes_no_bit(plain: Pipeline, fast: Pipeline) -> None:
    theirs, ours = explain(plain, BEAR), explain(fast, BEAR)
    assert ours.picture.tobytes() == fast.draw(BEAR)[0].tobytes()
    assert ours.maps.keys() == theirs.maps.keys()
    assert all(torch.allclose(ours.maps[word], theirs.maps[word], atol=1e-5) for word in theirs.maps)


@torch.no_grad()
def test_large_pictures_pass_in_slices(plain: Pipeline, fast: Pipeline) -> None:
    z = torch.randn(1, 4, 20, 12)
    fast.autoencoder.decode(z)
    whole = plain.autoencoder.decode(z)
    assert error(slices.decode_in_strips(fast.autoencoder, z), whole) < 1e-5
    assert len(to_pictures(fast.autoencoder.decode(z))) == 1
    assert (plain.codec.whole, fast.codec.whole) == (WHOLE, WHOLE_PACKED)


@pytest.fixture
def half(folder: Path, tmp_path: Path) -> Path:
    """Write the same model in half precision."""
    save_folder(load_folder(folder), tmp_path / "half", Precision(torch.float16))
    return tmp_path / "half"


def test_weights_in_half_precision_stay_in_their_file(half: Path, tmp_path: Path) -> None:
    model, plain = reverie.load(half), reverie.load(half, fast=False)
    layers = [layer for layer in model.unet.modules() if isinstance(layer, HeldLayer)]
    assert len(layers) > 10
    assert all(as_held(layer).dtype == torch.float16 for layer in layers)
    assert error(latents(model, BEAR), latents(plain, BEAR)) < 1e-5
    tower = model.text_encoders[0]
    assert sum(as_held(layer).dtype == torch.float16 for layer in tower.modules() if isinstance(layer, HeldLayer)) > 3
    assert not any(
        as_held(layer).dtype == torch.float32
        for layer in model.autoencoder.encoder.modules()
        if isinstance(layer, HeldLayer)
    )
    model.save(tmp_path / "again")
    again = reverie.load(tmp_path / "again", fast=False)
    for name in ("unet", "autoencoder"):
        theirs, ours = getattr(plain, name).state_dict(), getattr(again, name).state_dict()
        assert all(torch.equal(ours[key], theirs[key]) and ours[key].dtype == torch.float32 for key in theirs)


def test_a_model_is_saved_as_it_was_loaded(plain: Pipeline, fast: Pipeline, tmp_path: Path) -> None:
    fast.draw(BEAR)
    fast.save(tmp_path / "again")
    again = reverie.load(tmp_path / "again", fast=False)
    for part in ("unet", "autoencoder"):
        theirs, ours = getattr(plain, part).state_dict(), getattr(again, part).state_dict()
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert torch.equal(latents(again, BEAR), latents(plain, BEAR))
