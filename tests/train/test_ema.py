"""Does the moving average follow its closed form, and is it lent and taken back?"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from reverie.train.ema import EMA, exponential, power_function

LARGEST = 0.9


def network(value: float) -> nn.Linear:
    linear = nn.Linear(2, 1)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.fill_(value)
    return linear


def test_closed_form() -> None:
    """The average is sum_k (1 - d_k) w_k d_(k+1) ... d_n with d_0 = 0 and d_k = min(0.9, (1 + k) / (10 + k))."""
    linear = network(3.0)
    average = EMA(linear, exponential(LARGEST))
    weights = [3.0]
    for n in range(1, 121):
        weights.append(math.sin(n))
        with torch.no_grad():
            linear.weight.fill_(weights[-1])
        average.update()
    decays = [0.0] + [min(LARGEST, (1 + k) / (10 + k)) for k in range(1, 121)]
    assert decays[1] == 2 / 11
    assert decays[-1] == LARGEST
    expected = sum((1 - decays[k]) * weights[k] * math.prod(decays[k + 1 :]) for k in range(121))
    torch.testing.assert_close(average.weights["weight"], torch.full((1, 2), expected))
    assert torch.equal(average.weights["bias"], torch.tensor([3.0]))  # what stands still is averaged to itself


def test_the_network_is_not_moved_by_its_average() -> None:
    linear = network(1.0)
    average = EMA(linear, exponential(LARGEST))
    with torch.no_grad():
        linear.weight.fill_(5)
    average.update()
    assert torch.equal(linear.weight, torch.full((1, 2), 5.0))
    assert not torch.equal(average.weights["weight"], linear.weight)


def test_lent_for_a_while() -> None:
    linear = network(1.0)
    average = EMA(linear, exponential(LARGEST))
    with torch.no_grad():
        linear.weight.fill_(5)
    with average.swap_in():
        assert torch.equal(linear.weight, torch.ones(1, 2))
    assert torch.equal(linear.weight, torch.full((1, 2), 5.0))
    with pytest.raises(KeyboardInterrupt), average.swap_in():
        raise KeyboardInterrupt
    assert torch.equal(linear.weight, torch.full((1, 2), 5.0))
    assert torch.equal(average.weights["weight"], torch.ones(1, 2))


def test_state_round_trip() -> None:
    linear = network(1.0)
    average = EMA(linear, exponential(LARGEST))
    for value in (2.0, 4.0):
        with torch.no_grad():
            linear.weight.fill_(value)
        average.update()
    other = EMA(network(0.0), exponential(LARGEST))
    other.load_state_dict(average.state_dict())
    assert other.updates == 2
    assert all(torch.equal(other.weights[name], average.weights[name]) for name in average.weights)


def test_a_power_function_reaches_back_by_its_length() -> None:
    """The profile of an average of T weights has the standard deviation `length` T (Karras et al. 2312.02696, 3.1)."""
    length, total = 0.05, 1000
    linear = network(0.0)
    average = EMA(linear, power_function(length))
    for n in range(1, total + 1):
        with torch.no_grad():
            linear.weight.copy_(torch.tensor([[n / total, (n / total) ** 2]]))
        average.update()
    mean, square = average.weights["weight"][0].double()
    assert (square - mean**2).sqrt().item() == pytest.approx(length, rel=1e-2)
