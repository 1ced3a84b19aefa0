"""Every name of a sampler that users bring, and the one table that it stands in."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from reverie.diffusion.samplers import SAMPLERS as SOLVERS
from reverie.errors import ReverieError
from reverie.requests.films import Animation
from reverie.requests.pictures import TextToImage
from reverie.requests.samplers import RECORDS, SAMPLERS, SCHEDULES, find_sampler, find_schedule


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
