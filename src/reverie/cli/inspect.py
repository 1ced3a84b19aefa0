"""`reverie inspect` and `reverie convert`: what a file is, single file to folder and back; `cache`: what is kept."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from reverie.cli.options import Flag, Json, say
from reverie.errors import ReverieError, choose
from reverie.files import cache_folder, unwritable

if TYPE_CHECKING:
    from reverie.requests.records import Record


def inspect(path: Path, /, *, as_json: Json = False) -> None:
    """Tell what a file or folder of weights is, or how a picture, a film or music was made.

    Parameters
    ----------
    path
        A file of weights, a folder of a model or a CLIP, a picture, a film (a file or a folder of frames) or a sound.
    as_json
        Print one JSON object.
    """
    found = _describe(path)
    if as_json:
        say(json.dumps(found, ensure_ascii=False))
        return
    for key, value in found.items():
        if value not in (None, "", [], ()):
            say(f"{key}: {_line(key, value)}")


def _describe(path: Path) -> dict[str, Any]:
    from reverie.media.footage import ANIMATED, FILMS
    from reverie.media.pictures import FORMATS, READABLE
    from reverie.requests.films import Animation
    from reverie.requests.music import Music
    from reverie.requests.records import read_record
    from reverie.requests.texts import SOUNDS

    suffix, missing = path.suffix.lower(), None
    try:
        record = read_record(path)
    except ReverieError as error:
        record, missing = None, error
    if record is not None and isinstance(record.request, Music):
        return {"path": str(path), "kind": "music", **_describe_record(record)}
    if suffix in FILMS or suffix in ANIMATED - FORMATS.keys() or (record and isinstance(record.request, Animation)):
        return _film(path, record)
    if suffix not in READABLE and suffix not in SOUNDS and not _seems_picture(path):
        return _weights(path)
    return (_sound if suffix in SOUNDS else _picture)(path, record, missing)


def _sound(path: Path, record: Record | None, missing: ReverieError | None) -> dict[str, Any]:
    from reverie.media import sound  # brings torch, which takes seconds

    heard = sound.read(path)
    form = {"seconds": round(heard.seconds, 3), "rate": heard.rate, "channels": heard.channels}
    why = {} if missing is None else {"not_honoured": [str(missing)]}
    return {"path": str(path), "kind": "sound", **form, **_describe_record(record), **why}


def _seems_picture(path: Path) -> bool:
    """Tell whether a file of another suffix is a picture: by what it begins with, or by a suffix that Pillow knows."""
    from PIL import Image

    from reverie.media.pictures import other_kind
    from reverie.requests.adapter_files import SUFFIXES

    suffix = path.suffix.lower()
    if path.is_dir() or suffix in SUFFIXES:
        return False
    return other_kind(path) is not None or suffix in Image.registered_extensions()


def _picture(path: Path, record: Record | None, missing: ReverieError | None) -> dict[str, Any]:
    from reverie.media.pictures import SPECTROGRAM, open_picture

    picture = open_picture(path)
    kind = "spectrogram" if any(tag in SPECTROGRAM for tag in picture.getexif()) else "picture"
    size = {"width": picture.width, "height": picture.height}
    why = {} if missing is None else {"not_honoured": [str(missing)]}
    return {"path": str(path), "kind": kind, **size, **_describe_record(record), **why}


def _describe_record(record: Record | None) -> dict[str, Any]:
    """Tell how something was made."""
    if record is None:
        return {"model": None, "request": None}
    fields = {"model": record.model, "not_honoured": list(record.notes), "request": record.request.to_record()}
    return fields | ({} if record.film is None else {"film": record.film.to_record()})


def _film(path: Path, record: Record | None) -> dict[str, Any]:
    from reverie.media import footage

    film = footage.read(path)
    fields = {"path": str(path), "kind": "film", "width": film.size[0], "height": film.size[1]}
    fields |= {"frames": film.count, "fps": None if film.count == 1 else film.fps}  # a contact sheet has no rate
    return fields | _describe_record(record)


def _weights(path: Path) -> dict[str, Any]:
    from reverie.checkpoints.description import describe  # brings torch, which takes seconds

    return asdict(describe(path))


def _line(key: str, value: Any) -> str:
    """Write a value for people."""
    if key == "size":
        return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"
    if key == "resolution":
        return f"{value} px"
    if isinstance(value, dict):
        return json.dumps({k: v for k, v in value.items() if v not in (None, [], ())}, ensure_ascii=False)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and key in ("parameters", "tensors") else str(value)


def convert(
    source: str,
    target: Path,
    /,
    *,
    dtype: str | None = None,
    config: str | None = None,
    prediction: str | None = None,
    ema: Flag = False,
    force: Flag = False,
) -> None:
    """Write a model as a single file or as a folder in diffusers' layout, to the bit where no dtype is given.

    Parameters
    ----------
    source
        A single file (.safetensors, .ckpt), or a folder in diffusers' layout.
    target
        A name that ends in .safetensors for a single file, or one without suffix for a folder.
    dtype
        float32, float16 or bfloat16; if not given, that of each weight.
    config
        What a single file is, where it does not tell: sd15, sdxl, ...; an unknown name lists them all.
    prediction
        What a single file predicts, where it does not say: eps, v, v_zsnr, x0, edm, edm_v, flow.
    ema
        Take the running averages of the U-Net's weights, where the file has them.
    force
        Write over a target that is there.
    """
    from reverie.checkpoints import convert as checkpoints  # brings torch, which takes seconds
    from reverie.errors import choose
    from reverie.runtime.transform import DTYPES

    kind = None if dtype is None else choose("dtype", dtype, DTYPES)
    checkpoints.convert(source, target, dtype=kind, config=config, prediction=prediction, ema=ema, overwrite=force)
    say(str(target))


DEEP = ("packed",)  # folders of which every one inside is listed: one a model


def cache(*, clear: Annotated[str | None, Parameter(show_default=False)] = None) -> None:
    """List what is kept between runs, with sizes: packed weights, one line a model, compiled kernels, frames, profiles.

    Parameters
    ----------
    clear
        Remove one of the lines by its name, or "all".
    """
    root = cache_folder()
    kept = {str(path.relative_to(root)): path for path in _kept_paths(root)}
    if clear is None:
        sizes = {name: _size(path) for name, path in kept.items()}
        for name, size in sizes.items():
            say(f"{size / 1e6:10.1f} MB  {name}")
        say(f"{sum(sizes.values()) / 1e6:10.1f} MB  in '{root}'")
        return
    choices = {"all": list(kept.values()), **{name: [path] for name, path in kept.items()}}
    for path in choose("name", clear, choices):
        with unwritable(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _kept_paths(root: Path) -> list[Path]:
    paths = sorted(root.iterdir()) if root.is_dir() else []
    return [inner for path in paths for inner in (sorted(path.iterdir()) if path.name in DEEP else [path])]


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
