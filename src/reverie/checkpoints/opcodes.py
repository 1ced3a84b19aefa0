"""What does a pickle say? Its opcodes are followed over plain data; whatever it names is looked up, never imported.

Nothing of Python's pickle module runs. Format: the comments of CPython's Lib/pickletools.py, protocols 0 to 5.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# What bounds time and memory. A full SD 1.5 with its averaged copy takes 150,000 opcodes.
MOST_OPCODES = 1_000_000
LONGEST_NUMBER = 64  # bytes
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
        self.data, self.position = data, start
        self._find, self._persistent = find, persistent
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []  # what stood on the stack before each mark
        self._memo: dict[int, Any] = {}

    def run(self) -> object:
        """Return what the pickle describes."""
        for _ in range(MOST_OPCODES):
            opcode = self.take(1)
            if opcode == b".":
                return self.pull()
            handler = HANDLERS.get(opcode)
            if handler is None:
                raise ValueError(f"it holds the opcode {opcode!r}, which is unknown or not allowed")
            handler(self)
        raise ValueError(f"it has more than {MOST_OPCODES} opcodes")

    # Reading

    def take(self, count: int) -> bytes:
        """Read so many bytes."""
        end = self.position + count
        if count < 0 or end > len(self.data):
            raise ValueError("it ends within a pickle")
        taken, self.position = self.data[self.position : end], end
        return taken

    def line(self) -> str:
        """Read to the end of a line."""
        end = self.data.find(b"\n", self.position, self.position + (1 << 20))
        if end < 0:
            raise ValueError("it ends within a pickle")
        text = self.data[self.position : end].decode("latin-1")
        self.position = end + 1
        return text

    def unpack(self, layout: str) -> Any:
        """Read one number."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

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

    def named_instance(self) -> None:
        """Rebuild an object of protocol 0, whose class is named in two lines."""
        arguments = tuple(self.pop_mark())
        self.find(self.line(), self.line())
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


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _python2(data: bytes) -> str:
    """Read a byte string of Python 2, which is text for all that matters here."""
    return data.decode("latin-1")


def _long(data: bytes) -> int:
    if len(data) > LONGEST_NUMBER:
        raise ValueError("it holds a number that is too long")
    return int.from_bytes(data, "little", signed=True)


def _decimal(text: str) -> int | bool:
    if text in ("00", "01"):  # how protocol 0 writes False and True
        return text == "01"
    if len(text) > 2 * LONGEST_NUMBER:
        raise ValueError("it holds a number that is too long")
    return int(text.removesuffix("L"))


def _quoted(text: str) -> str:
    if len(text) < 2 or text[0] != text[-1] or text[0] not in "'\"":
        raise ValueError("it holds a text without quotes")
    return text[1:-1]  # escapes stay as they are: no weight has one in its name


Handler = Callable[[Machine], object]


def _counted(layout: str, convert: Callable[[bytes], object]) -> Handler:
    return lambda m: m.push(convert(m.take(m.unpack(layout))))


def _lined(convert: Callable[[str], object]) -> Handler:
    return lambda m: m.push(convert(m.line()))


def _number(layout: str) -> Handler:
    return lambda m: m.push(m.unpack(layout))


def _constant(value: object) -> Handler:
    return lambda m: m.push(value)


HANDLERS: dict[bytes, Handler] = {
    b"\x80": lambda m: _check_protocol(m.unpack("B")),
    b"\x95": lambda m: m.take(8),  # a frame: only a hint for reading ahead
    b"(": Machine.mark,
    b"0": Machine.drop,
    b"1": Machine.pop_mark,
    b"2": Machine.duplicate,
    # constants and numbers
    b"N": _constant(None),
    b"\x88": _constant(True),
    b"\x89": _constant(False),
    b"J": _number("<i"),
    b"K": _number("<B"),
    b"M": _number("<H"),
    b"G": _number(">d"),
    b"I": _lined(_decimal),
    b"L": _lined(_decimal),
    b"F": _lined(float),
    b"\x8a": _counted("<B", _long),
    b"\x8b": _counted("<i", _long),
    # text and bytes
    b"X": _counted("<I", _text),
    b"\x8c": _counted("<B", _text),
    b"\x8d": _counted("<Q", _text),
    b"T": _counted("<i", _python2),
    b"U": _counted("<B", _python2),
    b"V": _lined(lambda text: text.encode("latin-1").decode("raw-unicode-escape")),
    b"S": _lined(_quoted),
    b"B": _counted("<I", bytes),
    b"C": _counted("<B", bytes),
    b"\x8e": _counted("<Q", bytes),
    b"\x96": _counted("<Q", bytes),
    # containers
    b")": _constant(()),
    b"t": lambda m: m.push(tuple(m.pop_mark())),
    b"\x85": lambda m: m.tuple_of(1),
    b"\x86": lambda m: m.tuple_of(2),
    b"\x87": lambda m: m.tuple_of(3),
    b"]": lambda m: m.push([]),
    b"l": lambda m: m.push(m.pop_mark()),
    b"a": lambda m: m.append([m.pull()]),
    b"e": lambda m: m.append(m.pop_mark()),
    b"}": lambda m: m.push({}),
    b"d": lambda m: m.push(table(m.pop_mark())),
    b"s": lambda m: m.set_items([m.pull(), m.pull()][::-1]),
    b"u": lambda m: m.set_items(m.pop_mark()),
    b"\x8f": lambda m: m.push(Inert("set")),
    b"\x90": Machine.add_items,
    b"\x91": Machine.freeze,
    # the memo
    b"p": lambda m: m.put(int(_decimal(m.line()))),
    b"q": lambda m: m.put(m.unpack("<B")),
    b"r": lambda m: m.put(m.unpack("<I")),
    b"\x94": Machine.memoize,
    b"g": lambda m: m.get(int(_decimal(m.line()))),
    b"h": lambda m: m.get(m.unpack("<B")),
    b"j": lambda m: m.get(m.unpack("<I")),
    # objects
    b"c": lambda m: m.find(m.line(), m.line()),
    b"\x93": Machine.stack_global,
    b"P": lambda m: m.identify(m.line()),
    b"Q": lambda m: m.identify(m.pull()),
    b"R": Machine.reduce,
    b"\x81": Machine.reduce,
    b"\x92": Machine.new_with_names,
    b"i": Machine.named_instance,
    b"o": lambda m: m.instance(m.pop_mark()),
    b"b": Machine.build,
}


def _check_protocol(protocol: int) -> None:
    if protocol > 5:
        raise ValueError(f"it has the protocol {protocol}, which is unknown")
