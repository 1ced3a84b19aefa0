"""Prompt encoding: text parsed, cut into chunks of tokens as AUTOMATIC1111 does, encoded, weighted, by step."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from reverie.adapters import inversion, lora
from reverie.adapters.inversion import Inversion, Words
from reverie.errors import ReverieError
from reverie.generate import prompt
from reverie.generate.canvas import embed_pictures
from reverie.generate.prompt import Piece
from reverie.generate.regions import with_regions
from reverie.requests import adapter_files
from reverie.requests.adapter_files import Adapter, extract
from reverie.requests.base import SampledRequest
from reverie.requests.pictures import TextToImage
from reverie.requests.samplers import FewSteps, few_steps
from reverie.system import GOOD_SCORE, POOR_SCORE, Conditioning, StableDiffusion
from reverie.tokenizer import END_OF_WORD, Tokenizer

BACKTRACK = 20  # a full chunk ends after a comma among its last so many tokens

Sampled = TypeVar("Sampled", bound=SampledRequest)
Unit = list[tuple[int, float]]
"""Tokens that stay together, with their weights: one token, or all the vectors of a textual inversion."""


class Chunk(NamedTuple):
    """Hold the tokens of one pass through a text tower, without start, end and padding, and their weights."""

    ids: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()

    def row(self, tokenizer: Tokenizer) -> Int64[Tensor, "1 l"]:
        """Return the row of ids for the tower: start, tokens, end, padding."""
        row = torch.full((1, tokenizer.length), tokenizer.pad_id, dtype=torch.long)
        row[0, : len(self.ids) + 2] = torch.tensor([tokenizer.bos_id, *self.ids, tokenizer.eos_id])
        return row

    def multipliers(self, tokenizer: Tokenizer) -> Float[Tensor, "l 1"]:
        """Return the weights of a row's tokens; start, end and padding weigh 1."""
        row = torch.ones(tokenizer.length, 1)
        row[1 : len(self.weights) + 1, 0] = torch.tensor(self.weights)
        return row


def split(sections: Sequence[Sequence[Piece]], tokenizer: Tokenizer, words: Words) -> list[Chunk]:
    """Cut sections into chunks: at each section, and wherever a chunk is full.

    A full chunk gives what follows its last comma to the next one, unless that is more than BACKTRACK tokens. Raises
    ReverieError for a textual inversion that is longer than a chunk.
    """
    room, comma = tokenizer.length - 2, tokenizer.vocab.get("," + END_OF_WORD)
    done: list[Unit] = []
    current: Unit = []
    for number, pieces in enumerate(sections):
        if number:
            done.append(current)
            current = []
        for unit in _units(pieces, tokenizer, words):
            if len(current) + len(unit) > room:
                full = len(current) == room and unit[0][0] != comma
                kept = _chunk_end(current, comma) if full else len(current)
                done.append(current[:kept])
                current = current[kept:]
            if len(current) + len(unit) > room:
                raise ReverieError(
                    f"a textual inversion of {len(unit)} vectors does not fit the context of {room} tokens"
                )
            current = current + unit
    if current or not done:
        done.append(current)
    return [Chunk(tuple(token for token, _ in unit), tuple(weight for _, weight in unit)) for unit in done]


def _chunk_end(full: Unit, comma: int | None) -> int:
    """Count the tokens that a full chunk keeps."""
    for back in range(1, min(BACKTRACK, len(full) - 1) + 1):
        if full[-back][0] == comma:
            return len(full) - back + 1
    return len(full)


def _units(pieces: Sequence[Piece], tokenizer: Tokenizer, words: Words) -> Iterator[Unit]:
    """Yield the tokens of pieces of text, one by one, and the vectors in the place of a textual inversion's word."""
    for text, weight in pieces:
        ids, position = tuple(tokenizer.encode(text)), 0
        while position < len(ids):
            for word, vectors in words.get(ids[position], ()):
                if ids[position : position + len(word)] == word:
                    yield [(vector, weight) for vector in vectors]
                    position += len(word)
                    break
            else:
                yield [(ids[position], weight)]
                position += 1


# In standard deviations; the bundled text tower's encodings have means of up to 0.004 of theirs (measured).
NO_MEAN = 0.01


@dataclass(frozen=True, eq=False)
class Guide:
    """Hold what one part of a prompt says at each step, and how strongly it guides.

    `stages` are the last step of each, and its conditioning of one row; all have the same number of tokens.
    """

    weight: float
    stages: tuple[tuple[int, Conditioning], ...]

    def at(self, step: int) -> Conditioning:
        """Return what holds at a step, counted from 0.

        A stage that ends with step n, counted from 1, holds at steps 0 to n: A1111's samplers count from 0 and its
        prompts from 1, and old pictures depend on it (AUTOMATIC1111/stable-diffusion-webui, issue 7279).
        """
        return next((conditioning for until, conditioning in self.stages if step <= until), self.stages[-1][1])


@dataclass(frozen=True, eq=False)
class Prompts:
    """Hold what a request steers towards, the parts that AND joined, and what it keeps away from."""

    positive: tuple[Guide, ...]
    negative: Guide


def steady(positive: Conditioning, negative: Conditioning) -> Prompts:
    """Steer by the same two conditionings at every step."""
    return Prompts((Guide(1.0, ((1, positive),)),), Guide(1.0, ((1, negative),)))


@dataclass(frozen=True, eq=False)
class _Encoder:
    """Encode texts for a model whose embedding tables hold the words."""

    system: StableDiffusion
    words: tuple[Words, ...]
    outputs: tuple[Mapping[int, Tensor], ...]
    clip_skip: int
    guidance: Tensor | None

    def guide(self, text: str, weight: float, steps: int, after: int | None, sizes: Tensor | None, zero: bool) -> Guide:
        """Encode every stage of a text; `zero` conditions on zeros where the whole text is empty."""
        stages = prompt.schedule(text, steps, after)
        rows = {stage.text: self._split(stage.text) for stage in stages}
        count = max(len(chunks) for row in rows.values() for chunks in row)
        encoded = {text: self._encode(row, count, sizes) for text, row in rows.items()}
        if zero and set(rows) == {""}:
            encoded = {"": _zeros(encoded[""])}
        return Guide(weight, tuple((stage.until, encoded[stage.text]) for stage in stages))

    def _split(self, text: str) -> list[list[Chunk]]:
        """Cut a text into the chunks of each encoder."""
        sections = prompt.weigh(text)
        return [
            split(sections, tokenizer, words)
            for tokenizer, words in zip(self.system.tokenizers, self.words, strict=True)
        ]

    def _encode(self, row: Sequence[Sequence[Chunk]], count: int, sizes: Tensor | None) -> Conditioning:
        """Join the layers of a text's chunks, filled up to `count` with empty ones; pooled is the first chunk's."""
        chunks = [[*encoder, *[Chunk()] * (count - len(encoder))] for encoder in row]
        encoded = [self._chunk(column) for column in zip(*chunks, strict=True)]
        return Conditioning(torch.cat([tokens for tokens, _ in encoded], dim=1), encoded[0][1], sizes, self.guidance)

    def _chunk(self, chunks: Sequence[Chunk]) -> tuple[Float[Tensor, "1 l d"], Float[Tensor, "1 p"] | None]:
        """Encode one chunk with every encoder."""
        tokenizers = self.system.tokenizers
        rows = [chunk.row(tokenizer) for chunk, tokenizer in zip(chunks, tokenizers, strict=True)]
        layers, pooled = self.system.text_layers(rows, self.clip_skip)
        weighed = [
            emphasise(replace_outputs(layer, chunk, outputs), chunk.multipliers(tokenizer))
            for layer, chunk, tokenizer, outputs in zip(layers, chunks, tokenizers, self.outputs, strict=True)
        ]
        return torch.cat(weighed, dim=-1), pooled


def replace_outputs(z: Float[Tensor, "1 l d"], chunk: Chunk, outputs: Mapping[int, Tensor]) -> Float[Tensor, "1 l d"]:
    """Put the vectors of inversions that learned an encoder's output in the place of their tokens' (OneTrainer)."""
    for position, token in enumerate(chunk.ids, start=1):
        if token in outputs:
            z[0, position] = outputs[token].to(z)
    return z


def emphasise(z: Float[Tensor, "1 l d"], weights: Float[Tensor, "l 1"]) -> Float[Tensor, "1 l d"]:
    """Multiply tokens by their weights and restore the mean of the whole: A1111's emphasis "Original".

    A mean near 0, as a LayerNorm without much of a bias leaves it, is not restored: its ratio is a matter of chance.
    """
    if weights.eq(1).all():
        return z
    plain = z.float()
    weighed = plain * weights.to(z.device)
    if plain.mean().abs() >= NO_MEAN * plain.std():
        weighed = weighed * (plain.mean() / weighed.mean())
    return weighed.to(z.dtype)


def encode(system: StableDiffusion, request: TextToImage, after: int | None = None) -> Prompts:
    """Encode a request's prompts over its steps.

    `after` is the number of steps of a first pass, where this is the second (the hires fix). The negative prompt knows
    neither AND nor the tags of LoRAs, as in A1111. Raises ReverieError for textual inversions and a clip skip that do
    not fit the model.
    """
    positive, negative = _sizes(system, request)
    seen = embed_pictures(system, request)
    if not system.text_encoders:
        return _without_words(system, request, seen)
    parts, *others = (prompt.parts(extract(text).text) for text in request.prompts)
    if others and any([part.weight for part in said] != [1.0] for said in (parts, *others)):
        raise ReverieError("regions go with neither AND nor a weight of a whole prompt; leave out one of them")
    guidance = _told_guidance(system, request)
    if guidance is not None and (any(request.negatives) or [part.weight for part in parts] != [1.0]):
        raise ReverieError("this latent consistency model is guided within; leave out the negative prompt and AND")
    inversions = inversions_of(request)
    outputs = inversion.outputs(system, inversions)
    with inversion.apply(system, inversions) as words:
        encoder = _Encoder(system, words, outputs, request.clip_skip, guidance)

        def guide(part: prompt.Part) -> Guide:
            return encoder.guide(part.text, part.weight, request.steps, after, positive, zero=False)

        guides = tuple(map(guide, parts))
        if request.regions:
            guides = (with_regions(guides[0], request.regions, [guide(part) for (part,) in others]),)
        zero = system.zero_empty if request.zero_negative is None else request.zero_negative

        def away_from(text: str) -> Guide:
            return encoder.guide(text, 1.0, request.steps, after, negative, zero=zero)

        away, own = away_from(request.negative), [region.negative for region in request.regions]
        if any(text is not None for text in own):
            others_away = [away if text is None else away_from(text) for text in own]
            away = with_regions(away, request.regions, others_away, prompted=0.0)
        return (
            Prompts(guides, away)
            if seen is None
            else Prompts(
                tuple(_with_pooled(guide, seen) for guide in guides), _with_pooled(away, torch.zeros_like(seen))
            )
        )


def _without_words(system: StableDiffusion, request: TextToImage, seen: Tensor | None) -> Prompts:
    """Steer by what a model sees, in place of tokens, and away from nothing: zeros."""
    if request.prompt or request.negative or request.clip_skip > 1 or request.regions:
        raise ReverieError(
            f"{system.name} sees pictures and reads no words; leave out the prompts, `regions` and `clip_skip`"
        )
    assert seen is not None
    return steady(Conditioning(seen[:, None]), Conditioning(torch.zeros_like(seen[:, None])))


def _with_pooled(guide: Guide, pooled: Tensor) -> Guide:
    stages = tuple((until, replace(conditioning, pooled=pooled)) for until, conditioning in guide.stages)
    return replace(guide, stages=stages)


Encode = Callable[[StableDiffusion, TextToImage, int | None], Prompts]
"""What gives a request's prompts, as `encode` does."""
REMEMBERED = 8  # encodings: those of a few prompts, of two passes and of a refiner


class Encodings:
    """Encode as `encode` does, and remember the last few: for a model whose weights nobody changes meanwhile.

    Prompts with adapters, whose files may change, are encoded anew.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[object, ...], Prompts] = OrderedDict()

    def __call__(self, system: StableDiffusion, request: TextToImage, after: int | None = None) -> Prompts:
        """Return what `encode` returns."""
        if request.embeddings or loras_of(request):
            return encode(system, request, after)
        key = (system.unet, after, *(getattr(request, name) for name in TextToImage.model_fields if name != "seed"))
        if key not in self._known:
            self._known[key] = encode(system, request, after)
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]


def _told_guidance(system: StableDiffusion, request: TextToImage) -> Tensor | None:
    """Return what a latent consistency model is told of the guidance, its scale less 1; None for other models."""
    if system.unet.config.time_cond_proj_dim is None:
        return None
    return torch.tensor([request.scale - 1], device=system.device)


def _sizes(system: StableDiffusion, request: TextToImage) -> tuple[Tensor | None, Tensor | None]:
    """Return what SDXL is told of the picture to make, and of the one to keep away from."""
    if not system.unet.config.takes_sizes:
        return None, None
    size = (request.width or system.size, request.height or system.size)
    original, crop, target = request.original_size or size, request.crop or (0, 0), request.target_size or size
    negative = (
        request.negative_original_size or original,
        request.negative_crop or crop,
        request.negative_target_size or target,
    )
    return system.sizes(original, crop, target, GOOD_SCORE), system.sizes(*negative, POOR_SCORE)


def _zeros(conditioning: Conditioning) -> Conditioning:
    tokens, pooled = conditioning.tokens, conditioning.pooled
    return Conditioning(tokens * 0, None if pooled is None else pooled * 0, conditioning.sizes)


def loras_of(request: SampledRequest) -> list[Adapter]:
    """Return the LoRAs of a request, and those that its prompts name. Raises ReverieError where one is not found."""
    return adapter_files.loras(request.loras, request.prompts, request.folders)


def inversions_of(request: SampledRequest) -> tuple[Inversion, ...]:
    """Read the textual inversions of a request, and those that its LoRAs bring with them."""
    files = adapter_files.embeddings(request.embeddings, request.folders)
    return inversion.load_all(files, [path for path, _, _ in loras_of(request)])


def follow_recommended(system: StableDiffusion, request: Sampled) -> Sampled:
    """Fill in what a request leaves open: by what a LoRA for few steps asks for, or by what the model recommends."""
    family = _few_steps_lora(request)
    return request.with_recommended((system.recommended if family is None else family).fields())


def _few_steps_lora(request: SampledRequest) -> FewSteps | None:
    """Return the family of the request's first LoRA for few steps; a file as the hub names them goes by its folder."""
    listed = [(path, unet) for path, unet, _ in map(adapter_files.parse, request.loras)]
    tags = [(Path(tag.name), tag.unet) for text in request.prompts for tag in extract(text).loras]
    files = [path for path, unet in (*listed, *tags) if unet]
    names = [path.parent.name if path.name in adapter_files.FOLDER_WEIGHTS else path.name for path in files]
    return next(filter(None, map(few_steps, names)), None)


def _few_steps_notes(system: StableDiffusion, request: SampledRequest) -> Iterator[str]:
    """Say what the authors of a model or LoRA for few steps ask for, and what the request has in place of it."""
    lora_family = _few_steps_lora(request)
    title = lora_family.title if lora_family else system.recommended.family
    if title is None:
        return
    fields = (lora_family or system.recommended).fields()
    instead = {"schedule"} if request.timesteps or request.sigmas else set()
    others = [name for name, value in fields.items() if getattr(request, name) != value and name not in instead]
    asked = ", ".join(f"{name} {_text_of(value)}" for name, value in fields.items() if name not in instead)
    kept = ", ".join(f"{name} {_text_of(getattr(request, name))}" for name in others)
    yield f"{title} is made for {asked}" + (f"; the request has {kept}" if kept else "")


def _text_of(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_text_of, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


@contextmanager
def apply_adapters(system: StableDiffusion, request: TextToImage) -> Iterator[None]:
    """Put the LoRAs of a request, and those that its prompt names, into a model for as long as the context lasts.

    Raises ReverieError, before anything is changed, where one is not found or does not fit.
    """
    with lora.apply(system, loras_of(request)):
        yield


def adapter_notes(system: StableDiffusion, request: SampledRequest) -> tuple[str, ...]:
    """Say what of a request's adapters and of the tags in its prompts is not honoured, or is not what was recorded.

    Raises ReverieError where one is not found or is for another family.
    """
    adapters = loras_of(request)
    files = [*(path for path, _, _ in adapters), *adapter_files.embeddings(request.embeddings, request.folders)]
    return (
        *_few_steps_notes(system, request),
        *(note for text in request.prompts for note in extract(text).notes),
        *lora.notes(system, adapters),
        *(note for word in inversions_of(request) for note in word.notes),
        *adapter_files.changed_files(files, dict(request.sums)),
    )
