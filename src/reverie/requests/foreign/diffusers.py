"""The arguments of a diffusers pipeline, where somebody stored them in a picture.

There is no convention; these are the names that a pipeline's call takes, and what scripts commonly write beside them.
Checked against diffusers 0.42.1 (schedulers/scheduling_*.py, pipelines/stable_diffusion*/).
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from reverie.requests.foreign.draft import (
    OFF,
    SCHEDULE_OF_DIFFUSERS,
    START_IS_MISSING,
    Draft,
    as_mapping,
    shorten,
)
from reverie.requests.texts import json_object

SIGNS = {"num_inference_steps", "guidance_scale"}  # one of these names tells that the arguments are a pipeline's
MODELS = ("model", "model_id", "model_name", "pretrained_model_name_or_path", "base_model", "_name_or_path")
NEUTRAL = {"num_images_per_prompt", "output_type", "library", "version", "date", "dpi", "Software", "class_name"}
NEUTRAL |= {"jfif", "jfif_version", "jfif_unit", "jfif_density", "workflow", "return_dict", "pipeline", "_class_name"}
TRUE = (True, "True", "true", 1)

# What a scheduler's configuration says that changes nothing where it holds this, besides what is off.
USUAL: dict[str, tuple[object, ...]] = {
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
    "solver_type": ("midpoint", "bh2"),
    "solver_order": (2,),
    "final_sigmas_type": ("zero",),
    "lower_order_final": (True,),
    "lambda_min_clipped": ("-inf", float("-inf")),
    "variance_type": ("fixed_small",),
    "interpolation_type": ("linear",),
    "predict_x0": (True,),
    "sigma_schedule": ("karras", "exponential"),
    "prediction_type": ("epsilon",),
}
# What belongs to the model, or acts with another setting alone.
OF_THE_MODEL = {"_class_name", "_diffusers_version", "num_train_timesteps", "beta_start", "beta_end", "beta_schedule"}
OF_THE_MODEL |= {
    "_use_default_values",
    "trained_betas",
    "steps_offset",
    "set_alpha_to_one",
    "skip_prk_steps",
    "timestep_type",
    "rho",
}
OF_THE_MODEL |= {"sample_max_value", "dynamic_thresholding_ratio", "clip_sample_range", "original_inference_steps"}
OF_THE_MODEL |= {"timestep_scaling", "disable_corrector", "sigma_min", "sigma_max", "noise_sampler_seed", "flow_shift"}
OF_THE_MODEL |= {"use_karras_sigmas", "use_exponential_sigmas", "timestep_spacing", "max_shift", "base_shift"}
OF_THE_MODEL |= {"time_shift_type"}
# Classes that lay Karras's levels, or exponential ones, between the noise of the spacing's first and last timestep.
BETWEEN_TIMESTEPS = {"EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler", "DPMSolverSDEScheduler"}
BETWEEN_TIMESTEPS |= {"KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"}


def read(data: Mapping[str, Any]) -> Draft | None:
    """Read the arguments of a call, or return None where they are not a pipeline's."""
    if "prompt" not in data or SIGNS.isdisjoint(data):
        return None
    draft = Draft(data)
    draft.text("prompt", "prompt")
    draft.text("negative", "negative_prompt")
    draft.number("steps", "num_inference_steps", kind=int)
    draft.number("guidance", "guidance_scale")
    if draft.fields.get("guidance") is not None:
        draft.fields["guidance"] = max(1.0, draft.fields["guidance"])  # there, all below 1 is no guidance
    draft.number("guidance_rescale", "guidance_rescale")
    draft.seed("seed", "generator_seed")
    draft.size(draft.take("width"), draft.take("height"))
    draft.clip_skip(draft.take("clip_skip"), add=1)  # theirs counts the layers that are left out, of SDXL too
    if draft.fields.get("clip_skip", 1) > 1 and draft.fields.get("guidance") != 1:
        draft.note("clip_skip: layers are left out for the negative prompt too here, for the prompt alone there")
    if (scheduler := draft.take("scheduler", "sampler")) is not None:
        read_scheduler(draft, scheduler)
    draft.model = str(next((draft.given.pop(name) for name in MODELS if name in draft.given), ""))
    if (strength := draft.take("strength")) is not None:
        draft.note(f"strength: {strength}; {START_IS_MISSING}")
    draft.rest(NEUTRAL)
    return draft


def read_scheduler(draft: Draft, given: object) -> None:
    """Read a scheduler: its class's name, or its configuration as JSON, as a mapping or as Python writes one."""
    config = dict(as_mapping(given) or _mapping(str(given)))
    for name in (
        "use_karras_sigmas",
        "use_exponential_sigmas",
        "use_beta_sigmas",
        "algorithm_type",
        "timestep_spacing",
    ):
        if (beside := draft.take(name)) is not None:
            config.setdefault(name, beside)
    name = str(config.get("_class_name") or config.get("class_name") or given).rpartition(".")[2].split("(")[0].strip()
    told_with_it = draft.sampler(_class(name, config))
    spacing = config.get("timestep_spacing")
    if config.get("use_karras_sigmas") in TRUE:
        draft.schedule("karras")
    elif config.get("use_exponential_sigmas") in TRUE:
        draft.schedule("exponential")
    else:
        own = {"ddim": "ddim", "plms": "ddim", "lcm": "lcm"}.get(str(draft.default("sampler")))
        draft.schedule(told_with_it or (spacing if spacing and spacing != "leading" else own) or SCHEDULE_OF_DIFFUSERS)
    levels = draft.default("schedule")
    if levels in ("karras", "exponential") and name in BETWEEN_TIMESTEPS and spacing in ("leading", "trailing"):
        draft.note(f"scheduler: timestep_spacing {spacing}; {levels} spans all the model's levels here")
    if (name, spacing) == ("DDIMScheduler", "linspace"):
        draft.note("scheduler: timestep_spacing linspace; DDIM goes to the levels it asks at here, to others there")
    if (name, draft.default("sampler")) == ("DPMSolverMultistepScheduler", "dpmpp_3m_sde"):
        draft.note("scheduler: solver_order 3; its third term has k-diffusion's sign here, another there")
    if config.get("thresholding") in TRUE:
        draft.set_number("threshold", config.get("dynamic_thresholding_ratio", 0.995))
        config.pop("thresholding")
    for setting, value in config.items():
        if setting not in OF_THE_MODEL and value not in OFF and value not in USUAL.get(setting, ()):
            draft.note(f"scheduler: {setting} {shorten(value)}")


def _class(name: str, config: dict[str, Any]) -> str:
    """Return the name of a sampler: one class of diffusers stands for several."""
    if name != "DPMSolverMultistepScheduler":
        return name
    stochastic = config.get("algorithm_type") == "sde-dpmsolver++"
    order = config.get("solver_order", 2)
    config["solver_order"] = 2  # told by the sampler
    solvers = {(1, False): "euler", (2, False): "dpmpp_2m", (2, True): "dpmpp_2m_sde", (3, True): "dpmpp_3m_sde"}
    return solvers.get((order, stochastic), f"DPMSolverMultistepScheduler of order {order}")


def _mapping(text: str) -> dict[str, Any]:
    """Read a text of JSON, or of Python's mapping; other texts are an empty one."""
    if "{" not in text:
        return {}
    inner = text[text.index("{") : text.rindex("}") + 1] if "}" in text else ""
    if (data := json_object(inner)) is not None:
        return data
    try:
        return as_mapping(ast.literal_eval(inner))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return {}
