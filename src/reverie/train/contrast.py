"""Contrastive losses over a batch that no memory and no process holds: gathered features, gradient caching.

Each process gets the loss of its own pairs among all: the mean over the processes is that of the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from reverie.models.clip import CLIP, contrastive_loss
from reverie.train.parallel import gather, ranks


class Softmax(nn.Module):
    """Find each picture's caption among all, and each caption's picture (CLIP, figure 3)."""

    start = math.log(1 / 0.07)  # of the logit scale

    def forward(
        self, images: Float[Tensor, "b d"], texts: Float[Tensor, "b d"], logit_scale: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """Return the loss of this process's pairs; the features need not be normalised."""
        if (here := ranks()).size == 1:
            return contrastive_loss(images, texts, logit_scale)
        images, texts = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
        all_images, all_texts = gather(torch.cat((images, texts), 1)).chunk(2, 1)  # at once: one collective each way
        own = torch.arange(len(images), device=images.device) + here.index * len(images)
        scale = logit_scale.exp()
        losses = F.cross_entropy(scale * images @ all_texts.T, own) + F.cross_entropy(scale * texts @ all_images.T, own)
        return losses / 2

    def settle(self, clip: CLIP) -> None:
        """Keep the temperature in its range, after a step."""
        clip.clamp_logit_scale_()


class Sigmoid(nn.Module):
    """Tell of every pair alone whether it belongs together (SigLIP: Zhai et al. 2023, arXiv 2303.15343, algorithm 1).

    Its learned bias starts where hardly any pair does, as is true of all but one in a row.
    """

    start = math.log(10)  # of the logit scale

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(-10.0))

    def forward(
        self, images: Float[Tensor, "b d"], texts: Float[Tensor, "b d"], logit_scale: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """Return the loss of this process's pictures: a sum over pairs divided by their number."""
        here = ranks()
        texts = gather(F.normalize(texts, dim=-1))
        logits = logit_scale.exp() * F.normalize(images, dim=-1) @ texts.T + self.bias
        signs = torch.full_like(logits, -1.0)
        signs.diagonal(here.index * len(images)).fill_(1.0)
        return -F.logsigmoid(signs * logits).sum() / len(images)

    def settle(self, clip: CLIP) -> None:
        """Leave the temperature free, as the paper does."""


CONTRASTS: dict[str, Callable[[], Softmax | Sigmoid]] = {"softmax": Softmax, "sigmoid": Sigmoid}


def in_chunks(encode: Callable[[Tensor], Float[Tensor, "c d"]], x: Tensor, chunk: int) -> Float[Tensor, "b d"]:
    """Encode a batch `chunk` items at a time, keeping nothing but the features (gradient caching).

    Going back, each chunk is encoded again and handed the gradient of its features, which the loss of the whole batch
    has given: the memory of one chunk, half as much computation again, the same gradients. The encoder must compute
    the same thing twice: no dropout, no batch statistics. Source: Gao et al. 2021, arXiv 2101.06983. `chunk` 0 encodes
    the batch at once.
    """
    if not chunk or chunk >= len(x):
        return encode(x)
    parts = [checkpoint(encode, part, use_reentrant=False, preserve_rng_state=False) for part in x.split(chunk)]
    return torch.cat(parts)
