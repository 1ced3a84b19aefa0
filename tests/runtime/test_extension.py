"""Do the kernels in C compute what torch's operators do?"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from reverie.runtime import extension

pytestmark = pytest.mark.skipif(extension.library() is None, reason="no compiler built the extension")


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
