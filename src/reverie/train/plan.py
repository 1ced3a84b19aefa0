"""Plans: what a recipe would cost, found without training.

A step is taken on torch's meta device, where tensors have shapes and no content, while the storages that live at once
are counted; so recomputed layers, adapters and ControlNets count as what they are.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from reverie.errors import ReverieError
from reverie.models.autoencoder import ImageAutoencoder
from reverie.train.diffusion import DiffusionObjective
from reverie.train.encoded import Encoded
from reverie.train.examples import Examples, Pictures
from reverie.train.inputs import Alternating
from reverie.train.latents import Mixed, Stream
from reverie.train.layers import recompute_layers_
from reverie.train.loop import RunSettings
from reverie.train.pairs import TRIES, first_readable
from reverie.train.parallel import parts
from reverie.train.recipe import OBJECTIVES, read, section

META = torch.device("meta")
FLOAT = 4  # bytes
PLANNED = ("diffusion", "finetune")  # objectives
STATES: dict[str, Callable[[torch.Size], int]] = {
    "adamw": lambda shape: 2 * shape.numel(),
    "adafactor": lambda shape: shape.numel() if len(shape) < 2 else _rows(shape, -1) + _rows(shape, -2),
    "lion": torch.Size.numel,
    "prodigy": lambda shape: 4 * shape.numel(),
    "muon": lambda shape: shape.numel() * (1 if len(shape) == 2 else 2),
}
"""How many numbers an optimiser keeps for a parameter of a shape, by the keys of OPTIMISERS."""
ATTENTION: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **_: sdpa_backward_flop_count(
        *shapes[:4]
    ),
}
"""Operations of attention on a CPU, of whose shapes torch's counter knows nothing."""


class StepCost(NamedTuple):
    """What a part of a step costs: bytes held at most, multiplications and additions of products and convolutions."""

    memory: int
    operations: int


def _rows(shape: torch.Size, along: int) -> int:
    return shape.numel() // shape[along]


@contextmanager
def fused_attention() -> Iterator[None]:
    """Compute attention without its weights in memory, as CPUs and GPUs do; the meta device chooses another way.

    It takes the place of torch's function, since a mode would not reach what is computed again on the way back.
    """
    plain = F.scaled_dot_product_attention

    def attend(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool = False) -> Tensor:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, is_causal)[0]

    try:
        F.scaled_dot_product_attention = attend  # type: ignore[assignment]
        yield
    finally:
        F.scaled_dot_product_attention = plain


class PeakMemory(TorchDispatchMode):
    """Count the bytes of the storages that operations make, while they live, and the most that lived at once.

    Those of `known` tensors, which operations give back as views, are not counted.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.known = [tensor.untyped_storage() for tensor in known]
        self.live = dict.fromkeys(map(id, self.known), 0)
        self.now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Carry out an operation and count what it made."""
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and id(storage := tensor.untyped_storage()) not in self.live:
                self.live[id(storage)] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._forget, id(storage))
        self.peak = max(self.peak, self.now)
        return result

    def _forget(self, key: int) -> None:
        self.now -= self.live.pop(key)


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


def plan(path: Path) -> Iterator[str]:
    """Say line by line what a recipe would cost. Raises ReverieError where it is not of a U-Net."""
    sections = read(path)
    name, settings = sections["objective"], section(sections, "run", RunSettings)
    if name not in PLANNED:
        raise ReverieError(f"the costs of the objective {name} cannot be told ahead; choose from {', '.join(PLANNED)}")
    if "text" in sections:  # new words and encodings that are kept change little, and would be made first
        sections["text"] = sections["text"] | {"words": 0, "cached": False}
    if "ip_adapter" in sections:  # nor need its tower see all pictures
        sections["ip_adapter"] = sections["ip_adapter"] | {"dropout": 1.0}
    objective = import_module(OBJECTIVES[name][0]).build(sections, settings.seed, path.parent, pool=blank_pool)
    yield from describe(objective, settings)


def describe(objective: DiffusionObjective, settings: RunSettings) -> Iterator[str]:
    """Say line by line what a run of an objective would cost; its networks are moved to the meta device."""
    learned = {id(weight): weight for group in objective.groups().values() for weight in group}
    count = sum(weight.numel() for weight in learned.values())
    weights = FLOAT * sum(sum(map(_numel, network.parameters())) for _, network in _parts(objective))
    states = FLOAT * sum(STATES[settings.optimiser](weight.shape) for weight in learned.values())
    average = FLOAT * sum(map(_numel, objective.averaged.parameters())) if settings.ema or settings.ema_length else 0
    saved = FLOAT * sum(map(_numel, objective.networks.parameters()))
    counts = [f"{sum(map(_numel, one.parameters())):,} in the {name}" for name, one in _parts(objective)]
    yield f"model      {', '.join(counts)}"
    yield f"learns     {count:,} parameters"
    yield f"weights    {_size(weights)}"
    yield f"optimiser  {_size(states)} ({settings.optimiser})"
    yield f"average    {_size(average)}"
    rows, batch = objective.batches.size // parts(settings.accumulate)[0].count, objective.batches.size
    step, operations = cost_of_step(objective, settings)
    gradients = FLOAT * count
    yield f"a step     {_size(step)}, {rows} of {batch} examples at once, with gradients of {_size(gradients)}"
    kept = gradients if settings.accumulate > 1 else 0
    yield f"in all     {_size(weights + states + average + step + kept)} at most, beside torch and Python themselves"
    if settings.shard:
        decoder = FLOAT * sum(map(_numel, objective.components.autoencoder.parameters()))
        shared = weights - decoder + states + average + gradients
        yield f"sharded    {_size(shared)} of this fall to the processes in equal parts, beside a layer's at a time"
    examples = [stream.latents for stream in streams_of(objective)]
    held, pool = sum(map(len, examples)), sum(latents.nbytes for latents in examples)
    operations *= batch // rows
    yield f"operations {_size(operations, '')} a step, {_size(operations * settings.steps, '')} in all, there and back"
    seen = settings.steps * batch
    yield f"examples   {seen:,} in {settings.steps:,} steps, {seen / held:.1f} times {held:,}, latents of {_size(pool)}"
    made = "" if all(isinstance(stream.examples, Encoded) for stream in streams_of(objective)) else " the latents,"
    yield f"on disk    a checkpoint of {_size(saved + states + average)},{made} and the export"


def cost_of_step(objective: DiffusionObjective, settings: RunSettings) -> StepCost:
    """Return what a part of a step costs; its memory beside weights, optimiser and average, in float32."""
    rows = objective.batches.size // parts(settings.accumulate)[0].count
    latents, described, _ = first_readable(objective.batches.items.make, 0, TRIES)[1]
    captions = default_collate([described] * rows)
    objective.move(META)
    if settings.recompute_layers:
        recompute_layers_(objective.backbones())
    known = [weight for _, network in _parts(objective) for weight in network.parameters()]
    channels = objective.components.autoencoder.config.latent_channels
    x = torch.empty(rows, channels, *latents.shape[1:], device=META)

    def step() -> None:
        predicted = objective.predict(x, torch.zeros(len(x), dtype=torch.long, device=META), captions)
        torch.autograd.backward(predicted.square().mean())

    with fused_attention():
        with PeakMemory(known) as memory:
            step()
        with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:  # apart: it keeps what it has seen
            step()
    return StepCost(memory.peak, counter.get_total_flops())


def streams_of(objective: DiffusionObjective) -> Iterator[Stream]:
    """Return the streams that an objective learns from, one for each size of pictures."""
    waiting = [objective.batches.items.make]
    while waiting:
        served = waiting.pop()
        if isinstance(served, Stream):
            yield served
        elif isinstance(served, Mixed | Alternating):
            waiting += served.streams


def _parts(objective: DiffusionObjective) -> Iterator[tuple[str, nn.Module]]:
    components, unet = objective.components, objective.components.unet
    yield "U-Net", unet
    yield from (("text encoder", tower) for tower in components.text_encoders)
    yield "autoencoder", components.autoencoder
    held = {id(weight) for one in (unet, *components.text_encoders) for weight in one.parameters()}
    for name, network in objective.networks.items():
        if not {id(weight) for weight in network.parameters()} & held:
            yield name, network


def _numel(weight: Tensor) -> int:
    return weight.numel()


def _size(count: int, unit: str = "B") -> str:
    for factor, name in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if count >= factor:
            return f"{count / factor:.1f} {name}{unit}"
    return f"{count / 1e3:.1f} k{unit}"
