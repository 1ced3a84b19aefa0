"""Prompt templates for zero-shot classification, by name or from a file."""

from __future__ import annotations

from pathlib import Path

from reverie.errors import ReverieError
from reverie.files import reason_of

SLOT = "{}"

# The 80 templates that OpenAI's notebook "Prompt Engineering for ImageNet" ends with: 38 sentences, each with "a" and
# with "the" in place of the @, and four more. ("itap" is Reddit's "I took a picture"; "a origami" is theirs.)
_SENTENCES = (
    *(
        "a bad photo of @ {}.",
        "a photo of @ hard to see {}.",
        "a low resolution photo of @ {}.",
        "a cropped photo of @ {}.",
    ),
    *("a bright photo of @ {}.", "a photo of @ clean {}.", "a photo of @ dirty {}.", "a dark photo of @ {}."),
    *("a photo of @ cool {}.", "a close-up photo of @ {}.", "a black and white photo of @ {}.", "a photo of @ {}."),
    *("a pixelated photo of @ {}.", "a jpeg corrupted photo of @ {}.", "a blurry photo of @ {}.", "itap of @ {}."),
    *("a good photo of @ {}.", "a photo of @ large {}.", "a photo of @ small {}.", "a photo of @ nice {}."),
    *("a photo of @ weird {}.", "a sculpture of @ {}.", "a rendering of @ {}.", "graffiti of @ {}.", "art of @ {}."),
    *("a tattoo of @ {}.", "a drawing of @ {}.", "a painting of @ {}.", "a doodle of @ {}.", "a sketch of @ {}."),
    *("a rendition of @ {}.", "@ embroidered {}.", "@ plastic {}.", "@ {} in a video game.", "@ origami {}."),
    *("@ toy {}.", "@ cartoon {}.", "@ plushie {}."),
)
_SINGLE = ("a photo of many {}.", "a photo of my {}.", "a photo of one {}.", "itap of my {}.")

PLAIN = (SLOT,)
PHOTO = ("a photo of a {}.",)
OPENAI = tuple(sentence.replace("@", article) for sentence in _SENTENCES for article in ("a", "the")) + _SINGLE
# The seven that the same notebook finds by greedy search for ViT-B/32.
OPENAI_SEVEN = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)

TEMPLATES: dict[str, tuple[str, ...]] = {
    "plain": PLAIN,
    "photo": PHOTO,
    "openai": OPENAI,
    "openai7": OPENAI_SEVEN,
}


def fill_template(template: str, label: str) -> str:
    """Put a label into a template. Raises ReverieError where the template has no place for it."""
    if SLOT not in template:
        raise ReverieError(f"template '{template}' has no place for a label; write {SLOT} there, as in '{PHOTO[0]}'")
    return template.replace(SLOT, label)  # not str.format, which would read attributes that a file asks for


def find_templates(text: str) -> tuple[str, ...]:
    """Find templates: a named set, one template with {} in it, or a file with one a line. Raises ReverieError."""
    if text in TEMPLATES:
        return TEMPLATES[text]
    if SLOT in text:
        return (text,)
    if existing(text) is None:
        known = ", ".join(TEMPLATES)
        raise ReverieError(
            f"unknown templates '{text}'; choose from {known}, a sentence with {SLOT}, or a file of them"
        )
    found = tuple(line for line in read_lines(Path(text)) if line)
    if not found:
        raise ReverieError(f"'{text}' holds no templates; write one a line, with {SLOT} for the label")
    for template in found:
        fill_template(template, "")
    return found


def existing(text: str) -> Path | None:
    """Return the file that a text names; None where there is none, or it is too long to be a name."""
    try:
        return Path(text) if Path(text).is_file() else None
    except OSError:
        return None


def read_lines(file: Path) -> list[str]:
    """Read a text file's lines, stripped. Raises ReverieError where it is none."""
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise ReverieError(f"cannot read '{file}': {reason_of(error)}") from error
    except UnicodeDecodeError as error:
        raise ReverieError(f"cannot read '{file}': it is no text in UTF-8") from error
