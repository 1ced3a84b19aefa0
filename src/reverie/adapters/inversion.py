"""Textual inversion: a learned word's vectors join the embedding table, and leave it again (Gal et al. 2208.01618).

The layouts are AUTOMATIC1111's {name, string_to_param: {"*": vectors}}, diffusers' {word: vectors}, SDXL's `clip_l` and
`clip_g`, one table of vectors for each encoder, and OneTrainer's (`emp_params`, spelled so), whose `..._out` vectors
stand in the encoder's output where the word stands in the prompt. A LoRA may bundle several (`bundle_emb.WORD...`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reverie.checkpoints.adapter_keys import BUNDLED
from reverie.checkpoints.weights import Source, open_source
from reverie.errors import ReverieError
from reverie.requests.adapter_files import weights_file
from reverie.system import StableDiffusion

ENCODERS = ("clip_l", "clip_g")
NAMELESS = ("*", "emb_params", "emp_params")  # the tensors of a word that only the file names
NESTED = "string_to_param."
OUTPUT = "_out"
IGNORED = ("string_to_token",)

Words = Mapping[int, Sequence[tuple[tuple[int, ...], tuple[int, ...]]]]
"""By first token: the tokens of a word, and the tokens that stand for its vectors; longer words first."""


@dataclass(frozen=True, eq=False)
class Inversion:
    """Hold the words that call an inversion, and its vectors: one table, or one for each of SDXL's encoders.

    `outputs` are tables, or None, that stand in the encoders' outputs; `notes` say what of the file was left out.
    """

    names: tuple[str, ...]
    vectors: tuple[Float[Tensor, "v d"], ...]
    outputs: tuple[Float[Tensor, "v d"] | None, ...] = ()
    notes: tuple[str, ...] = ()


def load_all(paths: Iterable[Path], adapters: Iterable[Path] = ()) -> tuple[Inversion, ...]:
    """Read inversions from files, and those that are bundled with LoRAs."""
    bundled = [inversion for path in adapters for inversion in load_bundled(path)]
    return (*map(load, paths), *bundled)


def load(file: str | Path) -> Inversion:
    """Read an inversion; it answers to its file's name and, where the file names its word, to that.

    Raises ReverieError where the file is missing, damaged or holds something else.
    """
    file = Path(file)
    if not file.is_file():
        raise ReverieError(f"no textual inversion at '{file}': there is no such file")
    source = open_source(file)
    return _read(source, {name: name for name in source.names() if not name.startswith(IGNORED)}, file, file.stem)


def load_bundled(path: Path) -> list[Inversion]:
    """Read the inversions that a LoRA brings with it; each answers to the word that its keys name."""
    file = weights_file(path)
    if not file.is_file():
        return []
    source = open_source(file)
    words: dict[str, dict[str, str]] = {}
    for key in source.names():
        if key.startswith(BUNDLED):
            word, _, name = key.removeprefix(BUNDLED).partition(".")
            words.setdefault(word, {})[name] = key
    return [_read(source, names, file, word) for word, names in words.items()]


def _read(source: Source, names: Mapping[str, str], file: Path, word: str) -> Inversion:
    """Read one word's vectors; `names` gives the key of each tensor."""
    tables = list(dict.fromkeys(name.removesuffix(OUTPUT) for name in names))
    wanted = [name for name in ENCODERS if name in tables] or _single(source, names, tables)
    if not wanted:
        held = ", ".join(sorted(names)[:3]) or "nothing"
        raise ReverieError(f"'{file}' is no textual inversion: it holds {held}; give a file with one word's vectors")
    placed = tuple(_vectors(source, names[name + OUTPUT], file) if name + OUTPUT in names else None for name in wanted)
    vectors = tuple(
        _vectors(source, names[name], file) if output is None or name in names else torch.zeros_like(output)
        for name, output in zip(wanted, placed, strict=True)  # nothing beside an output, as it was trained
    )
    rest = [name for name in names if name.removesuffix(OUTPUT) not in wanted]
    notes = (f"'{file.name}': {', '.join(rest[:3])} is left out, beside the vectors of '{word}'",) if rest else ()
    own = () if _plain(wanted[0]) in (*NAMELESS, *ENCODERS, word) else (_plain(wanted[0]),)
    return Inversion((word, *own), vectors, placed if any(table is not None for table in placed) else (), notes)


def _single(source: Source, names: Mapping[str, str], tables: Sequence[str]) -> list[str]:
    """Return the only table that can be a word's; none where several can."""
    marked = [name for name in tables if name.startswith(NESTED) or name in NAMELESS]
    fitting = [name for name in tables if name not in names or len(source.shape(names[name])) in (1, 2)]
    found = marked or (fitting if len(tables) > 1 else tables)
    return list(found) if len(found) == 1 else []


def _plain(name: str) -> str:
    return name.removeprefix("string_to_param.").removeprefix("_parameters.")


def _vectors(source: Source, name: str, file: Path) -> Float[Tensor, "v d"]:
    vectors = source.tensor(name)
    vectors = vectors[None] if vectors.ndim == 1 else vectors
    if vectors.ndim != 2 or not vectors.is_floating_point() or not len(vectors):
        shape = tuple(vectors.shape)
        raise ReverieError(f"'{file}' is no textual inversion: '{name}' has shape {shape}, not (vectors, width)")
    return vectors


def outputs(system: StableDiffusion, inversions: Sequence[Inversion]) -> tuple[Mapping[int, Tensor], ...]:
    """Return, for each encoder, what stands in its output at a token of an inversion, numbered as by `apply`."""
    found: list[dict[int, Tensor]] = []
    for encoder, tower in enumerate(system.text_encoders):
        first, rows = len(tower.text_model.embeddings.token_embedding.weight), dict[int, Tensor]()
        for inversion in inversions:
            count = len(_table(system, inversion)[encoder])
            given = inversion.outputs[encoder - len(system.text_encoders)] if inversion.outputs else None
            rows |= {first + row: vector for row, vector in enumerate(given if given is not None else ())}
            first += count
        found.append(rows)
    return tuple(found)


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
    if len(vectors) > len(widths) == 1 and system.unet.config.takes_sizes:
        vectors = vectors[-1:]
    given = [table.shape[1] for table in vectors]
    if given != widths:
        has, asked = (" and ".join(map(str, numbers)) for numbers in (given, widths))
        raise ReverieError(
            f"textual inversion '{inversion.names[0]}' has vectors of width {has}, this model's text encoders take "
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
