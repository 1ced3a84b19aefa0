"""The arguments of diffusers' pipelines, with schedulers by class or by configuration (diffusers 0.42.1)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from reverie.requests.pictures import TextToImage
from reverie.requests.records import Record

Read = Callable[[dict[str, str]], Record]
GIVEN = {"prompt": "a bear", "negative_prompt": "red", "num_inference_steps": 25, "guidance_scale": 7.5, "seed": 3}
GIVEN |= {"scheduler": "EulerAncestralDiscreteScheduler", "model_id": "a/b", "eta": 0.5, "clip_skip": 1}


@pytest.mark.parametrize("as_text", [True, False])
def test_arguments(as_text: bool, read_png: Read) -> None:
    chunks = {name: str(value) for name, value in GIVEN.items()} if as_text else {"Comment": json.dumps(GIVEN)}
    assert read_png(chunks) == Record(
        TextToImage(
            prompt="a bear",
            negative="red",
            steps=25,
            guidance=7.5,
            seed=3,
            width=64,
            height=48,
            sampler="euler_ancestral",
            schedule="leading",
            clip_skip=2,
        ),
        "a/b",
        (
            "clip_skip: layers are left out for the negative prompt too here, for the prompt alone there",
            "eta: 0.5",
        ),
    )


KARRAS = {"use_karras_sigmas": True}


@pytest.mark.parametrize(
    ("config", "sampler", "schedule", "notes"),
    [
        (KARRAS | {"_class_name": "DPMSolverMultistepScheduler"}, "dpmpp_2m", "karras", 0),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
            "dpmpp_2m_sde",
            "leading",
            0,
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++", "solver_order": 3},
            "dpmpp_3m_sde",
            "leading",
            1,
        ),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_exponential_sigmas": True}, "dpmpp_2m", "exponential", 0),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_beta_sigmas": True}, "dpmpp_2m", "leading", 1),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 1}, "euler", "leading", 0),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "dpmpp_2m", "leading", 1),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"}, "dpmpp_2m", "leading", 1),
        ({"_class_name": "UniPCMultistepScheduler", "solver_type": "bh1"}, "unipc", "leading", 1),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}, "euler", "trailing", 0),
        (KARRAS | {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}, "euler", "karras", 1),
        (KARRAS | {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "linspace"}, "euler", "karras", 0),
        (KARRAS | {"_class_name": "UniPCMultistepScheduler", "timestep_spacing": "leading"}, "unipc", "karras", 0),
        ({"_class_name": "DDIMScheduler", "timestep_spacing": "leading", "steps_offset": 1}, "ddim", "ddim", 0),
        ({"_class_name": "DDIMScheduler", "timestep_spacing": "linspace"}, "ddim", "linspace", 1),
        ({"_class_name": "EulerDiscreteScheduler", "rescale_betas_zero_snr": True}, "euler", "leading", 1),
        ({"_class_name": "DEISMultistepScheduler"}, "dpmpp_2m", "leading", 1),
    ],
)
def test_configurations(config: dict[str, Any], sampler: str, schedule: str, notes: int, read_png: Read) -> None:
    model = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    given = {name: value for name, value in GIVEN.items() if name not in ("eta", "clip_skip")}
    given["scheduler"] = model | config
    for written in (json.dumps(given), json.dumps(given | {"scheduler": f"FrozenDict({given['scheduler']})"})):
        record = read_png({"parameters": written})
        assert (record.request.sampler, record.request.schedule) == (sampler, schedule)
        assert len(record.notes) == notes


def test_a_guidance_below_one_is_none(read_png: Read) -> None:
    """pipeline_stable_diffusion.py: do_classifier_free_guidance is guidance_scale > 1."""
    record = read_png({"parameters": json.dumps(GIVEN | {"guidance_scale": 0.0})})
    assert record.request.guidance == 1
    assert record.notes == ("eta: 0.5",)  # no negative prompt is heard, so none is encoded otherwise
