"""Is what the inner levels gave used again when it should be, and never for another prompt or picture?"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from reverie.diffusion.samplers import SAMPLERS
from reverie.models.unet import UNet, UNetConfig
from reverie.pipeline import Pipeline
from reverie.requests.pictures import TextToImage
from reverie.runtime.changes import reusing

UNET = UNetConfig(
    block_out_channels=(8, 16),
    layers_per_block=1,
    transformer_depth=(1, 0),
    num_heads=(2, 4),
    cross_attention_dim=16,
    norm_num_groups=4,
)
X, CONTEXT = torch.randn(2, 2, 4, 8, 12, generator=torch.Generator().manual_seed(0)), torch.randn(2, 7, 16)


@pytest.fixture
def unet() -> Iterator[UNet]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield UNet(UNET).eval()


def at(t: float) -> Tensor:
    return torch.tensor([t, t])


def inner_runs(unet: UNet) -> list[None]:
    runs: list[None] = []
    unet.mid_block.register_forward_hook(lambda *_: runs.append(None))
    return runs


def test_the_first_step_is_exact_and_the_next_takes_the_inner_levels_from_it(unet: UNet) -> None:
    first, second = unet(X[0], at(500.0), CONTEXT), unet(X[1], at(480.0), CONTEXT)
    runs = inner_runs(unet)
    with reusing(unet, 2):
        assert torch.equal(unet(X[0], at(500.0), CONTEXT), first)
        reused = unet(X[1], at(480.0), CONTEXT)
        assert len(runs) == 1
        assert torch.equal(unet(X[0], at(500.0), CONTEXT.clone()), first)
        assert len(runs) == 2
    assert not torch.allclose(reused, second, atol=1e-4)
    given: list[Tensor] = []
    last = unet.up_blocks[-1]
    last.resnets[-1].register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    unet(X[0], at(500.0), CONTEXT)
    skip = unet.conv_in(X[1])
    joined = torch.cat([given[0][:, : -skip.shape[1]], skip], dim=1)
    h = last.layer(len(last.resnets) - 1, joined, unet._embed(at(480.0), None, None), CONTEXT)
    assert torch.equal(reused, unet.conv_out(unet.conv_norm_out(h)))


def test_once_for_every_so_many_timesteps_each_counted_once(unet: UNet) -> None:
    runs = inner_runs(unet)
    with reusing(unet, 3):
        for t, wanted in ((900, 1), (850, 1), (850, 1), (800, 1), (750, 2), (700, 2), (650, 2), (600, 3)):
            unet(X[0], at(float(t)), CONTEXT)
            assert len(runs) == wanted, t


def test_each_prompt_has_its_own(unet: UNet) -> None:
    other = torch.randn(2, 7, 16)
    alone = {}
    for name, context in (("a", CONTEXT), ("b", other)):
        with reusing(unet, 2):
            alone[name] = [unet(X[k], at(900.0 - k), context) for k in range(2)]
    with reusing(unet, 2):
        for k in range(2):
            assert torch.equal(unet(X[k], at(900.0 - k), CONTEXT), alone["a"][k])
            assert torch.equal(unet(X[k], at(900.0 - k), other), alone["b"][k])


def test_residuals_of_a_controlnet_count(unet: UNet) -> None:
    skips, middle = unet.descend(unet.conv_in(X[0]), unet._embed(at(500.0), None, None), CONTEXT)
    residuals = [torch.randn_like(output) for output in (*skips, middle)]
    exact = unet(X[0], at(500.0), CONTEXT, residuals=residuals)
    with reusing(unet, 2):
        assert torch.equal(unet(X[0], at(500.0), CONTEXT, residuals=residuals), exact)
        again = unet(X[0], at(499.0), CONTEXT, residuals=residuals)
        assert not torch.equal(again, unet(X[0], at(498.0), CONTEXT, residuals=None))


def test_afterwards_the_network_is_as_it_was(unet: UNet) -> None:
    held, before = set(vars(unet)), unet(X[0], at(500.0), CONTEXT)
    with pytest.raises(RuntimeError), reusing(unet, 2):
        raise RuntimeError
    assert type(unet) is UNet
    assert set(vars(unet)) == held
    with reusing(unet, 1):
        assert type(unet) is UNet
    assert torch.equal(unet(X[0], at(500.0), CONTEXT), before)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_pictures_do_not_know_of_one_another(tiny: Pipeline, sampler: str) -> None:
    """Picture k is that of seed + k alone to the bit, and one step is always exact."""
    request = TextToImage(prompt="a bear", seed=3, steps=3, sampler=sampler, cache_steps=2, count=2)
    together = [progress.latents for progress in tiny.stream(request) if progress.pictures]
    for k, one in enumerate(together):
        (alone,) = (progress.latents for progress in tiny.stream(request.only(k)) if progress.pictures)
        assert torch.equal(one, alone)
    exact = tiny.draw(request.replace(cache_steps=1, steps=1, count=1, sampler="euler"))[0]
    reused = tiny.draw(request.replace(steps=1, count=1, sampler="euler"))[0]
    assert exact.tobytes() == reused.tobytes()
