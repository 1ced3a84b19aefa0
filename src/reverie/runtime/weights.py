"""Packed weights of layers: one form at a time, packed once a layer computes, plain once its weight is asked for.

That is the one rule by which LoRA, saving, training and all else that reads or sets `weight` get along, without knowing
of it. `layer.weight` gives back the plain values, bit by bit, and lets go of the packed ones; the layer packs again
when it next computes. Layers that are always multiplied together, such as query, key and value, are packed as one.
Only `parameters()` of a network leaves out what is packed; `unpack` the network first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn

from reverie.runtime.kernels import let_go, native, unpack

Pack = Callable[[Tensor], Any]
"""Give a weight another form, whose `to_dense` gives the plain one."""

_LOCK = RLock()  # two threads may draw with one model


class PackedStore:
    """Hold the packed weights of some layers, their rows one below the other, cut into parts of equal size."""

    def __init__(self, layers: Sequence[PackedLayer], parts: Sequence[Any], shapes: Sequence[torch.Size]) -> None:
        self.layers, self.parts, self.shapes = tuple(layers), tuple(parts), tuple(shapes)

    def holds(self, layers: Sequence[PackedLayer]) -> bool:
        """Tell whether it holds exactly these layers, and none was given another weight since."""
        return self.layers == tuple(layers) and all(
            layer._parameters["weight"] is None and layer.store is self for layer in layers
        )

    def release(self) -> None:
        """Give every layer its plain weight back, but for those that were given another since."""
        weight = torch.cat([unpack(part) for part in self.parts]) if len(self.parts) > 1 else unpack(self.parts[0])
        rows = [weight]
        if len(self.layers) > 1:  # each its own memory: files refuse tensors that share theirs
            rows = [own.clone() for own in weight.split([layer.rows for layer in self.layers])]
        for layer, own, shape in zip(self.layers, rows, self.shapes, strict=True):
            if layer.store is self and layer._parameters["weight"] is None:
                layer._parameters["weight"] = nn.Parameter(own.view(shape), requires_grad=layer.trainable)
                layer.store = None


class PackedLayer(nn.Module):
    """Be a layer whose weight may be packed; comes before the plain class among a layer's bases.

    Nothing is set on the instance until it packs: a plain layer becomes a packed one by its class alone.
    """

    store: PackedStore | None = None  # where the weight is while `_parameters["weight"]` is None
    trainable = True  # whether the plain weight asks for gradients
    pack: Pack

    @property
    def rows(self) -> int:
        """Return how many outputs the layer has."""
        raise NotImplementedError

    def plain(self) -> nn.Parameter | None:
        """Return the plain weight, which the layer then holds until it packs again."""
        with _LOCK:
            self.release()
            return self._parameters["weight"]

    weight: Any = property(plain)

    def release(self) -> None:
        """Go back to the plain weight; the layers packed with this one do too."""
        with _LOCK:
            if self.store is not None and self._parameters["weight"] is None:
                self.store.release()
            self.store = None

    def shared_store(self) -> PackedStore | None:
        """Return the store, where it holds this layer together with others."""
        store = self.store
        return store if store is not None and len(store.layers) > 1 and store.holds(store.layers) else None

    def computes(self, *inputs: Tensor) -> bool:
        """Tell whether the packed kernels may take these inputs: on the CPU, of the weight's dtype, no gradients."""
        weight, store = self._parameters["weight"], self.store
        held = weight if weight is not None or store is None else store.parts[0]
        assert held is not None
        return (
            not torch.is_grad_enabled()
            and native(held.dtype)
            and all(tensor.dtype == held.dtype and tensor.device.type == "cpu" for tensor in (*inputs, held))
        )

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> PackedLayer:
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


def version(weight: Tensor) -> int:
    """Count how often a weight was written to; -1 for one of inference mode, which does not count."""
    return -1 if weight.is_inference() else weight._version


def pack_together(layers: Sequence[PackedLayer], parts: int = 1) -> PackedStore:
    """Return the store that holds exactly these layers in so many parts, packing them where they are not."""
    store = layers[0].store
    if store is not None and len(store.parts) == parts and store.holds(layers):
        return store
    with _LOCK:
        for layer in layers:
            layer.release()
        weights = [layer.weight for layer in layers]
        weight = torch.cat([own.detach() for own in weights]) if len(weights) > 1 else weights[0].detach()
        pack = layers[0].pack
        store = PackedStore(layers, [pack(part) for part in weight.chunk(parts)], [own.shape for own in weights])
        for layer, own in zip(layers, weights, strict=True):
            layer.trainable, layer.store = own.requires_grad, store
            layer._parameters["weight"] = None
            let_go(own)
    return store
