"""diffusers' own scheduler tests, run with our samplers: a scheduler whose `step` is one of `SAMPLERS`.

The tests are not in diffusers' package. `DIFFUSERS_SOURCE=path/to/a/checkout pytest -m slow -k suite` runs them; the
checkout belongs to the installed release or is a little older. Each loop keeps its own model, configuration and
expected sum and mean.
"""

from __future__ import annotations

import importlib
import os
import sys
import unittest
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from reverie.diffusion.denoiser import PREDICTIONS
from reverie.diffusion.samplers import SAMPLERS, unipc
from reverie.diffusion.schedule import Schedule, to_ve, to_vp
from reverie.diffusion.step import Past, Sampler, Step

SOURCE = os.environ.get("DIFFUSERS_SOURCE", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SOURCE, reason="DIFFUSERS_SOURCE names no checkout of diffusers"),
    pytest.mark.filterwarnings("ignore"),
]
KINDS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


class Interval:
    """One step of a sampler that asks for each evaluation, where samplers call the network themselves."""

    def __init__(self, sampler: Sampler, x: Tensor, sigmas: Tensor, noise: Any, past: Past) -> None:
        self.asked, self.answers = SimpleQueue[Any](), SimpleQueue[Tensor]()

        def denoise(x: Tensor, sigma: float) -> Tensor:
            self.asked.put((x, sigma))
            return self.answers.get(timeout=20)

        def run() -> None:
            try:
                self.asked.put(next(iter(sampler(denoise, x, sigmas, noise, past))))
            except Exception as error:
                self.asked.put(error)

        Thread(target=run, daemon=True).start()
        self.take()

    def answer(self, x0: Tensor) -> None:
        """Give x0 = denoise(x, sigma), and go on to the next evaluation or to the end of the step, `done`."""
        self.answers.put(x0)
        self.take()

    def take(self) -> None:
        self.done: Step | None = None
        match self.asked.get(timeout=20):
            case Exception() as error:
                raise error
            case Step() as step:
                self.done, self.x, self.sigma = step, step.x, step.sigma
            case (x, sigma):
                self.x, self.sigma = x, sigma


def shim(scheduler: type, choose: Callable[[Any], Sampler], variance_preserving: bool) -> type:
    """Return the scheduler with our sampler in place of its `step`; its tables of noise levels stay its own."""

    class Shim(scheduler):
        active: Interval | None = None
        left: Tensor | None = None  # noise levels still to go down
        past: Past = ()

        def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
            super().set_timesteps(*args, **kwargs)
            self.active, self.left, self.past = None, None, ()

        def levels(self, timestep: Any) -> Tensor:
            """Return the falling noise levels from a timestep on, without the repeats of solvers of second order."""
            schedule = Schedule(self.alphas_cumprod.double())
            at = int((self.timesteps == timestep).nonzero()[0])
            if hasattr(self, "sigmas"):
                return self.sigmas.double()[at:].unique().flip(0)
            final = getattr(self, "final_alpha_cumprod", torch.tensor(1.0)).double()
            return torch.cat([schedule.sigmas[self.timesteps[at:].long()], ((1 - final) / final).sqrt()[None]])

        def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.left is None:
                self.left = self.levels(timestep)
            if len(self.left) == 1:  # two equal levels at the end: a step of no length
                return SimpleNamespace(prev_sample=sample)
            generator = kwargs.get("generator")
            noise = SimpleNamespace(next=lambda: torch.randn(sample.shape, generator=generator))
            sigma = self.left[0].item() if self.active is None else self.active.sigma
            x = to_ve(sample, sigma) if variance_preserving else sample
            run = self.active or Interval(choose(self), x, self.left, noise, self.past)
            # The tests hand `step` the sample that they scaled for the network; its slope is what the solver goes by.
            run.answer(run.x - (x - self.x0(model_output, x, sigma)))
            self.active = run
            if getattr(self, "_step_index", None) is not None:
                self._step_index += 1  # by which `scale_model_input` finds its noise level
            self.sample = sample if run.done is None else None  # by which dpm2's knows that it is between two levels
            if run.done is not None:
                self.active, self.left, self.past = None, self.left[1:], run.done.past
            return SimpleNamespace(prev_sample=to_vp(run.x, run.sigma) if variance_preserving else run.x)

        def x0(self, model_output: Tensor, x: Tensor, sigma: float) -> Tensor:
            schedule, level = Schedule(self.alphas_cumprod.double()), torch.tensor(sigma, dtype=torch.float64)
            c = PREDICTIONS[KINDS[self.config.prediction_type]].scalings(schedule, level)
            x0 = c.c_skip * x + c.c_out * model_output
            if self.config.get("clip_sample"):
                x0 = x0.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
            return self._threshold_sample(x0.float()) if self.config.get("thresholding") else x0

    Shim.__name__ = scheduler.__name__
    return Shim


SUITES: dict[str, tuple[str, Callable[[Any], Sampler], bool]] = {
    "ddim": ("DDIMScheduler", lambda s: SAMPLERS["ddim"], True),
    "ddpm": ("DDPMScheduler", lambda s: SAMPLERS["ddpm"], True),
    "euler": ("EulerDiscreteScheduler", lambda s: SAMPLERS["euler"], False),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", lambda s: SAMPLERS["euler_ancestral"], False),
    "heun": ("HeunDiscreteScheduler", lambda s: SAMPLERS["heun"], False),
    "kdpm2_discrete": ("KDPM2DiscreteScheduler", lambda s: SAMPLERS["dpm2"], False),
    "kdpm2_ancestral": ("KDPM2AncestralDiscreteScheduler", lambda s: SAMPLERS["dpm2_ancestral"], False),
    "lms": ("LMSDiscreteScheduler", lambda s: SAMPLERS["lms"], False),
    "dpm_multi": ("DPMSolverMultistepScheduler", lambda s: SAMPLERS["dpmpp_2m"], True),
    "unipc": ("UniPCMultistepScheduler", lambda s: partial(unipc, order=s.config.solver_order), True),
}


def loops() -> Iterator[Any]:
    """Give every loop of diffusers' tests for the schedulers that we have a sampler for."""
    if not SOURCE:
        return
    package = ModuleType("diffusers_tests")  # they are called `tests`, as ours are
    package.__path__ = [str(Path(SOURCE) / "tests")]
    sys.modules["diffusers_tests"] = package
    for name in SUITES:
        module = importlib.import_module(f"diffusers_tests.schedulers.test_scheduler_{name}")
        for case in vars(module).values():
            if isinstance(case, type) and issubclass(case, unittest.TestCase) and case.__module__ == module.__name__:
                for test in sorted(t for t in dir(case) if t.startswith(("test_full_loop", "test_fullloop"))):
                    yield pytest.param(name, case, test, id=f"{name}-{case.__name__}-{test}")


OTHERWISE = {
    "DDIMSchedulerTest.test_full_loop_with_no_set_alpha_to_one": "its last step has no length but clips once more",
    "DDPMSchedulerTest.test_full_loop_with_noise": "its float32 table gives the first betas three digits",
    **{
        f"UniPCMultistepScheduler{kind}Test.test_full_loop_with_karras{more}": "corrects in a last step of no length"
        for kind in ("", "1D")
        for more in ("", "_and_v_prediction")
    },
    "LMSDiscreteSchedulerTest.test_full_loop_with_noise": "started midway, it weighs one slope by fourth order",
}
"""Loops that cannot agree, and why."""


@pytest.mark.parametrize(("name", "case", "test"), list(loops()))
def test_their_loops_hold_with_our_samplers(name: str, case: type[unittest.TestCase], test: str) -> None:
    import diffusers

    if (reason := OTHERWISE.get(f"{case.__name__}.{test}")) is not None:
        pytest.xfail(reason)
    scheduler, choose, variance_preserving = SUITES[name]
    ours = type(
        case.__name__,
        (case,),
        {"scheduler_classes": (shim(getattr(diffusers, scheduler), choose, variance_preserving),)},
    )
    getattr(ours(test), test)()
