"""Programs that write one JSON object: SwarmUI, Fooocus, Easy Diffusion, NovelAI, Draw Things.

Each is known by names that it alone writes. Checked against: SwarmUI 062407c (Text2Image/T2IParamInput.cs), Fooocus
2.5.5 (modules/meta_parser.py, async_worker.py), Easy Diffusion 19c805e (utils/save_utils.py) with sdkit 2.1.1;
of NovelAI and Draw Things, whose sources are closed, files that they wrote.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from typing import Any

from reverie.requests.foreign.a1111 import as_float, pair
from reverie.requests.foreign.draft import (
    COMFYUI_DISCARDS,
    START_IS_MISSING,
    Draft,
    as_mapping,
    shorten,
    stem_of,
)
from reverie.requests.parts import Variation
from reverie.requests.texts import json_object

TILES = {"true": "xy", "x-only": "x", "y-only": "y", "x": "x", "y": "y", "xy": "xy"}


def read(data: Mapping[str, Any]) -> Draft | None:
    """Read the settings of the program that the names tell, or return None where they are of none."""
    drafts = (reader(dict(data)) for signs, reader in PROGRAMS if signs <= data.keys())
    return next((draft for draft in drafts if draft is not None), None)


def _swarmui(data: dict[str, Any]) -> Draft:
    """Read `sui_image_params`, whose names are those of SwarmUI's parameters without spaces and capitals."""
    draft = Draft(as_mapping(data["sui_image_params"]))
    draft.text("prompt", "prompt")
    draft.text("negative", "negativeprompt")
    draft.seed("seed")
    draft.number("steps", "steps", kind=int)
    draft.number("guidance", "cfgscale")
    draft.size(draft.take("width"), draft.take("height"))
    draft.model = str(draft.take("model", default=""))
    draft.sampler(draft.take("sampler", default="euler"))  # the defaults of ComfyUIBackendExtension.cs
    draft.schedule(draft.take("scheduler", default="normal"))
    draft.discard(COMFYUI_DISCARDS)
    draft.fields["zero_negative"] = bool(draft.take("zeronegative", default=False))
    if (layer := draft.take("clipstopatlayer")) is not None:
        draft.clip_layer(-as_float(layer))
    tile = str(draft.take("seamlesstileable", default="false")).lower()
    if tile != "false":
        draft.fields["tile"] = TILES.get(tile, "xy")
    strength = draft.take("variationseedstrength")
    if (seed := draft.take("variationseed")) is not None and strength:
        draft.part("variation", Variation, seed=int(as_float(seed)), strength=as_float(strength))
        draft.note("variation: SwarmUI turns the noise in another way")
    _swarmui_loras(draft)
    if draft.take("initimage", "initimagecreativity") is not None:
        draft.note(START_IS_MISSING)
    for tag in re.findall(r"<(segment|object|region|base|refiner|video|extend)\b[^>]*>", draft.fields["prompt"]):
        draft.note(f"<{tag}…> in the prompt: a part for itself there")
    _comfyui_ways(draft, "SwarmUI")
    draft.rest(SWARMUI_NEUTRAL)
    return draft


SWARMUI_NEUTRAL = {"aspectratio", "sidelength", "swarm_version", "date", "generation_time", "nopreviews", "images"}
SWARMUI_NEUTRAL |= {"imageformat", "wildcardseed", "wildcardseedbehavior", "used_wildcards", "original_prompt"}
SWARMUI_NEUTRAL |= {"original_negativeprompt", "presets", "personalnote", "donotsave", "donotsaveintermediates"}
SWARMUI_NEUTRAL |= {"outputintermediateimages", "automaticvae", "noseedincrement", "colordepth", "batchsize"}
SWARMUI_NEUTRAL |= {"backendtype", "exactbackendid", "continueaftererrors", "overrideoutpathformat", "webhooks"}
SWARMUI_NEUTRAL |= {"preferreddtype"}


def _swarmui_loras(draft: Draft) -> None:
    names, weights = _list_items(draft.take("loras", default=())), _list_items(draft.take("loraweights", default=()))
    texts = _list_items(draft.take("loratencweights", default=()))
    sections = _list_items(draft.take("lorasectionconfinement", default=()))
    for index, name in enumerate(names):
        weight = weights[index] if index < len(weights) else 1
        if index < len(sections) and as_float(sections[index]) > 0:
            draft.note(f"LoRA {name} of weight {weight}: for a part of the picture alone there")
        elif f"<lora:{stem_of(name)}:" not in draft.fields["prompt"]:
            draft.lora(name, weight, texts[index] if index < len(texts) else None)


def _list_items(value: object) -> list[Any]:
    """Return the items of a list, or of a text with commas."""
    if isinstance(value, str):
        return [item.strip() for item in value.split(",")]
    return list(value) if isinstance(value, list | tuple) else [value]


def _comfyui_ways(draft: Draft, program: str) -> None:
    """Say what differs where ComfyUI draws: noise on the CPU and in the steps on the GPU, and weights of words."""
    draft.noise("cpu_then_gpu", program)
    if re.search(r"\([^()]*:\s*[\d.]+\)", draft.fields.get("prompt", "") + draft.fields.get("negative", "")):
        draft.note("weights in the prompt: ComfyUI weighs words against an empty prompt, here A1111's way is taken")


def _fooocus(data: dict[str, Any]) -> Draft:
    """Read the scheme "fooocus", of which `full_prompt` holds what the styles and the expansion made of the prompt."""
    draft = Draft(data)
    for field, full, short in (
        ("prompt", "full_prompt", "prompt"),
        ("negative", "full_negative_prompt", "negative_prompt"),
    ):
        whole, alone = draft.take(full), draft.take(short, default="")
        draft.given[field] = ", ".join(map(str, whole)) if isinstance(whole, list) and whole else alone
        draft.text(field, field)
    draft.seed("seed")
    draft.number("steps", "steps", kind=int)
    draft.number("guidance", "guidance_scale")
    draft.size(*_numbers(draft.take("resolution", default="")))
    draft.sampler(draft.take("sampler", default="dpmpp_2m_sde_gpu"))
    draft.schedule(draft.take("scheduler", default="karras"))
    draft.discard(COMFYUI_DISCARDS)
    draft.clip_layer(draft.take("clip_skip"))
    draft.model = str(draft.take("base_model", default=""))
    loras = [item for item in draft.take("loras", default=[]) if isinstance(item, list) and len(item) > 1]
    combined = [draft.take(name) for name in sorted(draft.given) if name.startswith("lora_combined_")]
    for name, weight, *_ in loras or [str(item).rsplit(" : ", 1) for item in combined if " : " in str(item)]:
        draft.lora(name, weight)
    draft.fields["zero_negative"] = False
    draft.noise("cpu", "Fooocus", "other")
    if draft.given.get("refiner_model", "None") == "None":
        draft.take("refiner_model", "refiner_switch", "refiner_swap_method")
    draft.rest(FOOOCUS_NEUTRAL)
    return draft


FOOOCUS_NEUTRAL = {"styles", "performance", "metadata_scheme", "version", "created_by", "base_model_hash"}
FOOOCUS_NEUTRAL |= {"prompt_expansion", "refiner_model_hash"}


def _numbers(text: object) -> tuple[int | None, int | None]:
    """Read "(1024, 768)" or "1024x768"."""
    match = re.fullmatch(r"[(\[]?\s*'?(\d+)'?\s*[,x×]\s*'?(\d+)'?\s*[)\]]?", str(text).replace('"', ""))
    return (int(match[1]), int(match[2])) if match else (None, None)


def _easy_diffusion(data: dict[str, Any]) -> Draft:
    """Read Easy Diffusion's settings, in a PNG each as Python's `str` of the value."""
    draft = Draft({name: _literal(value) for name, value in data.items()})
    for name in list(draft.given):
        draft.given[EASY_TITLES.get(name, name)] = draft.given.pop(name)
    draft.text("prompt", "prompt")
    draft.text("negative", "negative_prompt")
    draft.seed("seed")
    draft.number("steps", "num_inference_steps", kind=int)
    draft.number("guidance", "guidance_scale")
    draft.size(draft.take("width"), draft.take("height"))
    if draft.take("clip_skip", default=False) is True:
        draft.fields["clip_skip"] = 2
    name, schedule = draft.take("sampler_name", default="euler_a"), draft.take("scheduler_name", default="automatic")
    draft.sampler(EASY_SAMPLERS.get(name, name))
    draft.schedule(schedule if schedule != "automatic" else "karras" if name in EASY_KARRAS else "leading")
    if (tile := str(draft.take("tiling", default="none"))) in TILES:
        draft.fields["tile"] = TILES[tile]
    draft.model = str(draft.take("use_stable_diffusion_model", default=""))
    loras, weights = draft.take("use_lora_model", default=[]), draft.take("lora_alpha", default=1)
    names = loras if isinstance(loras, list) else [loras]
    for index, lora in enumerate(names):
        draft.lora(lora, weights[index] if isinstance(weights, list) and index < len(weights) else weights)
    if (strength := draft.take("prompt_strength")) is not None:
        draft.note(f"prompt_strength: {strength}; {START_IS_MISSING}")
    draft.noise("gpu", "Easy Diffusion", "generator")
    if draft.given.get("use_controlnet_model") in (None, "None"):
        draft.take("control_alpha", "control_filter_to_apply")
    if not draft.given.get("use_upscale"):
        draft.take("upscale_amount", "latent_upscaler_steps")
    draft.rest(("distilled_guidance_scale", "metadata_output_format", "num_outputs", "version", "session_id"))
    return draft


# The samplers that sdkit asks of diffusers with Karras' levels (generate/sampler/diffusers_samplers.py).
EASY_KARRAS = ("dpmpp_2s_a", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_sde")
EASY_SAMPLERS = {"dpmpp_2s_a": "dpmpp_2s"}  # DPMSolverSinglestepScheduler, which is not ancestral
EASY_TITLES = {
    "Prompt": "prompt",
    "Negative Prompt": "negative_prompt",
    "Seed": "seed",
    "Stable Diffusion model": "use_stable_diffusion_model",
    "Clip Skip": "clip_skip",
    "Sampler": "sampler_name",
    "Scheduler": "scheduler_name",
    "Width": "width",
    "Height": "height",
    "Steps": "num_inference_steps",
    "Guidance Scale": "guidance_scale",
    "Prompt Strength": "prompt_strength",
    "LoRA model": "use_lora_model",
    "LoRA Strength": "lora_alpha",
    "Seamless Tiling": "tiling",
    "VAE model": "use_vae_model",
}


def _literal(value: object) -> object:
    """Read Python's `str` of a list, a bool or None; other texts stay."""
    if isinstance(value, str) and (value in ("True", "False", "None") or value[:1] in ("[", "{")):
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return value
    return value


def _novelai(data: dict[str, Any]) -> Draft | None:
    """Read NovelAI's Comment; the text is in Description, where Comment has none, and the model in Source."""
    comment = data.get("Comment")
    details = comment if isinstance(comment, dict) else json_object(str(comment))
    if details is None or not {"seed", "sampler", "scale"} <= details.keys():
        return None
    draft = Draft(details)
    if "prompt" not in draft.given:
        draft.given["prompt"] = data.get("Description", "")
    draft.text("prompt", "prompt")
    draft.text("negative", "uc", "negative_prompt")
    draft.seed("seed")
    draft.number("steps", "steps", kind=int)
    draft.number("guidance", "scale")
    draft.number("guidance_rescale", "cfg_rescale")
    draft.size(draft.take("width"), draft.take("height"))
    draft.sampler(draft.take("sampler", default="k_euler_ancestral"))
    draft.schedule(draft.take("noise_schedule", default="native"))
    draft.model = str(data.get("Source") or data.get("Software") or "NovelAI")
    if (kind := draft.take("request_type")) not in (None, "PromptGenerateRequest"):
        draft.note(f"request_type: {kind}; {START_IS_MISSING}")
    draft.noise(None, "NovelAI")
    if re.search(r"[{}]|\d::", draft.fields["prompt"]):
        draft.note("weights in the prompt: NovelAI writes {words}, [words] and 1.2::words::, here (words:1.2)")
    for name in ("v4_prompt", "v4_negative_prompt"):
        caption = draft.take(name)
        if people := as_mapping(as_mapping(caption).get("caption")).get("char_captions"):
            draft.note(f"{name}: {shorten(people)}")
    if draft.take("strength") is not None and kind not in (None, "PromptGenerateRequest"):
        draft.note(START_IS_MISSING)
    draft.rest(NOVELAI_NEUTRAL)
    return draft


NOVELAI_NEUTRAL = {"signed_hash", "version", "n_samples", "noise", "lora_clip_weights", "lora_unet_weights", "strength"}
NOVELAI_NEUTRAL |= {
    "legacy",
    "legacy_v3_extend",
    "qualityToggle",
    "ucPreset",
    "params_version",
    "stream",
    "hide_debug_overlay",
}


def _draw_things(data: dict[str, Any]) -> Draft:
    """Read the JSON of Draw Things: c is the prompt, uc the negative prompt, v2 the whole configuration."""
    details = as_mapping(data.get("v2"))
    draft = Draft({name: value for name, value in data.items() if name != "v2"})
    draft.text("prompt", "c")
    draft.text("negative", "uc")
    draft.seed("seed")
    draft.number("steps", "steps", kind=int)
    draft.number("guidance", "scale")
    draft.size(*pair(draft.take("size", default="")))
    if name := draft.take("sampler"):
        schedule = draft.sampler(name)
        draft.schedule(schedule or "leading")
        if schedule is None:
            draft.note("schedule: nothing says how Draw Things spaces the noise levels")
    draft.model = str(draft.take("model", default=""))
    draft.clip_skip(draft.take("clip_skip", default=details.get("clipSkip")))
    _draw_things_loras(draft, details)
    mode = draft.take("seed_mode", default="Scale Alike")
    draft.noise({"Torch CPU Compatible": "cpu", "NVIDIA GPU Compatible": "gpu"}.get(mode), f"Draw Things' {mode}")  # type: ignore[arg-type]
    if as_float(strength := draft.take("strength", default=1)) < 1:
        draft.note(f"strength: {strength}; {START_IS_MISSING}")
    for name in ("controls", "hiresFix", "refinerModel", "upscaler", "faceRestoration", "tiledDiffusion"):
        if value := details.get(name):
            draft.note(f"{name}: {shorten(value)}")
    draft.rest(("mask_blur", "mask_blur_outset", "profile", "aesthetic_score", "negative_aesthetic_score", "shift"))
    return draft


def _draw_things_loras(draft: Draft, details: Mapping[str, Any]) -> None:
    given = draft.take("lora", "loras", default=details.get("loras") or [])
    for item in given if isinstance(given, list) else []:
        if isinstance(item, dict):
            draft.lora(item.get("file") or item.get("model"), item.get("weight", 1))


Reader = Callable[[dict[str, Any]], Draft | None]
PROGRAMS: tuple[tuple[set[str], Reader], ...] = (
    ({"sui_image_params"}, _swarmui),
    ({"full_prompt", "base_model"}, _fooocus),
    ({"metadata_scheme", "base_model"}, _fooocus),
    ({"use_stable_diffusion_model", "prompt"}, _easy_diffusion),
    ({"num_inference_steps", "sampler_name", "prompt"}, _easy_diffusion),
    ({"Stable Diffusion model", "Prompt"}, _easy_diffusion),
    ({"Comment", "Software"}, _novelai),
    ({"Comment", "Description"}, _novelai),
    ({"uc", "prompt", "sampler", "scale"}, lambda data: _novelai({"Comment": data})),
    ({"c", "uc", "sampler"}, _draw_things),
    ({"c", "v2"}, _draw_things),
)
