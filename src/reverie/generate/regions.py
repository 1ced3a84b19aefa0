"""Regional prompts by attention couple: in each part of a picture cross-attention gathers from that part's prompt.

At every cross-attention a place gathers from each prompt, and what it gathers is blended by how far the prompts'
regions cover the place in the image there. So a step costs one pass of the U-Net whatever the regions, and
self-attention sees the whole, which stays one scene; to blend predictions by masks (latent couple, MultiDiffusion)
costs a pass for each region, and draws each as a picture of its own. Sources: A1111's extension Regional Prompter
(hako-mikan), whose mode "Attention" this is, and ComfyUI's attention couple (laksjdjf, cgem156-ComfyUI).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from reverie.adapters.ip_adapter import Bind, level_size, mask_tensor
from reverie.diffusion.denoiser import Network
from reverie.diffusion.windows import Place
from reverie.models.layers import Attention, TransformerBlock, attend
from reverie.requests.parts import Region
from reverie.runtime.changes import attending
from reverie.system import Conditioning, RegionPrompt

if TYPE_CHECKING:
    from reverie.generate.conditioning import Guide

ROUNDING = 1e-6  # what is left to a request's prompt by less than this is left by rounding alone
MEASURED_AT = 64  # height and width at which the share of a prompt in the whole is measured


def coverage(region: Region) -> Callable[[int, int], Float[Tensor, "h w"]]:
    """Return how far a region covers each place of an image, 0 to 1, by the image's height and width."""
    if region.mask is not None:
        mask = mask_tensor(region.mask.image())
        return lambda height, width: F.interpolate(mask, (height, width), mode="area")[0, 0]
    left, top, right, bottom = region.box or (0.0, 0.0, 1.0, 1.0)
    return lambda height, width: torch.outer(_span(top, bottom, height), _span(left, right, width)).float()


def _span(start: float, end: float, count: int) -> Float[Tensor, " n"]:
    """Return how much of each of `count` cells in a row lies between two fractions of it."""
    cells = torch.arange(count, dtype=torch.float64)
    return ((cells + 1).clamp(max=end * count) - cells.clamp(min=start * count)).clamp(min=0)


def shares(regions: Sequence[RegionPrompt], height: int, width: int) -> Float[Tensor, "n h w"]:
    """Return how much each place of an image gathers from the request's prompt, row 0, and from those of regions.

    A region takes its weight times its coverage; what is left to 1 is the request's. Where more than 1 is taken, all is
    divided by it.
    """
    taken = torch.stack([region.weight * region.coverage(height, width) for region in regions])
    total = taken.sum(0, keepdim=True)
    left = (1 - total).clamp(min=0)
    return torch.cat([left.where(left > ROUNDING, 0), taken / total.clamp(min=1)])


def with_regions(base: Guide, asked: Sequence[Region], guides: Sequence[Guide], prompted: float = 1.0) -> Guide:
    """Join a request's prompt and those of its regions, or its negative prompts (`prompted` 0), stage by stage.

    The pooled prompt, which SDXL alone takes and which has no places, is their mean by their shares in the whole.
    """
    covers = [coverage(region) for region in asked]

    def join(step: int) -> Conditioning:
        whole, parts = base.at(step), [guide.at(step) for guide in guides]
        regions = tuple(
            RegionPrompt(part.tokens, cover, region.weight, prompted)
            for part, cover, region in zip(parts, covers, asked, strict=True)
        )
        return replace(whole, pooled=_pool([whole, *parts], regions), regions=regions)

    ends = sorted({until for guide in (base, *guides) for until, _ in guide.stages})
    return replace(base, stages=tuple((until, join(until)) for until in ends))


def _pool(prompts: Sequence[Conditioning], regions: Sequence[RegionPrompt]) -> Float[Tensor, "1 p"] | None:
    pooled = [prompt.pooled for prompt in prompts if prompt.pooled is not None]
    if not pooled:
        return None
    parts = shares(regions, MEASURED_AT, MEASURED_AT).mean((1, 2)).to(pooled[0])
    return (parts[:, None] * torch.cat(pooled)).sum(0, keepdim=True)


@dataclass(frozen=True, eq=False)
class _Couple:
    """Gather from the prompts of regions in those `rows` of a batch that they are for."""

    regions: Sequence[RegionPrompt]
    rows: Int64[Tensor, " n"]
    known: dict[object, list[Tensor]]

    def gather(
        self,
        attention: Attention,
        size: tuple[int, int],
        q: Float[Tensor, "b l d"],
        gathered: Float[Tensor, "b l d"],
        heads: int,
    ) -> Float[Tensor, "b l d"]:
        """Return what the queries of an image gather, in a U-Net whose latents have a size.

        `gathered` is what they do of the whole picture's prompts.
        """
        asking = q[self.rows]
        left, *others = self._shares(size, q)
        mixed = left * gathered[self.rows]
        pairs = zip(others, self._of(attention, attention.to_k), self._of(attention, attention.to_v), strict=True)
        for share, *pair in pairs:
            keys, values = (one.expand(len(asking), -1, -1) for one in pair)
            mixed = mixed + share * attend(asking, keys, values, heads)
        return gathered.index_copy(0, self.rows, mixed)

    def _of(self, attention: Attention, project: nn.Module) -> list[Tensor]:
        """Return the keys or the values of each region's prompt, computed once."""
        if project not in self.known:
            self.known[project] = [project(region.tokens) for region in self.regions]
        return self.known[project]

    def _shares(self, size: tuple[int, int], q: Tensor) -> list[Float[Tensor, "1 l 1"]]:
        height, width = level_size(size, q.shape[1])
        if (height, width) not in self.known:
            parts = shares(self.regions, height, width).to(q)
            self.known[height, width] = [part.flatten()[None, :, None] for part in parts]
        return self.known[height, width]


def cut_regions(bind: Bind, size: tuple[int, int], place: Place) -> Bind:
    """Bind at a tile's place in an image of a size, in latents, what regions cover there of the whole."""

    def cut(region: RegionPrompt) -> RegionPrompt:
        whole = region.coverage(*size)[place][None, None]
        return region._replace(coverage=lambda height, width: F.interpolate(whole, (height, width), mode="area")[0, 0])

    return lambda conditioning: bind(replace(conditioning, regions=tuple(map(cut, conditioning.regions))))


def bind_regions(networks: Iterable[nn.Module], bind: Bind) -> Bind:
    """Return what binds a conditioning as `bind` does, with the cross-attentions of `networks` coupled to its regions.

    Those are the U-Net's and its ControlNets'.
    """

    @cache
    def attentions() -> list[Attention]:
        blocks = [part for network in networks for part in network.modules() if isinstance(part, TransformerBlock)]
        return [block.attn2 for block in blocks] + [block.attn1 for block in blocks if block.only_cross]

    def bind_coupled(conditioning: Conditioning) -> Network:
        network, prompted = bind(conditioning), conditioning.prompted
        if not conditioning.regions:
            return network
        rows, couples = torch.ones(len(conditioning.tokens)) if prompted is None else prompted, list[_Couple]()
        for side in (0.0, 1.0):
            regions = [region for region in conditioning.regions if region.prompted == side]
            own = (rows == side).nonzero()[:, 0].to(conditioning.tokens.device)
            couples += [_Couple(regions, own, {})] if regions and len(own) else []

        def gather(
            attention: Attention, size: tuple[int, int], q: Tensor, k: Tensor, v: Tensor, heads: int
        ) -> Float[Tensor, "b l d"]:
            gathered = attend(q, k, v, heads)
            for couple in couples:
                gathered = couple.gather(attention, size, q, gathered, heads)
            return gathered

        def predict(x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
            size = (x.shape[2], x.shape[3])
            with attending({attention: partial(gather, attention, size) for attention in attentions()}):
                return network(x, t)

        return predict

    return bind_coupled
