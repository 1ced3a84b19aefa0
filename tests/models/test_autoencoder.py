"""Does the autoencoder agree with diffusers' AutoencoderKL, and with the definition of its posterior?"""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from reverie.errors import ReverieError
from reverie.models.autoencoder import AUTOENCODERS, Autoencoder, AutoencoderConfig, DiagonalGaussian

TINY = {
    "f8": AutoencoderConfig(block_out_channels=(8, 16, 24, 24), norm_num_groups=4),
    "f16": AutoencoderConfig(block_out_channels=(4, 8, 8, 8, 12), norm_num_groups=2, latent_channels=8),
    "f2": AutoencoderConfig(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=8, in_channels=1),
    "bare": AutoencoderConfig(
        block_out_channels=(8, 8, 16),
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    ),
}


def oracle_of(config: AutoencoderConfig) -> AutoencoderKL:
    levels, fields = len(config.block_out_channels), asdict(config)
    del fields["patch_size"]
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels, **fields
    )


def randomize(model: nn.Module) -> None:
    """Redraw every parameter, norms and biases too, so that none is invisible at its initial 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        noise = torch.randn(parameter.shape, generator=generator) / fan_in**0.5
        parameter.data = noise + 1 if "norm" in name and name.endswith("weight") else noise


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def pair(config: AutoencoderConfig) -> tuple[Autoencoder, AutoencoderKL]:
    oracle = oracle_of(config).eval()
    randomize(oracle)
    with torch.device("meta"):
        ours = Autoencoder(config)
    ours.load_state_dict(oracle.state_dict(), assign=True)
    return ours, oracle


@torch.no_grad()
def check_agrees(config: AutoencoderConfig, height: int, width: int) -> None:
    ours, oracle = pair(config)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, config.in_channels, height, width, generator=generator)
    theirs = oracle.encode(images).latent_dist
    posterior = ours.encode(images)
    assert relative_error(posterior.mean, theirs.mean) <= 1e-5
    assert relative_error(posterior.logvar, theirs.logvar) <= 1e-5
    assert relative_error(posterior.kl(), theirs.kl()) <= 1e-5
    z = torch.randn(posterior.mean.shape, generator=generator)
    assert relative_error(ours.decode(z), oracle.decode(z).sample) <= 1e-5
    assert ours.decode(z).shape == (2, config.out_channels, height, width)


@pytest.mark.parametrize("name", TINY)
def test_agrees_with_diffusers(name: str) -> None:
    check_agrees(TINY[name], 32, 48)


@pytest.mark.slow
def test_agrees_with_diffusers_at_full_size() -> None:
    check_agrees(AUTOENCODERS["sd"], 64, 96)


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_full_size_keys_and_shapes_are_those_of_diffusers(name: str) -> None:
    with torch.device("meta"):
        ours, oracle = Autoencoder(AUTOENCODERS[name]), oracle_of(AUTOENCODERS[name])
    shapes = {key: value.shape for key, value in oracle.state_dict().items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == shapes


def test_posterior() -> None:
    mean, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    standard = DiagonalGaussian(torch.zeros_like(mean), torch.zeros_like(mean))
    assert torch.equal(standard.kl(), torch.zeros(2))
    assert torch.equal(standard.sample(noise), noise)
    narrow = DiagonalGaussian(mean, torch.full_like(mean, -30.0))
    torch.testing.assert_close(narrow.sample(noise), narrow.mode(), atol=1e-5, rtol=0)


def test_log_variance_is_clamped() -> None:
    model = Autoencoder(TINY["f2"])
    nn.init.constant_(model.quant_conv.bias, 1e3)
    assert model.encode(torch.zeros(1, 1, 4, 4)).logvar.unique().tolist() == [20]


@torch.no_grad()
def test_the_pixels_of_a_patch_are_channels_of_one_place() -> None:
    ours, oracle = pair(AutoencoderConfig(12, 12, 4, (8, 16), norm_num_groups=4, patch_size=2))
    images = torch.randn(1, 3, 16, 24)
    patches = torch.stack([images[:, :, y::2, x::2] for y in (0, 1) for x in (0, 1)], 2).flatten(1, 2)
    assert relative_error(ours.encode(images).mean, oracle.encode(patches).latent_dist.mean) <= 1e-5
    decoded = ours.decode(torch.ones(1, 4, 4, 6))
    assert decoded.shape == images.shape
    theirs = oracle.decode(torch.ones(1, 4, 4, 6)).sample
    assert relative_error(decoded[:, 1, 1::2, 0::2], theirs[:, 4 + 2]) <= 1e-5
    with pytest.raises(ReverieError, match="give 3 channels, width and height multiples of 4"):
        ours.encode(torch.zeros(1, 3, 16, 18))


def test_factor_follows_the_levels_and_patches() -> None:
    assert [Autoencoder(TINY[name]).factor for name in ("f2", "f8", "f16")] == [2, 8, 16]
    assert Autoencoder(replace(TINY["f2"], in_channels=48, out_channels=48, patch_size=4)).factor == 8


def test_gradients_reach_every_parameter() -> None:
    model = Autoencoder(TINY["f8"])
    posterior = model.encode(torch.randn(1, 3, 16, 16))
    images = model.decode(posterior.sample(torch.randn_like(posterior.mean)))
    (images.square().mean() + posterior.kl().mean()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.decoder_last_weight().grad is not None


def test_wrong_sizes_are_refused_in_one_line() -> None:
    model = Autoencoder(TINY["f8"])
    with pytest.raises(ReverieError, match=r"3 channels and 20x16 pixels; give 3 channels, .* multiples of 8$"):
        model.encode(torch.zeros(1, 3, 16, 20))
    with pytest.raises(ReverieError, match="cannot decode 3 latent channels; give 4"):
        model.decode(torch.zeros(1, 3, 4, 4))
