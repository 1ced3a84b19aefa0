"""Are the terms of the autoencoder's loss what the papers say, and does a killed run resume to the bit?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from reverie.checkpoints.load import load_autoencoder
from reverie.corpora.concepts import concepts
from reverie.models.autoencoder import Autoencoder, AutoencoderConfig
from reverie.models.discriminator import PatchGAN
from reverie.train import run
from reverie.train.adversarial import adaptive_weight, hinge
from reverie.train.autoencoder import (
    AutoencoderObjective,
    DataSettings,
    LossSettings,
    as_images,
    initialise_,
    measured_scale,
)
from reverie.train.examples import HELD_OUT_SEED, Scenes
from reverie.train.loop import step_generator

TINY = AutoencoderConfig(latent_channels=4, block_out_channels=(8, 8, 8), layers_per_block=1, norm_num_groups=4)
DATA = DataSettings(subset="instruments", crop=16, batch=2)


def noise_picture(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (3, 16, 16), np.uint8)


@pytest.fixture
def make(corpus: None) -> Callable[..., AutoencoderObjective]:
    """Make an objective over pictures of noise; the corpus is only drawn for contact sheets."""

    def make(**loss: Any) -> AutoencoderObjective:
        torch.manual_seed(0)
        held_out = Scenes(concepts("instruments"), HELD_OUT_SEED, 20)
        return AutoencoderObjective(Autoencoder(TINY), noise_picture, held_out, DATA, LossSettings(**loss), seed=3)

    return make


def test_adaptive_weight_is_the_ratio_of_gradient_norms() -> None:
    """For out = h W^T the gradients are written down: of |out - y| sign^T h, of -(out v) summed -v^T h."""
    rng = np.random.default_rng(0)
    h, w, y, v = (rng.normal(size=shape) for shape in ((5, 4), (3, 4), (5, 3), (3,)))
    weight = torch.tensor(w, requires_grad=True)
    out = torch.tensor(h) @ weight.T
    nll = (out - torch.tensor(y)).abs().sum()
    adversarial = -(out @ torch.tensor(v)).sum()
    of_nll = np.sign(h @ w.T - y).T @ h
    of_adversarial = -np.outer(v, h.sum(0))
    expected = np.linalg.norm(of_nll) / (np.linalg.norm(of_adversarial) + 1e-4)
    found = adaptive_weight(nll, adversarial, weight)
    assert found.item() == pytest.approx(expected)
    assert not found.requires_grad
    assert adaptive_weight(nll, 0 * adversarial, weight).item() == 1e4  # the largest it may become
    assert adaptive_weight(0 * nll, adversarial, weight).item() == 0


def test_hinge() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert hinge(real, fake).item() == pytest.approx(0.5 * ((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3))
    assert hinge(torch.ones(4), -torch.ones(4)).item() == 0


def test_pixels_become_images() -> None:
    images = as_images(torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1))
    torch.testing.assert_close(images.flatten(), torch.tensor([-1.0, -0.6, 1.0]))


def test_the_start_lets_images_through() -> None:
    torch.manual_seed(0)
    autoencoder = Autoencoder(TINY)
    initialise_(autoencoder)
    posterior = autoencoder.encode(torch.rand(2, 3, 16, 16) * 2 - 1)
    assert posterior.logvar.mean().item() == pytest.approx(-6, abs=0.5)
    block = autoencoder.decoder.mid_block.resnets[0]
    x = torch.randn(1, 8, 4, 4)
    assert torch.equal(block(x), x)


def test_scale_gives_latents_unit_variance() -> None:
    torch.manual_seed(0)
    autoencoder, images = Autoencoder(TINY), torch.rand(4, 3, 16, 16) * 2 - 1
    latents = autoencoder.encode(images).mode() * measured_scale(autoencoder, images)
    assert latents.std().item() == pytest.approx(1)


def test_loss_is_l1_l2_and_kl(make: Callable[..., AutoencoderObjective]) -> None:
    objective = make(kl=0.01, l2=2.0)
    ((name, loss, metrics),) = objective.losses(5)
    images = as_images(torch.from_numpy(np.stack([noise_picture(10), noise_picture(11)])))
    posterior = objective.averaged.encode(images)
    noise = torch.randn(posterior.mean.shape, generator=step_generator(3, 5))
    off = objective.averaged.decode(posterior.mean + (posterior.logvar / 2).exp() * noise) - images
    variance = posterior.logvar.exp()
    kl = 0.5 * (posterior.mean**2 + variance - 1 - posterior.logvar).sum() / 2
    expected = off.abs().mean() + 2 * off.square().mean() + 0.01 * kl / images[0].numel()
    assert name == "autoencoder"
    torch.testing.assert_close(loss, expected)
    assert metrics["l1"] == pytest.approx(off.abs().mean().item())
    assert metrics["kl"] == pytest.approx(kl.item() / posterior.mean[0].numel())


def test_the_discriminator_waits_for_its_time(make: Callable[..., AutoencoderObjective]) -> None:
    objective = make(adversarial=0.5, adversarial_start=2, adversarial_width=4, adversarial_layers=1)
    assert objective.groups().keys() == {"autoencoder", "discriminator"}
    assert [name for name, _, _ in objective.losses(1)] == ["autoencoder"]
    told = {name: metrics for name, _, metrics in objective.losses(2)}
    assert told.keys() == {"autoencoder", "discriminator"}
    assert told["autoencoder"].keys() >= {"generator", "weight"}


def test_adversarial_term_adds_its_weighted_share(make: Callable[..., AutoencoderObjective]) -> None:
    """At the decoder's last weight the two terms' gradients have norms in the ratio that the recipe asks for."""
    share = 0.5
    objective = make(kl=0.0, adversarial=share, adversarial_width=4, adversarial_layers=1)
    plain = make(kl=0.0)
    last, other = objective.averaged.decoder_last_weight(), plain.averaged.decoder_last_weight()
    _, both, _ = next(objective.losses(0))
    _, alone, _ = next(plain.losses(0))
    (of_both,), (of_alone,) = torch.autograd.grad(both, last), torch.autograd.grad(alone, other)
    assert (of_both - of_alone).norm().item() == pytest.approx(share * of_alone.norm().item(), rel=0.01)


def test_the_discriminator_learns_without_moving_the_autoencoder(make: Callable[..., AutoencoderObjective]) -> None:
    objective = make(adversarial=0.5, adversarial_width=4, adversarial_layers=1)
    _, loss, _ = list(objective.losses(0))[1]
    loss.backward()
    assert all(parameter.grad is None for parameter in objective.averaged.parameters())
    discriminator = objective.networks["discriminator"]
    assert isinstance(discriminator, PatchGAN)
    assert all(parameter.grad is not None for parameter in discriminator.parameters())


def test_a_decoder_alone_leaves_the_latents(make: Callable[..., AutoencoderObjective]) -> None:
    objective = make(decoder_only=True)
    trained = {id(parameter) for parameter in objective.groups()["autoencoder"]}
    for name, parameter in objective.averaged.named_parameters():
        assert (id(parameter) in trained) == name.startswith(("decoder.", "post_quant_conv."))
    _, loss, _ = next(objective.losses(0))
    loss.backward()
    assert all(parameter.grad is None for parameter in objective.averaged.encoder.parameters())


def test_export_sets_the_scale_but_a_decoder_keeps_it(
    make: Callable[..., AutoencoderObjective], tmp_path: Path
) -> None:
    make().export(tmp_path / "new")
    new = load_autoencoder(tmp_path / "new", device=torch.device("cpu"), dtype=torch.float32)
    assert new.config.scaling_factor != TINY.scaling_factor
    assert replace(new.config, scaling_factor=TINY.scaling_factor) == TINY
    make(decoder_only=True).export(tmp_path / "old")
    old = load_autoencoder(tmp_path / "old", device=torch.device("cpu"), dtype=torch.float32)
    assert old.config == TINY


def test_contact_sheet(make: Callable[..., AutoencoderObjective]) -> None:
    assert make().samples().size == (8 * 128, 4 * 128)


def test_killed_and_resumed(workshop: Any, tmp_path: Path, same_run: Callable[[Path, Path], None]) -> None:
    """With every term and both groups: perceptual, adversarial, KL, the average, and batch normalisation's buffers."""
    whole = workshop.trained("autoencoder")
    workshop.killed("autoencoder", tmp_path, step=5)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 4
    workshop.resumed("autoencoder", tmp_path)
    same_run(whole, tmp_path)
    with Image.open(tmp_path / "samples/000006.png") as ours, Image.open(whole / "samples/000006.png") as theirs:
        assert ours.tobytes() == theirs.tobytes()


def test_a_second_stage_starts_from_the_first(workshop: Any, tmp_path: Path) -> None:
    first = workshop.trained("autoencoder") / "export"
    recipe = tmp_path / "decoder.toml"
    loss = f'[loss]\ninitial = "{first}"\ndecoder_only = true\n'
    data = '[data]\nsubset = "instruments"\ncrop = 32\nbatch = 2\n'
    recipe.write_text(f'objective = "autoencoder"\n[run]\nsteps = 1\nlr = 1e-2\nthreads = 1\n{data}{loss}')
    list(run(recipe, tmp_path / "out"))
    weights = [load_file(folder / "diffusion_pytorch_model.safetensors") for folder in (first, tmp_path / "out/export")]
    moved = {name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])}
    assert moved
    assert all(name.startswith(("decoder.", "post_quant_conv.")) for name in moved)
