"""ComfyUI's samplers, and the nodes that guiders, noise, solvers and levels are made of (nodes_custom_sampler.py).

And what they start from and end in: latents, and pictures that are loaded, masked, encoded, decoded and enlarged.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from PIL import Image, ImageFilter, ImageOps

from reverie.errors import ReverieError
from reverie.media.masks import PAINTED
from reverie.media.pictures import decode
from reverie.requests.foreign.draft import shorten
from reverie.requests.foreign.graph import (
    GraphMask,
    GraphPicture,
    GraphStart,
    Guider,
    Latent,
    Model,
    Node,
    Prompt,
    Reader,
    Sampling,
    Seed,
    Sigmas,
    Solver,
)
from reverie.requests.pictures import Fill
from reverie.requests.references import find_beside


def _draw(node: Node, sampling: Sampling, want: type) -> object:
    latent = replace(sampling.start, drawn=sampling, picture=None, scaled=())
    return GraphPicture(latent) if want is GraphPicture else latent if want is Latent else None


def _guider(node: Node) -> Guider:
    model = node.get("model", Model) or Model()
    return Guider(model, node.get("positive", Prompt), node.get("negative", Prompt), node.scalar("cfg"))


def ksampler(node: Node, slot: int, want: type) -> object:
    """Read KSampler, KSamplerAdvanced, and what has the same inputs."""
    if want is Prompt:  # Efficiency Nodes' gives its conditionings on
        return node.get("positive" if slot == 1 else "negative", Prompt)
    if want not in (Latent, GraphPicture):
        return node.get("model", want) if "model" in node.inputs else None
    for name in ("return_with_leftover_noise", "control_after_generate"):
        node.unread.pop(name, None)
    seed = Seed(
        node.scalar("seed", node.scalar("noise_seed")), node.scalar("add_noise", True) not in ("disable", False)
    )
    sigmas = Sigmas(
        node.scalar("steps"),
        node.scalar("scheduler"),
        node.scalar("denoise", 1),
        of_the_sampler=True,
        first=node.scalar("start_at_step", 0),
        last=node.scalar("end_at_step"),
    )
    latent = node.get("latent_image", Latent) or node.get("latent", Latent) or Latent(picture=GraphStart())
    solver = Solver(node.scalar("sampler_name"))
    return _draw(node, Sampling(node, _guider(node), seed, solver, sigmas, latent), want)


def custom(node: Node, slot: int, want: type) -> object:
    """Read SamplerCustom and SamplerCustomAdvanced, whose parts are nodes."""
    guider = node.get("guider", Guider) if "guider" in node.inputs else _guider(node)
    seed = Seed(node.scalar("noise_seed"), node.scalar("add_noise", True) is not False)
    if "noise" in node.inputs:
        seed = node.get("noise", Seed) or Seed(None)
    solver = node.get("sampler", Solver) or Solver(_kind_of(node, "sampler"))
    sigmas = node.get("sigmas", Sigmas) or Sigmas(None, _kind_of(node, "sigmas"))
    latent = node.get("latent_image", Latent) or Latent(picture=GraphStart())
    if guider is None:
        raise ReverieError(f"the guider of {node.kind} is {_kind_of(node, 'guider')}, which is not understood")
    return _draw(node, Sampling(node, guider, seed, solver, sigmas, latent), want)


def _kind_of(node: Node, name: str) -> str:
    source = node.graph.source(node.inputs.get(name))
    return source.kind if source is not None else f"no {name}"


def cfg_guider(node: Node, slot: int, want: type) -> object:
    """Read a model with both prompts and a guidance."""
    return _guider(node)


def basic_guider(node: Node, slot: int, want: type) -> object:
    """Read a model with one prompt, without guidance."""
    return Guider(node.get("model", Model) or Model(), node.get("conditioning", Prompt), None, 1)


def dual_guider(node: Node, slot: int, want: type) -> object:
    """Read a guider of two prompts, of which the second is noted."""
    second = node.get("cond2", Prompt)
    node.note(f"a second prompt: {shorten(second.text if second else None)}", "cfg_cond2_negative", "style")
    model, positive = node.get("model", Model) or Model(), node.get("cond1", Prompt)
    return Guider(model, positive, node.get("negative", Prompt), node.scalar("cfg_conds"))


def random_noise(node: Node, slot: int, want: type) -> object:
    """Read the seed."""
    return Seed(node.scalar("noise_seed"))


def no_noise(node: Node, slot: int, want: type) -> object:
    """Read that the latents hold all the noise."""
    return Seed(0, added=False)


def basic_scheduler(node: Node, slot: int, want: type) -> object:
    """Read steps, spacing and denoise."""
    return Sigmas(node.scalar("steps"), node.scalar("scheduler"), node.scalar("denoise", 1))


def levels_of(name: str, **usual: object) -> Reader:
    """Read a node that spaces the levels in one way; settings that are not the usual ones are noted."""

    def read(node: Node, slot: int, want: type) -> object:
        sigmas = Sigmas(node.scalar("steps"), name, node.scalar("denoise", 1))
        _note_unusual(node, usual)
        return sigmas

    return read


def align_your_steps(node: Node, slot: int, want: type) -> object:
    """Read the levels that were optimised for a kind of model."""
    names = {"SD1": "align_your_steps", "SDXL": "align_your_steps_xl"}
    kind = node.scalar("model_type")
    return Sigmas(node.scalar("steps"), names.get(kind, f"AlignYourSteps of {kind}"), node.scalar("denoise", 1))


def manual_sigmas(node: Node, slot: int, want: type) -> object:
    """Read levels that are written out."""
    levels = tuple(map(float, re.findall(r"\d*\.?\d+(?:e-?\d+)?", node.text("sigmas"))))
    return Sigmas(len(levels) - 1, "", levels=levels)


def solver_of(name: str, **usual: object) -> Reader:
    """Read a node that is one sampler, and its eta; settings that are not the usual ones are noted."""

    def read(node: Node, slot: int, want: type) -> object:
        _note_unusual(node, usual)
        return Solver(name, node.scalar("eta"))

    return read


def tcd_sampling(node: Node, slot: int, want: type) -> object:
    """Read ComfyUI-TCD's sampler and its levels, "simple" ones of 50 distilled timesteps; its model passes through."""
    if want is Solver:
        return Solver("tcd", node.scalar("eta"))
    if want is Sigmas:
        _note_unusual(node, {"scheduler": "simple"})
        return Sigmas(node.scalar("steps"), "tcd", node.scalar("denoise", 1))
    return node.get("model", want)


def _note_unusual(node: Node, usual: dict[str, object]) -> None:
    for setting, value in usual.items():
        given = node.scalar(setting, value)
        close = isinstance(given, float) and isinstance(value, float) and abs(given - value) < 1e-4
        if given != value and not close:
            node.graph.note(f"node {node.kind}: {setting} {shorten(given)}")


def ksampler_select(node: Node, slot: int, want: type) -> object:
    """Read a sampler's name."""
    return Solver(node.scalar("sampler_name"))


def split_sigmas(node: Node, slot: int, want: type) -> object:
    """Read levels that are cut at a step: those before it, and those from it on; or at a share of them."""
    sigmas = node.get("sigmas", Sigmas)
    step = node.scalar("step")
    if sigmas is None or sigmas.first != 0 or sigmas.last is not None or not isinstance(step, int):
        node.note("a part of the levels alone", "step", "denoise")
        return sigmas
    return replace(sigmas, last=step) if slot == 0 else replace(sigmas, first=step)


# ---- latents and pictures --------------------------------------------------------------------------------------------


def _empty(node: Node, slot: int, want: type) -> object:
    return Latent(node.scalar("width"), node.scalar("height"), node.scalar("batch_size", 1)) if want is Latent else None


def _decode(node: Node, slot: int, want: type) -> object:
    vae = node.graph.source(node.inputs.get("vae"))
    if vae is not None and vae.kind == "VAELoader":
        node.graph.note(f"node VAELoader: {shorten(vae.scalar('vae_name'))}")
    latent = node.get("samples", Latent)
    return None if latent is None else GraphPicture(latent)


def _load_picture(node: Node, slot: int, want: type) -> object:
    """Read a picture, and its mask: a channel of it, or where it is transparent."""
    if want is GraphMask:
        return GraphMask(picture_name(node), node.scalar("channel", "alpha"))
    return GraphPicture(Latent(picture=GraphStart(picture_name(node)))) if want is GraphPicture else None


def picture_name(node: Node) -> str:
    """Return the name of the picture that a node loads, without the folder that ComfyUI writes behind it."""
    return re.sub(r" \[(input|output|temp)\]$", "", str(node.scalar("image")))


def _encode_picture(node: Node, slot: int, want: type) -> object:
    """Read latents of a picture: of one that was drawn before, or of one that is not in the file."""
    picture = node.get("pixels", GraphPicture) or node.get("image", GraphPicture)
    latent = picture.latent if picture is not None else Latent(picture=GraphStart())
    if "mask" not in node.inputs:
        return latent
    return _under_mask(node, latent, "nothing", node.scalar("grow_mask_by", 6))


def _set_mask(node: Node, slot: int, want: type) -> object:
    latent = node.get("samples", Latent)
    return None if latent is None else _under_mask(node, latent, "original", 0)


def _under_mask(node: Node, latent: Latent, fill: Fill, grow: object) -> Latent:
    """Lay a mask over the latents of a picture; one that is not understood is noted, as is one over drawn latents."""
    mask = node.get("mask", GraphMask)
    if mask is None or latent.picture is None:
        node.note("a mask that is not understood")
        return latent
    return replace(latent, picture=replace(latent.picture, mask=replace(mask, grow=grow), fill=fill))


def pictures_of(start: GraphStart) -> dict[str, Any] | None:
    """Return the fields of what is drawn over, or None where its files are not here.

    ComfyUI's pictures have no transparency; that is a mask of its own (nodes.py, LoadImage, VAEEncodeForInpaint).
    """
    named = start.name, start.name if start.mask is None else start.mask.name
    files = [find_beside(str(name)) if name else None for name in named]
    if files[0] is None or files[1] is None:
        return None
    picture, masking = (decode(file.read_bytes(), f"'{file.name}'") for file in files if file is not None)
    fields: dict[str, Any] = {"init": files[0] if picture.mode == "RGB" else picture.convert("RGB")}
    if start.mask is None:
        return fields
    return fields | {"mask": mask_of(masking, start.mask), "mask_blur": 0, "fill": start.fill}


def mask_of(picture: Image.Image, mask: GraphMask) -> Image.Image:
    """Return a mask that is white where it is painted. Raises ReverieError where that is nowhere."""
    if mask.channel != "alpha":
        band = picture.convert("RGB").getchannel(str(mask.channel)[:1].upper())
    elif picture.mode == "RGBA":
        band = ImageOps.invert(picture.getchannel("A"))
    else:
        raise ReverieError(f"'{mask.name}' is the mask, and it has no transparent part")
    grow = mask.grow if isinstance(mask.grow, int) else 0
    whole = band.point(lambda value: 255 * (value >= PAINTED)) if grow else band
    return whole.filter(ImageFilter.MaxFilter(grow | 1)) if grow else whole


def masking_of(mask: GraphMask) -> Image.Image:
    """Return a mask whose picture is here. Raises ReverieError where it is not."""
    if (file := find_beside(str(mask.name))) is None:
        raise ReverieError(f"its mask '{mask.name}' is not here")
    return mask_of(decode(file.read_bytes(), f"'{file.name}'"), mask)


def _enlarge(node: Node, slot: int, want: type) -> object:
    """Read latents or pictures that are scaled, to a size or by a factor."""
    name = next((name for name in ("samples", "image", "images", "pixels") if name in node.inputs), "")
    if want is Latent:
        latent = node.get(name, Latent)
        return None if latent is None else _scale(node, latent)
    picture = node.get(name, GraphPicture) if want is GraphPicture else None
    return None if picture is None else GraphPicture(_scale(node, picture.latent))


def _scale(node: Node, latent: Latent) -> Latent:
    """Give latents another size; a side of 0 follows from the other, and one that is not known stays unknown."""
    scaled = replace(latent, width=None, height=None, scaled=(*latent.scaled, node))
    sides, factor = (latent.width, latent.height), node.scalar("scale_by", _factor_of(node))
    known = all(isinstance(side, int) for side in sides)
    if "width" in node.inputs:
        width, height = node.scalar("width"), node.scalar("height")
        if known and not width and isinstance(height, int):
            width = round(height * sides[0] / sides[1])  # type: ignore[operator]
        elif known and not height and isinstance(width, int):
            height = round(width * sides[1] / sides[0])  # type: ignore[operator]
        return replace(scaled, width=width, height=height)
    if not known or not isinstance(factor, int | float):
        return scaled
    cell = 8 if "samples" in node.inputs else 1  # pixels; latents are counted in cells
    width, height = (cell * round(side * factor / cell) for side in sides)  # type: ignore[operator]
    return replace(scaled, width=width, height=height)


def _factor_of(node: Node) -> int | None:
    """Return how many times as large a network makes a picture, as its file's name says: 4x-UltraSharp."""
    loader = node.graph.source(node.inputs.get("upscale_model"))
    name = str(loader.scalar("model_name")) if loader is not None else ""
    match = re.search(r"(?<!\d)([2348])x|x([2348])(?!\d)", name, re.IGNORECASE)
    return int(match[1] or match[2]) if match else None


# How it enlarges latents (comfy/utils.py, common_upscale), by our names; "area" and "bislerp" are its own.
LATENT_METHODS = {"bilinear": "latent", "bicubic": "latent-bicubic", "nearest-exact": "latent-nearest-exact"}


def upscaler_of(start: Latent) -> str:
    """Say which of our ways enlarges as a graph does, and note another; latents are scaled before they are decoded."""
    ours = "latent"
    for node in start.scaled:
        of_latents, method = "samples" in node.inputs, str(node.scalar("upscale_method"))
        ours = LATENT_METHODS.get(method, "latent") if of_latents and ours != "lanczos" else "lanczos"
        if method not in (LATENT_METHODS if of_latents else ("lanczos",)):
            note_scaling(node, "upscale_method", "model_name")
        if node.scalar("crop", "disabled") != "disabled":
            note_scaling(node, "crop")
    return ours


def note_scaling(node: Node, *names: str) -> None:
    """Note a node that gives another size, with some of its settings, or all."""
    node.note("", *(names or [name for name in node.inputs if node.graph.source(node.inputs[name]) is None]))


# Readers, each with the names of its classes.
KNOWN: tuple[tuple[Reader, str], ...] = (
    (ksampler, "KSampler, KSamplerAdvanced, KSampler (Efficient), KSampler Adv. (Efficient)"),
    (custom, "SamplerCustom, SamplerCustomAdvanced"),
    (cfg_guider, "CFGGuider"),
    (basic_guider, "BasicGuider"),
    (dual_guider, "DualCFGGuider"),
    (random_noise, "RandomNoise"),
    (no_noise, "DisableNoise"),
    (ksampler_select, "KSamplerSelect"),
    (basic_scheduler, "BasicScheduler"),
    (split_sigmas, "SplitSigmas, SplitSigmasDenoise"),
    (levels_of("karras", sigma_max=14.614642, sigma_min=0.0291675, rho=7.0), "KarrasScheduler"),
    (levels_of("exponential", sigma_max=14.614642, sigma_min=0.0291675), "ExponentialScheduler"),
    (manual_sigmas, "ManualSigmas"),
    (levels_of("SDTurboScheduler"), "SDTurboScheduler"),
    (levels_of("beta"), "BetaSamplingScheduler"),
    (align_your_steps, "AlignYourStepsScheduler"),
    (levels_of("gits", coeff=1.2), "GITSScheduler"),
    (solver_of("euler_ancestral", s_noise=1.0), "SamplerEulerAncestral"),
    (solver_of("lms", order=4), "SamplerLMS"),
    (solver_of("dpmpp_sde", s_noise=1.0, r=0.5), "SamplerDPMPP_SDE"),
    (solver_of("dpmpp_2m_sde", solver_type="midpoint", s_noise=1.0), "SamplerDPMPP_2M_SDE"),
    (solver_of("dpmpp_3m_sde", s_noise=1.0), "SamplerDPMPP_3M_SDE"),
    (solver_of("dpmpp_2s_ancestral", s_noise=1.0), "SamplerDPMPP_2S_Ancestral"),
    (tcd_sampling, "TCDModelSamplingDiscrete"),
    (_empty, "EmptyLatentImage, EmptySD3LatentImage, EmptyLatentImagePresets, EmptyLatentAudio"),
    (_decode, "VAEDecode, VAEDecodeTiled, VAEDecodeAudio"),
    (_load_picture, "LoadImage, LoadImageMask"),
    (_encode_picture, "VAEEncode, VAEEncodeTiled, VAEEncodeForInpaint"),
    (_set_mask, "SetLatentNoiseMask"),
    (_enlarge, "LatentUpscale, LatentUpscaleBy, ImageScale, ImageScaleBy, ImageUpscaleWithModel"),
)
