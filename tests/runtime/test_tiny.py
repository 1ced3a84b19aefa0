"""Does a tiny autoencoder compute the same fast, its layers without activations composed, at the edges too?"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reverie.models.autoencoder import TinyAutoencoder, TinyConfig
from reverie.runtime import extension, pack, unpack, winograd
from reverie.runtime.blocks import FastTinyDecoder, FastTinyEncoder
from reverie.runtime.changes import seamless

from .test_exact import error

TAESD = TinyConfig(encoder_width=16, decoder_width=16)
COMPOSED = TinyConfig(
    encoder_width=16, decoder_width=24, num_encoder_blocks=(0, 0, 0, 1), num_decoder_blocks=(1, 0, 0, 0)
)
BARE = TinyConfig(encoder_width=16, decoder_width=16, num_encoder_blocks=(0, 0), num_decoder_blocks=(0, 0))


def make(config: TinyConfig) -> TinyAutoencoder:
    torch.manual_seed(0)
    tiny = TinyAutoencoder(config).eval()
    with torch.no_grad():
        for parameter in tiny.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return tiny


def both(tiny: TinyAutoencoder, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    height, width = size
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(1, 4, height, width, generator=generator)
    images = torch.rand(2, 3, tiny.factor * height, tiny.factor * width, generator=generator)
    return tiny.decode(z), tiny.encode(images).mode()


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 2), (3, 3), (4, 7)])
@pytest.mark.parametrize("config", [TAESD, COMPOSED, BARE])
def test_it_computes_the_same_fast(config: TinyConfig, size: tuple[int, int]) -> None:
    wanted, fast = both(make(config), size), pack(make(config))
    assert isinstance(fast.decoder, FastTinyDecoder)
    assert isinstance(fast.encoder, FastTinyEncoder)
    for made, plain in zip(both(fast, size), wanted, strict=True):
        assert made.shape == plain.shape
        assert error(made, plain) < 2e-5  # composing rounds, too
    assert all(torch.equal(a, b) for a, b in zip(both(unpack(fast), size), wanted, strict=True))


@torch.no_grad()
@pytest.mark.skipif(extension.library() is None, reason="no extension was compiled")
def test_a_doubled_image_is_convolved_from_the_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, convolve = [], winograd.conv2d

    def see(x: Tensor, *given: object, doubled: bool = False) -> Tensor:
        sizes.append((*x.shape[2:], doubled))
        return convolve(x, *given, doubled=doubled)

    monkeypatch.setattr(winograd, "NARROW", 16)
    monkeypatch.setattr(winograd, "conv2d", see)
    z = torch.randn(1, 4, 4, 7, generator=torch.Generator().manual_seed(1))
    assert error(pack(make(TAESD)).decode(z), make(TAESD).decode(z)) < 2e-5
    assert [size for size in sizes if size[2]] == [(4, 7, True), (8, 14, True), (16, 28, True)]


@torch.no_grad()
def test_what_was_composed_follows_its_weights() -> None:
    plain, fast = make(COMPOSED), pack(make(COMPOSED))
    before, kept = both(fast, (4, 4)), (fast.encoder.composed, fast.decoder.composed)
    assert all(torch.equal(a, b) for a, b in zip(both(fast, (4, 4)), before, strict=True))
    assert kept[0] is fast.encoder.composed
    assert kept[1] is fast.decoder.composed
    for tiny in (plain, fast):
        for half in (tiny.encoder, tiny.decoder):
            half.layers[0].weight.mul_(2)
            half.layers[-1].bias.add_(1)
    for made, wanted, old in zip(both(fast, (4, 4)), both(plain, (4, 4)), before, strict=True):
        assert error(made, wanted) < 2e-6
        assert error(made, old) > 0.1


@torch.no_grad()
def test_seamless_edges_are_computed_plainly() -> None:
    plain, fast = make(COMPOSED), pack(make(COMPOSED))
    with seamless([plain.decoder, fast.decoder], "xy"):
        wanted, made = both(plain, (4, 4))[0], both(fast, (4, 4))[0]
    assert error(made, wanted) < 2e-6
    assert error(made, both(plain, (4, 4))[0]) > 1e-3
