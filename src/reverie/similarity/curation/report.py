"""The report of a curation: a page with histograms, and its numbers as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from reverie.files import write_text
from reverie.similarity.curation.rules import Measurement, Rules
from reverie.similarity.search import page, write_page

BINS = 40
SHOWN_WORDS = 50
WIDTH, HEIGHT, FOOT = 560, 120, 18  # pixels of a histogram

HISTOGRAMS: Mapping[str, Callable[[Measurement], float | None]] = {
    "cosine of picture and text": lambda it: it.cosine,
    "aesthetic score": lambda it: it.aesthetic,
    "letters of the text": lambda it: float(it.characters) if it.text is not None else None,
    "shorter side in pixels": lambda it: float(it.side) if it.width else None,
    "longer side over the shorter": lambda it: it.aspect if it.width else None,
    "kilobytes of the picture": lambda it: it.bytes / 1000 if it.bytes else None,
}


@dataclass(frozen=True)
class Histogram:
    """Count values between `edges`, of all samples and of those kept."""

    edges: tuple[float, ...] = ()
    seen: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()

    @classmethod
    def of(cls, values: Sequence[tuple[float, bool]]) -> Histogram:
        """Count values, each with whether its sample is kept."""
        if not values:
            return cls()
        numbers, kept = np.array([value for value, _ in values]), np.array([kept for _, kept in values])
        edges = np.histogram_bin_edges(numbers, BINS)
        counts = (np.histogram(part, edges)[0].tolist() for part in (numbers, numbers[kept]))
        return cls(tuple(round(edge, 6) for edge in edges.tolist()), *map(tuple, counts))


@dataclass(frozen=True, kw_only=True)
class Curated:
    """Hold the outcome of a curation."""

    rules: Rules
    seen: int
    dropped: Mapping[str, int]
    """How many went, by the first reason."""
    histograms: Mapping[str, Histogram] = field(repr=False)
    words: tuple[tuple[str, int, int], ...] = field(repr=False, default=())
    """The commonest words, how often they come in all texts and in those kept."""
    distinct_words: tuple[int, int] = (0, 0)
    damaged: Mapping[str, str] = field(default_factory=dict)
    """Shards that cannot be read to their end, and why."""
    model: str = ""

    @property
    def kept(self) -> int:
        """Count what stayed."""
        return self.seen - sum(self.dropped.values())

    def record(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"seen": self.seen, "kept": self.kept, **asdict(self)}

    def html(self) -> str:
        """Write the page."""
        share = self.kept / max(1, self.seen)
        body = [f"<p>{self.seen:,} samples were read and {self.kept:,} kept ({share:.1%}).</p>"]
        body.append("<h2>Why samples went</h2>" + _table([(name, f"{n:,}") for name, n in self.dropped.items()]))
        rules = [(name, str(value)) for name, value in asdict(self.rules).items() if value is not None]
        body.append("<h2>Rules</h2>" + _table(rules))
        if self.damaged:
            body.append("<h2>Damaged shards</h2>" + _table(list(self.damaged.items())))
        for name, histogram in self.histograms.items():
            body.append(f"<h2>{escape(name.capitalize())}</h2>{_draw(histogram)}")
        body.append(
            f"<h2>Words</h2><p>{self.distinct_words[0]:,} different words in all texts, {self.distinct_words[1]:,} in "
            f"those kept. The commonest, with both counts:</p>"
        )
        body.append(_table([(word, f"{n:,}", f"{kept:,}") for word, n, kept in self.words[:SHOWN_WORDS]]))
        return page("Curation", "\n".join(body))


def write_report(folder: Path, outcome: Curated) -> None:
    """Write report.json and report.html."""
    write_text(folder / "report.json", json.dumps(outcome.record(), indent=1))
    write_page(folder / "report.html", outcome.html())


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [
        f"<tr><td>{escape(first)}</td>" + "".join(f'<td class="n">{escape(cell)}</td>' for cell in rest) + "</tr>"
        for first, *rest in rows
    ]
    return f"<table>{''.join(lines)}</table>"


def _draw(histogram: Histogram) -> str:
    """Draw bars as SVG: pale for all samples, dark for those kept."""
    tallest, width = max(*histogram.seen, 1), WIDTH / len(histogram.seen)
    bars = [
        f'<rect x="{width * i:.1f}" y="{HEIGHT * (1 - n / tallest):.1f}" width="{width - 1:.1f}" '
        f'height="{HEIGHT * n / tallest:.1f}" fill="{fill}"><title>{histogram.edges[i]:g} to '
        f"{histogram.edges[i + 1]:g}: {n}</title></rect>"
        for counts, fill in ((histogram.seen, "#a9c1dd"), (histogram.kept, "#2c5f9b"))
        for i, n in enumerate(counts)
    ]
    base = HEIGHT + FOOT - 4
    low, high = histogram.edges[0], histogram.edges[-1]
    ends = (
        f'<text x="0" y="{base}" fill="currentColor" font-size="12">{low:.3g}</text>'
        f'<text x="{WIDTH}" y="{base}" fill="currentColor" font-size="12" text-anchor="end">{high:.3g}</text>'
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT + FOOT}" width="{WIDTH}" role="img">{"".join(bars)}{ends}</svg>'
        '<p class="note">pale: all samples, dark: those kept</p>'
    )
