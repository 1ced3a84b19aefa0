"""What does a shard hold, and how is a part of it written again? Samples of neighbouring members of one key."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from reverie.data.captioned import PICTURES
from reverie.errors import ReverieError
from reverie.media.pictures import beside

LARGEST_MEMBER = 1 << 28  # bytes: what says that it is larger is no picture to learn from


@dataclass(frozen=True)
class Sample:
    """Hold the files of one key, by their endings."""

    key: str
    files: tuple[tuple[str, bytes], ...]
    """Names in the tar and contents, in the shard's order."""

    def content(self, *endings: str) -> bytes | None:
        """Return the first file of one of these endings."""
        found = {name.rpartition("/")[2].partition(".")[2].lower(): content for name, content in self.files}
        return next((found[ending] for ending in endings if ending in found), None)

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
    key, files = "", list[tuple[str, bytes]]()
    try:
        with tarfile.open(shard) as tar:
            for member in tar:
                if not member.isreg() or member.sparse is not None or member.size > LARGEST_MEMBER:
                    continue
                folder, _, name = member.name.rpartition("/")
                stem = f"{folder}/{name.partition('.')[0]}"
                if stem != key and files:
                    yield Sample(key.lstrip("/"), tuple(files))
                    files = []
                key = stem
                stream = tar.extractfile(member)
                if stream is not None:
                    files.append((member.name, stream.read()))
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise ReverieError(f"the shard '{shard}' is damaged: {error}") from error
    if files:
        yield Sample(key.lstrip("/"), tuple(files))


def write_samples(shard: Path, samples: Iterable[Sample]) -> int:
    """Write samples as a shard, beside and then renamed, and return how many; the same samples give the same bytes."""
    count = 0
    with beside(shard) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
        for sample in samples:
            for name, content in sample.files:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            count += 1
    return count
