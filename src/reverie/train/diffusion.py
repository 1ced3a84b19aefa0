"""Training of the U-Net: the denoising loss on latents of captioned scenes.

Source: Rombach et al. 2022, equation 3; v-prediction after Salimans and Ho 2022, appendix D; the parts of the loss
are in `losses.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64, Num
from PIL import Image
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from reverie.checkpoints.load import Components, load_autoencoder, load_clip, load_unet
from reverie.checkpoints.save import save_folder
from reverie.corpora.captions import BARE
from reverie.corpora.concepts import concepts
from reverie.corpora.scenes import ANYWHERE, CANVAS, PAIR_SHARE, SIZE_WORDS
from reverie.data.loader import WHOLE, Batches, BatchPart
from reverie.diffusion.denoiser import PREDICTIONS, ScheduleConfig
from reverie.errors import RequestWarning, ReverieError, choose, warn
from reverie.media.pictures import grid
from reverie.models.clip import CLIP, TextTower
from reverie.models.unet import UNet, UNetConfig
from reverie.pipeline import Pipeline
from reverie.system import Conditioning, text_layers
from reverie.train.encoded import open_encoded
from reverie.train.examples import HELD_OUT_SEED, Scenes
from reverie.train.latents import LATENTS, Mixed, Pool, Stream, encoder_digest, mix, open_pool
from reverie.train.loop import VALIDATION, device_of, step_generator
from reverie.train.losses import LEVELS, WEIGHTINGS, DenoisingSettings, draw_noise
from reverie.train.recipe import Share, section
from reverie.train.texts import encoders_digest, read_plainly

CPU = torch.device("cpu")
HELD_OUT_LATENTS = "held-out.safetensors"  # in the folder of a run
OF_SCENES = ("subset", "pool", "scatter", "pair_share", "sizes", "bare")  # in [data]
SHOWN, COLUMNS = 8, 4  # captions on the contact sheet
LOOKS = 32  # at held-out examples, of which a validation loss is the mean at least


@dataclass(frozen=True)
class LatentSettings:
    """Choose the scenes whose latents are made once and kept: `pool` of them, then `batch` a step."""

    autoencoder: str  # folder
    clip: str  # folder
    subset: str = "common"
    pool: PositiveInt = 8000
    latents: str = ""  # folder of what `reverie encode` made, in place of scenes
    scatter: int = ANYWHERE  # how many cells from the middle objects may stand; 0 is the quickest to learn
    pair_share: Share = PAIR_SHARE  # of the scenes hold two objects
    sizes: tuple[str, ...] = SIZE_WORDS  # words for the size of a lone object, as often as they stand here
    batch: PositiveInt = 32
    bare: int = BARE  # one caption in so many leaves the ground out: it cannot be foreseen, and that drowns the rest
    dropout: Share = 0.1  # share of captions left empty, for classifier-free guidance
    workers: NonNegativeInt = 0
    held_out: NonNegativeInt = 0  # scenes that are not learned from, whose loss is measured every `sample_every` steps


@dataclass(frozen=True)
class SampleSheet:
    """Choose what is drawn to see how far it is: prompts, the pictures' size in pixels, and how many stand in a row."""

    prompts: Sequence[str]
    width: int
    height: int
    columns: int


@dataclass(frozen=True)
class DiffusionSettings(DenoisingSettings):
    """Choose what is predicted on which schedule, beside the loss."""

    prediction: str = "v"
    beta_schedule: str = "scaled_linear"
    zero_terminal_snr: bool = False
    shift: float = 1.0  # of the times of "flow": above 1 more of them are noisy
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
        loss: DenoisingSettings,
        seed: int,
        shown: SampleSheet,
    ) -> None:
        self.components, self.networks, self.batches, self.shown = components, networks, batches, shown
        self.averaged = networks if len(networks) > 1 else next(iter(networks.values()))
        config = components.schedule_config
        self.schedule, self.prediction = config.schedule(), choose("prediction", config.prediction, PREDICTIONS)
        self.loss, self.seed = loss, seed

    held_out: Sequence[Stream] = ()

    def move(self, device: torch.device) -> None:
        """Put the model onto a device."""
        for _, network in self.all_networks():
            network.to(device)

    def all_networks(self) -> Iterator[tuple[str, nn.Module]]:
        """Name the parts of the model, and what learns beside them."""
        yield "U-Net", self.components.unet
        yield from (("text encoder", tower) for tower in self.components.text_encoders)
        yield "autoencoder", self.components.autoencoder
        yield from self.networks.items()

    def backbones(self) -> Iterator[nn.Module]:
        """Return the U-Net, the text encoders, and what learns beside them."""
        yield from (self.components.unet, *self.components.text_encoders, self.networks)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the one group, which one loss moves."""
        return {"unet": list(self.networks.parameters())}

    def losses(self, step: int, part: BatchPart = WHOLE) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
        """Yield the weighted squared error of the prediction."""
        x0, captions, shares = self.batches(step, part)
        generator = step_generator(self.seed, step)
        t = part.rows(LEVELS[self.loss.levels](len(self.schedule), part.count * len(x0), generator))
        eps, seen = draw_noise(self.loss, x0, generator, part)
        noisy, time = self.prediction.noised(self.schedule, x0, seen, t)
        target = self.prediction.target(self.schedule, x0, eps, t)
        weight = WEIGHTINGS[self.loss.weighting](self.prediction, self.schedule.snr(t)).to(x0)
        device = device_of(self.networks)
        predicted = self.predict(noisy.to(device), time.to(device), captions)
        error = self.loss.measure(predicted - target.to(device))
        shares = shares.to(error).view(len(error), *(shares.shape[1:] or (1, 1, 1)))
        loss = (weight.to(device) * (shares * error).mean((1, 2, 3))).mean()
        yield "unet", loss, {"loss": loss.item(), "error": error.mean().item()}

    def predict(self, x: Float[Tensor, "b c h w"], t: Num[Tensor, " b"], captions: Any) -> Float[Tensor, "b c h w"]:
        """Return what the U-Net predicts of latents at its times, by what it is told of them."""
        conditioning = self.encode(captions)
        return self.components.unet(x, t, conditioning.tokens, conditioning.pooled, conditioning.sizes)

    def encode(self, captions: Any) -> Conditioning:
        """Return what the U-Net is told of a batch: by captions, or by descriptions, see `texts`."""
        if isinstance(captions, Mapping):
            given = {name: value.to(device_of(self.networks)) for name, value in captions.items() if name != "caption"}
            if "caption" not in captions:
                return Conditioning(**given)
            return replace(self.encode(captions["caption"]), **given)
        rows = [ids.to(device_of(self.networks)) for ids in self.tokens(captions)]
        layers, pooled = text_layers(self.components, rows)
        return Conditioning(torch.cat(layers, -1), pooled)

    def tokens(self, captions: Sequence[str]) -> list[Int64[Tensor, "b l"]]:
        """Return the tokens of captions, for each text encoder."""
        return [tokenizer(captions) for tokenizer in self.components.tokenizers]

    @torch.no_grad()
    def measures(self) -> dict[str, float]:
        """Return the validation loss, where examples are held out: their noise and its levels are the same each time.

        It is a mean over LOOKS of them at least, in whole batches: the few there are come at several levels. Whatever
        else is learned from, it is the error of the prediction.
        """
        seen, losses = copy(self), []
        for stream in self.held_out:
            seen.batches = Batches(stream, min(len(stream.latents), self.batches.size))
            for step in range(-(-max(len(stream.latents), LOOKS) // seen.batches.size)):
                losses += [found["loss"] for _, _, found in DiffusionObjective.losses(seen, step)] * seen.batches.size
        return {VALIDATION: sum(losses) / len(losses)} if losses else {}

    def keys(self, step: int, part: BatchPart) -> list[str]:
        """Name what a part of a step is learned from."""
        return self.batches.keys(step, part)

    def after_step(self) -> None:
        """Leave the parameters as they are."""

    def samples(self) -> Image.Image:
        """Draw the prompts that are to be shown."""
        return self.draw()

    def draw(self, **fields: Any) -> Image.Image:
        """Draw the prompts that are to be shown, ten steps each, with further fields of a request."""
        return grid([self.picture(prompt, **fields) for prompt in self.shown.prompts], columns=self.shown.columns)

    def picture(self, prompt: str, **fields: Any) -> Image.Image:
        """Draw a prompt in ten steps, with further fields of a request."""
        pipeline, width, height = Pipeline(**vars(self.components)), self.shown.width, self.shown.height
        return pipeline.text_to_image(prompt, seed=1, steps=10, width=width, height=height, **fields)[0]

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


def build(sections: dict[str, Any], seed: int, out: Path, pool: Pool = open_pool) -> DiffusionObjective:
    """Build the objective from a recipe's tables [unet], [data] and [diffusion], on the latents that `pool` makes."""
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
    networks = nn.ModuleDict({"unet": components.unet})
    if data.latents:
        stream, shown = _open_encoded(data, sections["data"], components, seed)
        batches = Batches(stream, data.batch, data.workers)
        return DiffusionObjective(components, networks, batches, diffusion, seed, shown)
    things = concepts(data.subset)
    scenes = Scenes(things, seed, data.pool, data.pair_share, data.scatter, data.sizes, data.bare)
    stream = Stream(*pool(autoencoder, scenes, out / LATENTS, data.workers), seed, data.dropout)
    shown = SampleSheet([thing.en[0] for thing in things[::10]], CANVAS, CANVAS, columns=7)
    batches = Batches(stream, data.batch, data.workers)
    objective = DiffusionObjective(components, networks, batches, diffusion, seed, shown)
    if data.held_out:
        others = replace(scenes, seed=HELD_OUT_SEED, count=data.held_out)
        apart = pool(autoencoder, others, out / HELD_OUT_LATENTS, data.workers)
        objective.held_out = (Stream(*apart, seed, dropout=0.0),)
    return objective


def _open_encoded(
    data: LatentSettings, given: Collection[str], components: Components, seed: int
) -> tuple[Stream | Mixed, SampleSheet]:
    """Open what was encoded ahead, and choose its first captions to be drawn; warn of what else is `given` in vain."""
    if data.held_out:
        raise ReverieError("held_out in [data] counts scenes; leave it out beside latents")
    if unheard := [name for name in OF_SCENES if name in given]:
        warn(f"beside latents in [data] of the recipe nothing is heard of {', '.join(unheard)}", RequestWarning)
    autoencoder = components.autoencoder
    rows = open_encoded(data.latents, encoder_digest(autoencoder), encoders_digest(components.text_encoders))
    streams = [Stream(row, row.latents, seed, data.dropout, tell=row.describe(read_plainly)) for row in rows.values()]
    return mix(streams, data.batch, seed), preview(streams[0], autoencoder.factor)


def preview(stream: Stream, factor: int) -> SampleSheet:
    """Choose the first captions of a stream to be drawn, at the size of its pictures."""
    examples = stream.examples
    height, width = (factor * side for side in stream.latents.shape[2:])
    prompts = [examples.caption(index, 0) for index in range(min(SHOWN, len(examples)))]
    return SampleSheet(prompts, width, height, COLUMNS)


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
