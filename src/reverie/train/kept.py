"""Tensors computed once and kept for the next run, in a file that knows what it was made of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from reverie.checkpoints.save import write_tensors

IDENTITY = "identity"
CONTENT = "latents"  # what the tensor is called in the file, whatever it holds


def digest_of(what: str, weights: Iterable[tuple[str, Tensor]]) -> str:
    """Return the SHA-256 of named weights and of what they are the weights of."""
    digest = hashlib.sha256(what.encode())
    for name, value in sorted(weights, key=lambda weight: weight[0]):
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def keep(content: Tensor, made_of: str, path: Path) -> None:
    """Write a tensor, whole or not at all. Raises ReverieError where that is not possible."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors({CONTENT: content}, path, {IDENTITY: made_of})


def is_kept(made_of: str, path: Path) -> bool:
    """Tell whether a file is there, whole, and was made of just that."""
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get(IDENTITY) == made_of
    except (FileNotFoundError, SafetensorError):
        return False


def read_tensor(path: Path) -> Tensor:
    """Read the tensor of a file."""
    with safe_open(path, "pt") as file:
        return file.get_tensor(CONTENT)
