"""Compilation by torch.compile: kernels made for the U-Net and the decoder, for each size.

U-Net and decoder change their class, as packed networks do, and nothing else: modules, names, parameters and hooks
stay. Weights are inputs of what is compiled, so a LoRA may come and go. Each size (and batch) is compiled by itself:
kernels are chosen for it, and CUDA graphs, which on CUDA repeat the whole call, hold one size anyhow. The plain class
computes with gradients, where someone looks into the network with hooks (seamless edges, merged tokens, the maps
of words), and where attentions gather otherwise (IP-Adapters): what is compiled would not see it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reverie.errors import ReverieError
from reverie.files import reason_of
from reverie.models.autoencoder import Decoder, TinyDecoder
from reverie.models.k_unet import KUNet
from reverie.models.unet import UNet
from reverie.runtime.changes import gathers_otherwise, is_hooked

MODES = {"cuda": "max-autotune"}  # by the type of device: kernels are tried out, and a call is one CUDA graph
FOLDER = "TORCHINDUCTOR_CACHE_DIR"  # the environment variable by which torch knows where it keeps what it compiled


class Compiled(nn.Module):
    """Compute by compiled kernels where there are some and nobody looks in; else as the plain class does."""

    kernels: Callable[..., Tensor] | None = None
    inner: tuple[nn.Module, ...] = ()  # all modules inside, of which a hook may watch any

    def forward(self, *given: Any, **named: Any) -> Tensor:
        changed = is_hooked(*self.inner) or gathers_otherwise(*self.inner)
        if self.kernels is None or torch.is_grad_enabled() or changed:
            return super().forward(*given, **named)
        try:
            made = self.kernels(self, *given, **named)
        except RuntimeError as error:
            if not _is_compilers(error):
                raise
            reason = " ".join(str(error).strip().split("\n\n")[0].split())
            raise ReverieError(f"torch cannot compile this model here: {reason}; leave out compile") from error
        return made.clone()  # the next replay of a CUDA graph writes over its output

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("kernels", "inner")}


class CompiledUNet(Compiled, UNet):
    """Predict by compiled kernels."""


class CompiledDecoder(Compiled, Decoder):
    """Decode by compiled kernels."""


class CompiledKUNet(Compiled, KUNet):
    """Double latents by compiled kernels."""


class CompiledTinyDecoder(Compiled, TinyDecoder):
    """Decode by compiled kernels."""


CLASSES: dict[type[nn.Module], type[Compiled]] = {
    UNet: CompiledUNet,
    KUNet: CompiledKUNet,
    Decoder: CompiledDecoder,
    TinyDecoder: CompiledTinyDecoder,
}


def compile_network(network: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
    """Let a plain U-Net or decoder be compiled, in place, when it is first called at a size; copies of it are plain."""
    plain, mode = type(network), MODES.get(next(network.parameters()).device.type)
    network.__class__ = CLASSES[plain]
    assert isinstance(network, Compiled)
    network.inner = tuple(network.modules())[1:]
    network.kernels = torch.compile(plain.forward, dynamic=False, backend=backend, mode=mode)


def is_compiled(network: nn.Module) -> bool:
    """Tell whether a network is to be compiled."""
    return isinstance(network, Compiled)


def keep_in(folder: Path) -> None:
    """Let this process keep what it compiles in a folder and find it there, unless torch was told of another one.

    Raises ReverieError where the folder cannot be made.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    if os.environ.get(FOLDER) not in (None, default_cache_dir()):  # torch sets its default there, a temporary folder
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReverieError(
            f"cannot keep what is compiled in '{folder}': {reason_of(error)}; name another folder by REVERIE_CACHE"
        ) from error
    os.environ[FOLDER] = str(folder)


def _is_compilers(error: RuntimeError) -> bool:
    """Tell whether an error is about compiling, and not about what was computed."""
    from torch._dynamo.exc import TorchDynamoException  # takes a second, and is there by now

    return isinstance(error, TorchDynamoException)
