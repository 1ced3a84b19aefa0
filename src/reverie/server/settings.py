"""Settings of a server: its home, its folders, its limits, and what of them a request may name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from reverie.errors import ReverieError
from reverie.requests import adapter_files
from reverie.requests.references import BUNDLED, BUNDLED_NAME, HUB_PARTS, MUSIC_NAME, AllowedFolders, Resolver

GIB = 1 << 30
WEIGHTS = (".safetensors", ".ckpt", ".gguf")
MODEL_INDEX, SPECTROGRAM = "model_index.json", "spectrogram.json"  # the second makes it one of music


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request, or one client, may ask for: pixels, tiles, steps, pictures, frames, seconds of sound.

    `body` and `uploads` are bytes, of a request and of all that was uploaded; `queue` counts jobs, of which a client
    may have `share`; `seconds` is how long a job may run.
    """

    pixels: int = 1 << 22
    tiles: int = 256
    steps: int = 150
    count: int = 64
    frames: int = 3000
    sound: float = 600.0
    body: int = 64 << 20
    uploads: int = 8 * GIB
    queue: int = 256
    share: float = 0.5
    seconds: float = 3600.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a server is set up. `home` holds jobs and results; requests name what is in the folders, and nothing else.

    `model` draws where a request names none. `hub` allows downloads. `tokens` are the keys of which a client needs one;
    `origins` are other sites' pages that may ask, `hosts` the names that the server is reached by beside this
    machine's own. `memory` bounds, in bytes, the models that each of the `workers` holds.
    """

    home: Path
    host: str = "127.0.0.1"
    port: int = 7860
    model: str | None = None
    models: tuple[Path, ...] = ()
    loras: tuple[Path, ...] = ()
    embeddings: tuple[Path, ...] = ()
    controlnets: tuple[Path, ...] = ()
    upscalers: tuple[Path, ...] = ()
    folders: tuple[Path, ...] = ()
    styles: Path | None = None
    wildcards: Path | None = None
    index: Path | None = None
    hub: bool = False
    device: str = "auto"
    dtype: str | None = None
    workers: int = 1
    memory: int = 8 * GIB
    tokens: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)

    @property
    def outputs(self) -> Path:
        """Return the folder of results."""
        return self.home / "outputs"

    @property
    def uploads(self) -> Path:
        """Return the folder of what clients sent."""
        return self.home / "uploads"

    def places(self) -> dict[str, Path]:
        """Return where the models are, by name: the bundled ones, and the files and folders in `models`."""
        found = dict(BUNDLED)
        for folder in self.models:
            for path in [folder, *sorted(folder.iterdir())] if folder.is_dir() else [folder]:
                if path.suffix in WEIGHTS or (path / MODEL_INDEX).is_file():
                    found.setdefault(path.stem if path.is_file() else path.name, path)
        return found

    def default(self, kind: str) -> str:
        """Return the name of the model that makes a kind of request where it names none."""
        return MUSIC_NAME if kind == "music" else self.model or BUNDLED_NAME

    def model_for(self, kind: str, name: str | None) -> str:
        """Return a model's name as it is known here. Raises ReverieError for one that is not.

        A name from metadata may end with the hash of the weights, and some programs add the file's suffix.
        """
        if not name:
            return self.default(kind)
        places = self.places()
        for known in (name, re.sub(r" \[\w+\]$", "", name)):
            for suffix in ("", *WEIGHTS):
                if (stem := known.removesuffix(suffix)) in places:
                    return stem
        if self.hub and len(name.split("/")) >= HUB_PARTS and ".." not in name and not Path(name).exists():
            return name
        raise ReverieError(f"there is no model '{name}' here", field="model", hint=f"choose from {', '.join(places)}")

    def adapters(self) -> dict[str, tuple[Path, ...]]:
        """Return the folders of what goes with a model, by what is in them."""
        folders = {"lora": self.loras, "embedding": self.embeddings}
        return folders | {"controlnet": self.controlnets, "upscaler": self.upscalers}

    def resolver(self) -> Resolver:
        """Return the policy by which requests name files: uploads, results, and what is in the folders."""
        content = [self.uploads, self.outputs, *self.folders]
        folders = self.adapters()
        allowed = AllowedFolders({**folders, **dict.fromkeys(("picture", "sound", "film"), content)})
        places = self.places()

        def resolve(what: str, name: str) -> str:
            if what == "model":
                known = self.model_for("", name)
                return str(places.get(known, known)) if known not in BUNDLED else known
            try:
                return allowed(what, name)
            except ReverieError:
                with suppress(ReverieError):  # by the name alone, as prompts do; its own error would tell of folders
                    if what in folders:
                        return str(adapter_files.find(name, folders[what]))
                raise

        return resolve

    def describe(self, text: str) -> str:
        """Return a message in one line, without the folders of this machine."""
        for folder in (self.outputs, self.uploads, self.home, *self._model_paths(), Path.home()):
            if folder.name:  # not the root
                text = text.replace(f"{folder}{os.sep}", "").replace(str(folder), folder.name)
        return " ".join(text.split())

    def _model_paths(self) -> Iterator[Path]:
        for folders in (self.models, *self.adapters().values(), self.folders):
            yield from folders
        yield from filter(None, [self.index, self.styles, self.wildcards])
        yield from BUNDLED.values()
