"""The noise levels of each spacing against k-diffusion's formulas and the timesteps of diffusers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from diffusers.schedulers import AysSchedules

from reverie.diffusion.schedule import SCHEDULES, Schedule, zero_terminal_snr
from reverie.diffusion.spacings import SPACINGS
from reverie.errors import ReverieError, choose

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def visited(schedule: Schedule, name: str, steps: int) -> list[float]:
    return [round(t, 6) for t in schedule.sigma_to_t(SPACINGS[name](schedule, steps)[:-1]).tolist()]


# These have the levels and the ends of programs that they repeat.
OTHERS = ("ddim_uniform", "a1111_ddim", "a1111_unipc", "align_your_steps", "align_your_steps_xl")


@pytest.mark.parametrize("name", [name for name in SPACINGS if name not in OTHERS])
@pytest.mark.parametrize("steps", [1, 2, 3, 20, 50])
def test_every_spacing_falls_from_much_noise_to_the_end(name: str, steps: int) -> None:
    for schedule in (*(make() for make in SCHEDULES.values()), zero_terminal_snr(SCHEDULES["scaled_linear"]())):
        sigmas = SPACINGS[name](schedule, steps)
        assert sigmas.shape == (steps + 1,)
        assert sigmas.dtype == torch.float64
        assert (sigmas.diff() < 0).all()
        assert sigmas[-1] == (schedule.sigma_min if name in ("ddim", "tcd") else 0)
        if steps == 1:
            assert sigmas[0] == pytest.approx(schedule.sigma_max)


@pytest.mark.parametrize("steps", [1, 4, 25])
def test_karras_and_exponential_follow_their_formulas(schedule: Schedule, steps: int) -> None:
    low, high = schedule.sigma_min, schedule.sigma_max
    for i in range(steps):
        ramp = i / max(steps - 1, 1)
        expected = (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
        assert SPACINGS["karras"](schedule, steps)[i].item() == pytest.approx(expected)
        assert SPACINGS["exponential"](schedule, steps)[i].item() == pytest.approx(high * (low / high) ** ramp)


def test_the_timesteps_are_those_of_the_definitions(schedule: Schedule) -> None:
    assert visited(schedule, "normal", 4) == [999, 666, 333, 0]
    assert visited(schedule, "sgm_uniform", 3) == [999, 666, 333]
    assert visited(schedule, "leading", 50) == list(range(981, 0, -20))
    assert visited(schedule, "ddim", 50) == list(range(981, 0, -20))
    assert visited(schedule, "trailing", 4) == [999, 749, 499, 249]
    assert visited(schedule, "lcm", 4) == [999, 759, 499, 259]


def test_aligned_steps_are_diffusers_and_lie_on_lines_in_log_sigma(schedule: Schedule) -> None:
    for name, kind in (("align_your_steps", "StableDiffusion"), ("align_your_steps_xl", "StableDiffusionXL")):
        ten = SPACINGS[name](schedule, 10)
        # whose table differs from the authors' page by up to 0.0035
        assert (ten - torch.tensor(AysSchedules[f"{kind}Sigmas"], dtype=torch.float64)).abs().max() < 4e-3
        twenty = SPACINGS[name](schedule, 20)
        torch.testing.assert_close(twenty[::2], ten)
        torch.testing.assert_close(twenty[1:18:2], (ten[:-2] * ten[1:-1]).sqrt())


GITS = {  # of coefficient 1.20 in ComfyUI 349c5aa, comfy_extras/nodes_gits.py
    2: (14.61464119, 0.803307),
    5: (14.61464119, 2.84484982, 1.24153244, 0.59516323, 0.25053367),
    10: (
        *(14.61464119, 5.85520077, 2.84484982, 1.67050016, 1.08895338),
        *(0.74807048, 0.50118381, 0.32104823, 0.19894916, 0.09824532),
    ),
    20: (
        *(14.61464119, 7.49001646, 4.65472794, 3.07277966, 2.19988537, 1.61558151, 1.24153244, 0.95350921, 0.74807048),
        *(0.59516323, 0.50118381, 0.41087446, 0.34370604, 0.29807833, 0.25053367, 0.22545385, 0.19894916, 0.17026083),
        *(0.13792117, 0.09824532),
    ),
}


@pytest.mark.parametrize("steps", [*GITS, 33])
def test_searched_levels_are_those_of_comfyui(schedule: Schedule, steps: int) -> None:
    """Of more than 20 steps it interpolates the logarithms of those of 20, from below."""
    twenty = np.log([*GITS[20], 0.02916753][::-1])
    between = np.exp(np.interp(np.linspace(0, 1, steps + 1), np.linspace(0, 1, 21), twenty))[::-1]
    expected = torch.tensor([*GITS.get(steps, between[:-1]), 0.0], dtype=torch.float64)
    torch.testing.assert_close(SPACINGS["gits"](schedule, steps), expected, rtol=1e-4, atol=0)


def test_levels_of_comfyui(schedule: Schedule) -> None:
    """ComfyUI 0.3.64, comfy/samplers.py: simple_scheduler, ddim_scheduler."""
    assert visited(schedule, "simple", 4) == [999, 749, 499, 249]
    assert visited(schedule, "simple", 7) == [999 - int(k * 1000 / 7) for k in range(7)]
    assert visited(schedule, "ddim_uniform", 30) == list(range(991, 0, -33))
    assert len(SPACINGS["ddim_uniform"](schedule, 30)) == 32


def test_levels_of_automatic1111(schedule: Schedule) -> None:
    """stable-diffusion-webui 1.10: sd_samplers_timesteps.py, sd_samplers_timesteps_impl.py, sd_samplers_lcm.py."""
    t = [round(t) for t in schedule.sigma_to_t(SPACINGS["a1111_ddim"](schedule, 30)).tolist()]
    assert t == [1 + t for t in range(0, 1000, 1000 // 30)][::-1]
    assert len(SPACINGS["a1111_ddim"](schedule, 20)) == 20
    unipc = schedule.sigma_to_t(SPACINGS["a1111_unipc"](schedule, 20)).tolist()
    assert unipc == pytest.approx([999 * (1 - k / 20) for k in range(21)], abs=1e-6)
    assert [round(t) for t in schedule.sigma_to_t(SPACINGS["a1111_lcm"](schedule, 4)[:-1]).tolist()] == [
        999,
        672,
        346,
        19,
    ]
    with pytest.raises(ReverieError, match="give 2 or more"):
        SPACINGS["a1111_ddim"](schedule, 1)


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("steps", [2, 7, 16, 30, 50, 999])
def test_timesteps_equal_those_of_diffusers(schedule: Schedule, spacing: str, steps: int) -> None:
    reference = DDIMScheduler(timestep_spacing=spacing, steps_offset=1, **BETAS)
    reference.set_timesteps(steps)
    assert visited(schedule, spacing, steps) == reference.timesteps.tolist()


@pytest.mark.parametrize("steps", [1, 4, 8, 50])
def test_lcm_timesteps_equal_those_of_diffusers(schedule: Schedule, steps: int) -> None:
    reference = LCMScheduler(**BETAS)
    reference.set_timesteps(steps, original_inference_steps=50)
    assert visited(schedule, "lcm", steps) == reference.timesteps.tolist()


@pytest.mark.parametrize("name", SPACINGS)
@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps_is_an_error(schedule: Schedule, name: str, steps: int) -> None:
    with pytest.raises(ReverieError, match=f"{steps}"):
        SPACINGS[name](schedule, steps)


def test_more_steps_than_timesteps_is_an_error_where_timesteps_are_whole(schedule: Schedule) -> None:
    for name, most in {"linspace": 1000, "leading": 999, "trailing": 1000, "ddim": 999, "lcm": 50}.items():
        assert (SPACINGS[name](schedule, most).diff() < 0).all()
        with pytest.raises(ReverieError, match=f"give 1 to {most}"):
            SPACINGS[name](schedule, most + 1)
    assert (SPACINGS["normal"](schedule, 1500).diff() < 0).all()


def test_an_unknown_spacing_is_named_with_the_known() -> None:
    with pytest.raises(ReverieError, match=r"^unknown spacing 'karas'; choose from normal, karras, exponential"):
        choose("spacing", "karas", SPACINGS)
