"""Easing curves between two keyframes, from 0 to 1 over the time from 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

Easing = Callable[[float], float]
"""The fraction of the time, 0 to 1, to that of the way; 0 and 1 stay, and it never goes back."""

EasingName = Literal["linear", "smooth", "sine", "ease_in", "ease_out", "ease_in_out", "expo", "hold", "jump"]


def linear(t: float) -> float:
    """Go evenly."""
    return t


def smooth(t: float) -> float:
    """Start and stop gently: Hermite's 3t^2 - 2t^3."""
    return t * t * (3 - 2 * t)


def sine(t: float) -> float:
    """Start and stop as a pendulum does: (1 - cos pi t) / 2, written so that a half gives a half."""
    return math.sin(math.pi * t / 2) ** 2


def ease_in(t: float) -> float:
    """Start slowly: t^3."""
    return t**3


def ease_out(t: float) -> float:
    """Stop slowly: 1 - (1 - t)^3."""
    return 1 - (1 - t) ** 3


def ease_in_out(t: float) -> float:
    """Start and stop slowly, each half a cubic."""
    return 4 * t**3 if t < 0.5 else 1 - 4 * (1 - t) ** 3


def expo(t: float) -> float:
    """Start and stop very slowly, each half tenfold powers of 2, brought to meet 0 and 1."""
    half = (2 ** (20 * min(t, 1 - t) - 10) - 2**-10) / (2 * (1 - 2**-10))
    return half if t < 0.5 else 1 - half


def hold(t: float) -> float:
    """Stand for the first and the last quarter, and go gently in between."""
    return smooth(min(1.0, max(0.0, 2 * t - 0.5)))


def jump(t: float) -> float:
    """Stand until the very end: a cut."""
    return 0.0 if t < 1 else 1.0


EASINGS: dict[EasingName, Easing] = {
    "linear": linear,
    "smooth": smooth,
    "sine": sine,
    "ease_in": ease_in,
    "ease_out": ease_out,
    "ease_in_out": ease_in_out,
    "expo": expo,
    "hold": hold,
    "jump": jump,
}
