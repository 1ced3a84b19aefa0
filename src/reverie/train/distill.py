"""Latent consistency distillation: a U-Net that jumps to the end of its teacher's guided path, in one to four steps.

The student f(x, sigma) learns where the teacher's probability-flow ODE leads from x. Two neighbouring points of a
path, the second found by one DDIM step of the guided teacher, must lead to one end (Song et al. 2303.01469, eq. 10;
Luo et al. 2310.04378, section 4). With several `phases` a path ends at the next phase's edge (Wang et al. 2405.18407,
section 4.1): as many Euler steps, without new noise, walk all of it. Guidance is folded in: the student needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from reverie.checkpoints.load import Components, Recommended
from reverie.data.loader import Batches
from reverie.diffusion.denoiser import Network, Scalings
from reverie.diffusion.guidance import guide, linear, together
from reverie.diffusion.spacings import trailing
from reverie.errors import ReverieError
from reverie.media.pictures import grid
from reverie.pipeline import Pipeline
from reverie.train.diffusion import DiffusionObjective, SampleSheet
from reverie.train.finetune import FinetuneDataSettings, load_base, open_examples, preview_prompts
from reverie.train.latents import LATENTS, Stream, latent_pool
from reverie.train.loop import device_of, step_generator
from reverie.train.recipe import Share, section

SHEET_STEPS = (1, 2, 4)  # of the pictures on a contact sheet, row after row


@dataclass(frozen=True)
class DistillSettings:
    """Choose the teacher's path and how the student learns it."""

    guidance: NonNegativeFloat | None = None  # folded in; what the teacher recommends if not given
    levels: PositiveInt = 50  # of noise along a path, trailing timesteps; the teacher goes from one to the next
    phases: PositiveInt = 1  # parts of a path, each of which one step jumps over
    decay: Share = 0.95  # of the target network, an exponential moving average of the student
    huber: NonNegativeFloat = 1e-3  # c of the pseudo-Huber loss, sqrt(d^2 + c^2) - c (Song and Dhariwal 2310.14189)

    def __post_init__(self) -> None:
        """Raise ReverieError where a path cannot be divided so."""
        if self.levels % self.phases:
            raise ReverieError(f"phases = {self.phases} in [distill] of the recipe must divide levels = {self.levels}")


class DistillObjective(DiffusionObjective):
    """Train a student of the U-Net of `components`, which stays as it is; the student is what is exported."""

    def __init__(
        self, components: Components, batches: Batches, settings: DistillSettings, seed: int, shown: SampleSheet
    ) -> None:
        self.teacher = components.unet.requires_grad_(False).eval()
        student, target = deepcopy(self.teacher).requires_grad_(True).train(), deepcopy(self.teacher)
        guidance = components.guidance if settings.guidance is None else settings.guidance
        networks = nn.ModuleDict({"unet": student, "target": target})
        few = Recommended(guidance=1.0, steps=settings.phases, sampler="euler", schedule="trailing")
        taught = replace(components, unet=student, recommended=few)
        super().__init__(taught, networks, batches, "uniform", seed, shown)
        self.averaged, self.target, self.settings, self.mix = student, target, settings, linear(guidance)
        self.sigmas = trailing(self.schedule, settings.levels)
        self.scalings = partial(self.prediction.scalings, self.schedule)

    def move(self, device: torch.device) -> None:
        """Put the model onto a device."""
        super().move(device)
        self.teacher.to(device)
        self.target.to(device)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the one group, the student's."""
        return {"unet": list(self.averaged.parameters())}

    def losses(self, step: int) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
        """Yield how far apart two neighbouring points of a path lead."""
        x0, captions, _ = self.batches(step)
        generator, device = step_generator(self.seed, step), device_of(self.networks)
        sigma, following, end = draw_levels(self.sigmas, self.settings.phases, len(x0), generator)
        x = (x0 + rows(sigma, x0) * torch.randn(x0.shape, generator=generator)).to(device)
        with torch.no_grad():
            tokenizer, tower = self.components.tokenizers[0], self.components.text_encoders[0]
            context, empty = (tower(tokenizer(texts).to(device)).last for texts in (captions, [""] * len(captions)))
            both = partial(self.teacher, context=torch.cat([empty, context]))
            neighbour = jump(guide(together(both), self.mix), self.scalings, x, sigma, following)
            target = jump(partial(self.target, context=context), self.scalings, neighbour, following, end)
        led = jump(partial(self.averaged, context=context), self.scalings, x, sigma, end)
        far = (led.float() - target.float()) / rows(1 + end**2, x).sqrt()  # in the variance-preserving frame
        loss = pseudo_huber(far, self.settings.huber).mean()
        yield "unet", loss, {"loss": loss.item(), "distance": far.square().mean().sqrt().item()}

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the target towards the student."""
        slow: list[Tensor] = list(self.target.parameters())
        fast: list[Tensor] = list(self.averaged.parameters())
        torch._foreach_lerp_(slow, fast, 1 - self.settings.decay)

    def samples(self) -> Image.Image:
        """Draw the prompts that are to be shown in one step, in two and in four."""
        pipeline, shown = Pipeline(**vars(self.components)), self.shown
        drawn = [
            pipeline.text_to_image(
                prompt,
                seed=1,
                steps=steps,
                width=shown.width,
                height=shown.height,
                sampler="euler",
                schedule="trailing",
            )
            for steps in SHEET_STEPS
            for prompt in shown.prompts
        ]
        return grid([picture for pictures in drawn for picture in pictures], columns=len(shown.prompts))


def draw_levels(
    sigmas: Float[Tensor, " levels_and_1"], phases: int, count: int, generator: torch.Generator
) -> tuple[Float[Tensor, " count"], Float[Tensor, " count"], Float[Tensor, " count"]]:
    """Draw `count` pairs of neighbouring noise levels of a path, whose levels fall into `phases` of one length.

    Returns the higher levels, the lower ones and the last of their phases.
    """
    levels = len(sigmas) - 1
    first = torch.randint(levels, (count,), generator=generator)
    phase = levels // phases
    return sigmas[first], sigmas[first + 1], sigmas[(first // phase + 1) * phase]


def jump(
    network: Network,
    scalings: Callable[[Tensor], Scalings],
    x: Float[Tensor, "b ..."],
    sigma: Float[Tensor, " b"],
    end: Float[Tensor, " b"],
) -> Float[Tensor, "b ..."]:
    """Go from sigma to end in one Euler step of DDIM, each row at its own levels: x0 + end / sigma (x - x0)."""
    c = scalings(sigma)
    predicted = network(rows(c.c_in, x) * x, c.c_noise.to(x))
    x0 = rows(c.c_skip, x) * x + rows(c.c_out, x) * predicted
    return x0 + rows(torch.where(sigma > 0, end / sigma, 1.0), x) * (x - x0)


def rows(values: Float[Tensor, " b"], x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """Shape one value a row so that it multiplies x, on its device and in its dtype."""
    return values.to(x).view(-1, *[1] * (x.ndim - 1))


def pseudo_huber(difference: Tensor, c: float) -> Tensor:
    """Return sqrt(d^2 + c^2) - c, elementwise: |d| with a round bottom."""
    return (difference.square() + c**2).sqrt() - c


def build(sections: dict[str, Any], seed: int, out: Path) -> DistillObjective:
    """Build the objective from a recipe's tables."""
    data, settings = section(sections, "data", FinetuneDataSettings), section(sections, "distill", DistillSettings)
    base = load_base(sections)
    examples = open_examples(sections, base, seed)[LATENTS]
    latents = latent_pool(base.autoencoder, examples, out / LATENTS, data.workers)
    stream = Stream(examples, latents, seed, data.dropout)
    shown = preview_prompts(data, stream, base.autoencoder.factor)
    return DistillObjective(base, Batches(stream, data.batch, data.workers), settings, seed, shown)
