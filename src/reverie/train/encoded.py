"""What `reverie encode` made of shards, read where it lies: examples whose latents are there, without pictures.

Of a shard 00000.tar there are 00000.safetensors with latents in half precision and 00000.jsonl with a line for each of
their rows, where pictures keep their shapes 00000-512x768.safetensors and .jsonl for each, 00000-texts.safetensors
with the encodings of captions, and, written last, 00000_stats.json, which says what all of them were made of.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from safetensors import SafetensorError
from torch import Tensor

from reverie.errors import ReverieError
from reverie.files import reason_of
from reverie.train.examples import Identity
from reverie.train.kept import read_tensor

Description = dict[str, str | Tensor]
"""`caption`, or its `tokens` and for SDXL `pooled`; for SDXL `sizes` as well."""
STATS, TENSORS, LINES, TEXTS = "_stats.json", ".safetensors", ".jsonl", "-texts.safetensors"  # how names end
LINE_BREAK = 10


class JsonLines:
    """Read the lines of a file by number; 8 bytes a line are kept in memory."""

    def __init__(self, path: Path) -> None:
        self.content = np.memmap(path, np.uint8, "r")
        self.ends = np.flatnonzero(self.content == LINE_BREAK)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> dict[str, Any]:
        start = int(self.ends[number - 1]) + 1 if number else 0
        line: dict[str, Any] = json.loads(self.content[start : int(self.ends[number])].tobytes())
        return line


class ShardedRows:
    """Hold rows of tensors of several files, numbered through; they are mapped, and read when they are asked for."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts, self.ends = parts, np.cumsum([len(part) for part in parts])
        self.shape = torch.Size([int(self.ends[-1]), *parts[0].shape[1:]])
        self.nbytes = sum(part.nbytes for part in parts)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, number: int) -> Tensor:
        which, row = find_part(self.ends, number)
        return self.parts[which][row]


@dataclass(frozen=True, eq=False)
class EncodedPart:
    """Hold what was made of a shard's pictures of one size; `length` tokens of a `width` come before what is pooled."""

    latents: Tensor
    lines: JsonLines
    texts: Tensor | None
    length: int
    width: int
    made_of: str


class Encoded:
    """Serve the examples of one size that were encoded ahead."""

    def __init__(self, parts: Sequence[EncodedPart]) -> None:
        self.parts, self.ends = parts, np.cumsum([len(part.lines) for part in parts])
        self.latents = ShardedRows([part.latents for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    @property
    def identity(self) -> Identity:
        """Return what was encoded, by what."""
        return ["encoded", *(part.made_of for part in self.parts)]

    @property
    def tellings(self) -> int:
        """Return 1: captions stay as they are."""
        return 1

    @property
    def has_texts(self) -> bool:
        """Tell whether captions need not be encoded."""
        return all(part.texts is not None for part in self.parts)

    def caption(self, index: int, turn: int) -> str:
        """Return its one caption."""
        return str(self._line(index)[1]["caption"])

    def place(self, index: int) -> str:
        """Say where its picture lay."""
        return str(self._line(index)[1]["place"])

    def picture(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Raise ReverieError: only latents are left of it."""
        raise ReverieError("what was encoded ahead has no pictures left; give pictures in [data] instead")

    def describe(self, read: Callable[[str], Description]) -> Callable[[int, str], Description]:
        """Return what tells of an example by its number and caption: as it was encoded, else as `read` says."""

        def tell(number: int, caption: str) -> Description:
            part, line = self._line(number)
            found: Description
            if part.texts is None:
                found = read(caption)
            else:  # the first row is of the empty caption
                encoding = part.texts[line["text"] if caption else 0].float()
                tokens, pooled = encoding.tensor_split([part.length * part.width])
                found = {"tokens": tokens.view(-1, part.width)}
                if len(pooled):
                    found["pooled"] = pooled
            return found | ({"sizes": torch.tensor(line["sizes"])} if "sizes" in line else {})

        return tell

    def _line(self, index: int) -> tuple[EncodedPart, dict[str, Any]]:
        which, row = find_part(self.ends, index)
        part = self.parts[which]
        return part, part.lines[row]


def find_part(ends: np.ndarray, number: int) -> tuple[int, int]:
    """Return which part row `number` is in, and which of its rows it is; parts end before `ends`."""
    which = int(np.searchsorted(ends, number, side="right"))
    return which, number - int(ends[which - 1] if which else 0)


def open_encoded(folder: str | Path, encoder: str, texts: str = "", sized: bool = False) -> dict[str, Encoded]:
    """Open what was encoded into a folder, by names for its sizes, "512x768".

    `encoder` is the digest of the autoencoder it must have been made by; encodings of captions are used where they are
    of the text encoders whose digest `texts` is. A model of SDXL's family is `sized`: it is told of sizes. Raises
    ReverieError where another autoencoder or family made it, where it is damaged, and where there is nothing.
    """
    sizes: dict[str, list[EncodedPart]] = {}
    for path in sorted(Path(folder).glob(f"*{STATS}")):
        try:
            stats = json.loads(path.read_text(encoding="utf-8"))
            if stats["encoder"] != encoder:
                raise ReverieError(
                    f"what is in '{folder}' was encoded by another autoencoder than the recipe's; encode it again by "
                    "that one, or name the other in the recipe"
                )
            if stats["sized"] != sized:
                raise ReverieError(f"what is in '{folder}' was encoded by a model of another family than the recipe's")
            shard = path.name.removesuffix(STATS)
            kept = path.with_name(shard + TEXTS) if texts and stats["texts"] == texts else None
            for name, size in stats["rows"].items():
                part = EncodedPart(
                    read_tensor(path.with_name(name + TENSORS)),
                    JsonLines(path.with_name(name + LINES)),
                    None if kept is None else read_tensor(kept),
                    stats["length"],
                    stats["width"],
                    stats["made_of"],
                )
                if len(part.latents) != len(part.lines):
                    raise ValueError(f"{name}{LINES} has not as many lines as there are latents")
                sizes.setdefault(size, []).append(part)
        except (OSError, KeyError, TypeError, AttributeError, ValueError, SafetensorError) as error:
            if isinstance(error, ReverieError):
                raise
            raise ReverieError(f"'{path}' and what it tells of cannot be read: {reason_of(error)}") from error
    if not sizes:
        raise ReverieError(f"nothing was encoded into '{folder}'; make it by `reverie encode SHARDS -o {folder}`")
    if any(part.texts is None for parts in sizes.values() for part in parts):  # some shards were encoded without
        sizes = {size: [replace(part, texts=None) for part in parts] for size, parts in sizes.items()}
    return {size: Encoded(parts) for size, parts in sorted(sizes.items())}
