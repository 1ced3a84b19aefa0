"""Does everything that moves a frame move its film's key, and nothing else?"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from reverie.animation.store import fingerprint, key_of
from reverie.errors import ReverieError
from reverie.requests.films import Animation, Keyframe


def test_the_fingerprint_tells_models_apart(make_system: Callable[..., Any]) -> None:
    system = make_system()
    known = fingerprint(system)
    assert known == fingerprint(make_system())
    others = {
        "xl": make_system(xl=True),
        "schedule": replace(system, schedule_config=replace(system.schedule_config, prediction="v")),
        "empty": replace(system, zero_empty=True),
        "half": replace(system, unet=copy.deepcopy(system.unet).half()),
    }
    for part in ("unet", "autoencoder"):
        moved = copy.deepcopy(getattr(system, part))
        with torch.no_grad():
            next(moved.parameters()).view(-1)[0] += 1e-6
        others[part] = replace(system, **{part: moved})
    sums = {name: fingerprint(other) for name, other in others.items()}
    assert len({known, *sums.values()}) == 1 + len(others)
    assert fingerprint(replace(system, name="another name")) == known


def test_a_key_tells_films_apart(make_system: Callable[..., Any], tmp_path: Path) -> None:
    system, lora, board = make_system(), tmp_path / "ink.safetensors", tmp_path / "a.png"
    lora.write_bytes(b"one")
    Image.new("RGB", (8, 8)).save(board)
    film = Animation(keyframes=("a", "b"), seed=1, loras=(str(lora),))
    known = key_of(system, film, batch=4)
    assert known == key_of(make_system(), Animation.from_json(film.to_json()), batch=4)
    others = [
        film.replace(steps=21),
        film.replace(seed=2),
        film.replace(fps=21),
        film.replace(keyframes=("a", "c")),
        film.replace(keyframes=(Keyframe(prompt="a"), Keyframe(prompt="b", image=board)), anchor=0),
    ]
    keys = {known, key_of(system, film, batch=1), *(key_of(system, other, batch=4) for other in others)}
    assert len(keys) == 2 + len(others)
    lora.write_bytes(b"two")  # the same name, other weights
    assert key_of(system, film, batch=4) != known
    lora.unlink()
    with pytest.raises(ReverieError, match=r"cannot read .*ink"):
        key_of(system, film, batch=4)


def test_a_lora_named_in_a_prompt_counts(
    make_system: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REVERIE_LORA_DIR", str(tmp_path))
    film = Animation(keyframes=("a <lora:ink:0.5>", "b"), seed=1)
    keys = set()
    for content in (b"one", b"two"):
        (tmp_path / "ink.safetensors").write_bytes(content)
        keys.add(key_of(make_system(), film, batch=4))
    assert len(keys) == 2
