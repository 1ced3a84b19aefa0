"""Does the U-Net learn from the right latents, captions and noise, and does a killed run resume to the bit?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from reverie.checkpoints.load import load_autoencoder, load_clip, load_folder
from reverie.corpora.concepts import concepts
from reverie.corpora.scenes import render, scene_at
from reverie.data.loader import Batches, shuffled_index
from reverie.diffusion.denoiser import ScheduleConfig
from reverie.errors import ReverieError
from reverie.models.unet import UNet, UNetConfig
from reverie.train import diffusion
from reverie.train.diffusion import build, initialise_, text_tower
from reverie.train.examples import HELD_OUT_SEED
from reverie.train.loop import step_generator
from reverie.train.losses import DenoisingSettings
from reverie.train.recipe import read

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [2, 20, 97])
def test_every_pass_over_the_pool_is_shuffled_anew(size: int) -> None:
    orders = [[shuffled_index(1, turn, size, place) for place in range(size)] for turn in range(4)]
    assert all(sorted(order) == list(range(size)) for order in orders)
    if size > 2:
        assert len({tuple(order) for order in orders}) == 4


def test_a_new_unet_predicts_nothing() -> None:
    torch.manual_seed(0)
    config = UNetConfig(
        block_out_channels=(8, 16),
        layers_per_block=1,
        transformer_depth=(1, 0),
        num_heads=(2, 2),
        cross_attention_dim=8,
        norm_num_groups=4,
    )
    unet = UNet(config)
    initialise_(unet)
    assert unet(torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 5, 8)).abs().max().item() == 0


@pytest.fixture(scope="module")
def objective(workshop: Any, tmp_path_factory: pytest.TempPathFactory) -> diffusion.DiffusionObjective:
    """Build the tiny recipe's objective; tests must not change it."""
    return build(read(workshop.recipe("diffusion")), 3, tmp_path_factory.mktemp("diffusion"))


def test_latents_are_scaled_codes_of_the_scenes(objective: diffusion.DiffusionObjective) -> None:
    autoencoder, stream = objective.components.autoencoder, objective.batches.items.make
    pixels = torch.from_numpy(render(scene_at(concepts("instruments"), 3, 17))).permute(2, 0, 1)[None]
    with torch.no_grad():
        latents = autoencoder.encode(pixels / 127.5 - 1).mode() * autoencoder.config.scaling_factor
    assert stream.latents.dtype == torch.float16
    assert stream.latents.shape == (20, 4, 8, 8)
    torch.testing.assert_close(stream.latents[17].float(), latents[0], rtol=2e-3, atol=2e-3)


def test_goes_on_from_a_unet_that_was_exported(
    objective: diffusion.DiffusionObjective, workshop: Any, tmp_path: Path
) -> None:
    objective.export(tmp_path / "model")
    recipe = read(workshop.recipe("diffusion"))
    recipe["diffusion"] = recipe.get("diffusion", {}) | {"initial": str(tmp_path / "model" / "unet")}
    begun = build(recipe, 4, tmp_path)  # another seed: its own initial values would be others
    for name, value in objective.averaged.state_dict().items():
        assert torch.equal(begun.averaged.state_dict()[name], value), name
    ((_, loss, _),) = begun.losses(0)
    loss.backward()
    assert all(parameter.grad is not None for parameter in begun.averaged.parameters())


def test_loss_is_the_weighted_error_of_v(objective: diffusion.DiffusionObjective) -> None:
    """v = sqrt(a) eps - sqrt(1 - a) x0; min-SNR weighs the error in x0 by min(SNR, 5), so that of v by / (SNR + 1)."""
    ((name, loss, _),) = objective.losses(1)
    items = [objective.batches.items.make(index) for index in range(4, 8)]
    x0 = torch.stack([latents for latents, _, _ in items]).float()
    generator = step_generator(3, 1)
    t = torch.randint(1000, (4,), generator=generator)
    eps = torch.randn(x0.shape, generator=generator)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    a = torch.cumprod(1 - betas, 0)[t].view(4, 1, 1, 1)
    tokens = objective.components.tokenizers[0]([caption for _, caption, _ in items])
    with torch.no_grad():
        context = objective.components.text_encoders[0](tokens).last
        predicted = objective.averaged((a.sqrt() * x0 + (1 - a).sqrt() * eps).float(), t, context)
    error = (predicted - (a.sqrt() * eps - (1 - a).sqrt() * x0)).square().mean((1, 2, 3))
    snr = (a / (1 - a)).flatten()
    expected = (snr.clamp(max=5) / (snr + 1) * error).mean()
    assert name == "unet"
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_loss_of_rectified_flow(objective: diffusion.DiffusionObjective) -> None:
    """(1 - u) x0 + u eps at a u of normal logit, shifted, and eps - x0 (Esser et al. 2403.03206, eq. 13, 19, 23)."""
    components = replace(objective.components, schedule_config=ScheduleConfig(prediction="flow", shift=3.0))
    chosen = DenoisingSettings(weighting="uniform", levels="logit_normal")
    parts = (components, objective.networks, objective.batches, chosen, 3, objective.shown)
    ((_, loss, _),) = diffusion.DiffusionObjective(*parts).losses(1)
    items = [objective.batches.items.make(index) for index in range(4, 8)]
    x0 = torch.stack([latents for latents, _, _ in items]).float()
    generator = step_generator(3, 1)
    u = ((1000 * torch.randn(4, generator=generator).sigmoid()).floor() + 1) / 1000
    u = (3 * u / (1 + 2 * u)).view(4, 1, 1, 1)
    eps = torch.randn(x0.shape, generator=generator)
    tokens = objective.components.tokenizers[0]([caption for _, caption, _ in items])
    with torch.no_grad():
        context = objective.components.text_encoders[0](tokens).last
        predicted = objective.averaged((1 - u) * x0 + u * eps, 1000 * u.flatten(), context)
    assert loss.item() == pytest.approx((predicted - (eps - x0)).square().mean().item(), rel=1e-4)


def test_the_validation_loss_is_of_other_scenes_at_the_same_noise_each_time(workshop: Any, tmp_path: Path) -> None:
    sections = read(workshop.recipe("diffusion"))
    sections["data"] = sections["data"] | {"held_out": 5}
    objective = build(sections, 3, tmp_path)
    first = objective.measures()
    list(objective.losses(7))
    assert objective.measures() == first
    (held_out,) = objective.held_out
    others = held_out.examples
    assert len(others) == 5
    assert others.seed == HELD_OUT_SEED
    alone = replace_batches(objective, Batches(held_out, 4))
    losses = [loss.item() for step in range(8) for _, loss, _ in alone.losses(step)]
    assert first["validation"] == pytest.approx(np.mean(losses))  # five scenes, in eight batches of four


def replace_batches(objective: diffusion.DiffusionObjective, batches: Batches) -> diffusion.DiffusionObjective:
    parts = (objective.components, objective.networks, batches, objective.loss, objective.seed, objective.shown)
    return diffusion.DiffusionObjective(*parts)


def test_only_the_unet_learns(objective: diffusion.DiffusionObjective) -> None:
    frozen: list[nn.Module] = [objective.components.autoencoder, *objective.components.text_encoders]
    assert not any(parameter.requires_grad for network in frozen for parameter in network.parameters())
    assert all(parameter.requires_grad for parameter in objective.groups()["unet"])


def test_the_text_tower_is_clips_own(workshop: Any) -> None:
    text = load_clip(workshop.trained("clip") / "export", device=CPU, dtype=torch.float32)
    tower, tokens = text_tower(text.clip), text.tokenizer(["a bear", ""])
    assert tower.text_model is text.clip.text_model
    assert not any(parameter.is_meta for parameter in tower.parameters())
    projected = tower(tokens).pooled @ text.clip.text_projection.weight.T
    torch.testing.assert_close(projected, text.clip.encode_text(tokens))


def test_unknown_prediction(workshop: Any, tmp_path: Path) -> None:
    sections = read(workshop.recipe("diffusion")) | {"diffusion": {"prediction": "w"}}
    with pytest.raises(ReverieError, match="unknown prediction 'w'; choose from"):
        build(sections, 3, tmp_path)


def test_stopped_and_resumed(workshop: Any, tmp_path: Path, same_run: Callable[[Path, Path], None]) -> None:
    whole = workshop.trained("diffusion")
    workshop.stopped("diffusion", tmp_path, step=5)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 4
    workshop.resumed("diffusion", tmp_path)
    same_run(whole, tmp_path)


def test_the_export_is_a_whole_model(workshop: Any) -> None:
    out = workshop.trained("diffusion")
    components = load_folder(out / "export", device=CPU, dtype=torch.float32)
    average = torch.load(out / "checkpoint.pt", weights_only=True)["average"]["weights"]
    assert all(torch.equal(value, average[name]) for name, value in components.unet.named_parameters())
    assert components.schedule_config.prediction == "v"
    frozen = load_autoencoder(workshop.trained("autoencoder") / "export", device=CPU, dtype=torch.float32)
    kept = components.autoencoder.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in frozen.state_dict().items())
    with Image.open(out / "samples/000006.png") as sheet:
        assert np.asarray(sheet).shape[2] == 3
