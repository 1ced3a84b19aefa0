"""A distilled student leads in one step, or in one a phase, to where its teacher's path ends."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reverie.checkpoints.configs import ScheduleConfig
from reverie.checkpoints.load import Components, Recommended
from reverie.diffusion.denoiser import denoiser
from reverie.diffusion.noise import Noise
from reverie.diffusion.onestep import euler
from reverie.diffusion.schedule import to_ve
from reverie.diffusion.spacings import trailing
from reverie.errors import ReverieError
from reverie.train.diffusion import SampleSheet
from reverie.train.distill import DistillObjective, DistillSettings, jump, pseudo_huber
from reverie.train.loop import Learner, RunSettings

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


@dataclass
class Samples:
    """Serve samples of the mixture."""

    size: int = 256

    def __call__(self, step: int) -> tuple[Tensor, list[str], Tensor]:
        generator = torch.Generator().manual_seed(step)
        means = torch.tensor(MEANS)[torch.randint(2, (self.size,), generator=generator)]
        x0 = means + DEVIATION * torch.randn(self.size, generator=generator)
        return x0.view(-1, 1, 1, 1), [""] * self.size, torch.ones(self.size)


def toy(unet: nn.Module, **settings: Any) -> DistillObjective:
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
    return DistillObjective(components, Samples(), DistillSettings(**settings), 0, SHEET)  # type: ignore[arg-type]


def ends(unet: nn.Module, steps: int) -> Tensor:
    """Walk paths from noise to their ends by Euler steps."""
    count = 4000
    sigmas = trailing(SCHEDULE, steps)
    denoise = denoiser(lambda x, t: unet(x, t, x), SCHEDULE, toy(Mixture()).prediction.scalings)
    noise = torch.randn(count, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        *_, last = euler(denoise, to_ve(noise, sigmas[0].item()), sigmas, Noise([0], (1, 1, 1), torch.device("cpu")))
    return last.x.flatten()


@pytest.mark.parametrize("phases", [1, 2])
def test_a_students_steps_lead_where_many_of_the_teacher_lead(phases: int) -> None:
    torch.manual_seed(0)
    teacher = Mixture()
    objective = toy(teacher, phases=phases, levels=8, decay=0.5)
    learner = Learner(objective, RunSettings(steps=600, lr=1e-2, warmup=10, ema=0.99))
    for step in range(600):
        learner.step(step)
    with learner.ema_weights():
        led = ends(objective.averaged, phases)
    wanted, before = ends(teacher, 8), ends(teacher, phases)
    assert (led - wanted).abs().mean() < 0.35 * (before - wanted).abs().mean()
    for quantile in (0.1, 0.3, 0.7, 0.9):
        assert led.quantile(quantile) == pytest.approx(wanted.quantile(quantile).item(), abs=0.2)
    assert (led < 0.2).float().mean() == pytest.approx(0.5, abs=0.05)  # both parts, in equal shares


def test_the_loss_is_the_distance_between_the_ends_of_neighbours() -> None:
    """By DDIM's formula in the variance-preserving frame (Song et al. 2010.02502, eq. 12), in double precision."""
    torch.manual_seed(1)
    objective = toy(Mixture(), levels=4, phases=2, huber=0.01, guidance=3.0)
    nn.init.normal_(objective.averaged.learned[-1].weight)  # type: ignore[index, union-attr, operator]
    ((_, loss, _),) = objective.losses(5)
    x0, _, _ = objective.batches(5)
    generator = torch.Generator("cpu").manual_seed((0 * 1_000_003 + 5) * 8)
    first = torch.randint(4, (256,), generator=generator)
    eps = torch.randn(x0.shape, generator=generator)
    a = torch.tensor([1.0, *SCHEDULE.alphas_cumprod[[249, 499, 749, 999]]]).flip(0)  # of levels 0 to 4

    def go(unet: nn.Module, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
        now, then = a[start].view(-1, 1, 1, 1), a[end].view(-1, 1, 1, 1)
        t = torch.tensor([999, 749, 499, 249, 0])[start]
        v = unet(x.float(), t, x).double()
        clean, noise = now.sqrt() * x - (1 - now).sqrt() * v, now.sqrt() * v + (1 - now).sqrt() * x
        there = then.sqrt() * clean + (1 - then).sqrt() * noise
        return torch.where((start == end).view(-1, 1, 1, 1), x, there)

    with torch.no_grad():
        x = a[first].view(-1, 1, 1, 1).sqrt() * x0 + (1 - a[first]).view(-1, 1, 1, 1).sqrt() * eps
        edge = torch.where(first < 2, 2, 4)
        beside = go(objective.teacher, x, first, first + 1)  # guidance of equals changes nothing
        far = go(objective.averaged, x, first, edge) - go(objective.target, beside, first + 1, edge)
    assert loss.item() == pytest.approx(((far**2 + 1e-4).sqrt() - 0.01).mean().item(), rel=1e-3)


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
