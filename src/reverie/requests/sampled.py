"""What does every sampled request say? What noise it starts from, how the steps go, and what changes the model."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from reverie.requests.guided import Guided
from reverie.requests.parts import MAX_SEED, Fraction, Interval, Seed, check_interval
from reverie.requests.samplers import SamplerName, ScheduleName, resolve_names


def random_seed() -> int:
    """Draw a seed from the system's entropy."""
    return secrets.randbelow(MAX_SEED + 1)


def _seed_or_random(seed: object) -> object:
    return random_seed() if seed is None else seed


class Sampled(Guided):
    """Hold a request that a sampler carries out; `seed` is drawn at random where None."""

    negative: str = Field(default="", description="what to keep away from")
    seed: Annotated[Seed, BeforeValidator(_seed_or_random)] = Field(
        default_factory=random_seed, description="of the noise, random if not given; number k of several uses seed + k"
    )
    steps: int = Field(default=20, ge=1, le=1000, description="denoising steps")
    sampler: SamplerName = Field(default="dpmpp_2m", description="how the noise is taken away")
    schedule: ScheduleName = Field(default="karras", description="how the noise levels are spaced")
    discard_penultimate: bool = Field(
        default=False,
        description="leave out the noise level before the last, of one step more, as A1111 does for DPM2 and 3M SDE",
    )
    guidance_rescale: Fraction = Field(default=0.0, description="against overexposure (Lin et al. 2023, eq. 15-16)")
    guidance_interval: Interval = Field(
        default=(0.0, 1.0), description="fractions of the way between which guidance acts, the whole by default"
    )
    cache_steps: int = Field(
        default=1, ge=1, le=10, description="steps for which the U-Net's inner levels are computed once; 1 is exact"
    )
    merge_tokens: float = Field(
        default=0.0, ge=0, le=0.75, description="share of the tokens that self-attention merges; 0 is exact"
    )
    threshold: float | None = Field(
        default=None, gt=0, le=1, description="dynamic thresholding's percentile, such as 0.995"
    )
    clip_skip: int = Field(
        default=1, ge=1, le=12, description="1 reads the text encoder's usual layer, 2 the one before, ..."
    )
    loras: tuple[str, ...] = Field(
        default=(), description="files, each FILE, FILE:weight or FILE:text weight:U-Net weight"
    )
    embeddings: tuple[str, ...] = Field(default=(), description="textual inversion files, or folders of them")

    @model_validator(mode="before")
    @classmethod
    def _resolve_names(cls, fields: Any) -> Any:
        """Turn other programs' names of samplers and spacings into ours: "DPM++ 2M Karras" is both."""
        return resolve_names(fields) if isinstance(fields, dict) else fields

    @model_validator(mode="after")
    def _check_interval(self) -> Self:
        check_interval(*self.guidance_interval)
        return self

    def shared(self) -> dict[str, Any]:
        """Return what it says as any sampled request does, to ask for another with."""
        return {name: getattr(self, name) for name in Sampled.model_fields}
