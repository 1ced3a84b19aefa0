"""Does attention by the kernel in C gather what softmax(q k^T / sqrt(d)) v is, wherever it is asked?"""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from reverie.models import layers
from reverie.models.unet import UNet, UNetConfig
from reverie.runtime import extension, pack
from reverie.runtime import layers as fast
from reverie.runtime.changes import perturbing
from reverie.runtime.kernels import native

built = pytest.mark.skipif(extension.library() is None, reason="no compiler built the extension")
# batch, queries, keys (None: self-attention, all of one product), heads, width of a head
SHAPES = [
    (2, 64, None, 8, 40),
    (1, 333, None, 2, 24),
    (1, 256, None, 1, 512),
    (2, 100, None, 2, 160),
    (3, 1, 1, 1, 2),
    (2, 16, 24, 6, 32),
    (1, 130, 77, 4, 80),
    (2, 7, 154, 3, 64),
    (1, 50, 97, 2, 10),
    (1, 700, 193, 1, 36),
]


def random(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return (2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def inputs(shape: tuple[int, int, int | None, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    batch, queries, keys, heads, width = shape
    if keys is None:
        q, k, v = random(batch, queries, 3 * heads * width, seed=1, dtype=dtype).split(heads * width, dim=-1)
    else:
        q = random(batch, queries, heads * width, seed=1, dtype=dtype)
        k, v = random(batch, keys, 2 * heads * width, seed=2, dtype=dtype).split(heads * width, dim=-1)
    return q, k, v


def exactly(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (x.double().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def error(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted).norm() / wanted.norm())


@built
@torch.inference_mode()
@pytest.mark.parametrize("shape", SHAPES)
def test_float32_is_exact(shape: tuple[int, int, int | None, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = inputs(shape, torch.float32)
    monkeypatch.setattr(fast, "attend_plainly", None)  # nothing else computes
    monkeypatch.setattr(fast, "WIDEST", 512)
    assert error(fast.attend(q, k, v, shape[3]), exactly(q, k, v, shape[3])) < 2e-6


@built
@pytest.mark.skipif(not native(torch.bfloat16), reason="this processor does not compute in bfloat16")
@torch.inference_mode()
@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_errs_no_more_than_torch(shape: tuple[int, int, int | None, int, int]) -> None:
    q, k, v = inputs(shape, torch.bfloat16)
    wanted = exactly(q, k, v, shape[3])
    assert error(fast.attend(q, k, v, shape[3]), wanted) <= 1.1 * error(layers.attend(q, k, v, shape[3]), wanted)


@built
@torch.inference_mode()
def test_scores_far_apart_neither_overflow_nor_vanish() -> None:
    q, k, v = inputs((1, 40, 200, 2, 16), torch.float32)
    wanted = exactly(q * 100, k, v, 2)
    assert error(fast.attend(q * 100, k, v, 2), wanted) < 1e-4  # scores of thousands, in float32
    rising = torch.arange(200.0)[None, :, None] * k[:, :1]  # the greatest comes last
    assert error(fast.attend(q, rising, v, 2), exactly(q, rising, v, 2)) < 1e-4


@built
@torch.inference_mode()
def test_a_token_gathers_the_same_whatever_comes_with_it() -> None:
    q, k, v = inputs((3, 300, None, 2, 40), torch.float32)
    whole = fast.attend(q, k, v, 2)
    assert torch.equal(fast.attend(q[1:2], k[1:2], v[1:2], 2), whole[1:2])
    assert torch.equal(fast.attend(q[:, 100:101], k, v, 2), whole[:, 100:101])
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            assert torch.equal(fast.attend(q, k, v, 2), whole)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("gradients", "dtype"), list(product([False, True], [torch.float32, torch.float64])))
def test_what_the_kernel_does_not_take_is_torchs(gradients: bool, dtype: torch.dtype) -> None:
    q, k, v = inputs((1, 9, 5, 2, 8), dtype)
    with torch.set_grad_enabled(gradients):
        q = q.requires_grad_() if gradients else q
        gathered = fast.attend(q, k, v, 2)
    assert gathered.requires_grad == gradients
    assert error(gathered.detach(), exactly(q, k, v, 2).detach()) < 1e-6


@torch.inference_mode()
def test_without_the_extension_attention_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = inputs((2, 64, None, 4, 16), torch.float32)
    monkeypatch.setattr(extension, "library", lambda: None)
    assert torch.equal(fast.attend(q, k, v, 4), layers.attend(q, k, v, 4))


@built
@torch.inference_mode()
@pytest.mark.parametrize("keys", [torch.ones(1, 5, 32), torch.ones(3, 0, 32)])
def test_keys_for_all_images_and_none_at_all_are_torchs(keys: Tensor) -> None:
    q = random(3, 9, 32, seed=1, dtype=torch.float32)
    torch.testing.assert_close(fast.attend(q, keys, keys, 2), layers.attend(q, keys, keys, 2), equal_nan=True)


@torch.inference_mode()
@pytest.mark.parametrize("build", extension.BUILDS)
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", range(3))
def test_what_is_no_number_is_not_lost(build: str, number: float, place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "BUILDS", {build: extension.BUILDS[build]})
    if (library := extension.library.__wrapped__()) is None:
        pytest.skip("it was not built, or is not for this processor")
    monkeypatch.setattr(extension, "library", lambda: library)
    given = [random(1, 20, 32, seed=seed, dtype=torch.float32) for seed in range(3)]
    given[place][0, 5, 7] = number
    assert torch.equal(fast.attend(*given, 2).isfinite(), layers.attend(*given, 2).isfinite())


@built
@torch.inference_mode()
def test_keys_that_do_not_lie_in_a_row_are_torchs() -> None:
    q, k, v = inputs((1, 12, 12, 1, 16), torch.float32)
    turned = k.mT.contiguous().mT
    torch.testing.assert_close(fast.attend(q, turned, v, 1), fast.attend(q, k, v, 1))


@built
@torch.inference_mode()
def test_a_network_asks_the_kernel_unless_its_attention_was_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    config = UNetConfig(
        block_out_channels=(32,), layers_per_block=1, transformer_depth=(1,), num_heads=(2,), cross_attention_dim=48
    )
    given = (random(2, 4, 8, 12, seed=3, dtype=torch.float32), torch.tensor([900, 100]))
    context = random(2, 7, 48, seed=4, dtype=torch.float32)
    unet, asked = pack(UNet(config)), []
    call = extension.call
    monkeypatch.setattr(extension, "call", lambda name, *operands: (asked.append(name), call(name, *operands)))
    whole = unet(*given, context)
    count = asked.count("attention_float32")
    assert count == 2 * sum(type(module).__name__ == "FastSpatialTransformer" for module in unet.modules())
    asked.clear()
    with perturbing(unet):
        unet(*given, context)
    assert asked.count("attention_float32") == count - 1
    monkeypatch.setattr(fast, "_attends", lambda *operands: False)
    torch.testing.assert_close(unet(*given, context), whole, rtol=1e-5, atol=1e-5)
