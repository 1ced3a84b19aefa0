"""Exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class EMA:
    """Average a network's weights exponentially with decay min(largest, (1 + n) / (10 + n)) at update n.

    Buffers, such as batch normalisation's statistics, are not averaged.
    Source: CompVis/latent-diffusion, ldm/modules/ema.py.
    """

    def __init__(self, network: nn.Module, largest: float) -> None:
        self.largest = largest
        self.updates = 0
        self.parameters = dict(network.named_parameters())
        self.weights = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the network's weights."""
        self.updates += 1
        decay = min(self.largest, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.weights.values()), list(self.parameters.values()), 1 - decay)

    @contextmanager
    def swap_in(self) -> Iterator[None]:
        """Swap in the EMA weights for the length of a `with` block."""
        own = {name: parameter.data for name, parameter in self.parameters.items()}
        try:
            self._lend(self.weights)
            yield
        finally:
            self._lend(own)

    def _lend(self, weights: dict[str, torch.Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.data = weights[name]

    def state_dict(self) -> dict[str, Any]:
        """Return the average and the count of updates."""
        return {"updates": self.updates, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up an average that `state_dict` returned."""
        self.updates = int(state["updates"])
        for name, value in self.weights.items():
            value.copy_(state["weights"][name])
