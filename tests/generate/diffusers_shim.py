"""A pytest plugin for diffusers' own tests of pipelines: whatever they draw is drawn by reverie too, and compared.

Each call of a pipeline becomes a request for a model saved from the pipeline's parts. Thin, and in these ways other
than a user's call: the noise levels are the scheduler's own, and the generator's state takes a seed's place; pictures
given are rounded to eight bits for both; and the autoencoder's latents are the mode of its posterior for both, of which
diffusers draws a sample. The tests' tokenizer is on the hub, so one that is built here stands in. Verdicts are written
as JSON lines into the file SHIM_LOG.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer

from reverie import load
from reverie.diffusion.noise import SOURCES
from reverie.diffusion.schedule import Schedule, to_ve
from reverie.errors import ReverieError
from reverie.generate.image import fill_in, picture_run
from reverie.requests.foreign.diffusers import read_scheduler
from reverie.requests.foreign.draft import Draft
from reverie.requests.parts import ControlInput
from reverie.requests.pictures import ImageToImage, Inpaint, TextToImage

LOG = Path(os.environ["SHIM_LOG"])
PIPELINES = [
    getattr(diffusers, f"StableDiffusion{kind}Pipeline")
    for kind in (
        *("", "Img2Img", "Inpaint", "ControlNet", "ControlNetImg2Img", "ControlNetInpaint"),
        *("XL", "XLImg2Img", "XLInpaint", "XLControlNet", "XLControlNetImg2Img", "XLControlNetInpaint"),
    )
]
TAKEN = {"prompt", "negative_prompt", "generator", "num_inference_steps", "guidance_scale", "output_type", "image"}
TAKEN |= {"mask_image", "control_image", "strength", "height", "width", "guidance_rescale", "clip_skip", "return_dict"}
TAKEN |= {"controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end", "num_images_per_prompt"}
TAKEN |= {"timesteps", "sigmas", "callback_on_step_end", "callback_on_step_end_tensor_inputs", "original_size"}
TAKEN |= {"crops_coords_top_left", "target_size", "callback", "callback_steps"}
OF_THE_MODEL = ("scheduler: prediction_type", "scheduler: rescale_betas_zero_snr")  # which its folder says
# What the tests import for what is not compared: GPUs, IP-Adapters and other tests of theirs.
STUBS = (
    *("accelerate", "accelerate.utils", "accelerate.utils.modeling", "parameterized"),
    "tests.models.unets.test_models_unet_2d_condition",
)
CALLBACKS = {"callback_on_step_end", "callback_on_step_end_tensor_inputs", "callback", "callback_steps"}
running = [""]


class CannotApplyError(Exception):
    """A call that no request says, and why."""


def stand_in() -> CLIPTokenizer:
    """Return a tokenizer of bytes, in CLIP's layout; begin and end have the numbers that the tests' encoders say."""
    from transformers.models.clip.tokenization_clip import CLIPTokenizer as Kind

    letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256))]
    letters += [chr(256 + k) for k in range(256 - len(letters))]
    words = ["<|startoftext|>", "<|pad|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
        Path(folder, "merges.txt").write_text("#version: 0.2\n")
        return Kind(f"{folder}/vocab.json", f"{folder}/merges.txt", model_max_length=77)


def pytest_runtest_setup(item: pytest.Item) -> None:
    running[0] = item.nodeid


def pytest_configure() -> None:
    for name in STUBS:
        sys.modules.setdefault(name, mock.MagicMock(__spec__=None, __path__=[]))
    CLIPTokenizer.from_pretrained = classmethod(lambda *args, **options: stand_in())
    for kind in PIPELINES:
        kind.__call__ = watched(kind.__call__)


def watched(call: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(call)

    @functools.wraps(call)
    def __call__(self: Any, *args: Any, **options: Any) -> Any:
        given = dict(signature.bind(self, *args, **options).arguments)
        usual = {name: one.default for name, one in signature.parameters.items()}
        fields = {name: value for name, value in given.items() if name != "self" and value is not usual[name]}
        verdict: dict[str, object] = {"test": running[0], "pipeline": type(self).__name__}
        verdict["scheduler"] = type(self.scheduler).__name__
        try:
            verdict["difference"], verdict["contrast"] = compare(call, self, fields, usual)
        except CannotApplyError as reason:
            verdict["cannot"] = str(reason)
        except ReverieError as error:
            verdict["refused"] = str(error)
        except Exception as error:
            verdict["broken"] = f"{type(error).__name__}: {error}"
        with LOG.open("a") as log:
            log.write(json.dumps(verdict) + "\n")
        return call(self, *args, **options)

    return __call__


def compare(call: Callable[..., Any], pipe: Any, fields: dict[str, Any], usual: dict[str, Any]) -> tuple[float, float]:
    """Draw by both; return the largest difference on [0, 1], and the standard deviation of theirs."""
    fields = {name: value for name, value in fields.items() if name not in CALLBACKS}
    for name, value in fields.items():
        if name not in TAKEN and (isinstance(value, Tensor) or value not in (None, False, {}, 0, 0.0, "")):
            raise CannotApplyError(f"argument {name}")
    if isinstance(pipe.scheduler, diffusers.PNDMScheduler):
        raise CannotApplyError("PNDM takes its first step twice, and begins a picture within it")
    if getattr(pipe.vae, "use_tiling", False):
        raise CannotApplyError("the decoder in tiles that are blended, where ours is exact")
    prompts, negatives = (fields.get(name) or "" for name in ("prompt", "negative_prompt"))
    if isinstance(prompts, list) or isinstance(negatives, list) or fields.get("num_images_per_prompt", 1) != 1:
        raise CannotApplyError("a batch: its noise is one draw of one generator, here each picture has a seed")
    fields = {name: quantised(value) if "image" in name else value for name, value in fields.items()}
    state = state_of(fields.get("generator"))
    with tempfile.TemporaryDirectory() as folder:
        pipe.save_pretrained(folder, safe_serialization=True)
        name = type(pipe).__name__.replace("ControlNet", "")  # which our folders hold no ControlNet of
        index = Path(folder, "model_index.json")
        index.write_text(index.read_text().replace(type(pipe).__name__, name))
        fields["generator"] = going_on(state)
        pipe.set_progress_bar_config(disable=True)
        with mock.patch.object(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode()):
            theirs = call(copy.copy(pipe), **{**fields, "output_type": "pt", "return_dict": True}).images
        ours = draw(pipe, Path(folder), request_fields(pipe, fields, usual, Path(folder)), state)
    if ours.shape != theirs.shape:
        raise CannotApplyError(f"another size: {tuple(ours.shape)} and {tuple(theirs.shape)}")
    return float((ours - theirs).abs().max()), float(theirs.std())


def state_of(generator: Any) -> Tensor:
    if isinstance(generator, list) and len(generator) == 1:
        (generator,) = generator
    if not isinstance(generator, torch.Generator):
        raise CannotApplyError("no generator, or several")
    return generator.get_state()


def going_on(state: Tensor) -> torch.Generator:
    """Return a generator that goes on from a state."""
    generator = torch.Generator("cpu")
    generator.set_state(state)
    return generator


def quantised(value: Any) -> Any:
    """Return pictures of any kind as those of eight bits."""
    if isinstance(value, list):
        return [quantised(one) for one in value]
    if isinstance(value, Tensor):
        value = value.detach().float().cpu().numpy()
        value = value.transpose(0, 2, 3, 1) if value.ndim == 4 else value.transpose(1, 2, 0)
    if isinstance(value, np.ndarray):
        if value.ndim == 4 and len(value) != 1:
            raise CannotApplyError("several pictures to start from")
        value = value[0] if value.ndim == 4 else value
        if value.shape[-1] not in (1, 3):
            raise CannotApplyError("latents to start from")
        grey = np.round(value.clip(0, 1) * 255).astype(np.uint8)
        return Image.fromarray(grey[..., 0] if grey.shape[-1] == 1 else grey)
    return value


def request_fields(pipe: Any, fields: dict[str, Any], usual: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Say a call as the fields of a request."""

    def value(name: str) -> Any:
        return fields.get(name, usual.get(name))

    tokens = [len(pipe.tokenizer(text or "").input_ids) for text in (value("prompt"), value("negative_prompt"))]
    if max(tokens) > 77:
        raise CannotApplyError("a prompt of more than 77 tokens, which diffusers cuts off")
    draft = Draft()
    read_scheduler(draft, dict(pipe.scheduler.config) | {"_class_name": type(pipe.scheduler).__name__})
    if unsaid := [note for note in draft.notes if not note.startswith(OF_THE_MODEL)]:
        raise CannotApplyError(unsaid[0])
    said = {"sampler": draft.fields["sampler"], "steps": value("num_inference_steps") or 50}
    said |= {"prompt": value("prompt") or "", "negative": value("negative_prompt") or ""}
    said |= {"guidance": max(1.0, value("guidance_scale")), "guidance_rescale": value("guidance_rescale") or 0.0}
    said |= {"width": value("width"), "height": value("height"), "clip_skip": (value("clip_skip") or 0) + 1}
    said |= {"original_size": value("original_size"), "target_size": value("target_size")}
    if value("crops_coords_top_left") not in (None, (0, 0)):
        said["crop"] = value("crops_coords_top_left")
    if type(pipe).__name__.endswith(("Img2ImgPipeline", "InpaintPipeline")):
        said |= {"init": value("image"), "strength": value("strength")}
    if type(pipe).__name__.endswith("InpaintPipeline"):
        said |= {"mask": value("mask_image").convert("L"), "mask_blur": 0}
    if "ControlNet" in type(pipe).__name__:
        said["controls"] = controls(fields, value, folder)
    return said


def controls(fields: dict[str, Any], value: Callable[[str], Any], folder: Path) -> tuple[ControlInput, ...]:
    pictures = value("control_image") if "control_image" in fields else value("image")
    names = [path for path in sorted(folder.glob("controlnet*")) if (path / "config.json").is_file()]
    names += sorted(folder.glob("controlnet/controlnet*"))

    def each(given: Any) -> list[Any]:
        return list(given) if isinstance(given, list) else [given] * len(names)

    rows = zip(
        names,
        pictures if isinstance(pictures, list) else [pictures],
        each(value("controlnet_conditioning_scale")),
        each(value("control_guidance_start")),
        each(value("control_guidance_end")),
        strict=True,
    )
    return tuple(
        ControlInput(model=str(name), image=picture, weight=weight, start=start, end=end)
        for name, picture, weight, start, end in rows
    )


def takes_other_steps(control: ControlInput, ways: Sequence[float]) -> bool:
    """Tell whether diffusers' rule for a control's start and end takes other steps than ours does.

    Theirs takes step i of n where i / n >= start and (i + 1) / n <= end; ours, as ComfyUI's, goes by the way to the
    last timestep that each step begins at.
    """
    count = len(ways)
    theirs = [control.start <= i / count and (i + 1) / count <= control.end for i in range(count)]
    return theirs != [control.start <= way <= control.end for way in ways]


def levels(scheduler: Any, share: float) -> Tensor:
    """Return the falling noise levels that a scheduler walks, of which the last `share`; steps of no length left out.

    Solvers of second order repeat their timesteps.
    """
    order, count = scheduler.order, len(scheduler.timesteps)
    steps = len(scheduler.timesteps.unique())
    start = 0 if share == 1.0 else max(0, (steps - min(int(steps * share), steps)) * order)
    if hasattr(scheduler, "sigmas"):
        sigmas = scheduler.sigmas.double()[start:]
    else:
        schedule = Schedule(scheduler.alphas_cumprod.double())
        final = getattr(scheduler, "final_alpha_cumprod", torch.tensor(1.0)).double()
        if isinstance(scheduler, diffusers.LCMScheduler):  # whose last step adds no noise
            final = torch.tensor(1.0).double()
        visited = schedule.sigmas[scheduler.timesteps.long()]
        sigmas = torch.cat([visited[start:], ((1 - final) / final).sqrt()[None]])
    falling = sigmas.unique().flip(0)
    if count == start or len(falling) == 1:
        raise CannotApplyError("a step of no length alone")
    return falling


@contextmanager
def walking(scheduler: Any, share: float) -> Iterator[None]:
    """Let requests visit a scheduler's levels, from noise of the size that it starts from."""
    sigmas, first = levels(scheduler, share), float(scheduler.init_noise_sigma)
    start = (lambda x, sigma: x * first) if first != 1.0 else to_ve  # those of 1 keep the variance
    with (
        mock.patch("reverie.generate.image.noise_levels", return_value=sigmas),
        mock.patch("reverie.generate.image.steps_taken", return_value=len(sigmas) - 1),
        mock.patch("reverie.generate.sample.to_ve", start),
    ):
        yield


@torch.no_grad()
def draw(pipe: Any, folder: Path, fields: dict[str, Any], state: Tensor) -> Tensor:
    """Draw by reverie, without rounding and without laying the old picture over; on [0, 1]."""
    system = load(folder, device="cpu", dtype="float32", fast=False)
    kind = Inpaint if "mask" in fields else ImageToImage if "init" in fields else TextToImage
    request = fill_in(system, kind(**fields))
    ways = [system.progress(t) for t in pipe.scheduler.timesteps.tolist()]
    if any(takes_other_steps(control, ways) for control in request.controls):
        raise CannotApplyError("a control's start and end choose by the share of steps, here by the timestep")
    noise = mock.patch.dict(SOURCES, cpu=lambda seed: partial(torch.randn, generator=going_on(state)))
    with noise, walking(pipe.scheduler, fields.get("strength", 1.0)), picture_run(system, request, None) as run:
        *_, last = run.steps(run.passes[0], [request], None)
        return (system.codec.decode(last.x) / 2 + 0.5).clamp(0, 1)
