"""Objectives: what the training loop knows of a thing to learn, and what else some can do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor, nn

from reverie.data.loader import WHOLE, Batches, BatchPart


class Objective(Protocol):
    """What the loop knows of a thing to learn."""

    networks: nn.ModuleDict  # everything whose state is part of a checkpoint
    averaged: nn.Module  # the part that is kept as a moving average

    def move(self, device: torch.device) -> None:
        """Put all that computes onto a device. Batches and noise are still drawn on the CPU, the same everywhere."""

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Name the groups of parameters, each with an optimiser of its own."""

    def losses(self, step: int, part: BatchPart = WHOLE) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
        """Yield (group, loss, metrics) of a part in turn; each loss is stepped before the next is computed.

        The mean over all parts of a batch is the loss of the batch.
        """

    def after_step(self) -> None:
        """Put parameters back into their range, where they have one."""

    def samples(self) -> Image.Image | None:
        """Draw a contact sheet of what has been learned so far."""

    def export(self, folder: Path) -> None:
        """Write what was learned, for use."""


@runtime_checkable
class MeasuredObjective(Protocol):
    """An objective that can also tell in numbers what has been learned, such as CLIP by naming pictures."""

    def measures(self) -> dict[str, float]:
        """Measure it, without touching what training depends on."""


@runtime_checkable
class Layered(Protocol):
    """An objective whose layers can be computed twice, or held in parts."""

    def backbones(self) -> Iterator[nn.Module]:
        """Return the networks that gradients pass through."""


class Countable(Objective, Protocol):
    """An objective whose step costs what its shapes say: beside its weights it asks its batches alone."""

    batches: Batches

    def all_networks(self) -> Iterator[tuple[str, nn.Module]]:
        """Name the networks that compute, those that learn nothing among them; a later one may lie in an earlier."""


@runtime_checkable
class Chunked(Protocol):
    """An objective of whole batches, of which it encodes `chunk` examples at once; 0 is all that a process has."""

    chunk: int


@runtime_checkable
class Tracing(Protocol):
    """An objective that can say what a step is learned from."""

    def keys(self, step: int, part: BatchPart) -> list[str]:
        """Name the examples of a part of a step."""


@runtime_checkable
class Paced(Protocol):
    """An objective some of whose parameters learn at a rate of their own."""

    def paces(self) -> dict[nn.Parameter, float]:
        """Return how many times the run's rate they learn at; the others learn at the run's."""
