"""Training of the U-Net: the denoising loss on latents of captioned scenes.

Source: Rombach et al. 2022, equation 3; v-prediction after Salimans and Ho 2022, appendix D; the weights of the noise
levels are min-SNR's (Hang et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from PIL import Image
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from reverie.checkpoints.load import Components, load_autoencoder, load_clip, load_unet
from reverie.checkpoints.save import save_folder
from reverie.corpora.captions import BARE
from reverie.corpora.concepts import concepts
from reverie.corpora.scenes import ANYWHERE, CANVAS, PAIR_SHARE, SIZE_WORDS
from reverie.data.loader import WHOLE, Batches, BatchPart
from reverie.diffusion.denoiser import PREDICTIONS, Prediction, ScheduleConfig
from reverie.errors import ReverieError, choose
from reverie.media.pictures import grid
from reverie.models.clip import CLIP, TextTower
from reverie.models.unet import UNet, UNetConfig
from reverie.pipeline import Pipeline
from reverie.train.examples import Scenes
from reverie.train.latents import LATENTS, Stream, latent_pool
from reverie.train.loop import device_of, step_generator
from reverie.train.recipe import Share, section

CPU = torch.device("cpu")


@dataclass(frozen=True)
class LatentSettings:
    """Choose the scenes whose latents are made once and kept: `pool` of them, then `batch` a step."""

    autoencoder: str  # folder
    clip: str  # folder
    subset: str = "common"
    pool: PositiveInt = 8000
    scatter: int = ANYWHERE  # how many cells from the middle objects may stand; 0 is the quickest to learn
    pair_share: Share = PAIR_SHARE  # of the scenes hold two objects
    sizes: tuple[str, ...] = SIZE_WORDS  # words for the size of a lone object, as often as they stand here
    batch: PositiveInt = 32
    bare: int = BARE  # one caption in so many leaves the ground out: it cannot be foreseen, and that drowns the rest
    dropout: Share = 0.1  # share of captions left empty, for classifier-free guidance
    workers: NonNegativeInt = 0


@dataclass(frozen=True)
class SampleSheet:
    """Choose what is drawn to see how far it is: prompts, the pictures' size in pixels, and how many stand in a row."""

    prompts: Sequence[str]
    width: int
    height: int
    columns: int


WEIGHTINGS: dict[str, Callable[[Prediction, Tensor], Tensor]] = {
    "min_snr": lambda prediction, snr: prediction.min_snr(snr),
    "uniform": lambda prediction, snr: torch.ones_like(snr),
}
"""How much the error of the prediction counts at a signal-to-noise ratio."""


def _logit_normal(levels: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw levels whose logit is standard normal: those in the middle more often (Esser et al. 2403.03206, eq. 19)."""
    u = torch.randn(count, generator=generator).sigmoid()
    return (levels * u).long().clamp(max=levels - 1)


LEVELS: dict[str, Callable[[int, int, torch.Generator], Tensor]] = {
    "uniform": lambda levels, count, generator: torch.randint(levels, (count,), generator=generator),
    "logit_normal": _logit_normal,
}
"""Which of so many noise levels are drawn, so many at a time."""


@dataclass(frozen=True)
class DiffusionSettings:
    """Choose what is predicted, over which noise levels, and how they are weighed."""

    prediction: str = "v"
    weighting: str = "min_snr"  # of the noise levels, a key of WEIGHTINGS
    beta_schedule: str = "scaled_linear"
    zero_terminal_snr: bool = False
    shift: float = 1.0  # of the times of "flow": above 1 more of them are noisy
    levels: str = "uniform"  # how often which is drawn, a key of LEVELS
    initial: str = ""  # folder of a U-Net to start from, whose configuration is kept; "" starts from nothing


def text_tower(clip: CLIP) -> TextTower:
    """Return the text half of a CLIP as a Stable Diffusion's text encoder, sharing its weights."""
    with torch.device("meta"):
        tower = TextTower(clip.config.text)
    tower.text_model = clip.text_model
    return tower


class DiffusionObjective:
    """Train networks of a model, "unet" and where it is among them "text", on latents; the other parts stand frozen."""

    def __init__(
        self,
        components: Components,
        networks: nn.ModuleDict,
        batches: Batches,
        weighting: str,
        seed: int,
        shown: SampleSheet,
        levels: str = "uniform",
    ) -> None:
        self.components, self.networks, self.batches, self.shown = components, networks, batches, shown
        self.averaged = networks if len(networks) > 1 else next(iter(networks.values()))
        config = components.schedule_config
        self.schedule, self.prediction = config.schedule(), choose("prediction", config.prediction, PREDICTIONS)
        self.weigh, self.seed = choose("weighting", weighting, WEIGHTINGS), seed
        self.draw_levels = choose("levels", levels, LEVELS)

    def move(self, device: torch.device) -> None:
        """Put the model onto a device."""
        for network in (self.components.unet, self.components.autoencoder, *self.components.text_encoders):
            network.to(device)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the one group, which one loss moves."""
        return {"unet": list(self.networks.parameters())}

    def losses(self, step: int, part: BatchPart = WHOLE) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
        """Yield the weighted squared error of the prediction."""
        x0, captions, shares = self.batches(step, part)
        generator = step_generator(self.seed, step)
        t = part.rows(self.draw_levels(len(self.schedule), part.count * len(x0), generator))
        eps = part.randn_like(x0, generator)
        noisy, time = self.prediction.noised(self.schedule, x0, eps, t)
        target = self.prediction.target(self.schedule, x0, eps, t)
        weight = self.weigh(self.prediction, self.schedule.snr(t)).to(x0.dtype) * shares.to(x0.dtype)
        device = device_of(self.networks)
        context = self.encode(captions)
        predicted = self.components.unet(noisy.to(device), time.to(device), context)
        error = (predicted - target.to(device)).square().mean((1, 2, 3))
        loss = (weight.to(device) * error).mean()
        yield "unet", loss, {"loss": loss.item(), "error": error.mean().item()}

    def encode(self, captions: Sequence[str]) -> Float[Tensor, "b l d"]:
        """Return what the U-Net is told of captions."""
        (rows,) = self.tokens(captions)
        return self.components.text_encoders[0](rows.to(device_of(self.networks))).last

    def tokens(self, captions: Sequence[str]) -> list[Int64[Tensor, "b l"]]:
        """Return the tokens of captions, for each text encoder."""
        return [tokenizer(captions) for tokenizer in self.components.tokenizers]

    def after_step(self) -> None:
        """Leave the parameters as they are."""

    def samples(self) -> Image.Image:
        """Draw the prompts that are to be shown."""
        return self.draw()

    def draw(self, **fields: Any) -> Image.Image:
        """Draw the prompts that are to be shown, ten steps each, with further fields of a request."""
        pipeline, width, height = Pipeline(**vars(self.components)), self.shown.width, self.shown.height
        drawn = (
            pipeline.text_to_image(prompt, seed=1, steps=10, width=width, height=height, **fields)
            for prompt in self.shown.prompts
        )
        return grid([picture for pictures in drawn for picture in pictures], columns=self.shown.columns)

    def export(self, folder: Path) -> None:
        """Save the whole model in diffusers' layout."""
        save_folder(self.components, folder)


@torch.no_grad()
def initialise_(unet: UNet) -> None:
    """Start every residual branch, every spatial transformer and the output at 0, as CompVis' zero_module does."""
    for name, module in unet.named_modules():
        if name.endswith(("conv2", "proj_out", "conv_out")) and isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def build(sections: dict[str, Any], seed: int, out: Path) -> DiffusionObjective:
    """Build the objective from a recipe's tables [unet], [data] and [diffusion]."""
    data, diffusion = section(sections, "data", LatentSettings), section(sections, "diffusion", DiffusionSettings)
    choose("prediction", diffusion.prediction, PREDICTIONS)
    autoencoder = load_autoencoder(data.autoencoder, device=CPU, dtype=torch.float32).requires_grad_(False)
    clip = load_clip(data.clip, device=CPU, dtype=torch.float32)
    clip.clip.requires_grad_(False)
    components = Components(
        tokenizers=(clip.tokenizer,),
        text_encoders=(text_tower(clip.clip),),
        unet=_unet(sections, diffusion, seed),
        autoencoder=autoencoder,
        schedule_config=ScheduleConfig(
            beta_schedule=diffusion.beta_schedule,
            prediction=diffusion.prediction,
            zero_terminal_snr=diffusion.zero_terminal_snr,
            shift=diffusion.shift,
        ),
    )
    things = concepts(data.subset)
    scenes = Scenes(things, seed, data.pool, data.pair_share, data.scatter, data.sizes, data.bare)
    stream = Stream(scenes, latent_pool(autoencoder, scenes, out / LATENTS, data.workers), seed, data.dropout)
    shown = SampleSheet([thing.en[0] for thing in things[::10]], CANVAS, CANVAS, columns=7)
    batches = Batches(stream, data.batch, data.workers)
    networks = nn.ModuleDict({"unet": components.unet})
    return DiffusionObjective(components, networks, batches, diffusion.weighting, seed, shown, diffusion.levels)


def _unet(sections: dict[str, Any], diffusion: DiffusionSettings, seed: int) -> UNet:
    config = section(sections, "unet", UNetConfig)
    if diffusion.initial:
        unet = load_unet(diffusion.initial, device=CPU, dtype=torch.float32).train()
        if "unet" in sections and unet.config != config:
            raise ReverieError(
                f"[unet] has another shape than {diffusion.initial}; leave [unet] out, or make it the same"
            )
        return unet
    torch.manual_seed(seed)
    unet = UNet(config)
    initialise_(unet)
    return unet
