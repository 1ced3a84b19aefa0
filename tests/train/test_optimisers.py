"""Does each optimiser step as its paper says, and does its state go on in a resumed run?"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from reverie.errors import ReverieError
from reverie.train.loop import RunSettings, train
from reverie.train.optimisers import OPTIMISERS, make_optimisers

LIBRARIES = {"lion": "lion_pytorch", "prodigy": "prodigyopt"}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_stopped_and_resumed(
    toy: type, settings: Callable[..., RunSettings], tmp_path: Path, same_run: Callable[[Path, Path], None], name: str
) -> None:
    if name in LIBRARIES:
        pytest.importorskip(LIBRARIES[name], reason="needs `train`")
    chosen = settings(optimiser=name, steps=5, sample_every=9)
    list(train(toy, chosen, tmp_path / "whole"))
    events = train(toy, chosen, tmp_path / "parts")
    while next(events).step < 4:
        pass
    events.close()
    list(train(lambda: toy(seed=0), chosen, tmp_path / "parts", resume=True))
    same_run(tmp_path / "whole", tmp_path / "parts")
    if name != "adamw":
        with pytest.raises(ReverieError, match="was written by another recipe"):
            list(train(toy, settings(steps=6), tmp_path / "whole", resume=True))


def step(name: str, weight: Tensor, gradients: list[Tensor], **changed: object) -> Tensor:
    """Step a parameter down some gradients, at a rate of 0.1."""
    parameter = nn.Parameter(weight.clone())
    settings = RunSettings(**{"steps": 9, "lr": 0.1, "optimiser": name} | changed)
    (optimiser,) = make_optimisers([parameter], settings, {}).values()
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimiser.step()
    return parameter.detach()


def draw(count: int = 3) -> tuple[Tensor, list[Tensor]]:
    """Draw a weight and gradients of it."""
    weight, *gradients = torch.randn(1 + count, 4, 6, generator=torch.Generator().manual_seed(2))
    return weight, gradients


def test_adafactor() -> None:
    """Shazeer and Stern 1804.04235, algorithms 4 and 5, with the constants of section 9."""
    weight, gradients = draw()
    x, rows, columns = weight.clone(), torch.zeros(4, 1), torch.zeros(1, 6)
    for t, gradient in enumerate(gradients, 1):
        kept = 1 - t**-0.8
        rows = kept * rows + (1 - kept) * gradient.square().mean(1, keepdim=True)
        columns = kept * columns + (1 - kept) * gradient.square().mean(0, keepdim=True)
        update = gradient / (rows * columns / rows.mean()).sqrt()
        update = update / update.square().mean().sqrt().clamp(min=1)
        x = x - x.square().mean().sqrt().clamp(min=1e-3) * min(0.1, t**-0.5) * update
    torch.testing.assert_close(step("adafactor", weight, gradients), x, rtol=1e-4, atol=1e-6)


def test_lion() -> None:
    """Chen et al. 2302.06675, algorithm 2."""
    pytest.importorskip("lion_pytorch", reason="needs `train`")
    weight, gradients = draw()
    x, momentum = weight.clone(), torch.zeros_like(weight)
    for gradient in gradients:
        x = x - 0.1 * ((0.9 * momentum + 0.1 * gradient).sign() + 0.3 * x)
        momentum = 0.99 * momentum + 0.01 * gradient
    torch.testing.assert_close(step("lion", weight, gradients, betas=(0.9, 0.99), weight_decay=0.3), x)


def test_prodigy_finds_its_rate_and_refuses_two() -> None:
    """On |x|, from far away, with lr 1: its rate grows until it comes near (Mishchenko and Defazio 2306.06101)."""
    pytest.importorskip("prodigyopt", reason="needs `train`")
    parameter, settings = nn.Parameter(torch.full((2, 2), 10.0)), RunSettings(steps=9, lr=1.0, optimiser="prodigy")
    (optimiser,) = make_optimisers([parameter], settings, {}).values()
    for _ in range(300):
        optimiser.zero_grad()
        parameter.abs().sum().backward()
        optimiser.step()
    assert parameter.abs().max() < 3
    with pytest.raises(ReverieError, match="finds one rate for all"):
        make_optimisers([parameter], settings, {parameter: 0.5})


def test_muon_steps_matrices_alone() -> None:
    """Its update is near orthogonal, of 0.2 sqrt(larger side) a singular value (Liu et al. 2502.16982, 2.2)."""
    weight, gradients = draw(1)
    update = (weight - step("muon", weight, gradients)) / 0.1
    values = torch.linalg.svdvals(update) / (0.2 * 6**0.5)
    assert values.min() > 0.6
    assert values.max() < 1.3
    bias = nn.Parameter(torch.zeros(4))
    both = make_optimisers([nn.Parameter(weight), bias], RunSettings(1, 0.1, optimiser="muon"), {})
    assert both.keys() == {"/muon", ""}
    assert both[""].param_groups[0]["params"] == [bias]


def test_settings_that_an_optimiser_does_not_have() -> None:
    with pytest.raises(ReverieError, match=r"betas in \[run\] says nothing to optimiser = 'adafactor'; leave it out"):
        step("adafactor", *draw(), betas=(0.8, 0.9))


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    with pytest.raises(ReverieError, match="prodigyopt is not installed; install the extra `train`"):
        step("prodigy", *draw())
