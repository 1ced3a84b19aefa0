"""Does the host wait for the device within the loop? It may not: on the meta device, from which nothing can be read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from reverie.diffusion.denoiser import PREDICTIONS, denoiser
from reverie.diffusion.guidance import consistency, dynamic_thresholding, guide, linear, together
from reverie.diffusion.samplers import SAMPLERS
from reverie.diffusion.schedule import scaled_linear
from reverie.diffusion.spacings import SPACINGS
from reverie.runtime.changes import Merged

META = torch.device("meta")


class Watched(TorchDispatchMode):
    """Fail where something other than a number is copied to the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[1] if func is torch.ops.aten.copy_.default else args[0]
            assert (made.device, source.device) != (META, torch.device("cpu")), "copied to the device"
        return made


class Drawn:
    """Draw on the device."""

    def next(self) -> Tensor:
        return torch.randn(2, 4, 8, 8, device=META)


def network(x: Tensor, t: Tensor) -> Tensor:
    assert x.device == t.device == META
    return x * t[:, None, None, None]


def made(wrap: Callable[[Any], Any], prediction: str = "eps") -> Any:
    schedule = scaled_linear()
    predict = guide(together(network), linear(7.5))
    return wrap(denoiser(predict, schedule, PREDICTIONS[prediction].scalings))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_sampler_waits(sampler: str) -> None:
    schedule = scaled_linear()
    sigmas = SPACINGS["karras"](schedule, 6)
    denoise = made(lambda denoise: consistency(denoise, schedule) if sampler == "lcm" else denoise)
    with Watched():
        x = torch.empty(2, 4, 8, 8, device=META)
        steps = list(SAMPLERS[sampler](denoise, x, sigmas, Drawn()))
    assert len(steps) == 6
    assert steps[-1].x.device == META


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_no_prediction_and_no_threshold_waits(prediction: str) -> None:
    with Watched():
        denoise = made(lambda denoise: dynamic_thresholding(denoise, 0.99), prediction)
        assert denoise(torch.empty(2, 4, 8, 8, device=META), 1.5).device == META


def test_merging_tokens_does_not_wait() -> None:
    with Watched():
        x = torch.empty(2, 6 * 5, 8, device=META)
        merged = Merged.of(x, 6, 5, 0.5)
        assert merged.undo(merged.merge(x)).shape == x.shape


def test_waiting_is_found_out() -> None:
    with Watched(), pytest.raises(AssertionError, match="copied to the device"):
        torch.ones(3).to(META)
    with pytest.raises(RuntimeError):
        torch.ones(3, device=META)[0].item()
    with pytest.raises(NotImplementedError):
        torch.ones(3, device=META).nonzero()
