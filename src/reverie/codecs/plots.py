"""How is a spectrogram drawn for people? In colours, with seconds along it and Hertz beside it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from reverie.codecs.spectrograms import LIGHT, to_greys
from reverie.media.charts import BLACK, MARGIN, WHITE, viridis
from reverie.sound.params import PER_SECOND, SpectrogramParams
from reverie.sound.spectrogram import to_mel

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
