"""Combinations: which ways of computing a network go together, by the fields that ask for them.

`fast` (packed weights), `int8`, `offload` and `compile` are chosen as a model is loaded; `cache_steps` (DeepCache),
`merge_tokens` and `tile` (seamless) change networks for one drawing. Pairs without a row in `RULES` both take effect.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from reverie.errors import ReverieError

WAYS = ("fast", "int8", "offload", "compile", "cache_steps", "merge_tokens", "tile")


@dataclass(frozen=True)
class Rule:
    """Say what becomes of two ways asked for together: `wins` is the one that takes effect, None refuses both."""

    wins: str | None
    why: str


RULES: dict[tuple[str, str], Rule] = {
    ("fast", "int8"): Rule("int8", "the U-Net's weights are rounded, and those of the other networks packed"),
    ("fast", "offload"): Rule("offload", "packed weights are for the CPU, offloaded ones for GPUs"),
    ("fast", "compile"): Rule(None, "on the CPU packed weights are quicker than compiled kernels"),
    ("int8", "offload"): Rule(None, "int8 computes on the CPU, and offload is for GPUs"),
    ("int8", "compile"): Rule(None, "int8 computes by kernels of its own"),
    ("offload", "compile"): Rule(None, "compiled kernels need their weights on the device"),
    ("compile", "cache_steps"): Rule("cache_steps", "the U-Net takes another class, and computes plainly"),
    ("compile", "merge_tokens"): Rule("merge_tokens", "what is compiled would not see hooks"),
    ("compile", "tile"): Rule("tile", "what is compiled would not see hooks"),
}
"""By two of WAYS, in their order."""


def check_combination(asked: Iterable[str]) -> None:
    """Raise ReverieError where two of the ways of computing that are asked for, and take effect, exclude each other."""
    asked = set(asked)
    asked -= {
        one for pair, rule in RULES.items() if rule.wins and asked.issuperset(pair) for one in pair if one != rule.wins
    }
    for pair, rule in RULES.items():
        if rule.wins is None and asked.issuperset(pair):
            raise ReverieError(f"{pair[0]} and {pair[1]} exclude each other: {rule.why}; leave out one of them")


def is_hooked(*modules: nn.Module) -> bool:
    """Tell whether a forward hook watches one of the modules themselves: fused and compiled forwards skip hooks."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)
