"""Zero-shot classification of pictures by CLIP's cosines (CLIP paper, section 3.1), and its prompt templates."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from reverie.codecs.clip_images import Picture
from reverie.errors import ReverieError
from reverie.files import find_path, read_lines
from reverie.media.charts import colour_of, heat_map
from reverie.progress import Progress

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
    if find_path(text) is None:
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


TEXTS_AT_ONCE = 2048  # tokens of so many are held together; thousands of labels in 80 templates are many more


@dataclass(frozen=True, eq=False)
class Likeness:
    """Hold the cosines of rows with columns, each in [-1, 1], and the names of both."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cosines: Float[Tensor, "r c"]
    model: str

    @classmethod
    def between(
        cls,
        images: tuple[str, ...],
        image_embeddings: Float[Tensor, "i d"],
        texts: tuple[str, ...],
        text_embeddings: Float[Tensor, "t d"],
        model: str,
    ) -> Likeness:
        """Compare normalised embeddings of pictures with those of texts; one kind alone is compared with itself."""
        rows, left = (images, image_embeddings) if images else (texts, text_embeddings)
        columns, right = (texts, text_embeddings) if texts else (images, image_embeddings)
        return cls(rows, columns, left @ right.T, model)

    def record(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {
            "model": self.model,
            "rows": list(self.rows),
            "columns": list(self.columns),
            "cosines": [[round(value, 6) for value in row] for row in self.cosines.tolist()],
        }

    def csv(self) -> str:
        """Return lines of comma-separated values, the columns' names in the first."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["", *self.columns])
        for name, row in zip(self.rows, self.cosines.tolist(), strict=True):
            writer.writerow([name, *(f"{value:.6f}" for value in row)])
        return out.getvalue()

    def heat_map(self) -> Image.Image:
        """Draw the matrix: dark is least, bright most alike among its cosines, which are written into the cells."""
        return heat_map(self.cosines.tolist(), self.rows, self.columns)

    def _repr_html_(self) -> str:
        """Show a coloured table in a notebook."""
        values = self.cosines.tolist()
        low, high = _range(values)
        head = "".join(f"<th>{escape(name)}</th>" for name in self.columns)
        body = "".join(
            f"<tr><th>{escape(name)}</th>{''.join(_cell(value, low, high) for value in row)}</tr>"
            for name, row in zip(self.rows, values, strict=True)
        )
        return f"<table><tr><th></th>{head}</tr>{body}</table>"


def picture_names(pictures: Sequence[Picture]) -> tuple[str, ...]:
    """Name pictures: files by their paths, others by their number."""
    return tuple(
        f"picture {index}" if isinstance(picture, Image.Image) else str(picture)
        for index, picture in enumerate(pictures)
    )


def _range(values: list[list[float]]) -> tuple[float, float]:
    flat = [value for row in values for value in row]
    return (min(flat), max(flat)) if flat else (0.0, 1.0)


def _cell(value: float, low: float, high: float) -> str:
    colour, ink = colour_of(value, low, high)
    return f'<td style="background:rgb{colour};color:rgb{ink}">{value:.3f}</td>'


TEXTS_AT_ONCE = 2048  # tokens of so many are held together; thousands of labels in 80 templates are many more


class LabelEmbedder(Protocol):
    """What classification needs of a CLIP."""

    @property
    def scale(self) -> float: ...
    def levels(self, pictures: Sequence[Picture]) -> UInt8[Tensor, "n 3 h w"]: ...
    def embed_levels(self, levels: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]: ...
    def embed_images(self, pictures: Sequence[Picture], batch: int = 32) -> Float[Tensor, "n d"]: ...
    def embed_texts(self, texts: Sequence[str], batch: int = 256) -> Float[Tensor, "n d"]: ...


class Guess(NamedTuple):
    """Name a picture by a label: how likely it is among all labels, and how alike the two are."""

    label: str
    probability: float
    cosine: float


@dataclass(frozen=True)
class Guesses:
    """Hold the likeliest labels of one picture, the best first."""

    picture: str
    guesses: tuple[Guess, ...]

    @property
    def label(self) -> str:
        """Return the best label."""
        return self.guesses[0].label

    def record(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {"picture": self.picture, "guesses": [guess._asdict() for guess in self.guesses]}

    def _repr_html_(self) -> str:
        """Show bars in a notebook."""
        rows = "".join(
            f"<tr><td>{escape(guess.label)}</td><td>{guess.probability:.1%}</td>"
            f'<td><div style="background:#3b518b;height:0.8em;width:{200 * guess.probability:.0f}px"></div></td></tr>'
            for guess in self.guesses
        )
        return f"<table><caption>{escape(self.picture)}</caption>{rows}</table>"


@dataclass(frozen=True, eq=False)
class EmbeddedLabels(Progress):
    """How many of all labels are embedded; `rows` are those of the latest."""

    rows: Float[Tensor, "n d"]


def embed_labels(clip: LabelEmbedder, labels: Sequence[str], templates: Sequence[str]) -> Iterator[EmbeddedLabels]:
    """Embed labels, some at a time: the normalised mean of a label's normalised embeddings in all templates.

    Raises ReverieError where a template has no place for a label, or there is none of them.
    """
    if isinstance(labels, str) or isinstance(templates, str):
        raise ReverieError('labels and templates are given as lists, as in ["cat", "dog"], not as one text')
    if not labels or not templates:
        raise ReverieError("classification needs a label and a template at least; give some")
    step = max(1, TEXTS_AT_ONCE // len(templates))
    for start in range(0, len(labels), step):
        some = labels[start : start + step]
        texts = [fill_template(template, label) for label in some for template in templates]
        rows = clip.embed_texts(texts).unflatten(0, (len(some), len(templates))).mean(1)
        yield EmbeddedLabels(start + len(some), len(labels), "labels", F.normalize(rows, dim=-1))


@dataclass(frozen=True, eq=False)
class Classifier:
    """Name pictures by labels whose embeddings are its `weights`."""

    clip: LabelEmbedder = field(repr=False)
    labels: tuple[str, ...]
    weights: Float[Tensor, "n d"] = field(repr=False)

    @classmethod
    def of(cls, clip: LabelEmbedder, labels: Sequence[str], templates: Sequence[str]) -> Classifier:
        """Embed the labels."""
        return cls(clip, tuple(labels), torch.cat([event.rows for event in embed_labels(clip, labels, templates)]))

    def cosines(self, embeddings: Float[Tensor, "b d"]) -> Float[Tensor, "b n"]:
        """Compare normalised embeddings of pictures with all labels."""
        return embeddings @ self.weights.T

    def probabilities(self, cosines: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """Turn cosines into probabilities over the labels, with the model's own temperature."""
        return (self.clip.scale * cosines).softmax(-1)

    def name(self, pictures: Sequence[Picture], *, top: int = 5, batch: int = 32) -> list[Guesses]:
        """Name pictures, or the files at paths, by their `top` likeliest labels. Raises ReverieError."""
        if top < 1:
            raise ReverieError(f"top is {top}; ask for 1 label or more")
        cosines = self.cosines(self.clip.embed_images(pictures, batch))
        best = self.probabilities(cosines).topk(min(top, len(self.labels)), -1)
        return [
            Guesses(
                name,
                tuple(
                    Guess(self.labels[index], probability, alike[index].item())
                    for index, probability in zip(indices, probabilities, strict=True)
                ),
            )
            for name, alike, indices, probabilities in zip(
                picture_names(pictures), cosines, best.indices.tolist(), best.values.tolist(), strict=True
            )
        ]
