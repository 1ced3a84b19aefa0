"""Rules by which a measured sample is kept or dropped, in the order in which they are asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from reverie.errors import ReverieError

DUPLICATE = "near-duplicate"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Say of a sample what the rules ask for; what could not be measured is None."""

    key: str
    text: str | None = None
    bytes: int = 0
    """Size of the picture's file."""
    width: int | None = None
    height: int | None = None
    cosine: float | None = None
    """Likeness of the picture and its text, by CLIP."""
    aesthetic: float | None = None
    error: str = ""
    """Why the picture cannot be read."""

    @property
    def characters(self) -> int:
        """Count the letters of the text."""
        return len(self.text or "")

    @property
    def side(self) -> int:
        """Return the picture's shorter side."""
        return min(self.width or 0, self.height or 0)

    @property
    def aspect(self) -> float:
        """Return how many times the longer side is the shorter one."""
        return max(self.width or 0, self.height or 0) / max(1, self.side)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Set what a sample needs; the defaults are LAION-5B's for English."""

    min_cosine: float | None = 0.28
    """LAION-5B: 0.28 with ViT-B/32, 0.26 for other languages; LAION-400M: 0.3."""
    min_text: int = 5
    """Letters of a text; LAION drops shorter ones."""
    min_bytes: int = 5000
    """Bytes of a picture's file; LAION drops those under 5 KB."""
    min_side: int = 0
    """Pixels of the shorter side: 512 for Stable Diffusion's training."""
    max_aspect: float | None = None
    """Longer side over the shorter one."""
    min_aesthetic: float | None = None
    """Score of the aesthetic head: 5 for LAION-Aesthetics."""
    duplicates: float | None = None
    """Cosine of two pictures from which the second is a near-duplicate, such as 0.96."""

    def __post_init__(self) -> None:
        """Raise ReverieError for what no sample could meet, or what is no limit."""
        for name in ("min_cosine", "duplicates"):
            value = getattr(self, name)
            if value is not None and not -1 <= value <= 1:
                raise ReverieError(f"{name} is {value}; a cosine lies between -1 and 1")
        for name in ("min_text", "min_bytes", "min_side"):
            if getattr(self, name) < 0:
                raise ReverieError(f"{name} is {getattr(self, name)}; it should be 0 or more")
        if self.max_aspect is not None and not self.max_aspect >= 1:
            raise ReverieError(f"max_aspect is {self.max_aspect}; it should be 1 (square) or more")

    @property
    def need_clip(self) -> bool:
        """Tell whether a rule asks for embeddings."""
        return any(value is not None for value in (self.min_cosine, self.min_aesthetic, self.duplicates))


Rule = Callable[[Measurement, Rules], bool]

# What a rule is called in the report, and when it drops a sample. The cheap ones come first: of several reasons the
# first is told.
RULES: Mapping[str, Rule] = {
    "no picture": lambda it, _: not it.bytes,
    "no text": lambda it, _: it.text is None,
    "damaged picture": lambda it, _: bool(it.error),
    "short text": lambda it, rules: it.characters < rules.min_text,
    "small file": lambda it, rules: it.bytes < rules.min_bytes,
    "low resolution": lambda it, rules: it.side < rules.min_side,
    "narrow": lambda it, rules: rules.max_aspect is not None and it.aspect > rules.max_aspect,
    "low cosine": lambda it, rules: _below(it.cosine, rules.min_cosine),
    "low aesthetic score": lambda it, rules: _below(it.aesthetic, rules.min_aesthetic),
}


def reason_to_drop(measured: Measurement, rules: Rules) -> str:
    """Name the first rule that a sample fails; empty where it meets all."""
    return next((name for name, fails in RULES.items() if fails(measured, rules)), "")


def _below(value: float | None, limit: float | None) -> bool:
    return limit is not None and (value is None or value < limit)
