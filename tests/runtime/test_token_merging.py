"""Are the right tokens merged, and does each get its answer back?"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from reverie.models.unet import UNet, UNetConfig
from reverie.runtime import pack, transform
from reverie.runtime.changes import Merged, merging

UNET = UNetConfig(
    block_out_channels=(32, 64),
    layers_per_block=1,
    transformer_depth=(2, 0),
    num_heads=(2, 4),
    cross_attention_dim=32,
    norm_num_groups=8,
)


def squares(height: int, width: int) -> Tensor:
    """Draw tokens of an image whose squares of 2x2 are of one colour."""
    small = torch.randn(2, 5, (height + 1) // 2, (width + 1) // 2, generator=torch.Generator().manual_seed(0))
    image = small.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, :height, :width]
    return image.flatten(2).transpose(1, 2)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 7), (1, 8), (2, 2)])
def test_equal_tokens_come_back_as_they_were(height: int, width: int) -> None:
    x = squares(height, width)
    merged = Merged.of(x, height, width, 0.75)
    fewer = merged.merge(x)
    assert fewer.shape[1] == len(merged.kept) + max(0, len(merged.others) - int(0.75 * height * width))
    torch.testing.assert_close(merged.undo(fewer), x)


def test_the_most_alike_are_merged_into_their_mean_and_the_others_left_alone() -> None:
    x = torch.eye(8)[None] + 0.0
    x[0, 3] = 2 * x[0, 2] + 0.01  # a 2 x 4 image: tokens 0 and 2 are kept
    merged = Merged.of(x, 2, 4, 1 / 8)
    assert merged.kept.tolist() == [0, 2]
    fewer = merged.merge(x)[0]
    assert fewer.shape == (7, 8)
    assert any(torch.equal(token, x[0, 0]) for token in fewer)
    torch.testing.assert_close(fewer[-1], (x[0, 2] + x[0, 3]) / 2)
    back = merged.undo(merged.merge(x))[0]
    for token in (0, 1, 4, 5, 6, 7):
        assert torch.equal(back[token], x[0, token])
    assert torch.equal(back[2], back[3])


@torch.no_grad()
@pytest.mark.parametrize("prepare", [lambda unet: unet, pack], ids=["plain", "packed"])
def test_attention_sees_fewer_tokens_where_the_image_is_largest(
    prepare: Callable[[UNet], UNet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transform, "WIDE", 16)
    torch.manual_seed(0)
    unet = prepare(UNet(UNET).eval())
    x, t, context = torch.randn(2, 4, 6, 10), torch.tensor([500.0, 500.0]), torch.randn(2, 7, 32)
    seen: list[int] = []
    exact = unet(x, t, context)
    watch = unet.down_blocks[0].attentions[0].transformer_blocks[1]
    with merging(unet, 0.5):
        handle = watch.attn1.to_q.register_forward_hook(lambda _, given, y: seen.append(given[0].shape[1]))
        near = unet(x, t, context)
        handle.remove()
    assert seen == [30]
    assert 1e-4 < ((near - exact).norm() / exact.norm()).item() < 0.5
    assert torch.equal(unet(x, t, context), exact)
    with merging(unet, 0.0):
        assert torch.equal(unet(x, t, context), exact)


def test_afterwards_nothing_is_left() -> None:
    unet = UNet(UNET)
    with pytest.raises(KeyError), merging(unet, 0.5):
        raise KeyError
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in unet.modules())
