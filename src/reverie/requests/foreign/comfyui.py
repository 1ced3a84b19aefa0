"""ComfyUI's `prompt` graph: the sampler that the saved picture comes from, and what feeds it.

Checked against ComfyUI 0.3.64 (a125cd8: nodes.py, comfy/samplers.py, comfy_extras/nodes_*.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from reverie.errors import ReverieError
from reverie.requests.foreign.draft import (
    COMFYUI_DISCARDS,
    START_IS_MISSING,
    Draft,
    as_number,
    shorten,
    stem_of,
    way_at,
)
from reverie.requests.foreign.graph import (
    Graph,
    GraphPicture,
    GraphRegion,
    Latent,
    Model,
    Node,
    Prompt,
    Sampling,
    Sigmas,
)
from reverie.requests.foreign.node_samplers import masking_of, note_scaling, pictures_of, upscaler_of
from reverie.requests.foreign.nodes import NODES, unknown
from reverie.requests.parts import Hires, IPAdapterInput, Region
from reverie.requests.pictures import ImageToImage, Inpaint
from reverie.requests.references import find_beside

WEIGHED = re.compile(r"(?<!\\)\(")
FULL = 1 - 1e-4  # a denoise above this is the whole way (comfy/samplers.py, set_steps)


def is_graph(data: Mapping[str, Any]) -> bool:
    """Tell whether JSON is a graph of nodes."""
    return any(isinstance(node, dict) and "class_type" in node for node in data.values())


def read(data: Mapping[str, Any], size: tuple[int, int] | None = None) -> Draft:
    """Read the graph of a picture of a size in pixels.

    Raises ReverieError where no sampler leads to a picture, and where its prompt or seed cannot be resolved.
    """
    graph, latent, others = _choose_latent(data, size)
    if latent is None or latent.drawn is None:
        raise ReverieError("the picture's ComfyUI graph holds no sampler that leads to it; it cannot be replayed")
    passes = [latent.drawn]
    while (before := passes[0].start.drawn) is not None:
        passes.insert(0, before)
    draft = Draft()
    _read_passes(draft, passes, latent, size)
    if graph.embeddings:
        draft.fields["embeddings"] = tuple(graph.embeddings)
    if others:
        draft.note(f"the graph saves pictures of {others + 1} samplers; the one of this picture's size is read")
    for node in latent.scaled:
        note_scaling(node)
    for one in (*(unread for each in passes for unread in _unread(each.node)), *graph.notes):
        draft.note(one)
    return draft


def _read_passes(draft: Draft, passes: list[Sampling], latent: Latent, size: tuple[int, int] | None) -> None:
    """Read the first sampler, a refiner that goes on from it, and a second pass; others are noted."""
    first, *later = passes
    _read_sampling(draft, first)
    _read_start(draft, first)
    _read_size(draft, first.start, size)
    _read_prompts(draft, first)
    if later and _goes_on(first, later[0]):
        _read_refiner(draft, first, later.pop(0))
    elif (interval := first.sigmas.interval) is not None and interval[:2] != (0, interval[2]):
        draft.note(f"{first.node.kind}: steps {interval[0]} to {interval[1]} of {interval[2]} alone")
    if not first.seed.added:
        draft.note(f"{first.node.kind}: without noise of its own")
    if later and _read_second(draft, first, later[0], size if len(later) == 1 and not latent.scaled else None):
        later.pop(0)
    for one in later:
        draft.note(f"a further {one.node.kind} of {one.sigmas.steps} steps, denoise {shorten(one.sigmas.denoise)}")
        for node in one.start.scaled:
            note_scaling(node)


def _goes_on(first: Sampling, second: Sampling) -> bool:
    """Tell whether a sampler goes on where another stopped: with as many steps, and with the noise that is left."""
    one, other = first.sigmas.interval, second.sigmas.interval
    left = one is not None and other is not None and one[2] == other[2] and 0 < one[1] == other[0] < one[2]
    return left and not second.seed.added and not second.start.scaled


def _read_refiner(draft: Draft, first: Sampling, second: Sampling) -> None:
    """Read the model that goes on from a step; where it is the same, both are one."""
    _note_differences(draft, "the steps from there on", first, second)
    interval = second.sigmas.interval
    assert interval is not None  # or it would not go on
    step, last, steps = interval
    if last < steps:
        draft.note(f"{second.node.kind}: steps {step} to {last} of {steps} alone")
    if second.guider.model.name != first.guider.model.name:
        switch = way_at(str(draft.default("schedule")), step, steps)
        draft.refiner(second.guider.model.name, f"from step {step} of {steps} on", switch)


def _read_second(draft: Draft, first: Sampling, second: Sampling, size: tuple[int, int] | None) -> bool:
    """Read a second pass over the picture of the first, enlarged; tell whether that is what it is.

    `size` is that of the picture, for a graph that does not tell it.
    """
    steps, strength = _share_of(second.sigmas)
    width, height = second.start.width, second.start.height
    if not (isinstance(width, int) and isinstance(height, int)):
        width, height = size or (None, None)
    if steps is None or width is None or height is None or not second.seed.added:
        return False
    values = {"width": width // 8 * 8, "height": height // 8 * 8, "steps": steps, "strength": strength}
    draft.part("hires", Hires, **values, upscaler=upscaler_of(second.start))
    if "hires" not in draft.fields:
        return False
    _note_differences(draft, "the second pass", first, second)
    if first.guider.model != second.guider.model:
        draft.note(f"the second pass: model {second.guider.model.name}, or other LoRAs")
    if second.seed.seed != first.seed.seed:
        draft.note(f"the second pass: seed {second.seed.seed}; here it has the first's")
    return True


def _share_of(sigmas: Sigmas) -> tuple[int | None, float]:
    """Return as how many steps of how great a share our second pass takes those of a sampler.

    ComfyUI takes its steps from the end of int(steps / denoise) (comfy/samplers.py, set_steps), or from a step on.
    """
    interval = sigmas.interval
    try:
        denoise = as_number(sigmas.denoise, float)
    except ValueError:
        return None, 0
    if interval is None or interval[1] != interval[2] or not 0 < denoise <= 1:
        return None, 0
    first, _, steps = interval
    steps, taken = int(steps / denoise) if denoise <= FULL else steps, steps - first
    return steps, min(1.0, math.ceil(taken / steps * 10_000) / 10_000)


def _note_differences(draft: Draft, what: str, first: Sampling, second: Sampling) -> None:
    """Note what a later sampler has of its own, where ours takes the first's."""
    one, other = first.guider, second.guider
    pairs = {
        "sampler": (first.solver.name, second.solver.name),
        "schedule": (first.sigmas.schedule, second.sigmas.schedule),
        "guidance": (one.scale, other.scale),
        "prompt": (one.positive and one.positive.text, other.positive and other.positive.text),
        "negative prompt": (one.negative and one.negative.text, other.negative and other.negative.text),
    }
    for name, (before, after) in pairs.items():
        if before != after:
            draft.note(f"{what}: {name} {shorten(after)}; here it has the first's")


def _choose_latent(data: Mapping[str, Any], size: tuple[int, int] | None) -> tuple[Graph, Latent | None, int]:
    """Return the latents that the picture comes from, their graph as evaluated, and how many others there are.

    Saved pictures count before previews, and of several the one of the picture's size.
    """
    found: dict[str, tuple[Graph, Latent, bool]] = {}
    for names in _ends(data):
        for name in names:
            graph = Graph(data, NODES, unknown)
            latent = _latent_of(graph, name)
            if latent is not None and latent.drawn is not None:
                fits = size is not None and (latent.width, latent.height) == size
                found.setdefault(latent.drawn.node.name, (graph, latent, fits))
        if found:
            break
    else:
        return Graph(data, NODES, unknown), None, 0
    graph, latent, _ = max(found.values(), key=lambda one: one[2])
    return graph, latent, len(found) - 1


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
    draft.eta(sampling.solver.eta)
    if sigmas.levels:
        draft.fields["sigmas"] = sigmas.levels
    else:
        draft.schedule(sigmas.schedule)
    if sigmas.of_the_sampler:
        draft.discard(COMFYUI_DISCARDS)
    draft.noise("cpu_then_gpu", "ComfyUI")
    draft.model = sampling.guider.model.name


def _read_start(draft: Draft, first: Sampling) -> None:
    """Read the picture that is drawn over, and the mask over it, where their files are here; else note that."""
    start, (steps, strength) = first.start.picture, _share_of(first.sigmas)
    if start is not None and steps is not None and first.seed.added:
        try:
            if (pictures := pictures_of(start)) is not None:
                draft.kind = Inpaint if "mask" in pictures else ImageToImage
                draft.fields |= pictures | {"steps": steps, "strength": strength}
                for node in first.start.scaled:
                    note_scaling(node)
                return
        except ReverieError as error:
            draft.note(str(error))
    if not _is_full(first.sigmas.denoise):
        denoise = first.sigmas.denoise
        share = "of a node that is not understood" if denoise is None else shorten(denoise)
        draft.note(f"denoise: {share}; what it started from is not in the file")
    if start is not None:
        draft.note(START_IS_MISSING)


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
    if negative.regions:
        draft.note("parts of the picture in the negative prompt: here they hold for all of it")
        texts = [negative.text, *(one.text for one in negative.regions)]
        negative = replace(negative, text=", ".join(filter(None, texts)))
    draft.fields |= {"prompt": positive.text, "negative": "" if negative.zeroed else negative.text}
    draft.fields["zero_negative"] = negative.zeroed
    if positive.zeroed:
        draft.note("the positive conditioning is zeroed there; here the prompt is drawn")
    said = [(positive, positive.text), *((positive, one.text) for one in positive.regions), (negative, negative.text)]
    if any(one.weighed != "A1111" and WEIGHED.search(text) for one, text in said):
        draft.note("weights in the prompt: ComfyUI weighs words against an empty prompt, here A1111's way is taken")
    _read_sizes(draft, positive, negative)
    for control in positive.controls:
        values = {"weight": control.strength, "start": control.start, "end": control.end, "kind": control.kind}
        draft.control(control.model, control.picture, **values)
    _read_regions(draft, positive)
    _read_patches(draft, guider.model)
    _read_loras(draft, guider.model.loras, positive)
    if guider.negative is not None and not negative.zeroed and negative.clip != positive.clip:
        draft.note("the negative prompt is read by another text encoder, or with other LoRAs or another layer")
    if positive.clip.layer is not None:
        _read_layer(draft, positive)


def _read_sizes(draft: Draft, positive: Prompt, negative: Prompt) -> None:
    for prefix, prompt in (("", positive), ("negative_", negative)):
        for name, (first, second) in prompt.sizes.items():
            try:
                draft.fields[prefix + name] = (int(as_number(first, int)), int(as_number(second, int)))
            except ValueError:
                draft.note(f"{prefix}{name}: {shorten([first, second])} are no numbers")


def _read_regions(draft: Draft, positive: Prompt) -> None:
    """Read prompts of parts of the picture; beside one of the whole each takes the share that it has in the mean."""
    for region in positive.regions:
        title = f"a part of the picture with the prompt {shorten(region.text)}"
        try:
            weight = as_number(region.strength, float)
            place = {"box": _box_of(draft, region)} if region.mask is None else {"mask": masking_of(region.mask)}
        except (ValueError, ReverieError) as error:
            draft.note(f"{title}: {error}; it is left out")
            continue
        weight = weight / (1 + weight) if positive.text else weight
        draft.append("regions", title, Region, {"prompt": region.text, "weight": weight, **place})
    if "regions" in draft.fields:
        draft.note("parts of the picture: ComfyUI blends their predictions, here attention is coupled")


def _box_of(draft: Draft, region: GraphRegion) -> tuple[float, float, float, float]:
    """Return a box in fractions. Raises ReverieError where it, or the picture's size, is not known."""
    sides: list[Any] = [draft.fields.get(side) if region.in_pixels else 1 for side in ("width", "height")]
    numbers = [one for one in region.box if isinstance(one, int | float)]
    if None in sides or len(numbers) < 4:
        raise ReverieError("where it is, is not known")
    left, top, width, height = (one / sides[n % 2] for n, one in enumerate(numbers))
    return left, top, min(left + width, 1.0), min(top + height, 1.0)


def _read_patches(draft: Draft, model: Model) -> None:
    """Read what a model was patched with: IP-Adapters whose files and pictures are here, and fields of requests."""
    for name, value in model.fields:
        draft.put(name, value)
    for seen in model.seen:
        names, title = (seen.model, seen.encoder, seen.picture), f"IP-Adapter {shorten(seen.model)}"
        files = [find_beside(str(name)) if name else None for name in names]
        values: dict[str, Any] = {"weight": seen.weight, "start": seen.start, "end": seen.end}
        try:
            if seen.mask is not None:
                values["mask"] = masking_of(seen.mask)
            if lacking := [str(name or "?") for name, file in zip(names, files, strict=True) if file is None]:
                raise ReverieError(f"{', '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not here")
        except ReverieError as error:
            draft.note(f"{title}: {error}; it is left out")
            continue
        values |= {"model": str(files[0]), "encoder": str(files[1]), "images": [files[2]]}
        draft.append("ip_adapters", title, IPAdapterInput, values)


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
    if start.picture is None and size is not None and (start.width is None or start.height is None):
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
