"""Samples of webdataset shards: neighbouring members of one key, read and written again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from reverie.data.captioned import PICTURES
from reverie.errors import ReverieError
from reverie.files import TAR_ERRORS, reason_of, tar_members, tar_samples, tar_writer

LARGEST_MEMBER = 1 << 28  # bytes: what says that it is larger is no picture to learn from


class Stored(NamedTuple):
    """A file of a shard: its name in the tar, and its content."""

    name: str
    content: bytes


@dataclass(frozen=True)
class Sample:
    """Hold the files of one key, by their endings."""

    key: str
    files: Mapping[str, Stored]
    """In the shard's order."""

    def content(self, *endings: str) -> bytes | None:
        """Return the first file of one of these endings."""
        return next((self.files[ending].content for ending in endings if ending in self.files), None)

    @property
    def picture(self) -> bytes | None:
        """Return the picture's file."""
        return self.content(*PICTURES)

    @property
    def text(self) -> str | None:
        """Return the caption."""
        content = self.content("txt")
        return None if content is None else content.decode("utf-8", "replace").strip()


def find_shards(source: str | Path) -> list[Path]:
    """List the shards of a folder by name, or the one given. Raises ReverieError where there are none."""
    source = Path(source)
    shards = [source] if source.is_file() else sorted(source.glob("*.tar"))
    if not shards:
        raise ReverieError(f"no shards in '{source}'; give a folder that holds 00000.tar, such as img2dataset writes")
    return shards


def read_samples(shard: Path) -> Iterator[Sample]:
    """Read a shard's samples in order. Raises ReverieError where it is damaged, after the samples before that."""
    try:
        members = (member for member in tar_members(shard, "r") if member.size <= LARGEST_MEMBER)
        for key, files in tar_samples(Stored(member.name, member.read()) for member in members):
            yield Sample(key, files)
    except TAR_ERRORS as error:
        raise ReverieError(f"the shard '{shard}' is damaged: {reason_of(error)}") from error


def write_samples(shard: Path, samples: Iterable[Sample]) -> None:
    """Write samples as a shard; the same samples give the same bytes."""
    with tar_writer(shard) as add:
        for sample in samples:
            for stored in sample.files.values():
                add(stored.name, stored.content)
