"""What the U-Net is told of training examples: captions, which are encoded at each step, or encodings that were kept.

SDXL is told sizes too: the original's, where the crop lies in the resized picture, and the target's (Podell et al.
2307.01952, section 2.2).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from reverie.checkpoints.load import Components
from reverie.errors import ReverieError
from reverie.files import sha256_of
from reverie.models.clip import TextTower
from reverie.pipeline import Pipeline
from reverie.progress import Progress
from reverie.system import text_layers
from reverie.train.encoded import Description, Encoded
from reverie.train.examples import Examples, Pictures
from reverie.train.kept import digest_of, read_tensor
from reverie.train.latents import fill_rows

ENCODINGS = "texts.safetensors"  # in the folder of a run


@dataclass(frozen=True, eq=False)
class Describe:
    """Describe examples by captions, as `read` gives them, and for SDXL by sizes, a row for each example."""

    read: Callable[[str], Description]
    sizes: Float[Tensor, "n s"] | None

    def __call__(self, number: int, caption: str) -> Description:
        """Describe example `number` by a caption."""
        return self.read(caption) | ({} if self.sizes is None else {"sizes": self.sizes[number]})


def read_plainly(caption: str) -> Description:
    """Return a caption as it is."""
    return {"caption": caption}


@dataclass(frozen=True, eq=False)
class KeptEncodings:
    """Look captions up in what `fill` wrote: `length` tokens of a `width`, then what is pooled."""

    rows: Mapping[str, int]
    encodings: Float[Tensor, "n e"]
    length: int
    width: int

    def __call__(self, caption: str) -> Description:
        """Return the encoding of a caption."""
        tokens, pooled = self.encodings[self.rows[caption]].float().tensor_split([self.length * self.width])
        found: Description = {"tokens": tokens.view(self.length, self.width)}
        return found | {"pooled": pooled} if len(pooled) else found


def encoders_digest(towers: Iterable[TextTower]) -> str:
    """Return what encodings of captions depend on: the SHA-256 of text encoders' configurations and weights."""
    return sha256_of(digest_of(json.dumps(asdict(tower.config)), tower.state_dict().items()) for tower in towers)


def sizes_of(components: Components, examples: Examples) -> Float[Tensor, "n s"] | None:
    """Return the row of sizes that SDXL is told of each example; None for other families."""
    if not components.unet.config.takes_sizes:
        return None
    model = Pipeline(**vars(components))
    if isinstance(examples, Pictures):
        return torch.cat([model.sizes(*examples.sizes(index)).cpu() for index in range(len(examples))])
    height, width, _ = examples.picture(0).shape
    return model.sizes((width, height), (0, 0), (width, height)).cpu().expand(len(examples), -1)


def number_captions(rows: Iterable[Examples]) -> dict[str, int]:
    """Number all captions of examples, the empty one among them. Raises ReverieError where they have no end."""
    captions = {""}
    for examples in rows:
        if isinstance(examples, Encoded) and examples.has_texts:
            continue
        if not examples.tellings:
            raise ReverieError(
                "scenes, music and shuffled tags get new captions in each pass; leave cached in [text] out, or give "
                "versions in [captions]"
            )
        turns = range(examples.tellings)
        captions |= {examples.caption(index, turn) for index in range(len(examples)) for turn in turns}
    return {caption: row for row, caption in enumerate(sorted(captions))}


@torch.no_grad()
def fill(components: Components, captions: Mapping[str, int], path: Path) -> Iterator[Progress]:
    """Write the encodings of captions to `path`, in half precision, as `latents.fill` does for pictures."""
    texts, device = list(captions), next(components.text_encoders[0].parameters()).device

    def encode(start: int, end: int) -> Tensor:
        layers, pooled = text_layers(components, [ids(texts[start:end]).to(device) for ids in components.tokenizers])
        encoded = torch.cat(layers, -1).flatten(1)
        return (encoded if pooled is None else torch.cat([encoded, pooled], 1)).half().cpu()

    identity = json.dumps(["texts", components.name, sha256_of(texts)])
    yield from fill_rows(identity, path, len(texts), lambda: encode(0, 1).shape[1:], encode, "texts")


def read_kept(components: Components, captions: Mapping[str, int], path: Path) -> KeptEncodings:
    """Return the encodings of captions, from the file at `path`, which is made where it is not there; see `fill`."""
    for _ in fill(components, captions, path):
        pass
    width = sum(tower.config.hidden_size for tower in components.text_encoders)
    return KeptEncodings(captions, read_tensor(path), components.tokenizers[0].length, width)
