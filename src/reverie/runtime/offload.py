"""CPU offloading: weights wait in host memory and come to the device when their block is called.

An `Offloader` copies the blocks of networks to a device when they are called, by hooks, and lets go of them when
something else is. All blocks of a network are there together, which then computes at full speed while the other
networks are away, or each block by itself, while the one that followed it the last time is prefetched. Modules, names
and parameters stay, and so do the results, bit by bit. What is no block is small, and stays on the device.

The same is known as diffusers' `enable_model_cpu_offload` and `enable_sequential_cpu_offload`, and as A1111's
--medvram and --lowvram.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from reverie.errors import ReverieError, choose
from reverie.models.autoencoder import ImageAutoencoder
from reverie.models.clip import Layer, TextEmbeddings
from reverie.models.k_unet import KResidualBlock, KTransformer
from reverie.models.layers import Downsample, ResidualBlock, TransformerBlock, Upsample

BLOCKS = (TextEmbeddings, Layer, ResidualBlock, TransformerBlock, Downsample, Upsample, KResidualBlock, KTransformer)
HOST = torch.device("cpu")

Split = Callable[[Sequence[nn.Module]], list[Sequence[nn.Module]]]
"""Say which blocks of a network are on the device together."""


def by_network(blocks: Sequence[nn.Module]) -> list[Sequence[nn.Module]]:
    """Let all blocks of a network be there at once."""
    return [blocks]


def by_block(blocks: Sequence[nn.Module]) -> list[Sequence[nn.Module]]:
    """Let each block be there by itself."""
    return [[block] for block in blocks]


OFFLOADS: dict[str, Split] = {"networks": by_network, "blocks": by_block}
_OFFLOADERS: WeakKeyDictionary[nn.Module, ReferenceType[Offloader]] = WeakKeyDictionary()


class OffloadGroup:
    """Hold blocks that are on the device together; `network` is what they belong to, `then` what came after them."""

    def __init__(self, network: nn.Module, blocks: Sequence[nn.Module]) -> None:
        self.network, self.blocks = network, blocks
        self.then: OffloadGroup | None = None
        self._home: dict[nn.Parameter, Tensor] = {}  # what is on the device, with its values in host memory

    def enter(self, block: nn.Module, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        """Make room on the device for what of a block is not there; return the pairs (there, here) to copy.

        A LoRA may have put other parameters into the block since it was last called: what counts is what it has now.
        """
        pairs = []
        for parameter in block.parameters():
            if parameter not in self._home:
                here = self._home[parameter] = parameter.data.to(HOST)
                parameter.data = torch.empty_like(here, device=device)
                pairs.append((parameter.data, here))
        return pairs

    def leave(self) -> None:
        """Let go of everything on the device."""
        for parameter, here in self._home.items():
            parameter.data = here
        self._home.clear()


class Offloader:
    """Carry the networks it was given to a device, one part at a time, and at most one ahead.

    All memory is of the stream that computes. What is fetched ahead is copied on another stream, which first waits for
    all that the one that computes was told before; so memory is never used twice at once, and no more than two parts
    are there, however far the host runs ahead of the device. Draw one request at a time.
    """

    def __init__(self, device: torch.device, split: Split) -> None:
        self.device, self.split = device, split
        self._cuda = device.type == "cuda" and torch.cuda.is_available()
        self._side = torch.cuda.Stream(device) if self._cuda else None
        self._present: OffloadGroup | None = None
        self._coming: OffloadGroup | None = None

    def take(self, *networks: nn.Module) -> None:
        """Keep the blocks of networks in host memory from now on, and put what else they have on the device."""
        for network in networks:
            self._take(network)

    def _take(self, network: nn.Module) -> None:
        whole = isinstance(
            network, ImageAutoencoder
        )  # its slices compute with the weights of layers that are not called
        blocks = [network] if whole else [module for module in network.modules() if isinstance(module, BLOCKS)]
        waiting = {parameter for block in blocks for parameter in block.parameters()}
        for parameter in network.parameters():
            if parameter not in waiting:
                parameter.data = parameter.data.to(self.device)
            elif self._cuda:
                parameter.data = parameter.data.pin_memory()
        for group in self.split(blocks):
            part = OffloadGroup(network, group)
            for block in group:
                block.register_forward_pre_hook(self._fetching(part))
        _OFFLOADERS[network] = ref(self)

    def _fetching(self, part: OffloadGroup) -> Callable[[nn.Module, object], None]:
        return lambda block, _: self._fetch(part, block)  # a function: copies of a network share it

    def _fetch(self, part: OffloadGroup, block: nn.Module) -> None:
        """Have a block on the device, alone with those of its part; then fetch ahead what came next the last time."""
        if self._side is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._side)
        before = self._present
        if before is not part:
            for other in (before, self._coming):
                if other is not None and other is not part:
                    other.leave()
            if before is not None and before.network is part.network:
                before.then = part
            self._present, self._coming = part, None
        _copy(part.enter(block, self.device))
        if self._coming is None and part.then is not None:
            self._coming = part.then
            pairs = [pair for ahead in part.then.blocks for pair in part.then.enter(ahead, self.device)]
            with self._beside():
                _copy(pairs)

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """Copy while the device computes, once it has done what it was told before; where it is no CUDA, at once."""
        if self._side is None:
            yield
            return
        self._side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._side):
            yield


def _copy(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    for there, here in pairs:
        there.copy_(here, non_blocking=True)


def offloader_of(network: nn.Module) -> Offloader | None:
    """Return the offloader that a network was given to; None for one that stays where it is."""
    found = _OFFLOADERS.get(network)
    return None if found is None else found()


def pick_offloader(name: str | None, device: torch.device) -> Offloader | None:
    """Make what offloads as a name says. Raises ReverieError for unknown names, and where memory is the host's."""
    if name is None:
        return None
    split = choose("offload", name, OFFLOADS)
    if device.type != "cuda":
        raise ReverieError(f"offload is for GPUs with memory of their own, and this is {device}; leave it out")
    return Offloader(device, split)
