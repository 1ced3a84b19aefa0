"""What lies between two prompts? Their encodings part by part and step by step, gone between as a function says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import zip_longest

import torch.nn.functional as F

from reverie.generate.conditioning import Guide, Prompts
from reverie.system import Conditioning

Mix = Callable[[Conditioning, Conditioning, float], Conditioning]
"""(a, b, w) -> the fraction w of the way from a to b: `Conditioning.slerp` or `Conditioning.lerp`."""

MIXES: dict[str, Mix] = {"slerp": Conditioning.slerp, "linear": Conditioning.lerp}


def between(a: Prompts, b: Prompts, w: float, mix: Mix) -> Prompts:
    """Go the fraction w of the way between two prompts.

    A part, as AND joins them, that one of them lacks has the weight 0 there; where the words change over the steps they
    do in the blend; of encodings of two lengths the shorter repeats its last token.
    """
    if a is b:
        return a
    pairs = zip_longest(a.positive, b.positive)
    positive = (_guide(x or replace(y, weight=0.0), y or replace(x, weight=0.0), w, mix) for x, y in pairs)
    return Prompts(tuple(positive), _guide(a.negative, b.negative, w, mix))


def _guide(a: Guide, b: Guide, w: float, mix: Mix) -> Guide:
    ends = sorted({until for until, _ in (*a.stages, *b.stages)})
    stages = tuple((until, mix(*_alike(a.at(until), b.at(until)), w)) for until in ends)
    return Guide(a.weight + w * (b.weight - a.weight), stages)


def _alike(a: Conditioning, b: Conditioning) -> tuple[Conditioning, Conditioning]:
    longest = max(a.tokens.shape[1], b.tokens.shape[1])

    def filled(one: Conditioning) -> Conditioning:
        missing = longest - one.tokens.shape[1]
        return replace(one, tokens=F.pad(one.tokens, (0, 0, 0, missing), mode="replicate")) if missing else one

    return filled(a), filled(b)


def stacked(rows: Sequence[Prompts]) -> Prompts:
    """Put prompts of one structure, blends of the same two, into one: a row of a batch for each."""
    positive = tuple(_stacked(guides) for guides in zip(*(row.positive for row in rows), strict=True))
    return Prompts(positive, _stacked([row.negative for row in rows]))


def _stacked(guides: Sequence[Guide]) -> Guide:
    stages = []
    for column in zip(*(guide.stages for guide in guides), strict=True):
        first, *others = (conditioning for _, conditioning in column)
        stages.append((column[0][0], first.cat(*others)))
    return Guide(guides[0].weight, tuple(stages))


def weights(prompts: Prompts) -> tuple[float, ...]:
    """Return how strongly each part of a prompt guides."""
    return tuple(guide.weight for guide in prompts.positive)
