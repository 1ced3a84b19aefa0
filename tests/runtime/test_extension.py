"""Do the kernels in C compute what torch's operators do?"""

from __future__ import annotations

from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.models.layers import GroupNormSiLU
from reverie.runtime import extension, pack
from reverie.runtime.layers import FastGroupNorm, FastGroupNormSiLU

pytestmark = pytest.mark.skipif(extension.library() is None, reason="no compiler built the extension")


def test_a_build_that_does_not_load_is_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for build in extension.BUILDS:
        (tmp_path / (build + EXTENSION_SUFFIXES[0])).write_bytes(b"not a library")
    monkeypatch.setattr(extension, "__file__", str(tmp_path / "extension.py"))
    assert extension.library.__wrapped__() is None


@pytest.mark.parametrize(
    ("images", "channels", "side", "groups"),
    [(2, 320, 32, 32), (3, 48, 16, 16), (1, 20, 5, 4), (2, 14, 3, 7), (1, 128, 130, 32)],
)
@pytest.mark.parametrize("with_silu", [False, True])
def test_group_norm_is_that_of_torch(images: int, channels: int, side: int, groups: int, with_silu: bool) -> None:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(images, channels, side, side, generator=generator, dtype=torch.float64) * 3 + 5
    weight, bias = torch.randn(2, channels, generator=generator, dtype=torch.float64)
    wanted = F.group_norm(x, groups, weight, bias, 1e-5)
    wanted = F.silu(wanted) if with_silu else wanted
    got = x.float().contiguous(memory_format=torch.channels_last)
    operands = (got, got, weight.float(), bias.float(), images, side * side, channels, groups, 1e-5, int(with_silu))
    extension.call("group_norm", *operands)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)


def fast(norm: nn.GroupNorm) -> nn.GroupNorm:
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return pack(nn.Sequential(nn.Conv2d(24, 24, 3), norm))[1]


def image(layout: torch.memory_format = torch.channels_last) -> Tensor:
    return torch.randn(2, 24, 9, 7, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=layout)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "swapped"), [(nn.GroupNorm, FastGroupNorm), (GroupNormSiLU, FastGroupNormSiLU)])
def test_norms_go_by_the_extension_where_they_can(
    kind: type[nn.GroupNorm], swapped: type[nn.GroupNorm], monkeypatch: pytest.MonkeyPatch
) -> None:
    norm, called, call = fast(kind(4, 24, eps=1e-3)), [], extension.call

    def count(name: str, *operands: Tensor | int | float | None) -> None:
        called.append(name)
        call(name, *operands)

    monkeypatch.setattr(extension, "call", count)
    assert type(norm) is swapped
    for x in (image(), image(torch.contiguous_format), image().double()):
        wanted = kind.forward(norm.to(x.dtype), x)
        torch.testing.assert_close(norm(x), wanted, rtol=1e-5, atol=1e-5)
    assert called == ["group_norm"]  # the first alone: float32, channels-last
    with torch.enable_grad():
        norm.float()(image().requires_grad_()).sum().backward()
    assert called == ["group_norm"]
    assert norm.weight.grad is not None


@pytest.mark.parametrize(("channels", "side", "groups"), [(320, 16, 32), (14, 7, 7), (20, 5, 4)])
@pytest.mark.parametrize("with_silu", [False, True])
def test_group_norm_in_bfloat16_errs_no_more_than_torch(channels: int, side: int, groups: int, with_silu: bool) -> None:
    generator = torch.Generator().manual_seed(7)
    x = (torch.randn(2, channels, side, side, generator=generator) * 3 + 5).bfloat16()
    weight, bias = torch.randn(2, channels, generator=generator).bfloat16()
    norm = GroupNormSiLU(groups, channels) if with_silu else torch.nn.GroupNorm(groups, channels)
    norm = norm.bfloat16().requires_grad_(False)
    norm.weight.copy_(weight), norm.bias.copy_(bias)
    wanted = F.group_norm(x.double(), groups, weight.double(), bias.double(), norm.eps)
    wanted = F.silu(wanted) if with_silu else wanted
    error = {}
    for kind in (type(norm), FastGroupNormSiLU if with_silu else FastGroupNorm):
        norm.__class__ = kind
        with torch.inference_mode():
            got = norm(x.contiguous(memory_format=torch.channels_last))
        error[kind] = (got.double() - wanted).norm() / wanted.norm()
    plain, fast = error.values()
    assert 0 < fast <= plain
