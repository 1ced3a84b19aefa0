"""Training of IP-Adapters: a projection of what a CLIP sees of pictures, and keys and values for it, learn alone.

Source: Ye et al. 2308.06721, section 3. U-Net, text encoders and vision tower stay as they are. Of some examples the
picture is left out, of others the caption, so that either leads alone, and guidance has something to go from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from reverie.adapters.ip_adapter import ENCODER, cross_attentions, load_ip_adapter
from reverie.checkpoints.clip_files import load_vision
from reverie.checkpoints.load import CPU, Components
from reverie.checkpoints.save import Precision, save_image_encoder, write_tensors
from reverie.codecs.clip_images import Preprocessing, floor_margin
from reverie.corpora.captions import plain
from reverie.errors import ReverieError, choose
from reverie.models.clip import VisionTowerWithProjection
from reverie.models.ip_adapter import (
    HEAD_WIDTH,
    ImageProjection,
    IPAdapter,
    PatchProjection,
    Projection,
    Resampler,
    WholeProjection,
)
from reverie.models.layers import Attention, attend
from reverie.progress import Progress
from reverie.train.encoded import Description
from reverie.train.examples import Examples, Pictures, Scenes
from reverie.train.inputs import FinetuneTextSettings
from reverie.train.kept import digest_of, read_tensor
from reverie.train.latents import fill_rows
from reverie.train.loop import RunSettings
from reverie.train.recipe import Share, section

SEEN = "seen-"  # how files of what the tower sees begin, in the folder of a run
HALF = Precision(torch.float16)
KINDS: dict[str, tuple[type[Projection], int]] = {
    "plain": (ImageProjection, 4),
    "plus": (Resampler, 16),
    "full": (PatchProjection, 0),
    "whole": (WholeProjection, 12),
}
"""The authors' kinds and our own, "whole", and how many tokens they make of a picture; 0 is one of each patch."""


@dataclass(frozen=True)
class IPAdapterSettings:
    """Choose an IP-Adapter; without [ip_adapter] in a recipe none learns."""

    encoder: str = ""  # CLIP whose vision tower sees the pictures: a folder, a file or a name
    kind: str = "plain"  # a key of KINDS
    tokens: NonNegativeInt = 0  # of a picture; 0 makes as many as KINDS says
    depth: PositiveInt = 4  # layers of the resampler, of "plus"
    dropout: Share = 0.1  # share of pictures left out
    other: Share = 0.0  # share in whose place another is seen: of the same thing, or another variant of [augment]
    align: NonNegativeInt = 0  # steps at first, without the U-Net, in which pictures learn to be what captions are
    initial: str = ""  # IP-Adapter to go on from, a file; "" starts from the U-Net's own keys and values

    def __post_init__(self) -> None:
        """Raise ReverieError for unknown names."""
        choose("kind in [ip_adapter]", self.kind, KINDS)


def settings_of(sections: dict[str, Any]) -> IPAdapterSettings | None:
    """Read a recipe's [ip_adapter]; None where there is none. Raises ReverieError where it cannot be followed."""
    if "ip_adapter" not in sections:
        return None
    settings = section(sections, "ip_adapter", IPAdapterSettings)
    if not settings.encoder:
        raise ReverieError("[ip_adapter] of the recipe needs encoder = a CLIP's vision tower: its folder or file")
    text = section(sections, "text", FinetuneTextSettings)
    if text.pace or text.words or {"lora", "inversion", "control", "prior"} & sections.keys():
        raise ReverieError(
            "[ip_adapter] trains an IP-Adapter and nothing else; leave out [lora], [inversion], [control] and [prior], "
            "and pace and words in [text]"
        )
    if settings.align and (text.cached or section(sections, "run", RunSettings).shard):
        raise ReverieError(
            "align in [ip_adapter] encodes captions at each step, by whole weights; leave out cached in [text] and "
            "shard in [run]"
        )
    return settings


def check(opened: Iterable[Examples]) -> None:
    """Raise ReverieError where no IP-Adapter is trained by the examples."""
    if not all(isinstance(examples, Pictures | Scenes) for examples in opened):
        raise ReverieError("[ip_adapter] learns from pictures = FOLDER in [data], or from [scenes]")


def begin(settings: IPAdapterSettings, base: Components, tower: VisionTowerWithProjection) -> IPAdapter:
    """Return an IP-Adapter for a model and a vision tower: one that is new, or the one named.

    Its keys and values begin as those of the U-Net for text. Raises ReverieError where the one named does not fit.
    """
    attentions, dim = [one for one, _ in cross_attentions(base.unet)], base.unet.config.cross_attention_dim
    pooled, hidden = tower.visual_projection.out_features, tower.config.hidden_size
    kind, usual = KINDS[settings.kind]
    tokens = settings.tokens or usual
    project: Projection
    if kind is ImageProjection:
        project = ImageProjection(pooled, tokens, dim)
    elif kind is PatchProjection:
        project = PatchProjection(hidden, hidden, dim)
    elif kind is WholeProjection:
        narrow = -(-dim // 8)
        project = WholeProjection(hidden, tower.config.places, tokens, dim, narrow=narrow, hidden=(4 * dim, 2 * dim))
    else:
        inner = -(-dim // HEAD_WIDTH) * HEAD_WIDTH
        project = Resampler(hidden, tokens, dim, width=dim, inner=inner, hidden=4 * dim, depth=settings.depth)
    adapter = IPAdapter(project, dim, [one.to_q.out_features for one in attentions])
    with torch.no_grad():
        for layer, attention in zip(adapter.ip_adapter.values(), attentions, strict=True):
            layer.to_k_ip.weight.copy_(attention.to_k.weight)  # type: ignore[union-attr, operator]
            layer.to_v_ip.weight.copy_(attention.to_v.weight)  # type: ignore[union-attr, operator]
    if not settings.initial:
        return adapter
    begun = load_ip_adapter(settings.initial)
    ours, theirs = ({name: value.shape for name, value in one.state_dict().items()} for one in (adapter, begun))
    if ours != theirs:
        raise ReverieError(
            f"initial = '{settings.initial}' in [ip_adapter] is made for another model, CLIP or kind; give those that "
            "it was trained with"
        )
    return begun.train()


@dataclass(frozen=True, eq=False)
class Sight:
    """Say what an adapter of a kind is shown of pictures: what a vision tower, which stays as it is, sees of them."""

    tower: VisionTowerWithProjection
    kind: type[Projection]

    @cached_property
    def digest(self) -> str:
        """Return what it depends on: the SHA-256 of the tower's weights, and of how it is asked."""
        return digest_of(self.kind.see.__qualname__, self.tower.state_dict().items())

    @torch.no_grad()
    def __call__(self, pictures: Sequence[np.ndarray]) -> Float[Tensor, "b ..."]:
        """Return what it sees, in half precision, of pictures (h, w, c) of levels; their first three channels count."""
        return self.kind.see(self.tower, self._pixels(pictures)).half().cpu()

    @cached_property
    def nothing(self) -> Float[Tensor, ...]:
        """Return what stands for no picture."""
        with torch.no_grad():
            return self.kind.see_nothing(self.tower, self._pixels([np.zeros((1, 1, 3), np.uint8)]))[0].cpu()

    def _pixels(self, pictures: Sequence[np.ndarray]) -> Float[Tensor, "b 3 h w"]:
        size = self.tower.config.image_size
        cut = Preprocessing(size=size, edge=size, begin=floor_margin)
        pixels = cut([Image.fromarray(picture[..., :3]) for picture in pictures])
        return pixels.to(self.tower.visual_projection.weight)


@dataclass(frozen=True, eq=False)
class Shown:
    """Show beside captions what a vision tower sees of pictures: of each example's own, of another, or of none."""

    sight: Sight
    examples: Examples
    path: Path
    settings: IPAdapterSettings

    def __call__(self, number: int, rng: np.random.Generator) -> Description:
        """Return what is `seen` beside example `number`, by an item's random numbers; to align by, what is `said`.

        Of no picture nothing is said.
        """
        left_out, exchanged = rng.random(2) < (self.settings.dropout, self.settings.other)
        other = int(rng.choice(self.alike[number])) if exchanged and not left_out else number
        seen = self.sight.nothing if left_out else self.rows[other].float()
        if not self.settings.align:
            return {"seen": seen}
        return {"seen": seen, "said": "" if left_out else self.say(number)}

    def say(self, number: int) -> str:
        """Return what a picture is to say: its caption, of a scene always in the same words."""
        return (
            plain(self.examples.scene(number))
            if isinstance(self.examples, Scenes)
            else self.examples.caption(number, 0)
        )

    @cached_property
    def rows(self) -> Float[Tensor, "n ..."]:
        """Return what is seen of all examples, from a file that is made where it is not there yet."""
        for _ in self.fill():
            pass
        return read_tensor(self.path)

    def make(self) -> None:
        """Make the file of what is seen, where any of it will be shown: of several processes one at a time must."""
        if self.settings.dropout < 1:
            _ = self.rows

    def fill(self) -> Iterator[Progress]:
        """Write what is seen of all examples, and yield how far it is; see `latents.fill_rows`."""

        def encode(start: int, end: int) -> Tensor:
            return self.sight([self.examples.picture(index) for index in range(start, end)])

        identity = f"{self.sight.digest} {self.examples.identity}"
        shape = self.sight.nothing.shape
        yield from fill_rows(identity, self.path, len(self.examples), lambda: shape, encode, "pictures seen")

    @cached_property
    def alike(self) -> Sequence[Sequence[int]]:
        """Return for each example those whose pictures show the same: the same things, or variants of one picture."""
        if isinstance(self.examples, Pictures):
            count = self.examples.augmentation.variants
            return [range(first, first + count) for first in range(0, len(self.examples), count) for _ in range(count)]
        assert isinstance(self.examples, Scenes)
        groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
        shown = [tuple(one.concept.emoji for one in self.examples.scene(n).objects) for n in range(len(self.examples))]
        for number, things in enumerate(shown):
            groups[things].append(number)
        return [groups[things] for things in shown]


def look(settings: IPAdapterSettings, device: torch.device = CPU) -> Callable[[Examples, Path], Shown]:
    """Return what shows examples to an adapter, by the file of their latents, beside which what is seen is kept."""
    sight = Sight(load_vision(settings.encoder, device=device), KINDS[settings.kind][0])
    return lambda examples, path: Shown(sight, examples, path.with_name(SEEN + path.name), settings)


def gather_both(
    keys_values: tuple[Tensor, Tensor], q: Float[Tensor, "b l d"], k: Tensor, v: Tensor, heads: int
) -> Float[Tensor, "b l d"]:
    """Gather from the text, and from pictures (equation 5)."""
    return attend(q, k, v, heads) + attend(q, *keys_values, heads)


def gather_instead(
    keys_values: tuple[Tensor, Tensor], q: Float[Tensor, "b l d"], k: Tensor, v: Tensor, heads: int
) -> Float[Tensor, "b l d"]:
    """Gather from pictures in the place of the text."""
    return attend(q, *keys_values, heads)


def apart(
    attentions: Sequence[Attention], seen: Sequence[tuple[Tensor, Tensor]], said: Float[Tensor, "b m e"]
) -> Float[Tensor, ""]:
    """Return how far keys and values of pictures are from those of captions, token by token: a relative squared error.

    It is the mean of each row's. Where there are more tokens of one than of the other, the first ones count.
    """
    errors = []
    for attention, keys_values in zip(attentions, seen, strict=True):
        for layer, given in zip((attention.to_k, attention.to_v), keys_values, strict=True):
            with torch.no_grad():
                wanted = layer(said[:, : given.shape[1]])
            error = (given[:, : wanted.shape[1]] - wanted).float().square().mean((1, 2))
            errors.append((error / wanted.float().square().mean((1, 2))).mean())
    return torch.stack(errors).mean()


def export(adapter: IPAdapter, tower: VisionTowerWithProjection, folder: Path) -> None:
    """Write an IP-Adapter as the authors' files are, named after the run, and the tower beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(adapter.state_dict(), folder / f"{folder.resolve().parent.name}.safetensors")
    save_image_encoder(tower, folder / ENCODER, HALF)
