"""Vector drawings of the emoji, for scenes larger than the font's bitmaps: Noto Emoji as Iconify packs it.

The drawings are npm's `@iconify-json/noto` (Apache-2.0), rendered by resvg (`resvg_py`, extra `train`). They are no
part of reverie: `npm pack @iconify-json/noto`, unpack it and name the folder in REVERIE_DRAWINGS.
"""

from __future__ import annotations

import io
import json
import os
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reverie.corpora.scenes import glyph as bitmap
from reverie.errors import ReverieError

FOLDER = Path(os.environ.get("REVERIE_DRAWINGS", "runs/noto/package"))
BOX, STRIKE = 128, 136  # the drawings' side, and that of the font's bitmaps, in whose middle they stand
# Things whose drawing is another design than the font's picture (Unicode 14) of them: the font's is taken.
REDRAWN = frozenset("🦓🧙🦋🤡🚀🚢🐨💻🚌🍩🐳🐭🐼😱📚🐶📺📖😭✋🎻🎃")


@lru_cache(maxsize=2048)
def drawing(emoji: str, size: int) -> np.ndarray:
    """Return an emoji as `corpora.scenes.glyph` does, premultiplied float32 RGBA, from its vector drawing.

    Raises ReverieError where the drawings or their renderer are missing.
    """
    found = _svg(emoji)
    if emoji in REDRAWN or found is None:
        return bitmap(emoji, size)
    try:
        import resvg_py
    except ImportError as error:
        raise ReverieError(
            "vector drawings need the package resvg_py; install reverie with the extra 'train'"
        ) from error
    png = bytes(resvg_py.svg_to_bytes(svg_string=found, width=size, height=size))
    pixels = np.array(Image.open(io.BytesIO(png)).convert("RGBA"), np.float32)
    pixels[..., 3] /= 255
    pixels[..., :3] *= pixels[..., 3:]
    return pixels


def _svg(emoji: str) -> str | None:
    """Return the SVG of an emoji, with the margin of the font's bitmap around it; None where there is no drawing."""
    icons, names = _icons()
    name = names.get(f"{ord(emoji):x}") or names.get(f"{ord(emoji):x}-fe0f")
    if name is None:
        return None
    icon = icons["icons"].get(name) or icons["icons"][icons["aliases"][name]["parent"]]
    margin = (STRIKE - BOX) // 2
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{-margin} {-margin} {STRIKE} {STRIKE}">{icon["body"]}</svg>'
    )


@cache
def _icons() -> tuple[dict[str, Any], dict[str, str]]:
    try:
        return tuple(json.loads((FOLDER / name).read_text(encoding="utf-8")) for name in ("icons.json", "chars.json"))
    except OSError as error:
        raise ReverieError(
            f"no drawings in {FOLDER}: run `npm pack @iconify-json/noto`, unpack it, and name it in REVERIE_DRAWINGS"
        ) from error
