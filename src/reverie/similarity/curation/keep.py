"""Shards of the kept samples: copied as they were, with the words counted on the way."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from reverie.errors import ReverieError
from reverie.files import write_text
from reverie.similarity.curation.samples import Sample, read_samples, write_samples
from reverie.similarity.curation.spread import Message

# A word is a run of letters; Chinese, Japanese and Korean have no spaces between words, so there each sign counts.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\d_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


@dataclass(frozen=True)
class Keeping:
    """Write what is kept of a shard: call it with the shard's path. It goes to other processes as it is."""

    folder: Path
    """Where NAME.jsonl has a line for each sample, in order, and NAME.tar goes."""

    def __call__(self, shard: str) -> Message:
        """Copy the samples whose line names no reason, if that is not done; return the counts of both sorts' words.

        A shard of which nothing is kept is not written: readers of webdataset take an empty one for damaged.
        """
        path = Path(shard)
        listed = (self.folder / f"{path.stem}.jsonl").read_bytes()
        told = path.stat()
        state = hashlib.sha256(b"%d %d " % (told.st_size, told.st_mtime_ns) + listed).hexdigest()
        stats = self.folder / f"{path.stem}_stats.json"
        target = self.folder / f"{path.stem}.tar"
        lines = [json.loads(line) for line in listed.splitlines()]
        kept = [line for line in lines if not line["reason"]]
        if _state(stats) != state or (bool(kept) and not target.is_file()):
            stats.unlink(missing_ok=True)
            target.unlink(missing_ok=True)
            if kept:
                write_samples(target, _kept(path, lines))
            summary = {"count": len(lines), "successes": len(kept), "source": path.name, "state": state}
            write_text(stats, json.dumps(summary, indent=1))
        return {"shard": shard, "kept": len(kept), "words_kept": _words(kept), "words_all": _words(lines)}


def _kept(shard: Path, lines: list[Message]) -> Iterator[Sample]:
    """Read again the samples that are kept; the part of a damaged shard that was not measured is left out."""
    left = iter(lines)
    samples = read_samples(shard)
    for line in left:
        sample = next(samples, None)
        if sample is None or sample.key != line["key"]:
            raise ReverieError(f"the shard '{shard}' changed while it was read; run it again")
        if not line["reason"]:
            yield sample


def words(text: str) -> Iterator[str]:
    """Give the words of a text, in lower case."""
    return (found.group().lower() for found in WORD.finditer(text))


def _words(lines: list[Message]) -> dict[str, int]:
    return dict(sorted(Counter(word for line in lines for word in words(line["text"] or "")).items()))


def _state(stats: Path) -> str:
    try:
        return json.loads(stats.read_text(encoding="utf-8"))["state"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
