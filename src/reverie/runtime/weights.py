"""Layers whose weight has one form at a time.

A weight is as its file holds it, packed, or plain once it is asked for. That is the one rule by which LoRA, saving,
training and all else that reads or sets `weight` get along, without knowing of it. `layer.weight` gives back the plain
values, bit by bit, and lets go of the packed ones; the layer packs again when it next computes. Only `parameters()` of
a network leaves out what is not plain; `unpack` the network first. What a file holds in another dtype stays there,
mapped, until it is needed: so a model of 7 GB in half precision is never 14 GB of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import RLock
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from reverie.runtime import kernels
from reverie.runtime.kernels import unpack
from reverie.runtime.plans import end_plans

LOCK = RLock()
"""Held while a weight changes its form: two threads may draw with one model."""


class PackedStore:
    """Hold the packed weights of some layers, their rows one below the other, cut into parts of equal size.

    `parts` is the list that `cache.keep` gave, which comes to hold mapped ones.
    """

    def __init__(self, layers: Sequence[HeldLayer], parts: list[Any], shapes: Sequence[torch.Size]) -> None:
        self.layers, self.parts, self.shapes = tuple(layers), parts, tuple(shapes)

    def holds(self, layers: Sequence[HeldLayer]) -> bool:
        """Tell whether it holds exactly these layers, and none was given another weight since."""
        return self.layers == tuple(layers) and all(
            layer._parameters["weight"] is None and layer.store is self for layer in layers
        )

    def release(self) -> None:
        """Give every layer its plain weight back, but for those that were given another since."""
        end_plans()
        weight = torch.cat([unpack(part) for part in self.parts]) if len(self.parts) > 1 else unpack(self.parts[0])
        rows = [weight]
        if len(self.layers) > 1:  # each its own memory: files refuse tensors that share theirs
            rows = [own.clone() for own in weight.split([shape[0] for shape in self.shapes])]
        for layer, own, shape in zip(self.layers, rows, self.shapes, strict=True):
            if layer.store is self and layer._parameters["weight"] is None:
                layer._parameters["weight"] = nn.Parameter(
                    kernels.give_shape(own, shape), requires_grad=layer.trainable
                )
                layer.store = None


@dataclass(frozen=True, eq=False)
class Unread:
    """Hold a weight as its file does, and say in which dtype it is wanted."""

    weight: Tensor
    dtype: torch.dtype
    is_cpu = True

    def to_dense(self) -> Tensor:
        """Return the weight's values in the dtype that is wanted."""
        return self.weight.detach().to(self.dtype)


class FileStore(PackedStore):
    """Hold the weight of a layer in another dtype, as its file does, until the layer packs it or is asked for it."""

    def __init__(self, layer: HeldLayer, dtype: torch.dtype) -> None:
        weight = layer._parameters["weight"]
        assert weight is not None
        super().__init__([layer], [Unread(weight, dtype)], [weight.shape])
        layer.trainable, layer.store = weight.requires_grad, self
        layer._parameters["weight"] = None

    def holds(self, layers: Sequence[HeldLayer]) -> bool:
        """Tell that it is not packed."""
        return False


class HeldLayer(nn.Module):
    """Be a layer whose weight may have another form; comes before the plain class among a layer's bases.

    Nothing is set on the instance until then: a plain layer becomes such a one by its class alone.
    """

    store: PackedStore | None = None  # where the weight is while `_parameters["weight"]` is None
    trainable = True  # whether the plain weight asks for gradients

    def plain(self) -> Tensor | None:
        """Return the plain weight, which the layer then holds until it packs again."""
        with LOCK:
            if "weight" not in self._parameters:  # as while torch.nn.utils.parametrize lays its own in that place
                if "weight" in vars(self):
                    return vars(self)["weight"]
                raise AttributeError(f"'{type(self).__name__}' has no weight of its own")
            self.release()
            return self._parameters["weight"]

    def lay(self, weight: Tensor) -> None:
        """Take a weight that is no parameter, as torch.nn.utils.prune gives one anew before each call."""
        vars(self)["weight"] = weight

    def lift(self) -> None:
        """Forget that weight."""
        vars(self).pop("weight", None)

    weight: Any = property(plain, lay, lift)

    @property
    def dtype(self) -> torch.dtype:
        """Return what the layer computes in."""
        held, store = self._parameters.get("weight"), self.store
        return cast(torch.dtype, store.parts[0].dtype if held is None and store is not None else self.weight.dtype)

    def release(self) -> None:
        """Go back to the plain weight; the layers packed with this one do too."""
        with LOCK:
            if self.store is not None and self._parameters["weight"] is None:
                self.store.release()
            self.store = None

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> HeldLayer:
        self.release()  # moves and casts see the plain weight
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.release()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args: Any) -> None:
        self.release()
        super()._load_from_state_dict(*args)

    def __getstate__(self) -> dict[str, Any]:
        self.release()  # copies and pickles hold the plain weight
        return self.__dict__


def as_held(layer: nn.Module) -> Tensor:
    """Return a layer's weight as it is where it is not packed: as its file holds it, or plain."""
    with LOCK:
        held = layer._parameters.get("weight")
        if held is None and isinstance(layer, HeldLayer) and isinstance(layer.store, FileStore):
            return cast(Tensor, layer.store.parts[0].weight)
        return cast(Tensor, layer.weight)


def held_weights(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Give the names and values of what is not packed: parameters, and weights as their files hold them."""
    yield from network.named_parameters()
    yield from ((f"{name}.weight", as_held(layer)) for name, layer in _unread(network))


def _unread(network: nn.Module) -> Iterator[tuple[str, HeldLayer]]:
    """Give the layers, with their names, whose weights are in their files."""
    for name, module in network.named_modules():
        if isinstance(module, HeldLayer) and isinstance(module.store, FileStore):
            yield name, module


def bytes_of(network: nn.Module) -> int:
    """Return how many bytes the weights take that `held_weights` gives, once they are plain."""
    plain = sum(weight.nbytes for weight in network.parameters())
    return plain + sum(as_held(layer).numel() * layer.dtype.itemsize for _, layer in _unread(network))


class HeldLinear(HeldLayer, nn.Linear):
    """Multiply by a weight that may stay in its file."""

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b out"]:
        return F.linear(x, as_held(self).to(self.dtype), self.bias)


class HeldConv2d(HeldLayer, nn.Conv2d):
    """Convolve with a weight that may stay in its file."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out h2 w2"]:
        return self._conv_forward(x, as_held(self).to(self.dtype), self.bias)


class HeldEmbedding(HeldLayer, nn.Embedding):
    """Look up rows of a table that may stay in its file."""

    def forward(self, ids: Int64[Tensor, "*b"]) -> Float[Tensor, "*b d"]:
        return F.embedding(ids, as_held(self)).to(self.dtype)


HELD: dict[type[nn.Module], type[HeldLayer]] = {
    nn.Linear: HeldLinear,
    nn.Conv2d: HeldConv2d,
    nn.Embedding: HeldEmbedding,
}
"""By the plain class: the one whose weight may stay in its file."""


def cast_to(network: nn.Module, dtype: torch.dtype) -> None:
    """Bring a network to a dtype, in place; what is in another stays in its file where a layer can hold it so."""
    for module in network.modules():
        for name, held in [*module._parameters.items(), *module._buffers.items()]:
            if held is None or not held.is_floating_point() or held.dtype == dtype:
                continue
            if name == "weight" and type(module) in HELD:
                module.__class__ = HELD[type(module)]
                FileStore(cast(HeldLayer, module), dtype)
            elif name in module._parameters:
                module._parameters[name] = nn.Parameter(held.detach().to(dtype), requires_grad=held.requires_grad)
            else:
                module._buffers[name] = held.to(dtype)
