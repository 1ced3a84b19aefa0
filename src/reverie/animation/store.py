"""The frame store: frames of an unfinished film, in a folder under the key of all that determines them.

A film that broke off, by Ctrl-C, `kill -9` or a power cut, goes on with the frames that it had. The key is over the
request, the files it names, the model's content and the machine.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from reverie.errors import ReverieError, warn
from reverie.files import (
    CACHE_VARIABLE,
    InUse,
    atomic_write,
    cache_folder,
    file_sha256,
    lock_folder,
    sha256_of,
    unwritable,
)
from reverie.generate.conditioning import loras_of
from reverie.generate.modified import Modification
from reverie.requests import adapter_files
from reverie.requests.films import Animation
from reverie.system import StableDiffusion

KEPT = 2 * 1024**3  # bytes of earlier films' frames that stay, so that writing another file of one costs nothing
JOURNAL = "journal.jsonl"


class Store(Protocol):
    """Keep the frames of one film by their place on its path."""

    def get(self, place: float) -> Image.Image | None:
        """Return a frame drawn before, to the bit, or None where it is not there."""

    def put(self, drawn: Mapping[float, Image.Image]) -> None:
        """Keep frames that were drawn together: all of them are there afterwards, or none."""


class FrameStore:
    """Keep frames as PNG in a folder.

    A journal names the frames of each batch in one line, which is written after them: a batch without its line is not
    there, so that a film that goes on cuts the rest into the same batches as one that was never interrupted. Each line
    holds the files' sums; a file that does not fit its sum is drawn again.

    Use it as a context manager: meanwhile no other process makes the same film.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._sums: dict[str, int] = {}
        self._lock = ExitStack()

    def __enter__(self) -> FrameStore:
        try:
            self._lock.enter_context(lock_folder(self.folder, "making a film of the frames in"))
        except InUse:
            raise
        except ReverieError as error:
            warn(
                f"frames are not kept, so a film that breaks off begins anew: {error}; {CACHE_VARIABLE} names another "
                "folder for them",
                stacklevel=2,
            )
            self.folder = Path(self._lock.enter_context(TemporaryDirectory(prefix="reverie-")))
        self._sums = self._read_journal()
        os.utime(self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def __len__(self) -> int:
        return len(self._sums)

    def __contains__(self, place: object) -> bool:
        return isinstance(place, float | int) and _name(place) in self._sums

    def get(self, place: float) -> Image.Image | None:
        """Return a frame drawn before, to the bit, or None where it is not there."""
        name = _name(place)
        if name not in self._sums:
            return None
        try:
            data = (self.folder / name).read_bytes()
        except OSError:
            data = b""
        if zlib.crc32(data) != self._sums[name]:
            del self._sums[name]
            return None
        with Image.open(io.BytesIO(data)) as picture:
            return picture.convert("RGB")

    def put(self, drawn: Mapping[float, Image.Image]) -> None:
        """Keep frames that were drawn together: all of them are there afterwards, or none."""
        sums = {}
        for place, picture in drawn.items():
            buffer = io.BytesIO()
            picture.convert("RGB").save(buffer, "PNG", compress_level=1)
            name, data = _name(place), buffer.getvalue()
            with atomic_write(self.folder / name) as temporary:
                temporary.write_bytes(data)
            sums[name] = zlib.crc32(data)
        path = self.folder / JOURNAL
        with unwritable(path), path.open("ab") as journal:
            journal.write(json.dumps(sums).encode() + b"\n")
            journal.flush()
            os.fsync(journal.fileno())
        self._sums |= sums

    def _read_journal(self) -> dict[str, int]:
        """Read the complete lines, and cut off one that broke off, so that the next begins on its own."""
        path = self.folder / JOURNAL
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            os.truncate(path, len(whole))
        sums: dict[str, int] = {}
        for line in whole.splitlines():
            try:
                batch = json.loads(line)
            except ValueError:
                continue
            if isinstance(batch, dict) and all(isinstance(total, int) for total in batch.values()):
                sums |= batch
        return sums


def _name(place: float) -> str:
    """Name the file of a place: its bits, as two places may differ in the last one."""
    return f"{float(place).hex()}.png"


def cache() -> Path:
    """Return the folder of all films' frames, within the user's cache directory."""
    return cache_folder() / "frames"


def prune(frames: Path, kept: int = KEPT) -> None:
    """Remove the frames of films that nobody is making, the oldest first, until no more than `kept` bytes are left."""
    films = sorted((film for film in frames.glob("*") if film.is_dir()), key=lambda film: film.stat().st_mtime)
    sizes = {film: sum(file.stat().st_size for file in film.iterdir() if file.is_file()) for film in films}
    left = sum(sizes.values())
    for film in films:
        if left <= kept:
            return
        with suppress(InUse), lock_folder(film):
            shutil.rmtree(film, ignore_errors=True)
            left -= sizes[film]


FORMAT = 1  # of what is drawn and stored: raise it where the same request comes to another frame


def key_of(system: StableDiffusion, animation: Animation, *, batch: int) -> str:
    """Return the key of a film drawn by a model in batches of a size: 32 hexadecimal digits.

    Raises ReverieError where a LoRA or another file of the film is not found.
    """
    parts = {"format": FORMAT, "batch": batch, **circumstances(system), **contents(animation)}
    parts |= {"request": animation.to_record(), "model": fingerprint(system)}
    return sha256_of([json.dumps(parts, sort_keys=True, default=str)])[:32]


def circumstances(system: StableDiffusion) -> dict[str, Any]:
    """Tell what moves the last bits of a frame: the versions, where it computes and on how many threads."""
    return {
        "reverie": version("reverie"),
        "torch": torch.__version__,
        "device": system.device.type,
        "dtype": str(system.dtype),
        "threads": torch.get_num_threads(),
    }


def contents(animation: Animation) -> dict[str, Any]:
    """Sum up the files that are read as a film is made; what it starts from is recorded with its sum."""
    paths = adapter_files.embeddings(animation.embeddings, animation.folders)
    paths += [path for path, _, _ in loras_of(animation)]
    return {"files": {str(path): _file_sum(path) for path in paths}}


def _file_sum(path: Path) -> str:
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return sha256_of([file_sha256(file) for file in files])


def fingerprint(system: StableDiffusion) -> str:
    """Sum up all that a picture depends on in a model: weights, configurations, schedule and words.

    Reads every weight once, on several threads: of 3.4 GB in seconds.
    """
    networks = (*system.text_encoders, system.unet, system.autoencoder)
    towers = [asdict(tower.config) for tower in system.text_encoders]
    configs = [*towers, asdict(system.unet.config), asdict(system.autoencoder.config)]
    words = [[words.length, words.bos, words.eos, words.pad, words.vocab, words.merges] for words in system.tokenizers]
    parts = [configs, asdict(system.schedule_config), system.zero_empty, words]
    with Modification(system).active(), ThreadPoolExecutor() as pool:  # without another drawing's LoRAs
        weights = [named for network in networks for named in sorted(network.state_dict().items())]
        sums = list(pool.map(_tensor_sum, weights))
    return sha256_of([json.dumps(parts, sort_keys=True, default=str), *sums])


def _tensor_sum(named: tuple[str, Tensor]) -> str:
    name, tensor = named
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return sha256_of([name, str(tensor.dtype), str(tuple(tensor.shape)), data.data])
