"""Files: atomic writes, folder locks, SHA-256 fingerprints, the user's cache directory, tar shards, reasons of errors.

Everything here is independent of what the files hold.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import IO, Literal, NamedTuple, Protocol, TypeVar

from reverie.errors import ReverieError

CACHE_VARIABLE = "REVERIE_CACHE"
LOCK = ".lock"
PART = ".part"
"""Suffix of what is being written."""
SHARD = ".tar"
TAR_ERRORS = (tarfile.TarError, OSError, EOFError, ValueError, zlib.error)
"""What reading a damaged tar archive raises."""

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EPIPE: "its reader has closed it",
}
_KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)$", re.DOTALL)
_META = re.compile(r"__[^/]*__($|/)")
_OBJECT_ADDRESS = re.compile(r" *<_io\.\w+ object at 0x\w+>")


def reason_of(error: Exception) -> str:
    """Return why reading or writing failed, in a few words that are the same each time and hold no path."""
    if isinstance(error, ReverieError) and isinstance(error.__cause__, Exception):
        return reason_of(error.__cause__)
    if isinstance(error, OSError) and error.errno is not None:
        return _REASONS.get(error.errno) or (error.strerror or os.strerror(error.errno)).lower()
    if isinstance(error, MemoryError):
        return "not enough memory"
    return " ".join(_OBJECT_ADDRESS.sub("", str(error)).split())[:120] or type(error).__name__


def find_path(text: str) -> Path | None:
    """Return the file or folder that a text names; None where there is none, or it is too long to be a name."""
    try:
        return Path(text) if text and Path(text).exists() else None
    except OSError:
        return None


def read_lines(file: Path) -> list[str]:
    """Read a text file's lines, stripped. Raises ReverieError where it is none."""
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise ReverieError(f"cannot read '{file}': {reason_of(error)}") from error
    except UnicodeDecodeError as error:
        raise ReverieError(f"cannot read '{file}': it is no text in UTF-8") from error


@contextmanager
def unwritable(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Turn an OSError of the block into the ReverieError that `path` cannot be written.

    A ReverieError that names the file or folder that stands for it until then names `path`.
    """
    try:
        yield
    except ReverieError as error:
        if temporary is None or temporary.name not in str(error):
            raise
        raise ReverieError(str(error).replace(temporary.name, path.name)) from error.__cause__
    except OSError as error:
        raise ReverieError(f"cannot write '{path}': {reason_of(error)}") from error


def check_place(path: Path) -> None:
    """Raise ReverieError where no file of that name can be made: it is a folder, or its folder is missing or shut."""
    if path.is_dir():
        raise ReverieError(f"output '{path}' is a folder; give the name of a file")
    check_folder(path.parent)


def check_folder(folder: Path) -> None:
    """Raise ReverieError where there is no such folder, or no file can be made in it."""
    if not folder.is_dir():
        raise ReverieError(f"cannot write into '{folder}': there is no such folder; make it first")
    try:
        tempfile.TemporaryFile(dir=folder).close()  # root passes os.access even on a read-only disk
    except OSError as error:
        raise ReverieError(f"cannot write into '{folder}': no file can be made there ({reason_of(error)})") from error


def check_distinct(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raise ReverieError where an output is one of the inputs, by whichever name or link."""
    given = list(inputs)
    for output in outputs:
        for one in given:
            with suppress(OSError):
                if output.samefile(one):
                    raise ReverieError(f"'{output}' is an input and would be written over; name another output")


@contextmanager
def atomic_write(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Yield an empty file beside `path`; rename it over `path` when the block ends well, remove it otherwise.

    The file gets the rights that the umask allows, whatever the block does to it. `sync` waits until its content is on
    the disk (fsync), for what must outlive a power cut. An OSError of the block becomes a one-line ReverieError.
    """
    temporary = _part_of(path)
    try:
        with unwritable(path, temporary):
            temporary.touch()
            rights = temporary.stat().st_mode
            yield temporary
            if temporary.stat().st_mode != rights:  # safetensors makes files that only their owner reads
                temporary.chmod(rights)
            if sync:
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` that takes its place when the block ends well, and is removed otherwise."""
    temporary, old = _part_of(path), path.with_name(f".{path.name}.{os.getpid()}.old{PART}")
    try:
        with unwritable(path, temporary):
            temporary.mkdir()
            yield temporary
            if path.exists():
                path.rename(old)
            temporary.rename(path)
    finally:
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str, *, sync: bool = False) -> None:
    """Write a text in UTF-8, whole or not at all; names of files that are no Unicode are replaced by "?"."""
    with atomic_write(path, sync=sync) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")


def _part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}{PART}")


def sweep(path: Path) -> None:
    """Remove what processes that are no more left half written beside a file or folder of this name."""
    for left in path.parent.glob(f".{escape(path.name)}.*{PART}"):
        pid = left.name.removesuffix(PART).removesuffix(".old").rpartition(".")[2]
        if pid.isdecimal() and not _is_running(int(pid)):
            _remove(left)


def _sweep_all(folder: Path) -> None:
    for left in folder.glob(f".*{PART}"):
        _remove(left)


def _remove(path: Path) -> None:
    with suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


class InUse(ReverieError):
    """Another process holds the lock of a file or a folder."""


@contextmanager
def lock_folder(folder: Path, purpose: str = "writing") -> Iterator[None]:
    """Hold a folder, which is made if need be, against other processes; the system frees it when this process dies.

    What killed processes left half written in it is removed. Raises InUse where another process holds it, and
    ReverieError where the folder cannot be made. On Windows nothing is locked.
    """
    with unwritable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("ab")
    with file:
        lock(file, f"{purpose} '{folder}'")
        _sweep_all(folder)
        try:
            yield
        finally:
            _sweep_all(folder)  # of workers that were killed


def lock(file: IO[bytes], doing: str) -> None:
    """Lock an open file until it is closed, where the system can. Raises InUse, "another process is DOING"."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InUse(f"another process is {doing}; wait until it is done") from error


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, 64 hexadecimal digits. Raises ReverieError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ReverieError(f"cannot read '{path}': {reason_of(error)}") from error


def sha256_of(parts: Iterable[str | bytes | memoryview]) -> str:
    """Return the SHA-256 of a sequence of texts and bytes, each after its length: two sequences have one sum alone."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def cache_folder() -> Path:
    """Return the user's cache directory, which may not be there yet: $REVERIE_CACHE, else $XDG_CACHE_HOME/reverie."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reverie"


def natural_order(name: str) -> tuple[list[tuple[int, str]], str]:
    """Return a sort key that takes runs of digits for numbers: frame2 before frame10."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if place % 2 else (0, part) for place, part in enumerate(parts)], name


def list_files(folder: Path, suffixes: Container[str]) -> list[Path]:
    """Return the files of a folder with some suffixes, in lower case, in natural order; hidden ones are left out."""
    found = (file for file in folder.iterdir() if file.suffix.lower() in suffixes and file.is_file())
    return sorted((file for file in found if file.name[0] != "."), key=lambda file: natural_order(file.name))


def path_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, or of all the files in a folder."""
    if not path.is_dir():
        return file_sha256(path)
    files = sorted((file for file in path.iterdir() if file.is_file()), key=lambda file: natural_order(file.name))
    return sha256_of(file_sha256(file) for file in files)


def name_of(path: str | Path) -> str:
    """Return the last part of a path of any system."""
    return re.split(r"[\\/]", str(path).rstrip("\\/"))[-1]


class Member(NamedTuple):
    """A regular file of a tar archive: `size` bytes, of an uncompressed archive those from byte `offset` on."""

    name: str
    offset: int
    size: int
    read: Callable[[], bytes]
    """Return the content, while the archive is being iterated over."""


def tar_members(shard: Path | IO[bytes], mode: Literal["r", "r:"] = "r:") -> Iterator[Member]:
    """Read a tar archive and yield its regular files in order; mode "r" reads compressed ones too.

    Sparse files, which have no content of their own, are passed over. The last member may be cut off where the archive
    is: its `offset + size` lies beyond the end. Raises one of TAR_ERRORS.
    """
    with tarfile.open(shard, mode) if isinstance(shard, Path) else tarfile.open(None, mode, shard) as tar:
        for member in tar:
            stream = tar.extractfile(member) if member.isreg() and member.sparse is None else None
            if stream is not None:
                yield Member(member.name, member.offset_data, member.size, stream.read)


class Named(Protocol):
    """Anything with a file's name."""

    @property
    def name(self) -> str: ...


File = TypeVar("File", bound=Named)


def tar_samples(files: Iterable[File]) -> Iterator[tuple[str, dict[str, File]]]:
    """Group neighbouring files of one key: yield each key with its files by their endings, in lower case.

    The key is the path up to the first dot of the file's own name, the ending what follows it; names without a dot, and
    `__NAME__` files and folders at the top, belong to no sample. Source: webdataset 1.0.2, tariterators.py
    (base_plus_ext, tar_file_iterator, group_by_keys).
    """
    key, sample = "", dict[str, File]()
    for file in files:
        found = _KEY.match(file.name)
        if found is None or _META.match(file.name):
            continue
        if found[1] != key and sample:
            yield key, sample
            sample = {}
        key = found[1]
        sample[found[2].lower()] = file
    if sample:
        yield key, sample


@contextmanager
def tar_writer(path: Path) -> Iterator[Callable[[str, bytes], None]]:
    """Yield the function that adds a named file to an uncompressed tar archive, written atomically.

    The same files give the same bytes.
    """
    with atomic_write(path) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:

        def add(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))

        yield add
