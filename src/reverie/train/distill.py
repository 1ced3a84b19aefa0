"""Consistency distillation: a U-Net that jumps along its teacher's guided path, to its end in one to four steps.

The student f(x, sigma, end) learns where the teacher's probability-flow ODE leads from x. Two neighbouring points of a
path, the second found by one DDIM step of the guided teacher, must lead to one point (Song et al. 2303.01469, eq. 10;
Luo et al. 2310.04378, section 4). With several `phases` a path ends at the next phase's edge (Wang et al. 2405.18407,
section 4.1): as many Euler steps, without new noise, walk all of it. Jumps may also end anywhere later in their phase
(trajectory consistency, Zheng et al. 2402.19159, section 4.1); the network does not hear where: one prediction of x0
serves all ends, by DDIM's formula, as in TCD-LoRA. Guidance is folded in: the student needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from reverie.checkpoints.load import Components, Recommended, load_unet
from reverie.checkpoints.save import save_folder
from reverie.data.loader import WHOLE, Batches, BatchPart
from reverie.diffusion.denoiser import Network, Scalings
from reverie.diffusion.guidance import guide, linear, together
from reverie.diffusion.spacings import trailing
from reverie.errors import ReverieError, choose
from reverie.media.pictures import grid
from reverie.models.discriminator import FeatureDiscriminator
from reverie.models.unet import UNet
from reverie.pipeline import Pipeline
from reverie.train import lora
from reverie.train.adversarial import hinge
from reverie.train.diffusion import DiffusionObjective, SampleSheet
from reverie.train.examples import Examples
from reverie.train.inputs import FinetuneDataSettings, load_base, open_examples, preview_prompts, relearn
from reverie.train.latents import LATENTS, Pool, Stream, open_pool
from reverie.train.loop import device_of, step_generator
from reverie.train.lora_files import export
from reverie.train.losses import DenoisingSettings, pseudo_huber
from reverie.train.recipe import Share, section

LevelScalings = Callable[[Float[Tensor, " b"]], Scalings]
"""Noise levels -> the scalings of each, as a prediction and a schedule give them."""

SHEET_STEPS = (1, 2, 4)  # of the pictures on a contact sheet, row after row

Ending = Callable[[Int[Tensor, " b"], Int[Tensor, " b"], torch.Generator], Int[Tensor, " b"]]
"""(places on a path, the edges of their phases, random numbers) -> where jumps end: places further on the path."""


def draw_later(place: Int[Tensor, " b"], edge: Int[Tensor, " b"], generator: torch.Generator) -> Int[Tensor, " b"]:
    """Draw one of the places after `place` up to `edge`, each as likely."""
    share = torch.rand(len(place), generator=generator, dtype=torch.float64)
    return place + 1 + (share * (edge - place)).long()


ENDINGS: dict[str, Ending] = {"edge": lambda place, edge, generator: edge, "later": draw_later}
"""Where the jumps that are learned end: at the edge of their phase, or anywhere later in it."""


@dataclass(frozen=True)
class DistillSettings:
    """Choose the teacher's path and how the student learns it."""

    student: str = ""  # folder of a U-Net that begins, such as a smaller one; "" is the teacher's as it is
    guidance: NonNegativeFloat | None = None  # folded in; what the teacher recommends if not given
    levels: PositiveInt = 50  # of noise along a path, trailing timesteps; the teacher goes from one to the next
    phases: PositiveInt = 1  # parts of a path, each of which one step jumps over
    ending: str = "edge"  # of a jump, a key of ENDINGS
    steps: PositiveInt | None = None  # that the student recommends; as many as phases if not given
    decay: Share = 0.95  # of the target network, an exponential moving average of the student
    huber: NonNegativeFloat = 1e-3  # c of the pseudo-Huber loss, sqrt(d^2 + c^2) - c (Song and Dhariwal 2310.14189)

    def __post_init__(self) -> None:
        """Raise ReverieError where a path cannot be divided so."""
        choose("ending", self.ending, ENDINGS)
        if self.levels % self.phases:
            raise ReverieError(f"phases = {self.phases} in [distill] of the recipe must divide levels = {self.levels}")


@dataclass(frozen=True)
class AdversarySettings:
    """Choose how much a discriminator says beside the distance; without [adversary] in a recipe there is none."""

    weight: NonNegativeFloat = 0.0
    width: PositiveInt = 32  # channels of its heads


@dataclass(frozen=True, eq=False)
class Adversary:
    """Judge noised latents by a frozen network's features of them, which hear the caption and the noise level.

    Source: Sauer et al. 2403.12015, section 3; the features of the way down alone, as Lin et al. 2402.13929.
    """

    features: Callable[[Tensor, Tensor, Tensor], Sequence[Tensor]]  # (x_vp, t, context) -> features
    discriminator: nn.Module
    weight: float = 1.0  # of its say in the student's loss

    def logits(
        self, x: Float[Tensor, "b ..."], sigma: Float[Tensor, " b"], context: Tensor, scalings: LevelScalings
    ) -> Float[Tensor, "b logits"]:
        """Return logits, high for what seems to come from the data."""
        c = scalings(sigma)
        return self.discriminator(self.features(rows(c.c_in, x) * x, c.c_noise.to(x), context))


@dataclass(frozen=True, eq=False)
class Student:
    """Hold a U-Net that begins as its teacher, or as another, and what of it learns."""

    unet: UNet
    learned: nn.Module
    export: Callable[[Components, Path], None]


def whole_student(beginning: UNet) -> Student:
    """Return a student all of whose weights learn; its export is a model."""
    unet = deepcopy(beginning).requires_grad_(True)
    return Student(unet, unet, save_folder)


def thin_student(teacher: UNet, products: lora.LoRASettings) -> Student:
    """Return a student that is a LoRA on its teacher, whose weights it shares (Luo et al. 2311.05556)."""
    unet = deepcopy(teacher, {id(weight): weight for weight in teacher.parameters()})
    learned = lora.install(unet, products)
    return Student(unet, learned, lambda components, folder: export([("unet", learned)], components, products, folder))


class DistillObjective(DiffusionObjective):
    """Train a student of the U-Net of `components`, which stays as it is; the student is what is exported."""

    def __init__(
        self,
        components: Components,
        student: Student,
        batches: Batches,
        settings: DistillSettings,
        seed: int,
        shown: SampleSheet,
        adversary: Adversary | None = None,
    ) -> None:
        self.teacher, self.student = components.unet.requires_grad_(False).eval(), student
        student.unet.train()
        shared: dict[int, Any] = {id(weight): weight for weight in self.teacher.parameters()}
        self.target, self.slow = deepcopy((student.unet, student.learned), shared)
        networks = nn.ModuleDict({"unet": student.learned, "target": self.slow})
        if adversary is not None:
            networks["discriminator"] = adversary.discriminator
        guidance = components.guidance if settings.guidance is None else settings.guidance
        steps = settings.steps or settings.phases
        few = Recommended(guidance=1.0, steps=steps, sampler="euler", schedule="trailing")
        taught = replace(components, unet=student.unet, recommended=few)
        super().__init__(taught, networks, batches, DenoisingSettings(), seed, shown)
        self.averaged, self.settings, self.adversary = student.learned, settings, adversary
        self.mix, self.draw_end = linear(guidance), ENDINGS[settings.ending]
        self.sigmas = trailing(self.schedule, settings.levels)
        self.scalings = partial(self.prediction.scalings, self.schedule)

    def all_networks(self) -> Iterator[tuple[str, nn.Module]]:
        """Name the parts of the student's model, its teacher and its target."""
        yield from super().all_networks()
        yield from (("teacher", self.teacher), ("target", self.target))

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the student's parameters, and the discriminator's."""
        learning = (name for name in ("unet", "discriminator") if name in self.networks)
        return {name: list(self.networks[name].parameters()) for name in learning}

    def losses(self, step: int, part: BatchPart = WHOLE) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
        """Yield how far apart two neighbouring points of a path lead, then the discriminator's loss."""
        x0, captions, _ = self.batches(step, part)
        generator, device = step_generator(self.seed, step), device_of(self.networks)
        levels, phases, count = self.settings.levels, self.settings.phases, part.count * len(x0)
        place, last = map(part.rows, draw_jumps(levels, phases, self.draw_end, count, generator))
        sigma, following, end = self.sigmas[place], self.sigmas[place + 1], self.sigmas[last]
        x = add_noise(x0, sigma, part.randn_like(x0, generator)).to(device)
        with torch.no_grad():
            tokenizer, tower = self.components.tokenizers[0], self.components.text_encoders[0]
            context, empty = (tower(tokenizer(texts).to(device)).last for texts in (captions, [""] * len(captions)))
            both = partial(self.teacher, context=torch.cat([empty, context]))
            neighbour = jump(guide(together(both), self.mix), self.scalings, x, sigma, following)
            target = jump(partial(self.target, context=context), self.scalings, neighbour, following, end)
        led = jump(partial(self.student.unet, context=context), self.scalings, x, sigma, end)
        far = (led.float() - target.float()) / rows(1 + end**2, x).sqrt()  # in the variance-preserving frame
        loss = pseudo_huber(far, self.settings.huber).mean()
        metrics = {"loss": loss.item(), "distance": far.square().mean((1, 2, 3)).sqrt().mean().item()}
        if self.adversary is None:
            yield "unet", loss, metrics
        else:
            share = part.rows(torch.rand(count, generator=generator, dtype=torch.float64))
            level = self.sigmas[(share * last).long()]
            fake = add_noise(led, (level**2 - end**2).sqrt(), part.randn_like(x0, generator))
            real = add_noise(x0, level, part.randn_like(x0, generator)).to(device)
            judge = partial(self.adversary.logits, sigma=level, context=context, scalings=self.scalings)
            yield from contest(judge, real, fake, loss, self.adversary.weight, metrics)

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the target towards the student."""
        slow: list[Tensor] = list(self.slow.parameters())
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

    def export(self, folder: Path) -> None:
        """Write the student: a whole model, or a LoRA."""
        self.student.export(self.components, folder)


def contest(
    judge: Callable[[Tensor], Tensor],
    real: Float[Tensor, "b ..."],
    fake: Float[Tensor, "b ..."],
    loss: Tensor,
    weight: float,
    metrics: dict[str, float],
) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
    """Yield the student's loss with what the judge says of the fake, then the judge's hinge loss of both."""
    fooled = -judge(fake).mean()
    yield "unet", loss + weight * fooled, metrics | {"generator": fooled.item()}
    against = hinge(judge(real), judge(fake.detach()))
    yield "discriminator", against, {"hinge": against.item()}


def draw_jumps(
    levels: int, phases: int, draw_end: Ending, count: int, generator: torch.Generator
) -> tuple[Int[Tensor, " count"], Int[Tensor, " count"]]:
    """Draw where on a path, whose `levels` fall into `phases` of one length, `count` jumps start and end."""
    start, phase = torch.randint(levels, (count,), generator=generator), levels // phases
    return start, draw_end(start, (start // phase + 1) * phase, generator)


def add_noise(
    x: Float[Tensor, "b ..."], sigma: Float[Tensor, " b"], noise: Float[Tensor, "b ..."]
) -> Float[Tensor, "b ..."]:
    """Add noise of the deviations `sigma`, one a row."""
    return x + rows(sigma, x) * noise.to(x.device)


def jump(
    network: Network,
    scalings: LevelScalings,
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


def build(sections: dict[str, Any], seed: int, out: Path, pool: Pool = open_pool) -> DistillObjective:
    """Build the objective from a recipe's tables, on the latents that `pool` makes."""
    data, settings = section(sections, "data", FinetuneDataSettings), section(sections, "distill", DistillSettings)
    products, against = lora.settings_of(sections), section(sections, "adversary", AdversarySettings)
    base = load_base(sections)
    opened = open_examples(sections, base, seed)
    beginning = check(sections, base, opened)
    examples, latents = pool(base.autoencoder, opened[LATENTS], out / LATENTS, data.workers)
    stream = Stream(examples, latents, seed, data.dropout)
    torch.manual_seed(seed)
    return DistillObjective(
        base,
        thin_student(base.unet, products) if products.rank else whole_student(beginning),
        Batches(stream, data.batch, data.workers),
        settings,
        seed,
        preview_prompts(data, stream, base.autoencoder.factor),
        adversary_of(base.unet, against) if against.weight else None,
    )


def check(sections: dict[str, Any], base: Components, opened: Mapping[str, Examples]) -> UNet:
    """Return what a whole student begins as.

    Raises ReverieError for what a recipe cannot distil, or not of the examples that it opened.
    """
    data = section(sections, "data", FinetuneDataSettings)
    settings = section(sections, "distill", DistillSettings)
    section(sections, "adversary", AdversarySettings)
    if relearn(sections, base) is not base:
        raise ReverieError("a student learns from its teacher as it is; leave prediction and zero_terminal_snr out")
    if base.unet.config.takes_sizes:
        raise ReverieError(f"{base.name} is of SDXL's family, which cannot be distilled yet; choose SD 1 or 2")
    if LATENTS not in opened or data.masks or data.held_out:
        raise ReverieError(
            "distillation learns from whole pictures of one size, all of them; leave out latents, buckets, repeats, "
            "masks and held_out"
        )
    if (products := lora.settings_of(sections)).rank:
        if settings.student:
            raise ReverieError("[lora] is learned on the teacher itself; leave out student in [distill], or [lora]")
        lora.pick_layers(base.unet, products)
    return _beginning(base.unet, settings)


def _beginning(teacher: UNet, settings: DistillSettings) -> UNet:
    """Return what a whole student begins as. Raises ReverieError where it takes or gives what the teacher does not."""
    if not settings.student:
        return teacher
    begun = load_unet(settings.student, device=torch.device("cpu"), dtype=torch.float32)
    same = ("in_channels", "out_channels", "cross_attention_dim", "sample_size", "takes_sizes", "time_cond_proj_dim")
    if differing := [name for name in same if getattr(begun.config, name) != getattr(teacher.config, name)]:
        raise ReverieError(
            f"student = '{settings.student}' in [distill] differs from its teacher in {', '.join(differing)}; give a "
            "U-Net of the same latents and text encoder"
        )
    return begun


def adversary_of(teacher: UNet, settings: AdversarySettings) -> Adversary:
    """Return an adversary with heads on each level of a teacher's way down and its middle."""
    discriminator = FeatureDiscriminator(teacher.config.block_out_channels, settings.width)
    return Adversary(teacher.features, discriminator, settings.weight)
