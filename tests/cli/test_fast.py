"""Do the flags for speed reach the request and the model, and are the settings for a time told and written down?"""

from __future__ import annotations

from pathlib import Path

import pytest

import reverie
from reverie.cli.app import run
from reverie.cli.ask import ask_picture
from reverie.cli.flags import PictureFlags
from reverie.cli.options import parse_time
from reverie.errors import ReverieError
from reverie.requests.records import from_metadata


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must be refused, and return the one line that it says."""
    assert run(("image", "a bear", *arguments)) == 2
    return capsys.readouterr().err


def test_flags_reach_the_request() -> None:
    flags = PictureFlags(seed=1, guidance_interval="0.2,0.8", cache_steps=3, merge_tokens=0.3)
    request = ask_picture("a bear", flags)
    assert (request.guidance_interval, request.cache_steps, request.merge_tokens) == ((0.2, 0.8), 3, 0.3)
    free = ask_picture("a bear", PictureFlags(seed=1, timesteps="999,749.5", sampler="tcd", eta=0.5))
    assert (free.timesteps, free.steps, free.eta) == ((999, 749.5), 2, 0.5)
    plain = ask_picture("", PictureFlags(seed=1))
    assert (plain.guidance_interval, plain.cache_steps, plain.merge_tokens) == ((0, 1), 1, 0)


def test_what_makes_no_sense_is_refused_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reverie, "load", None, raising=False)
    assert "0.8 to 0.2 never acts" in refusal(capsys, "--guidance-interval", "0.8,0.2")
    assert "write START,END" in refusal(capsys, "--guidance-interval", "0.8")
    assert "cache_steps 0" in refusal(capsys, "--cache-steps", "0")
    assert "merge_tokens 0.8" in refusal(capsys, "--merge-tokens", "0.8")
    assert "write numbers such as 999" in refusal(capsys, "--sigmas", "14,x")
    assert "30s or 2m" in refusal(capsys, "--time-budget", "soon")


def test_times_are_seconds_or_minutes() -> None:
    assert [parse_time(text) for text in ("30s", "30", "1.5m", "2min", None)] == [30, 30, 90, 120, None]
    for text in ("0s", "-1s", "1h", "s"):
        with pytest.raises(ReverieError, match="is not possible"):
            parse_time(text)


def test_approximate_pictures_say_so_and_are_made_again(model: str, tmp_path: Path) -> None:
    file, again = tmp_path / "near.png", tmp_path / "again.png"
    near = ["--guidance-interval", "0.2,0.8", "--cache-steps", "2", "--merge-tokens", "0.5", "--steps", "3"]
    assert run(["image", "a bear", "--model", model, "--seed", "1", "-o", str(file), *near]) == 0
    request = from_metadata(file)
    assert (request.guidance_interval, request.cache_steps, request.merge_tokens) == ((0.2, 0.8), 2, 0.5)
    assert run(["replay", str(file), "--model", model, "-o", str(again)]) == 0
    assert file.read_bytes() == again.read_bytes()


def test_a_time_budget_is_told_and_leaves_plain_settings(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REVERIE_CACHE", str(tmp_path / "cache"))
    file, again = tmp_path / "soon.png", tmp_path / "again.png"
    asked = ["--steps", "4", "--sampler", "heun", "--time-budget", "60s"]
    assert run(["image", "a bear", "--model", model, "--seed", "1", "-o", str(file), *asked]) == 0
    assert "for 60 s: steps 4, cache_steps 1, sampler dpmpp_2m" in capsys.readouterr().err
    request = from_metadata(file)
    assert (request.steps, request.cache_steps, request.sampler) == (4, 1, "dpmpp_2m")
    assert run(["replay", str(file), "--model", model, "-o", str(again)]) == 0
    assert file.read_bytes() == again.read_bytes()


def test_a_slow_dtype_is_told_of(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawing = ["image", "a bear", "--model", model, "--steps", "1", "-o", str(tmp_path / "x.png")]
    assert run([*drawing, "--dtype", "float16"]) == 0
    assert "does not compute in float16" in capsys.readouterr().err
    assert run(drawing) == 0
    assert "does not compute" not in capsys.readouterr().err


def test_offloading_is_refused_where_there_is_no_gpu(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = refusal(capsys, "--model", model, "--device", "cpu", "--offload", "blocks")
    assert "offload is for GPUs with memory of their own, and this is cpu; leave it out" in told
    assert "networks, blocks" in refusal(capsys, "--model", model, "--device", "cpu", "--offload", "layers")
