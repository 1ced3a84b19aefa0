"""Which parts make a Stable Diffusion model on disk?"""

from __future__ import annotations

from dataclasses import dataclass, field

from reverie.checkpoints.configs import ScheduleConfig
from reverie.checkpoints.known import Known
from reverie.models.autoencoder import Autoencoder
from reverie.models.clip import CLIP, TextTower
from reverie.models.unet import UNet
from reverie.sound.spectrogram import SpectrogramParams
from reverie.tokenizer import Tokenizer

GUIDANCE = 5.0  # where a model recommends none


@dataclass(frozen=True, eq=False, kw_only=True)
class Components:
    """Hold the parts of a model: what a folder in diffusers' layout holds.

    SD 1 and 2 have one tokenizer and text encoder, XL two of each, its refiner only the second. `zero_empty` says that
    an empty negative prompt conditions on zeros (XL: `force_zeros_for_empty_prompt`). `spectrogram` says how a model
    of music hears; one of pictures has none. `guidance` is the scale that it recommends. `known` are the things that it
    says it knows; most models say nothing.
    """

    tokenizers: tuple[Tokenizer, ...]
    text_encoders: tuple[TextTower, ...]
    unet: UNet
    autoencoder: Autoencoder
    schedule_config: ScheduleConfig = field(default_factory=ScheduleConfig)
    zero_empty: bool = False
    spectrogram: SpectrogramParams | None = None
    guidance: float = GUIDANCE
    known: tuple[Known, ...] = ()
    name: str = "model"


@dataclass(frozen=True, eq=False)
class CLIPComponents:
    """Hold a whole CLIP and its tokenizer: what a folder of transformers' CLIPModel holds."""

    clip: CLIP
    tokenizer: Tokenizer
