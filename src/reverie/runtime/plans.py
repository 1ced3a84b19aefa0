"""Plans of a U-Net's calls, written down once and repeated over the same memory.

Between the kernels of a U-Net Python and torch take a tenth of a step, and more than the kernels of a small one. So
what its levels call, of the extension and of torch, becomes a `CallPlan`.
"""

from __future__ import annotations

import math
from bisect import bisect, insort
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from operator import attrgetter
from threading import RLock
from typing import Any
from weakref import WeakSet, ref

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import TorchDispatchMode

from reverie.models.layers import Attention, SpatialTransformer, TransformerBlock
from reverie.models.unet import UNet
from reverie.runtime import kernels
from reverie.runtime.changes import gathers_otherwise, is_hooked
from reverie.runtime.extension import RECORDING, Operand, check_memory, stamp, takes, version


@dataclass(eq=False)
class Slot:
    """Be memory that the calls of a plan make: `size` bytes of its arena, or, with a `number`, a tensor of torch's."""

    lasting: bool  # made apart
    size: int = 0  # in bytes, whole lines of the cache
    start: int = 0  # in the arena
    number: int | None = None  # among the tensors that are there while the plan is repeated


@dataclass(frozen=True, eq=False)
class SlotView:
    """Say how a tensor lies in a slot, `start` bytes from where the slot's own begins."""

    slot: Slot
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def over(self, own: Tensor) -> Tensor:
        """Return the tensor, in the slot's own."""
        if self.start == 0 and own.shape == self.shape and own.stride() == self.strides:
            return own
        return own.as_strided(self.shape, self.strides, own.storage_offset() + self.start // own.itemsize)

    def within(self, arena: Tensor) -> Tensor:
        """Return the tensor, in the arena."""
        start = (self.slot.start + self.start) // self.dtype.itemsize
        return arena.view(self.dtype).as_strided(self.shape, self.strides, start)


Tensors = list[Any]
"""What is there at each number while a plan is repeated: a tensor or None."""
Repeat = Callable[[Tensors], None]


@dataclass(frozen=True)
class PlannedCall:
    """Hold a call of a kernel, or of an operator of torch's, which `makes` tensors; places stand for operands."""

    function: Callable[..., Any]
    operands: list[Any]  # and lists of them
    slots: Sequence[Slot]  # with which it computes, and which it makes
    named: dict[str, Any] | None = None  # None: of a kernel
    makes: Sequence[Slot | None] = ()

    def over(self, arena: Tensor) -> Repeat:
        """Return the call over an arena."""
        return self._of_kernel(arena.data_ptr()) if self.named is None else self._of_operator(arena)

    def _of_kernel(self, arena: int) -> Repeat:
        kernel, given, moving = self.function, list(self.operands), list[tuple[int, int, int]]()
        for position, place in enumerate(self.operands):
            if isinstance(place, SlotView) and (number := place.slot.number) is not None:
                moving.append((position, number, place.start))
            elif isinstance(place, SlotView):
                given[position] = arena + place.slot.start + place.start

        def repeat(tensors: Tensors) -> None:
            for position, number, start in moving:
                given[position] = tensors[number].data_ptr() + start
            check_memory(kernel(*given))

        return repeat

    def _of_operator(self, arena: Tensor) -> Repeat:
        operands = [list(value) if isinstance(value, list) else value for value in self.operands]
        named, operator, moving = dict(self.named or {}), self.function, list[tuple[Any, Any, int, SlotView]]()
        keys: list[tuple[Any, Any]] = [(operands, position) for position in range(len(operands))]
        keys += [(named, name) for name in named]
        keys += [(value, position) for value in operands if isinstance(value, list) for position in range(len(value))]
        for holder, key in keys:
            place = holder[key]
            if isinstance(place, SlotView) and (number := place.slot.number) is not None:
                moving.append((holder, key, number, place))
            elif isinstance(place, SlotView):
                holder[key] = place.within(arena)
        numbers = [(index, own) for index, slot in enumerate(self.makes) if slot and (own := slot.number) is not None]
        several = len(self.makes) > 1

        def repeat(tensors: Tensors) -> None:
            for holder, key, number, place in moving:
                holder[key] = place.over(tensors[number])
            result = operator(*operands, **named)
            for holder, key, *_ in moving:
                holder[key] = None
            for index, own in numbers:
                tensors[own] = result[index] if several else result

        return repeat


ALIGNED = 64  # bytes of a line of the cache, at whose beginning what lies in an arena begins
KEPT = 2**26  # bytes of an arena up to which its pages wait for the next time


class CallPlan:
    """Hold the calls that make something of what is given, those apart (`apart`), of the last given, by themselves.

    It is written while they compute. Memory that was taken is an arena's from then on, the same where uses do not
    overlap; what operators of torch make is torch's. It is `whole` where all may be repeated: nothing depended on
    numbers that Python looked at, and nothing was packed.
    """

    def __init__(self, given: Sequence[Tensor]) -> None:
        self.calls: list[PlannedCall] = []
        self.before: list[PlannedCall] = []
        self.whole, self.is_apart = True, False
        self.held: list[Any] = []  # memory that was there before
        self.tensors: Tensors = []
        self.arena = torch.empty(0, dtype=torch.uint8, device="cpu")
        self._slots: dict[int, tuple[Any, Slot, torch.dtype | None, int]] = {}  # by whose memory it is, and was
        self._given = [self._give_slot(one) for one in given]

    def _give_slot(self, tensor: Tensor, size: int | None = None) -> Slot:
        """Give what was made a slot: in the arena where it has a size, else a number."""
        memory = tensor.untyped_storage()
        lines = -(-(size or 0) // ALIGNED) * ALIGNED
        slot = Slot(self.is_apart, lines, number=len(self.tensors) if size is None else None)
        if size is None:
            self.tensors.append(None)
        self._slots[memory._cdata] = ref(memory), slot, tensor.dtype if size is None else None, tensor.data_ptr()
        return slot

    def _place(self, tensor: Tensor) -> SlotView | None:
        """Return where a tensor lies that the plan makes, or is given."""
        if tensor.layout != torch.strided:
            return None
        memory = tensor.untyped_storage()
        known, slot, dtype, start = self._slots.get(memory._cdata, (None, None, None, 0))
        if known is None or slot is None or known() is not memory:  # freed since, and its address taken
            return None
        self.whole &= dtype in (None, tensor.dtype)  # a tensor of torch's is not read as another dtype
        self.whole &= slot.lasting or slot is self._given[-1] or not self.is_apart
        return SlotView(slot, tensor.data_ptr() - start, tensor.dtype, tuple(tensor.shape), tensor.stride())

    def add(self, kernel: Callable[..., None], operands: Sequence[Operand], given: list[Any]) -> None:
        """Write the call of a kernel down, and with what it was called."""
        given, slots = list(given), []
        for position, operand in enumerate(operands):
            if not isinstance(operand, Tensor):
                continue
            if (place := self._place(operand)) is None:
                self.held.append(operand.untyped_storage())
            else:
                given[position] = place
                slots.append(place.slot)
        self._calls.append(PlannedCall(kernel, given, slots))

    def see(self, operator: Any, given: Sequence[Any], named: dict[str, Any], made: Any) -> None:
        """Write the call of an operator down, unless it views memory or takes it."""
        if operator.is_view:
            return
        if operator.overloadpacket in MEMORY:
            self._give_slot(made, made.untyped_storage().nbytes())
            return
        results = made if isinstance(made, tuple | list) else (made,)
        self.whole &= all(one is None or (isinstance(one, Tensor) and one.layout == torch.strided) for one in results)
        self.whole &= not UNREPEATABLE.intersection(operator.tags)
        if not self.whole:
            return
        slots: list[Slot] = []

        def operand(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return [operand(one) for one in value]
            if not isinstance(value, Tensor) or (place := self._place(value)) is None:
                return value
            slots.append(place.slot)
            return place

        before = {one.untyped_storage()._cdata for one in _tensors([*given, *named.values()])}
        operands, others = [operand(value) for value in given], {name: operand(value) for name, value in named.items()}
        makes = [
            None if one is None or one.untyped_storage()._cdata in before else self._give_slot(one) for one in results
        ]
        self._calls.append(PlannedCall(operator, operands, [*slots, *filter(None, makes)], others, makes))

    @property
    def _calls(self) -> list[PlannedCall]:
        return self.before if self.is_apart else self.calls

    @contextmanager
    def record(self) -> Iterator[None]:
        """Within the block, write down what this thread calls."""
        RECORDING.plan = self
        try:
            with _Witness(self):
                yield
        finally:
            RECORDING.plan = None

    @torch.inference_mode(False)
    def finish(self, made: Tensor) -> None:
        """Lay the arena out, and the calls over it, which are to make `made`."""
        self.last = self._place(made)
        self.whole &= self.last is not None
        if self.last is None or not self.whole:
            return
        ends = {slot: index for index, call in enumerate(self.calls) for slot in call.slots if not slot.lasting}
        ends[self.last.slot] = len(self.calls)
        done: list[list[Slot]] = [[] for _ in range(len(self.calls) + 1)]
        for slot, index in ends.items():
            done[index].append(slot)
        self.lasting = 0
        for slot in dict.fromkeys(slot for call in self.before for slot in call.slots if slot.lasting):
            slot.start, self.lasting = self.lasting, self.lasting + slot.size
        size = lay_out([call.slots for call in self.calls], done, self.lasting)
        self.arena = torch.empty(size, dtype=torch.uint8, device="cpu")
        kernels.take_huge_pages(self.arena)
        numbers = [[slot.number for slot in slots if slot.number is not None] for slots in done]
        self.passing = [number for some in numbers for number in some]
        self.first = [call.over(self.arena) for call in self.before]
        self.then = list(zip((call.over(self.arena) for call in self.calls), numbers[:-1], strict=True))
        self.calls, self.before, self._slots = [], [], {}

    def repeat(self, given: Sequence[Tensor], *, anew: bool) -> Tensor:
        """Call all that was written down, those apart where they are wanted `anew`, and return what is made."""
        tensors, last = self.tensors, self.last
        assert last is not None
        own = last.slot.number
        tensors[: len(given)] = given
        try:
            for repeat in self.first if anew else ():
                repeat(tensors)
            for repeat, done in self.then:
                repeat(tensors)
                for number in done:
                    tensors[number] = None
            return last.within(self.arena).clone() if own is None else last.over(tensors[own])
        finally:
            for number in (*range(len(given)), *self.passing):
                tensors[number] = None
            if self.arena.nbytes > KEPT:
                kernels.give_back(self.arena[self.lasting :])


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _tensors(value)
        elif isinstance(value, Tensor) and value.layout == torch.strided:
            yield value


def lay_out(uses: Sequence[Sequence[Slot]], done: Sequence[Sequence[Slot]], top: int) -> int:
    """SlotView what is used in an arena, from `top` on, each in the first piece that is free; return where it ends.

    What is `done` with after each use is free again.
    """
    free: list[tuple[int, int]] = []  # from where to where
    placed: set[Slot] = set()
    for some, over in zip(uses, done, strict=False):
        for slot in some:
            if slot in placed or slot.lasting or not slot.size:
                continue
            placed.add(slot)
            piece = next(((start, end) for start, end in free if end - start >= slot.size), None)
            if piece is None:
                piece = free[-1] if free and free[-1][1] == top else (top, top)
                top = piece[0] + slot.size
            slot.start, end = piece
            if piece in free:
                free.remove(piece)
            if slot.start + slot.size < end:
                insort(free, (slot.start + slot.size, end))
        for slot in over:
            if slot.size:
                _free(free, slot.start, slot.start + slot.size)
    return top


def _free(free: list[tuple[int, int]], start: int, end: int) -> None:
    """Add a piece to those that are free, and join it with those beside it."""
    at = bisect(free, (start, end))
    if at < len(free) and free[at][0] == end:
        end = free.pop(at)[1]
    if at and free[at - 1][1] == start:
        start, at = free.pop(at - 1)[0], at - 1
    free.insert(at, (start, end))


class _Witness(TorchDispatchMode):
    """Show a plan what torch computes."""

    def __init__(self, plan: CallPlan) -> None:
        super().__init__()
        self.plan = plan

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, in 1.4 s and 68 MiB

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.plan.see(func, args, kwargs or {}, made)
        return made


ATEN = torch.ops.aten
MEMORY = (ATEN.empty, ATEN.empty_like, ATEN.empty_strided, ATEN.new_empty)
UNREPEATABLE = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


MOST = 8192  # pixels of a batch up to which what is between the kernels takes time enough to be spared
SIZES = 4  # of which a U-Net keeps plans
KNOWN = ("reverie.", "torch.nn.")  # whose modules are told by their weights: others may change by an attribute too
_LOCK = RLock()
_PLANNED: WeakSet[FastUNet] = WeakSet()
Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def end_plans() -> None:
    """Let go of all plans, and so of the packed weights that they hold."""
    with _LOCK:
        for unet in list(_PLANNED):
            vars(unet).pop("planned", None)
            _PLANNED.discard(unet)


@dataclass(eq=False)
class PlannedLevels:
    """Hold a plan of a U-Net's levels, for one size, and whose keys and values it has: a reference, and as of when."""

    plan: CallPlan
    context: tuple[Any, int] | None = None
    lock: Any = field(default_factory=RLock)  # two threads may draw with one model

    def repeat(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        """Compute anew; keys and values where the prompt is another."""
        with self.lock:
            known, self.context = self.context, None  # nobody's, should this be interrupted
            anew = known is None or known[0]() is not context or known[1] != version(context) or context.is_inference()
            made = self.plan.repeat((x, emb, context), anew=anew)
            self.context = ref(context), version(context)
        return made


@dataclass(eq=False)
class Plans:
    """Hold how a U-Net computes what it computed before, by size, and what it is then."""

    state: list[Any]
    held: list[Any]  # by whose identities and addresses the state says so
    ways: dict[Any, Way] = field(default_factory=dict)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Become None in copies and pickles, whatever class the U-Net has: calls have addresses in them."""
        return type(None), ()


class FastUNet(UNet):
    """Repeat the calls that made all levels before, where the same kernels would be called.

    The first call of a size computes plainly, and packs; the second writes down. What changes a layer ends all plans:
    another module, class, weight or setting, or a weight that was written to; with hooks, and where an attention
    gathers otherwise, they rest.
    """

    planned: Plans | None = None  # from the second call on

    def levels(
        self,
        x: Float[Tensor, "b c h w"],
        emb: Float[Tensor, "b e"],
        context: Float[Tensor, "b l d"],
        residuals: Sequence[Tensor] | None,
    ) -> Float[Tensor, "b c h w"]:
        many = len(x) * math.prod(x.shape[2:]) > MOST
        if many or residuals is not None or not takes(x, emb, context, dtype=x.dtype):
            return super().levels(x, emb, context, residuals)
        inner = tuple(_inside(self))  # hooks of the network itself are called outside
        if is_hooked(*inner) or gathers_otherwise(*inner) or _has_any_global_hook():
            return super().levels(x, emb, context, residuals)
        x = x.contiguous(memory_format=torch.channels_last)  # all as in a plan, lest other kernels round otherwise
        emb, context = emb.contiguous(), context.contiguous()
        size, (state, _) = (x.shape, emb.shape, context.shape, x.dtype), _state_of(inner)
        with _LOCK:
            way = self.planned.ways.get(size) if self.planned is not None and state == self.planned.state else None
        if way is not None:
            return way(x, emb, context)
        made = self._plainly(x, emb, context)
        state, held = _state_of(inner)  # now that all is packed
        with _LOCK:
            if self.planned is None or state != self.planned.state or len(self.planned.ways) >= SIZES:
                self.planned = Plans(state, held)
                _PLANNED.add(self)
            ways = self.planned.ways
            counted = not any(isinstance(one, Tensor) and one.is_inference() for one in held)
            counted &= all(type(module).__module__.startswith(KNOWN) for module in inner)
            ways[size] = partial(self._record, ways, size) if counted else self._plainly
        return made

    def _plainly(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        return super().levels(x, emb, context, None)

    def _record(self, ways: dict[Any, Way], size: Any, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        context = context.detach()  # whose keys and values nobody knows, so that they are computed
        plan = CallPlan((x, emb, context))
        with plan.record():
            made = self._plainly(x, emb, context)
        plan.finish(made)
        ways[size] = PlannedLevels(plan).repeat if plan.whole else self._plainly
        return made


SETTINGS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("padding_mode", "padding", "stride", "dilation"),
    nn.GroupNorm: ("num_groups", "eps"),
    nn.LayerNorm: ("eps",),
    Attention: ("heads",),
    TransformerBlock: ("only_cross",),
    SpatialTransformer: ("linear",),
}
"""By the class: what calls depend on besides weights."""


@cache
def _settings(kind: type[nn.Module]) -> Callable[[nn.Module], Any] | None:
    """Return what reads a module's settings; None for a class that has none."""
    names = [name for plain, some in SETTINGS.items() if issubclass(kind, plain) for name in some]
    return attrgetter(*names) if names else None


def _state_of(inner: Sequence[nn.Module]) -> tuple[list[Any], list[Any]]:
    """Say what modules and weights some are and as of when, and what must live for as long as that is to say so."""
    laid = [vars(module)["weight"] for module in inner if "weight" in vars(module)]  # no parameters
    weights = [*laid, *(weight for module in inner for weight in module._parameters.values() if weight is not None)]
    packed = [part for module in inner if (store := vars(module).get("store")) for part in store.parts]
    kinds: list[Any] = [*map(type, inner)]
    settings = [read(module) for module, kind in zip(inner, kinds, strict=True) if (read := _settings(kind))]
    those = [*inner, *weights, *packed]
    state = [*map(id, those), *kinds, *settings, *map(stamp, weights), torch.get_num_threads()]
    return state, [*those, *(weight.untyped_storage() for weight in weights)]


def _inside(module: nn.Module) -> Iterator[nn.Module]:
    """Give all modules inside a module, quicker than torch."""
    for part in module._modules.values():
        if part is not None:
            yield part
            yield from _inside(part)
