"""A distilled student leads in one step, or in one a phase, to where its teacher's path ends."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reverie.checkpoints.load import Components, Recommended
from reverie.data.loader import WHOLE, BatchPart
from reverie.diffusion.denoiser import ScheduleConfig, denoiser
from reverie.diffusion.noise import Noise
from reverie.diffusion.samplers import euler
from reverie.diffusion.schedule import to_ve
from reverie.diffusion.spacings import trailing
from reverie.errors import ReverieError
from reverie.train.diffusion import SampleSheet
from reverie.train.distill import Adversary, DistillObjective, DistillSettings, jump, whole_student
from reverie.train.loop import Learner, RunSettings
from reverie.train.losses import pseudo_huber

CONFIG = ScheduleConfig(prediction="v")
SCHEDULE = CONFIG.schedule()
MEANS, DEVIATION = (-1.0, 1.5), 0.3  # of a mixture of two normal distributions, in equal shares
SHEET = SampleSheet(("",), 8, 8, 1)


class Mixture(nn.Module):
    """Predict v of the mixture exactly, and what a small network adds to it: nothing, to begin with."""

    def __init__(self) -> None:
        super().__init__()
        self.learned = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
        nn.init.zeros_(self.learned[-1].weight)
        nn.init.zeros_(self.learned[-1].bias)

    def forward(self, x_vp: Tensor, t: Tensor, context: Tensor) -> Tensor:
        sigma = SCHEDULE.t_to_sigma(t).to(x_vp).view(-1, 1, 1, 1)
        x, variance = x_vp * (1 + sigma**2).sqrt(), DEVIATION**2 + sigma**2
        means = torch.tensor(MEANS).view(1, 1, 1, 1, -1)
        share = (-((x[..., None] - means) ** 2) / (2 * variance[..., None])).softmax(-1)
        posterior = (DEVIATION**2 * x[..., None] + sigma[..., None] ** 2 * means) / variance[..., None]
        x0 = (share * posterior).sum(-1)
        v = (x / (1 + sigma**2) - x0) * (1 + sigma**2).sqrt() / sigma
        level = (t.to(x_vp) / 1000).view(-1, 1, 1, 1).expand_as(x_vp)
        return v + self.learned(torch.stack([x_vp, level], -1))[..., 0]


class Critic(nn.Module):
    """Give each sample a logit by the features below."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2))
        self.last = nn.Linear(64, 1)
        nn.init.zeros_(self.last.weight)

    def forward(self, found: tuple[Tensor, Tensor]) -> Tensor:
        return self.last(self.layers(torch.stack(found, -1))).flatten(1)


def features(x_vp: Tensor, t: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """Return what there is to see of a sample: itself, and its timestep."""
    return x_vp, (t.to(x_vp) / 1000).view(-1, 1, 1, 1).expand_as(x_vp)


@dataclass
class Samples:
    """Serve samples of the mixture."""

    size: int = 256

    def __call__(self, step: int, part: BatchPart = WHOLE) -> tuple[Tensor, list[str], Tensor]:
        generator = torch.Generator().manual_seed(step)
        means = torch.tensor(MEANS)[torch.randint(2, (self.size,), generator=generator)]
        x0 = means + DEVIATION * torch.randn(self.size, generator=generator)
        return x0.view(-1, 1, 1, 1), [""] * self.size, torch.ones(self.size)


def toy(unet: nn.Module, adversary: Adversary | None = None, **settings: Any) -> DistillObjective:
    """Make the objective of a toy that hears nothing."""
    text = nn.Module()
    text.forward = lambda tokens: SimpleNamespace(last=tokens)  # type: ignore[method-assign]
    components: Any = Components(
        tokenizers=(lambda texts: torch.zeros(len(texts), 1),),  # type: ignore[arg-type]
        text_encoders=(text,),  # type: ignore[arg-type]
        unet=unet,  # type: ignore[arg-type]
        autoencoder=nn.Module(),  # type: ignore[arg-type]
        schedule_config=CONFIG,
        recommended=Recommended(guidance=1.0),
    )
    student, chosen = whole_student(components.unet), DistillSettings(**settings)
    return DistillObjective(components, student, Samples(), chosen, 0, SHEET, adversary)  # type: ignore[arg-type]


def ends(unet: nn.Module, steps: int) -> Tensor:
    """Walk paths from noise to their ends by Euler steps."""
    count = 4000
    sigmas = trailing(SCHEDULE, steps)
    denoise = denoiser(lambda x, t: unet(x, t, x), SCHEDULE, toy(Mixture()).prediction.scalings)
    noise = torch.randn(count, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        *_, last = euler(denoise, to_ve(noise, sigmas[0].item()), sigmas, Noise([0], (1, 1, 1), torch.device("cpu")))
    return last.x.flatten()


@cache
def distilled(phases: int, ending: str, weight: float = 0.0, lr: float = 2e-2) -> tuple[nn.Module, nn.Module]:
    """Return a teacher and the student that it taught, against an adversary of a weight; tests must not change them."""
    torch.manual_seed(0)
    teacher, adversary = Mixture(), Adversary(features, Critic(), weight) if weight else None
    objective = toy(teacher, adversary, phases=phases, ending=ending, levels=8, decay=0.0, huber=0.1)
    learner = Learner(objective, RunSettings(steps=300, lr=lr, warmup=10, ema=0.98, betas=(0.5, 0.99)))
    for step in range(300):
        learner.step(step)
    with learner.ema_weights():
        return teacher, deepcopy(objective.averaged)


def energy_distance(one: Tensor, other: Tensor) -> float:
    """Return 2 E|X - Y| - E|X - X'| - E|Y - Y'|, which is 0 for equal distributions alone (Szekely and Rizzo 2013)."""
    across, within, without = ((a[:, None] - b).abs().mean() for a, b in ((one, other), (one, one), (other, other)))
    return (2 * across - within - without).item()


@pytest.mark.parametrize(("phases", "ending", "steps"), [(1, "edge", 1), (2, "edge", 2), (1, "later", 2)])
def test_a_students_steps_lead_where_many_of_the_teacher_lead(phases: int, ending: str, steps: int) -> None:
    teacher, student = distilled(phases, ending)
    led, wanted, before = ends(student, steps), ends(teacher, 8), ends(teacher, steps)
    assert (led - wanted).abs().mean() < 0.2 * (before - wanted).abs().mean()
    assert energy_distance(led, wanted) < 0.03 * energy_distance(before, wanted)
    assert led.mean() == pytest.approx(wanted.mean().item(), abs=0.05)
    assert led.std() == pytest.approx(wanted.std().item(), rel=0.05)
    for quantile in (0.1, 0.3, 0.7, 0.9):
        assert led.quantile(quantile) == pytest.approx(wanted.quantile(quantile).item(), abs=0.1)
    assert (led < 0.2).float().mean() == pytest.approx(0.5, abs=0.05)  # both parts, in equal shares


def test_an_adversary_brings_a_single_step_nearer_to_the_data() -> None:
    """One prediction that serves all ends blurs the furthest jump; what is told from data is sharpened."""
    (teacher, alone), (_, against) = distilled(1, "later"), distilled(1, "later", 3.0, 1e-2)
    wanted = ends(teacher, 8)
    far, near = (energy_distance(ends(student, 1), wanted) for student in (alone, against))
    assert near < 0.75 * far < 0.25 * energy_distance(ends(teacher, 1), wanted)


@dataclass
class Reference:
    """Compute by DDIM's formula in the variance-preserving frame (Song et al. 2010.02502, eq. 12), in float64.

    The levels are those of four trailing timesteps and of no noise; each row has its own.
    """

    levels = torch.tensor([1.0, *SCHEDULE.alphas_cumprod[[249, 499, 749, 999]]]).flip(0)
    timesteps = torch.tensor([999, 749, 499, 249, 0])

    def parts(self, place: Tensor) -> tuple[Tensor, Tensor]:
        a = self.levels[place].view(-1, 1, 1, 1)
        return a.sqrt(), (1 - a).sqrt()

    def go(self, unet: nn.Module, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
        (signal, noise), (signal_then, noise_then) = self.parts(start), self.parts(end)
        v = unet(x.float(), self.timesteps[start], x).double()
        there = signal_then * (signal * x - noise * v) + noise_then * (signal * v + noise * x)
        return torch.where((start == end).view(-1, 1, 1, 1), x, there)


@pytest.mark.parametrize("ending", ["edge", "later"])
def test_the_losses_are_the_distance_between_ends_and_the_hinge(ending: str) -> None:
    torch.manual_seed(1)
    critic, reference = Critic(), Reference()
    objective = toy(
        Mixture(),
        Adversary(features, critic, 0.7),
        levels=4,
        phases=2,
        huber=0.01,
        guidance=3.0,
        ending=ending,
    )
    nn.init.normal_(objective.averaged.learned[-1].weight)  # type: ignore[index, union-attr, operator]
    nn.init.normal_(critic.last.weight)
    (_, loss, told), (_, against, _) = objective.losses(5)
    x0, _, _ = objective.batches(5)
    generator = torch.Generator("cpu").manual_seed((0 * 1_000_003 + 5) * 8)
    first = torch.randint(4, (256,), generator=generator)
    end = torch.where(first < 2, 2, 4)
    if ending == "later":
        odd = torch.rand(256, generator=generator, dtype=torch.float64) < 0.5  # of two places the nearer
        end = torch.where((first % 2 == 0) & odd, first + 1, end)
    eps = torch.randn(x0.shape, generator=generator)
    level = (torch.rand(256, generator=generator, dtype=torch.float64) * end).floor().long()
    further, drawn = (torch.randn(x0.shape, generator=generator) for _ in range(2))

    def judge(x: Tensor) -> Tensor:
        return critic(features(x.float(), reference.timesteps[level], x))

    with torch.no_grad():
        (signal, noise), (signal_end, noise_end), (signal_level, noise_level) = map(
            reference.parts, (first, end, level)
        )
        x = signal * x0 + noise * eps
        beside = reference.go(objective.teacher, x, first, first + 1)  # guidance of equals changes nothing
        led = reference.go(objective.averaged, x, first, end)
        far = led - reference.go(objective.target, beside, first + 1, end)
        scale = signal_level / signal_end  # of q(x_level | x_end), whose noise makes up for the rest
        fake = judge(scale * led + (noise_level**2 - (scale * noise_end) ** 2).sqrt() * further)
        real = judge(signal_level * x0 + noise_level * drawn)
    distance = ((far**2 + 1e-4).sqrt() - 0.01).mean().item()
    assert told["loss"] == pytest.approx(distance, rel=1e-3)
    assert loss.item() == pytest.approx(distance - 0.7 * fake.mean().item(), rel=1e-3)
    hinge = ((1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean()) / 2
    assert against.item() == pytest.approx(hinge.item(), rel=1e-3)


def test_the_student_learns_to_fool_the_judge_and_the_judge_from_both() -> None:
    torch.manual_seed(2)
    objective = toy(Mixture(), Adversary(features, Critic(), 1.0), levels=4)
    assert set(objective.groups()) == {"unet", "discriminator"}
    nn.init.normal_(objective.networks["discriminator"].last.weight)  # type: ignore[arg-type, union-attr]
    (student, loss, _), (judge, against, _) = objective.losses(0)
    assert (student, judge) == ("unet", "discriminator")
    groups = objective.groups()
    assert torch.autograd.grad(loss, groups["unet"][-1])[0].abs().sum() > 0
    moved = torch.autograd.grad(against, [groups["discriminator"][0], groups["unet"][-1]], allow_unused=True)
    assert moved[0].abs().sum() > 0
    assert moved[1] is None


def test_jumps_are_those_of_diffusers_tcd() -> None:
    """Without new noise, which is its eta of 0; it ends with the noise of timestep 0."""
    from diffusers import TCDScheduler

    torch.manual_seed(3)
    scheduler = TCDScheduler(prediction_type="v_prediction", clip_sample=False)
    scheduler.set_timesteps(4)  # of the 50 levels: 999, 759, 499, 259
    unet, x = Mixture(), torch.randn(5, 1, 1, 1)
    objective = toy(unet)
    for t, following in zip(scheduler.timesteps, [*scheduler.timesteps[1:], torch.tensor(0)], strict=True):
        with torch.no_grad():
            v = unet(x, t.expand(5), x)
            wanted = scheduler.step(v, t, x, eta=0.0).prev_sample
            sigma, end = map(SCHEDULE.t_to_sigma, (t, following))
            start = x * (1 + sigma**2).sqrt()
            network = partial(unet, context=x)
            found = jump(network, objective.scalings, start.float(), sigma.expand(5), end.expand(5))
        assert torch.allclose(found / (1 + end**2).sqrt(), wanted.to(found), atol=1e-4), (t, following)
        x = wanted


def test_a_jump_to_where_one_stands_goes_nowhere() -> None:
    objective, x = toy(Mixture()), torch.randn(3, 1, 1, 1)
    for sigma in (0.0, 2.0):
        level = torch.full((3,), sigma, dtype=torch.float64)
        stayed = jump(lambda x, t: objective.teacher(x, t.clamp(min=1), x), objective.scalings, x, level, level)
        assert torch.allclose(stayed, x, atol=1e-5)


def test_the_target_follows_the_student_and_the_teacher_stays() -> None:
    objective = toy(Mixture(), decay=0.75)
    before = [p.clone() for p in objective.teacher.parameters()]
    with torch.no_grad():
        for parameter in objective.averaged.parameters():
            parameter.add_(1.0)
    objective.after_step()
    assert all(torch.allclose(t, b + 0.25) for t, b in zip(objective.target.parameters(), before, strict=True))
    assert all(torch.equal(t, b) for t, b in zip(objective.teacher.parameters(), before, strict=True))


def test_pseudo_huber_is_round_below_c_and_straight_above() -> None:
    assert pseudo_huber(torch.tensor(3.0), 4.0).item() == pytest.approx(1.0)  # sqrt(9 + 16) - 4
    assert pseudo_huber(torch.tensor(1e-4), 1e-2).item() == pytest.approx(1e-8 / 2e-2, rel=1e-2)
    assert pseudo_huber(torch.tensor(-7.0), 0.0).item() == 7.0


def test_phases_divide_the_path() -> None:
    with pytest.raises(ReverieError, match=r"phases = 3 .* must divide levels = 50"):
        DistillSettings(phases=3)
