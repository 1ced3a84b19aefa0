"""Do the edges fit: is the picture of rolled latents the rolled picture?"""

from __future__ import annotations

import pytest
import torch

from reverie.pipeline import Pipeline
from reverie.runtime.changes import seamless


@pytest.mark.parametrize(("axes", "dims"), [("x", (3,)), ("y", (2,)), ("xy", (2, 3))])
def test_rolling_the_input_rolls_the_output(tiny: Pipeline, axes: str, dims: tuple[int, ...]) -> None:
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([500.0]), torch.randn(1, 12, 16)
    shifts = (2,) * len(dims)  # two latents: one cell of the lowest of the two levels
    other = 2 if axes == "x" else 3
    with torch.no_grad():
        before = tiny.unet(x, t, context)
        with seamless([tiny.unet, tiny.autoencoder.decoder], axes):
            rolled = tiny.unet(x.roll(shifts, dims), t, context)
            assert torch.allclose(rolled, tiny.unet(x, t, context).roll(shifts, dims), atol=1e-5)
            images = tiny.autoencoder.decode(x.roll(shifts, dims))
            there = tiny.autoencoder.decode(x).roll([8 * shift for shift in shifts], dims)
            assert torch.allclose(images, there, atol=1e-5)
            if axes != "xy":
                across = tiny.unet(x.roll(2, other), t, context)
                assert not torch.allclose(across, tiny.unet(x, t, context).roll(2, other), atol=1e-3)
        assert torch.equal(tiny.unet(x, t, context), before)
    assert not torch.allclose(rolled, before.roll(shifts, dims), atol=1e-3)


def test_the_networks_are_restored_after_an_error(tiny: Pipeline) -> None:
    before = [conv.padding for conv in tiny.unet.modules() if isinstance(conv, torch.nn.Conv2d)]
    with pytest.raises(KeyError), seamless([tiny.unet], "xy"):
        raise KeyError
    after = [conv for conv in tiny.unet.modules() if isinstance(conv, torch.nn.Conv2d)]
    assert [conv.padding for conv in after] == before
    assert not any(conv._forward_pre_hooks for conv in after)


def test_along_no_axis_nothing_is_touched(tiny: Pipeline) -> None:
    """A hook would make packed layers compute plainly, and each convolution copy its input."""
    with seamless([tiny.unet, tiny.autoencoder], ""):
        assert not any(part._forward_pre_hooks for part in (*tiny.unet.modules(), *tiny.autoencoder.modules()))
