"""Whole sampling runs against the schedulers of diffusers: the same network, the same noise, the same levels.

diffusers' schedulers keep float32 tables, hence the tolerance. Where diffusers defines a thing otherwise than
k-diffusion, whose definition we follow, the test says so.
"""

from __future__ import annotations

import importlib
from functools import partial

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from reverie.diffusion.denoiser import PREDICTIONS, Denoise, denoiser
from reverie.diffusion.guidance import consistency
from reverie.diffusion.noise import Noise
from reverie.diffusion.samplers import SAMPLERS, bh1, dpmpp_2s, dpmpp_3m, pick_sampler, unipc
from reverie.diffusion.schedule import Schedule, to_ve, to_vp, zero_terminal_snr
from reverie.diffusion.spacings import SPACINGS, visit
from reverie.diffusion.step import Sampler
from reverie.requests.samplers import few_steps

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers, numpy 2

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
LEADING = {"timestep_spacing": "leading", "steps_offset": 1, **BETAS}
SHAPE = (4, 6, 6)
SEEDS = [3, 4]


def theirs(scheduler, network, monkeypatch: pytest.MonkeyPatch, options: dict | None = None) -> Tensor:
    """Run a scheduler as a pipeline does, every draw of its noise replaced by ours."""
    noise = Noise(SEEDS, SHAPE)
    module = importlib.import_module(type(scheduler).__module__)
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: noise.next())
    x = noise.initial() * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, t), t.expand(len(x)))
        x = scheduler.step(output, t, x, **(options or {})).prev_sample
    return x


def ours(sampler: Sampler, denoise: Denoise, sigmas: Tensor) -> Tensor:
    noise = Noise(SEEDS, SHAPE)
    *_, last = sampler(denoise, to_ve(noise.initial(), sigmas[0].item()), sigmas, noise)
    return to_vp(last.x, sigmas[-1].item())


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    assert (actual - expected).abs().max() / expected.abs().max() < 1e-5


def levels(scheduler) -> Tensor:
    return scheduler.sigmas.double().unique().flip(0)


@pytest.mark.parametrize(
    ("name", "scheduler", "options"),
    [
        ("ddim", partial(DDIMScheduler, clip_sample=False, set_alpha_to_one=False), {}),
        ("plms", partial(PNDMScheduler, skip_prk_steps=True, set_alpha_to_one=False), {}),
    ],
)
@pytest.mark.parametrize("steps", [2, 5, 50])
def test_ddim_and_plms_as_compvis_runs_them(
    name: str, scheduler, options: dict, steps: int, schedule: Schedule, network, monkeypatch
) -> None:
    reference = scheduler(**LEADING)
    reference.set_timesteps(steps)
    denoise = denoiser(network, schedule, PREDICTIONS["eps"].scalings)
    actual = ours(SAMPLERS[name], denoise, SPACINGS["ddim"](schedule, steps))
    assert_equal(actual, theirs(reference, network, monkeypatch, options))


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_noise(eta: float, schedule: Schedule, network, monkeypatch) -> None:
    reference = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **LEADING)
    reference.set_timesteps(20)
    denoise = denoiser(network, schedule, PREDICTIONS["eps"].scalings)
    actual = ours(partial(SAMPLERS["ddim"], eta=eta), denoise, SPACINGS["ddim"](schedule, 20))
    assert_equal(actual, theirs(reference, network, monkeypatch, {"eta": eta}))


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        ("ddpm", partial(DDPMScheduler, clip_sample=False, variance_type="fixed_small")),
        ("ddim", partial(DDIMScheduler, clip_sample=False, set_alpha_to_one=True)),
        ("euler", EulerDiscreteScheduler),
        ("euler_ancestral", EulerAncestralDiscreteScheduler),
        ("heun", HeunDiscreteScheduler),
        ("dpm2", KDPM2DiscreteScheduler),
        ("dpm2_ancestral", KDPM2AncestralDiscreteScheduler),
        ("lms", LMSDiscreteScheduler),
    ],
)
@pytest.mark.parametrize("kind", ["eps", "v"])
def test_samplers_at_leading_timesteps(
    name: str, scheduler, kind: str, schedule: Schedule, network, monkeypatch
) -> None:
    reference = scheduler(prediction_type={"eps": "epsilon", "v": "v_prediction"}[kind], **LEADING)
    reference.set_timesteps(20)
    denoise = denoiser(network, schedule, PREDICTIONS[kind].scalings)
    assert_equal(
        ours(SAMPLERS[name], denoise, SPACINGS["leading"](schedule, 20)), theirs(reference, network, monkeypatch)
    )


@pytest.mark.parametrize(
    ("sampler", "scheduler"),
    [
        (SAMPLERS["dpmpp_2m"], partial(DPMSolverMultistepScheduler, solver_order=2)),
        # 3M: diffusers takes its second step by the exact phi_2 under solver_type="heun", as k-diffusion always does;
        # and it falls back to second order at the last but one step unless told not to.
        (dpmpp_3m, partial(DPMSolverMultistepScheduler, solver_order=3, solver_type="heun", lower_order_final=False)),
        (SAMPLERS["dpmpp_2m_sde"], partial(DPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++")),
        # 3M SDE has no oracle here: diffusers has -1/2 in its phi_3 where k-diffusion has +1/2.
        (SAMPLERS["unipc"], UniPCMultistepScheduler),
        (partial(unipc, order=1), partial(UniPCMultistepScheduler, solver_order=1)),
        (SAMPLERS["unipc_bh2"], partial(UniPCMultistepScheduler, solver_order=3)),
    ],
    ids=["2m", "3m", "2m_sde", "unipc", "unipc-1", "unipc-3"],
)
@pytest.mark.parametrize("steps", [3, 8, 20])
def test_multistep_solvers_on_the_scheduler_s_own_levels(
    sampler: Sampler, scheduler, steps: int, schedule: Schedule, network, monkeypatch
) -> None:
    reference = scheduler(timestep_spacing="linspace", final_sigmas_type="zero", **BETAS)
    reference.set_timesteps(steps)
    denoise = denoiser(network, schedule, PREDICTIONS["eps"].scalings)
    assert_equal(ours(sampler, denoise, levels(reference)), theirs(reference, network, monkeypatch))


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        (SAMPLERS["unipc"], {}),
        (SAMPLERS["unipc_bh1"], {"solver_order": 3, "solver_type": "bh1"}),
        (partial(unipc, variant=bh1), {"solver_type": "bh1"}),
    ],
)
def test_unipc_may_end_at_the_first_timestep(
    sampler: Sampler, options, schedule: Schedule, network, monkeypatch
) -> None:
    """Where diffusers' variant bh1 has to end: a step to 0 is infinitely long, and its B(h) with it."""
    reference = UniPCMultistepScheduler(timestep_spacing="linspace", final_sigmas_type="sigma_min", **options, **BETAS)
    reference.set_timesteps(10)
    denoise = denoiser(network, schedule, PREDICTIONS["eps"].scalings)
    assert_equal(ours(sampler, denoise, levels(reference)), theirs(reference, network, monkeypatch))


def test_2s_where_its_midpoints_are_levels_of_the_scheduler(schedule: Schedule, monkeypatch) -> None:
    """diffusers' singlestep solver spends two levels on a step of ours; even in log sigma, one is our midpoint."""
    reference = DPMSolverSinglestepScheduler(solver_order=2, use_exponential_sigmas=True, **BETAS)
    reference.set_timesteps(11)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(2 * x - x.roll(1, dims=-1))  # of t it must not depend: diffusers truncates it

    denoise = denoiser(network, schedule, PREDICTIONS["eps"].scalings)
    sigmas = levels(reference)
    assert_equal(
        ours(dpmpp_2s, denoise, torch.cat([sigmas[:-1:2], sigmas[-1:]])), theirs(reference, network, monkeypatch)
    )


@pytest.mark.parametrize("steps", [1, 4, 8])
def test_lcm(steps: int, schedule: Schedule, network, monkeypatch) -> None:
    reference = LCMScheduler(**BETAS)
    reference.set_timesteps(steps)
    denoise = consistency(denoiser(network, schedule, PREDICTIONS["eps"].scalings), schedule)
    assert_equal(
        ours(SAMPLERS["lcm"], denoise, SPACINGS["lcm"](schedule, steps)), theirs(reference, network, monkeypatch)
    )


@pytest.mark.parametrize("steps", [1, 4, 8])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_tcd(steps: int, eta: float, kind: str, schedule: Schedule, network, monkeypatch) -> None:
    kinds = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
    reference = TCDScheduler(prediction_type=kinds[kind], **BETAS)
    reference.set_timesteps(steps)
    denoise = denoiser(network, schedule, PREDICTIONS[kind].scalings)
    sampler = partial(SAMPLERS["tcd"], eta=eta)
    assert_equal(
        ours(sampler, denoise, SPACINGS["tcd"](schedule, steps)),
        theirs(reference, network, monkeypatch, {"eta": eta}),
    )


# The files' names, and the schedulers and arguments that their cards call diffusers with; without guidance there.
EULER = partial(EulerDiscreteScheduler, timestep_spacing="trailing")
CARDS = {
    "lcm-lora-sdv1-5": (LCMScheduler, {"num_inference_steps": 4}, {}),
    "sd-turbo": (EULER, {"num_inference_steps": 1}, {}),
    "sd_xl_turbo_1.0": (
        partial(EulerAncestralDiscreteScheduler, timestep_spacing="trailing"),
        {"num_inference_steps": 1},
        {},
    ),
    "sdxl_lightning_1step_unet_x0": (partial(EULER, prediction_type="sample"), {"num_inference_steps": 1}, {}),
    "sdxl_lightning_4step_unet": (EULER, {"num_inference_steps": 4}, {}),
    "Hyper-SD15-1step-lora": (TCDScheduler, {"num_inference_steps": 1}, {"eta": 1.0}),
    "Hyper-SDXL-1step-Unet": (LCMScheduler, {"timesteps": [800]}, {}),
    "Hyper-SD15-8steps-lora": (
        partial(DDIMScheduler, timestep_spacing="trailing", clip_sample=False),
        {"num_inference_steps": 8},
        {},
    ),
    "TCD-SD15-LoRA": (TCDScheduler, {"num_inference_steps": 4}, {"eta": 0.3}),
    "dmd2_sdxl_4step_lora": (LCMScheduler, {"timesteps": [999, 749, 499, 249]}, {}),
    "dmd2_sdxl_1step_unet": (LCMScheduler, {"timesteps": [399]}, {}),
    "pcm_sd15_smallcfg_4step": (TCDScheduler, {"num_inference_steps": 4}, {"eta": 0.0}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CARDS)
def test_families_of_few_steps_as_their_cards_call_diffusers(
    name: str, schedule: Schedule, network, monkeypatch
) -> None:
    scheduler, steps, options = CARDS[name]
    family = few_steps(name)
    assert family is not None
    reference = scheduler(**BETAS)
    reference.set_timesteps(**steps)
    denoise = denoiser(network, schedule, PREDICTIONS[family.prediction or "eps"].scalings)
    if family.sampler == "lcm":
        denoise = consistency(denoise, schedule)
    sigmas = SPACINGS[family.schedule](schedule, family.steps)
    if family.timesteps is not None:
        sigmas = visit(schedule, torch.tensor(family.timesteps, dtype=torch.float64))
    if reference.init_noise_sigma > 1:  # Euler starts from sigma there, of which ours take the root of sigma^2 + 1
        monkeypatch.setattr(type(reference), "init_noise_sigma", (reference.init_noise_sigma**2 + 1) ** 0.5)
    actual = ours(pick_sampler(family.sampler, schedule, family.eta), denoise, sigmas)
    assert_equal(actual, theirs(reference, network, monkeypatch, options))


def test_v_prediction_from_pure_noise(schedule: Schedule, network, monkeypatch) -> None:
    """Zero terminal SNR, trailing timesteps: the recipe of Lin et al. (2305.08891)."""
    reference = DDIMScheduler(
        clip_sample=False,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        **BETAS,
    )
    reference.set_timesteps(10)
    flawless = zero_terminal_snr(schedule)
    denoise = denoiser(network, flawless, PREDICTIONS["v"].scalings)
    actual = ours(SAMPLERS["ddim"], denoise, SPACINGS["trailing"](flawless, 10))
    expected = theirs(reference, network, monkeypatch)
    assert (actual - expected).abs().max() / expected.abs().max() < 1e-3  # an alpha_bar of 2^-24 stands for their 0
