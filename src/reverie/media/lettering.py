"""Which font can write this? Pillow's own, else one of the system's that has every letter; none writes boxes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Pillow's own font has Latin letters alone. These have Chinese, most of them all of CJK and Cyrillic and Greek too.
WIDE = (
    *("NotoSansCJK", "NotoSansSC", "NotoSansTC", "NotoSansHans", "SourceHanSans", "NotoSerifCJK", "SourceHanSerif"),
    *("wqy-", "DroidSansFallback", "uming", "ukai", "unifont", "DejaVuSans.ttf"),
    *("PingFang", "Hiragino Sans GB", "STHeiti", "Arial Unicode", "msyh", "simhei", "simsun", "deng.ttf"),
)
SUFFIXES = {".ttf", ".ttc", ".otf"}
NOWHERE = "\U0010ffff"  # a letter that no font has: drawn as what stands for missing ones


@lru_cache(maxsize=256)
def font_for(text: str, size: int) -> Font | None:
    """Return a font that has every letter of a text, at a size in pixels; None where the system has none."""
    letters = "".join(sorted({letter for letter in text if not letter.isspace()}))
    default = ImageFont.load_default(size)
    if writes(default, letters):
        return default
    for file in wide_fonts():
        try:
            font = ImageFont.truetype(file, size)
        except OSError:  # damaged
            continue
        if writes(font, letters):
            return font
    return None


def writes(font: Font, letters: str) -> bool:
    """Tell whether a font has all of these letters."""
    if isinstance(font, ImageFont.ImageFont):  # Pillow without FreeType: Latin-1 bitmaps
        return letters.isascii()
    box = bytes(font.getmask(NOWHERE))
    return all(letter.isascii() or bytes(font.getmask(letter)) not in (box, b"") for letter in letters)


def labelled(names: Sequence[str]) -> list[str]:
    """Return names as they can be drawn: those that no font can write are their numbers, #1, #2, ..."""
    return [name if font_for(name, 12) is not None else f"#{number}" for number, name in enumerate(names, 1)]


@lru_cache(maxsize=1)
def wide_fonts() -> tuple[str, ...]:
    """Find fonts with many letters where systems keep theirs, the best known first."""
    found = [path for folder in font_folders() for path in _files(folder)]
    ranked = [(rank, str(path)) for path in found for rank, name in enumerate(WIDE) if path.name.startswith(name)]
    return tuple(path for _, path in sorted(ranked, key=lambda pair: (pair[0], "Regular" not in pair[1], pair[1])))


def font_folders() -> Iterator[Path]:
    """Name the folders where fonts are kept."""
    home = Path.home()
    if sys.platform == "win32":
        yield Path(os.environ.get("WINDIR", "C:/Windows"), "Fonts")
    elif sys.platform == "darwin":
        yield from (Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library" / "Fonts")
    else:
        yield from (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), home / ".fonts")
        yield Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share", "fonts")


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names if Path(name).suffix.lower() in SUFFIXES)
