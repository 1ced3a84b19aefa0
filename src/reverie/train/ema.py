"""Moving averages of a network's weights: exponential, or by a power function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from reverie.train.parallel import local

Decay = Callable[[int], float]
"""Number of an update, from 1 -> how much of the average stays."""

LONGEST = 0.28  # of the lengths of a power function's profile, in times of the run


def exponential(largest: float) -> Decay:
    """Decay by min(largest, (1 + n) / (10 + n)) at update n. Source: CompVis/latent-diffusion, ldm/modules/ema.py."""
    return lambda n: min(largest, (1 + n) / (10 + n))


def power_function(length: float) -> Decay:
    """Decay by (1 - 1 / n)^(gamma + 1): step t counts as t^gamma, a profile of `length` times the run's (deviation).

    Source: Karras et al. 2312.02696, section 3.1; `length` is their sigma_rel, below LONGEST.
    """
    # length^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), written out as a polynomial in gamma
    gamma = np.roots([1, 7, 16 - length**-2, 12 - length**-2]).real.max()
    return lambda n: (1 - 1 / n) ** (gamma + 1)


class EMA:
    """Average a network's weights; buffers, such as batch normalisation's statistics, are not averaged."""

    def __init__(self, network: nn.Module, decay: Decay) -> None:
        self.decay = decay
        self.updates = 0
        self.parameters = dict(network.named_parameters())
        self.weights = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the network's weights."""
        self.updates += 1
        toward = 1 - self.decay(self.updates)
        torch._foreach_lerp_([*map(local, self.weights.values())], [*map(local, self.parameters.values())], toward)

    @contextmanager
    def swap_in(self) -> Iterator[None]:
        """Swap in the EMA weights for the length of a `with` block."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self.parameters.items():
            ours, theirs = local(self.weights[name]), local(parameter)
            held = theirs.clone()
            theirs.copy_(ours)
            ours.copy_(held)

    def state_dict(self) -> dict[str, Any]:
        """Return the average and the count of updates."""
        return {"updates": self.updates, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up an average that `state_dict` returned."""
        self.updates = int(state["updates"])
        for name, value in self.weights.items():
            value.copy_(state["weights"][name])
