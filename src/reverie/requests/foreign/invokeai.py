"""What do InvokeAI's three generations of metadata ask for? `invokeai_metadata`, `sd-metadata` and `Dream`."""

from __future__ import annotations

import re
import shlex
from typing import Any

from reverie.errors import ReverieError
from reverie.requests.base import SCHEDULES
from reverie.requests.foreign.draft import SCHEDULE_OF_DIFFUSERS, Draft

SAMPLERS = {
    "ddim": "ddim",
    "ddpm": "ddpm",
    "plms": "plms",
    "pndm": "plms",
    "lms": "lms",
    "heun": "heun",
    "euler": "euler",
    "euler_a": "euler_ancestral",
    "kdpm_2": "dpm2",
    "kdpm_2_a": "dpm2_ancestral",
    "dpm_2": "dpm2",  # these two with a k_ before, in version 2
    "dpm_2_a": "dpm2_ancestral",
    "dpmpp_2s": "dpmpp_2s_ancestral",
    "dpmpp_2": "dpmpp_2m",
    "dpmpp_2m": "dpmpp_2m",
    "dpmpp_2m_sde": "dpmpp_2m_sde",
    "dpmpp_sde": "dpmpp_sde",
    "unipc": "unipc",
    "lcm": "lcm",
}
SAME = {name: name for name in SCHEDULES}
WEIGHTS = re.compile(r"\w[+-]{1,3}(\s|,|$)|\)[+-]|\)\d")
# What is honoured, or changes nothing.
READ = {"positive_prompt", "negative_prompt", "width", "height", "seed", "cfg_scale", "steps", "scheduler", "model"}
READ |= {"cfg_rescale_multiplier", "clip_skip", "loras", "generation_mode", "rand_device", "seamless_x", "seamless_y"}
READ |= {"app_version", "canvas_v2_metadata", "ref_images", "vae", "positive_style_prompt", "negative_style_prompt"}

Json = dict[str, Any]


def read(data: Json) -> Draft:
    """Read `invokeai_metadata`, of version 3 and later."""
    draft = Draft()
    draft.text("prompt", data.get("positive_prompt"))
    draft.text("negative", data.get("negative_prompt"))
    draft.number("steps", data.get("steps"), int)
    draft.number("guidance", data.get("cfg_scale"))
    draft.number("guidance_rescale", data.get("cfg_rescale_multiplier"))
    draft.seed(data.get("seed"))
    draft.size(data.get("width"), data.get("height"))
    draft.fields["clip_skip"] = 1 + int(data.get("clip_skip") or 0)  # theirs counts the layers that are left out
    _scheduler(draft, data.get("scheduler"))
    model = data.get("model") or {}
    draft.model = str(model.get("name") or model.get("model_name") or "") if isinstance(model, dict) else str(model)
    for item in data.get("loras") or []:
        lora = item.get("model") or item.get("lora") or {}
        draft.lora(str(lora.get("name") or lora.get("model_name")), item.get("weight", 1), item.get("weight", 1))
    tiled = "".join(axis for axis in "xy" if data.get(f"seamless_{axis}"))
    draft.fields["tile"] = tiled or "none"
    _notes(draft, data)
    return draft


def _notes(draft: Draft, data: Json) -> None:
    mode = str(data.get("generation_mode") or "txt2img")
    if "txt2img" not in mode:
        draft.miss(f"generation_mode: {mode}; the picture that it started from is not in the file")
    if (device := data.get("rand_device") or "cpu") != "cpu":
        draft.miss(f"rand_device: {device}; here noise is drawn on the CPU, so the seed gives another picture")
    for side in ("positive", "negative"):
        if (style := data.get(f"{side}_style_prompt")) and style != data.get(f"{side}_prompt"):
            draft.miss(f"{side}_style_prompt: {style!r}")
    if vae := data.get("vae"):
        draft.miss(f"vae: {vae.get('name') or vae.get('model_name') if isinstance(vae, dict) else vae}")
    for name, value in data.items():
        if name not in READ and value not in (None, [], {}, False, ""):
            draft.miss(f"{name}: {value}")
    _weights(draft)


def read_old(data: Json) -> Draft:
    """Read `sd-metadata`, of version 2."""
    image = data.get("image")
    if not isinstance(image, dict):
        raise ReverieError("the picture's 'sd-metadata' text is damaged: it holds no image")
    prompt = image.get("prompt") or ""
    parts = [(prompt, 1.0)] if isinstance(prompt, str) else [(part["prompt"], part.get("weight", 1)) for part in prompt]
    draft = Draft()
    _prompt(draft, str(parts[0][0]) if parts else "")
    for text, weight in parts[1:]:
        draft.miss(f"a further prompt of weight {weight}: {text!r}")
    draft.number("steps", image.get("steps"), int)
    draft.number("guidance", image.get("cfg_scale"))
    draft.seed(image.get("seed"))
    draft.size(image.get("width"), image.get("height"))
    _scheduler(draft, image.get("sampler"))
    draft.model = str(data.get("model_weights") or data.get("model") or "")
    if (kind := image.get("type", "txt2img")) != "txt2img":
        draft.miss(f"type: {kind}; the picture that it started from is not in the file")
    for name in ("threshold", "perlin", "variations", "postprocessing", "facetool", "upscale", "seamless", "hires_fix"):
        if image.get(name):
            draft.miss(f"{name}: {image[name]}")
    _weights(draft)
    return draft


def read_dream(text: str) -> Draft:
    """Read `Dream`: the words and flags that were typed, such as "a bear" -s 50 -S 42 -W 512 -H 512 -C 7.5 -A k_lms."""
    draft = Draft()
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ReverieError(f"the picture's 'Dream' text is damaged: {error}") from error
    flag = re.compile(r"-([A-Za-z])(.*)|--(\w+)=?(.*)")
    start = next(
        (index for index, word in enumerate(words) if re.fullmatch(r"-[a-zA-Z][\d.]*|--\w+.*", word)), len(words)
    )
    _prompt(draft, " ".join(words[:start]))
    values: dict[str, str] = {}
    name = ""
    for word in words[start:]:
        match = flag.fullmatch(word)
        if match and not re.fullmatch(r"-\d.*", word):
            name = match[1] or match[3]
            values[name] = match[2] or match[4] or ""
        elif name:
            values[name] = word
    draft.number("steps", values.pop("s", None), int)
    draft.number("guidance", values.pop("C", None))
    draft.seed(values.pop("S", None))
    draft.size(values.pop("W", None), values.pop("H", None))
    _scheduler(draft, values.pop("A", None))
    for name, value in values.items():
        draft.miss(f"-{name} {value}".strip())
    _weights(draft)
    return draft


def _prompt(draft: Draft, text: str) -> None:
    """Read a prompt of version 2, whose parts in [brackets] are the negative prompt."""
    negative = re.findall(r"\[([^\[\]]*)\]", text)
    draft.text("prompt", " ".join(re.sub(r"\[[^\[\]]*\]", "", text).split()))
    draft.text("negative", ", ".join(negative))


def _scheduler(draft: Draft, given: object) -> None:
    """Read sampler and spacing: an ending _k means Karras's; a beginning k_ the samplers of k-diffusion."""
    if not given:
        return
    name = str(given)
    sampler = name.removesuffix("_k").removeprefix("k_")
    draft.sampler(sampler, SAMPLERS)
    if name.endswith("_k"):
        draft.schedule("karras", SAME)
    elif name.startswith("k_"):
        draft.schedule("normal", SAME)
    else:
        draft.schedule("lcm" if sampler == "lcm" else "ddim" if sampler == "ddim" else SCHEDULE_OF_DIFFUSERS, SAME)


def _weights(draft: Draft) -> None:
    if any(WEIGHTS.search(str(draft.fields.get(name, ""))) for name in ("prompt", "negative")):
        draft.miss(
            "weights in the prompt: InvokeAI writes word+ and (words)1.2, here A1111's (words:1.2) is understood"
        )
