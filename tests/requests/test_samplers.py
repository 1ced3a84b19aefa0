"""Every name of a sampler that users bring, and the one table that it stands in."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from reverie.diffusion.samplers import SAMPLERS as SOLVERS
from reverie.errors import ReverieError
from reverie.requests.films import Animation
from reverie.requests.pictures import TextToImage
from reverie.requests.samplers import RECORDS, SAMPLERS, SCHEDULES, few_steps, find_sampler, find_schedule


def test_every_name_is_found_as_it_is() -> None:
    assert all(find_sampler(name) == (name, None) for name in SAMPLERS)
    assert all(find_schedule(name) == name for name in SCHEDULES)


@pytest.mark.parametrize(
    ("name", "sampler", "schedule"),
    [
        ("euler_a", "euler_ancestral", None),
        ("Euler a", "euler_ancestral", None),
        ("k_euler_a", "euler_ancestral", None),
        ("Euler Ancestral", "euler_ancestral", None),
        ("euler-ancestral", "euler_ancestral", None),
        ("k_euler", "euler", None),
        ("EulerDiscreteScheduler", "euler", None),
        ("DPM++ 2M Karras", "dpmpp_2m", "karras"),
        ("DPM++ 2M SDE Exponential", "dpmpp_2m_sde", "exponential"),
        ("dpmpp_2m_sde_gpu", "dpmpp_2m_sde", None),
        ("dpm++2m", "dpmpp_2m", None),
        ("dpm++2s_a", "dpmpp_2s_ancestral", None),
        ("dpm_2_ancestral", "dpm2_ancestral", None),
        ("k_dpm_2_a_ka", "dpm2_ancestral", "karras"),
        ("kdpm_2_k", "dpm2", "karras"),
        ("uni_pc", "unipc_bh1", None),
        ("uni_pc_bh2", "unipc_bh2", None),
        ("UniPC", "unipc", None),
        ("UniPC Trailing", "unipc", "trailing"),
        ("pndm", "plms", None),
        ("LCMScheduler", "lcm", None),
        ("TCDScheduler", "tcd", None),
        ("TCD", "tcd", None),
        ("ddim_trailing", "ddim", "trailing"),
    ],
)
def test_names_of_other_programs(name: str, sampler: str, schedule: str | None) -> None:
    assert find_sampler(name) == (sampler, schedule)
    request = TextToImage(prompt="a", seed=1, sampler=name)
    assert (request.sampler, request.schedule) == (sampler, schedule or "karras")
    assert Animation.of({"keyframes": ("a", "b"), "seed": 1, "sampler": name}).sampler == sampler


def test_names_that_are_another_sampler_are_not_guessed() -> None:
    for name in (
        "dpmpp_2s",
        "dpm_fast",
        "DPM adaptive",
        "DPM++ 2M SDE Heun",
        "dpm++2mv2",
        "restart",
        "euler_cfg_pp",
        "",
    ):
        assert find_sampler(name) is None
    with pytest.raises(ReverieError, match="unknown sampler 'eulr'; did you mean 'euler'"):
        TextToImage(prompt="a", sampler="eulr")


def test_a_given_schedule_counts_before_that_of_the_name() -> None:
    request = TextToImage.of({"prompt": "a", "sampler": "DPM++ 2M Karras", "schedule": "SGM Uniform"})
    assert (request.sampler, request.schedule) == ("dpmpp_2m", "sgm_uniform")
    request = TextToImage.of(
        {"prompt": "a", "sampler": "DPM++ 2M SDE Exponential", "schedule": "karras"}
    )  # the default
    assert (request.sampler, request.schedule) == ("dpmpp_2m_sde", "exponential")


def test_eta_is_for_samplers_whose_own_it_can_replace() -> None:
    assert TextToImage(prompt="a", sampler="tcd", eta=0.5).eta == 0.5
    with pytest.raises(ReverieError, match="euler takes no eta; choose from ddim, euler_ancestral, "):
        TextToImage(prompt="a", sampler="euler", eta=0.5)
    for name, record in RECORDS.items():
        takes = inspect.signature(SOLVERS[name]).parameters.get("eta")
        assert record.eta is None or (takes is not None and takes.default == record.eta)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"timesteps": (999, 499), "sigmas": (9, 0)}, "all the noise levels that are visited; leave out timesteps"),
        ({"timesteps": (999, 499), "schedule": "trailing"}, "leave out schedule trailing"),
        ({"sigmas": (9, 0), "discard_penultimate": True}, "leave out discard_penultimate"),
        ({"timesteps": (499, 999)}, "timesteps 499,999 do not fall; give falling ones, such as 999,749"),
        ({"sigmas": (9,)}, "sigmas 9 do not fall; give falling ones, such as 14.6"),
        ({"timesteps": (999, 499), "steps": 3}, "timesteps 999,499 are 2 steps, not 3; leave steps out"),
    ],
)
def test_free_levels_that_contradict_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ReverieError, match=message):
        TextToImage.of({"prompt": "a", **fields})


def test_free_levels_are_counted_and_replace_a_model_s_own_spacing() -> None:
    own = {"steps": 2, "schedule": "trailing", "sampler": "lcm", "timesteps": (999, 499)}
    open_request = TextToImage.of({"prompt": "a", "seed": 1, "timesteps": None})
    followed = open_request.with_recommended(own)
    assert (followed.timesteps, followed.steps, followed.schedule) == ((999, 499), 2, "karras")
    assert TextToImage.from_json(followed.to_json()) == followed
    four = open_request.replace(steps=4).with_recommended(own)
    assert (four.timesteps, four.steps, four.schedule, four.sampler) == ((), 4, "trailing", "lcm")
    free = TextToImage(prompt="a", seed=1, sigmas=(9, 3, 1, 0)).with_recommended(own)
    assert (free.timesteps, free.steps, free.schedule, free.sampler) == ((), 3, "karras", "lcm")


@pytest.mark.parametrize(
    ("name", "title", "fields"),
    [  # as the files are called on the hub and on Civitai, and the arguments that the models' cards call diffusers with
        ("lcm-lora-sdv1-5", "LCM-LoRA", {"sampler": "lcm", "steps": 4, "guidance": 1}),
        ("LCM_Dreamshaper_v7", "LCM", {"sampler": "lcm", "steps": 4, "guidance": 8}),
        ("stabilityai/sd-turbo", "SD-Turbo", {"sampler": "euler", "schedule": "trailing", "steps": 1, "guidance": 1}),
        ("sd_xl_turbo_1.0_fp16", "SDXL-Turbo", {"sampler": "euler_ancestral", "steps": 1}),
        ("sdxl_lightning_1step_unet_x0", "SDXL-Lightning in one step", {"sampler": "euler", "steps": 1}),
        ("sdxl_lightning_1step_x0", "SDXL-Lightning in one step", {"sampler": "euler", "steps": 1}),
        ("sdxl_lightning_4step_lora", "SDXL-Lightning", {"sampler": "euler", "schedule": "trailing", "steps": 4}),
        ("sdxl_lightning_8step", "SDXL-Lightning", {"steps": 8, "guidance": 1}),
        ("Hyper-SDXL-1step-lora", "Hyper-SD in one step", {"sampler": "tcd", "eta": 1, "steps": 1}),
        ("Hyper-SDXL-1step-Unet-Comfyui.fp16", "Hyper-SDXL's U-Net", {"sampler": "lcm", "timesteps": (800,)}),
        ("Hyper-SD15-8steps-lora", "Hyper-SD", {"sampler": "ddim", "schedule": "trailing", "steps": 8, "guidance": 1}),
        ("Hyper-SD15-12steps-CFG-lora", "Hyper-SD with guidance", {"sampler": "ddim", "steps": 12, "guidance": 5}),
        ("TCD-SD15-LoRA", "TCD", {"sampler": "tcd", "schedule": "tcd", "eta": 0.3, "steps": 4, "guidance": 1}),
        ("dmd2_sdxl_4step_lora_fp16", "DMD2", {"sampler": "lcm", "schedule": "trailing", "steps": 4}),
        ("dmd2_sdxl_1step_unet_fp16", "DMD2 in one step", {"sampler": "lcm", "timesteps": (399,), "steps": 1}),
        ("pcm_sd15_smallcfg_2step_converted", "PCM", {"sampler": "tcd", "steps": 2, "eta": 0}),
        ("pcm_sdxl_normalcfg_8step_converted", "PCM with guidance", {"steps": 8, "guidance": 7.5}),
        ("sdxs-512-0.9", "SDXS", {"steps": 1, "guidance": 1}),
    ],
)
def test_families_of_few_steps_are_known_by_name(name: str, title: str, fields: dict[str, Any]) -> None:
    family = few_steps(name)
    assert family is not None
    assert family.title == title
    assert {field: family.fields()[field] for field in fields} == fields
    assert TextToImage(prompt="a").with_recommended(family.fields()).sampler == family.sampler
    assert (family.prediction == "x0") == name.endswith("x0")


def test_other_names_tell_no_family() -> None:
    for name in ("v1-5-pruned-emaonly", "sd_xl_base_1.0", "dreamshaperXL_v21TurboDPMSDE", "lightning_mix", "lcm", ""):
        assert few_steps(name) is None
