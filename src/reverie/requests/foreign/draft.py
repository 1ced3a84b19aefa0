"""How do another program's settings add up to a request? Field by field, with a list of what is missed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reverie.requests.base import MAX_SEED
from reverie.requests.pictures import TextToImage

SCHEDULE_OF_DIFFUSERS = "leading"  # the spacing that Stable Diffusion's files ask diffusers for


@dataclass
class Draft:
    """Collect the fields of a request, the model's name, and what cannot be honoured."""

    fields: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    missed: list[str] = field(default_factory=list)

    def miss(self, what: str) -> None:
        """Note what cannot be honoured, once."""
        if what not in self.missed:
            self.missed.append(what)

    def text(self, name: str, value: object) -> None:
        """Set a field of words."""
        if value is not None:
            self.fields[name] = str(value)

    def number(self, name: str, value: object, kind: type[int] | type[float] = float) -> None:
        """Set a field of numbers; one that is none is missed."""
        if value is None or value == "":
            return
        try:
            self.fields[name] = kind(str(value))
        except ValueError:
            self.miss(f"{name}: {value!r} is not a number")

    def seed(self, value: object) -> None:
        """Set the seed: of a larger one, torch's generator on the CPU takes the low 32 bits alone."""
        self.number("seed", value, int)
        if isinstance(seed := self.fields.get("seed"), int):
            self.fields["seed"] = seed & MAX_SEED

    def size(self, width: object, height: object) -> None:
        """Set width and height in pixels, cut down to whole latents."""
        self.number("width", width, int)
        self.number("height", height, int)
        for name in ("width", "height"):
            pixels = self.fields.get(name)
            if isinstance(pixels, int) and pixels % 8:
                self.fields[name] = max(8, pixels // 8 * 8)
                self.miss(f"{name}: {pixels} is not a multiple of 8")

    def sampler(self, name: str, table: Mapping[str, str]) -> None:
        """Set the sampler by another program's name for it."""
        self._choose("sampler", name, table)

    def schedule(self, name: str, table: Mapping[str, str]) -> None:
        """Set the spacing of the noise levels by another program's name for it."""
        self._choose("schedule", name, table)

    def _choose(self, kind: str, name: str, table: Mapping[str, str]) -> None:
        if name in table:
            self.fields[kind] = table[name]
        else:
            default = TextToImage.model_fields[kind].default
            self.miss(f"{kind}: '{name}' is not known here; {self.fields.setdefault(kind, default)} takes its place")

    def lora(self, name: str, weight: object, text_weight: object) -> None:
        """Add a LoRA to the prompt, by its file's name without folder and suffix."""
        stem = name.replace("\\", "/").rpartition("/")[2].removesuffix(".safetensors")
        prompt = str(self.fields.get("prompt", ""))
        weights = f"{text_weight}" if weight == text_weight else f"{text_weight}:{weight}"
        self.fields["prompt"] = f"{prompt} <lora:{stem}:{weights}>".lstrip()
