"""What a request changes in a model's networks while it is drawn, and how drawings of one model take turns.

LoRAs, DeepCache, token merging, FreeU and seamless edges change networks in place. A `Modification` holds the changes
of one drawing: they are in the networks while it computes, whatever thread that is in, and are taken out before another
drawing of the same model computes. Between two events a generator holds nothing: suspended drawings may be interleaved
in one thread, closed in any order, or go on in several threads, and each gives what it gives alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from threading import Lock, RLock
from typing import TypeVar
from weakref import WeakKeyDictionary

from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from reverie.generate.conditioning import apply_adapters
from reverie.requests.pictures import TextToImage
from reverie.runtime.changes import freeing, merging, reusing, seamless
from reverie.system import StableDiffusion

Event = TypeVar("Event")
Change = Callable[[], AbstractContextManager[object]]
"""Make a context within which networks are changed; it is entered anew whenever its drawing goes on after another."""


class _Turns:
    """Say whose changes are in a model: `present`, which computes now if it is `computing`."""

    def __init__(self) -> None:
        self.lock = RLock()
        self.present: Modification | None = None
        self.computing: Modification | None = None

    def give(self, modification: Modification | None) -> None:
        """Take out the present changes and put in those of another drawing, or none."""
        if self.present is modification:
            return
        before, self.present = self.present, None
        if before is not None:
            before.contexts.close()
        if modification is not None:
            with ExitStack() as stack:
                for change in modification.changes:
                    stack.enter_context(change())
                modification.contexts = stack.pop_all()
            self.present = modification


_TURNS: WeakKeyDictionary[nn.Module, _Turns] = WeakKeyDictionary()  # by U-Net, which copies of a pipeline share
_ADDING = Lock()


class Modification:
    """Hold the changes that one drawing makes to a model."""

    def __init__(self, system: StableDiffusion, changes: Sequence[Change] = ()) -> None:
        with _ADDING:
            self._turns = _TURNS.setdefault(system.unet, _Turns())
        self.changes = tuple(changes)
        self.contexts = ExitStack()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Hold the model, with these changes alone, for the block; other threads that want it wait."""
        turns = self._turns
        with turns.lock:
            outer = turns.computing  # of this thread, where one drawing is made within another
            turns.give(self)
            turns.computing = self
            try:
                yield
            finally:
                turns.computing = outer
                if outer is not None:
                    turns.give(outer)

    def close(self) -> None:
        """Take the changes out for good."""
        with self._turns.lock:
            if self._turns.present is self:
                self._turns.give(None)
            self.changes = ()


@contextmanager
def modify(
    system: StableDiffusion,
    request: TextToImage,
    *,
    edges: tuple[Sequence[nn.Module], str] | None = None,
    refiner: StableDiffusion | None = None,
) -> Iterator[Modification]:
    """Yield the changes that a request asks for; nothing is changed before they are `active`, nor after the block.

    `edges` are the networks whose opposite edges meet, and along which axes ("", "x", "y" or "xy"); where None those of
    the request's `tile`, in the U-Nets and the decoder. Files that are missing or do not fit raise ReverieError as the
    changes first become active, before anything is changed.
    """
    if edges is None:
        unets = [system.unet] + ([refiner.unet] if refiner is not None else [])
        edges = [*unets, system.autoencoder.decoder], request.tile.replace("none", "")
    inner = WeakTensorKeyDictionary()  # what DeepCache has computed for this drawing
    modification = Modification(
        system,
        [
            partial(apply_adapters, system, request),
            partial(seamless, *edges),
            partial(reusing, system.unet, request.cache_steps, inner),
            partial(merging, system.unet, request.merge_tokens),
            partial(freeing, system.unet, request.freeu),
        ],
    )
    try:
        yield modification
    finally:
        modification.close()


def in_turn(
    changes: AbstractContextManager[Modification], draw: Callable[[Modification], Iterator[Event]]
) -> Iterator[Event]:
    """Yield the events of a drawing, which holds the model while it works towards the next and not in between."""
    with changes as modification, ExitStack() as stack:
        events = draw(modification)
        stack.callback(getattr(events, "close", lambda: None))
        while True:
            with modification.active():
                try:
                    event = next(events)
                except StopIteration:
                    return
            yield event
