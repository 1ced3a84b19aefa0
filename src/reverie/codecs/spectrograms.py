"""How is a mel spectrogram seen? As a picture whose rows are bands, the highest above, with Riffusion's EXIF tags."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from reverie.errors import ReverieError
from reverie.sound.params import SpectrogramParams

# riffusion/spectrogram_params.py: ExifTags
TAGS = {
    "sample_rate": 11000,
    "stereo": 11005,
    "step_ms": 11010,
    "window_ms": 11020,
    "padded_ms": 11030,
    "mels": 11040,
    "low": 11050,
    "high": 11060,
    "power": 11070,
}
LOUDEST = 11080  # the tag of the largest amplitude
LOUD = 30e6  # the largest amplitude where nothing tells it (riffusion/util/image_util.py)
DARK, LIGHT = 0, 255  # the loudest and silence
MIDDLE = 0.5  # of the levels that truncation makes one


def to_greys(mel: Float[Tensor, "c mels frames"], params: SpectrogramParams) -> Float[Tensor, "3 mels frames"]:
    """Return levels from 0 (the loudest of all) to 255 (silence), the highest band in the first row.

    Mono gives three equal channels, stereo (0, left, right) (riffusion/util/image_util.py: image_from_spectrogram).
    """
    loudest = mel.max()
    scaled = mel / loudest if loudest > 0 else mel
    greys = (LIGHT - scaled**params.power * LIGHT).flip(1)
    return greys.expand(3, -1, -1) if len(mel) == 1 else torch.cat([torch.full_like(greys[:1], DARK), greys])


def from_greys(
    greys: Float[Tensor, "3 mels frames"], params: SpectrogramParams, loudest: float = LOUD
) -> Float[Tensor, "c mels frames"]:
    """Return the mel amplitudes of levels from 0 to 255: two channels where `params` are stereo, else the first.

    Raises ReverieError where there are more or fewer rows than bands.
    """
    if greys.shape[1] != params.mels:
        raise ReverieError(
            f"a picture {greys.shape[1]} pixels high is no spectrogram of {params.mels} bands; give one as high as that"
        )
    chosen = greys[1:] if params.stereo else greys[:1]
    return ((LIGHT - chosen.flip(1)) / LIGHT).clamp(0, 1) ** (1 / params.power) * loudest


def to_picture(mel: Float[Tensor, "c mels frames"], params: SpectrogramParams) -> Image.Image:
    """Draw a mel spectrogram of one or two channels; EXIF tags in its `.info` tell how to read it."""
    levels = to_greys(mel, params).to(torch.uint8)  # truncated, as Riffusion's
    picture = Image.fromarray(levels.permute(1, 2, 0).contiguous().cpu().numpy())
    return tagged(picture, replace(params, stereo=len(mel) == 2), mel.max().item())


def tagged(picture: Image.Image, params: SpectrogramParams, loudest: float = LOUD) -> Image.Image:
    """Write Riffusion's EXIF tags into a picture's `.info`, from where `codecs.pictures.save` takes them."""
    exif = Image.Exif()
    exif.update({tag: getattr(params, name) for name, tag in TAGS.items()} | {LOUDEST: float(loudest)})
    picture.info["exif"] = exif.tobytes()
    return picture


def from_picture(
    picture: Image.Image, untagged: SpectrogramParams | None = None
) -> tuple[Float[Tensor, "c mels frames"], SpectrogramParams]:
    """Read a picture of a spectrogram: its amplitudes, and how they were made.

    One without Riffusion's tags is taken as made with `untagged` (Riffusion's own parameters if not given), and warned
    of. Raises ReverieError for tags that make no sense and for a height that is not the number of bands.
    """
    exif = picture.getexif()
    if TAGS["sample_rate"] in exif:
        params, loudest = _told(exif)
    else:
        params, loudest = untagged or SpectrogramParams(), LOUD
        warnings.warn("the picture does not say that it is a spectrogram; it is taken for one", stacklevel=2)
    greys = torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32)).permute(2, 0, 1)
    return from_greys(greys + MIDDLE, params, loudest), params


def _told(exif: Image.Exif) -> tuple[SpectrogramParams, float]:
    """Return what the tags tell: how the spectrogram was made, and its largest amplitude."""
    defaults = SpectrogramParams()
    try:
        read = {name: type(getattr(defaults, name))(exif[tag]) for name, tag in TAGS.items() if tag in exif}
        loudest = float(exif.get(LOUDEST, LOUD))
    except (TypeError, ValueError, OverflowError) as error:  # OverflowError: infinity is no whole number
        raise ReverieError("the picture's EXIF tags tell no spectrogram's parameters; export it anew") from error
    if not 0 <= loudest < math.inf:
        raise ReverieError(f"the picture's EXIF tags tell of a largest amplitude of {loudest}; export it anew")
    return replace(defaults, **read), loudest
