"""InvokeAI's three generations of metadata: `invokeai_metadata`, `sd-metadata` and `Dream`.

Checked against InvokeAI 6.14.0-alpha (invokeai/app/invocations/metadata.py, backend/stable_diffusion/schedulers,
frontend/web/src/features/nodes/util/graph) and the files of its versions 1 and 2.
"""

from __future__ import annotations

import re
import shlex
from typing import Any

from reverie.errors import ReverieError
from reverie.requests.foreign.draft import SCHEDULE_OF_DIFFUSERS, START_IS_MISSING, Draft, as_mapping, shorten

WEIGHTS = re.compile(r"\w[+-]{1,3}(\s|,|$)|\)[+-]|\)\d")
NEUTRAL = ("app_version", "positive_style_prompt", "negative_style_prompt", "image", "metadata_version")
NEUTRAL_OLD = ("type", "variations", "hash", "init_image_hash", "orig_hash", "app_id")
FLAG = re.compile(r"-([A-Za-z])(.*)|--(\w+)=?(.*)")

Json = dict[str, Any]


def read(data: Json) -> Draft:
    """Read `invokeai_metadata`, of version 3 and later. Raises ReverieError where it holds no prompt."""
    if "positive_prompt" not in data:
        raise ReverieError("the 'invokeai_metadata' of the file holds no prompt; it cannot be replayed")
    draft = Draft(data)
    draft.text("prompt", "positive_prompt")
    draft.text("negative", "negative_prompt")
    draft.number("steps", "steps", kind=int)
    draft.number("guidance", "cfg_scale")
    draft.number("guidance_rescale", "cfg_rescale_multiplier")
    draft.seed("seed")
    draft.size(draft.take("width"), draft.take("height"))
    draft.clip_skip(draft.take("clip_skip"), add=1)  # theirs counts the layers that are left out
    _read_scheduler(draft, draft.take("scheduler"))
    draft.model = _name(draft.take("model"))
    for item in _items(draft.take("loras")):
        draft.lora(_name(item.get("model") or item.get("lora")), item.get("weight", 1))
    tiled = "".join(axis for axis in "xy" if draft.take(f"seamless_{axis}"))
    draft.fields["tile"] = tiled or "none"
    device = draft.take("rand_device", default="cpu")
    draft.noise("cpu" if device == "cpu" else "gpu", "InvokeAI", "other")
    _note_pictures(draft)
    _note_weights(draft)
    draft.rest(NEUTRAL)
    return draft


def _note_pictures(draft: Draft) -> None:
    """Note what stands beside the prompt: the start, references, control layers, other text, the VAE, HiDiffusion."""
    mode = str(draft.take("generation_mode", default="txt2img"))
    strength = draft.take("strength")
    if "txt2img" not in mode:
        draft.note(f"generation_mode: {mode}; {START_IS_MISSING}")
        if strength is not None:
            draft.note(f"strength: {strength}")
    elif draft.given.get("init_image"):
        draft.note(START_IS_MISSING)
    for side, field in (("positive", "prompt"), ("negative", "negative")):
        if (style := draft.take(f"{side}_style_prompt")) and style != draft.fields[field]:
            draft.note(f"{side}_style_prompt: {style}")
    if vae := draft.take("vae"):
        draft.note(f"vae: {_name(vae)}")
    for item in _items(draft.take("ref_images")):
        if item.get("isEnabled", True):
            config = as_mapping(item.get("config")) or item
            draft.note(f"ref_images: a reference picture by {_name(config.get('model')) or config.get('type')}")
    canvas = draft.take("canvas_v2_metadata", default={})
    for kind, layers in as_mapping(canvas).items():
        enabled = [layer for layer in _items(layers) if layer.get("isEnabled", True)]
        if enabled and kind in ("controlLayers", "regionalGuidance", "inpaintMasks", "rasterLayers", "referenceImages"):
            draft.note(f"canvas_v2_metadata: {len(enabled)} of {kind}")
    hidiffusion = [name for name in draft.given if name.startswith("hidiffusion")]
    values = {name: draft.take(name) for name in hidiffusion}
    if values.get("hidiffusion") in (True, "true"):
        draft.note(f"hidiffusion: {shorten(values)}")


def _items(value: object) -> list[Json]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _name(model: object) -> str:
    """Return a model's name, as version 4 and later or version 3 write it."""
    if isinstance(model, dict):
        return str(model.get("name") or model.get("model_name") or "")
    return str(model or "")


def read_old(data: Json) -> Draft:
    """Read `sd-metadata`, of version 2. Raises ReverieError where it holds no image."""
    image = data.get("image")
    if not isinstance(image, dict):
        raise ReverieError("the picture's 'sd-metadata' text is damaged: it holds no image")
    draft = Draft(image)
    prompt = draft.take("prompt", default="")
    parts = _items(prompt) if isinstance(prompt, list) else [{"prompt": prompt}]
    _set_prompt(draft, str(parts[0].get("prompt", "")) if parts else "")
    for part in parts[1:]:
        draft.note(f"a further prompt of weight {part.get('weight', 1)}: {part.get('prompt')}")
    draft.model = str(data.get("model_weights") or data.get("model") or "")
    kind = draft.take("type", default="txt2img")
    if kind != "txt2img":
        draft.note(f"type: {kind}; {START_IS_MISSING}")
    _read_shared(draft, steps="steps", guidance="cfg_scale", seed="seed", width="width", height="height")
    _read_scheduler(draft, draft.take("sampler", "scheduler"))
    draft.noise("gpu", "InvokeAI", "other")  # torch.randn on the model's device (ldm/invoke/generator)
    _note_weights(draft)
    draft.rest(NEUTRAL_OLD)
    return draft


def read_dream(text: str) -> Draft:
    """Read `Dream`: the words and flags that were typed, such as "a bear" -s 50 -S 42 -W 512 -H 512 -C 7.5 -A k_lms."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ReverieError(f"the picture's 'Dream' text is damaged: {error}") from error
    is_flag = [re.fullmatch(r"-[a-zA-Z][\d.]*|--\w+.*", word) is not None for word in words]
    start = is_flag.index(True) if True in is_flag else len(words)
    values: dict[str, str] = {}
    name = ""
    for word in words[start:]:
        match = FLAG.fullmatch(word)
        if match and not re.fullmatch(r"-\d.*", word):
            name = match[1] or match[3]
            values[name] = match[2] or match[4] or ""
        elif name:
            values[name] = word
    draft = Draft(values)
    _set_prompt(draft, " ".join(words[:start]))
    _read_shared(draft, steps="s", guidance="C", seed="S", width="W", height="H")
    _read_scheduler(draft, draft.take("A"))
    draft.noise("gpu", "InvokeAI", "other")  # torch.randn on the model's device (ldm/invoke/generator)
    _note_weights(draft)
    draft.rest(prefix="-")
    return draft


def _read_shared(draft: Draft, *, steps: str, guidance: str, seed: str, width: str, height: str) -> None:
    draft.number("steps", steps, kind=int)
    draft.number("guidance", guidance)
    draft.seed(seed)
    draft.size(draft.take(width), draft.take(height))


def _set_prompt(draft: Draft, text: str) -> None:
    """Set a prompt of version 2, whose parts in [brackets] are the negative prompt."""
    negative = re.findall(r"\[([^\[\]]*)\]", text)
    draft.fields["prompt"] = " ".join(re.sub(r"\[[^\[\]]*\]", "", text).split())
    draft.fields["negative"] = ", ".join(negative)


def _read_scheduler(draft: Draft, given: object) -> None:
    """Read sampler and spacing: an ending _k means Karras's; a beginning k_ the samplers of k-diffusion."""
    if not given:
        return
    name = str(given)
    karras = draft.sampler(name) or ("karras" if name.endswith("_k") else None)
    own = {"ddim": "ddim", "lcm": "lcm"}.get(str(draft.fields["sampler"]))
    draft.schedule(karras or ("normal" if name.startswith("k_") else own or SCHEDULE_OF_DIFFUSERS))


def _note_weights(draft: Draft) -> None:
    if any(WEIGHTS.search(str(draft.fields.get(name, ""))) for name in ("prompt", "negative")):
        draft.note(
            "weights in the prompt: InvokeAI writes word+ and (words)1.2, here A1111's (words:1.2) is understood"
        )
