"""`reverie serve`: the page and the protocols on one port; and `reverie mcp`: tools over stdin and stdout."""

from __future__ import annotations

import ipaddress
import logging
import os
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from reverie.cli.app import complain
from reverie.cli.options import Flag, Several, Whole, say
from reverie.errors import ReverieError

if TYPE_CHECKING:
    from reverie.server.settings import Settings

Paths = Annotated[tuple[Path, ...], Parameter(negative=(), show_default=False)]


@Parameter(name="*", group="Who may ask")
@dataclass(frozen=True, kw_only=True)
class AccessOptions:
    """Choose where the server listens and who may ask."""

    host: str = "127.0.0.1"
    """Address to listen on; any other than this machine's own loopback lets others in."""
    port: Whole = 7860
    """Port; 0 takes one that is free."""
    token: Several = ()
    """Key that clients need, as Bearer token or as the password of Basic; REVERIE_TOKEN, if not given."""
    allow_origin: Several = ()
    """Other site whose pages may ask, such as https://example.org; may be given several times."""
    allow_host: Several = ()
    """Name that the server is reached by, such as that of a reverse proxy; may be given several times."""


@Parameter(name="*", group="What may be asked for")
@dataclass(frozen=True, kw_only=True)
class ServedOptions:
    """Choose what requests may name."""

    model: str | None = None
    """Model that draws where a request names none: a name in --models, a folder or a file."""
    models: Paths = ()
    """Folder of models, each of which requests may name; may be given several times."""
    loras: Paths = ()
    """Folder of LoRAs; may be given several times."""
    embeddings: Paths = ()
    """Folder of textual inversions; may be given several times."""
    controlnets: Paths = ()
    """Folder of ControlNets; may be given several times."""
    upscalers: Paths = ()
    """Folder of learned upscalers; may be given several times."""
    folders: Paths = ()
    """Folder of pictures, sounds and films that requests may start from; may be given several times."""
    styles: Path | None = None
    """A1111's styles.csv, whose styles requests may name."""
    wildcards: Path | None = None
    """Folder of wildcards: in a prompt that is a template, __animals__ is a line of its animals.txt."""
    index: Path | None = None
    """Folder of an index (`reverie index`) that the page searches with the bundled CLIP."""
    hub: Flag = False
    """Let requests name models of the hub, which are downloaded."""


@Parameter(name="*", group="Limits")
@dataclass(frozen=True, kw_only=True)
class LimitOptions:
    """Choose how much may be asked for."""

    max_queue: Whole = 256
    """Jobs that may wait; more are told to come again."""
    max_pixels: Whole = 1 << 22
    """Pixels of a picture."""
    max_tiles: Whole = 256
    """Tiles of a picture that is drawn in tiles."""
    max_steps: Whole = 150
    """Denoising steps."""
    max_count: Whole = 64
    """Pictures or clips of one job."""
    max_body: Whole = 64
    """MiB of one request."""
    time_limit: Whole = 3600
    """Seconds that a job may run."""


def serve(
    *,
    home: Path | None = None,
    access: AccessOptions = AccessOptions(),
    served: ServedOptions = ServedOptions(),
    limits: LimitOptions = LimitOptions(),
    workers: Whole = 1,
    memory: float = 8.0,
    device: str = "auto",
    dtype: str | None = None,
    ray: str | None = None,
) -> None:
    """Serve a page to draw and play on, and the protocols that programs speak.

    Parameters
    ----------
    home
        Folder for jobs and results; the user's data folder if not given.
    workers
        Processes that draw; each holds models of its own.
    memory
        GiB of models that a worker holds at once; the least recently used is let go of first.
    device
        cpu, cuda or mps; auto takes a GPU where there is one.
    dtype
        float32, float16 or bfloat16; if not given, what suits the device.
    ray
        Let Ray run the workers: "local" starts it here, else the address of a cluster that sees the same folders.
    """
    try:
        from reverie.server.app import serve as run
        from reverie.server.cluster import connect
        from reverie.server.worker import Worker
    except ModuleNotFoundError as error:
        needed = "install what it needs with: pip install 'reverie[server]'"
        raise ReverieError(f"the server needs {error.name}; {needed}") from error
    settings = read_settings(home, access, served, limits, workers, memory, device, dtype)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    if not is_loopback(settings.host):
        kept = "with a key" if settings.tokens else "WITHOUT A KEY (--token): anyone who reaches it may draw and look"
        complain(f"warning: {settings.host} lets other machines in, {kept}; traffic is not encrypted")
    hire = Worker if ray is None else connect(ray)
    run(settings, lambda address: say(f"reverie serves on {address}"), hire)


def mcp(
    *,
    home: Path | None = None,
    served: ServedOptions = ServedOptions(),
    limits: LimitOptions = LimitOptions(),
    memory: float = 8.0,
    device: str = "auto",
    dtype: str | None = None,
) -> None:
    """Offer tools to an assistant that starts this: draw, edit, animate, compare, music (Model Context Protocol).

    It needs no server. Pictures are taken from the folder it is started in, from those of --folders, and from results.

    Parameters
    ----------
    home
        Folder for results; the user's data folder if not given.
    memory
        GiB of models that are held at once; the least recently used is let go of first.
    device
        cpu, cuda or mps; auto takes a GPU where there is one.
    dtype
        float32, float16 or bfloat16; if not given, what suits the device.
    """
    try:
        import_module("mcp.server.stdio")
        from reverie.server.protocols.mcp import serve as run
    except ModuleNotFoundError as error:
        raise ReverieError(f"this needs {error.name}; install it with: pip install 'reverie[mcp]'") from error
    settings = read_settings(home, AccessOptions(), served, limits, 1, memory, device, dtype)
    logging.basicConfig(level=logging.WARNING)
    run(replace(settings, folders=(Path.cwd(), *settings.folders)))


def read_settings(
    home: Path | None,
    access: AccessOptions,
    served: ServedOptions,
    limits: LimitOptions,
    workers: int,
    memory: float,
    device: str,
    dtype: str | None,
) -> Settings:
    """Return what the options say. Raises ReverieError for a folder that is missing, and a model that is not there."""
    from reverie.server.settings import GIB, Limits, Settings  # brings pydantic, as requests do

    if workers < 1 or memory <= 0:
        raise ReverieError("workers and memory are more than nothing; give 1 or more of each")
    for name, limit in vars(limits).items():
        if limit < 1:
            raise ReverieError(f"`{name}` {limit} lets nobody draw; give 1 or more", field=name)
    models, model = _folders(served.models), served.model
    if model is not None and Path(model).exists():
        place = Path(model).absolute()
        models, model = (*models, place), place.stem if place.is_file() else place.name
    bounds = {name: getattr(limits, f"max_{name}") for name in ("queue", "pixels", "tiles", "steps", "count")}
    settings = Settings(
        home=(home or data_folder()).absolute(),
        host=access.host,
        port=access.port,
        tokens=access.token or tuple(filter(None, [os.environ.get("REVERIE_TOKEN")])),
        origins=access.allow_origin,
        hosts=access.allow_host,
        styles=_styles(served.styles),
        wildcards=_folder(served.wildcards),
        index=_folder(served.index),
        hub=served.hub,
        workers=workers,
        memory=round(memory * GIB),
        device=device,
        dtype=dtype,
        limits=Limits(**bounds, body=limits.max_body << 20, seconds=limits.time_limit),
        models=models,
        loras=_folders(served.loras),
        embeddings=_folders(served.embeddings),
        controlnets=_folders(served.controlnets),
        upscalers=_folders(served.upscalers),
        folders=_folders(served.folders),
    )
    return replace(settings, model=settings.model_for("text_to_image", model))


def _styles(file: Path | None) -> Path | None:
    from reverie.requests.templates import read_styles

    if file is not None:
        read_styles(file)  # what is wrong with it is said at once
    return None if file is None else file.absolute()


def _folder(given: Path | None) -> Path | None:
    return None if given is None else _folders((given,))[0]


def _folders(given: tuple[Path, ...]) -> tuple[Path, ...]:
    for folder in given:
        if not folder.is_dir():
            raise ReverieError(f"there is no folder '{folder}'; give one that is, or make it")
    return tuple(folder.absolute() for folder in given)


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def data_folder() -> Path:
    """Return the user's data folder for reverie: $XDG_DATA_HOME/reverie, else ~/.local/share/reverie."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "reverie"
