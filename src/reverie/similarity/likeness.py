"""The matrix of cosines between pictures and texts, shown as a table, as CSV, or as a heat map."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from reverie.codecs.clip_images import Picture
from reverie.media.charts import colour_of, heat_map


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


def named(pictures: Sequence[Picture]) -> tuple[str, ...]:
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
