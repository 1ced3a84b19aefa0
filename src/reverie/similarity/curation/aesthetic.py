"""LAION's aesthetic predictor: a linear head on CLIP's embedding."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from reverie.checkpoints.weights import open_source
from reverie.errors import ReverieError


@dataclass(frozen=True, eq=False)
class AestheticHead:
    """Score normalised embeddings: about 1 to 10, where LAION-Aesthetics keeps those over 5."""

    weight: Float[Tensor, "1 d"] = field(repr=False)
    bias: Float[Tensor, " 1"]

    def __call__(self, embeddings: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return a score each."""
        return (embeddings @ self.weight.T + self.bias)[:, 0]

    @property
    def identity(self) -> str:
        """Return a key of its weights."""
        content = torch.cat([self.weight[0], self.bias]).contiguous().numpy().tobytes()
        return hashlib.sha256(content).hexdigest()[:16]


def load_aesthetic(path: str | Path, width: int) -> AestheticHead:
    """Load a head for embeddings of `width` numbers from .pth or .safetensors, which is read as data.

    LAION's first is one linear layer (sa_0_4_vit_l_14_linear.pth). Its second (sac+logos+ava1-l14-linearMSE.pth) has
    five in a row with nothing between them but drop-out, so it is one as well: their product. Raises ReverieError where
    the file holds no such layers or is made for another CLIP.
    """
    source = open_source(Path(path))
    names = [name.removesuffix("weight") for name in source.names() if name.rpartition(".")[2] == "weight"]
    try:
        layers = sorted(names, key=lambda name: [int(part) for part in name.split(".") if part.isdigit()])
        weight, bias = torch.eye(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
        for name in layers:
            step = source.tensor(f"{name}weight").double()
            if step.ndim != 2 or step.shape[1] != weight.shape[0]:
                raise ReverieError(
                    f"'{path}' scores embeddings of {step.shape[-1]} numbers; this CLIP makes {width}. LAION's heads "
                    "are for ViT-L/14 (768)"
                )
            weight, bias = step @ weight, step @ bias + source.tensor(f"{name}bias").double()
    except KeyError as error:
        raise ReverieError(f"'{path}' is no aesthetic head: it has no {error}") from error
    if not layers or len(weight) != 1:
        raise ReverieError(f"'{path}' is no aesthetic head; it should hold linear layers that end in one number")
    return AestheticHead(weight.float(), bias.float())
