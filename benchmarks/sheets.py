"""How are pictures shown for people to judge? On a sheet, each above a label."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import cache

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
# Pillow looks these up among the system's fonts; its own font has no Chinese.
CHINESE_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "wqy-zenhei.ttc",
    "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf",
    "PingFang.ttc",
    "msyh.ttc",
)
TEXT = 11  # pixels an em
LINES = 3  # of a label
GAP = 8


@cache
def chinese_font() -> ImageFont.FreeTypeFont | None:
    """Return the first font for Chinese that is installed, or None."""
    for name in CHINESE_FONTS:
        try:
            return ImageFont.truetype(name, TEXT)
        except OSError:
            continue
    return None


def contact_sheet(labelled: Sequence[tuple[Image.Image, str]], columns: int = 7) -> Image.Image:
    """Lay pictures of one size out row by row, each above its label, which is cut after a few lines."""
    width, height = labelled[0][0].size
    across, down = width + GAP, height + LINES * (TEXT + 3) + GAP
    columns = min(columns, len(labelled))
    sheet = Image.new("RGB", (columns * across + GAP, -(-len(labelled) // columns) * down + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    font: Font = chinese_font() or ImageFont.load_default(TEXT)
    for number, (picture, label) in enumerate(labelled):
        x, y = GAP + number % columns * across, GAP + number // columns * down
        sheet.paste(picture, (x, y))
        pen.multiline_text((x, y + height + 2), _wrapped(label, width), fill="black", font=font, spacing=2)
    return sheet


def _wrapped(label: str, width: int) -> str:
    """Break a label's lines where they pass the picture's width: a Latin letter is about half an em wide."""
    letters = width // (TEXT if any(letter > "\u2e7f" for letter in label) else (TEXT + 1) // 2)
    lines = [part for line in label.split("\n") for part in textwrap.wrap(line, letters)]
    return "\n".join(lines[:LINES])
