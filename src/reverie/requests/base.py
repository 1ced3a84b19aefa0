"""The base of all requests: frozen, checked values that say in one line what is wrong, and are written as JSON."""

from __future__ import annotations

import difflib
import json
import secrets
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from reverie.errors import ReverieError
from reverie.requests import adapter_files
from reverie.requests.samplers import DEFAULT_SCHEDULE, RECORDS, SamplerName, ScheduleName, resolve_names

# torch's generator on the CPU (mt19937) is seeded with the low 32 bits alone: larger seeds would repeat smaller ones.
MAX_SEED = 2**32 - 1
RANDOM_SEED = -1  # what AUTOMATIC1111 writes for a random seed
EXAMPLES = {"timesteps": "999,749,499,249", "sigmas": "14.6,7,2,0.5,0"}
RECORDED = {"files": "recorded"}
"""The context in which a request is written with its files' names and SHA-256, and not with their data."""

Pixels = Annotated[int, Field(ge=8, le=8192, multiple_of=8)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Interval = tuple[Fraction, Fraction]
Strength = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Guidance = Annotated[float, Field(ge=0, le=100)]
Level = Annotated[float, Field(ge=0)]
FreeU = tuple[Level, Level, Level, Level]

FREE_LEVELS = frozenset({"timesteps", "sigmas"})
"""The fields that say themselves which noise levels are visited, in place of a number of steps and a spacing."""


class Frozen(BaseModel):
    """Checked values that do not change. Raises ReverieError, in one line, for any value out of range."""

    # Schemas are built when a class is first used: building all of them takes longer than `reverie image --help`.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)
    part: ClassVar[str] = ""
    """What an error names before the field, for a part of a request."""

    def __init__(self, /, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise one_line(error, type(self)) from None

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """Check fields of any type that can be turned into the right one, such as paths into pictures."""
        return cls(**fields)

    def replace(self, **changes: object) -> Self:
        """Return a copy with some fields changed, checked again; the rest stay as given, or as open, as they were."""
        copy = type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **changes})
        copy.model_fields_set.intersection_update({*self.model_fields_set, *changes})
        return copy


def one_line(error: ValidationError, request: type[Frozen]) -> ReverieError:
    """Return the first of pydantic's errors in one line (what was given, what is allowed), and the others' fields."""
    first, *others = error.errors()
    names = dict.fromkeys(str(other["loc"][0]) for other in others if other["loc"])
    fields = ", ".join(name for name in names if [name] != [*first["loc"][:1]])
    more = f" (wrong too: {fields})" if fields else ""
    if first["type"] == "value_error":  # one of our own checks, which says it all
        own = first["ctx"]["error"]
        return ReverieError(f"{own}{more}", field=getattr(own, "field", None) or _field(first))
    if first["type"] == "missing" and isinstance(first["loc"][-1], int):  # an item of a list
        count = 1 + max(int(one["loc"][-1]) for one in (first, *others) if one["loc"][:-1] == first["loc"][:-1])
        first = {**first, "type": "too_short", "msg": f"List should have {count} items"}
    return ReverieError(_message(first, request) + more, field=_field(first))


def _field(error: ErrorDetails) -> str | None:
    return ".".join(map(str, error["loc"])) or None


def _message(error: ErrorDetails, request: type[Frozen]) -> str:
    name, given = str(error["loc"][0]), error["input"]
    if error["type"] == "missing":
        return f"{request.part}{name} is missing; {request.__name__} needs it"
    if error["type"] == "extra_forbidden":
        return unknown(f"{request.part}option", name, list(request.model_fields))
    if error["type"] == "literal_error":
        return unknown(request.part + name, given, _choices(request.model_fields[name].annotation))
    message = error["msg"].removeprefix("Input ").split("should ", 1)[-1].replace("a valid tuple", "a list")
    return f"{request.part}{name} {given!r} is not possible; it should {message}"


def _choices(annotation: Any) -> tuple[str, ...]:
    """Return the texts that a literal, or one that may be None, allows."""
    inner = [_choices(part) if get_args(part) else (part,) for part in get_args(annotation)]
    return tuple(choice for choices in inner for choice in choices if isinstance(choice, str))


def unknown(what: str, given: object, allowed: Sequence[str]) -> str:
    """Say that a name is unknown, which of the allowed ones is near to it, and all of them."""
    near = difflib.get_close_matches(str(given), allowed, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"unknown {what} {given!r}; {hint}choose from {', '.join(allowed)}"


class Request(Frozen):
    """What can be asked for: the same object is the command line's flags, an HTTP body and a file's metadata.

    Prompts are followed by classifier-free guidance (Ho and Salimans 2207.12598); None is the model's own scale.
    """

    kind: ClassVar[str] = ""
    """The name of this kind of request in JSON."""

    guidance: Guidance | None = Field(
        default=None,
        description="scale of classifier-free guidance: how strictly the prompt is followed; 1 switches it "
        "off; the model's own if not given",
    )

    @property
    def scale(self) -> float:
        """Return the guidance of a request that was settled. Raises ValueError for one that was not."""
        if self.guidance is None:
            raise ValueError("the guidance is the model's, and nothing was asked of a model yet")
        return self.guidance

    def with_recommended(self, own: Mapping[str, Any]) -> Self:
        """Fill in what the request leaves open, by default or by a guidance of None, with `own` values of a model.

        Its timesteps are for requests that name neither steps nor spacing, its spacing for those without free levels.
        """
        named = self.model_fields_set - ({"guidance"} if self.guidance is None else set())
        fields = {name: own[name] for name in type(self).model_fields.keys() - named if name in own}
        if named & {"steps", "schedule", *FREE_LEVELS}:
            fields = {name: value for name, value in fields.items() if name not in FREE_LEVELS}
        if (named | fields.keys()) & FREE_LEVELS:
            fields.pop("schedule", None)
        if "sampler" in named:
            fields.pop("eta", None)
        return self.replace(**fields)

    def to_json(self) -> str:
        """Write the request as one line of JSON, with its kind, and its pictures as data URLs."""
        return json.dumps({"kind": self.kind, **self.model_dump(mode="json")}, ensure_ascii=False)

    def to_record(self) -> dict[str, Any]:
        """Return what metadata holds of the request: its files by name and SHA-256."""
        return self.model_dump(mode="json", context=RECORDED)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a request written by `to_json`, as the class that its kind names; without a kind, as this class.

        Raises ReverieError for text that is no such JSON, and for a kind that is not one of this class.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ReverieError(f"request is not JSON: {error}") from error
        if not isinstance(data, dict):
            raise ReverieError(f"request must be a JSON object, not {type(data).__name__}")
        return cls.of_kind(data)

    @classmethod
    def of_kind(cls, fields: Mapping[str, Any]) -> Self:
        """Make a request of what `kind` and the other fields say; without a kind, of this class.

        Raises ReverieError for a kind that is not one of this class, and as `of` does.
        """
        given = dict(fields)
        if (kind := given.pop("kind", cls.kind)) == cls.kind and kind:
            return cls.of(given)
        from reverie.requests.records import KINDS  # which imports this module

        kinds = {name: known for name, known in KINDS.items() if issubclass(known, cls)}
        if not isinstance(kind, str) or kind not in kinds:
            raise ReverieError(unknown("kind", kind, list(kinds)), field="kind")
        return kinds[kind].of(given)


def random_seed() -> int:
    """Draw a seed from the system's entropy."""
    return secrets.randbelow(MAX_SEED + 1)


def _seed_or_random(seed: object) -> object:
    return random_seed() if seed is None or (isinstance(seed, int) and seed == RANDOM_SEED) else seed


def _pairs(given: object) -> object:
    return tuple(given.items()) if isinstance(given, dict) else given


class SampledRequest(Request):
    """A request that a sampler carries out; `seed` is drawn at random where it is None or -1."""

    negative: str = Field(default="", description="negative prompt: what to keep away from")
    seed: Annotated[Seed, BeforeValidator(_seed_or_random)] = Field(
        default_factory=random_seed,
        description="seed of the noise, number k of several from seed + k; random if not given or -1",
    )
    steps: int = Field(default=20, ge=1, le=1000, description="denoising steps")
    sampler: SamplerName = Field(
        default="dpmpp_2m",
        description="sampler: dpmpp_2m, euler, heun, ..., or as other programs call it; an unknown name lists them all",
    )
    schedule: ScheduleName = Field(
        default=DEFAULT_SCHEDULE,
        description="spacing of the noise levels: karras, exponential, ...; an unknown name lists them all",
    )
    timesteps: tuple[Level, ...] = Field(
        default=(),
        description="timesteps that are visited, such as 999,749,499,249, in place of steps and schedule",
    )
    sigmas: tuple[Level, ...] = Field(
        default=(),
        description="noise levels from the first to where the last step ends, such as 14.6,7,2,0.5,0, in place of "
        "steps and schedule",
    )
    eta: Fraction | None = Field(
        default=None,
        description="0 to 1, share of the noise that a step takes out and draws afresh (DDIM's eta, TCD's gamma); the "
        "sampler's own if not given",
    )
    discard_penultimate: bool = Field(
        default=False,
        description="leave out the noise level before the last, of one step more, as A1111 does for DPM2 and 3M SDE",
    )
    guidance_rescale: Fraction = Field(
        default=0.0, description="0 to 1, against overexposure at high guidance (Lin et al. 2305.08891, eq. 15-16)"
    )
    guidance_interval: Interval = Field(
        default=(0.0, 1.0),
        description="START,END: fractions of the way between which guidance acts, such as 0.2,0.8; the whole "
        "if not given",
    )
    perturbed_guidance: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="scale of perturbed-attention guidance (Ahn et al. 2403.17377), such as 3, beside guidance or with "
        "guidance 1; 0 is none",
    )
    cfg_pp: bool = Field(
        default=False,
        description="CFG++ (Chung et al. 2406.08070), with a guidance of 0 to 1 such as 0.6; for euler and ddim",
    )
    freeu: FreeU | None = Field(
        default=None,
        description="FreeU (Si et al. 2309.11497), its b1,b2,s1,s2: 1.5,1.6,0.9,0.2 for SD 1, 1.3,1.4,0.9,0.2 for XL",
    )
    cache_steps: int = Field(
        default=1,
        ge=1,
        le=10,
        description="steps for which the U-Net's inner levels are computed once (DeepCache): quicker, and a "
        "little another picture",
    )
    merge_tokens: float = Field(
        default=0.0,
        ge=0,
        le=0.75,
        description="0 to 0.75, share of the tokens that self-attention merges: quicker at large sizes, and a "
        "little another picture",
    )
    threshold: float | None = Field(
        default=None, gt=0, le=1, description="percentile of dynamic thresholding, such as 0.995; none if not given"
    )
    clip_skip: int = Field(
        default=1, ge=1, le=12, description="2 reads the last but one layer of the text encoder, and so on"
    )
    loras: tuple[str, ...] = Field(
        default=(),
        description="LoRA: FILE or name, FILE:weight or FILE:text weight:U-Net weight; may be given several times",
    )
    embeddings: tuple[str, ...] = Field(
        default=(),
        description="textual inversion, named in the prompt by its file's name, or a folder of them; may be "
        "given several times",
    )
    folders: tuple[str, ...] = Field(
        default=(),
        description="folder where LoRAs and embeddings are looked for by name, before REVERIE_LORA_DIR; may be "
        "given several times",
    )
    sums: Annotated[tuple[tuple[str, str], ...], BeforeValidator(_pairs)] = Field(
        default=(),
        description="SHA-256 of adapters, embeddings, ControlNets and the refiner by name, as recorded; other content "
        "is noted",
    )

    @model_validator(mode="before")
    @classmethod
    def _resolve_names(cls, fields: Any) -> Any:
        """Turn other programs' names of samplers and spacings into ours ("DPM++ 2M Karras" is both); count levels."""
        if not isinstance(fields, dict):
            return fields
        fields = {name: value for name, value in fields.items() if value or name not in FREE_LEVELS}
        count = count_steps(fields.get("timesteps"), fields.get("sigmas"))
        return {**({"steps": count} if count else {}), **resolve_names(fields)}

    @field_validator("loras", "embeddings", "folders", mode="after")
    @classmethod
    def _resolve(cls, given: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        from reverie.requests.references import resolve_adapters  # which imports this module

        return resolve_adapters(str(info.field_name), given)

    @model_validator(mode="after")
    def _check_interval(self) -> Self:
        start, end = self.guidance_interval
        if start >= end:
            raise ReverieError(
                f"guidance from {start:g} to {end:g} never acts; give the smaller first, as 0.2,0.8",
                field="guidance_interval",
            )
        return self

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        name, levels = ("sigmas", self.sigmas) if self.sigmas else ("timesteps", self.timesteps)
        if not levels:
            return self
        others = {"timesteps": name == "sigmas" and self.timesteps, "discard_penultimate": self.discard_penultimate}
        others[f"schedule {self.schedule}"] = self.schedule != DEFAULT_SCHEDULE
        for other in (other for other, asked in others.items() if asked):
            raise ReverieError(f"{name} are all the noise levels that are visited; leave out {other}", field=name)
        count, given = count_steps(self.timesteps, self.sigmas), ",".join(f"{level:g}" for level in levels)
        if not count or any(following >= level for level, following in pairwise(levels)):
            raise ReverieError(f"{name} {given} do not fall; give falling ones, such as {EXAMPLES[name]}", field=name)
        if self.steps != count:
            raise ReverieError(f"{name} {given} are {count} steps, not {self.steps}; leave steps out", field="steps")
        return self

    @model_validator(mode="after")
    def _check_eta(self) -> Self:
        if self.eta is not None and RECORDS[self.sampler].eta is None:
            fitting = ", ".join(name for name, record in RECORDS.items() if record.eta is not None)
            raise ReverieError(f"{self.sampler} takes no eta; choose from {fitting}, or leave eta out", field="eta")
        return self

    @model_validator(mode="after")
    def _check_cfg_pp(self) -> Self:
        if self.cfg_pp and (self.eta or not RECORDS[self.sampler].linear):
            fitting = " or ".join(name for name, record in RECORDS.items() if record.linear)
            raise ReverieError(f"CFG++ is defined for {fitting} without eta; choose one of them", field="cfg_pp")
        return self

    @property
    def prompts(self) -> tuple[str, ...]:
        """Return the texts to go towards, in which LoRAs may be named."""
        return ()

    @property
    def negatives(self) -> tuple[str, ...]:
        """Return the texts to keep away from."""
        return (self.negative,)

    def to_record(self) -> dict[str, Any]:
        """Return what metadata holds of the request: its files, adapters too, by name and SHA-256."""
        data = super().to_record()
        listed = {name: data.pop(name) for name in ("loras", "embeddings", "folders")}
        return data | adapter_files.record(listed, self.prompts, self.negatives, dict(data.pop("sums")))

    def sampling_fields(self) -> dict[str, Any]:
        """Return the fields that every sampled request has, to ask for another with."""
        return {name: getattr(self, name) for name in SampledRequest.model_fields}


def count_steps(timesteps: object, sigmas: object) -> int:
    """Return how many steps lead over free timesteps, to no noise at last, or over free sigmas; 0 where none are."""
    if isinstance(timesteps, tuple | list) and timesteps:
        return len(timesteps)
    return max(0, len(sigmas) - 1) if isinstance(sigmas, tuple | list) else 0


def steps_taken(steps: int, strength: float) -> int:
    """Return how many of `steps` remain at a strength: the last int(steps * strength) of the table, as in diffusers."""
    return min(int(steps * strength), steps)


def check_strength(steps: int, strength: float) -> None:
    """Raise ReverieError where a strength is so small that no step remains."""
    if steps_taken(steps, strength) == 0:
        raise ReverieError(
            f"strength {strength:g} of {steps} steps leaves none; give at least {1 / steps:.3g}", field="strength"
        )
