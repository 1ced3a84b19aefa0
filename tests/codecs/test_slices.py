"""Do the slices of a large picture give what the whole network gives?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from reverie.codecs import image, slices
from reverie.codecs.image import ImageCodec
from reverie.models.autoencoder import Autoencoder, AutoencoderConfig, ImageAutoencoder, TinyAutoencoder, TinyConfig
from reverie.runtime import kernels, pack, winograd
from reverie.runtime import layers as fast
from reverie.runtime.changes import seamless
from reverie.runtime.layers import PackedConv2d

CONFIG = AutoencoderConfig(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4)


TINY = TinyConfig(encoder_width=8, decoder_width=8, num_encoder_blocks=(1, 2), num_decoder_blocks=(1, 1))


PLAIN = replace(CONFIG, mid_block_add_attention=False, use_quant_conv=False)
PATCHED = replace(CONFIG, in_channels=12, out_channels=12, block_out_channels=(8,), patch_size=2)


@pytest.fixture(params=[CONFIG, PLAIN, PATCHED, TINY])
def autoencoder(request: pytest.FixtureRequest) -> ImageAutoencoder:
    torch.manual_seed(0)
    kind = TinyAutoencoder if isinstance(request.param, TinyConfig) else Autoencoder
    model = kind(request.param).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms that are not the identity, biases that are not small
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(autouse=True)
def short_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "STRIP", 5)
    monkeypatch.setattr(slices, "LARGE", 0)


@pytest.mark.parametrize("size", [(2, 2), (6, 10), (13, 7)])
def test_slices_give_what_the_whole_gives(autoencoder: ImageAutoencoder, size: tuple[int, int]) -> None:
    z, images = torch.randn(1, 4, *size), torch.rand(1, 3, 2 * size[0], 2 * size[1]) * 2 - 1
    with torch.no_grad():
        for sliced, whole in (
            (slices.decode_in_strips(autoencoder, z), autoencoder.decode(z)),
            (slices.encode_in_strips(autoencoder, images).mean, autoencoder.encode(images).mean),
            (slices.encode_in_strips(autoencoder, images).logvar, autoencoder.encode(images).logvar),
        ):
            assert sliced.shape == whole.shape
            assert torch.allclose(sliced, whole, rtol=0, atol=1e-5 * max(1, whole.abs().nan_to_num(posinf=0).max()))


@torch.no_grad()
@pytest.mark.parametrize("axes", ["x", "y", "xy"])
@pytest.mark.parametrize("size", [(2, 2), (6, 10), (13, 7)])
def test_seamless_slices_see_the_other_side(autoencoder: ImageAutoencoder, size: tuple[int, int], axes: str) -> None:
    z = torch.randn(1, 4, *size)
    with seamless([autoencoder.decoder], axes):
        sliced, whole = slices.decode_in_strips(autoencoder, z), autoencoder.decode(z)
    assert torch.allclose(sliced, whole, rtol=0, atol=1e-5 * max(1, whole.abs().max()))


@torch.no_grad()
def test_slices_are_convolved_by_what_convolves_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    convolve = winograd.conv2d
    monkeypatch.setattr(winograd, "conv2d", lambda x, *given: rows.append(x.shape[2]) or convolve(x, *given))
    torch.manual_seed(0)
    model = Autoencoder(replace(CONFIG, block_out_channels=(128,), norm_num_groups=8)).eval()
    z = torch.randn(1, 4, 12, 160)
    whole = model.decode(z)
    sliced = slices.decode_in_strips(pack(model), z)
    assert (sliced - whole).norm() < 1e-5 * whole.norm()
    assert set(rows) == {7}  # of 12, six at a time, with one that those see


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "apart"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_slices_pack_each_layer_once(dtype: torch.dtype, apart: float, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernels.native(dtype):
        pytest.skip("no bfloat16 on this processor")
    torch.manual_seed(0)
    model = Autoencoder(replace(CONFIG, block_out_channels=(16, 32))).eval()
    z = torch.randn(1, 4, 13, 40)
    whole = model.decode(z)
    packed: list[torch.Tensor] = []
    pack_conv2d = kernels.pack_conv2d
    monkeypatch.setattr(winograd, "wins", lambda *shape: False)  # which packs nothing
    monkeypatch.setattr(fast, "SMALL", 0)  # nor do small kernels
    monkeypatch.setattr(
        kernels, "pack_conv2d", lambda weight, *given: packed.append(weight) or pack_conv2d(weight, *given)
    )
    sliced = slices.decode_in_strips(pack(model.to(dtype)), z.to(dtype)).float()
    assert (sliced - whole).norm() < apart * whole.norm()
    layers = [layer for layer in model.decoder.modules() if isinstance(layer, PackedConv2d)]
    assert len(packed) == len(layers) + 3  # of the layer that doubles, four corners


def test_norms_of_slices_keep_their_digits_far_from_zero() -> None:
    norm, x = nn.GroupNorm(4, 8), torch.randn(1, 8, 203, 300, generator=torch.Generator().manual_seed(0)) + 30
    variance, mean = torch.var_mean(x.double().view(4, -1), dim=1, correction=0)
    found = slices._statistics(norm, x.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(found[0].double(), variance, rtol=1e-4)
    assert torch.allclose(found[1].double(), mean, rtol=1e-6)


@pytest.mark.parametrize("size", [(52, 30), (13, 60)])
def test_tiles_whose_norms_know_the_whole_give_what_it_gives(
    autoencoder: ImageAutoencoder, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "_shrink", lambda x, side, mode: x)
    monkeypatch.setattr(slices, "CELLS", (40, 10, 4))
    z, images = torch.randn(1, 4, *size), torch.rand(1, 3, 2 * size[0], 2 * size[1]) * 2 - 1
    with torch.no_grad():
        for tiled, whole in (
            (slices.decode_in_tiles(autoencoder, z), autoencoder.decode(z)),
            (slices.encode_in_tiles(autoencoder, images).mean, autoencoder.encode(images).mean),
        ):
            assert tiled.shape == whole.shape
            assert torch.allclose(tiled, whole, rtol=0, atol=1e-5 * max(1, whole.abs().max()))
        pack(autoencoder)
        packed = slices.decode_in_tiles(autoencoder, z)
        assert torch.allclose(packed, autoencoder.decode(z), rtol=0, atol=1e-4 * max(1, packed.abs().max()))


def test_norms_that_know_a_smaller_image_give_nearly_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Autoencoder(CONFIG).eval()
    monkeypatch.setattr(slices, "CELLS", (40, 10, 4))
    z = torch.randn(1, 4, 60, 52)
    with torch.no_grad():
        tiled, whole = slices.decode_in_tiles(model, z), model.decode(z)
    assert (tiled - whole).abs().mean() < 0.1 * whole.std()
    steps = (tiled - whole).diff(dim=3).abs().mean((0, 1, 2))
    assert steps.max() < 3 * steps.mean()  # nowhere a seam


def test_what_is_given_stays_as_it_is(autoencoder: ImageAutoencoder) -> None:
    images = torch.rand(1, 3, 8, 8)
    before = images.clone()
    with torch.no_grad():
        slices.encode_in_strips(autoencoder, images)
    assert torch.equal(images, before)


def test_the_codec_slices_large_pictures_alone(autoencoder: ImageAutoencoder, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("decode_in_strips", "encode_in_strips"):

        def counted(model: ImageAutoencoder, x: torch.Tensor, name: str = name, run: Callable = getattr(image, name)):
            calls.append(name)
            return run(model, x)

        monkeypatch.setattr(image, name, counted)
    codec = ImageCodec(autoencoder, whole=16 * 16)
    small = codec.encode_tensor(torch.zeros(1, 3, 16, 16))
    codec.pictures(small)
    assert calls == []
    large = codec.encode_tensor(torch.zeros(1, 3, 16, 18))
    codec.pictures(large)
    assert calls == ["encode_in_strips", "decode_in_strips"]


def test_float16_that_overflows_is_done_again_in_float32(autoencoder: ImageAutoencoder) -> None:
    with torch.no_grad():
        first = next(module for module in autoencoder.decoder.modules() if isinstance(module, nn.Conv2d))
        first.weight.mul_(2e4)
    z = torch.randn(1, 4, 4, 4)
    expected = ImageCodec(autoencoder).pictures(z)[0]
    half = ImageCodec(autoencoder.half())
    assert not autoencoder.decode((z / autoencoder.config.scaling_factor).half()).isfinite().all()
    assert half.decode(z).isfinite().all()
    assert autoencoder.dtype == torch.float16
    difference = torch.tensor(list(half.pictures(z)[0].tobytes())) - torch.tensor(list(expected.tobytes()))
    assert difference.abs().max() <= 4
