"""A request in the making: another program's settings, which of them are read, and what cannot be honoured.

Where on the way a step of its sampler lies is told here too, without torch: a refiner takes over there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from functools import cache
from typing import Any, Literal, TypeVar

from reverie.errors import ReverieError
from reverie.requests.base import MAX_SEED, Frozen
from reverie.requests.parts import ControlInput, Refiner
from reverie.requests.pictures import TextToImage
from reverie.requests.references import MODEL_FOLDERS, find_beside
from reverie.requests.samplers import RECORDS, find_sampler, find_schedule

SCHEDULE_OF_DIFFUSERS = "leading"  # the spacing that Stable Diffusion's files ask diffusers for
MISSING = (None, "", "None", "null")
"""What a setting holds that was not given."""
OFF: tuple[object, ...] = (*MISSING, "none", "False", "false", 0, [], {}, ())
"""What a setting holds that is not in use; False is equal to 0."""
# The samplers for which ComfyUI leaves out the noise level before the last (comfy/samplers.py, KSampler).
COMFYUI_DISCARDS = ("dpm2", "dpm2_ancestral", "unipc_bh1", "unipc_bh2")
START_IS_MISSING = "the picture that it started from is not in the file"
SDXL_AREA = 900 * 800  # pixels; the bucket sizes of SDXL are larger, and SD 1 and 2 draw smaller ones
LONGEST_VALUE = 120  # characters of a value in a note

Rng = Literal["cpu", "gpu", "cpu_then_gpu"]
StepNoise = Literal["k-diffusion", "generator", "other"]
Part = TypeVar("Part", bound=Frozen)


class Draft:
    """Collects a request from `given` settings; what is taken from them is struck off, and the rest becomes notes."""

    def __init__(self, given: Mapping[str, object] | None = None) -> None:
        self.given: dict[str, Any] = dict(given or {})
        self.kind: type[TextToImage] = TextToImage
        self.fields: dict[str, Any] = {}
        self.model = ""
        self.notes: list[str] = []
        self.long_seed = False

    def note(self, text: str) -> None:
        """Note what cannot be honoured, once."""
        line = " ".join(text.split())
        if line not in self.notes:
            self.notes.append(line)

    def take(self, *names: str, default: Any = None) -> Any:
        """Strike the named settings off and return the first that was given, else `default`."""
        values = [self.given.pop(name) for name in names if name in self.given]
        return next((value for value in values if value not in MISSING), default)

    def text(self, field: str, *names: str) -> None:
        """Set a prompt. Raises ReverieError where it is neither text nor a number."""
        value = self.take(*names, default="")
        if not isinstance(value, str | int | float):
            raise ReverieError(f"the {names[0]} of the file is no text but {shorten(value)}; it cannot be replayed")
        self.fields[field] = str(value)

    def number(self, field: str, *names: str, kind: type[int] | type[float] = float, add: float = 0) -> None:
        """Set a field of numbers, plus `add`; one that is none is noted."""
        if (value := self.take(*names)) is not None:
            self.set_number(field, value, kind, add)

    def set_number(self, field: str, value: object, kind: type[int] | type[float] = float, add: float = 0) -> None:
        """Set a field to a number that is given as any type; note one that is none."""
        try:
            self.fields[field] = kind(as_number(value, kind) + add)
        except (ValueError, OverflowError):
            self.note(f"{field}: {shorten(value)} is not a number; {self.default(field)} takes its place")

    def default(self, field: str) -> object:
        """Return what the field holds already, or what stands there where nothing is said."""
        return self.fields.get(field, TextToImage.model_fields[field].default)

    def seed(self, *names: str) -> None:
        """Set the seed. Raises ReverieError where it is no whole number."""
        if (value := self.take(*names)) is None:
            self.note("seed: the file holds none, so another picture of the prompt is drawn")
            return
        self.set_seed(value)

    def set_seed(self, value: object) -> None:
        """Set the seed: of a larger one, torch's generator on the CPU takes the low 32 bits alone."""
        try:
            seed = int(as_number(value, int))
        except (ValueError, OverflowError):
            raise ReverieError(
                f"the seed of the file is no number but {shorten(value)}; it cannot be replayed"
            ) from None
        if seed < 0:
            self.note(f"seed: {seed} stands for a random one, which the file does not name; another is drawn")
        else:
            self.fields["seed"], self.long_seed = seed & MAX_SEED, seed > MAX_SEED

    def size(self, width: object, height: object) -> None:
        """Set width and height in pixels, cut down to whole latents."""
        for name, value in (("width", width), ("height", height)):
            if value is None:
                continue
            self.set_number(name, value, int)
            pixels = self.fields.get(name)
            if isinstance(pixels, int) and pixels % 8:
                self.fields[name] = max(8, pixels // 8 * 8)
                self.note(f"{name}: {pixels} is not a multiple of 8; {self.fields[name]} takes its place")

    def sampler(self, name: object) -> str | None:
        """Set the sampler by any program's name; return the spacing that the name tells, such as "karras"."""
        found = find_sampler(str(name))
        if found is None:
            self.fields.setdefault("sampler", self.default("sampler"))
            self.note(f"sampler: '{name}' is not known here; {self.fields['sampler']} takes its place")
            return None
        self.fields["sampler"] = found.sampler
        return found.schedule

    def eta(self, value: object) -> None:
        """Set the share of noise that the sampler's steps draw afresh; None, or the sampler's own, says nothing."""
        if value is not None:
            self.set_number("eta", value)
        if self.fields.get("eta") == RECORDS[self.default("sampler")].eta:  # type: ignore[index]
            self.fields.pop("eta", None)

    def schedule(self, name: object, names: Mapping[str, str] | None = None) -> None:
        """Set the spacing of the noise levels by any program's name, or by those of a table."""
        schedule = (names or {}).get(str(name)) or find_schedule(str(name))
        if schedule is None:
            self.fields.setdefault("schedule", self.default("schedule"))
            self.note(f"schedule: '{name}' is not known here; {self.fields['schedule']} takes its place")
        else:
            self.fields["schedule"] = schedule

    def discard(self, samplers: Collection[str]) -> None:
        """Leave out the level before the last where the sampler is one of those for which the program does."""
        self.fields["discard_penultimate"] = self.fields.get("sampler") in samplers

    def noise(self, rng: Rng | None, program: str, steps: StepNoise = "k-diffusion") -> None:
        """Set which generator draws the first noise, None where nobody knows, and note a noise of steps that differs.

        `steps` says how the program draws the noise of later steps: "k-diffusion" reads some off a Brownian path,
        "generator" goes on with the generator, as here, "other" does neither.
        """
        record = RECORDS[self.default("sampler")]  # type: ignore[index]
        if rng is None:
            self.note(f"noise: nothing says how {program} draws it, so the seed may give another picture")
        else:
            self.fields["rng"] = rng
        if self.long_seed and (rng == "gpu" or (rng == "cpu_then_gpu" and record.noise == "fresh")):
            self.note("seed: it has more than 32 bits, all of which count on a GPU, and here the low 32 alone")
        if record.noise == "brownian" and (steps == "k-diffusion" or self.fields["sampler"] == "dpmpp_sde"):
            self.note(f"noise: {program} reads that of {record.label}'s steps off a Brownian path, here it is fresh")
        elif record.noise != "none" and steps == "other":
            self.note(f"noise: {program} draws that of {record.label}'s steps in another way")

    def lora(self, name: object, weight: object, text_weight: object = None) -> None:
        """Add a LoRA to the prompt, by its file's name without folder and suffix, with its weights.

        `weight` is the U-Net's, `text_weight` the text encoder's where it is another. Raises ReverieError for weights
        that are no numbers.
        """
        try:
            unet = float(as_number(weight, float))
            text = unet if text_weight is None else float(as_number(text_weight, float))
        except (ValueError, OverflowError):
            raise ReverieError(
                f"the weight of the LoRA '{name}' is no number but {shorten(weight)}; it cannot be replayed"
            ) from None
        stem = stem_of(name)
        if unet == text == 0 or stem == "None":
            return
        if not stem or any(mark in stem for mark in ":<>"):
            raise ReverieError(f"a LoRA of the name {shorten(name)} cannot be written into a prompt; rename it")
        weights = f"{text:g}" if unet == text else f"{text:g}:{unet:g}"
        self.fields["prompt"] = f"{self.fields.get('prompt', '')} <lora:{stem}:{weights}>".lstrip()

    def clip_skip(self, value: object, add: int = 0) -> None:
        """Set how many layers the text encoder leaves out, counted from 1; none or 0 is 1."""
        if value not in OFF:
            self.set_number("clip_skip", value, int, add)

    def clip_layer(self, value: object) -> None:
        """Set the layer that ComfyUI or stable-diffusion.cpp reads, counted from the last; SDXL's usual one is 2."""
        self.clip_skip(value)
        if is_large(self.fields) and (layer := self.fields.get("clip_skip", 1)) > 1:
            self.fields["clip_skip"] = layer - 1

    def part(self, field: str, kind: type[Part], **values: object) -> None:
        """Set a part of the request, such as a second pass, or note why it is not possible."""
        try:
            self.fields[field] = kind.of(values)
        except ReverieError as error:
            self.note(f"{error}; it is left out")

    def refiner(self, name: str, where: str, switch: float) -> None:
        """Let another model take the last steps, where its file is here; `where` says in the program's words when."""
        file = find_beside(name)
        if file is None:
            self.note(
                f"Refiner: {shorten(name)}, {where}; its file is neither beside the picture nor in {MODEL_FOLDERS}"
            )
        else:
            self.part("refiner", Refiner, model=str(file), switch=switch)

    def control(self, model: object, picture: object, **values: object) -> None:
        """Add a ControlNet, where it and the picture that it saw are here."""
        files = [find_beside(str(name)) if name else None for name in (model, picture)]
        if None in files:
            said = ", ".join(f"{name} {shorten(value)}" for name, value in values.items() if value is not None)
            seen = f"the picture '{picture}'" if picture else "a picture that is not in the file"
            lacking = "they are" if files == [None, None] else f"'{model}' is" if files[0] is None else "the picture is"
            here = f"neither beside the picture nor in {MODEL_FOLDERS}"
            self.note(f"ControlNet: '{model}' with {seen}; {said}; {lacking} {here}")
            return
        given = {"model": str(files[0]), "image": files[1], **values}
        self.append("controls", f"ControlNet '{model}'", ControlInput, given)

    def append(self, field: str, title: str, kind: type[Frozen], values: Mapping[str, Any]) -> None:
        """Add one of several parts; one with values that are not possible is noted by its title."""
        try:
            self.fields[field] = (*self.fields.get(field, ()), kind.of(values))
        except ReverieError as error:
            self.note(f"{title}: {error}; it is left out")

    def put(self, field: str, value: object) -> None:
        """Set a field of pictures to a value; one that is not possible is noted."""
        try:
            self.fields[field] = getattr(TextToImage.of({field: value}), field)
        except ReverieError as error:
            self.note(f"{error}; it is left out")

    def rest(self, neutral: Collection[str] = (), prefix: str = "") -> None:
        """Note every setting that is in use, was not taken, and is none of those that change nothing."""
        for name, value in self.given.items():
            if name not in neutral and value not in OFF:
                self.note(f"{prefix}{name}: {shorten(value)}")
        self.given.clear()

    def request(self, size: tuple[int, int] | None) -> TextToImage:
        """Return the request; one field that is not possible is noted and does not spoil the rest.

        `size` is the picture's, for settings that name none. Raises ReverieError where prompt or seed are not possible.
        """
        if "width" not in self.fields and size is not None:
            self.size(*size)
        fields = {name: value for name, value in self.fields.items() if self._is_possible(name, value)}
        for part in ("hires", "variation"):
            try:
                return self.kind.of(fields)
            except ReverieError as error:
                if fields.pop(part, None) is not None:
                    self.note(f"{error}; the {part} is left out")
        return self.kind.of(fields)

    def _is_possible(self, name: str, value: object) -> bool:
        if name not in TextToImage.model_fields:  # of a picture that is here, read already
            return True
        try:
            TextToImage.of({"seed": 0, "sampler": self.default("sampler"), name: value})
        except ReverieError as error:
            if name in ("prompt", "seed"):
                raise
            self.note(f"{error}; {TextToImage.model_fields[name].default} takes its place")
            return False
        return True


def is_large(fields: Mapping[str, Any]) -> bool:
    """Tell whether the first pass has the size of SDXL's pictures, of whose model a file says nothing else."""
    return int(fields.get("width") or 0) * int(fields.get("height") or 0) >= SDXL_AREA


def as_number(value: object, kind: type[int] | type[float]) -> int | float:
    """Turn text or a number into a finite number. Raises ValueError where it is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{value!r} is not a number")
    if kind is int:
        if isinstance(value, float) or (isinstance(value, str) and "." in value):
            number = float(value)
            if not number.is_integer():
                raise ValueError(f"{value!r} is not whole")
            return int(number)
        return int(value)
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not finite")
    return number


def stem_of(name: object) -> str:
    """Return a file's name without folders and the suffix of weights."""
    stem = str(name).replace("\\", "/").rpartition("/")[2].strip()
    for suffix in (".safetensors", ".ckpt", ".pt", ".bin"):
        stem = stem.removesuffix(suffix)
    return stem


def shorten(value: object) -> str:
    """Write a value for a note: text as it is, else JSON, cut to one short line."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def as_mapping(value: object) -> dict[str, Any]:
    """Return a mapping as it is, and an empty one for whatever else."""
    return value if isinstance(value, dict) else {}


TIMESTEPS = 1000
BETAS = (0.00085, 0.012)  # of Stable Diffusion's schedule, whose square roots are spaced evenly
RHO = 7.0


def way_at(schedule: str, step: int, steps: int) -> float:
    """Return the fraction of the timesteps that lies between two steps, `step` - 1 and `step` of `steps`, from 0.

    The levels are those of `diffusion.spacings`; ones that are not among them are taken for even.
    """
    between = (_timestep(schedule, step - 1, steps) + _timestep(schedule, step, steps)) / 2
    return round(min(1.0, max(0.0, 1 - between / TIMESTEPS)), 4)


def _timestep(schedule: str, step: int, steps: int) -> float:
    """Return the timestep of a step, from 999 to 0."""
    last = TIMESTEPS - 1
    if schedule in ("normal", "linspace"):
        return last * (1 - step / max(1, steps - 1))
    if schedule in ("karras", "exponential"):
        return _timestep_of(_sigma(schedule, step / max(1, steps - 1)))
    return last * (1 - step / steps)


def _sigma(schedule: str, part: float) -> float:
    largest, smallest = _sigmas()[-1], _sigmas()[0]
    if schedule == "exponential":
        return math.exp((1 - part) * math.log(largest) + part * math.log(smallest))
    return float(((1 - part) * largest ** (1 / RHO) + part * smallest ** (1 / RHO)) ** RHO)


def _timestep_of(sigma: float) -> float:
    """Return the timestep of a level, linear in log sigma between whole ones."""
    sigmas = _sigmas()
    above = next((t for t, one in enumerate(sigmas) if one >= sigma), TIMESTEPS - 1)
    if above == 0:
        return 0.0
    low, high = math.log(sigmas[above - 1]), math.log(sigmas[above])
    return above - 1 + min(1.0, (math.log(sigma) - low) / (high - low))


@cache
def _sigmas() -> list[float]:
    first, last = (math.sqrt(beta) for beta in BETAS)
    kept, sigmas = 1.0, []
    for t in range(TIMESTEPS):
        kept *= 1 - (first + (last - first) * t / (TIMESTEPS - 1)) ** 2
        sigmas.append(math.sqrt((1 - kept) / kept))
    return sigmas
