"""A pickle's opcodes followed over plain data: whatever it names is looked up, never imported.

The standard library's pickletools reads them, which runs nothing; what they mean is said in its comments.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# What bounds time and memory. A full SD 1.5 with its averaged copy takes 150,000 opcodes.
MOST_OPCODES = 1_000_000
LARGEST_NUMBER = 1 << 512
LARGEST_KEY = 1 << 60  # of whole numbers as keys: beyond it, hashes can be made to collide


class Forbidden(Exception):
    """Report that a pickle asks for something that is not data; the message names it."""


@dataclass(frozen=True, eq=False)
class Inert:
    """Stand in for an object or class that is not rebuilt: it swallows whatever is done to it."""

    name: str


@dataclass(frozen=True, eq=False)
class Rebuilder:
    """Rebuild one kind of object: `call` takes the arguments as plain data and raises ValueError for bad ones."""

    name: str
    call: Callable[[tuple[Any, ...]], object]


@dataclass(frozen=True, eq=False)
class Scripted:
    """Stand in for a module of TorchScript: the attributes that it is given, with none of its code."""

    name: str
    state: dict[Any, Any] = field(default_factory=dict)


class Machine:
    """Follow one pickle in `data` from `start` to its end, at `position`.

    `find(module, name)` says what a global stands for, an Inert, a Rebuilder or other data, or raises Forbidden;
    `persistent(id)` what an id stands for. `run` raises ValueError for a damaged pickle.
    """

    def __init__(
        self, data: bytes, start: int, find: Callable[[str, str], object], persistent: Callable[[object], object]
    ):
        self.position = start
        self._data = data
        self._find, self._persistent = find, persistent
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []  # what stood on the stack before each mark
        self._memo: dict[int, Any] = {}

    def run(self) -> object:
        """Return what the pickle describes."""
        stream = io.BytesIO(self._data)
        stream.seek(self.position)
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count >= MOST_OPCODES:
                raise ValueError(f"it has more than {MOST_OPCODES} opcodes")
            if opcode.name in CONSTANTS:
                self.push(_check(argument))
            elif opcode.name in HANDLERS:
                HANDLERS[opcode.name](self, argument)
            elif opcode.name != "STOP":
                raise ValueError(f"it holds the opcode {opcode.name}, which is not allowed")
        self.position = stream.tell()
        return self.pull()

    # The stack

    def push(self, value: object) -> None:
        """Put a value on top."""
        self._stack.append(value)

    def pull(self) -> Any:
        """Take the top value away and return it."""
        if not self._stack:
            raise ValueError("it takes more from its stack than is there")
        return self._stack.pop()

    def _top(self) -> Any:
        if not self._stack:
            raise ValueError("it looks for something on its empty stack")
        return self._stack[-1]

    def mark(self) -> None:
        """Begin a new stack above this one."""
        self._marked.append(self._stack)
        self._stack = []

    def pop_mark(self) -> list[Any]:
        """Return what stands above the last mark, and take it away."""
        if not self._marked:
            raise ValueError("it looks for a mark that it never set")
        items, self._stack = self._stack, self._marked.pop()
        return items

    def drop(self) -> None:
        """Drop the top value, or the mark where there is none above it."""
        if self._stack:
            self._stack.pop()
        else:
            self.pop_mark()

    def duplicate(self) -> None:
        """Push the top value once more."""
        self.push(self._top())

    def tuple_of(self, count: int) -> None:
        """Replace the top values by a tuple of them."""
        if len(self._stack) < count:
            raise ValueError("it takes more from its stack than is there")
        items = tuple(self._stack[-count:])
        del self._stack[-count:]
        self.push(items)

    # The memo

    def put(self, index: int) -> None:
        """Remember the top value."""
        self._memo[index] = self._top()

    def memoize(self) -> None:
        """Remember the top value under the next number."""
        self._memo[len(self._memo)] = self._top()

    def get(self, index: int) -> None:
        """Push a remembered value."""
        if index not in self._memo:
            raise ValueError("it recalls what it never remembered")
        self.push(self._memo[index])

    # Containers

    def append(self, items: list[Any]) -> None:
        """Add values to the list on top."""
        target = self._top()
        if type(target) is list:
            target.extend(items)
        elif not isinstance(target, Inert):
            raise ValueError("it appends to what is no list")

    def set_items(self, items: list[Any]) -> None:
        """Add keys and values, in turns, to the table on top."""
        target = self._top()
        if type(target) is dict:
            target.update(table(items))
        elif not isinstance(target, Inert):
            raise ValueError("it sets items of what is no table")

    def add_items(self) -> None:
        """Swallow the members of a set: no weights are in one."""
        self.pop_mark()
        if not isinstance(self._top(), Inert):
            raise ValueError("it adds to what is no set")

    def freeze(self) -> None:
        """Swallow the members of a frozen set."""
        self.pop_mark()
        self.push(Inert("frozenset"))

    # Objects

    def find(self, module: object, name: object) -> None:
        """Push what a global stands for."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("it names a global by something other than text")
        self.push(self._find(module, name))

    def stack_global(self) -> None:
        """Push what the global named on the stack stands for."""
        name = self.pull()
        self.find(self.pull(), name)

    def identify(self, pid: object) -> None:
        """Push what a persistent id stands for."""
        self.push(self._persistent(pid))

    def reduce(self) -> None:
        """Rebuild an object from what is below its arguments."""
        arguments = self.pull()
        self._rebuild(self.pull(), arguments)

    def new_with_names(self) -> None:
        """Rebuild an object whose class takes arguments by name."""
        named = self.pull()
        arguments = self.pull()
        made = self.pull()
        if named and not isinstance(made, Inert):
            raise ValueError("it rebuilds an object in a way that is not known")
        self._rebuild(made, arguments)

    def instance(self, items: list[Any]) -> None:
        """Rebuild an object of protocol 0 or 1, whose class stands before its arguments."""
        if not items:
            raise ValueError("it makes an object of nothing")
        self._rebuild(items[0], tuple(items[1:]))

    def named_instance(self, name: str) -> None:
        """Rebuild an object of protocol 0, whose class is named in the opcode."""
        arguments = tuple(self.pop_mark())
        self.find(*name.split(" ", 1))
        self._rebuild(self.pull(), arguments)

    def _rebuild(self, maker: object, arguments: object) -> None:
        if not isinstance(arguments, tuple):
            raise ValueError("it rebuilds an object of something other than arguments")
        if isinstance(maker, Rebuilder):
            self.push(maker.call(arguments))
        elif isinstance(maker, Inert):
            self.push(Inert(maker.name))
        else:
            raise ValueError("it calls what is no class")

    def build(self) -> None:
        """Swallow an object's state: tables take none that matters (`_metadata` of modules), others are not rebuilt.

        That of a TorchScript module is kept: its weights are there.
        """
        state, top = self.pull(), self._top()
        if isinstance(top, Scripted) and isinstance(state, dict):
            top.state.update(state)
        elif not isinstance(top, Inert | dict):
            raise ValueError("it sets the state of plain data")


def table(items: list[Any]) -> dict[Any, Any]:
    """Build a table from keys and values in turns. Raises ValueError for keys other than names and numbers."""
    if len(items) % 2:
        raise ValueError("it has a key without a value")
    for key in items[::2]:
        if not (isinstance(key, str | bytes | Inert | None) or (type(key) is int and abs(key) < LARGEST_KEY)):
            raise ValueError(f"it has a key that is no name ({type(key).__name__})")
    return dict(zip(items[::2], items[1::2], strict=True))


def _check(argument: object) -> object:
    """Return a number or a text as it stands. Raises ValueError for a number that is too long."""
    if isinstance(argument, int) and abs(argument) > LARGEST_NUMBER:
        raise ValueError("it holds a number that is too long")
    return argument


# Opcodes whose argument is what they push; byte strings of Python 2 are text for all that matters here.
CONSTANTS = {
    *("INT", "LONG", "FLOAT", "BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1", "LONG4"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
HANDLERS: dict[str, Callable[[Machine, Any], object]] = {
    "PROTO": lambda m, protocol: _check_protocol(protocol),
    "FRAME": lambda m, _: None,  # only a hint for reading ahead
    "MARK": lambda m, _: m.mark(),
    "POP": lambda m, _: m.drop(),
    "POP_MARK": lambda m, _: m.pop_mark(),
    "DUP": lambda m, _: m.duplicate(),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    # containers
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "TUPLE": lambda m, _: m.push(tuple(m.pop_mark())),
    "TUPLE1": lambda m, _: m.tuple_of(1),
    "TUPLE2": lambda m, _: m.tuple_of(2),
    "TUPLE3": lambda m, _: m.tuple_of(3),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "LIST": lambda m, _: m.push(m.pop_mark()),
    "APPEND": lambda m, _: m.append([m.pull()]),
    "APPENDS": lambda m, _: m.append(m.pop_mark()),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "DICT": lambda m, _: m.push(table(m.pop_mark())),
    "SETITEM": lambda m, _: m.set_items([m.pull(), m.pull()][::-1]),
    "SETITEMS": lambda m, _: m.set_items(m.pop_mark()),
    "EMPTY_SET": lambda m, _: m.push(Inert("set")),
    "ADDITEMS": lambda m, _: m.add_items(),
    "FROZENSET": lambda m, _: m.freeze(),
    # the memo
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda m, index: m.put(index)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, index: m.get(index)),
    "MEMOIZE": lambda m, _: m.memoize(),
    # objects
    "GLOBAL": lambda m, name: m.find(*name.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.stack_global(),
    "PERSID": lambda m, pid: m.identify(pid),
    "BINPERSID": lambda m, _: m.identify(m.pull()),
    "REDUCE": lambda m, _: m.reduce(),
    "NEWOBJ": lambda m, _: m.reduce(),
    "NEWOBJ_EX": lambda m, _: m.new_with_names(),
    "INST": lambda m, name: m.named_instance(name),
    "OBJ": lambda m, _: m.instance(m.pop_mark()),
    "BUILD": lambda m, _: m.build(),
}


def _check_protocol(protocol: int) -> None:
    if protocol > 5:
        raise ValueError(f"it has the protocol {protocol}, which is unknown")
