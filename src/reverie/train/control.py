"""Training of ControlNets: a copy of a U-Net's way down learns to answer hints, and the U-Net stays as it is.

Source: Zhang et al. 2302.05543, section 3. The copy's answers pass through convolutions that begin at 0, so that a run
begins with the model that it started from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from reverie.adapters.control import load_controlnet, save_controlnet
from reverie.checkpoints.load import Components
from reverie.errors import ReverieError, choose
from reverie.media.edges import PREPROCESSORS
from reverie.media.pictures import decode, to_rgb
from reverie.models.controlnet import ControlNet, ControlNetConfig
from reverie.train.encoded import Description
from reverie.train.examples import Examples, Pictures
from reverie.train.folders import find_named
from reverie.train.inputs import FinetuneTextSettings
from reverie.train.recipe import section

WIDTHS = ControlNetConfig.hint_widths  # where a latent stands for more pixels, the last comes again
NAMED = 3  # pictures that an error names


@dataclass(frozen=True)
class ControlSettings:
    """Choose the hints that a ControlNet learns to follow, one of two; without [control] in a recipe none learns."""

    hints: str = ""  # folder of hints, named as the pictures that they belong to
    detect: str = ""  # how they are found in the pictures, a key of PREPROCESSORS
    initial: str = ""  # ControlNet to go on from, a folder or a file; "" starts from the U-Net's own weights

    def __post_init__(self) -> None:
        """Raise ReverieError for unknown names."""
        choose("detect in [control]", self.detect or "canny", PREPROCESSORS)


def settings_of(sections: dict[str, Any]) -> ControlSettings | None:
    """Read a recipe's [control]; None where there is none. Raises ReverieError where it cannot be followed."""
    if "control" not in sections:
        return None
    settings = section(sections, "control", ControlSettings)
    if bool(settings.hints) == bool(settings.detect):
        ways = ", ".join(PREPROCESSORS)
        raise ReverieError(f"[control] of the recipe needs hints = FOLDER, or detect = one of {ways}; give one")
    text = section(sections, "text", FinetuneTextSettings)
    if text.pace or text.words or {"lora", "inversion", "prior"} & sections.keys():
        raise ReverieError(
            "[control] trains a ControlNet and nothing else; leave out [lora], [inversion] and [prior], and pace and "
            "words in [text]"
        )
    return settings


@dataclass(frozen=True, eq=False)
class Hints:
    """Give the hint of each picture of a row, cut and mirrored as the picture is."""

    pictures: Pictures
    files: Mapping[str, Path]  # by pictures' names; where there are none, `detect` finds them in the pictures
    detect: Callable[[Image.Image], Image.Image] | None

    def __call__(self, number: int, rng: np.random.Generator) -> Description:
        """Tell of example `number` its `hint`, uint8."""
        return {"hint": torch.from_numpy(self.hint(number))}

    def hint(self, index: int) -> UInt8[np.ndarray, "3 h w"]:
        """Return the hint of example `index`. Raises ReverieError, naming it, where a file is damaged."""
        if self.detect is None:
            hint = self.pictures.align(index, to_rgb(decode(self.files[self.pictures.name(index)])))
        else:
            hint = to_rgb(self.detect(self.pictures.align(index, self.pictures.original(index))))
        return np.ascontiguousarray(np.asarray(hint).transpose(2, 0, 1))


def show_hints(settings: ControlSettings) -> Callable[[Examples, Path], Hints]:
    """Return what tells of a row's examples their hints. Raises ReverieError as `find_hints`."""
    hints_of = find_hints(settings)
    return lambda examples, _: hints_of(examples)


def find_hints(settings: ControlSettings) -> Callable[[Examples], Hints]:
    """Return what gives the hints of a row, of files that are looked up here. Raises ReverieError where none are."""
    return partial(_hints, settings, find_named(settings.hints, "hints"))


def _hints(settings: ControlSettings, files: Mapping[str, Path], examples: Examples) -> Hints:
    """Return the hints of a row. Raises ReverieError where pictures have none."""
    if not isinstance(examples, Pictures):
        raise ReverieError("[control] learns from pictures = FOLDER in [data] alone")
    bare = sorted({examples.name(index) for index in range(len(examples))} - files.keys())
    if bare and not settings.detect:
        some = ", ".join(bare[:NAMED]) + (", ..." if len(bare) > NAMED else "")
        raise ReverieError(f"{len(bare)} pictures without a hint in {settings.hints}: {some}; name hints as these")
    return Hints(examples, files, PREPROCESSORS.get(settings.detect))


def check(settings: ControlSettings, base: Components, opened: Iterable[Examples]) -> None:
    """Raise ReverieError where no ControlNet is trained for the model, or pictures have no hints."""
    if base.unet.config.time_cond_proj_dim is not None:
        raise ReverieError(f"{base.name} hears how strong guidance is; start from a plain model of its family")
    hints_of = find_hints(settings)
    for examples in opened:
        hints_of(examples)


def begin(base: Components, settings: ControlSettings) -> ControlNet:
    """Return a ControlNet for a model: a copy of its U-Net's way down that answers nothing yet, or the one named.

    Raises ReverieError where that is of a kind that is not trained.
    """
    unet = base.unet
    if settings.initial:
        control = load_controlnet(settings.initial, base=unet)
        if control.control.kinds or control.control.pooled:
            raise ReverieError(f"'{settings.initial}' is a union or a pooled ControlNet; go on from a plain one")
        return control.train()
    levels = base.autoencoder.factor.bit_length()
    widths = (*WIDTHS, *WIDTHS[-1:] * levels)[:levels]
    control = ControlNet(ControlNetConfig(unet.config, hint_widths=widths))
    ours, theirs = control.state_dict(), unet.state_dict()
    control.load_state_dict(ours | {name: theirs[name] for name in ours.keys() & theirs.keys()})
    return control


def steer(control: ControlNet, hint: UInt8[Tensor, "b 3 hf wf"], x: Tensor, *given: Tensor | None) -> list[Tensor]:
    """Return the residuals of a batch whose hints are in [0, 255]; `given` are `UNet.forward`'s arguments after x."""
    t, context, *extra = given
    assert t is not None
    assert context is not None
    return control(x, t, context, control.embed_hint(hint.to(x) / 255), *extra)


def export(control: ControlNet, folder: Path) -> None:
    """Write a ControlNet as diffusers' folder, and beside it as a file of lllyasviel's layout, named after the run."""
    save_controlnet(control, folder, folder.resolve().parent.name)
