"""References: the files that a request names, found by a policy given from outside, recorded by name and SHA-256.

Where a request takes a picture, a sound or a film, give its path, or for pictures and sounds the thing itself or a data
URL. What may be named as a path is for the `Resolver` in force to say: any path on the command line and in Python, and
on a server what `AllowedFolders` allows. Metadata holds names and sums alone, so a file read again is looked for beside
the file that names it (`looking_in`), and is told apart from another of that name by its sum.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar
from urllib.parse import quote, unquote

from PIL import Image
from pydantic import AfterValidator, Field, PlainSerializer, SerializationInfo, model_serializer, model_validator

from reverie.errors import ReverieError
from reverie.files import name_of, path_sha256, reason_of
from reverie.media.masks import PAINTED
from reverie.media.pictures import READABLE, decode, open_picture, png_bytes
from reverie.requests.adapter_files import SUFFIXES, parse
from reverie.requests.base import RECORDED, Frozen

if TYPE_CHECKING:
    from reverie.media.sound import Sound

DATA_URL = "data:"
HUB_PARTS = 2  # owner/name
ASSETS = Path(__file__).parents[1] / "assets"
# What the bundled models are asked for and told by.
BUNDLED_NAME, TURBO_NAME = "reverie-emoji", "reverie-turbo"
MUSIC_NAME, MUSIC_TURBO_NAME = "reverie-music", "reverie-music-turbo"
BUNDLED = {
    BUNDLED_NAME: ASSETS / "bundled",
    TURBO_NAME: ASSETS / "turbo",
    MUSIC_NAME: ASSETS / "music",
    MUSIC_TURBO_NAME: ASSETS / "music-turbo",
}
# The parts that the first lacks are the second's.
SHARED = {BUNDLED[TURBO_NAME]: BUNDLED[BUNDLED_NAME], BUNDLED[MUSIC_TURBO_NAME]: BUNDLED[MUSIC_NAME]}
CLIP_NAME, CLIP_FOLDER = "reverie-clip", ASSETS / "clip"
OWNERS = (BUNDLED_NAME, TURBO_NAME)  # of an IP-Adapter, by which they vary pictures
MODEL_FOLDERS = "REVERIE_MODEL_DIR"  # the variable with the folders where the models that a record names are

Resolver = Callable[[str, str], str]
"""(what is named, its name) -> the path. What: picture, sound, film, model, controlnet, lora, embedding or folder."""


def locate_model(name: str | Path) -> Path:
    """Return the folder of a bundled model, or of the bundled CLIP, by its name; any other name is a path."""
    return CLIP_FOLDER if str(name) == CLIP_NAME else BUNDLED.get(str(name), Path(name))


def locate_part(folder: Path, part: str) -> Path:
    """Return where a part of a model in diffusers' layout is: in its folder, or in that of the model it shares with."""
    own = folder / part
    return own if own.exists() else SHARED.get(folder, folder) / part


def any_path(what: str, name: str) -> str:
    """Take every name for a path, as on the command line."""
    return name


@dataclass(frozen=True)
class AllowedFolders:
    """A resolver for a server: names are paths inside the folders of what is named, and nothing else is.

    The answer is the same for a file that is missing and for one that is forbidden.
    """

    folders: Mapping[str, Sequence[Path]]

    def __call__(self, what: str, name: str) -> str:
        """Return the file of a name. Raises ReverieError where no folder holds it."""
        for folder in self.folders.get(what, ()):
            path = Path(os.path.normpath(folder / name))  # what links inside lead to, their owner allows
            with suppress(OSError):  # a name that is too long
                if "\0" not in name and path != folder and path.is_relative_to(folder) and path.exists():
                    return str(path)
        raise ReverieError(
            f"there is no {what} '{name}' here", hint="give a name that is, or the content as a data URL"
        )


_RESOLVER: ContextVar[Resolver] = ContextVar("resolver", default=any_path)
_FOLDERS: ContextVar[tuple[Path, ...]] = ContextVar("folders", default=())


@contextmanager
def resolving(resolver: Resolver) -> Iterator[None]:
    """Let requests made in this context name what a resolver allows."""
    before = _RESOLVER.set(resolver)
    try:
        yield
    finally:
        _RESOLVER.reset(before)


@contextmanager
def looking_in(*folders: Path) -> Iterator[None]:
    """Look for recorded files in folders first, such as that of the picture that names them."""
    before = _FOLDERS.set(folders)
    try:
        yield
    finally:
        _FOLDERS.reset(before)


def plain_name(model: str) -> str:
    """Return the name of a model that drew a file, without its hash and what it computed in."""
    bundled = model.partition(" in ")[0]
    return bundled if bundled in BUNDLED else model.partition(" [")[0]


def recorded_name(name: str) -> str:
    """Return what metadata says of a model's name: of a file or folder its last part, of the hub's names the whole."""
    return name_of(name) if Path(name).exists() or len(re.split(r"[\\/]", name)) != HUB_PARTS else name


def _candidates(what: str, name: str) -> Iterator[Path]:
    """Yield the files that a recorded name may stand for."""
    inside = (folder / name_of(name) for folder in _FOLDERS.get())
    yield from (path for path in inside if path.exists())
    try:
        path = Path(_RESOLVER.get()(what, name))
    except ReverieError:
        return
    if path.exists():
        yield path


class FileReference(Frozen):
    """A file that a request names, by its name without folders and its SHA-256; None is the name of what had no file.

    `path` is where it was found, or None, and `changed` says that what was found is another file; neither is written.
    Raises ReverieError for what is not there or not of its kind.
    """

    what: ClassVar[str] = "file"

    sha256: str
    name: str | None = None
    path: str | None = Field(default=None, repr=False)
    changed: bool = Field(default=False, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _take(cls, given: Any) -> Any:
        if isinstance(given, cls):
            return given
        if isinstance(given, Mapping):
            return cls._from_record(given)
        if isinstance(given, str) and given.startswith(DATA_URL):
            name = name_in(given)
            return cls._from_bytes(content_of(given, cls.what)) | ({} if name is None else {"name": name})
        if isinstance(given, str | Path):
            return cls._from_path(Path(_RESOLVER.get()(cls.what, str(given))))
        return cls._from_memory(given)

    @classmethod
    def _from_record(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Find the file of a record: at its path, where it says one, and by its name."""
        places, sha256 = [str(given[key]) for key in ("path", "name") if given.get(key)], given.get("sha256")
        name = name_of(places[-1]) if places else None
        changed = False
        for path in (path for place in places for path in _candidates(cls.what, place)):
            found = cls._from_path(path)
            if found["sha256"] == sha256:
                return found | {"name": name}
            changed = True
        return {"sha256": sha256, "name": name, "changed": changed}

    @classmethod
    def _from_path(cls, path: Path) -> dict[str, Any]:
        return {"sha256": path_sha256(path), "name": path.name, "path": str(path.absolute())}

    @classmethod
    def _from_bytes(cls, data: bytes) -> dict[str, Any]:
        raise ReverieError(f"a {cls.what} is given by its file's name, not as a data URL")

    @classmethod
    def _from_memory(cls, given: object) -> dict[str, Any]:
        raise ReverieError(f"{type(given).__name__} is no {cls.what}; give a path")

    @model_serializer(mode="plain")
    def _write(self, info: SerializationInfo) -> str | dict[str, str | None]:
        if info.context != RECORDED and (content := self._content()) is not None:
            return content
        where = {"name": self.name} if info.context == RECORDED or self.path is None else {"path": self.path}
        return {**where, "sha256": self.sha256}

    def _content(self) -> str | None:
        """Return the content as a data URL, where a request's own JSON holds it."""
        return None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    @property
    def is_here(self) -> bool:
        """Tell whether the file was found, or its content given."""
        return self.path is not None

    def missing(self, field: str | None = None) -> ReverieError:
        """Return the error that a field's file is not here."""
        if self.name is None:
            said = f"a {self.what} given in memory is gone (its SHA-256: {self.sha256})"
        elif self.changed:
            said = f"the {self.what} '{self.name}' has changed since (its SHA-256 was {self.sha256})"
        else:
            said = f"the {self.what} '{self.name}' is not here (its SHA-256: {self.sha256})"
        if field is not None and "." in field:
            return ReverieError(said, field=field, hint="put it beside the file that names it, or give it")
        where = "" if field is None else f" with `{field.removesuffix('_video')}`"
        return ReverieError(said, field=field, hint=f"give it{where}")

    def file(self) -> Path:
        """Return the path. Raises ReverieError where it was not found."""
        if self.path is None:
            raise self.missing()
        return Path(self.path)


class FilmFile(FileReference):
    """A film, or a folder of its frames."""

    what: ClassVar[str] = "film"


class SoundFile(FileReference):
    """A file of sound."""

    what: ClassVar[str] = "sound"


class Picture(FileReference):
    """A picture: a path, a PIL image or a data URL. `data` are its file's bytes, None where it was not found.

    In a request's own JSON it is a data URL, which says the file's name; in metadata its name and SHA-256.
    """

    what: ClassVar[str] = "picture"

    data: bytes | None = Field(default=None, repr=False)

    @classmethod
    def _from_path(cls, path: Path) -> dict[str, Any]:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ReverieError(f"cannot read '{path}': {reason_of(error)}") from error
        return cls._from_bytes(data, f"'{path}'") | {"name": path.name, "path": str(path.absolute())}

    @classmethod
    def _from_bytes(cls, data: bytes, name: str = "the picture") -> dict[str, Any]:
        decode(data, name)  # raises for what is no picture
        return {"sha256": hashlib.sha256(data).hexdigest(), "data": data}

    @classmethod
    def _from_memory(cls, given: object) -> dict[str, Any]:
        if not isinstance(given, Image.Image):
            raise ReverieError(f"{type(given).__name__} is no picture; give a path, a PIL image or a data URL")
        return cls._from_bytes(png_bytes(given))

    def _content(self) -> str | None:
        if self.data is None:
            return None
        with Image.open(io.BytesIO(self.data)) as opened:
            kind = (opened.format or "png").lower()
        named = "" if self.name is None else f";name={quote(self.name, safe='')}"
        return data_url(self.data, f"image/{kind}{named}")

    @property
    def is_here(self) -> bool:
        """Tell whether its content is known."""
        return self.data is not None

    @property
    def size(self) -> tuple[int, int] | None:
        """Return width and height in pixels, or None where it was not found."""
        return None if self.data is None else self._pixels.size

    @property
    def transparent(self) -> bool | None:
        """Tell whether some of the picture is so transparent that a mask paints it; None where it was not found."""
        if self.data is None:
            return None
        image = self._pixels
        return image.mode == "RGBA" and any(image.getchannel("A").histogram()[: 256 - PAINTED])

    def image(self) -> Image.Image:
        """Return the picture, upright, as RGB or RGBA of eight bits. Raises ReverieError where it was not found."""
        return self._pixels.copy()

    @cached_property
    def _pixels(self) -> Image.Image:
        if self.data is None:
            raise self.missing()
        return decode(self.data, None if self.name is None else f"'{self.name}'")


class SoundInput(FileReference):
    """A sound to start from, or a picture of its spectrogram: a path, a `Sound`, a PIL image or a data URL.

    A request's own JSON holds path and SHA-256: what was given in memory must be given again.
    """

    what: ClassVar[str] = "sound"

    held: Any = Field(default=None, repr=False)

    @classmethod
    def _from_path(cls, path: Path) -> dict[str, Any]:
        return super()._from_path(path) | {"held": _read(path, path.suffix.lower() in READABLE)}

    @classmethod
    def _from_bytes(cls, data: bytes) -> dict[str, Any]:
        file = io.BytesIO(data)
        try:
            return {"sha256": hashlib.sha256(data).hexdigest(), "held": open_picture(file)}
        except ReverieError:
            return {"sha256": hashlib.sha256(data).hexdigest(), "held": _read(file, picture=False)}

    @classmethod
    def _from_memory(cls, given: object) -> dict[str, Any]:
        if isinstance(given, Image.Image):
            return {"sha256": hashlib.sha256(given.tobytes()).hexdigest(), "held": given.copy()}
        from reverie.media.sound import Sound  # brings torch, which takes seconds

        if isinstance(given, Sound):
            return {"sha256": hashlib.sha256(given.samples.cpu().numpy().tobytes()).hexdigest(), "held": given}
        raise ReverieError(f"{type(given).__name__} is no sound; give a path, a Sound or a picture of a spectrogram")

    @property
    def is_here(self) -> bool:
        """Tell whether its content is known."""
        return self.held is not None

    def open(self) -> Sound | Image.Image:
        """Return the sound, or the picture of its spectrogram. Raises ReverieError where it was not found."""
        if self.held is None:
            raise self.missing()
        return self.held


def _read(file: Path | io.BytesIO, picture: bool) -> Sound | Image.Image:
    if picture:
        return open_picture(file)
    from reverie.media import sound  # brings torch, which takes seconds

    if isinstance(file, io.BytesIO):
        file.seek(0)
    return sound.read(file)


def data_url(data: bytes, media_type: str) -> str:
    """Return content as a data URL."""
    return f"{DATA_URL}{media_type};base64,{base64.b64encode(data).decode()}"


def content_of(url: str, what: str = "content") -> bytes:
    """Decode a data URL. Raises ReverieError, which says `what` it is not, for one that is damaged."""
    _, comma, text = url.partition(";base64,")
    try:
        if not comma:
            raise ValueError("no ';base64,'")
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise ReverieError(f"'{url[:32]}...' is no {what}: {error}; write data:image/png;base64,...") from error


def name_in(url: str) -> str | None:
    """Return the name of a file that a data URL says as its parameter `name`, if any."""
    found = re.match(r"data:[^,]*?;name=([^;,]+)", url)
    return name_of(unquote(found[1])) if found else None


def find_model(name: str, what: str = "model") -> str:
    """Return the path of a model; one that is recorded by its name alone is looked for beside the record."""
    inside = find_beside(name) if name == name_of(name) else None
    return _RESOLVER.get()(what, name) if inside is None else str(inside)


def find_beside(name: str) -> Path | None:
    """Return the file or folder of a name, whatever folders it was in, beside the record that is read.

    Models are looked for in those of REVERIE_MODEL_DIR too, and without their suffix. None where there is none, and
    where no record is read.
    """
    if not _FOLDERS.get():
        return None
    given = [Path(folder) for folder in os.environ.get(MODEL_FOLDERS, "").split(os.pathsep) if folder]
    names = [f"{name_of(name)}{suffix}" for suffix in ("", *SUFFIXES)]
    places = (folder / one for one in names for folder in (*_FOLDERS.get(), *given))
    return next((place for place in places if place.exists()), None)


def write_model(name: str, info: SerializationInfo) -> str:
    """Write the name of a model: in metadata without folders of this machine."""
    return recorded_name(name) if info.context == RECORDED else name


ModelName = Annotated[str, Field(min_length=1), AfterValidator(find_model), PlainSerializer(write_model)]
"""The name of a model: a file, a folder, or a name on the hub."""

ControlNetName = Annotated[
    str,
    Field(min_length=1),
    AfterValidator(partial(find_model, what="controlnet")),
    PlainSerializer(write_model),
]
"""The name of a ControlNet."""


def resolve_adapters(field: str, given: tuple[str, ...]) -> tuple[str, ...]:
    """Return LoRAs (with their weights), embeddings or folders of them as the resolver in force places them."""
    resolver = _RESOLVER.get()
    if resolver is any_path:
        return given
    paths = [str(parse(text)[0]) if field == "loras" else text for text in given]
    placed = [resolver(field.removesuffix("s"), path) for path in paths]
    return tuple(new + text[len(path) :] for text, path, new in zip(given, paths, placed, strict=True))


def references(part: Frozen) -> Iterator[tuple[str, FileReference]]:
    """Yield the files that a request or a part of one names, each after its field, such as "controls.0.image"."""
    for name in type(part).model_fields:
        value = getattr(part, name)
        many = isinstance(value, tuple)
        for index, one in enumerate(value if many else (value,)):
            field = f"{name}.{index}" if many else name
            if isinstance(one, FileReference):
                yield field, one
            elif isinstance(one, Frozen):
                yield from ((f"{field}.{inner}", found) for inner, found in references(one))
