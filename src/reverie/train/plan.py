"""Plans: what a recipe would cost, found without training, and what makes it fit a machine."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reverie.errors import ReverieError
from reverie.models.autoencoder import ImageAutoencoder
from reverie.train.cost import empty_, operations_of, parameters_of, peak_of
from reverie.train.encoded import Encoded
from reverie.train.examples import Examples, Pictures
from reverie.train.inputs import Alternating
from reverie.train.latents import Mixed, Stream
from reverie.train.layers import LAYERS, recompute_layers_
from reverie.train.loop import RunSettings, as_layered, shardable
from reverie.train.objective import Chunked, Countable, Layered
from reverie.train.recipe import OBJECTIVES, read, section

FLOAT = 4  # bytes
SPARING = ("shard", "recompute_layers")  # in [run]
PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
NUMBER = r"(\d+(?:\.\d+)?)([kMGTP]?)"
UNITS = {"gpus": r"(\d+)()", "memory": f"{NUMBER}B", "rate": f"{NUMBER}FLOP/s"}  # what may be said of a Hardware
TIMES = {"minutes": 60, "hours": 3600, "days": 24 * 3600}
STATES: dict[str, Callable[[torch.Size], int]] = {
    "adamw": lambda shape: 2 * shape.numel(),
    "adafactor": lambda shape: shape.numel() if len(shape) < 2 else _rows(shape, -1) + _rows(shape, -2),
    "lion": torch.Size.numel,
    "prodigy": lambda shape: 4 * shape.numel(),
    "muon": lambda shape: shape.numel() * (1 if len(shape) == 2 else 2),
}
"""How many numbers an optimiser keeps for a parameter of a shape, by the keys of OPTIMISERS."""


@dataclass(frozen=True)
class Hardware:
    """Say what is learned on: how many GPUs, of how many bytes, at how many operations a second; 0 is not known."""

    gpus: int = 1
    memory: float = 0.0
    rate: float = 0.0

    @classmethod
    def of(cls, text: str) -> Hardware:
        """Read a text such as "gpus=8,memory=80GB,rate=100TFLOP/s". Raises ReverieError for any other."""
        numbers: dict[str, float] = {}
        for part in text.split(","):
            key, _, value = part.partition("=")
            found = re.fullmatch(UNITS.get(key, "$."), value)
            if not found or not float(found[1]) or key in numbers:
                raise ReverieError(f"'{part}' of a machine is not possible; write gpus=8,memory=80GB,rate=100TFLOP/s")
            numbers[key] = float(found[1]) * PREFIXES[found[2]]
        return cls(int(numbers.get("gpus", 1)), numbers.get("memory", 0.0), numbers.get("rate", 0.0))


class Holdings(NamedTuple):
    """Count the bytes of what a run holds beside its steps; of the `layered` weights processes may each hold a part."""

    weights: int
    states: int
    average: int
    gradients: int
    layered: int
    whole: int  # of them, and of their gradients, while a layer computes

    @property
    def shared(self) -> int:
        """Return what falls to processes in equal parts, where they hold parts."""
        return self.layered + self.states + self.average + self.gradients

    def in_all(self, settings: RunSettings, gpus: int, step: int) -> int:
        """Return the bytes that each GPU holds at most, if a step takes so many."""
        held = self.weights + self.states + self.average + step
        if settings.shard:
            return held - self.shared + self.gradients + -(-self.shared // gpus) + (self.whole if gpus > 1 else 0)
        return held + (self.gradients if settings.accumulate > 1 else 0)


def _rows(shape: torch.Size, along: int) -> int:
    return shape.numel() // shape[along]


def blank_pool(
    autoencoder: ImageAutoencoder, examples: Examples, path: Path, workers: int = 0
) -> tuple[Examples, Float[Tensor, "n c h w"]]:
    """Stand for `open_pool`: latents of the size of all examples', none of which is made."""
    height, width, channels = (examples.blank if isinstance(examples, Pictures) else examples.picture(0)).shape
    shape = (
        autoencoder.config.latent_channels + channels - 3,
        height // autoencoder.factor,
        width // autoencoder.factor,
    )
    return examples, torch.zeros((), dtype=torch.float16).expand(len(examples), *shape)


PLANNED: dict[str, dict[str, Any]] = {
    "autoencoder": {},
    "clip": {},
    "diffusion": {"pool": blank_pool},
    "distill": {"pool": blank_pool},
    "finetune": {"pool": blank_pool},
}
"""Objectives whose costs can be told ahead, and what they are built with."""


def plan(path: Path, machine: Hardware = Hardware()) -> Iterator[str]:
    """Say line by line what a recipe would cost on a machine. Raises ReverieError for an objective that is not PLANNED.

    Nothing is trained, and no latents are made.
    """
    sections = read(path)
    name, settings = sections["objective"], section(sections, "run", RunSettings)
    if name not in PLANNED:
        raise ReverieError(f"the costs of the objective {name} cannot be told ahead; choose from {', '.join(PLANNED)}")
    if name == "finetune" and "text" in sections:  # new words and encodings change little, and would be made first
        sections["text"] = sections["text"] | {"words": 0, "cached": False}
    if "ip_adapter" in sections:  # nor need its tower see all pictures
        sections["ip_adapter"] = sections["ip_adapter"] | {"dropout": 1.0}
    build = import_module(OBJECTIVES[name][0]).build
    yield from describe(build(sections, settings.seed, path.parent, **PLANNED[name]), settings, machine)


def describe(objective: Countable, settings: RunSettings, machine: Hardware) -> Iterator[str]:
    """Say line by line what a run of an objective would cost; its networks are moved to the meta device."""
    counts, held = [*_counts(objective)], hold(objective, settings)
    saved = FLOAT * _numel(objective.networks) + held.states + held.average
    yield f"model      {', '.join(f'{count:,} in the {name}' for name, count in counts)}"
    yield f"learns     {held.gradients // FLOAT:,} parameters"
    yield f"weights    {_size(held.weights)}"
    yield f"optimiser  {_size(held.states)} ({settings.optimiser})"
    yield f"average    {_size(held.average)}"
    empty_(objective)
    if settings.recompute_layers:
        recompute_layers_(as_layered(objective, "recompute_layers").backbones())
    step, batch = peak_of(objective, settings, machine.gpus), objective.batches.size
    rows, gradients = batch // (machine.gpus * settings.accumulate), _size(held.gradients)
    yield f"a step     {_size(step)}, {rows} of {batch} examples at once, with gradients of {gradients}"
    most = held.in_all(settings, machine.gpus, step)
    yield f"in all     {_size(most)} at most, beside torch and Python themselves"
    if settings.shard:
        shared = _size(held.shared)
        yield f"sharded    {shared} of this fall to the processes in equal parts, beside a layer's at a time"
    operations = operations_of(objective, settings, machine.gpus)
    yield f"operations {_size(operations, '')} a step, {_size(operations * settings.steps, '')} in all, there and back"
    seen, streams = settings.steps * batch, [*streams_of(objective)]
    latents = [stream.latents for stream in streams]
    times = f", {seen / sum(map(len, latents)):.1f} times {sum(map(len, latents)):,}" if latents else ""
    pool = f", latents of {_size(sum(one.nbytes for one in latents))}" if latents else ""
    yield f"examples   {seen:,} in {settings.steps:,} steps{times}{pool}"
    made = " the latents," if latents and not all(isinstance(stream.examples, Encoded) for stream in streams) else ""
    yield f"on disk    a checkpoint of {_size(saved)},{made} and the export"
    if machine.rate:
        rate, taken = _size(machine.rate, "FLOP/s"), operations * settings.steps / (machine.gpus * machine.rate)
        yield f"time       {_time(taken)} for {seen:,} examples, of {machine.gpus} GPUs at {rate} each"
    if machine.memory:
        fits = most <= machine.memory
        yield f"fits       {'yes' if fits else 'no'}: {_size(most)} of the {_size(machine.memory)} of a GPU"
        if not fits:
            yield f"           {suggest(objective, settings, machine, held)}"


def hold(objective: Countable, settings: RunSettings) -> Holdings:
    """Return what a run of an objective holds beside its steps."""
    learning = parameters_of(objective)
    backbones = nn.ModuleList(objective.backbones() if isinstance(objective, Layered) else ())
    layers = [_numel(module) for module in backbones.modules() if isinstance(module, LAYERS)]
    layered = _numel(backbones)
    return Holdings(
        weights=FLOAT * sum(count for _, count in _counts(objective)),
        states=FLOAT * sum(STATES[settings.optimiser](weight.shape) for weight in learning),
        average=FLOAT * _numel(objective.averaged) if settings.ema or settings.ema_length else 0,
        gradients=FLOAT * sum(weight.numel() for weight in learning),
        layered=FLOAT * layered,
        whole=2 * FLOAT * (layered - sum(layers) + max(layers, default=0)),
    )


def suggest(objective: Countable, settings: RunSettings, machine: Hardware, held: Holdings) -> str:
    """Say what makes a run fit a machine, of an objective on the meta device: the first of `lighter` that does."""
    rows, least = objective.batches.size // machine.gpus, 0
    chunked = objective if isinstance(objective, Chunked) else None
    fewest = settings.accumulate if chunked is None else -(-rows // (chunked.chunk or rows))
    parts = [count for count in range(fewest, rows + 1) if rows % count == 0]

    def bytes_of(tried: RunSettings, count: int) -> int:
        if chunked is None:
            tried = replace(tried, accumulate=count)
        else:
            chunked.chunk = rows // count
        return held.in_all(tried, machine.gpus, peak_of(objective, tried, machine.gpus))

    for tried in lighter(objective, settings, machine):
        place = bisect_left(parts, True, key=lambda count: bytes_of(tried, count) <= machine.memory)
        count = parts[min(place, len(parts) - 1)]
        least = bytes_of(tried, count)
        if place < len(parts):
            changes = [f"{name} = true" for name in SPARING if vars(tried)[name] > vars(settings)[name]]
            if count > fewest:
                changes.append(f"accumulate = {count}" if chunked is None else f"chunk = {rows // count}")
            return f"{_size(least)} with {', '.join(changes)}"
    return (
        f"{_size(least)} even with all that spares memory; take more GPUs, another optimiser, a LoRA, smaller pictures"
    )


def lighter(objective: Countable, settings: RunSettings, machine: Hardware) -> Iterator[RunSettings]:
    """Yield settings that take less and less memory and more time, with which the objective is ready to be counted."""
    yielded: list[RunSettings] = []
    for recompute, shard in product((False, True), (False, True) if machine.gpus > 1 else (False,)):
        try:
            changed = replace(
                settings,
                recompute_layers=settings.recompute_layers or recompute,
                shard=settings.shard or shard,
            )
            backbones = as_layered(objective, "recompute_layers").backbones() if recompute else ()
            if changed.shard:
                shardable(objective)
        except ReverieError:  # the run would say so
            continue
        if changed.recompute_layers and not any(one.recompute_layers for one in [settings, *yielded]):
            recompute_layers_(backbones)
        if changed not in yielded:
            yielded.append(changed)
            yield changed


def streams_of(objective: Countable) -> Iterator[Stream]:
    """Return the streams that an objective learns from, one for each size of pictures."""
    waiting = [objective.batches.items.make]
    while waiting:
        served = waiting.pop()
        if isinstance(served, Stream):
            yield served
        elif isinstance(served, Mixed | Alternating):
            waiting += served.streams


def _counts(objective: Countable) -> Iterator[tuple[str, int]]:
    """Count the parameters of each network that do not lie in those before."""
    counted: set[nn.Parameter] = set()
    for name, network in objective.all_networks():
        if further := {*network.parameters()} - counted:
            yield name, sum(weight.numel() for weight in further)
        counted |= further


def _numel(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def _size(count: float, unit: str = "B") -> str:
    prefix = next((name for name in reversed(PREFIXES) if count >= PREFIXES[name]), "")
    return f"{count / PREFIXES[prefix]:.1f} {prefix}{unit}"


def _time(seconds: float) -> str:
    unit = next((name for name in reversed(TIMES) if seconds >= TIMES[name]), "minutes")
    return f"{seconds / TIMES[unit]:.1f} {unit}"
