"""What does ComfyUI's graph ask for? The sampler that the saved picture comes from, and the nodes that feed it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from reverie.errors import ReverieError
from reverie.requests.base import SAMPLERS as OURS
from reverie.requests.foreign.draft import Draft

SAMPLERS = {name: name for name in OURS} | {
    "dpm_2": "dpm2",
    "dpm_2_ancestral": "dpm2_ancestral",
    "dpmpp_sde_gpu": "dpmpp_sde",
    "dpmpp_2m_sde_gpu": "dpmpp_2m_sde",
    "dpmpp_3m_sde_gpu": "dpmpp_3m_sde",
    "uni_pc": "unipc",
}
SCHEDULES = {
    "normal": "normal",
    "karras": "karras",
    "exponential": "exponential",
    "sgm_uniform": "sgm_uniform",
    "simple": "trailing",  # every (timesteps / steps)-th timestep from above
    "ddim_uniform": "leading",
}
KSAMPLERS = ("KSampler", "KSamplerAdvanced")
ENDS = ("SaveImage", "PreviewImage")
CHECKPOINTS = ("CheckpointLoaderSimple", "CheckpointLoader", "UNETLoader")
LORAS = ("LoraLoader", "LoraLoaderModelOnly")
ENCODERS = ("CLIPTextEncode", "CLIPTextEncodeSDXL")
EMPTY = ("EmptyLatentImage",)
# What lies on the way and is read, or changes nothing.
KNOWN = {*KSAMPLERS, *ENDS, *CHECKPOINTS, *LORAS, *ENCODERS, *EMPTY, "VAEDecode", "VAELoader", "CLIPSetLastLayer"}
KNOWN |= {"PrimitiveNode", "PrimitiveString", "PrimitiveInt", "PrimitiveFloat", "Note", "Reroute"}

Graph = dict[str, Any]


def read(graph: Graph) -> Draft:
    """Read the `prompt` graph. Raises ReverieError where it holds no KSampler."""
    nodes = {name: node for name, node in graph.items() if isinstance(node, dict) and "class_type" in node}
    order = [node for end in _ends(nodes) for node in _upstream(nodes, end)]
    samplers = [node for node in order if node["class_type"] in KSAMPLERS]
    if not samplers:
        raise ReverieError("the picture's ComfyUI graph holds no KSampler node that leads to it; it cannot be replayed")
    first = samplers[-1]  # the farthest from the picture: later ones refine what it made
    draft = Draft()
    _sampling(draft, nodes, first)
    _prompts(draft, nodes, first)
    _model(draft, nodes, first)
    _latents(draft, nodes, first)
    for node in samplers[:-1]:
        inputs = node["inputs"]
        draft.miss(f"a further {node['class_type']} of {inputs.get('steps')} steps, denoise {inputs.get('denoise', 1)}")
    for node in order:
        if node["class_type"] not in KNOWN:
            draft.miss(f"node {node['class_type']}")
    return draft


def _ends(nodes: Graph) -> list[str]:
    ends = [name for name, node in nodes.items() if node["class_type"] in ENDS]
    return ends[:1] or [name for name, node in nodes.items() if node["class_type"] in KSAMPLERS][-1:]


def _upstream(nodes: Graph, name: str) -> Iterator[Any]:
    """Yield a node and all that feed it, the nearest first."""
    seen, front = {name}, [name]
    while front:
        node = nodes[front.pop(0)]
        yield node
        for value in node.get("inputs", {}).values():
            source = _source(nodes, value)
            if source is not None and source not in seen:
                seen.add(source)
                front.append(source)


def _source(nodes: Graph, value: object) -> str | None:
    """Name the node that a link [node, output] comes from; None where the value is none."""
    if isinstance(value, list) and len(value) == 2 and str(value[0]) in nodes:
        return str(value[0])
    return None


def _value(nodes: Graph, value: object) -> Any:
    """Give an input's value, through nodes that hold nothing else."""
    source = _source(nodes, value)
    if source is None:
        return None if isinstance(value, list) else value
    inputs = nodes[source].get("inputs", {})
    return next((_value(nodes, inputs[key]) for key in ("value", "text", "string", "seed") if key in inputs), None)


def _fed_by(nodes: Graph, value: object, classes: tuple[str, ...]) -> list[Any]:
    """List the nodes of some classes that a link comes from, the nearest first."""
    source = _source(nodes, value)
    return [] if source is None else [node for node in _upstream(nodes, source) if node["class_type"] in classes]


def _sampling(draft: Draft, nodes: Graph, sampler: Any) -> None:
    inputs = sampler["inputs"]
    draft.seed(_value(nodes, inputs.get("seed", inputs.get("noise_seed"))))
    draft.number("steps", _value(nodes, inputs.get("steps")), int)
    draft.number("guidance", _value(nodes, inputs.get("cfg")))
    draft.sampler(str(_value(nodes, inputs.get("sampler_name"))), SAMPLERS)
    draft.schedule(str(_value(nodes, inputs.get("scheduler"))), SCHEDULES)
    if (denoise := inputs.get("denoise", 1)) != 1:
        draft.miss(f"denoise: {denoise}; what it started from is not in the file")
    start, end = inputs.get("start_at_step") or 0, inputs.get("end_at_step", 10_000)
    if start > 0 or end < (inputs.get("steps") or 0):
        draft.miss(f"steps {start} to {end} alone")


def _prompts(draft: Draft, nodes: Graph, sampler: Any) -> None:
    """Read the nearest text encoder of each side, its CLIP layer, and for SDXL its sizes."""
    for field, side in (("prompt", "positive"), ("negative", "negative")):
        encoders = _fed_by(nodes, sampler["inputs"].get(side), ENCODERS)
        if not encoders:
            draft.miss(f"{side} conditioning without a CLIPTextEncode")
            continue
        inputs = encoders[0]["inputs"]
        text = _value(nodes, inputs.get("text", inputs.get("text_g")))
        draft.text(field, text)
        if "(" in str(text):
            draft.miss("weights in the prompt: ComfyUI weighs words against an empty prompt, here A1111's way is taken")
        if "text_l" in inputs and _value(nodes, inputs["text_l"]) != text:
            draft.miss(f"text_l: {_value(nodes, inputs['text_l'])!r}, another prompt for the first encoder")
        for node in encoders[1:]:
            draft.miss(f"a further prompt on the {side} side: {_value(nodes, node['inputs'].get('text'))!r}")
        for node in _fed_by(nodes, inputs.get("clip"), ("CLIPSetLastLayer",))[:1]:
            draft.fields["clip_skip"] = -int(node["inputs"]["stop_at_clip_layer"])


def _model(draft: Draft, nodes: Graph, sampler: Any) -> None:
    link = sampler["inputs"].get("model")
    for node in _fed_by(nodes, link, CHECKPOINTS)[:1]:
        draft.model = str(node["inputs"].get("ckpt_name") or node["inputs"].get("unet_name"))
    for node in reversed(_fed_by(nodes, link, LORAS)):
        inputs = node["inputs"]
        draft.lora(str(inputs["lora_name"]), inputs.get("strength_model", 1), inputs.get("strength_clip", 0))


def _latents(draft: Draft, nodes: Graph, sampler: Any) -> None:
    empty = _fed_by(nodes, sampler["inputs"].get("latent_image"), EMPTY)
    if not empty:
        draft.miss("the picture that it started from is not in the file")
        return
    inputs = empty[0]["inputs"]
    draft.size(_value(nodes, inputs.get("width")), _value(nodes, inputs.get("height")))
    if (count := _value(nodes, inputs.get("batch_size", 1))) not in (1, None):
        draft.miss(f"batch_size: {count}; ComfyUI draws a batch from one seed, here the first picture alone is drawn")
