"""What is the moving average of a network's weights, and how is it put in their place for a while?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Average weights exponentially with decay min(largest, (1 + n) / (10 + n)) at update n.

    Source: CompVis/latent-diffusion, ldm/modules/ema.py.
    """

    def __init__(self, network: nn.Module, largest: float) -> None:
        self.largest = largest
        self.updates = 0
        self.weights = {name: value.detach().clone() for name, value in network.named_parameters()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the average towards the network's weights."""
        self.updates += 1
        decay = min(self.largest, (1 + self.updates) / (10 + self.updates))
        averages = list(self.weights.values())
        torch._foreach_lerp_(averages, [dict(network.named_parameters())[name].detach() for name in self.weights], 1 - decay)

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """Lend the average to the network for the length of a `with` block."""
        parameters = dict(network.named_parameters())
        own = {name: parameters[name].data for name in self.weights}
        try:
            for name, value in self.weights.items():
                parameters[name].data = value
            yield
        finally:
            for name, value in own.items():
                parameters[name].data = value

    def state_dict(self) -> dict[str, object]:
        """Return the average and the count of updates."""
        return {"updates": self.updates, "weights": self.weights}

    def load_state_dict(self, state: dict) -> None:
        """Take up an average that `state_dict` returned."""
        self.updates = int(state["updates"])
        loaded: dict[str, Tensor] = state["weights"]
        for name, value in self.weights.items():
            value.copy_(loaded[name])
