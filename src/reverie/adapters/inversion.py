"""How is a learned word given to a model? Its vectors join the embedding table, and leave it again (Gal et al. 2022).

Both layouts are read: AUTOMATIC1111's {name, string_to_param: {"*": vectors}} and diffusers' {word: vectors}; SDXL's
files hold `clip_l` and `clip_g`, one table of vectors for each encoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reverie.checkpoints.weights import Source, open_source
from reverie.errors import ReverieError
from reverie.system import StableDiffusion

SUFFIXES = (".safetensors", ".pt", ".bin", ".pth", ".ckpt")
ENCODERS = ("clip_l", "clip_g")
NAMELESS = ("*", "emb_params", "string_to_param.*")  # the tensors of a word that only the file names

Words = Mapping[int, Sequence[tuple[tuple[int, ...], tuple[int, ...]]]]
"""By first token: the tokens of a word, and the tokens that stand for its vectors; longer words first."""


@dataclass(frozen=True, eq=False)
class Inversion:
    """Hold the words that call an inversion, and its vectors: one table, or one for each of SDXL's encoders."""

    names: tuple[str, ...]
    vectors: tuple[Float[Tensor, "v d"], ...]


def load_all(paths: Sequence[str | Path]) -> tuple[Inversion, ...]:
    """Read inversions from files, or all those in a folder."""
    files: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES) if path.is_dir() else [path]
        files += inside
    return tuple(load(file) for file in files)


def load(file: str | Path) -> Inversion:
    """Read an inversion; it answers to its file's name and, in diffusers' layout, to its own.

    Raises ReverieError where the file is missing, damaged or holds something else.
    """
    file = Path(file)
    if not file.is_file():
        raise ReverieError(f"no textual inversion at '{file}': there is no such file")
    source = open_source(file)
    names = [name for name in source.names() if not name.startswith("string_to_token")]
    if set(names) == set(ENCODERS):
        return Inversion((file.stem,), tuple(_vectors(source, name, file) for name in ENCODERS))
    if len(names) != 1:
        told = ", ".join(sorted(names)[:3]) or "nothing"
        raise ReverieError(f"'{file}' is no textual inversion: it holds {told}; give a file with one word's vectors")
    own = () if names[0] in (*NAMELESS, file.stem) else (names[0],)
    return Inversion((file.stem, *own), (_vectors(source, names[0], file),))


def _vectors(source: Source, name: str, file: Path) -> Float[Tensor, "v d"]:
    vectors = source.tensor(name)
    vectors = vectors[None] if vectors.ndim == 1 else vectors
    if vectors.ndim != 2 or not vectors.is_floating_point() or not len(vectors):
        shape = tuple(vectors.shape)
        raise ReverieError(f"'{file}' is no textual inversion: '{name}' has shape {shape}, not (vectors, width)")
    return vectors


@contextmanager
def apply(system: StableDiffusion, inversions: Sequence[Inversion]) -> Iterator[tuple[Words, ...]]:
    """Give a model the inversions' words; yield, for each encoder, which tokens stand for them.

    Inside, the embedding tables are longer ones; after, the very same as before. Nothing changes where there are no
    inversions. Raises ReverieError, before anything is changed, for one that was made for another family.
    """
    embeddings = [tower.text_model.embeddings.token_embedding for tower in system.text_encoders]
    tables = [_table(system, inversion) for inversion in inversions]
    originals = [embedding.weight for embedding in embeddings]
    try:
        if inversions:
            for encoder, embedding in enumerate(embeddings):
                added = [table[encoder].to(embedding.weight) for table in tables]
                embedding.weight = nn.Parameter(torch.cat([embedding.weight.detach(), *added]), requires_grad=False)
        yield tuple(
            _words(system, encoder, len(originals[encoder]), inversions, [len(table[encoder]) for table in tables])
            for encoder in range(len(embeddings))
        )
    finally:
        for embedding, original in zip(embeddings, originals, strict=True):
            embedding.weight = original


def _table(system: StableDiffusion, inversion: Inversion) -> tuple[Tensor, ...]:
    """Return the vectors for each of the model's encoders; SDXL's refiner has the second alone."""
    widths = [tower.config.hidden_size for tower in system.text_encoders]
    vectors = inversion.vectors
    if len(vectors) > len(widths) == 1 and system.unet.config.projection_input_dim is not None:
        vectors = vectors[-1:]
    given = [table.shape[1] for table in vectors]
    if given != widths:
        told, asked = (" and ".join(map(str, numbers)) for numbers in (given, widths))
        raise ReverieError(
            f"textual inversion '{inversion.names[0]}' has vectors of width {told}, this model's text encoders take "
            f"{asked}; give one that was made for this family"
        )
    return vectors


def _words(
    system: StableDiffusion, encoder: int, first: int, inversions: Sequence[Inversion], counts: Sequence[int]
) -> Words:
    """Number the vectors on from the vocabulary, and look up the tokens of the words."""
    words: dict[int, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {}
    for inversion, count in zip(inversions, counts, strict=True):
        vectors = tuple(range(first, first + count))
        first += count
        for name in inversion.names:
            ids = tuple(system.tokenizers[encoder].encode(name))
            if ids:
                words.setdefault(ids[0], []).append((ids, vectors))
    return {token: sorted(found, key=lambda word: -len(word[0])) for token, found in words.items()}
