"""How does the U-Net learn? To tell what noise was added to the latents of a scene, given its caption.

Source: Rombach et al. 2022, equation 3; v-prediction after Salimans and Ho 2022, appendix D; the weights of the noise
levels are min-SNR's (Hang et al. 2023).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reverie.checkpoints.components import CLIPComponents, Components
from reverie.checkpoints.configs import ScheduleConfig
from reverie.checkpoints.load import load_autoencoder, load_clip, load_unet
from reverie.checkpoints.save import save_folder
from reverie.codecs.pictures import grid
from reverie.data.captions import BARE, caption, telling
from reverie.data.concepts import Concept, concepts
from reverie.data.loader import Batches, shuffled
from reverie.data.scenes import ANYWHERE, PAIR_SHARE, SIZE_WORDS, Scene, render, scene_at
from reverie.diffusion.denoiser import PREDICTIONS, Prediction
from reverie.diffusion.names import choose
from reverie.models.autoencoder import Autoencoder
from reverie.models.clip import CLIP, TextTower
from reverie.models.unet import UNet, UNetConfig
from reverie.pipeline import Pipeline
from reverie.train.autoencoder import as_images
from reverie.train.loop import device_of, step_generator
from reverie.train.recipe import section

CPU = torch.device("cpu")
ENCODE_BATCH = 16


@dataclass(frozen=True)
class LatentSettings:
    """Choose the scenes whose latents are made once and kept: `pool` of them, then `batch` a step."""

    autoencoder: str  # folder
    clip: str  # folder
    subset: str = "common"
    pool: int = 8000
    scatter: int = ANYWHERE  # how many cells from the middle objects may stand; 0 is the quickest to learn
    pair_share: float = PAIR_SHARE  # of the scenes hold two objects
    sizes: tuple[str, ...] = SIZE_WORDS  # words for the size of a lone object, as often as they stand here
    batch: int = 32
    bare: int = BARE  # one caption in so many leaves the ground out: it cannot be foreseen, and that drowns the rest
    dropout: float = 0.1  # share of captions left empty, for classifier-free guidance
    workers: int = 0


WEIGHTINGS: dict[str, Callable[[Prediction, Tensor], Tensor]] = {
    "min_snr": lambda prediction, snr: prediction.min_snr(snr),
    "uniform": lambda prediction, snr: torch.ones_like(snr),
}
"""How much the error of the prediction counts at a signal-to-noise ratio."""


@dataclass(frozen=True)
class DiffusionSettings:
    """Choose what is predicted, over which noise levels, and how they are weighed."""

    prediction: str = "v"
    weighting: str = "min_snr"  # of the noise levels, a key of WEIGHTINGS
    beta_schedule: str = "scaled_linear"
    zero_terminal_snr: bool = False
    initial: str = ""  # folder of a U-Net to start from, whose configuration is kept; "" starts from nothing


def pooled_scene(things: tuple[Concept, ...], seed: int, index: int, settings: LatentSettings) -> Scene:
    """Return scene `index` of the pool."""
    return scene_at(things, seed, index, pair_share=settings.pair_share, scatter=settings.scatter, sizes=settings.sizes)


def pooled_latents(
    autoencoder: Autoencoder, things: tuple[Concept, ...], seed: int, settings: LatentSettings, path: Path
) -> Tensor:
    """Return the scaled latents of the pool's scenes, (pool, c, h, w) in half precision; made once, kept at `path`."""
    mix = (settings.scatter, settings.pair_share, settings.sizes)
    made_of = (settings.autoencoder, settings.subset, settings.pool, *mix, seed)
    identity = json.dumps([*made_of, autoencoder.config.scaling_factor])
    identity_file = path.with_suffix(".json")
    if path.exists() and identity_file.exists() and identity_file.read_text() == identity:
        return load_file(path)["latents"]
    rows = []
    with torch.no_grad():
        for start in range(0, settings.pool, ENCODE_BATCH):
            indices = range(start, min(start + ENCODE_BATCH, settings.pool))
            pixels = np.stack([render(pooled_scene(things, seed, index, settings)) for index in indices])
            images = as_images(torch.from_numpy(pixels).permute(0, 3, 1, 2))
            rows.append((autoencoder.encode(images).mode() * autoencoder.config.scaling_factor).half())
    latents = torch.cat(rows).contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".writing")
    save_file({"latents": latents}, beside)
    os.replace(beside, path)
    identity_file.write_text(identity)
    return latents


def text_tower(clip: CLIP) -> TextTower:
    """Return the text half of a CLIP as a Stable Diffusion's text encoder, sharing its weights."""
    with torch.device("meta"):
        tower = TextTower(clip.config.text)
    tower.text_model = clip.text_model
    return tower


class DiffusionObjective:
    """Train a U-Net on cached latents, conditioned on the frozen text tower."""

    def __init__(
        self,
        unet: UNet,
        autoencoder: Autoencoder,
        text: CLIPComponents,
        data: LatentSettings,
        diffusion: DiffusionSettings,
        seed: int,
        out: Path,
    ) -> None:
        prediction = choose("prediction", diffusion.prediction, PREDICTIONS)
        self.averaged = unet
        self.networks = nn.ModuleDict({"unet": unet})
        self.data, self.seed = data, seed
        self.things = concepts(data.subset)
        config = ScheduleConfig(
            beta_schedule=diffusion.beta_schedule,
            prediction=diffusion.prediction,
            zero_terminal_snr=diffusion.zero_terminal_snr,
        )
        self.components = Components(
            tokenizers=(text.tokenizer,),
            text_encoders=(text_tower(text.clip),),
            unet=unet,
            autoencoder=autoencoder,
            schedule_config=config,
            name="reverie-emoji",
        )
        self.schedule, self.prediction = config.schedule(), prediction
        self.weigh = choose("weighting", diffusion.weighting, WEIGHTINGS)
        self.latents = pooled_latents(autoencoder, self.things, seed, data, out / "latents.safetensors")
        self.batches = Batches(self._item, data.batch, data.workers)

    def _item(self, index: int) -> tuple[Tensor, str]:
        """Return example `index` of the endless stream: each pass over the pool is shuffled and told anew."""
        turn, place = divmod(index, self.data.pool)
        number = shuffled(self.seed, turn, self.data.pool, place)
        if np.random.default_rng((self.seed, index, 3)).random() < self.data.dropout:
            return self.latents[number].float(), ""
        scene = pooled_scene(self.things, self.seed, number, self.data)
        return self.latents[number].float(), caption(scene, telling(self.seed, number, turn), bare=self.data.bare)

    def move(self, device: torch.device) -> None:
        """Put the U-Net, and what stands frozen around it, onto a device."""
        for network in (self.averaged, self.components.autoencoder, *self.components.text_encoders):
            network.to(device)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the one group."""
        return {"unet": list(self.averaged.parameters())}

    def losses(self, step: int) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
        """Yield the weighted squared error of the prediction."""
        x0, captions = self.batches(step)
        generator = step_generator(self.seed, step)
        t = torch.randint(len(self.schedule), (len(x0),), generator=generator)
        eps = torch.randn(x0.shape, generator=generator)
        noisy, target = self.schedule.add_noise(x0, eps, t), self.prediction.target(self.schedule, x0, eps, t)
        weight = self.weigh(self.prediction, self.schedule.snr(t)).to(x0.dtype)
        device = device_of(self.averaged)
        with torch.no_grad():
            context = self.components.text_encoders[0](self.components.tokenizers[0](captions).to(device)).last
        predicted = self.averaged(noisy.to(device), t.to(device), context)
        error = (predicted - target.to(device)).square().mean((1, 2, 3))
        loss = (weight.to(device) * error).mean()
        yield "unet", loss, {"loss": loss.item(), "error": error.mean().item()}

    def after_step(self) -> None:
        """Leave the parameters as they are."""

    def samples(self) -> Image.Image:
        """Draw every tenth concept, ten steps each."""
        pipeline = Pipeline(**vars(self.components))
        names = [thing.en[0] for thing in self.things[::10]]
        return grid([pipeline.text_to_image(name, seed=1, steps=10)[0] for name in names], columns=7)

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
    autoencoder = load_autoencoder(data.autoencoder, device=CPU, dtype=torch.float32).requires_grad_(False)
    clip = load_clip(data.clip, device=CPU, dtype=torch.float32)
    clip.clip.requires_grad_(False)
    config = section(sections, "unet", UNetConfig)
    if diffusion.initial:
        unet = load_unet(diffusion.initial, device=CPU, dtype=torch.float32).train()
    else:
        torch.manual_seed(seed)
        unet = UNet(config)
        initialise_(unet)
    return DiffusionObjective(unet, autoencoder, clip, data, diffusion, seed, out)
