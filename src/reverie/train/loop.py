"""The training loop: take a batch, step each group of parameters, average the weights (EMA), log, save.

Nothing random lives outside (seed, step): an objective draws batch and noise of step n from that pair alone, so a run
that was killed and resumed from a checkpoint ends in the same bits as one that never stopped (at one thread count).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from reverie.data.loader import BatchPart
from reverie.errors import RequestWarning, ReverieError, choose, warn
from reverie.files import lock_folder
from reverie.runtime.kernels import hold_memory
from reverie.runtime.transform import pick_device
from reverie.train import begun
from reverie.train.checkpoint import check, latest, load_checkpoint, save_checkpoint
from reverie.train.ema import EMA, LONGEST, exponential, power_function
from reverie.train.layers import recompute_layers_
from reverie.train.log import Log, Meter, Silent, TrainingStep
from reverie.train.objective import Layered, MeasuredObjective, Objective, Paced, Tracing
from reverie.train.optimisers import ELEMENTWISE, OPTIMISERS, RATES, Diverged, learning_rate, make_optimisers
from reverie.train.parallel import (
    clip_gradients,
    first_ahead,
    is_first,
    parts,
    process_group,
    ranks,
    share_statistics_,
    sum_gradients,
)

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

UNMEASURED = "patience in [run] waits for a validation loss; give held_out in [data] as well"
VALIDATION = "validation"  # of what is measured: the loss of examples that are not learned from
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class RunSettings:
    """Set how long and how fast to learn; the section [run] of a recipe."""

    steps: int
    lr: float
    seed: NonNegativeInt = 0
    warmup: int = 100  # steps of linear growth of the learning rate
    decay: str = "cosine"  # of the learning rate, a key of RATES
    optimiser: str = "adamw"  # a key of OPTIMISERS
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    spare_gains: bool = False  # leaves gains, biases and other vectors out of the weight decay, as CLIP's paper does
    clip: float = 1.0  # largest norm of a group's gradient
    accumulate: PositiveInt = 1  # parts of a process's share of the batch, one after another in memory
    ema: float = 0.0  # largest decay of the averaged weights; 0 keeps no average
    ema_length: float = 0.0  # an average by a power function instead: how much of the run it reaches back, below 0.28
    log_every: int = 10
    save_every: int = 200
    sample_every: int = 1000
    patience: NonNegativeInt = 0  # after so many measurements without a lower validation loss the run ends; 0 is never
    threads: int = 0  # torch threads; 0 leaves torch's choice
    device: str = "auto"  # "cpu", "cuda", ...; "auto" takes a GPU where there is one
    recompute_layers: bool = False  # on the way back: half the layers' memory or less, for a third more time
    shard: bool = False  # leaves each process a part of all weights and what is kept for them (`sharding.py`)
    precision: str = "float32"  # in which networks multiply, a key of PRECISIONS; weights stay in float32

    def __post_init__(self) -> None:
        """Raise ReverieError for numbers that no run can use."""
        for name in ("steps", "lr", "log_every", "save_every", "sample_every"):
            if not getattr(self, name) > 0:
                raise ReverieError(f"{name} = {getattr(self, name)} in [run] of the recipe; give more than 0")
        if (self.ema and self.ema_length) or not 0 <= self.ema_length < LONGEST:
            given = f"ema = {self.ema}, ema_length = {self.ema_length} in [run] of the recipe"
            raise ReverieError(f"{given}; give one, a length below {LONGEST}")
        for name, table in (("decay", RATES), ("optimiser", OPTIMISERS), ("precision", PRECISIONS)):
            choose(f"{name} in [run]", getattr(self, name), table)
        if self.shard and (self.optimiser not in ELEMENTWISE or self.precision == "float16"):
            given = f"optimiser = {self.optimiser!r}, precision = {self.precision!r}"
            raise ReverieError(
                f"shard in [run] is for optimiser = {' or '.join(ELEMENTWISE)} in float32 or bfloat16, not {given}"
            )


def device_of(network: nn.Module) -> torch.device:
    """Return where a network's first parameter is."""
    return next(network.parameters()).device


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """Return the random numbers of one step, the same in every run and after every interruption."""
    return torch.Generator("cpu").manual_seed((seed * 1_000_003 + step) * 8 + stream)


class Learner:
    """Hold all that a run changes: the networks, an optimiser for each group of parameters, the moving average.

    In float16 small gradients would vanish, so losses are scaled up before the way back, and the scale is part of the
    state; a step whose gradients overflow is left out.
    """

    def __init__(self, objective: Objective, settings: RunSettings, device: torch.device | None = None) -> None:
        self.objective, self.settings = objective, settings
        if settings.recompute_layers:
            recompute_layers_(as_layered(objective, "recompute_layers").backbones())
        self.parts = parts(settings.accumulate)
        share_statistics_(objective.networks)
        self.in_parts = settings.shard
        self.shards = _shard(objective, device) if settings.shard else []
        if device is not None:
            objective.move(device)
        self.groups = objective.groups()
        paces = objective.paces() if isinstance(objective, Paced) else {}
        self.optimisers = {
            name: make_optimisers(parameters, settings, paces) for name, parameters in self.groups.items()
        }
        self.average = _average(objective.averaged, settings)
        self.validations: list[float] = []
        self.kind = device_of(objective.averaged).type
        if self.kind == "cpu":
            hold_memory()
        self.scaler = torch.amp.GradScaler(self.kind, enabled=settings.precision == "float16")

    def step(self, step: int) -> list[tuple[str, float]]:
        """Take one step and return its metrics."""
        metrics: list[tuple[str, float]] = []
        passes = [self._gradients(step, part, self.objective.losses(step, part)) for part in self.parts]
        with self._attention():  # on the way back too, where checkpointed parts are computed again
            for found in zip(*passes, strict=True):
                self._descend(found[0][0], learning_rate(self.settings, step), step)
                metrics += [item for _, more in found for item in more.items()]
        self.objective.after_step()
        if self.average is not None:
            self.average.update()
        return metrics

    def _attention(self) -> AbstractContextManager[None]:
        """Choose plain attention for half precision on a CPU, where a fused one takes eight times as long."""
        plain = self.kind == "cpu" and self.settings.precision != "float32"
        return sdpa_kernel(SDPBackend.MATH) if plain else nullcontext()

    def _next(
        self, losses: Iterator[tuple[str, Tensor, dict[str, float]]]
    ) -> tuple[str, Tensor, dict[str, float]] | None:
        """Compute the next loss in the precision of the run."""
        if self.settings.precision == "float32":
            return next(losses, None)
        with torch.autocast(self.kind, PRECISIONS[self.settings.precision]):
            return next(losses, None)

    def _check(self, value: Tensor, what: str, step: int, *seen: BatchPart) -> None:
        """Raise ReverieError where a loss or the norm of a gradient is not finite, naming what it was learned from."""
        if value.isfinite():
            return
        given = self.objective if isinstance(self.objective, Tracing) else None
        keys = [key for part in seen for key in given.keys(step, part)] if given else []
        learned = f", learned from {', '.join(keys)}: look at these" if keys else ""
        raise Diverged(
            f"the {what} became {value.item()} at step {step}{learned}; lower lr or raise warmup in the recipe, "
            "then start again, or go on from the last checkpoint with --resume"
        )

    def _gradients(
        self, step: int, part: BatchPart, losses: Iterator[tuple[str, Tensor, dict[str, float]]]
    ) -> Iterator[tuple[str, dict[str, float]]]:
        """Add the gradient of each loss of a part to those of its group, and yield group and metrics."""
        while (found := self._next(losses)) is not None:
            group, loss, metrics = found
            self._check(loss, f"loss of {group}", step, part)
            # Not autograd.grad: fused AdamW needs gradients laid out as their parameters, which backward sees to.
            # What is sharded is not what was computed with, and is the one group there is.
            inputs = None if self.shards else self.groups[group]
            torch.autograd.backward(self.scaler.scale(loss / self.parts[0].count), inputs=inputs)
            yield group, metrics

    def _descend(self, group: str, rate: float, step: int) -> None:
        """Step one group down the gradient that all parts of the batch have given it."""
        parameters, optimisers = self.groups[group], self.optimisers[group].values()
        sum_gradients(parameters)
        for optimiser in optimisers:
            self.scaler.unscale_(optimiser)
        norm = clip_gradients(parameters, self.settings.clip)
        if not self.scaler.is_enabled():  # which leaves out a step whose gradients overflow
            self._check(norm, f"gradient of {group}", step, *self.parts)
        for optimiser in optimisers:
            for options in optimiser.param_groups:
                options["lr"] = rate * options.get("pace", 1.0)  # a checkpoint written before there were paces has none
            self.scaler.step(optimiser)
            optimiser.zero_grad(set_to_none=True)
        self.scaler.update()

    @property
    def is_stalled(self) -> bool:
        """Tell whether the validation loss has not fallen for as long as the settings have patience."""
        patience, losses = self.settings.patience, self.validations
        return 0 < patience <= len(losses) - 1 - losses.index(min(losses)) if losses else False

    def measure(self) -> dict[str, float]:
        """Measure what the averaged weights have learned, where the objective can tell.

        Raises ReverieError where the settings have patience and there is no validation loss.
        """
        if isinstance(self.objective, MeasuredObjective):
            with self.ema_weights():
                measured = self.objective.measures()
        else:
            measured = {}
        if self.settings.patience:
            if VALIDATION not in measured:
                raise ReverieError(UNMEASURED)
            self.validations.append(measured[VALIDATION])
        return measured

    def _named_optimisers(self) -> Iterator[tuple[str, torch.optim.Optimizer]]:
        return ((group + suffix, one) for group, made in self.optimisers.items() for suffix, one in made.items())

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Swap in the EMA weights, where there are some, for the length of a `with` block; sharded, whole everywhere.

        All processes have to enter it.
        """
        with ExitStack() as held:
            if self.average is not None:
                held.enter_context(self.average.swap_in())
            if self.shards:
                from reverie.train.sharding import whole

                held.enter_context(whole(self.shards))
            yield

    def make_states(self) -> None:
        """Let the optimisers have their states, by a step after which nothing but the shapes is as it should be."""
        for parameter in (parameter for group in self.groups.values() for parameter in group):
            parameter.grad = torch.zeros_like(parameter)
        for _, optimiser in self._named_optimisers():
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that the rest of the run depends on."""
        state: dict[str, Any] = {
            "networks": self.objective.networks.state_dict(),
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self._named_optimisers()},
            "average": None if self.average is None else self.average.state_dict(),
        }
        state |= {"validations": self.validations} if self.settings.patience else {}
        return state | ({"scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state. Raises KeyError, ValueError or RuntimeError where it is of another recipe."""
        optimisers = dict(self._named_optimisers())
        if state["optimisers"].keys() != optimisers.keys() or (state["average"] is None) != (self.average is None):
            raise ValueError("other groups of parameters, or a moving average on one side only")
        self.objective.networks.load_state_dict(state["networks"])
        for name, optimiser in optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        self.validations = list(state.get("validations", []))
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])


def as_layered(objective: Objective, setting: str) -> Layered:
    """Return the objective. Raises ReverieError where its layers are not known, naming what in [run] asks for them."""
    if not isinstance(objective, Layered):
        raise ReverieError(f"{setting} in [run] is for U-Nets, ControlNets and CLIP; leave it out")
    return objective


def shardable(objective: Objective) -> list[nn.Module]:
    """Return the networks of an objective that processes may hold in parts. Raises ReverieError where none may be."""
    networks = [*as_layered(objective, "shard").backbones()]
    words = any(isinstance(module, nn.ParameterList) for module in objective.networks.modules())
    if words or len(objective.groups()) > 1:
        raise ReverieError("shard in [run] is for networks of one loss; leave it out, or [adversary] or [inversion]")
    return networks


def _shard(objective: Objective, device: torch.device | None) -> list[FSDPModule]:
    """Shard the networks of an objective over the processes there are. Raises ReverieError where that cannot be."""
    networks = shardable(objective)
    if ranks().size == 1:
        return []
    from reverie.train.sharding import shard_

    return shard_(networks, device or device_of(objective.averaged))


def _average(network: nn.Module, settings: RunSettings) -> EMA | None:
    if settings.ema_length:
        return EMA(network, power_function(settings.ema_length))
    return EMA(network, exponential(settings.ema)) if settings.ema else None


def train(
    build: Callable[[], Objective],
    settings: RunSettings,
    out: Path,
    *,
    resume: bool = False,
    sections: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[TrainingStep]:
    """Run the loop on the objective that `build` makes, yielding an event every `log_every` steps of the `settings`.

    Checkpoints, samples and at last the export are written into `out`.

    Of several processes that torchrun started only the first writes and yields; all read the same checkpoint.
    `sections` are the recipe's tables: a run that goes on with others than it had warns of what changed. Raises
    ReverieError where `out` holds a run already and `resume` is not set, nothing to resume from, or another process is
    training into it.
    """
    check(out, resume)
    recipe = begun.deciding(sections, asdict(settings))
    device = pick_device(settings.device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    with lock_folder(out, "training into") if is_first() else nullcontext(), process_group(device) as device:
        yield from filter(lambda event: is_first(), _learn(build, settings, out, recipe, device))


def _learn(
    build: Callable[[], Objective], settings: RunSettings, out: Path, recipe: Mapping[str, Any], device: torch.device
) -> Iterator[TrainingStep]:
    """Go on from the last checkpoint, or begin; take the steps, and export."""
    found = latest(out)
    if is_first() and found:
        _tell_changes(out, recipe)
    elif is_first():
        begun.write(out, recipe)
    with first_ahead():
        objective = build()
    learner = Learner(objective, settings, device)
    start = load_checkpoint(found, learner) if found else 0
    with Log(out, start) if is_first() else Silent() as log:
        yield from _steps(learner, out, log, start, recipe)
    with learner.ema_weights():
        if is_first():
            objective.export(out / "export")


def _tell_changes(out: Path, recipe: Mapping[str, Any]) -> None:
    """Warn of what a run goes on with that decides the result and is not as it was."""
    if changed := begun.changes(out, recipe):
        said = f"going on with another recipe than {out} was trained with so far: {'; '.join(changed)}"
        warn(said, RequestWarning, stacklevel=3)


def _steps(
    learner: Learner, out: Path, log: Log | Silent, start: int, recipe: Mapping[str, Any]
) -> Iterator[TrainingStep]:
    """Take the steps from `start` on."""
    settings = learner.settings
    meter = Meter(settings.steps)
    for step in range(start, settings.steps):
        if learner.is_stalled:
            break
        meter.add(learner.step(step))
        done = step + 1
        sampled = done % settings.sample_every == 0 or done == settings.steps
        measured = learner.measure() if sampled else {}
        last = done == settings.steps or learner.is_stalled
        if last or measured or done % settings.log_every == 0:  # in all processes, which average their metrics
            event = meter.event(done, learning_rate(settings, step), measured)
            log.event(event)
            yield event
            meter.restart()
        if last or done % settings.save_every == 0:
            save_checkpoint(out, done, learner)
            if is_first():
                begun.write(out, recipe)
        if sampled:
            _sample(learner, log, done)


def _sample(learner: Learner, log: Log | Silent, step: int) -> None:
    with learner.ema_weights():
        sheet = learner.objective.samples() if is_first() else None
    if sheet is not None:
        log.sheet(sheet, step)
