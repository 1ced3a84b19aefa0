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

from reverie.requests.foreign import graph as values
from reverie.requests.foreign import node_samplers as samplers
from reverie.requests.foreign.draft import OFF, shorten, stem_of
from reverie.requests.foreign.graph import (
    GraphClip,
    GraphControl,
    GraphMask,
    GraphPicture,
    GraphRegion,
    GraphSeen,
    GraphStart,
    Latent,
    Model,
    Node,
    Prompt,
    Reader,
    Scalar,
)
from reverie.requests.parts import CONTROL_KINDS
from reverie.requests.references import find_beside

UNPICTURED = "the pictures that it takes are not in the file"


# ---- models, text encoders -------------------------------------------------------------------------------------------


def _name(node: Node, *names: str) -> str:
    value = next((node.scalar(name) for name in names if name in node.inputs), "")
    return str(value.get("content", "")) if isinstance(value, dict) else str(value)


def _loader(node: Node, slot: int, want: type) -> object:
    if want is Model:
        return Model(_name(node, "ckpt_name", "base_ckpt_name", "unet_name", "model_name"))
    return GraphClip() if want is GraphClip else None


def _clip_loader(node: Node, slot: int, want: type) -> object:
    names = [str(node.scalar(name)) for name in node.inputs if name.startswith("clip_name")]
    node.graph.note(f"node {node.kind}: the text encoders {', '.join(names)}")
    return GraphClip()


def _lora(node: Node, slot: int, want: type) -> object:
    """Read one LoRA, whose strengths may be links."""
    if want is Model:
        model = node.get("model", Model) or Model()
        strength = (node.name, node.scalar("lora_name"), node.scalar("strength_model"))
        return replace(model, loras=(*model.loras, strength))
    if want is GraphClip and "clip" in node.inputs:
        clip = node.get("clip", GraphClip) or GraphClip()
        return replace(clip, loras=(*clip.loras, (node.name, node.scalar("lora_name"), node.scalar("strength_clip"))))
    return None


def _lora_stack(node: Node, slot: int, want: type) -> object:
    """Read several LoRAs: rgthree's Power Lora Loader (mappings) and Lora Loader Stack (lora_01, strength_01)."""
    source = node.get("model", Model) if want is Model else node.get("clip", GraphClip)
    if source is None or want not in (Model, GraphClip):
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
    return replace(source, loras=(*source.loras, *loras))


def _last_layer(node: Node, slot: int, want: type) -> object:
    return replace(node.get("clip", GraphClip) or GraphClip(), layer=node.scalar("stop_at_clip_layer"))


def _perturb_attention(node: Node, slot: int, want: type) -> object:
    model = node.get("model", Model) or Model()
    return replace(model, fields=(*model.fields, ("perturbed_guidance", node.scalar("scale"))))


def _freeu(node: Node, slot: int, want: type) -> object:
    node.graph.note("node FreeU: it tells levels by their width there, and here counts them, as diffusers does")
    model = node.get("model", Model) or Model()
    return replace(model, fields=(*model.fields, ("freeu", tuple(map(node.scalar, ("b1", "b2", "s1", "s2"))))))


def _ip_adapter(node: Node, slot: int, want: type) -> object:
    """Read ComfyUI_IPAdapter_plus (01adae3): its plain node, and the advanced one, whose vision tower is a node too."""
    if want is not Model:
        return None
    model, loader = node.get("model", Model) or Model(), node.graph.source(node.inputs.get("ipadapter"))
    tower, picture = (node.graph.source(node.inputs.get(name)) for name in ("clip_vision", "image"))
    for name, usual in (("weight_type", ("linear", "standard")), ("embeds_scaling", ("V only",))):
        if (given := node.scalar(name, usual[0])) not in usual:
            node.graph.note(f"node {node.kind}: {name} {shorten(given)}")
    if "image_negative" in node.inputs:
        node.graph.note(f"node {node.kind}: image_negative, a picture to keep away from")
    seen = GraphSeen(
        None if loader is None else loader.scalar("ipadapter_file", loader.scalar("preset")),
        None if tower is None else tower.scalar("clip_name"),
        None if picture is None or picture.kind != "LoadImage" else samplers.picture_name(picture),
        node.get("attn_mask", GraphMask),
        *(node.scalar(name, usual) for name, usual in (("weight", 1), ("start_at", 0), ("end_at", 1))),
    )
    return replace(model, seen=(*model.seen, seen))


def pass_on(*names: str, note: str | None = None, tell: Sequence[str] = ()) -> Reader:
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


# What only AUTOMATIC1111 takes for more than words.
SYNTAX = re.compile(r"(?<!\\)\[|\bAND\b|\bBREAK\b")
TAG = re.compile(r"<\w+:[^<>]*>")
EMBEDDING = re.compile(r"\bembedding:([^\s,()]+)")


def _words(node: Node, *names: str) -> str:
    """Return a text to encode, and note what in it is plain words in ComfyUI and is none here."""
    text = node.text(*names)
    for tag in TAG.findall(text):
        node.graph.note(f"{tag} in the prompt: ComfyUI reads it as words; it is left out")
    for name in EMBEDDING.findall(text):
        if (file := find_beside(name)) is not None:
            node.graph.embeddings[str(file)] = None
        else:
            node.graph.note(f"embedding:{name}: a textual inversion, whose file is to be given")
    if SYNTAX.search(text):
        node.graph.note("[...], AND or BREAK in the prompt: plain words in ComfyUI, and A1111's syntax here")
    return EMBEDDING.sub(lambda match: stem_of(match[1]), TAG.sub("", text))


def _encode(node: Node, slot: int, want: type) -> object:
    return Prompt(_words(node, "text"), node.get("clip", GraphClip) or GraphClip())


def _encode_sdxl(node: Node, slot: int, want: type) -> object:
    text, other = _words(node, "text_g"), _words(node, "text_l")
    if text != other:
        node.graph.note(f"node {node.kind}: text_l, another prompt for the first encoder: {shorten(other)}")
    sizes = {
        "original_size": (node.scalar("width"), node.scalar("height")),
        "crop": (node.scalar("crop_w", 0), node.scalar("crop_h", 0)),
        "target_size": (node.scalar("target_width"), node.scalar("target_height")),
    }
    return Prompt(text, node.get("clip", GraphClip) or GraphClip(), sizes)


def _encode_advanced(node: Node, slot: int, want: type) -> object:
    """Read encoders that say how words are weighed: BNK_CLIPTextEncodeAdvanced, smZ CLIPTextEncode."""
    way = str(node.scalar("weight_interpretation", node.scalar("parser", "comfy")))
    return Prompt(
        node.text("text"), node.get("clip", GraphClip) or GraphClip(), weighed="A1111" if way == "A1111" else "ComfyUI"
    )


def _zero_out(node: Node, slot: int, want: type) -> object:
    prompt = node.get("conditioning", Prompt)
    return None if prompt is None else replace(prompt, zeroed=True)


def _both(node: Node, first: str, second: str, write: str) -> Prompt | None:
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
    """Read two prompts whose predictions are averaged, which AND writes with half the weights, or of parts."""
    sides = [side for name in ("conditioning_1", "conditioning_2") if (side := node.get(name, Prompt)) is not None]
    if regions := tuple(region for side in sides for region in side.regions):
        if all(side.text for side in sides):
            node.graph.note(f"node {node.kind}: two prompts of the whole picture, written behind each other")
        both = _both(node, "conditioning_1", "conditioning_2", "{}, {}")
        return replace(both, text=both.text.strip(", "), regions=regions) if both is not None else None
    node.graph.note(f"node {node.kind}: two prompts, written as one with AND")
    return _both(node, "conditioning_1", "conditioning_2", "{} :0.5 AND {} :0.5")


def _average(node: Node, slot: int, want: type) -> object:
    other = node.get("conditioning_from", Prompt)
    node.note(f"mixed with {shorten(other.text if other else None)}", "conditioning_to_strength")
    return node.get("conditioning_to", Prompt)


def _area(node: Node, slot: int, want: type) -> object:
    """Read a prompt of a part of the picture: a box or a mask."""
    given = node.get("conditioning", Prompt)
    strength, mask = node.scalar("strength", 1), node.get("mask", GraphMask) if "mask" in node.inputs else None
    if given is None or given.regions or ("mask" in node.inputs and mask is None):
        node.note("it is not understood", *_settings(node))
        return given
    box = () if mask is not None else tuple(node.scalar(name) for name in ("x", "y", "width", "height"))
    region = GraphRegion(given.text, strength, mask, box, in_pixels=node.kind == "ConditioningSetArea")
    return replace(given, text="", regions=(region,))


def _two_sided(node: Node, slot: int, want: type) -> object:
    """Read what takes a positive and a negative conditioning and gives both, in this order, and perhaps latents."""
    node.note(UNPICTURED, *_settings(node))
    if want is Prompt and slot < 2:
        return node.get("positive" if slot == 0 else "negative", Prompt)
    if want is Latent:
        return Latent(node.scalar("width"), node.scalar("height"), picture=GraphStart())
    return None


def _control(node: Node, slot: int, want: type) -> object:
    """Read a ControlNet with its strength and interval, and the picture where it is one that was loaded."""
    given = node.get("conditioning" if "conditioning" in node.inputs else ("positive", "negative")[slot % 2], Prompt)
    strength = node.scalar("strength", 1)
    if given is None or strength == 0:
        return given
    name, kind = _control_net(node)
    seen = node.graph.source(node.inputs.get("image"))
    picture = samplers.picture_name(seen) if seen is not None and seen.kind == "LoadImage" else None
    if seen is not None and picture is None:
        node.graph.note(f"node {seen.kind}: what makes the picture that the ControlNet '{name}' sees")
    values = strength, node.scalar("start_percent", 0), node.scalar("end_percent", 1)
    return replace(given, controls=(*given.controls, GraphControl(name, picture, *values, kind)))


def _control_net(node: Node) -> tuple[object, object]:
    """Return the name of a ControlNet's file, and what a union is said to see (comfy/cldm/control_types.py)."""
    kind, source = None, node.graph.source(node.inputs.get("control_net"))
    while source is not None and "control_net" in source.inputs:
        named = str(source.scalar("type")).split("/")[0]
        kind = {"hed": "softedge"}.get(named, named)
        source = source.graph.source(source.inputs["control_net"])
    return source.scalar("control_net_name") if source is not None else None, kind if kind in CONTROL_KINDS else None


# ---- nodes that load everything --------------------------------------------------------------------------------------


def _efficient_loader(node: Node, slot: int, want: type) -> object:
    """Read Efficiency Nodes' loader and Easy-Use's: a model, a LoRA, both prompts and empty latents."""
    lora = (node.name, node.scalar("lora_name", "None"), node.scalar("lora_model_strength", 1))
    has_lora = lora[1] not in (None, "None")
    if want is Model:
        return Model(_name(node, "ckpt_name"), (lora,) if has_lora else ())
    clip = GraphClip(
        ((node.name, lora[1], node.scalar("lora_clip_strength", 1)),) if has_lora else (), node.scalar("clip_skip")
    )
    if want is GraphClip:
        return clip
    if want is Prompt:
        way = str(node.scalar("weight_interpretation", "comfy"))
        return Prompt(node.text("positive" if slot == 1 else "negative"), clip, weighed=way)
    if want is Latent:
        width, height = (node.scalar(f"empty_latent_{side}") for side in ("width", "height"))
        return Latent(width, height, node.scalar("batch_size", 1))
    return None


# ---- nodes that are not known ----------------------------------------------------------------------------------------

TEXTS = ("text", "prompt", "text_g", "positive", "string")
FIRST: dict[type, tuple[str, ...]] = {
    Model: ("model",),
    GraphClip: ("clip",),
    Latent: ("samples", "latent", "latent_image", "image", "images", "pixels"),
    GraphPicture: ("image", "images", "pixels", "samples"),
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
    if want in (Model, GraphClip) and node.inputs.keys() & {"ckpt_name", "unet_name"}:
        return _loader(node, slot, want)
    if want in (Latent, GraphPicture) and {"positive", "steps", "latent_image"} <= node.inputs.keys():
        return samplers.ksampler(node, slot, want)
    return _input_of(node, want)


def _input_of(node: Node, want: type) -> object:
    """Return the first of a node's inputs that is of the wanted kind, those first that are named as it usually is."""
    for name in (*FIRST.get(want, ()), *node.links()):
        value: Any = node.get(name, want) if name in node.inputs else None
        if value is None and want is Latent and name in node.inputs:
            picture = node.get(name, GraphPicture)
            value = picture.latent if picture is not None else None
        if value is not None:
            return value
    if want is Latent:
        return Latent(
            node.inputs.get("width"), node.inputs.get("height"), picture=GraphStart() if any(node.links()) else None
        )
    return None


def _unknown_prompt(node: Node, slot: int) -> Prompt | None:
    links = set(node.links())
    if {"positive", "negative"} <= links:
        return node.get("positive" if slot == 0 else "negative", Prompt) if slot < 2 else None
    found = [prompt for name in node.links() if (prompt := node.get(name, Prompt)) is not None]
    if len(found) == 1:
        return found[0]
    texts = [name for name in TEXTS if name in node.inputs]
    if not found and len(texts) == 1 and "clip" in node.inputs:
        return Prompt(_words(node, texts[0]), node.get("clip", GraphClip) or GraphClip())
    return None


_NOTED_MODEL, _NOTED_PROMPT = pass_on("model", note=""), pass_on("conditioning", note="")

# Readers, each with the names of its classes.
_KNOWN: tuple[tuple[Reader, str], ...] = (
    # models and text encoders
    (
        _loader,
        "CheckpointLoaderSimple, CheckpointLoader, UNETLoader, CheckpointLoader|pysssss, ImageOnlyCheckpointLoader, "
        "CheckpointLoaderNF4, UnetLoaderGGUF, CheckpointLoaderSimpleWithNoiseSelect, unCLIPCheckpointLoader",
    ),
    (_clip_loader, "CLIPLoader, DualCLIPLoader, TripleCLIPLoader"),
    (_lora, "LoraLoader, LoraLoaderModelOnly, LoraLoader|pysssss"),
    (_lora_stack, "Power Lora Loader (rgthree), Lora Loader Stack (rgthree)"),
    (_last_layer, "CLIPSetLastLayer"),
    (_efficient_loader, "Efficient Loader, easy fullLoader, easy a1111Loader, easy comfyLoader"),
    (
        _NOTED_MODEL,
        "FreeU_V2, RescaleCFG, TomePatchModel, ModelSamplingDiscrete, HyperTile, IPAdapterUnifiedLoader, "
        "ModelSamplingContinuousEDM, PatchModelAddDownscale, SelfAttentionGuidance, DifferentialDiffusion",
    ),
    (_perturb_attention, "PerturbedAttentionGuidance"),
    (_freeu, "FreeU"),
    (_ip_adapter, "IPAdapter, IPAdapterAdvanced"),
    # conditionings
    (_encode, "CLIPTextEncode, CLIPTextEncodeSDXLRefiner"),
    (_encode_sdxl, "CLIPTextEncodeSDXL"),
    (_encode_advanced, "BNK_CLIPTextEncodeAdvanced, smZ CLIPTextEncode"),
    (_zero_out, "ConditioningZeroOut"),
    (_concat, "ConditioningConcat"),
    (_combine, "ConditioningCombine"),
    (_average, "ConditioningAverage"),
    (_control, "ControlNetApply, ControlNetApplyAdvanced, ControlNetApplySD3"),
    (_two_sided, "InpaintModelConditioning, InstructPixToPixConditioning, SVD_img2vid_Conditioning"),
    (_area, "ConditioningSetArea, ConditioningSetAreaPercentage, ConditioningSetMask"),
    (_NOTED_PROMPT, "ConditioningSetAreaStrength, ConditioningSetTimestepRange, unCLIPConditioning"),
    # latents
    (pass_on("samples", note=""), "RepeatLatentBatch, LatentFromBatch"),
)
NODES: dict[str, Reader] = {
    name: reader for reader, names in (*values.KNOWN, *samplers.KNOWN, *_KNOWN) for name in names.split(", ")
}
