"""Time budgets: the settings nearest to the exact picture that a measured profile of the machine allows."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch

from reverie.errors import ReverieError
from reverie.files import cache_folder, write_text
from reverie.generate.canvas import doubles
from reverie.generate.image import fill_in, stream
from reverie.requests.base import steps_taken
from reverie.requests.parts import ControlInput, IPAdapterInput
from reverie.requests.pictures import ImageToImage, Outpaint, TextToImage
from reverie.system import StableDiffusion

SAMPLER = "dpmpp_2m"  # asks once a step, and comes near with few
LADDER = (
    (20, 1),
    (16, 1),
    (14, 1),
    (12, 1),
    (20, 2),
    (10, 1),
    (16, 2),
    (12, 2),
    (8, 1),
    (20, 3),
    (10, 2),
    (8, 2),
    (6, 1),
)
"""Steps, and for how many of them the inner levels are computed once: the nearest to 20 exact steps first.

Measured with the bundled model: PSNR of the pictures to those of 20 steps (docs/measured/performance.md).
"""
SPARE = 0.95  # of the time is planned: steps do not take equally long


@dataclass(frozen=True)
class Profile:
    """Hold what a machine was measured to take, in seconds, for one picture of a size with a model.

    `step` is a step of the whole U-Net, `reused` one on inner levels that an earlier step gave, `rest` the decoding.
    """

    step: float
    reused: float
    rest: float

    def seconds(self, steps: int, every: int) -> float:
        """Return how long a picture takes in so many steps, of which every so manieth is whole."""
        whole = math.ceil(steps / every)
        return whole * self.step + (steps - whole) * self.reused + self.rest


@dataclass(frozen=True)
class Plan:
    """Hold the settings for a time, and how long the pictures should take with them, in seconds."""

    changes: dict[str, object]
    seconds: float
    profile: Profile


def plan(profile: Profile, request: TextToImage, within: float) -> Plan:
    """Choose a request's steps and `cache_steps` so that its pictures take no longer than `within` seconds.

    Raises ReverieError where even the quickest settings take longer, and for what is not measured.
    """
    check_measurable(request)
    strength = request.strength if isinstance(request, ImageToImage | Outpaint) else 1.0
    first = (request.steps, 1)
    for steps, every in (first, *(pair for pair in LADDER if pair[0] <= request.steps and pair != first)):
        taken = steps_taken(steps, strength)
        seconds = request.count * profile.seconds(taken, every)
        if taken and seconds <= SPARE * within:
            return Plan({"steps": steps, "cache_steps": every, "sampler": SAMPLER}, seconds, profile)
    raise ReverieError(
        f"{within:g} s are too short for this on this machine, where a step takes {profile.step:.2g} s and decoding "
        f"{profile.rest:.2g} s; give more time, a smaller size or a lower count"
    )


def check_measurable(request: TextToImage) -> None:
    """Raise ReverieError for a request whose steps are not all alike, or not for a plan to choose."""
    if request.hires is not None or request.refiner is not None or request.sampler in ("lcm", "tcd"):
        raise ReverieError(
            "a time budget is for one pass of one model; leave out hires, refiner, and samplers lcm and tcd"
        )
    if request.tile_size is not None:
        raise ReverieError("a time budget was not measured in tiles; leave out `tile_size`", field="tile_size")
    if request.cfg_pp or request.eta is not None:
        raise ReverieError(f"a time budget takes the sampler {SAMPLER}; leave out `cfg_pp` and `eta`")
    if request.timesteps or request.sigmas:
        raise ReverieError("a time budget chooses the number of steps; leave out timesteps and sigmas")


def measure(system: StableDiffusion, request: TextToImage, clock: Callable[[], float] = time.perf_counter) -> Profile:
    """Draw four steps, every second of them whole, and tell how long they took; the first, which packs, is not counted.

    `request` has its size filled in. What steers it by pictures does so at every step here, whenever it is to act.
    """
    changes: dict[str, object] = {"count": 1, "steps": 4, "cache_steps": 2, "sampler": SAMPLER}
    for name in ("controls", "ip_adapters"):
        changes[name] = tuple(one.replace(start=0.0, end=1.0) for one in getattr(request, name))
    if isinstance(request, ImageToImage | Outpaint):
        changes["strength"] = 1.0
    probe = request.replace(**changes)
    times = [clock()]
    for _ in stream(system, probe):
        times.append(clock())
    _, reused, step, last = (after - before for before, after in pairwise(times))
    return Profile(step, reused, max(0.0, last - reused))


def machine_profile(system: StableDiffusion, request: TextToImage) -> Profile:
    """Return the profile of this machine, kept in the user's cache; measure it where it is not there or damaged."""
    check_measurable(request)
    request = fill_in(system, request)
    if doubles(system):
        raise ReverieError(f"a time budget computes levels more seldom, and {system.name} cannot; give steps")
    file = cache_folder() / "profiles" / f"{_key(system, request)}.json"
    try:
        return Profile(**{name: float(value) for name, value in json.loads(file.read_text()).items()})
    except (OSError, ValueError, TypeError, AttributeError):
        profile = measure(system, request)
        _keep(file, profile)
        return profile


def _key(system: StableDiffusion, request: TextToImage) -> str:
    """Name all that the times depend on."""
    capabilities = torch.backends.cpu.get_cpu_capability()
    machine = (platform.node(), torch.__version__, capabilities, torch.get_num_threads(), str(system.device))
    block = system.unet.down_blocks[-1].get_submodule("resnets.0")
    model = (system.name, str(system.dtype), str(system.unet.config), type(block).__name__)
    guided = (request.guidance == 1, request.guidance_interval, bool(request.perturbed_guidance))
    asked: list[ControlInput | IPAdapterInput] = [*request.controls, *request.ip_adapters]
    steering = [(one.model, one.weight > 0) for one in asked]
    seen = (request.kind, getattr(request, "image_guidance", None), request.freeu is not None, len(request.regions))
    drawing = (request.width, request.height, *guided, request.merge_tokens, *seen, *steering)
    return hashlib.sha256(repr((machine, model, drawing)).encode()).hexdigest()[:32]


def _keep(file: Path, profile: Profile) -> None:
    """Write a profile, where there is a place for it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(asdict(profile)))
    except (OSError, ReverieError):
        return  # it will be measured again
