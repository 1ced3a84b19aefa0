"""The sound codec: mel spectrograms as pictures (rows are bands, with Riffusion's tags), and their latents."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from reverie.codecs.image import ImageCodec, to_pictures
from reverie.errors import ReverieError, warn
from reverie.media.charts import BLACK, MARGIN, WHITE, viridis
from reverie.media.sound import Sound
from reverie.sound.spectrogram import PER_SECOND, Line, SpectrogramParams, spectrogram, to_mel, waveform

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
    return add_tags(picture, replace(params, stereo=len(mel) == 2), mel.max().item())


def add_tags(picture: Image.Image, params: SpectrogramParams, loudest: float = LOUD) -> Image.Image:
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
        params, loudest = _read_tags(exif)
    else:
        params, loudest = untagged or SpectrogramParams(), LOUD
        warn("the picture does not say that it is a spectrogram; it is taken for one", stacklevel=2)
    greys = torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32)).permute(2, 0, 1)
    return from_greys(greys + MIDDLE, params, loudest), params


def _read_tags(exif: Image.Exif) -> tuple[SpectrogramParams, float]:
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


@dataclass(frozen=True, eq=False)
class AudioCodec:
    """Encode sounds to scaled latents and decode scaled latents to sounds, through an image codec."""

    images: ImageCodec
    params: SpectrogramParams

    def latent_shape(self, columns: int) -> tuple[int, int, int]:
        """Return (channels, height, width) of the latents of so many columns; raise ReverieError where not whole."""
        return self.images.latent_shape(columns, self.params.mels)

    @torch.no_grad()
    def encode(self, sound: Sound) -> Float[Tensor, "1 c h w"]:
        """Encode a sound, converted to the parameters' rate and channels, to float32 latents of about unit variance.

        What does not fill a last latent's columns is padded with silence.
        """
        mel = hear(sound, self.params)
        missing = -mel.shape[-1] % self.images.factor
        mel = torch.nn.functional.pad(mel, (0, missing))
        return self.images.encode_tensor(to_greys(mel, self.params)[None] / (LIGHT / 2) - 1)

    @torch.no_grad()
    def sounds(self, latents: Float[Tensor, "b c h w"], time: type[Line] = Line) -> list[Sound]:
        """Decode scaled latents to sounds of columns * hop samples, each normalised to -1 dBFS.

        With `time` Circle (sound/spectrogram.py) the end of each goes on at its beginning.
        """
        greys = (self.images.decode(latents) + 1) * (LIGHT / 2)
        mels = [from_greys(one, self.params) for one in greys]
        return [Sound(waveform(mel, self.params, time), self.params.sample_rate).normalised() for mel in mels]

    @torch.no_grad()
    def pictures(self, latents: Float[Tensor, "b c h w"]) -> list[Image.Image]:
        """Decode scaled latents to pictures of spectrograms, with the EXIF tags that tell how they sound."""
        return [add_tags(picture, self.params) for picture in to_pictures(self.images.decode(latents))]


def hear(sound: Sound, params: SpectrogramParams) -> Float[Tensor, "c mels frames"]:
    """Return the mel spectrogram of a sound, converted to the parameters' rate and channels."""
    return spectrogram(convert_sound(sound, params).samples, params)


def convert_sound(sound: Sound, params: SpectrogramParams) -> Sound:
    """Convert a sound to the parameters' rate and channels."""
    return (sound.stereo() if params.stereo else sound.mono()).resampled(params.sample_rate)


HERTZ = (50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000)
SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)  # between two marks
APART = 60  # pixels, at the least, between two marks of time
LETTERS, TICK, LEFT, BELOW = 12, 4, 64, 36  # pixels


def plot(mel: Float[Tensor, "c mels frames"], params: SpectrogramParams) -> Image.Image:
    """Draw a mel spectrogram, one pixel a column and a band, bright where it is loud; stereo has the left one above."""
    panels = np.concatenate([_panel(channel) for channel in to_greys(mel, params)[-len(mel) :].cpu().numpy()])
    rows, columns = panels.shape[:2]
    sheet = Image.new("RGB", (LEFT + columns + MARGIN + LETTERS, MARGIN + rows + BELOW), WHITE)
    sheet.paste(Image.fromarray(panels[: rows - MARGIN]), (LEFT, MARGIN))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(LETTERS)
    for top in range(MARGIN, MARGIN + rows, params.mels + MARGIN):
        for row, hertz in _rows(params):
            draw.line((LEFT - TICK, top + row, LEFT, top + row), BLACK)
            draw.text((LEFT - 2 * TICK, top + row), f"{hertz}", BLACK, font, anchor="rm")
    for column, seconds in _columns(columns, params):
        draw.line((LEFT + column, rows, LEFT + column, rows + TICK), BLACK)
        draw.text((LEFT + column, rows + 2 * TICK), f"{seconds:g}", BLACK, font, anchor="mt")
    draw.text((LEFT - 2 * TICK, MARGIN + rows + BELOW - MARGIN), "Hz", BLACK, font, anchor="rb")
    draw.text((LEFT + columns // 2, MARGIN + rows + BELOW - MARGIN), "s", BLACK, font, anchor="mb")
    return sheet


def _panel(greys: Float[np.ndarray, "mels frames"]) -> np.ndarray:
    """Colour one channel, with a margin below it."""
    return np.pad(
        viridis(1 - greys / LIGHT).round().astype(np.uint8), ((0, MARGIN), (0, 0), (0, 0)), constant_values=LIGHT
    )


def _rows(params: SpectrogramParams) -> Iterator[tuple[int, int]]:
    """Say in which rows frequencies are, the highest first, those apart enough to be read.

    Band m of mels is centred on corner m + 1 of mels + 2 (sound/spectrogram.py), and the highest is in row 0.
    """
    low, high = to_mel(params.low), to_mel(params.high)
    free = 0
    for hertz in reversed(HERTZ):
        row = round(params.mels - (to_mel(hertz) - low) / (high - low) * (params.mels + 1))
        if free <= row < params.mels:
            free = row + LETTERS
            yield row, hertz


def _columns(count: int, params: SpectrogramParams) -> Iterator[tuple[int, float]]:
    """Say in which columns times are, so far apart that they can be read."""
    a_second = PER_SECOND / params.step_ms
    step = next((step for step in SECONDS if step * a_second >= APART), SECONDS[-1])
    for index in range(int((count - 1) / a_second / step) + 1):
        yield round(index * step * a_second), index * step
