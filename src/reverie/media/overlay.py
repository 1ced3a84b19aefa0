"""How are words shown where they were drawn? The picture beside itself under each word's heat map."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from reverie.media.charts import BLACK, WHITE, viridis
from reverie.media.lettering import font_for, labelled
from reverie.media.pictures import grid

STRIP, LETTERS = 18, 12  # pixels: under each picture, for the word, and the word's height
SMALLEST = 96  # pixels: smaller pictures are enlarged, for the words to be read
COLOURED = 0.55  # the share of the colour; the rest is the picture's grey


def overlay(picture: Image.Image, heat: Float[Tensor, "h w"]) -> Image.Image:
    """Colour a picture's grey by where a map is high, from its least to its largest value."""
    low, high = heat.min(), heat.max()
    levels = ((heat - low) / (high - low).clamp(min=1e-12) * 255).round().byte().numpy()
    places = np.asarray(Image.fromarray(levels).resize(picture.size, Image.Resampling.BICUBIC)) / 255
    grey = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float64)
    return Image.fromarray((grey * (1 - COLOURED) + viridis(places) * COLOURED).round().astype(np.uint8))


def words_sheet(picture: Image.Image, maps: Mapping[str, Float[Tensor, "h w"]]) -> Image.Image:
    """Lay out the picture and one overlay a word, named with the share of the attention that it had.

    A word that no font of the system can write is its number, counted from 1.
    """
    tiles = [_named(picture.convert("RGB"), "")]
    for name, heat in zip(labelled(list(maps)), maps.values(), strict=True):
        tiles.append(_named(overlay(picture, heat), f"{name}  {heat.mean().item():.1%}"))
    return grid(tiles)


def _named(picture: Image.Image, name: str) -> Image.Image:
    times = -(-SMALLEST // picture.width)
    picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    tile = Image.new("RGB", (picture.width, picture.height + STRIP), WHITE)
    tile.paste(picture)
    ImageDraw.Draw(tile).text((3, picture.height + 2), name, fill=BLACK, font=font_for(name, LETTERS))
    return tile
