"""Shards of captioned pictures encoded ahead, by processes or machines, to be learned from without them.

What is made of a shard depends on it and the model alone, so all of it is the same to the bit however it is spread. See
`encoded` for the files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from reverie import system
from reverie.checkpoints.load import Components
from reverie.data.captioned import open_captioned, shards_at
from reverie.data.remote import RemoteShard, Unreachable
from reverie.errors import ReverieError, listen
from reverie.files import PART, SHARD, lock_folder, name_of, sha256_of, write_text
from reverie.progress import Progress
from reverie.runtime import one_thread
from reverie.similarity.curation.samples import Message, Spread, here
from reverie.train.encoded import LINES, STATS, TENSORS, TEXTS
from reverie.train.examples import Pictures
from reverie.train.folders import open_pictures
from reverie.train.kept import keep
from reverie.train.latents import NothingLeft, encoder_digest, open_pool
from reverie.train.texts import encoders_digest, fill, number_captions, sizes_of


@dataclass(frozen=True)
class EncodingProgress(Progress):
    """How far encoding is, in shards: how many `pictures` the latest gave, and what was `left_out` of it."""

    pictures: int = 0
    left_out: tuple[str, ...] = ()


def encode(
    source: str | Path,
    folder: Path,
    *,
    size: int = 0,
    buckets: int = 0,
    texts: bool = False,
    spread: Spread = here,
    **options: Any,
) -> Iterator[EncodingProgress]:
    """Encode the pictures of shards into the files of a folder, and yield how far it is as each shard is finished.

    They are cut to squares of `size` pixels, 0 for the model's, or keep their shapes, with sides of multiples of
    `buckets` pixels; `texts` encodes captions too. `options` are those of `system.load`, for the model whose
    autoencoder and text encoders do it. A shard that is finished is not encoded again. Raises ReverieError where there
    are no shards, or the folder holds what was made of others.
    """
    shards = [one.url if isinstance(one, RemoteShard) else str(one.absolute()) for one in shards_at(source)]
    if not shards:
        raise ReverieError(f"no shards in '{source}'; give a folder that holds 00000.tar, such as img2dataset writes")
    worker = EncodeWorker(folder.absolute(), tuple(sorted(options.items())), size, buckets, texts)
    paths = [worker.path(shard) for shard in shards]
    if len(set(paths)) < len(paths):
        raise ReverieError(f"shards in {source} have the same name; encode them into several folders")
    with lock_folder(folder):
        for path in folder.glob(f"*{STATS}"):
            if path.absolute() not in paths:
                raise ReverieError(
                    f"'{folder}' holds what was encoded of other shards ({path.name}); give another folder"
                )
        yield EncodingProgress(0, len(shards), "shards")
        for done, message in enumerate(spread(worker, shards), 1):
            yield EncodingProgress(done, len(shards), "shards", message["pictures"], tuple(message["notes"]))


class Encoders(NamedTuple):
    """A model, and the digests of its autoencoder's encoder and of its text encoders."""

    components: Components
    encoder: str
    texts: str


@dataclass(frozen=True)
class EncodeWorker:
    """Encode a shard: call it with its name. It goes to other processes."""

    folder: Path
    options: tuple[tuple[str, Any], ...]
    size: int
    buckets: int
    texts: bool

    def __call__(self, shard: str) -> Message:
        """Encode what is not encoded yet; return how many pictures there are, and what was left out."""
        model = _load(self.options)
        factor = model.components.autoencoder.factor
        size = self.size or model.components.unet.config.sample_size * factor
        for name, sides in (("size", size), ("buckets", self.buckets)):
            if sides % factor:
                raise ReverieError(f"`{name}` {sides} is not possible; give a multiple of {factor}")
        notes: list[str] = []
        with listen(notes.append), one_thread():
            try:
                made_of = [open_captioned(shard).identity, *model[1:], size, self.buckets, self.texts]
                key = sha256_of([json.dumps(made_of)])
                stats = _read_stats(self.path(shard))
                opened = {} if stats.get("made_of") == key else open_pictures(shard, "", size, self.buckets)
            except Unreachable:
                raise
            except ReverieError as error:
                self._forget(self.path(shard))
                return {"pictures": 0, "notes": [f"{error}; the shard is left out"]}
            if opened:
                stats = self._encode(self.path(shard), opened, model, key, notes)
        return {"pictures": stats["pictures"], "notes": stats["notes"]}

    def path(self, shard: str) -> Path:
        """Return the file that tells of a shard."""
        return self.folder / (name_of(shard.partition("?")[0]).removesuffix(SHARD) + STATS)

    def _forget(self, path: Path) -> None:
        """Remove what was made of a shard before, its statistics first."""
        names = _read_stats(path).get("rows", {})
        path.unlink(missing_ok=True)
        for file in (f"{name}{end}" for name in names for end in (TENSORS, LINES)):
            (self.folder / file).unlink(missing_ok=True)
        (self.folder / (path.name.removesuffix(STATS) + TEXTS)).unlink(missing_ok=True)

    def _encode(
        self, path: Path, opened: dict[str, Pictures], model: Encoders, key: str, notes: list[str]
    ) -> dict[str, Any]:
        """Write all files of a shard; its statistics come last, so that what has some is whole."""
        stem, count = path.name.removesuffix(STATS), 0
        rows: dict[str, str] = {}
        self._forget(path)
        captions = number_captions(opened.values()) if self.texts else {}
        for pictures in opened.values():
            shape = "x".join(map(str, pictures.size))
            name = f"{stem}-{shape}" if self.buckets else stem
            try:
                count += self._write(name, pictures, model.components, captions, key)
                rows[name] = shape
            except NothingLeft as error:
                notes.append(str(error))
        if self.texts:
            for _ in fill(model.components, captions, self.folder / f"{stem}{TEXTS}"):
                pass
        stats = {
            "pictures": count,
            "notes": [*dict.fromkeys(notes)],
            "rows": rows,
            "made_of": key,
            "encoder": model.encoder,
            "texts": model.texts if self.texts else "",
            "length": model.components.tokenizers[0].length,
            "width": sum(tower.config.hidden_size for tower in model.components.text_encoders),
            "sized": model.components.unet.config.takes_sizes,
        }
        write_text(path, json.dumps(stats, indent=1, ensure_ascii=False))
        return stats

    def _write(self, name: str, pictures: Pictures, components: Components, captions: dict[str, int], key: str) -> int:
        """Write the latents and the lines of pictures of one size, but for those that cannot be read; count them."""
        scratch = self.folder / f".{name}{PART}{TENSORS}"
        found, latents = open_pool(components.autoencoder, pictures, scratch)
        keep(latents, key, self.folder / f"{name}{TENSORS}")
        scratch.unlink()
        assert isinstance(found, Pictures)
        sizes = sizes_of(components, found)
        lines = []
        for index in range(len(found)):
            line: dict[str, Any] = {"caption": found.caption(index, 0), "place": found.place(index)}
            line |= {"text": captions[line["caption"]]} if captions else {}
            lines.append(json.dumps(line | ({} if sizes is None else {"sizes": sizes[index].tolist()})))
        write_text(self.folder / f"{name}{LINES}", "\n".join(lines) + "\n")
        return len(lines)


@lru_cache(1)
def _load(options: tuple[tuple[str, Any], ...]) -> Encoders:
    model = system.load(dtype="float32", fast=False, **{"path": None} | dict(options))
    for network in (model.autoencoder, *model.text_encoders):
        network.requires_grad_(False)
    return Encoders(Components(**vars(model)), encoder_digest(model.autoencoder), encoders_digest(model.text_encoders))


def _read_stats(path: Path) -> dict[str, Any]:
    try:
        stats = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stats if isinstance(stats, dict) else {}
