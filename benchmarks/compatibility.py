"""Do the pictures equal those of diffusers' pipelines? Every sampler that both have, on the same random weights.

`python benchmarks/compatibility.py` writes docs/measured/samplers.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import diffusers
import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from torch import Tensor

from architectures import ARCHITECTURES, FULL, Architecture, Scale, build
from reverie.diffusion.noise import Noise
from reverie.generate.canvas import starting_noise
from reverie.generate.image import fill_in, picture_run
from reverie.pipeline import Pipeline
from reverie.requests.pictures import ImageToImage, Inpaint, TextToImage
from reverie.requests.samplers import SamplerName, ScheduleName

DOCS = Path(__file__).parents[1] / "docs" / "measured" / "samplers.md"
PROMPT, NEGATIVE, SEED, STEPS, GUIDANCE, STRENGTH = "a bear next to an apple", "blue", 7, 8, 4.0, 0.75
GOAL = 1e-3  # on [-1, 1]
PLMS_OF_V = (
    "predicting v, diffusers mixes the past v's and turns the mixture into eps with the present level; reverie mixes "
    "the past eps, as PLMS is defined"
)
# Why a difference is above the goal: (sampler, spacing, task or "" for all) -> what diffusers does otherwise.
REASONS = {
    ("euler", "karras", ""): "with these spacings diffusers' Euler starts from noise times sigma_max, 14.615, and the "
    "network expects sqrt(sigma_max^2 + 1), 14.649, which reverie takes; in image to image there is no such difference",
    (
        "dpmpp_2m",
        "karras",
        "",
    ): "diffusers rounds the timesteps of its Karras levels to whole numbers; reverie tells the "
    "network the fractional timestep, as k-diffusion does",
    (
        "plms",
        "ddim",
        "image to image",
    ): "diffusers' table for PLMS has its second timestep twice, and cutting the table "
    "at the strength cuts by rows: it starts one timestep higher, and takes one step more",
    ("plms", "ddim", "text to image"): PLMS_OF_V,
    ("plms", "ddim", "enlarging"): PLMS_OF_V,
    ("plms", "ddim", "inpainting"): "as in image to image",
    ("plms", "ddim", "by depth"): "as in image to image",
    ("lms", "leading", "by depth"): "as in image to image",
    ("lms", "leading", "image to image"): "diffusers chooses the order of LMS by the position in the table instead of "
    "the steps taken, so starting in its middle it leaves out terms of a past that is not there",
    ("lms", "leading", "inpainting"): "as in image to image",
    ("dpm2", "leading", "inpainting"): "diffusers lays the clean picture in after each half of a step, the first time "
    "with the noise of the step's end instead of its middle",
    ("ddim", "ddim", "inpainting"): "diffusers lays the clean picture in after the last step; DDIM ends at the first "
    "timestep's noise, 0.029, which reverie's latents outside the mask also carry; there the finished picture is the "
    "original",
}
TASKS = ("text to image", "image to image", "inpainting")
DOES: dict[str, tuple[str, ...]] = {  # the others do TASKS
    "SD 1.5 inpainting": ("inpainting",),
    "SD 1.5 InstructPix2Pix": ("editing",),
    "SDXL InstructPix2Pix": ("editing",),
    "SD 2 depth": ("by depth",),
    "SD 2 x4 upscaler": ("enlarging",),
}
LEVEL, LED = 20, 1.5  # noise of a picture that is enlarged; guidance by one that is edited


@dataclass(frozen=True)
class Pair:
    """Say which sampler and spacing of ours is which scheduler of diffusers', with which settings."""

    sampler: SamplerName
    schedule: ScheduleName
    scheduler: str
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """Name the row."""
        told = ", ".join(f"{key}={value}" for key, value in self.settings)
        return f"{self.sampler}, {self.schedule} | {self.scheduler}{f' ({told})' if told else ''}"


LEADING, TRAILING, LINSPACE = (("timestep_spacing", name) for name in ("leading", "trailing", "linspace"))
KARRAS = ("use_karras_sigmas", True)
PAIRS = (
    Pair("ddim", "ddim", "DDIMScheduler", (LEADING,)),
    Pair("plms", "ddim", "PNDMScheduler", (LEADING, ("skip_prk_steps", True))),
    Pair("ddpm", "leading", "DDPMScheduler", (LEADING,)),
    Pair("euler", "leading", "EulerDiscreteScheduler", (LEADING,)),
    Pair("euler", "karras", "EulerDiscreteScheduler", (LINSPACE, KARRAS)),
    Pair("euler_ancestral", "leading", "EulerAncestralDiscreteScheduler", (LEADING,)),
    Pair("heun", "leading", "HeunDiscreteScheduler", (LEADING,)),
    Pair("dpm2", "leading", "KDPM2DiscreteScheduler", (LEADING,)),
    Pair("dpm2_ancestral", "leading", "KDPM2AncestralDiscreteScheduler", (LEADING,)),
    Pair("lms", "leading", "LMSDiscreteScheduler", (LEADING,)),
    Pair("dpmpp_2m", "trailing", "DPMSolverMultistepScheduler", (TRAILING,)),
    Pair("dpmpp_2m", "karras", "DPMSolverMultistepScheduler", (KARRAS,)),
    Pair("dpmpp_2m_sde", "trailing", "DPMSolverMultistepScheduler", (TRAILING, ("algorithm_type", "sde-dpmsolver++"))),
    Pair("unipc", "trailing", "UniPCMultistepScheduler", (TRAILING,)),
    Pair("lcm", "lcm", "LCMScheduler"),
)


def pictures(side: int) -> tuple[Image.Image, Image.Image]:
    """Draw a picture to start from, and a mask along whole latents."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    mask = Image.new("L", (side, side))
    mask.paste(255, (side // 4, side // 2, side // 4 * 3, side))
    return picture.resize((side, side), Image.Resampling.BICUBIC), mask


def ours(system: Pipeline, task: str, pair: Pair) -> Tensor:
    """Draw without rounding to eight bits."""
    picture, mask = pictures(system.size)
    common: dict[str, Any] = {"prompt": PROMPT, "negative": NEGATIVE, "seed": SEED, "steps": STEPS}
    common |= {"guidance": GUIDANCE, "sampler": pair.sampler, "schedule": pair.schedule}
    started: dict[str, Any] = {"init": picture, "strength": STRENGTH, **common}
    painted: dict[str, Any] = {"mask": mask, **started}
    small = picture.resize((system.size // 4,) * 2)
    request = {
        "text to image": lambda: TextToImage(**common),
        "image to image": lambda: ImageToImage(**started),
        "inpainting": lambda: Inpaint(**painted),
        "editing": lambda: ImageToImage(init=picture, image_guidance=LED, strength=1.0, **common),
        "by depth": lambda: ImageToImage(depth=mask, **started),
        "enlarging": lambda: ImageToImage(init=small, noise_level=LEVEL, strength=1.0, **common),
    }[task]()
    request = fill_in(system, request)
    with picture_run(system, request, None) as studio, torch.no_grad():
        *_, last = studio.steps(studio.passes[0], [request.only(0)], None)
        return studio.codec.decode(last.x)


def loaded(folder: Path, architecture: Architecture, task: str) -> Any:
    """Load diffusers' pipeline for a task."""
    kind = f"StableDiffusion{'XL' if architecture.xl else ''}{SUFFIXES[task]}Pipeline"
    absent = dict.fromkeys(("depth_estimator", "feature_extractor")) if task == "by depth" else {}
    pipeline = getattr(diffusers, kind).from_pretrained(folder, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def theirs(pipeline: Any, task: str, pair: Pair, side: int) -> Tensor:
    """Draw with diffusers from the same noise, without rounding to eight bits."""
    configured = pipeline.scheduler
    pipeline.scheduler = getattr(diffusers, pair.scheduler).from_config(configured.config, **dict(pair.settings))
    picture, mask = pictures(side)
    call: dict[str, Any] = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "guidance_scale": GUIDANCE}
    call |= {"num_inference_steps": STEPS, "output_type": "pt"}
    if task in ("text to image", "inpainting"):
        call |= {"width": side, "height": side}
    if task in ("image to image", "inpainting", "by depth"):
        call |= {"image": picture, "strength": STRENGTH}
    if task == "inpainting":
        call["mask_image"] = mask
    elif task == "by depth":
        call["depth_map"] = torch.from_numpy(np.asarray(mask, dtype=np.float32))[None]
    elif task == "editing":
        call |= {"image": picture, "image_guidance_scale": LED}
    elif task == "enlarging":
        call |= {"image": picture.resize((side // 4,) * 2), "noise_level": LEVEL}
    with our_noise(pipeline, side, task == "enlarging"), torch.no_grad():
        images = pipeline(**call).images
    pipeline.scheduler = configured
    return images * 2 - 1


SUFFIXES = {"text to image": "", "image to image": "Img2Img", "inpainting": "Inpaint"}
SUFFIXES |= {"editing": "InstructPix2Pix", "by depth": "Depth2Img", "enlarging": "Upscale"}


@contextmanager
def our_noise(pipeline: Any, side: int, pictured: bool) -> Iterator[None]:
    """Replace every draw of diffusers by ours of the same seed, and the posterior's sample by its mode.

    A reverie seed means the same draws whatever the sampler; its picture to start from is encoded without noise. What
    is enlarged is `pictured`: noised first, from the same seed.
    """
    side //= 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    before = (3, side, side) if pictured else None
    noise, first = starting_noise([TextToImage(seed=SEED)], (4, side, side), 8, before=before), [True]

    def draw(shape: Sequence[int], *_: object, **__: object) -> Tensor:
        if shape[1] == 3:
            return Noise([SEED], before or (), "cpu").initial()
        return noise.initial() if first and first.pop() else noise.next()

    modules = [module for name, module in sys.modules.items() if name.startswith("diffusers.")]
    patched: list[Any] = [
        patch.object(module, "randn_tensor", draw) for module in modules if "randn_tensor" in vars(module)
    ]
    patched.append(patch.object(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode()))
    for one in patched:
        one.start()
    try:
        yield
    finally:
        for one in patched:
            one.stop()


def difference(system: Pipeline, pipeline: Any, task: str, pair: Pair) -> float:
    """Return the largest difference between the two pictures, on [-1, 1]."""
    a, b = ours(system, task, pair), theirs(pipeline, task, pair, system.size)
    if a.std() < 0.1:
        raise SystemExit(f"{task} with {pair.sampler} has no contrast, which proves nothing")
    return (a - b).abs().max().item()


def measured(scale: Scale, names: list[str]) -> Iterator[tuple[Pair, str, str, float]]:
    """Draw every picture on both sides: pair, architecture, task and the largest difference."""
    for name in names:
        architecture = ARCHITECTURES[name]
        system = build(architecture, scale)
        with tempfile.TemporaryDirectory() as scratch:
            system.save(scratch)
            for task in DOES.get(name, TASKS):
                pipeline = loaded(Path(scratch), architecture, task)
                for pair in PAIRS:
                    yield pair, name, task, difference(system, pipeline, task, pair)


Results = dict[tuple[Pair, str, str], float]


def markdown(results: Results, scale: Scale) -> str:
    """Write the document: one table an architecture, and the reason for whatever is above the goal."""
    widths = "full width" if scale.width == 1 else f"every width divided by {scale.width}, heads by {scale.heads}"
    lines = [HEAD.format(side=scale.side, widths=widths, steps=STEPS, guidance=GUIDANCE, strength=STRENGTH, goal=GOAL)]
    notes: list[str] = []
    for name in dict.fromkeys(name for _, name, _ in results):
        tasks = list(dict.fromkeys(task for _, other, task in results if other == name))
        lines += [
            f"## {name}",
            "",
            f"| reverie | diffusers | {' | '.join(tasks)} |",
            f"|---|---|{'---:|' * len(tasks)}",
        ]
        for pair in PAIRS:
            cells = [_cell(results.get((pair, name, task)), pair, task, notes) for task in tasks]
            lines.append(f"| {pair.name} | {' | '.join(cells)} |")
        lines.append("")
    lines += [f"{number}. {note}." for number, note in enumerate(notes, 1)]
    return "\n".join(lines) + "\n"


def _cell(value: float | None, pair: Pair, task: str, notes: list[str]) -> str:
    """Write one number, with the number of its reason where it is above the goal."""
    if value is None or value <= GOAL:
        return "" if value is None else f"{value:.0e}"
    keys = ((pair.sampler, pair.schedule, task), (pair.sampler, pair.schedule, ""))
    reason = next((REASONS[key] for key in keys if key in REASONS), "not explained")
    if reason not in notes:
        notes.append(reason)
    return f"{value:.0e} ({notes.index(reason) + 1})"


HEAD = """# Compatibility with diffusers

Largest differences between reverie's pictures and those of diffusers' pipelines, on [-1, 1], in float32 on a CPU,
before rounding to eight bits: {side} x {side} pixels, {steps} steps, guidance {guidance}, strength {strength} where it
applies, the same random weights and the same noise on both sides ({widths}; levels, layers and transformer depths as in
the official models). The goal is {goal:g}; what lies above it is explained below. Both sides start from the mode of
the encoder's posterior, where diffusers by default draws from it. Inpainting with the 4-channel models compares the
drawing before the original is laid back outside the mask.

Left out: `dpmpp_sde` (diffusers' needs torchsde and draws its noise from a Brownian tree), `dpmpp_2s_ancestral`
(diffusers' singlestep solver has no ancestral noise), `dpmpp_3m_sde` (diffusers has another sign in phi_3 than
k-diffusion, which reverie follows). All three are tested against golden values of k-diffusion instead.

Made by `python benchmarks/compatibility.py`.
"""


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="full width: needs about 40 GB of memory for SDXL")
    parser.add_argument("--side", type=int, default=256, help="pixels")
    parser.add_argument("--only", nargs="*", choices=ARCHITECTURES, default=list(ARCHITECTURES), help="architectures")
    parser.add_argument("--out", type=Path, default=DOCS, help="the document; written anew after every picture")
    return parser.parse_args()


def main() -> None:
    """Measure all pairs, telling each on stderr as it comes."""
    options, results = arguments(), Results()
    scale = replace(FULL if options.full else Scale(), side=options.side)
    for pair, name, task, value in measured(scale, options.only):
        print(f"{name}, {task}, {pair.name}: {value:.1e}", file=sys.stderr, flush=True)
        results[pair, name, task] = value
        options.out.write_text(markdown(results, scale), encoding="utf-8")


if __name__ == "__main__":
    main()
