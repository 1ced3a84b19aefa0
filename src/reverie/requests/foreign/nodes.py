"""ComfyUI's node classes: one reader each, and a rule for nodes that are not known.

Checked against ComfyUI 0.3.64 (nodes.py, comfy_extras/nodes_custom_sampler.py, nodes_clip_sdxl.py, nodes_string.py,
nodes_primitive.py) and, of other people's nodes, against the inputs that their graphs hold: rgthree-comfy, Impact Pack,
ComfyUI-Custom-Scripts (pysssss), KJNodes, WAS Node Suite, Comfyroll, Efficiency Nodes, Easy-Use.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from reverie.errors import ReverieError
from reverie.requests.foreign.draft import OFF, shorten
from reverie.requests.foreign.graph import (
    Clip,
    Guider,
    Latent,
    Model,
    Node,
    Picture,
    Prompt,
    Reader,
    Sampling,
    Scalar,
    Seed,
    Sigmas,
    Solver,
)

UNPICTURED = "the pictures that it takes are not in the file"


# ---- numbers and texts -----------------------------------------------------------------------------------------------


def value_of(*names: str) -> Reader:
    """Read the first of some inputs that is there, whatever it is."""

    def read(node: Node, slot: int, want: type) -> object:
        name = next((name for name in names if name in node.inputs), names[0])
        return node.scalar(name) if want is Scalar else node.get(name, want)

    return read


def joined(pattern: str, separator: str, default: str) -> Reader:
    """Join the texts of the inputs whose names match a pattern, in the order of their names."""

    def read(node: Node, slot: int, want: type) -> object:
        between = str(node.scalar(separator, default)).replace("\\n", "\n")
        names = sorted(name for name in node.inputs if re.fullmatch(pattern, name))
        texts = [node.text(name) for name in names if node.inputs[name] not in (None, "undefined")]
        return between.join(text for text in texts if text or default == "")

    return read


def _replaced(node: Node, slot: int, want: type) -> object:
    return node.text("string").replace(node.text("find"), node.text("replace"))


def _trimmed(node: Node, slot: int, want: type) -> object:
    sides = {"Left": str.lstrip, "Right": str.rstrip}
    return sides.get(str(node.scalar("mode", "Both")), str.strip)(node.text("string"))


def _recased(node: Node, slot: int, want: type) -> object:
    cases = {"UPPERCASE": str.upper, "lowercase": str.lower, "Capitalize": str.capitalize, "Title Case": str.title}
    return cases.get(str(node.scalar("mode")), str)(node.text("string"))


def _cut(node: Node, slot: int, want: type) -> object:
    return node.text("string")[int(node.scalar("start", 0)) : int(node.scalar("end", 0))]


def _first_given(node: Node, slot: int, want: type) -> object:
    """Read a switch that takes its first input with something in it."""
    for name in sorted(node.inputs):
        value = node.scalar(name) if want is Scalar else node.get(name, want)
        if value is not None:
            return value
    return None


# ---- models, text encoders -------------------------------------------------------------------------------------------


def _name(node: Node, *names: str) -> str:
    value = next((node.scalar(name) for name in names if name in node.inputs), "")
    return str(value.get("content", "")) if isinstance(value, dict) else str(value)


def _loader(node: Node, slot: int, want: type) -> object:
    if want is Model:
        return Model(_name(node, "ckpt_name", "base_ckpt_name", "unet_name", "model_name"))
    return Clip() if want is Clip else None


def _clip_loader(node: Node, slot: int, want: type) -> object:
    names = [str(node.scalar(name)) for name in node.inputs if name.startswith("clip_name")]
    node.graph.note(f"node {node.kind}: the text encoders {', '.join(names)}")
    return Clip()


def _lora(node: Node, slot: int, want: type) -> object:
    """Read one LoRA, whose strengths may be links."""
    if want is Model:
        model = node.get("model", Model) or Model()
        strength = (node.name, node.scalar("lora_name"), node.scalar("strength_model"))
        return replace(model, loras=(*model.loras, strength))
    if want is Clip and "clip" in node.inputs:
        clip = node.get("clip", Clip) or Clip()
        return replace(clip, loras=(*clip.loras, (node.name, node.scalar("lora_name"), node.scalar("strength_clip"))))
    return None


def _lora_stack(node: Node, slot: int, want: type) -> object:
    """Read several LoRAs: rgthree's Power Lora Loader (mappings) and Lora Loader Stack (lora_01, strength_01)."""
    source = node.get("model", Model) if want is Model else node.get("clip", Clip)
    if source is None or want not in (Model, Clip):
        return None
    loras = []
    for name in sorted(node.inputs):
        value = node.scalar(name)
        if isinstance(value, dict) and value.get("on") and "lora" in value:
            two = value.get("strengthTwo")
            weight = value.get("strength", 1) if want is Model or two is None else two
            loras.append((f"{node.name} {name}", value["lora"], weight))
        elif match := re.fullmatch(r"lora_(\d+)", name):
            loras.append((f"{node.name} {name}", value, node.scalar(f"strength_{match[1]}", 1)))
    return replace(source, loras=(*source.loras, *loras))  # type: ignore[type-var]


def _last_layer(node: Node, slot: int, want: type) -> object:
    return replace(node.get("clip", Clip) or Clip(), layer=node.scalar("stop_at_clip_layer"))


def passed(*names: str, note: str | None = None, tell: Sequence[str] = ()) -> Reader:
    """Pass on the first of some inputs that holds what is wanted; with a note and some inputs' values, if any."""

    def read(node: Node, slot: int, want: type) -> object:
        if note is not None:
            node.note(note, *(tell or _settings(node)))
        values = (node.scalar(name) if want is Scalar else node.get(name, want) for name in names)
        return next((value for value in values if value is not None), None)

    return read


def _settings(node: Node) -> list[str]:
    """Name the inputs that stand in the node itself."""
    return [name for name, value in node.inputs.items() if node.graph.source(value) is None and value not in OFF]


# ---- conditionings ---------------------------------------------------------------------------------------------------


def _encode(node: Node, slot: int, want: type) -> object:
    return Prompt(node.text("text"), node.get("clip", Clip) or Clip())


def _encode_sdxl(node: Node, slot: int, want: type) -> object:
    text, other = node.text("text_g"), node.text("text_l")
    if text != other:
        node.graph.note(f"node {node.kind}: text_l, another prompt for the first encoder: {shorten(other)}")
    sizes = {
        "original_size": (node.scalar("width"), node.scalar("height")),
        "crop": (node.scalar("crop_w", 0), node.scalar("crop_h", 0)),
        "target_size": (node.scalar("target_width"), node.scalar("target_height")),
    }
    return Prompt(text, node.get("clip", Clip) or Clip(), sizes)


def _encode_advanced(node: Node, slot: int, want: type) -> object:
    """Read encoders that say how words are weighed: BNK_CLIPTextEncodeAdvanced, smZ CLIPTextEncode."""
    way = str(node.scalar("weight_interpretation", node.scalar("parser", "comfy")))
    return Prompt(node.text("text"), node.get("clip", Clip) or Clip(), weighed="A1111" if way == "A1111" else "ComfyUI")


def _zeroed(node: Node, slot: int, want: type) -> object:
    prompt = node.get("conditioning", Prompt)
    return None if prompt is None else replace(prompt, zeroed=True)


def _both(node: Node, first: str, second: str, write: str) -> object:
    one, other = node.get(first, Prompt), node.get(second, Prompt)
    if one is None or other is None:
        return None
    if one.clip != other.clip:
        node.graph.note(f"node {node.kind}: its two prompts are read by different text encoders")
    return replace(one, text=write.format(one.text, other.text))


def _concat(node: Node, slot: int, want: type) -> object:
    """Read two prompts whose tokens stand behind each other, which BREAK writes."""
    return _both(node, "conditioning_to", "conditioning_from", "{} BREAK {}")


def _combine(node: Node, slot: int, want: type) -> object:
    """Read two prompts whose predictions are averaged, which AND writes with half the weights."""
    node.graph.note(f"node {node.kind}: two prompts, written as one with AND")
    return _both(node, "conditioning_1", "conditioning_2", "{} :0.5 AND {} :0.5")


def _average(node: Node, slot: int, want: type) -> object:
    other = node.get("conditioning_from", Prompt)
    node.note(f"mixed with {shorten(other.text if other else None)}", "conditioning_to_strength")
    return node.get("conditioning_to", Prompt)


def _two_sided(node: Node, slot: int, want: type) -> object:
    """Read what takes a positive and a negative conditioning and gives both, in this order, and perhaps latents."""
    node.note(UNPICTURED, *_settings(node))
    if want is Prompt and slot < 2:
        return node.get("positive" if slot == 0 else "negative", Prompt)
    if want is Latent:
        return Latent(node.scalar("width"), node.scalar("height"), picture=True)
    return None


def _control(node: Node, slot: int, want: type) -> object:
    """Read a ControlNet with its strength and interval."""
    source = node.graph.source(node.inputs.get("control_net"))
    name = source.scalar("control_net_name") if source is not None else None
    node.note(f"a ControlNet '{name}', whose picture is not in the file", "strength", "start_percent", "end_percent")
    if "conditioning" in node.inputs:
        return node.get("conditioning", Prompt)
    return node.get("positive" if slot == 0 else "negative", Prompt)


# ---- latents and pictures --------------------------------------------------------------------------------------------


def _empty(node: Node, slot: int, want: type) -> object:
    return Latent(node.scalar("width"), node.scalar("height"), node.scalar("batch_size", 1)) if want is Latent else None


def _decode(node: Node, slot: int, want: type) -> object:
    vae = node.graph.source(node.inputs.get("vae"))
    if vae is not None and vae.kind == "VAELoader":
        node.graph.note(f"node VAELoader: {shorten(vae.scalar('vae_name'))}")
    latent = node.get("samples", Latent)
    return None if latent is None else Picture(latent)


def _encode_picture(node: Node, slot: int, want: type) -> object:
    """Read latents of a picture: of one that was drawn before, or of one that is not in the file."""
    picture = node.get("pixels", Picture) or node.get("image", Picture)
    return picture.latent if picture is not None else Latent(picture=True)


def _enlarged(node: Node, slot: int, want: type) -> object:
    """Read latents or pictures that are scaled, to a size or by a factor."""
    kind, source = want, None
    for name in ("samples", "image", "images", "pixels"):
        source = source or (node.get(name, kind) if name in node.inputs else None)
    node.note("", *_settings(node))
    latent = source.latent if isinstance(source, Picture) else source
    if not isinstance(latent, Latent):
        return source
    width, height, factor = node.scalar("width"), node.scalar("height"), node.scalar("scale_by")
    if isinstance(factor, int | float) and isinstance(latent.width, int) and isinstance(latent.height, int):
        width, height = round(latent.width * factor), round(latent.height * factor)
    latent = replace(latent, width=width, height=height)
    return Picture(latent) if isinstance(source, Picture) else latent


# ---- samplers --------------------------------------------------------------------------------------------------------


def _drawn(node: Node, sampling: Sampling, want: type) -> object:
    latent = replace(sampling.start, drawn=sampling, picture=False)
    return Picture(latent) if want is Picture else latent if want is Latent else None


def _guider(node: Node) -> Guider:
    model = node.get("model", Model) or Model()
    return Guider(model, node.get("positive", Prompt), node.get("negative", Prompt), node.scalar("cfg"))


def _ksampler(node: Node, slot: int, want: type) -> object:
    """Read KSampler, KSamplerAdvanced, and what has the same inputs."""
    if want is Prompt:  # Efficiency Nodes' gives its conditionings on
        return node.get("positive" if slot == 1 else "negative", Prompt)
    if want not in (Latent, Picture):
        return node.get("model", want) if "model" in node.inputs else None
    steps, start, end = node.scalar("steps"), node.scalar("start_at_step", 0), node.scalar("end_at_step", 10_000)
    if isinstance(steps, int) and isinstance(start, int) and isinstance(end, int) and (start > 0 or end < steps):
        node.graph.note(f"node {node.kind}: steps {start} to {min(end, steps)} of {steps} alone")
    if node.scalar("add_noise", "enable") in ("disable", False):
        node.graph.note(f"node {node.kind}: without noise of its own")
    for name in ("return_with_leftover_noise", "control_after_generate"):
        node.unread.pop(name, None)
    seed = Seed(node.scalar("seed", node.scalar("noise_seed")))
    sigmas = Sigmas(steps, node.scalar("scheduler"), node.scalar("denoise", 1))
    latent = node.get("latent_image", Latent) or node.get("latent", Latent) or Latent(picture=True)
    solver = Solver(node.scalar("sampler_name"))
    return _drawn(node, Sampling(node, _guider(node), seed, solver, sigmas, latent), want)


def _custom(node: Node, slot: int, want: type) -> object:
    """Read SamplerCustom and SamplerCustomAdvanced, whose parts are nodes."""
    guider = node.get("guider", Guider) if "guider" in node.inputs else _guider(node)
    if "noise" in node.inputs:
        seed = node.get("noise", Seed) or Seed(None)
    else:
        seed = Seed(node.scalar("noise_seed"))
    if node.scalar("add_noise", True) is False:
        node.graph.note(f"node {node.kind}: without noise of its own")
    solver = node.get("sampler", Solver) or Solver(_kind_of(node, "sampler"))
    sigmas = node.get("sigmas", Sigmas) or Sigmas(None, _kind_of(node, "sigmas"))
    latent = node.get("latent_image", Latent) or Latent(picture=True)
    if guider is None:
        raise ReverieError(f"the guider of {node.kind} is {_kind_of(node, 'guider')}, which is not understood")
    return _drawn(node, Sampling(node, guider, seed, solver, sigmas, latent), want)


def _kind_of(node: Node, name: str) -> str:
    source = node.graph.source(node.inputs.get(name))
    return source.kind if source is not None else f"no {name}"


def _cfg_guider(node: Node, slot: int, want: type) -> object:
    return _guider(node)


def _basic_guider(node: Node, slot: int, want: type) -> object:
    return Guider(node.get("model", Model) or Model(), node.get("conditioning", Prompt), None, 1)


def _dual_guider(node: Node, slot: int, want: type) -> object:
    second = node.get("cond2", Prompt)
    node.note(f"a second prompt: {shorten(second.text if second else None)}", "cfg_cond2_negative", "style")
    model, positive = node.get("model", Model) or Model(), node.get("cond1", Prompt)
    return Guider(model, positive, node.get("negative", Prompt), node.scalar("cfg_conds"))


def _random_noise(node: Node, slot: int, want: type) -> object:
    return Seed(node.scalar("noise_seed"))


def _no_noise(node: Node, slot: int, want: type) -> object:
    node.note("no noise is added")
    return Seed(0)


def _basic_scheduler(node: Node, slot: int, want: type) -> object:
    return Sigmas(node.scalar("steps"), node.scalar("scheduler"), node.scalar("denoise", 1))


def scheduled(name: str, **usual: object) -> Reader:
    """Read a node that spaces the levels in one way; settings that are not the usual ones are noted."""

    def read(node: Node, slot: int, want: type) -> object:
        sigmas = Sigmas(node.scalar("steps"), name, node.scalar("denoise", 1))
        _note_unusual(node, usual)
        return sigmas

    return read


def solving(name: str, **usual: object) -> Reader:
    """Read a node that is one sampler; settings that are not the usual ones are noted."""

    def read(node: Node, slot: int, want: type) -> object:
        _note_unusual(node, usual)
        return Solver(name)

    return read


def _note_unusual(node: Node, usual: dict[str, object]) -> None:
    for setting, value in usual.items():
        given = node.scalar(setting, value)
        close = isinstance(given, float) and isinstance(value, float) and abs(given - value) < 1e-4
        if given != value and not close:
            node.graph.note(f"node {node.kind}: {setting} {shorten(given)}")


def _ksampler_select(node: Node, slot: int, want: type) -> object:
    return Solver(node.scalar("sampler_name"))


def _split_sigmas(node: Node, slot: int, want: type) -> object:
    node.note("a part of the levels alone", "step", "denoise")
    return node.get("sigmas", Sigmas)


# ---- nodes that load everything --------------------------------------------------------------------------------------


def _efficient_loader(node: Node, slot: int, want: type) -> object:
    """Read Efficiency Nodes' loader and Easy-Use's: a model, a LoRA, both prompts and empty latents."""
    lora = (node.name, node.scalar("lora_name", "None"), node.scalar("lora_model_strength", 1))
    has_lora = lora[1] not in (None, "None")
    if want is Model:
        return Model(_name(node, "ckpt_name"), (lora,) if has_lora else ())
    clip = Clip(
        ((node.name, lora[1], node.scalar("lora_clip_strength", 1)),) if has_lora else (), node.scalar("clip_skip")
    )
    if want is Clip:
        return clip
    if want is Prompt:
        way = str(node.scalar("weight_interpretation", "comfy"))
        return Prompt(node.text("positive" if slot == 1 else "negative"), clip, weighed=way)
    if want is Latent:
        sides = (node.scalar(f"empty_latent_{side}") for side in ("width", "height"))
        return Latent(*sides, node.scalar("batch_size", 1))
    return None


# ---- nodes that are not known ----------------------------------------------------------------------------------------

TEXTS = ("text", "prompt", "text_g", "positive", "string")
FIRST: dict[type, tuple[str, ...]] = {
    Model: ("model",),
    Clip: ("clip",),
    Latent: ("samples", "latent", "latent_image", "image", "images", "pixels"),
    Picture: ("image", "images", "pixels", "samples"),
    Prompt: ("conditioning",),
}


def unknown(node: Node, slot: int, want: type) -> object:
    """Pass on what a node that is not known was given of the wanted kind, and note it.

    A number or a text is not passed on, as what became of it is not known; but a node for seeds holds one. Of several
    conditionings the slot tells, where they are the positive and the negative one.
    """
    if want is Scalar:
        seed = node.inputs.get("seed")
        return seed if "seed" in node.kind.lower() and isinstance(seed, int) and seed >= 0 else None
    settings = [name for name in _settings(node) if name not in ("filename_prefix",)]
    if "save" not in node.kind.lower() and "preview" not in node.kind.lower():
        node.note("not known here", *settings[:6])
    if want is Prompt:
        return _unknown_prompt(node, slot)
    if want in (Model, Clip) and node.inputs.keys() & {"ckpt_name", "unet_name"}:
        return _loader(node, slot, want)
    if want in (Latent, Picture) and {"positive", "steps"} <= node.inputs.keys() and "latent_image" in node.inputs:
        return _ksampler(node, slot, want)
    for name in (*FIRST.get(want, ()), *node.links()):
        value: Any = node.get(name, want) if name in node.inputs else None
        if value is None and want is Latent and name in node.inputs:
            picture = node.get(name, Picture)
            value = picture.latent if picture is not None else None
        if value is not None:
            return value
    if want is Latent:
        return Latent(node.inputs.get("width"), node.inputs.get("height"), picture=bool(list(node.links())))
    return None


def _unknown_prompt(node: Node, slot: int) -> Prompt | None:
    links = {name for name in node.links()}
    if {"positive", "negative"} <= links:
        return node.get("positive" if slot == 0 else "negative", Prompt) if slot < 2 else None
    found = [prompt for name in node.links() if (prompt := node.get(name, Prompt)) is not None]
    if len(found) == 1:
        return found[0]
    texts = [name for name in TEXTS if name in node.inputs]
    if not found and len(texts) == 1 and "clip" in node.inputs:
        return Prompt(node.text(texts[0]), node.get("clip", Clip) or Clip())
    return None


_MODEL_PATCH = passed("model", note="")
_AREA = passed("conditioning", note="")
_LOAD = (
    "CheckpointLoaderSimple",
    "CheckpointLoader",
    "UNETLoader",
    "CheckpointLoader|pysssss",
    "ImageOnlyCheckpointLoader",
)
_LOAD += ("CheckpointLoaderNF4", "UnetLoaderGGUF", "CheckpointLoaderSimpleWithNoiseSelect", "unCLIPCheckpointLoader")
_VALUES = ("PrimitiveInt", "PrimitiveFloat", "PrimitiveString", "PrimitiveStringMultiline", "PrimitiveBoolean", "Int")
_VALUES += (
    "PrimitiveNode",
    "INTConstant",
    "FloatConstant",
    "Float",
    "ImpactInt",
    "ImpactFloat",
    "ImpactBoolean",
    "String",
)
_VALUES += ("easy int", "easy float", "easy string", "CR Integer", "CR Float", "JWInteger", "JWFloat", "FloatSlider")
_TEXTS = ("String Literal", "StringConstant", "StringConstantMultiline", "Text Multiline", "CR Text", "CR Prompt Text")
_TEXTS += (
    "ttN text",
    "JWString",
    "JWStringMultiline",
    "ImpactString",
    "Text box",
    "TextBox",
    "Simple String",
    "Textbox",
)
_TEXTS += (
    "Note",
    "Text String",
    "easy positive",
    "easy negative",
    "CR Multiline Text",
    "Text",
    "DF_Text",
    "StringInput",
)
_SHOWN = (
    "ShowText|pysssss",
    "PreviewAny",
    "easy showAnything",
    "Display Any (rgthree)",
    "ShowAnything",
    "Text to Console",
)
_SEEDS = ("Seed (rgthree)", "easy seed", "CR Seed", "Seed", "Seed Generator", "SeedEverywhere", "RandomSeed")
_WILDCARDS = ("ImpactWildcardProcessor", "ImpactWildcardEncode")
_REROUTES = ("Reroute", "Reroute (rgthree)", "ReroutePrimitive|pysssss")


def _rerouted(node: Node, slot: int, want: type) -> object:
    name = next(iter(node.inputs), "")
    return node.scalar(name) if want is Scalar else node.get(name, want)


def _wildcard(node: Node, slot: int, want: type) -> object:
    """Read Impact Pack's wildcards, which keep what they became."""
    if want is Scalar:
        return node.text("populated_text")
    if want is Prompt:
        return Prompt(node.text("populated_text"), node.get("clip", Clip) or Clip())
    return node.get("model" if want is Model else "clip", want)


NODES: dict[str, Reader] = {
    **dict.fromkeys(_LOAD, _loader),
    **dict.fromkeys(_VALUES, value_of("value", "int", "float", "string", "Number", "Value")),
    **dict.fromkeys(_TEXTS, value_of("text", "string", "prompt", "Text", "value", "positive", "negative")),
    **dict.fromkeys(_SHOWN, value_of("text", "source", "anything")),
    **dict.fromkeys(_SEEDS, value_of("seed", "value")),
    **dict.fromkeys(_WILDCARDS, _wildcard),
    **dict.fromkeys(_REROUTES, _rerouted),
    **dict.fromkeys(("CLIPLoader", "DualCLIPLoader", "TripleCLIPLoader"), _clip_loader),
    **dict.fromkeys(("LoraLoader", "LoraLoaderModelOnly", "LoraLoader|pysssss", "LoraLoaderTagsQuery"), _lora),
    **dict.fromkeys(("Power Lora Loader (rgthree)", "Lora Loader Stack (rgthree)"), _lora_stack),
    **dict.fromkeys(("Any Switch (rgthree)", "ComfySwitchNode", "ImpactConditionalBranch"), _first_given),
    **dict.fromkeys(("EmptyLatentImage", "EmptySD3LatentImage", "EmptyLatentImagePresets"), _empty),
    **dict.fromkeys(("EmptyLatentAudio",), lambda node, slot, want: Latent() if want is Latent else None),
    **dict.fromkeys(("VAEDecode", "VAEDecodeTiled", "VAEDecodeAudio"), _decode),
    **dict.fromkeys(("VAEEncode", "VAEEncodeTiled", "VAEEncodeForInpaint"), _encode_picture),
    **dict.fromkeys(("LatentUpscale", "LatentUpscaleBy", "ImageScale", "ImageScaleBy"), _enlarged),
    **dict.fromkeys(("KSampler", "KSamplerAdvanced", "KSampler (Efficient)", "KSampler Adv. (Efficient)"), _ksampler),
    **dict.fromkeys(("SamplerCustom", "SamplerCustomAdvanced"), _custom),
    **dict.fromkeys(("Efficient Loader", "easy fullLoader", "easy a1111Loader", "easy comfyLoader"), _efficient_loader),
    **dict.fromkeys(("ControlNetApply", "ControlNetApplyAdvanced", "ControlNetApplySD3"), _control),
    **dict.fromkeys(("BNK_CLIPTextEncodeAdvanced", "smZ CLIPTextEncode"), _encode_advanced),
    **dict.fromkeys(("FreeU", "FreeU_V2", "RescaleCFG", "PerturbedAttentionGuidance", "TomePatchModel"), _MODEL_PATCH),
    **dict.fromkeys(
        ("ModelSamplingDiscrete", "ModelSamplingContinuousEDM", "HyperTile", "PatchModelAddDownscale"), _MODEL_PATCH
    ),
    **dict.fromkeys(("SelfAttentionGuidance", "DifferentialDiffusion", "ModelMergeSimple"), _MODEL_PATCH),
    **dict.fromkeys(("ConditioningSetArea", "ConditioningSetAreaPercentage", "ConditioningSetAreaStrength"), _AREA),
    **dict.fromkeys(("ConditioningSetMask", "ConditioningSetTimestepRange", "unCLIPConditioning"), _AREA),
    **dict.fromkeys(
        ("InpaintModelConditioning", "InstructPixToPixConditioning", "SVD_img2vid_Conditioning"), _two_sided
    ),
    **dict.fromkeys(("RepeatLatentBatch", "LatentFromBatch", "SetLatentNoiseMask"), passed("samples", note="")),
    "StringConcatenate": joined(r"string_[a-z]", "delimiter", ""),
    "Text Concatenate": joined(r"text_[a-z]", "delimiter", ", "),
    "CR Text Concatenate": joined(r"text\d", "separator", ""),
    "JoinStrings": joined(r"string\d", "delimiter", " "),
    "JoinStringMulti": joined(r"string_\d+", "delimiter", " "),
    "StringReplace": _replaced,
    "StringTrim": _trimmed,
    "StringSubstring": _cut,
    "CaseConverter": _recased,
    "CLIPTextEncode": _encode,
    "CLIPTextEncodeSDXL": _encode_sdxl,
    "CLIPTextEncodeSDXLRefiner": _encode,
    "CLIPSetLastLayer": _last_layer,
    "ConditioningZeroOut": _zeroed,
    "ConditioningConcat": _concat,
    "ConditioningCombine": _combine,
    "ConditioningAverage": _average,
    "CFGGuider": _cfg_guider,
    "BasicGuider": _basic_guider,
    "DualCFGGuider": _dual_guider,
    "RandomNoise": _random_noise,
    "DisableNoise": _no_noise,
    "KSamplerSelect": _ksampler_select,
    "BasicScheduler": _basic_scheduler,
    "KarrasScheduler": scheduled("karras", sigma_max=14.614642, sigma_min=0.0291675, rho=7.0),
    "ExponentialScheduler": scheduled("exponential", sigma_max=14.614642, sigma_min=0.0291675),
    "SDTurboScheduler": scheduled("SDTurboScheduler"),
    "BetaSamplingScheduler": scheduled("beta"),
    "AlignYourStepsScheduler": scheduled("AlignYourSteps"),
    "SplitSigmas": _split_sigmas,
    "SplitSigmasDenoise": _split_sigmas,
    "SamplerEulerAncestral": solving("euler_ancestral", eta=1.0, s_noise=1.0),
    "SamplerLMS": solving("lms", order=4),
    "SamplerDPMPP_SDE": solving("dpmpp_sde", eta=1.0, s_noise=1.0, r=0.5),
    "SamplerDPMPP_2M_SDE": solving("dpmpp_2m_sde", solver_type="midpoint", eta=1.0, s_noise=1.0),
    "SamplerDPMPP_3M_SDE": solving("dpmpp_3m_sde", eta=1.0, s_noise=1.0),
    "SamplerDPMPP_2S_Ancestral": solving("dpmpp_2s_ancestral", eta=1.0, s_noise=1.0),
}
