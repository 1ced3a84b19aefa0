"""ControlNets: pictures that steer a drawing, several at once, each with a weight and a part of the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from reverie.diffusion.denoiser import Network
from reverie.errors import ReverieError
from reverie.media.decoding import to_rgb
from reverie.models.controlnet import ControlNet
from reverie.requests.parts import CONTROL_KINDS as KINDS
from reverie.system import Conditioning, StableDiffusion


@dataclass(frozen=True, eq=False)
class Control:
    """Steer by a picture that is already what the network was trained on: edges, depth, a pose.

    What the network answers is multiplied by `weight`. It is asked between `start` and `end`, fractions of the way from
    the last timestep (0) to the first (1). `kind` says to a union ControlNet what the picture is, by the names of
    KINDS. Raises ReverieError where start and end are not in order within [0, 1], and for a kind that the network does
    not know.
    """

    network: ControlNet
    picture: Image.Image
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    kind: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= 1:
            raise ReverieError(
                f"control from {self.start:g} to {self.end:g} is not possible; give 0 <= start <= end <= 1"
            )
        known = KINDS[: self.network.control.kinds]
        if known and self.kind not in known:
            raise ReverieError(
                f"this is a union ControlNet, for several kinds of pictures, and kind is {self.kind}; choose from "
                f"{', '.join(known)}"
            )
        if self.kind is not None and not known:
            raise ReverieError(f"this ControlNet is for one kind of pictures; leave out kind {self.kind}")

    def hint(self, height: int, width: int) -> Float[Tensor, "1 d h w"]:
        """Embed the picture, stretched to latents of a height and a width."""
        factor, weight = self.network.control.factor, self.network.conv_in.weight
        stretched = to_rgb(self.picture).resize((width * factor, height * factor), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.asarray(stretched, dtype=np.float32) / 255).permute(2, 0, 1)[None]
        return self.network.embed_hint(pixels.to(weight.device, weight.dtype))


def bind_controls(system: StableDiffusion, controls: Sequence[Control]) -> Callable[[Conditioning], Network]:
    """Return what binds a conditioning as `system.network` does, to a U-Net that the controls steer.

    Their answers are summed. Raises ReverieError where a ControlNet is of another family than the model.
    """
    for control in controls:
        _check(system, control)
    if not controls:
        return system.network
    hint = cache(Control.hint)  # once for each size, not at each step

    def bind(conditioning: Conditioning) -> Network:
        extra = (conditioning.pooled, conditioning.sizes)

        def predict(x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
            x, way = x.to(system.dtype), system.progress(t[0].item())
            active = [control for control in controls if control.weight and control.start <= way <= control.end]
            total: list[Tensor] | None = None
            for control in active:
                embedded = hint(control, *x.shape[2:]).expand(len(x), -1, -1, -1)
                # An inpainting U-Net's further channels are a mask and a masked picture, unknown to the control.
                latents = x[:, : control.network.config.in_channels]
                kind = None if control.kind is None else KINDS.index(control.kind)
                answer = control.network(latents, t, conditioning.tokens, embedded, *extra, kind=kind)
                if control.network.control.pooled and conditioning.prompted is not None:
                    answer = [residual * conditioning.prompted.to(x)[:, None, None, None] for residual in answer]
                total = _sum(total, [control.weight * residual for residual in answer])
            return system.unet(x, t, conditioning.tokens, *extra, residuals=total, guidance=conditioning.guidance)

        return predict

    return bind


def _sum(total: list[Tensor] | None, added: list[Tensor]) -> list[Tensor]:
    return added if total is None else [a + b for a, b in zip(total, added, strict=True)]


def _check(system: StableDiffusion, control: Control) -> None:
    theirs, ours = control.network.config, system.unet.config
    if (theirs.cross_attention_dim, theirs.block_out_channels) != (ours.cross_attention_dim, ours.block_out_channels):
        raise ReverieError(
            f"this ControlNet is made for a U-Net with levels of {theirs.block_out_channels} channels and a context of "
            f"{theirs.cross_attention_dim}; the model has {ours.block_out_channels} and {ours.cross_attention_dim}: "
            "give one of the same family"
        )
