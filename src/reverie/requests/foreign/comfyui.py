"""ComfyUI's `prompt` graph: the sampler that the saved picture comes from, and what feeds it.

Checked against ComfyUI 0.3.64 (nodes.py, comfy/samplers.py, comfy_extras/nodes_*.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from reverie.errors import ReverieError
from reverie.requests.foreign.draft import COMFYUI_DISCARDS, START_IS_MISSING, Draft, as_number, shorten, stem_of
from reverie.requests.foreign.graph import Graph, GraphPicture, Latent, Node, Prompt, Sampling
from reverie.requests.foreign.nodes import NODES, unknown

WEIGHED = re.compile(r"(?<!\\)\(")
FULL = 1 - 1e-4  # a denoise above this is the whole way (comfy/samplers.py, set_steps)


def is_graph(data: Mapping[str, Any]) -> bool:
    """Tell whether JSON is a graph of nodes."""
    return any(isinstance(node, dict) and "class_type" in node for node in data.values())


def read(data: Mapping[str, Any], size: tuple[int, int] | None = None) -> Draft:
    """Read the graph of a picture of a size in pixels.

    Raises ReverieError where no sampler leads to a picture, and where its prompt or seed cannot be resolved.
    """
    graph, sampling, others = _choose_sampling(data, size)
    if sampling is None:
        raise ReverieError("the picture's ComfyUI graph holds no sampler that leads to it; it cannot be replayed")
    passes = [sampling]
    while (before := passes[-1].start.drawn) is not None:
        passes.append(before)
    first = passes[-1]  # the farthest from the picture: later ones refine what it made
    draft = Draft()
    _read_sampling(draft, first)
    _read_size(draft, first.start, size)
    _read_prompts(draft, first)
    for later in passes[:-1]:
        sigmas = later.sigmas
        draft.note(f"a further {later.node.kind} of {sigmas.steps} steps, denoise {sigmas.denoise}")
    if others:
        draft.note(f"the graph saves pictures of {others + 1} samplers; the one of this picture's size is read")
    for one in (*(unread for each in passes for unread in _unread(each.node)), *graph.notes):
        draft.note(one)
    return draft


def _choose_sampling(data: Mapping[str, Any], size: tuple[int, int] | None) -> tuple[Graph, Sampling | None, int]:
    """Return the sampler that the picture comes from, its graph as evaluated, and how many others there are.

    Saved pictures count before previews, and of several the one of the picture's size.
    """
    found: dict[str, tuple[Graph, Sampling, bool]] = {}
    for names in _ends(data):
        for name in names:
            graph = Graph(data, NODES, unknown)
            latent = _latent_of(graph, name)
            if latent is not None and latent.drawn is not None:
                fits = size is not None and (latent.width, latent.height) == size
                found.setdefault(latent.drawn.node.name, (graph, latent.drawn, fits))
        if found:
            break
    else:
        return Graph(data, NODES, unknown), None, 0
    graph, sampling, _ = max(found.values(), key=lambda one: one[2])
    return graph, sampling, len(found) - 1


def _ends(data: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield the names of the nodes that save, then of those that show, then of those that sample."""
    graph = Graph(data, NODES, unknown)
    kinds = {name: node.kind.lower() for name, node in graph.nodes.items()}
    yield [name for name, kind in kinds.items() if "save" in kind or (kind.endswith("combine") and "video" in kind)]
    yield [name for name, kind in kinds.items() if "preview" in kind or "show" in kind]
    yield [name for name, kind in kinds.items() if "sampler" in kind][::-1]


def _latent_of(graph: Graph, name: str) -> Latent | None:
    """Return the latents that a node saves, shows or makes."""
    node = graph.nodes[name]
    if "sampler" in node.kind.lower():
        latent = graph.output(node, 0, Latent)
        return latent if isinstance(latent, Latent) else None
    for link in node.links():
        if (picture := node.get(link, GraphPicture)) is not None:
            return picture.latent
        if (latent := node.get(link, Latent)) is not None:
            return latent
    return None


def _read_sampling(draft: Draft, sampling: Sampling) -> None:
    sigmas, kind = sampling.sigmas, sampling.node.kind
    if sampling.seed.seed is None:
        raise ReverieError(f"the seed of {kind} is not in the graph, or comes from a node that is not understood")
    draft.set_seed(sampling.seed.seed)
    for field, value, number in (("steps", sigmas.steps, int), ("guidance", sampling.guider.scale, float)):
        if value is None:
            draft.note(f"{field}: it comes from a node that is not understood; {draft.default(field)} takes its place")
        else:
            draft.set_number(field, value, number)
    name = sampling.solver.name
    draft.sampler("of a node that is not understood" if name is None else name)
    draft.schedule(sigmas.schedule)
    if sigmas.of_the_sampler:
        draft.discard(COMFYUI_DISCARDS)
    if not _is_full(sigmas.denoise):
        share = "of a node that is not understood" if sigmas.denoise is None else shorten(sigmas.denoise)
        draft.note(f"denoise: {share}; what it started from is not in the file")
    draft.noise("cpu_then_gpu", "ComfyUI")
    draft.model = sampling.guider.model.name


def _is_full(denoise: object) -> bool:
    try:
        return as_number(denoise, float) > FULL
    except ValueError:
        return False


def _read_prompts(draft: Draft, sampling: Sampling) -> None:
    """Read both prompts, their CLIP layer and LoRAs, and for SDXL its sizes."""
    guider = sampling.guider
    if guider.positive is None:
        raise ReverieError(
            f"the positive conditioning of {sampling.node.kind} is not understood; it cannot be replayed"
        )
    if guider.negative is None and guider.scale != 1:
        raise ReverieError(
            f"the negative conditioning of {sampling.node.kind} is not understood; it cannot be replayed"
        )
    positive, negative = guider.positive, guider.negative or Prompt("")
    draft.fields |= {"prompt": positive.text, "negative": "" if negative.zeroed else negative.text}
    draft.fields["zero_negative"] = negative.zeroed
    if positive.zeroed:
        draft.note("the positive conditioning is zeroed there; here the prompt is drawn")
    if any(one.weighed != "A1111" and WEIGHED.search(one.text) for one in (positive, negative)):
        draft.note("weights in the prompt: ComfyUI weighs words against an empty prompt, here A1111's way is taken")
    for prefix, prompt in (("", positive), ("negative_", negative)):
        for name, (first, second) in prompt.sizes.items():
            try:
                draft.fields[prefix + name] = (int(as_number(first, int)), int(as_number(second, int)))
            except ValueError:
                draft.note(f"{prefix}{name}: {shorten([first, second])} are no numbers")
    _read_loras(draft, guider.model.loras, positive)
    if guider.negative is not None and not negative.zeroed and negative.clip != positive.clip:
        draft.note("the negative prompt is read by another text encoder, or with other LoRAs or another layer")
    if positive.clip.layer is not None:
        _read_layer(draft, positive)


def _read_layer(draft: Draft, prompt: Prompt) -> None:
    """Read the layer that CLIPSetLastLayer names, -1 the last; SDXL's usual one is -2."""
    try:
        layer = -int(as_number(prompt.clip.layer, int))
    except ValueError:
        draft.note(f"stop_at_clip_layer: {shorten(prompt.clip.layer)} is not a number")
        return
    if prompt.sizes:
        draft.clip_skip(max(1, layer - 1))
    else:
        draft.clip_layer(layer)


def _read_loras(draft: Draft, unet: tuple[tuple[str, object, object], ...], prompt: Prompt) -> None:
    """Write the LoRAs into the prompt, in their order, with the strengths of both sides."""
    sides: dict[str, list[Any]] = {}
    for side, loras in enumerate((unet, prompt.clip.loras)):
        for node, name, strength in loras:
            sides.setdefault(node, [name, 0, 0])[side + 1] = strength
    for name, weight, text_weight in sides.values():
        if not isinstance(name, str):
            raise ReverieError(f"the name of a LoRA is {shorten(name)}; the picture cannot be replayed")
        if stem_of(name) not in ("", "None"):
            draft.lora(name, weight, text_weight)


def _read_size(draft: Draft, start: Latent, size: tuple[int, int] | None) -> None:
    if start.picture:
        draft.note(START_IS_MISSING)
    elif size is not None and (start.width is None or start.height is None):
        draft.note("width, height: they come from a node that is not understood; the picture's own take their place")
    if start.width is not None and start.height is not None:
        draft.size(start.width, start.height)
    if start.count not in (1, None):
        draft.note(
            f"batch_size: {start.count}; ComfyUI draws a batch from one seed, here the first picture alone is drawn"
        )


def _unread(node: Node) -> Iterator[str]:
    """Yield a note for every setting of a sampler that nobody read."""
    for name, value in node.unread.items():
        if node.graph.source(value) is None and value not in (None, "", [], {}, "None"):
            yield f"{node.kind} {name}: {shorten(value)}"
