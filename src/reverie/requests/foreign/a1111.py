"""What does AUTOMATIC1111's `parameters` text ask for? Also Forge's, SD.Next's, Civitai's and our own."""

from __future__ import annotations

import json
import re

from reverie.requests.base import SCHEDULES
from reverie.requests.foreign.draft import Draft
from reverie.requests.metadata import SAMPLER_LABELS, SCHEDULE_LABELS
from reverie.requests.parts import Hires, Variation

SAMPLERS = {label: name for name, label in SAMPLER_LABELS.items()}
SPACINGS = {label: name for name, label in SCHEDULE_LABELS.items()} | {
    "Normal": "normal",
    "Simple": "trailing",  # every (timesteps / steps)-th timestep from above
    **{name: name for name in SCHEDULES},
}
# What "Automatic" stands for, where it is not Uniform (modules/sd_samplers_*.py); DDIM and PLMS have their own.
AUTOMATIC = {
    "dpmpp_2m": "karras",
    "dpmpp_sde": "karras",
    "dpmpp_2s_ancestral": "karras",
    "dpm2": "karras",
    "dpm2_ancestral": "karras",
    "dpmpp_2m_sde": "exponential",
    "dpmpp_3m_sde": "exponential",
    "ddim": "ddim",
    "plms": "ddim",
    "lcm": "lcm",
}
UPSCALERS = {"latent": "latent", "Latent": "latent", "lanczos": "lanczos", "Lanczos": "lanczos"}
# What changes nothing, or is only a name or a sum of what else is there.
NEUTRAL = {"Version", "Model hash", "Lora hashes", "TI hashes", "Hashes", "User", "Batch size", "Batch pos"}
NEUTRAL |= {"Created Date", "Civitai resources", "Civitai metadata", "VAE hash", "Parser", "Backend", "App"}

FIELD = re.compile(r'\s*([^\W\d][\w \-/.()]*?):\s*("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)')
NEGATIVE = "Negative prompt:"


def read(text: str) -> Draft:
    """Read the prompt, the negative prompt, and the line of settings."""
    draft = Draft()
    prompt, negative, settings = split(text)
    draft.text("prompt", prompt)
    draft.text("negative", negative)
    _plain(draft, settings)
    _sampler(draft, settings)
    _hires(draft, settings)
    _variation(draft, settings)
    if (noise := settings.pop("RNG", "GPU")) != "CPU":
        draft.miss(f"RNG: {noise}; here noise is drawn on the CPU, so the seed gives another picture")
    for name, value in settings.items():
        if name not in NEUTRAL:
            draft.miss(f"{name}: {value}")
    return draft


def split(text: str) -> tuple[str, str, dict[str, str]]:
    """Cut the text into prompt, negative prompt and settings; each prompt may have several lines, or none."""
    lines = text.strip().splitlines()
    settings: dict[str, str] = {}
    if lines and re.match(r"Steps: *\d+,", lines[-1]):
        settings = {name: _unquoted(value) for name, value in FIELD.findall(lines.pop())}
    start = next((index for index, line in enumerate(lines) if line.startswith(NEGATIVE)), len(lines))
    negative = "\n".join(lines[start:]).removeprefix(NEGATIVE)
    return "\n".join(lines[:start]).strip(), negative.strip(), settings


def _unquoted(value: str) -> str:
    if value.startswith('"'):
        try:
            return str(json.loads(value, strict=False))
        except ValueError:
            return value
    return value.strip()


def _plain(draft: Draft, settings: dict[str, str]) -> None:
    """Take over what has the same meaning in both programs."""
    draft.number("steps", settings.pop("Steps", None), int)
    draft.number("guidance", settings.pop("CFG scale", None))
    draft.number("guidance_rescale", settings.pop("CFG Rescale", None))
    draft.number("threshold", settings.pop("Dynamic thresholding", None))
    draft.number("clip_skip", settings.pop("Clip skip", None), int)
    draft.seed(settings.pop("Seed", None))
    draft.size(*_pair(settings.pop("Size", "")))
    draft.model = settings.pop("Model", settings.get("Model hash", ""))
    if tiling := settings.pop("Tiling", None):
        draft.fields["tile"] = tiling if tiling in ("x", "y") else "xy"


def _sampler(draft: Draft, settings: dict[str, str]) -> None:
    """Read sampler and schedule, which before version 1.9 stood together: "DPM++ 2M Karras"."""
    label, schedule = settings.pop("Sampler", None), settings.pop("Schedule type", None)
    if label is None:
        return
    for suffix in SPACINGS:
        if schedule is None and label.endswith(f" {suffix}"):
            label, schedule = label.removesuffix(f" {suffix}"), suffix
    draft.sampler(label, SAMPLERS)
    sampler = str(draft.fields["sampler"])
    if schedule is None and sampler not in ("ddim", "plms", "lcm"):
        schedule = "Uniform"
    draft.schedule(AUTOMATIC.get(sampler, "normal") if schedule in (None, "Automatic") else str(schedule), SPACINGS)


def _hires(draft: Draft, settings: dict[str, str]) -> None:
    """Read the second pass; a denoising strength without one belongs to a picture that is not at hand."""
    scale, size = settings.pop("Hires upscale", None), _pair(settings.pop("Hires resize", ""))
    steps, upscaler = settings.pop("Hires steps", None), settings.pop("Hires upscaler", "Latent")
    strength = settings.pop("Hires denoising strength", None)
    if scale is None and size[0] is None:
        if given := settings.pop("Denoising strength", None):
            draft.miss(f"Denoising strength: {given}; the picture that it started from is not in the file")
        return
    if upscaler not in UPSCALERS:
        draft.miss(f"Hires upscaler: {upscaler}; lanczos takes its place")
    draft.fields["hires"] = Hires(
        scale=float(scale or 2),
        width=size[0],
        height=size[1],
        upscaler=UPSCALERS.get(upscaler, "lanczos"),  # type: ignore[arg-type]
        steps=int(steps or 0) or None,
        strength=float(strength or settings.pop("Denoising strength", "0.7")),
    )


def _variation(draft: Draft, settings: dict[str, str]) -> None:
    seed, strength = settings.pop("Variation seed", None), settings.pop("Variation seed strength", "0")
    width, height = _pair(settings.pop("Seed resize from", ""))
    if seed is not None or width is not None:
        draft.fields["variation"] = Variation(seed=int(seed or 0), strength=float(strength), width=width, height=height)


def _pair(text: str) -> tuple[int | None, int | None]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (None, None)
