"""Which figures tell how good a model is? The mathematics of each, and the table that sets them beside their goals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from reverie.codecs.clip_images import Preprocessing
from reverie.codecs.image import to_tensor
from reverie.corpora.captions import chinese, english
from reverie.corpora.concepts import Concept
from reverie.corpora.scenes import COLOURS, Scene, scene_at
from reverie.errors import ReverieError
from reverie.models.clip import CLIP
from reverie.tokenizer import Tokenizer
from reverie.train.classifier import load_classifier
from reverie.train.probe import load_probe

SEED = 20_000  # no recipe draws from it (1 to 77), nor validation (10,000)
TEMPLATES = 12  # captions that are averaged to one name's features
BORDER = 4  # pixels from the edge in which the ground is looked at
BATCH = 32

Tell = Callable[[Scene, np.random.Generator], str]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Figure:
    """Hold one measured mean over `count` cases, in dB or per cent, and what is asked of it: of any run, of a GPU's."""

    name: str
    value: float
    count: int
    unit: str = "%"
    goal: float | None = None
    gpu_goal: float | None = None

    @property
    def met(self) -> bool | None:
        """Tell whether the goal of any run is reached; None where there is no goal."""
        return None if self.goal is None else self.value >= self.goal


@dataclass(frozen=True)
class Prompt:
    """Ask for a scene in words; the picture's noise comes from `seed`."""

    text: str
    scene: Scene
    seed: int

    @property
    def names_ground(self) -> bool:
        """Tell whether the words name the ground's colour: "... on a blue background", "蓝色背景..."."""
        colour = self.scene.colour
        return f"{colour} background" in self.text or f"{COLOURS[colour][0]}背景" in self.text


def share(hits: Sequence[bool]) -> float:
    """Return how many per cent are true."""
    return 100 * sum(hits) / len(hits) if hits else math.nan


def spread(items: Sequence[Item], limit: int | None) -> Sequence[Item]:
    """Return at most `limit` items, evenly spaced from the first."""
    return items if limit is None else items[:: math.ceil(len(items) / limit)]


def scenes(
    things: Sequence[Concept], indices: Sequence[int], *, pair_share: float = 0.25, held_out: bool = False
) -> list[Scene]:
    """Return scenes that training never draws; `held_out` ones hold a pair that it never sees at all."""
    return [scene_at(things, SEED, i, pair_share=pair_share, held_out=held_out) for i in indices]


def prompts(shown: Sequence[Scene], tell: Tell) -> list[Prompt]:
    """Tell each scene by one of the captions' templates."""
    return [Prompt(tell(scene, np.random.default_rng((SEED, i))), scene, SEED + i) for i, scene in enumerate(shown)]


def psnr(reference: np.ndarray, made: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of two 8-bit pictures in dB: -10 log10 of the mean square in [0, 1]."""
    error = np.square(reference.astype(np.float64) / 255 - made.astype(np.float64) / 255).mean()
    return math.inf if error == 0 else float(-10 * math.log10(error))


def ground_colour(picture: Image.Image) -> str:
    """Name the colour nearest, in sRGB, to the median of the pixels along the picture's edge."""
    pixels = np.asarray(picture.convert("RGB"), np.float64)
    edge = np.ones(pixels.shape[:2], bool)
    edge[BORDER:-BORDER, BORDER:-BORDER] = False
    median = np.median(pixels[edge], axis=0)
    return min(COLOURS, key=lambda name: float(np.square(median - COLOURS[name][1]).sum()))


def found(scene: Scene, ranking: Sequence[str]) -> bool:
    """Tell whether a scene's one object ranks first, or its two objects first and second."""
    return {placed.concept.emoji for placed in scene.objects} == set(ranking[: len(scene.objects)])


@dataclass(frozen=True, eq=False)
class Judge:
    """Rank what a picture may show, by a classifier that no part of the generator has seen."""

    network: Callable[[Tensor], Tensor]
    names: Sequence[str]

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image]) -> list[tuple[str, str]]:
        """Return the two likeliest emoji of each picture."""
        rankings: list[tuple[str, str]] = []
        for start in range(0, len(pictures), BATCH):
            logits = self.network(to_tensor(pictures[start : start + BATCH]))
            rankings += [(self.names[a], self.names[b]) for a, b in logits.topk(2).indices.tolist()]
        return rankings


def load_network(folder: Path) -> tuple[Callable[[Tensor], Tensor], list[str]]:
    """Load a judge, a probe or a classifier, as logits of images in [-1, 1], and the emoji that they stand for."""
    try:
        is_probe = json.loads((folder / "config.json").read_text())["make"] == "probe"
    except (OSError, KeyError, ValueError) as error:
        raise ReverieError(f"no trained judge in {folder}: {error}; train one with its recipe") from error
    if not is_probe:
        return load_classifier(folder)
    probe, names = load_probe(folder)
    return lambda images: probe(probe.features(images)), names


@torch.no_grad()
def name_features(
    clip: CLIP, tokenizer: Tokenizer, things: Sequence[Concept], tell: Tell
) -> tuple[Float[Tensor, "n d"], list[str]]:
    """Return a feature for every name of every concept, averaged over captions, and the emoji that each name means."""
    rows, emoji = [], []
    for thing in things:
        for name in thing.zh if tell is chinese else thing.en:
            named = replace(thing, en=(name,), zh=(name,))
            captions = [prompt.text for prompt in prompts(scenes((named,), range(TEMPLATES), pair_share=0), tell)]
            rows.append(F.normalize(clip.encode_text(tokenizer(captions)), dim=-1).mean(0))
            emoji.append(thing.emoji)
    return torch.stack(rows), emoji


@torch.no_grad()
def image_features(clip: CLIP, pictures: Sequence[Image.Image]) -> Float[Tensor, "b d"]:
    """Return the features of pictures."""
    size = clip.config.vision.image_size
    batches = (pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH))
    return torch.cat([clip.encode_image(Preprocessing(size=size, edge=size)(batch)) for batch in batches])


def nearest(images: Float[Tensor, "b d"], names: Float[Tensor, "n d"]) -> list[int]:
    """Return for each image the number of the name whose feature has the largest cosine."""
    indices: list[int] = (F.normalize(images, dim=-1) @ F.normalize(names, dim=-1).T).argmax(1).tolist()
    return indices


@dataclass(frozen=True, eq=False)
class Drawn:
    """Hold a drawn picture, what it was asked for and the two emoji that the judge ranks first."""

    prompt: Prompt
    picture: Image.Image
    ranking: Sequence[str]

    @property
    def seen(self) -> Sequence[str]:
        """Return as many emoji as were asked for, the judge's likeliest."""
        return self.ranking[: len(self.prompt.scene.objects)]

    @property
    def right(self) -> bool:
        """Tell whether the judge finds all that was asked for."""
        return found(self.prompt.scene, self.ranking)

    @property
    def ground(self) -> str:
        """Name the ground's colour."""
        return ground_colour(self.picture)

    def record(self, key: str) -> str:
        """Write one line of JSON, `key` naming the set of prompts."""
        told = {
            "set": key,
            "prompt": self.prompt.text,
            "seed": self.prompt.seed,
            "asked": [placed.concept.emoji for placed in self.prompt.scene.objects],
            "seen": list(self.seen),
            "ground": self.prompt.scene.colour if self.prompt.names_ground else None,
            "seen_ground": self.ground,
        }
        return json.dumps(told, ensure_ascii=False)


@dataclass(frozen=True)
class PromptSet:
    """Group prompts that are measured together: `key` names their contact sheet, which shows every `every`-th."""

    key: str
    title: str
    verdict: str
    prompts: Sequence[Prompt]
    every: int = 4
    goal: float | None = None
    gpu_goal: float | None = None
    ground_goal: float | None = None


def prompt_sets(things: Sequence[Concept], count: int) -> list[PromptSet]:
    """Return what is asked for: every concept in English and in Chinese, and `count` prompts of each other kind."""
    single = [scene_at((thing,), SEED, i, pair_share=0) for i, thing in enumerate(things)]
    unseen = scenes(things, range(count), pair_share=0, held_out=True)
    double, unseen_double = (
        scenes(things, range(count), pair_share=1, held_out=held_out) for held_out in (False, True)
    )
    top, both = "judge's top-1", "both found"
    return [
        PromptSet("concepts", "single-object prompts", top, prompts(single, english), 10, 75, 95, ground_goal=95),
        PromptSet("chinese", "Chinese prompts", top, prompts(single, chinese), 10),
        PromptSet("pairs", "two-object prompts", both, prompts(double, english), goal=40, gpu_goal=80),
        PromptSet("held-out", "held-out object and colour", top, prompts(unseen, english)),
        PromptSet("held-out-pairs", "two objects, a pair held out", both, prompts(unseen_double, english)),
    ]


def markdown(figures: Sequence[Figure], settings: Mapping[str, object], left_out: Sequence[str]) -> str:
    """Write the table, and below it how it was measured and what could not be."""
    rows: list[Sequence[str]] = [
        ("figure", "measured", "n", "at least", "GPU-trained", ""),
        ("---", "---:", "---:", "---:", "---:", "---"),
    ]
    for figure in figures:
        goals = ("" if goal is None else f"{goal:.3g}" for goal in (figure.goal, figure.gpu_goal))
        verdict = {None: "", True: "met", False: "missed"}[figure.met]
        rows.append((figure.name, f"{figure.value:.1f} {figure.unit}", str(figure.count), *goals, verdict))
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    notes = [", ".join(f"{name} {value}" for name, value in settings.items()) + "."]
    notes += [f"Left out: {reason}." for reason in left_out]
    return table + "\n\n" + "\n".join(notes) + "\n"


def write(
    figures: Sequence[Figure], settings: Mapping[str, object], left_out: Sequence[str], folder: Path
) -> tuple[Path, Path]:
    """Write quality.md and quality.json into a folder and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    table, data = folder / "quality.md", folder / "quality.json"
    table.write_text(markdown(figures, settings, left_out), encoding="utf-8")
    records = [asdict(figure) | {"met": figure.met} for figure in figures]
    told = {"settings": dict(settings), "figures": records, "left_out": list(left_out)}
    data.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return table, data


def kernel_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """Return the unbiased squared maximum mean discrepancy under the kernel (x.y / d + 1)^3: KID, of all at once.

    Unbiased in the number of samples, so that a few hundred do; it may come out a little below 0.
    """
    x, y = x.double(), y.double()
    d, n, m = x.shape[1], len(x), len(y)
    xx, yy, xy = ((a @ b.T / d + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1))
    return (within - 2 * xy.mean()).item()


def frechet_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """Return |mx - my|^2 + tr(Cx + Cy - 2 (Cx Cy)^(1/2)): FID, of these features. It falls as samples grow.

    The trace of the root is the sum of the singular values of Cx^(1/2) Cy^(1/2), which the centred samples give.
    """
    x, y = x.double(), y.double()
    a, b = ((s - s.mean(0)) / (len(s) - 1) ** 0.5 for s in (x, y))
    root = torch.linalg.svdvals(a @ b.T).sum()  # (Cx Cy)^(1/2) has the singular values of a b^T as eigenvalues
    means = (x.mean(0) - y.mean(0)).square().sum()
    return (means + a.square().sum() + b.square().sum() - 2 * root).item()
