"""The layers of networks, which may be computed twice to spare memory, or held in parts by several processes."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from reverie.models.clip import Layer
from reverie.models.controlnet import HintEmbedding
from reverie.models.layers import ResidualBlock, SpatialTransformer

LAYERS = (ResidualBlock, SpatialTransformer, HintEmbedding, Layer)


def recompute_layers_(networks: Iterable[nn.Module]) -> None:
    """Let every layer forget what it computed inside, and compute it again going back (gradient checkpointing).

    These are residual blocks, spatial transformers, hints' embeddings and CLIP's layers (Chen et al. 1604.06174).
    """
    for module in {module for network in networks for module in network.modules()}:
        for name in ("forward", "first") if isinstance(module, LAYERS) else ():
            if (method := getattr(module, name, None)) is not None:  # of this instance alone; names of parameters stay
                module.__dict__[name] = partial(checkpoint, method, use_reentrant=False, preserve_rng_state=False)
