"""Attribution maps: where the cross-attention looked at each word of a prompt, summed while it is drawn.

As DAAM does it (Tang et al. 2022, "What the DAAM: Interpreting Stable Diffusion Using Cross Attention").
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from reverie.adapters import inversion
from reverie.errors import ReverieError
from reverie.generate import prompt
from reverie.generate.canvas import doubles
from reverie.generate.conditioning import Prompts, inversions_of, split
from reverie.generate.image import fill_in, finish, passes, picture_run
from reverie.media.charts import words_sheet
from reverie.models.layers import Attention, SpatialTransformer, TransformerBlock
from reverie.requests.adapter_files import extract
from reverie.requests.pictures import TextToImage
from reverie.system import StableDiffusion
from reverie.tokenizer import END_OF_WORD, Tokenizer

Place = tuple[int, int, tuple[int, int]]
"""Which part of the prompt (those that AND joins), which of its stages, and the height and width of the feature map."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """Hold a picture and, for each word in the prompt's order, how much of the attention each latent pixel gave it.

    The maps are means over steps, layers and heads: 0 to 1, and start, end and padding take what is left to 1.
    """

    picture: Image.Image
    maps: dict[str, Float[Tensor, "h w"]]

    def sheet(self) -> Image.Image:
        """Draw the picture and, for each word, the picture in grey under the word's map."""
        return words_sheet(self.picture, self.maps)

    def _repr_png_(self) -> bytes:
        """Show the sheet in a notebook."""
        png = io.BytesIO()
        self.sheet().save(png, "PNG")
        return png.getvalue()


@dataclass(frozen=True, eq=False)
class Recorder:
    """Sum up the attention to the tokens of some prompts, layer by layer, while a U-Net works."""

    prompts: Prompts
    sums: dict[Place, Float[Tensor, "hw l"]] = field(default_factory=dict)
    counts: dict[Place, int] = field(default_factory=dict)

    def see(self, size: tuple[int, int], layer: Attention, x: Tensor, context: Tensor) -> None:
        """Add one call of a cross-attention, of those rows that a positive prompt steers."""
        for row, tokens in enumerate(context):
            for place in self._places_of(tokens, size):
                probabilities = attention(layer, x[row : row + 1], context[row : row + 1])[0].cpu()
                self.sums[place] = self.sums.get(place, torch.zeros(())) + probabilities
                self.counts[place] = self.counts.get(place, 0) + 1

    def _places_of(self, tokens: Float[Tensor, "l d"], size: tuple[int, int]) -> Iterator[Place]:
        """Tell which stage of which part a row says, if any: the values are compared, so rows may come in any order."""
        for part, guide in enumerate(self.prompts.positive):
            for stage, (_, conditioning) in enumerate(guide.stages):
                known = conditioning.tokens[0]
                if len(known) <= len(tokens) and torch.equal(tokens[: len(known)], known.to(tokens)):
                    yield part, stage, size
                    return

    def token_maps(self, part: int, stage: int, size: tuple[int, int]) -> Float[Tensor, "l h w"] | None:
        """Return the mean map of each token, all feature maps brought to one size; None where nothing was seen."""
        total, count = torch.zeros(()), 0
        for place, summed in self.sums.items():
            if place[:2] == (part, stage):
                maps = summed.T.unflatten(1, place[2])[None]
                total = total + F.interpolate(maps, size, mode="bilinear")[0]
                count += self.counts[place]
        return total / count if count else None


@torch.no_grad()
def attention(layer: Attention, x: Float[Tensor, "b l d"], context: Float[Tensor, "b m e"]) -> Float[Tensor, "b l m"]:
    """Return the mean over heads of softmax(q k^T / sqrt(d / heads)), float32: what `attend` weighs the values with."""
    q, k = (y.unflatten(-1, (layer.heads, -1)).transpose(1, 2).float() for y in (layer.to_q(x), layer.to_k(context)))
    return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1).mean(1)


@contextmanager
def record_attention(unet: torch.nn.Module, prompts: Prompts) -> Iterator[Recorder]:
    """Watch the cross-attentions of a U-Net by hooks that are gone afterwards: a U-Net unwatched pays nothing."""
    recorder, handles = Recorder(prompts), []

    def watch(transformer: SpatialTransformer) -> None:
        size: list[tuple[int, int]] = [(0, 0)]

        def before(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
            size[0] = (inputs[0].shape[2], inputs[0].shape[3])

        def after(module: torch.nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            assert isinstance(module, Attention)
            recorder.see(size[0], module, *inputs)

        handles.append(transformer.register_forward_pre_hook(before))
        for block in transformer.transformer_blocks:
            assert isinstance(block, TransformerBlock)
            handles.append(block.attn2.register_forward_hook(after))

    try:
        for module in unet.modules():
            if isinstance(module, SpatialTransformer):
                watch(module)
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


def explain(system: StableDiffusion, request: TextToImage) -> Explanation:
    """Draw the first picture of a request, to the bit the one that `stream` draws, and tell which word drew what.

    A word that the prompt says twice has one map, the sum. Costs a second softmax a layer, for this picture only.
    Raises ReverieError where the request hands over to a refiner, whose attention is not watched, or has regions, for a
    prompt without words, and for a model that reads no words or doubles latents.
    """
    check_explained(system)
    if request.refiner is not None:
        raise ReverieError("the attention of a refiner is not recorded; leave out the refiner")
    if request.tile_size is not None:
        raise ReverieError("the attention of tiles is not recorded; leave out `tile_size`", field="tile_size")
    if request.regions:
        raise ReverieError("the attention to the prompts of regions is not recorded; leave out the regions")
    single = fill_in(system, request).only(0)
    words = list(_words(system, single))
    if not words:
        raise ReverieError("the prompt has no words to explain; give some, or leave out `explain`", field="explain")
    with picture_run(system, single) as run:
        with record_attention(system.unet, run.passes[0].prompts) as recorder:
            *_, (step, _) = passes(run, [single])
        (picture,) = finish(run, [single], step)
    size = (step.x.shape[2], step.x.shape[3])
    return Explanation(picture, _sum_words(recorder, words, size))


def check_explained(system: StableDiffusion) -> None:
    """Raise ReverieError for a model whose attention to words is not recorded."""
    if not system.text_encoders:
        raise ReverieError(f"{system.name} sees pictures and reads no words; leave out `explain`", field="explain")
    if doubles(system):
        raise ReverieError(f"the attention of {system.name} is not recorded; leave out `explain`", field="explain")


def _sum_words(
    recorder: Recorder, words: Sequence[tuple[int, int, str, int]], size: tuple[int, int]
) -> dict[str, Float[Tensor, "h w"]]:
    """Sum the tokens of each word; where stages and parts share a word, they are averaged by how long they held."""
    maps: dict[str, Tensor] = {}
    every = sum(recorder.counts.values())
    seen: dict[tuple[int, int], Tensor | None] = {}
    for part, stage, word, position in words:
        if (part, stage) not in seen:
            seen[part, stage] = recorder.token_maps(part, stage, size)
        tokens = seen[part, stage]
        if tokens is not None:
            share = sum(count for place, count in recorder.counts.items() if place[:2] == (part, stage)) / every
            maps[word] = maps.get(word, torch.zeros(size)) + tokens[position] * share
    return maps


def _words(system: StableDiffusion, request: TextToImage) -> Iterator[tuple[int, int, str, int]]:
    """Name each token of a prompt: its part, its stage, the word it belongs to and its place among all tokens."""
    tokenizer = system.tokenizers[0]
    with inversion.apply(system, inversions_of(request)) as inverted:
        for part, (text, _) in enumerate(prompt.parts(extract(request.prompt).text)):
            for stage, (_, said) in enumerate(prompt.schedule(text, request.steps)):
                for number, chunk in enumerate(split(prompt.weigh(said), tokenizer, inverted[0])):
                    for position, word in enumerate(token_words(tokenizer, chunk.ids)):
                        yield part, stage, word, number * tokenizer.length + 1 + position


def token_words(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Return for each token the whole word that it is a part of; a vector of a textual inversion is `<embedding>`."""
    names = {number: token for token, number in tokenizer.vocab.items()}
    letters = {letter: byte for byte, letter in byte_letters().items()}
    words: list[str] = []
    open_: list[str] = []
    for id_ in ids:
        token = names.get(id_)
        if token is None:
            words += ["<embedding>"]
            continue
        open_.append(token)
        if token.endswith(END_OF_WORD):
            whole = "".join(open_).removesuffix(END_OF_WORD)
            word = bytes(letters.get(letter, 63) for letter in whole).decode("utf-8", errors="replace")
            words += [word] * len(open_)
            open_ = []
    return words + ["".join(open_)] * len(open_)


def byte_letters() -> dict[int, str]:
    """Return the letter that stands for each byte in CLIP's vocabulary (GPT-2's table; Radford et al. 2019)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + n) for n, byte in enumerate(others)}
