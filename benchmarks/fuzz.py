"""Do damaged files of weights crash the readers? `python benchmarks/fuzz.py 60` changes valid ones at random for 60 s.

Whatever comes, a reader must open the file, and give every tensor in it, or raise ReverieError of one line. Prints how
many inputs were tried; ends with status 1 at the first that breaks the rule, whose file is kept.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from reverie.checkpoints.weights import open_source
from reverie.errors import ReverieError

LONGEST = 5.0  # seconds for one input
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)
# Opcodes and magic numbers that a change of single bytes would seldom make.
WORDS = (
    b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"\x80\x02", b"cos\nsystem\n", b"\x93", b"R", b"b", b"o",
    b"(", b"t", b"\x85", b"]", b"}", b"u", b"s", b"e", b"0", b"2", b"h\x00", b"\x94", b"Q", b"N", b"-1", b"1e999",
    b'"shape":', b'"data_offsets":', b"[", b"{", b"null", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", bytes(8),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """Count what became of the inputs that were tried."""

    opened: int = 0
    refused: int = 0
    slowest: float = 0.0

    @property
    def tried(self) -> int:
        """Return how many there were."""
        return self.opened + self.refused


def seeds(folder: Path) -> list[bytes]:
    """Write one valid file of each kind and return their contents."""
    table = {
        "a": torch.arange(6.0).reshape(2, 3),
        "b": torch.ones(4).half(),
        "c": torch.arange(3),
        "d": torch.ones(2, 3).T,
    }
    checkpoint = {
        "state_dict": OrderedDict(table),
        "epoch": 3,
        "lr": [1e-4, None, True],
        "name": "x",
        "size": torch.Size([2]),
    }
    save_file({"a": table["a"], "b": table["b"]}, folder / "0", metadata={"format": "pt"})
    torch.save(table, folder / "1")
    torch.save(checkpoint, folder / "2")
    torch.save(checkpoint, folder / "3", _use_new_zipfile_serialization=False)
    torch.save(checkpoint, folder / "4", pickle_protocol=4)
    torch.save(
        {"w": torch.nn.Parameter(torch.ones(3))}, folder / "5", pickle_protocol=5, _use_new_zipfile_serialization=False
    )
    return [(folder / str(index)).read_bytes() for index in range(6)]


def mutations(contents: list[bytes], generator: random.Random) -> Iterator[bytes]:
    """Yield the contents with one to eight changes, without an end."""
    while True:
        data = bytearray(generator.choice(contents))
        for _ in range(generator.choice((1, 1, 2, 4, 8))):
            change(data, contents, generator)
        yield bytes(data)


def change(data: bytearray, contents: list[bytes], generator: random.Random) -> None:
    """Change some bytes in place: flip, set, count up, insert, delete, repeat, cut off or take from another file."""
    # Most of a file is padding and numbers: half of the changes go where it says what it holds.
    telling = [at for at, byte in enumerate(data) if byte] if generator.random() < 0.5 else []
    at = generator.choice(telling) if telling else generator.randrange(len(data) + 1)
    end = min(len(data), at + generator.choice((1, 2, 4, 8, 40)))
    other = generator.choice(contents)
    start = generator.randrange(len(other))
    word = generator.choice(WORDS)
    kind = generator.randrange(9)
    if kind == 0:
        data[at:end] = bytes(byte ^ 1 << generator.randrange(8) for byte in data[at:end])
    elif kind == 1:
        data[at:end] = bytes([generator.choice(INTERESTING)]) * (end - at)
    elif kind == 2:
        data[at : at + 1] = bytes([(byte + generator.choice((-1, 1))) % 256 for byte in data[at : at + 1]])
    elif kind == 3:
        data[at:at] = word
    elif kind == 4:
        data[at : at + len(word)] = word
    elif kind == 5:
        del data[at:end]
    elif kind == 6:
        data[at:at] = data[at:end] * generator.choice((1, 10, 1000))
    elif kind == 7:
        del data[max(1, at) :]
    else:
        data[at:end] = other[start : start + generator.choice((1, 8, 100))]
    data[:] = data or b"\0"


def attempt(file: Path, content: bytes) -> bool:
    """Read a file of this content to its last tensor and tell whether that went well; only a refusal is caught."""
    file.unlink(missing_ok=True)  # a map of the one before must not see this one
    file.write_bytes(content)
    try:
        source = open_source(file)
        for name in source.names():
            tensor = source.tensor(name)
            if tuple(tensor.shape) != source.shape(name) or tensor.dtype != source.dtype(name):
                raise AssertionError(f"{name} is not as it was told")
            tensor.double().sum()
    except ReverieError as error:
        if len(str(error).splitlines()) != 1:
            raise AssertionError(f"an error of several lines: {error}") from error
        return False
    return True


def fuzz(folder: Path, seed: int, seconds: float, limit: int | None = None) -> Outcome:
    """Try changed files for some seconds, or until the limit. What breaks a reader stays in `folder`."""
    contents, file, outcome = seeds(folder), folder / "input.bin", Outcome()
    stop = time.monotonic() + seconds
    for content in mutations(contents, random.Random(seed)):
        if time.monotonic() >= stop or outcome.tried == limit:
            break
        before = time.process_time()
        opened = attempt(file, content)
        taken = time.process_time() - before
        if taken > LONGEST:
            raise AssertionError(f"an input took {taken:.1f} s")
        outcome = Outcome(outcome.opened + opened, outcome.refused + (not opened), max(outcome.slowest, taken))
    return outcome


def main() -> None:
    """Parse the command line, fuzz and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="reverie-fuzz-"))
    try:
        outcome = fuzz(folder, arguments.seed, arguments.seconds)
    except BaseException:
        print(f"the input is in {folder / 'input.bin'}", file=sys.stderr)
        raise
    shutil.rmtree(folder)
    print(
        f"{outcome.tried} inputs: {outcome.opened} opened, {outcome.refused} refused in one line; "
        f"the slowest took {outcome.slowest:.2f} s of the processor"
    )


if __name__ == "__main__":
    main()
