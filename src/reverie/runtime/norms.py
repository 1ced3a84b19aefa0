"""GroupNorm by the compiled extension, with the SiLU that follows it taken along (`c/norms.c`).

Where it cannot compute (gradients, another device, dtype or layout, no extension), the plain class does.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reverie.models.layers import GroupNormSiLU
from reverie.runtime import extension


class FastGroupNorm(nn.GroupNorm):
    """Normalise the groups of a channels-last image in two passes over it."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return normalise(self, x, silu=False) if _computes(self, x) else super().forward(x)


class FastGroupNormSiLU(GroupNormSiLU):
    """Normalise the groups of a channels-last image, and take the SiLU, in two passes over it."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return normalise(self, x, silu=True) if _computes(self, x) else super().forward(x)


def normalise(norm: nn.GroupNorm, x: Float[Tensor, "b c h w"], *, silu: bool) -> Float[Tensor, "b c h w"]:
    """Return the GroupNorm of a channels-last image in float32, or the SiLU of it. Raises without an extension."""
    images, channels, height, width = x.shape
    y = torch.empty_like(x)
    shape = (images, height * width, channels, norm.num_groups)
    extension.call("group_norm", x, y, norm.weight, norm.bias, *shape, norm.eps, int(silu))
    return y


def _computes(norm: nn.GroupNorm, x: Tensor) -> bool:
    """Tell whether the extension may take this input."""
    return (
        not torch.is_grad_enabled()
        and extension.library() is not None
        and x.dtype == norm.weight.dtype == torch.float32
        and x.is_cpu
        and norm.weight.is_cpu
        and x.dim() == 4
        and x.is_contiguous(memory_format=torch.channels_last)
    )
