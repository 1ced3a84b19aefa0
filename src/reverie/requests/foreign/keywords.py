"""What do the arguments of a diffusers pipeline ask for, where somebody stored them in a picture?

There is no convention; these are the names that a pipeline's call takes, and what scripts commonly write beside them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from reverie.requests.base import SCHEDULES
from reverie.requests.foreign.draft import SCHEDULE_OF_DIFFUSERS, Draft

SAMPLERS = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "PNDMScheduler": "plms",
    "LMSDiscreteScheduler": "lms",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "HeunDiscreteScheduler": "heun",
    "KDPM2DiscreteScheduler": "dpm2",
    "KDPM2AncestralDiscreteScheduler": "dpm2_ancestral",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "DPMSolverSDEScheduler": "dpmpp_sde",
    "UniPCMultistepScheduler": "unipc",
    "LCMScheduler": "lcm",
}
SPACINGS = {name: name for name in SCHEDULES}
OWN_SPACING = {"ddim": "ddim", "plms": "ddim", "lcm": "lcm"}
SIGNS = {"num_inference_steps", "guidance_scale"}  # one of these names tells that the arguments are a pipeline's
MODELS = ("model", "model_id", "model_name", "pretrained_model_name_or_path", "base_model")
NEUTRAL = {"num_images_per_prompt", "output_type", "library", "version", "date", "dpi", "Software", "class_name"}
NEUTRAL |= {"jfif", "jfif_version", "jfif_unit", "jfif_density", "workflow"}


def understands(texts: Mapping[str, object]) -> bool:
    """Tell whether names are those of a diffusers pipeline's arguments."""
    return "prompt" in texts and not SIGNS.isdisjoint(texts)


def read(data: dict[str, Any]) -> Draft:
    """Read the arguments of a call."""
    draft, given = Draft(), dict(data)
    draft.text("prompt", given.pop("prompt", None))
    draft.text("negative", given.pop("negative_prompt", None) or "")
    draft.number("steps", given.pop("num_inference_steps", None), int)
    draft.number("guidance", given.pop("guidance_scale", None))
    draft.number("guidance_rescale", given.pop("guidance_rescale", None))
    draft.seed(given.pop("seed", given.pop("generator_seed", None)))
    draft.size(given.pop("width", None), given.pop("height", None))
    if (skip := given.pop("clip_skip", None)) not in (None, "None", ""):
        draft.fields["clip_skip"] = 1 + int(skip)  # theirs counts the layers that are left out
    _scheduler(draft, given)
    draft.model = next((str(given.pop(name)) for name in MODELS if name in given), "")
    if strength := given.pop("strength", None):
        draft.miss(f"strength: {strength}; the picture that it started from is not in the file")
    for name, value in given.items():
        if name not in NEUTRAL and value not in (None, "", "None", [], {}, False):
            draft.miss(f"{name}: {value}")
    return draft


def _scheduler(draft: Draft, given: dict[str, Any]) -> None:
    name = given.pop("scheduler", given.pop("sampler", None))
    if not name:
        return
    config = name if isinstance(name, dict) else {}
    kind = str(config.get("_class_name", name)).rpartition(".")[2]
    draft.sampler(re.sub(r"\W.*", "", kind), SAMPLERS)
    sampler = str(draft.fields["sampler"])
    if config.get("use_karras_sigmas") or given.pop("use_karras_sigmas", False) in (True, "True", "true"):
        spacing = "karras"
    else:
        spacing = OWN_SPACING.get(sampler, str(config.get("timestep_spacing") or SCHEDULE_OF_DIFFUSERS))
    draft.schedule(spacing, SPACINGS)
