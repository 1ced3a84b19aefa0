"""Shards that lie elsewhere: on web servers, or in stores that fsspec opens, such as s3://, gs://, hf:// or memory://.

A file is read by ranges of bytes, so item 1,234,567 costs the bytes of that item. What is known of a shard after it was
read through once, its members' places and captions, is kept in the user's cache.
"""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import httpx
import numpy as np
from jaxtyping import Int64

from reverie.errors import ReverieError
from reverie.files import SHARD, atomic_write, cache_folder, sha256_of

BLOCK = 1 << 20  # bytes that are read ahead where a shard is read through
ATTEMPTS, PAUSE = 4, 0.5  # tries of a request, and seconds before the second, which double
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
CHANGED = ("ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "created")  # fsspec's, by store
Value = TypeVar("Value")


class Unreachable(ReverieError):
    """What lies elsewhere cannot be read; unlike a damaged picture it is never passed over."""


def is_remote(path: str | Path) -> bool:
    """Tell whether a path is the address of something elsewhere."""
    return "://" in str(path)


def _is_web(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def public(url: str) -> str:
    """Return an address without keys and signatures."""
    return re.sub("//[^/]*@", "//", re.split("[?#]", url)[0])


def list_shards(url: str) -> list[RemoteShard]:
    """Find the shards that an address names: one, several as `{00000..00012}.tar`, or those of a folder.

    A web server must list its folders, in HTML. Raises Unreachable where there are none.
    """
    urls = list(_expand(url))
    if not urlsplit(url).path.endswith(SHARD):
        listing = _list_page if _is_web(url) else _list_store
        urls = [shard for folder in urls for shard in _ask(partial(listing, folder.rstrip("/")), folder)]
    if not urls:
        raise Unreachable(f"no shards in {public(url)}; give the address of a .tar, or of a folder that lists some")
    return [RemoteShard(shard, *_ask(partial(_describe, shard), shard)) for shard in urls]


def _expand(url: str) -> Iterator[str]:
    """Yield the addresses that one stands for, "{00..12}" for the numbers from 0 to 12."""
    if (found := RANGE.search(url)) is None:
        yield url
        return
    low, high = found.groups()
    for number in range(int(low), int(high) + 1):
        yield from _expand(f"{url[: found.start()]}{number:0{len(low)}}{url[found.end() :]}")


@dataclass(frozen=True)
class RemoteShard:
    """Read a tar that lies elsewhere."""

    url: str
    size: int
    changed: str = ""  # when, or a sum of its content, as its server says

    def __str__(self) -> str:
        """Name it for the reader of an error."""
        return public(self.url)

    @property
    def identity(self) -> list[object]:
        """Return name, size and when it was changed."""
        return [urlsplit(self.url).path.rpartition("/")[2], self.size, self.changed]

    def read(self, offset: int, size: int) -> bytes:
        """Read bytes. Raises Unreachable."""
        return _read(self.url, offset, size)

    def open(self) -> io.BufferedReader:
        """Return the shard as a file, read block by block."""
        return io.BufferedReader(_RangeReader(self), BLOCK)

    @property
    def kept(self) -> Path:
        """Return the file in the cache, without suffix, where what is known of the shard is kept."""
        return cache_folder() / "shards" / sha256_of([self.url, str(self.size), self.changed])[:32]


@dataclass
class RemoteIndex:
    """Gather a shard's pairs, and the captions among them; `keep` writes them into the cache."""

    shard: RemoteShard
    places: list[tuple[int, int, int, int]] = field(default_factory=list)
    captions: io.BytesIO = field(default_factory=io.BytesIO)

    def add(self, offset: int, size: int, caption: bytes) -> None:
        """Add a pair: where its file lies, and its caption."""
        self.places.append((offset, size, self.captions.tell(), len(caption)))
        self.captions.write(caption)

    def keep(self, kind: str, whole: bool) -> Int64[np.ndarray, "n 4"]:
        """Write the index of a kind of files; return where files and captions lie, these in `captions_of`.

        That of a shard which is not `whole` is made again the next time, and what is wrong with it told again.
        """
        table = np.array(self.places, np.int64).reshape(-1, 4)
        path = captions_of(self.shard, kind)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_bytes(self.captions.getvalue())
        if whole:
            with atomic_write(path.with_suffix(".npy")) as temporary, temporary.open("wb") as file:
                np.save(file, table)
        return table


def captions_of(shard: RemoteShard, kind: str) -> Path:
    """Return the file that holds the captions of a shard's files of a kind."""
    return shard.kept.with_name(f"{shard.kept.name}-{kind}.txt")


def kept_table(shard: RemoteShard, kind: str) -> Int64[np.ndarray, "n 4"] | None:
    """Return what `RemoteIndex.keep` has kept; None where it has not, or not all of it."""
    path = captions_of(shard, kind)
    try:
        table: Int64[np.ndarray, "n 4"] = np.load(path.with_suffix(".npy"), allow_pickle=False)
        return table if path.stat().st_size == table[:, 3].sum() else None
    except (OSError, ValueError, IndexError):
        return None


class _RangeReader(io.RawIOBase):
    """Read a shard as a file."""

    def __init__(self, shard: RemoteShard) -> None:
        self.shard, self.place = shard, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.shard.size}[whence]
        return self.place

    def tell(self) -> int:
        return self.place

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self.shard.size - self.place))
        buffer[:count] = self.shard.read(self.place, count) if count else b""
        self.place += count
        return count


@lru_cache(16)  # a picture's size, then its pixels
def _read(url: str, offset: int, size: int) -> bytes:
    if not size:
        return b""
    content = _ask(lambda: (_get if _is_web(url) else _cat)(url, offset, size), url)
    if len(content) != size:
        raise Unreachable(
            f"{public(url)} gave {len(content)} of {size} bytes; it was changed, or its server cuts it off"
        )
    return content


def _ask(request: Callable[[], Value], url: str) -> Value:
    """Make a request, again where it may go better; raise Unreachable, in a line, where it does not."""
    for attempt in range(ATTEMPTS):
        try:
            return request()
        except Unreachable:
            raise
        except (FileNotFoundError, PermissionError, ImportError, ValueError) as error:
            raise _unreachable(url, error) from error
        except Exception as error:  # stores have errors of their own
            if attempt == ATTEMPTS - 1:
                raise _unreachable(url, error) from error
            time.sleep(PAUSE * 2**attempt)
    raise AssertionError


def _unreachable(url: str, error: Exception) -> Unreachable:
    known: dict[type[Exception], str] = {
        FileNotFoundError: "there is no such file",
        PermissionError: "access is refused",
    }
    text = known.get(type(error)) or str(error).partition("\n")[0].replace(url, public(url)) or type(error).__name__
    return Unreachable(f"cannot read {public(url)}: {text}")


@lru_cache(1)
def _client(process: int) -> httpx.Client:
    """Return the client of a process: connections are not shared with those that it is forked into."""
    return httpx.Client(follow_redirects=True, timeout=30)


def _answer(url: str, **headers: str) -> httpx.Response:
    """Ask a web server. Raises OSError where another try may help, Unreachable where none will."""
    with _client(os.getpid()).stream("GET", url, headers=headers) as response:
        code = response.status_code
        if code in (408, 429) or code >= 500:
            raise OSError(f"its server answered {code}")
        if code >= 400:
            raise Unreachable(
                f"cannot read {public(url)}: its server answered {code} {response.reason_phrase}".rstrip()
            )
        if headers and code != 206:
            raise Unreachable(
                f"the server of {public(url)} does not give parts of files (HTTP Range); serve the shards by one that "
                "does, such as nginx, Apache or caddy"
            )
        response.read()
        return response


def _get(url: str, offset: int, size: int) -> bytes:
    return _answer(url, Range=f"bytes={offset}-{offset + size - 1}").content


def _cat(url: str, offset: int, size: int) -> bytes:
    store, path = _store(url, os.getpid())
    content: bytes = store.cat_file(path, offset, offset + size)
    return content


@lru_cache(64)
def _store(url: str, process: int) -> tuple[Any, str]:
    """Return fsspec's file system of an address and the path in it; other processes have others."""
    from fsspec.core import url_to_fs

    store, path = url_to_fs(url)
    return store, path


def _describe(url: str) -> tuple[int, str]:
    """Return the size of a file, and when it was changed."""
    if _is_web(url):
        headers = _answer(url, Range="bytes=0-0").headers
        total = headers.get("Content-Range", "").rpartition("/")[2]
        if not total.isdecimal():
            raise Unreachable(f"the server of {public(url)} does not say how large it is")
        return int(total), headers.get("ETag") or headers.get("Last-Modified") or ""
    store, path = _store(url, os.getpid())
    known = store.info(path)
    return int(known["size"]), next((str(known[name]) for name in CHANGED if known.get(name)), "")


def _list_page(url: str) -> list[str]:
    """Return the shards that a folder of a web server shows."""
    links = re.findall(r"href\s*=\s*[\"']?([^\"'?#\s>]+)", _answer(url + "/").text, re.IGNORECASE)
    shards = {urljoin(url + "/", link) for link in links if link.endswith(SHARD)}
    return sorted(shard for shard in shards if shard.startswith(url + "/"))


def _list_store(url: str) -> list[str]:
    store, path = _store(url, os.getpid())
    return [store.unstrip_protocol(shard) for shard in sorted(store.glob(f"{path}/*{SHARD}"))]
