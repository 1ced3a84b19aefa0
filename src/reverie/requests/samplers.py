"""The samplers and spacings of noise levels: one record each, with the names that other programs give them.

And the families of few-step models, known by their files' names, with the settings that their authors ask for.

A name is compared without case, spaces and marks, so that "DPM++ 2M", "dpmpp_2m" and "dpm++2m" are one; a leading "k_"
and a trailing "_gpu" say where it runs and are left out. Sources of the names: stable-diffusion-webui 1.10
(modules/sd_samplers_*.py, sd_schedulers.py), ComfyUI 0.3.64 (comfy/samplers.py), diffusers 0.42.1, InvokeAI 6.14
(backend/stable_diffusion/schedulers/schedulers.py), stable-diffusion.cpp 97d2990 (sample_method_to_str), Fooocus 2.5.5
(modules/flags.py), sdkit 2.1.1 (generate/sampler), Draw Things (the labels of its metadata).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias


@dataclass(frozen=True)
class SamplerRecord:
    """A sampler: AUTOMATIC1111's label, other programs' names, and where its steps draw their noise from.

    `automatic` is the spacing that AUTOMATIC1111's "Automatic" stands for. `noise` is "none" for samplers that draw
    noise at the start alone, "fresh" for a draw per step, "brownian" where k-diffusion reads it off a Brownian path.
    `eta` is the share of noise that a step draws afresh, None for samplers in which it is fixed. `by_timestep` says
    that steps are counted in the model's timesteps, so that the sampler takes its schedule; `linear` that a step goes
    straight towards one x0, as CFG++ is defined for.
    """

    label: str
    others: tuple[str, ...] = ()
    automatic: str = "normal"
    noise: Literal["none", "fresh", "brownian"] = "none"
    eta: float | None = None
    by_timestep: bool = False
    linear: bool = False


RECORDS = {
    "ddpm": SamplerRecord("DDPM", ("DDPMScheduler",), noise="fresh"),
    "ddim": SamplerRecord("DDIM", ("DDIMScheduler",), automatic="a1111_ddim", eta=0.0, linear=True),
    "plms": SamplerRecord("PLMS", ("pndm", "PNDMScheduler"), automatic="a1111_ddim"),
    "euler": SamplerRecord("Euler", ("EulerDiscreteScheduler",), linear=True),
    "euler_ancestral": SamplerRecord("Euler a", ("EulerAncestralDiscreteScheduler",), noise="fresh", eta=1.0),
    "heun": SamplerRecord("Heun", ("HeunDiscreteScheduler",)),
    "dpm2": SamplerRecord("DPM2", ("kdpm_2", "KDPM2DiscreteScheduler"), automatic="karras"),
    "dpm2_ancestral": SamplerRecord(
        "DPM2 a", ("kdpm_2_a", "KDPM2AncestralDiscreteScheduler"), automatic="karras", noise="fresh", eta=1.0
    ),
    "lms": SamplerRecord("LMS", ("LMSDiscreteScheduler",)),
    "dpmpp_2s_ancestral": SamplerRecord("DPM++ 2S a", automatic="karras", noise="fresh", eta=1.0),
    "dpmpp_2m": SamplerRecord("DPM++ 2M", ("DPMSolverMultistepScheduler",), automatic="karras"),
    "dpmpp_sde": SamplerRecord("DPM++ SDE", ("DPMSolverSDEScheduler",), automatic="karras", noise="brownian", eta=1.0),
    "dpmpp_2m_sde": SamplerRecord("DPM++ 2M SDE", automatic="exponential", noise="brownian", eta=1.0),
    "dpmpp_3m_sde": SamplerRecord("DPM++ 3M SDE", automatic="exponential", noise="brownian", eta=1.0),
    "unipc": SamplerRecord("UniPC", ("UniPCMultistepScheduler",), automatic="a1111_unipc"),
    "unipc_bh1": SamplerRecord("UniPC bh1", ("uni_pc",)),
    "unipc_bh2": SamplerRecord("UniPC bh2"),
    "lcm": SamplerRecord("LCM", ("LCMScheduler",), automatic="a1111_lcm", noise="fresh"),
    "tcd": SamplerRecord(
        "TCD", ("TCDScheduler", "sample_tcd"), automatic="sgm_uniform", noise="fresh", eta=0.3, by_timestep=True
    ),
}
# What AUTOMATIC1111 calls a spacing, and after it the names of others; ours itself is one of them.
SPACINGS: dict[str, tuple[str, ...]] = {
    "normal": ("Uniform", "Normal", "Discrete", "native"),
    "karras": ("Karras", "ka", "k"),
    "exponential": ("Exponential",),
    "sgm_uniform": ("SGM Uniform",),
    "linspace": (),
    "leading": (),
    "trailing": (),
    "ddim": (),
    "lcm": (),
    "tcd": (),
    "simple": ("Simple",),
    "ddim_uniform": ("DDIM", "DDIM uniform"),
    "align_your_steps": ("Align Your Steps",),
    "align_your_steps_xl": (),
    "gits": ("GITS", "GITS[coeff=1.2]"),
    "a1111_ddim": (),
    "a1111_unipc": (),
    "a1111_lcm": (),
}
DEFAULT_SCHEDULE = "karras"
SAMPLERS, SCHEDULES = tuple(RECORDS), tuple(SPACINGS)
if TYPE_CHECKING:  # the names written out for editors are in options.py
    SamplerName: TypeAlias = str
    ScheduleName: TypeAlias = str
else:
    SamplerName, ScheduleName = Literal[SAMPLERS], Literal[SCHEDULES]


class FoundSampler(NamedTuple):
    """What a name stands for: our sampler, and our spacing where the name tells it, as "DPM++ 2M Karras" does."""

    sampler: SamplerName
    schedule: ScheduleName | None = None


def plain_name(name: str) -> str:
    """Reduce a name to lower-case letters and digits, "++" as "pp" and "ancestral" as "a", without k_ and _gpu."""
    name = re.sub(r"^(sample_|k_)+|_gpu$", "", name.strip().lower().replace("++", "pp"))
    return re.sub(r"[^a-z0-9]", "", name.replace("ancestral", "a")).removesuffix("scheduler")


_NAMES = [(alias, name) for name, record in RECORDS.items() for alias in (name, record.label, *record.others)]
_SAMPLERS = {plain_name(alias): name for alias, name in reversed(_NAMES)} | dict(_NAMES)  # as written, else reduced
_SPACINGS = {plain_name(alias): name for name, others in SPACINGS.items() for alias in (name, *others)}


def find_sampler(name: str) -> FoundSampler | None:
    """Return the sampler that any program's name stands for, with the spacing that the name ends with, or None."""
    plain = plain_name(name)
    if (exact := _SAMPLERS.get(name) or _SAMPLERS.get(plain)) is not None:
        return FoundSampler(exact)
    for ending, schedule in _SPACINGS.items():
        if plain.endswith(ending) and plain.removesuffix(ending) in _SAMPLERS:
            return FoundSampler(_SAMPLERS[plain.removesuffix(ending)], schedule)
    return None


def find_schedule(name: str) -> ScheduleName | None:
    """Return the spacing of noise levels that any program's name stands for, or None."""
    return name if name in SPACINGS else _SPACINGS.get(plain_name(name))


def schedule_label(name: ScheduleName) -> str:
    """Return AUTOMATIC1111's label of a spacing, or our own name where it has none."""
    return next(iter(SPACINGS[name]), name)


def resolve_names(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's fields with other programs' names of samplers and spacings turned into ours.

    A spacing that the sampler's name ends with, as "DPM++ 2M Karras", counts where none but the default is given. Names
    that nobody has stay, to be refused.
    """
    fields = dict(fields)
    sampler, schedule = fields.get("sampler"), fields.get("schedule")
    if isinstance(sampler, str) and sampler not in RECORDS and (found := find_sampler(sampler)):
        fields["sampler"] = found.sampler
        if found.schedule is not None and schedule in (None, DEFAULT_SCHEDULE):
            fields["schedule"] = found.schedule
    if isinstance(schedule, str) and schedule not in SPACINGS and (spacing := find_schedule(schedule)):
        fields["schedule"] = spacing
    return fields


@dataclass(frozen=True)
class FewSteps:
    """Settings that the authors of a family of few-step models ask for, as fields of requests.

    `names` is a pattern of its files' names, reduced to lower-case words with hyphens between; a number that it finds
    is that of the steps. `prediction` is what such a U-Net predicts, where it is not what its base model does.
    """

    title: str
    names: str
    sampler: str
    schedule: str = "trailing"
    steps: int = 1
    guidance: float = 1.0
    eta: float | None = None
    timesteps: tuple[float, ...] | None = None
    prediction: str | None = None

    def fields(self) -> dict[str, Any]:
        """Return the settings by the names of requests' fields."""
        names = ("guidance", "steps", "sampler", "schedule", "eta", "timesteps")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


LATENT_CONSISTENCY = FewSteps("LCM", "lcm-(?:dreamshaper-v7|sdxl|ssd-1b)", "lcm", "lcm", 4, guidance=8.0)
FEW_STEPS = (
    FewSteps("LCM-LoRA", "lcm-lora|lcm-(?:sd15|sdxl)-lora", "lcm", "lcm", 4),
    LATENT_CONSISTENCY,
    FewSteps("SD-Turbo", "sd-turbo", "euler"),
    FewSteps("SDXL-Turbo", "sd-?xl-turbo", "euler_ancestral"),
    FewSteps("SDXL-Lightning in one step", "sdxl-lightning-1step(?:-unet)?-x0", "euler", prediction="x0"),
    FewSteps("SDXL-Lightning", r"sdxl-lightning-(\d)step", "euler"),
    FewSteps("Hyper-SD in one step", "hyper-sd(?:15|xl)-1step-lora", "tcd", "tcd", eta=1.0),
    FewSteps("Hyper-SDXL's U-Net", "hyper-sdxl-1step-unet", "lcm", timesteps=(800.0,)),
    FewSteps("Hyper-SD with guidance", r"hyper-sd(?:15|xl)-(\d+)steps?-cfg-lora", "ddim", guidance=5.0),
    FewSteps("Hyper-SD", r"hyper-sd(?:15|xl)-(\d+)steps?-lora", "ddim"),
    FewSteps("TCD", "tcd-sd(?:15|21-base|xl)-lora", "tcd", "tcd", 4, eta=0.3),
    FewSteps("DMD2 in one step", "dmd2-sdxl-1step", "lcm", timesteps=(399.0,)),
    FewSteps("DMD2", r"dmd2-sdxl-(\d)step", "lcm"),  # of 4 steps the trailing timesteps are 999, 749, 499, 249
    FewSteps("PCM", r"pcm-sd(?:15|xl)-smallcfg-(\d+)step", "tcd", "tcd", eta=0.0),
    FewSteps("PCM with guidance", r"pcm-sd(?:15|xl)-normalcfg-(\d+)step", "tcd", "tcd", eta=0.0, guidance=7.5),
    FewSteps("PCM like LCM", "pcm-sd(?:15|xl)-lcmlike-lora", "lcm", "lcm", 4),
    FewSteps("SDXS", "sdxs-512", "euler"),
)
"""Of those that fit, the first counts. Sources: the models' cards on the hub, whose guidance of 0 is 1 here, their
schedulers' configurations, and PCM's demo (G-U-N/Phased-Consistency-Model 58658b6, demo/app.py)."""


def few_steps(name: str) -> FewSteps | None:
    """Return the family of few-step models that a file's name, without suffix, tells, with its number of steps."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower())
    for family in FEW_STEPS:
        if match := re.search(rf"(?:^|-)(?:{family.names})(?:-|$)", plain):
            return replace(family, steps=int(match[1])) if match.groups() else family
    return None
