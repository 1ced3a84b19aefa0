"""AUTOMATIC1111's `parameters` text, which Forge, SD.Next, Fooocus, Civitai, stable-diffusion.cpp and we write too.

The prompt, the negative prompt, and a last line of settings. Checked against: stable-diffusion-webui 1.10 and Forge
2.0.1v1.10.1 (modules/infotext_utils.py, processing.py, sd_samplers_*.py), SD.Next 058a7f0 (modules/processing_info.py),
Civitai ebed661, stable-diffusion.cpp 97d2990 (examples/common/common.cpp, get_image_params), Fooocus 2.5.5
(modules/meta_parser.py).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from reverie.requests.foreign.draft import (
    COMFYUI_DISCARDS,
    START_IS_MISSING,
    Draft,
    Rng,
    as_mapping,
    as_number,
    is_large,
    shorten,
    way_at,
)
from reverie.requests.parts import UPSCALER_NAMES, Hires, Variation
from reverie.requests.references import MODEL_FOLDERS, find_beside
from reverie.requests.samplers import RECORDS
from reverie.requests.texts import json_object

NAME = re.compile(r"\s*([^\W\d][\w \-/.()]*?):[ \t]*")
QUOTED = re.compile(r'"(?:\\.|[^"\\])*"')
FIRST = re.compile(r"Steps: *\d+ *(,|$)")
# A text whose line breaks were lost.
FLAT = re.compile(
    r"([^\n]*?) *(Negative prompt: [^\n]*?)?(?<=\S) +(Steps: *\d+, *(?:Sampler|CFG scale|Size|Seed): [^\n]*)"
)
USUAL = {"Sampler", "CFG scale", "Seed", "Size", "Model", "Model hash"}
NEGATIVE = "Negative prompt:"
ENOUGH = 3  # settings that make a line one of settings, as AUTOMATIC1111 counts them

REAL_ESRGAN = {  # what it calls files of Real-ESRGAN (modules/realesrgan_model.py); others by their names
    "R-ESRGAN 4x+": "RealESRGAN_x4plus",
    "R-ESRGAN 4x+ Anime6B": "RealESRGAN_x4plus_anime_6B",
    "R-ESRGAN 2x+": "RealESRGAN_x2plus",
    "R-ESRGAN General 4xV3": "realesr-general-x4v3",
    "R-ESRGAN General WDN 4xV3": "realesr-general-wdn-x4v3",
    "R-ESRGAN AnimeVideo": "realesr-animevideov3",
}
UPSCALERS = {name: ours for ours, theirs in UPSCALER_NAMES.items() for name in (ours, theirs)}
# What changes nothing, or is only a name or a sum of what else is there.
NEUTRAL = {"Version", "Model hash", "Lora hashes", "TI hashes", "Hashes", "User", "Batch size", "Batch pos", "Template"}
NEUTRAL |= {"Created Date", "VAE hash", "Parser", "Backend", "App", "Negative Template", "Negative template"}
NEUTRAL_SDNEXT = {
    "Pipeline",
    "Operations",
    "Refine",
    "Index",
    "Batch",
    "Grid",
    "Scheduler",
    "Hires force",
    "Hires size",
}
NEUTRAL_SDNEXT |= {"HiRes mode", "Comment"}
NEUTRAL_SDCPP = {"Guidance", "SDCPP", "Sampler RNG"}
NEUTRAL_FOOOCUS = {"Raw prompt", "Raw negative prompt", "Performance", "Scheduler", "Lora weights"}
SDNEXT_SIGMAS = {"karras": "karras", "exponential": "exponential"}

# Samplers that walk levels of their own, whatever the schedule, and those that leave out the one before the last
# (sd_samplers_timesteps.py; sd_samplers_kdiffusion.py, discard_next_to_last_sigma).
OWN_LEVELS = {"ddim": "a1111_ddim", "plms": "a1111_ddim", "unipc_bh1": "a1111_unipc"}
DISCARDS = ("dpm2", "dpm2_ancestral", "dpmpp_3m_sde")

NEAR = 1e-6  # of a step: 0.7 of 10 are 7


def read(text: str) -> Draft | None:
    """Read the text, or return None where it has no settings, as a camera's comment."""
    prompt, negative, settings = split(text)
    if not settings:
        return None
    draft = Draft(settings)
    draft.fields |= {"prompt": prompt, "negative": negative}
    _read_plain(draft)
    program, neutral = _program(draft)
    program(draft)
    read_hires(draft)
    _read_refiner(draft)
    _read_variation(draft)
    read_clip_skip(draft)
    _read_ours(draft)
    draft.rest(NEUTRAL | neutral)
    return draft


def _read_plain(draft: Draft) -> None:
    """Take over what has the same meaning in all these programs."""
    draft.number("steps", "Steps", kind=int)
    draft.number("guidance", "CFG scale")
    draft.number("guidance_rescale", "CFG Rescale", "CFG rescale")
    draft.number("threshold", "Dynamic thresholding")
    draft.seed("Seed")
    draft.size(*pair(draft.take("Size", default="")))
    draft.model = str(draft.take("Model", default=draft.given.get("Model hash", "")))
    if tiling := draft.take("Tiling"):
        draft.fields["tile"] = tiling if tiling in ("x", "y") else "xy"


def _program(draft: Draft) -> tuple[Callable[[Draft], None], set[str]]:
    """Tell which program wrote the settings, as what reads what is its own, and what changes nothing there."""
    given = draft.given
    if "SDCPP" in given or "stable-diffusion.cpp" in str(given.get("Version")):
        return _read_sdcpp, NEUTRAL_SDCPP
    if "SD.Next" in (given.get("App"), given.get("Backend")):
        return _read_sdnext, NEUTRAL_SDNEXT
    if str(given.get("Version", "")).startswith("Fooocus"):
        return _read_fooocus, NEUTRAL_FOOOCUS
    if str(given.get("Version", "")).startswith("ComfyUI"):
        return _read_comfyui, set()
    return _read_civitai if given.keys() & {"Civitai resources", "Civitai metadata"} else _read_a1111, set()


def _read_a1111(draft: Draft) -> None:
    """Read sampler, schedule and noise of AUTOMATIC1111 and Forge, and of our own text."""
    read_sampler(draft)
    rngs: dict[str, Rng] = {"CPU": "cpu", "GPU": "gpu", "NV": "gpu"}
    name = draft.take("RNG", default="GPU")
    rng = rngs.get(name)
    if rng == "cpu" and draft.take("Sampler RNG") == "GPU":
        rng = "cpu_then_gpu"
    draft.noise(rng, f"a program of RNG {name}" if rng is None else "AUTOMATIC1111")


def read_sampler(draft: Draft) -> None:
    """Read sampler and schedule, which before version 1.9 stood together: "DPM++ 2M Karras"."""
    label, schedule = draft.take("Sampler"), draft.take("Schedule type")
    if label is None:
        return
    spacing = draft.sampler(label)
    if RECORDS[draft.fields["sampler"]].eta is not None:
        draft.eta(draft.take("Eta DDIM" if draft.fields["sampler"] == "ddim" else "Eta"))
    if schedule is not None and _is_ours(draft):
        draft.schedule(schedule)
        return
    if draft.fields["sampler"] == "unipc":
        draft.fields["sampler"] = "unipc_bh1"  # shared_options.py: uni_pc_variant, uni_pc_order
    sampler = draft.fields["sampler"]
    record = RECORDS[sampler]
    if sampler in OWN_LEVELS:
        draft.schedule(OWN_LEVELS[sampler])
    elif schedule is None:
        draft.schedule(spacing or (record.automatic if sampler == "lcm" else "normal"))
    else:
        draft.schedule(record.automatic if schedule == "Automatic" else schedule)
    draft.discard(DISCARDS)
    if draft.fields.get("schedule") == "align_your_steps":
        draft.fields["schedule"] += "_xl" * is_large(draft.fields)
        draft.note("schedule: Align Your Steps has a level more above 0 there, of as many steps")


def _is_ours(draft: Draft) -> bool:
    """Tell whether reverie wrote the settings: AUTOMATIC1111 names its version or the model's hash."""
    return "RNG" in draft.given and not draft.given.keys() & {"Version", "Model hash"}


def _read_sdnext(draft: Draft) -> None:
    """Read what SD.Next says of a sampler of diffusers."""
    if (label := draft.take("Sampler", default=draft.given.get("Scheduler"))) is not None:
        draft.sampler(label)
        draft.schedule("leading" if draft.default("sampler") == "ddim" else "linspace")
    if spacing := draft.take("Sampler spacing"):
        draft.schedule(spacing)
    if sigma := draft.take("Sampler sigma"):
        draft.schedule(sigma, SDNEXT_SIGMAS)
    draft.noise("gpu", "SD.Next", "generator")
    draft.clip_skip(draft.take("CLiP-skip"))
    if (strength := draft.take("Variation strength")) is not None:
        draft.given["Variation seed strength"] = strength
    for ours, theirs in (("Hires upscale", "Hires scale"), ("Hires resize", "Hires fixed")):
        if (value := draft.take(theirs)) is not None:
            draft.given[ours] = value
    if (strength := draft.take("Hires strength")) is not None:
        draft.given["Hires denoising strength"] = strength
    if "Hires upscaler" not in draft.given:  # without an upscaler the picture is not enlarged
        for name in ("Hires upscale", "Hires resize"):
            draft.given.pop(name, None)


def _read_sdcpp(draft: Draft) -> None:
    """Read what stable-diffusion.cpp says, whose text names sampler and schedule together, and its JSON."""
    details = json_object(draft.take("SDCPP", default="")) or {}
    if label := draft.take("Sampler"):
        name, _, schedule = str(label).partition(" ")
        found = draft.sampler(name)
        lcm = draft.default("sampler") == "lcm"
        draft.schedule(schedule or found or ("lcm" if lcm else "normal"))
    draft.clip_layer(draft.take("Clip skip"))
    rngs: dict[str, Rng] = {"cpu": "cpu", "cuda": "gpu"}
    first = draft.take("RNG", default="cuda")
    later = draft.take("Sampler RNG", default=first)
    rng = rngs.get(first)
    if rng is not None and later != first and RECORDS[draft.default("sampler")].noise != "none":  # type: ignore[index]
        rng = "cpu_then_gpu" if (first, later) == ("cpu", "cuda") else None
    draft.noise(rng, f"stable-diffusion.cpp with RNG {first}", "generator")
    if (eta := draft.take("Eta")) not in (None, "inf") and as_float(eta):
        draft.note(f"Eta: {eta}")
    if upscaler := draft.take("Hires upscale"):
        draft.given |= {"Hires upscaler": upscaler, "Hires upscale": draft.take("Hires scale", default="2")}
    models = as_mapping(details.get("models"))
    for name in ("control_net", "taesd"):
        if value := models.get(name):
            draft.note(f"{name}: {shorten(value)}")
    for name in ("adetailer", "cache"):
        if value := details.get(name):
            draft.note(f"{name}: {shorten(value)}")
    if (mode := details.get("mode", "img_gen")) != "img_gen":
        draft.note(f"mode: {mode}")


def as_float(value: object) -> float:
    """Return a number, or 0 for what is none."""
    try:
        return float(as_number(value, float))
    except ValueError:
        return 0.0


def _read_comfyui(draft: Draft) -> None:
    """Read the text that some nodes of ComfyUI write beside the graph, with its names of samplers."""
    if (label := draft.take("Sampler")) is not None:
        schedule = draft.sampler(label)
        draft.schedule(draft.take("Schedule type", "Scheduler", default=schedule or "normal"))
        draft.discard(COMFYUI_DISCARDS)
    draft.clip_layer(draft.take("Clip skip"))
    draft.noise("cpu_then_gpu", "ComfyUI")


def _read_fooocus(draft: Draft) -> None:
    """Read Fooocus' text, which Civitai understands: its own scheduler, and LoRAs with their weights."""
    label, schedule = draft.take("Sampler"), draft.take("Scheduler")
    if label is not None:
        found = draft.sampler(label)
        draft.schedule(schedule or found or "normal")
    for item in str(draft.take("Lora weights", default="")).split(", "):
        name, _, weight = item.rpartition(": ")
        if name:
            draft.lora(name, weight)
    draft.clip_layer(draft.take("Clip skip"))
    draft.noise("cpu", "Fooocus", "other")


def _read_civitai(draft: Draft) -> None:
    """Read what Civitai's generator says of its resources, by names on its site and not by those of files."""
    resources, details = draft.take("Civitai resources", default="[]"), draft.take("Civitai metadata", default="{}")
    try:
        items = json.loads(resources)
    except ValueError:
        items = []
        draft.note(f"Civitai resources: {shorten(resources)}")
    for item in items if isinstance(items, list) else []:
        if isinstance(item, dict):
            _read_resource(draft, item)
    workflow = (json_object(details) or {}).get("workflow") or "txt2img"
    if workflow != "txt2img":
        draft.note(f"workflow: {shorten(workflow)}; {START_IS_MISSING}")
    if str(draft.given.get("Sampler")) == "Undefined":
        draft.note("sampler: the file does not name it")
        draft.given.pop("Sampler")
    read_sampler(draft)
    if "RNG" in draft.given:
        _read_a1111(draft)
    else:
        draft.noise(None, "Civitai")


def _read_resource(draft: Draft, item: dict[str, Any]) -> None:
    air = re.match(r"urn:air:\w+:(\w+):", str(item.get("air")))
    kind = str(item.get("type") or (air[1] if air else "")).lower()
    parts = [item.get("modelName"), item.get("modelVersionName") or item.get("versionName")]
    name = " ".join(str(part) for part in parts if part) or f"version {item.get('modelVersionId')}"
    if kind in ("checkpoint", "model"):
        draft.model = draft.model or name
    else:
        weight = f" of weight {item['weight']}" if "weight" in item else ""
        draft.note(f"Civitai resources: {kind or 'resource'} '{name}'{weight}")


def read_hires(draft: Draft) -> None:
    """Read the second pass; a denoising strength without one belongs to a picture that is not at hand."""
    scale, size = draft.take("Hires upscale"), pair(draft.take("Hires resize", default=""))
    steps, upscaler = draft.take("Hires steps"), draft.take("Hires upscaler")
    strength = draft.take("Hires denoising strength")
    if scale is None and not any(size):
        if (given := draft.take("Denoising strength")) is not None:
            draft.note(f"Denoising strength: {given}; {START_IS_MISSING}")
        return
    if strength is None:
        strength = draft.take("Denoising strength", default="0.7")
    ours = UPSCALERS.get(str(upscaler or "Latent"))
    if ours is None and (file := find_beside(REAL_ESRGAN.get(str(upscaler), str(upscaler)))) is not None:
        ours = str(file)
    if ours is None:
        draft.note(
            f"Hires upscaler: {upscaler}; lanczos takes its place, or its file beside this or in {MODEL_FOLDERS}"
        )
    larger = _larger(draft, *size) if any(size) else {"scale": as_float(scale)}
    draft.part(
        "hires",
        Hires,
        **larger,
        upscaler=ours or "lanczos",
        steps=int(as_float(steps)) or None,
        strength=as_float(strength),
    )


def _read_refiner(draft: Draft) -> None:
    """Read the model that takes the last steps: those below a timestep, or from a step on (sd_samplers_common.py).

    AUTOMATIC1111 counts timesteps since 1.10 unless it says otherwise, before that and in Forge steps.
    """
    name, switch = draft.take("Refiner"), as_float(draft.take("Refiner switch at", default="0.8"))
    by_steps = str(draft.take("Refiner switch by sampling steps")) == "True"
    if name is None:
        return
    version = re.match(r"v1\.(\d+)", str(draft.given.get("Version")))
    steps = draft.default("steps")
    where = f"switch at {switch:g}"
    if isinstance(steps, int) and not _is_ours(draft) and (by_steps or version is None or int(version[1]) < 10):
        switch = way_at(str(draft.default("schedule")), math.ceil(switch * steps - NEAR), steps)
    draft.refiner(re.sub(r"\s*\[\w+\]$", "", str(name)), where, switch)


def _larger(draft: Draft, width: int | None, height: int | None) -> dict[str, object]:
    """Return the second pass's size; a side of 0 follows from the first pass's (processing.py)."""
    first = draft.fields.get("width"), draft.fields.get("height")
    if first[0] and first[1]:
        if not width:
            width = (height or 0) * first[0] // first[1]
        elif not height:
            height = width * first[1] // first[0]
        elif width * first[1] != height * first[0]:
            draft.note(f"Hires resize: {width}x{height} has another shape, to which the picture is cut there")
    width, height = ((side or 0) // 8 * 8 for side in (width, height))
    return {"width": width, "height": height}


def _read_variation(draft: Draft) -> None:
    seed, strength = draft.take("Variation seed"), draft.take("Variation seed strength", default="0")
    width, height = pair(draft.take("Seed resize from", default=""))
    if seed is not None or width:
        values = {"seed": int(as_float(seed or 0)), "strength": as_float(strength)}
        draft.part("variation", Variation, **values, width=width or None, height=height or None)


def read_clip_skip(draft: Draft) -> None:
    """Read the CLIP layer, which AUTOMATIC1111 leaves out of account for SDXL (sd_hijack_clip.py, sdxl_clip_l_skip)."""
    layers = draft.take("Clip skip")
    if layers is not None and as_float(layers) > 1 and is_large(draft.fields):
        draft.note(f"Clip skip: {layers}; left out as in AUTOMATIC1111 for a model of SDXL, as the size tells")
    elif layers is not None:
        draft.clip_skip(layers)


def _read_ours(draft: Draft) -> None:
    """Read what AUTOMATIC1111 has no name for and our own text says."""
    if draft.take("Discard penultimate sigma") == "True":
        draft.fields["discard_penultimate"] = True
    for name in ("timesteps", "sigmas"):
        if levels := re.findall(r"[\d.]+(?:e-?\d+)?", str(draft.take(name.capitalize(), default=""))):
            draft.fields[name] = tuple(map(float, levels))
    draft.number("cache_steps", "Cache steps", kind=int)
    draft.number("merge_tokens", "Token merging ratio")
    interval = re.fullmatch(r"([\d.]+) to ([\d.]+)", str(draft.given.get("Guidance interval", "")))
    if interval:
        draft.given.pop("Guidance interval")
        draft.fields["guidance_interval"] = (float(interval[1]), float(interval[2]))


class Infotext(NamedTuple):
    """The three parts of a `parameters` text; None of a prompt where it has no settings."""

    prompt: str
    negative: str
    settings: dict[str, str]


def split(text: str) -> Infotext:
    """Cut the text into prompt, negative prompt and settings; each prompt may have several lines, or none."""
    lines = text.strip().splitlines()
    if (flat := FLAT.fullmatch(text.strip())) is not None:
        lines = [part for part in (flat[1], flat[2], flat[3]) if part]
    at = _settings_line(lines)
    settings = dict(_pairs("\n".join(lines[at:])))
    lines = [line.strip() for line in lines[:at]]
    start = next((index for index, line in enumerate(lines) if line.startswith(NEGATIVE)), len(lines))
    away = lines[start:]
    if "SD.Next" in (settings.get("App"), settings.get("Backend")):  # the wildcards that the prompts were made from
        cut = next(
            (k for k, line in enumerate(away) if line.startswith(("Template:", "Negative template:"))), len(away)
        )
        away = away[:cut]
    negative = "\n".join(away).removeprefix(NEGATIVE)
    return Infotext("\n".join(lines[:start]).strip(), negative.strip(), settings)


def _settings_line(lines: list[str]) -> int:
    """Return the index of the line that the settings begin at."""
    for index in reversed(range(len(lines))):
        if FIRST.match(lines[index]):
            return index
    if lines:
        names = [name for name, _ in _pairs(lines[-1])]
        if len(names) >= ENOUGH and USUAL & set(names):
            return len(lines) - 1
    return len(lines)


def _pairs(line: str) -> Iterator[tuple[str, str]]:
    """Yield names and values; a value is quoted JSON, whatever balanced brackets hold, or all up to the next comma."""
    at = 0
    while at < len(line):
        if not (found := NAME.match(line, at)):
            at = _after_comma(line, at)
            continue
        start = found.end()
        if quoted := QUOTED.match(line, start):
            value, end = _unquote(quoted[0]), quoted.end()
        elif line[start : start + 1] in ("{", "[") and (closed := _closing(line, start)):
            value, end = line[start:closed], closed
        else:
            end = next((k for k in range(start, len(line)) if line[k] in ",\n"), len(line))
            value = line[start:end].strip()
        yield found[1], value
        at = _after_comma(line, end)


def _after_comma(line: str, at: int) -> int:
    return next((k + 1 for k in range(at, len(line)) if line[k] in ",\n"), len(line))


def _closing(text: str, start: int) -> int:
    """Return where the brackets that open at `start` are closed again, outside of strings; 0 where they are not."""
    depth, quoted, at = 0, False, start
    while at < len(text):
        mark = text[at]
        if quoted and mark == "\\":
            at += 1
        elif mark == '"':
            quoted = not quoted
        elif not quoted:
            depth += (mark in "{[") - (mark in "}]")
            if depth == 0:
                return at + 1
        at += 1
    return 0


def _unquote(value: str) -> str:
    try:
        return str(json.loads(value, strict=False))
    except ValueError:
        return value


def pair(text: object) -> tuple[int | None, int | None]:
    """Read WIDTHxHEIGHT, or return twice None."""
    match = re.fullmatch(r"\s*(\d{1,6})\s*[x×]\s*(\d{1,6})\s*", str(text))
    return (int(match[1]), int(match[2])) if match else (None, None)
