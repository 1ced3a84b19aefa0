"""However a command ends, it says so in one line and by its exit status."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reverie.cli.app import run
from reverie.files import tar_writer
from reverie.media import pictures
from reverie.pipeline import Pipeline

PROGRAM = [sys.executable, "-m", "reverie"]


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, check=False, env={**os.environ, **environment})


def test_damaged_exif_is_no_matter_for_the_terminal(tmp_path: Path) -> None:
    """Pillow warns of it, by its own file and line; the picture is as good."""
    directory = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\x0f\x01\x02\0\xff\0\0\0\x90\x90\0\0"
    Image.new("RGB", (16, 8)).save(tmp_path / "x.jpg", exif=directory)
    done = command("inspect", str(tmp_path / "x.jpg"))
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_terminal_of_ascii_shows_what_it_can() -> None:
    done = command("concepts", PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C")
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"\u" in done.stdout


@pytest.mark.parametrize("arguments", [["concepts"], ["train", "--help"]])
def test_a_reader_that_goes_is_told_as_the_shell_does(arguments: list[str]) -> None:
    process = subprocess.Popen([*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate()
    assert (process.returncode, errors) == (128 + 13, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*PROGRAM, "concepts"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (2, b"reverie: the disk is full\n")


COLLECTED = """
import gc
from reverie.cli import spare_collections

class Cycle:
    def __init__(self):
        self.itself = self
    def __del__(self):
        print("all was looked through")

spare_collections()
gc.callbacks.append(lambda phase, about: about["generation"] == 2 and print("all was looked through"))
cycle = Cycle()
imported = [[number] for number in range(200_000)]
gc.callbacks.clear()
"""


def test_what_imports_made_is_not_looked_through_for_garbage() -> None:
    """Neither while it is made, nor at the end: without, `import torch` takes 1.6 s of processor for 1.2."""
    done = subprocess.run([sys.executable, "-c", COLLECTED], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.fixture
def pictures_of_noise(tmp_path: Path) -> Path:
    """Write two classes of pictures, and a shard of them."""
    rng = np.random.default_rng(0)
    with tar_writer(tmp_path / "shards.tar") as add:
        for index, name in enumerate(("cat/0", "cat/1", "dog/0", "dog/1")):
            file = tmp_path / f"pictures/{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(file)
            add(f"{index}.png", file.read_bytes())
            add(f"{index}.txt", b"some noise in colours")
    return tmp_path


@pytest.mark.parametrize(
    ("allowed", "arguments"),
    [
        (100, ["index", "pictures", "-o", "out"]),
        (600, ["index", "pictures", "-o", "out"]),
        (200, ["curate", "shards.tar", "-o", "out", "--min-cosine", "-1", "--min-bytes", "0"]),
        (4000, ["curate", "shards.tar", "-o", "out", "--min-cosine", "-1", "--min-bytes", "0"]),
        (100, ["classify", "--evaluate", "pictures", "-o", "out.png"]),
    ],
)
def test_a_disk_without_room_is_one_line_that_names_the_file(
    pictures_of_noise: Path,
    allowed: int,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By a limit on how long files may become (setrlimit(2)), which fails as a full disk does."""
    monkeypatch.chdir(pictures_of_noise)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, before[1]))
    try:
        ended = run(arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr()
    assert (ended, said.out) == (2, "")
    assert re.fullmatch(r"reverie: cannot write '[^']*out[^']*': file too large\n", said.err)
    assert run(arguments) == 0  # what was written until then is no hindrance


def test_closed_stdout_is_no_failure() -> None:
    done = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *PROGRAM, "concepts"], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C before the third picture is written."""
    save, written = pictures.save, []

    def stopped(picture: object, path: Path, **options: object) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        save(picture, path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("reverie.jobs.pictures.save", stopped)


@pytest.mark.usefixtures("stopping")
def test_what_is_finished_is_named_when_it_is_stopped(
    tiny: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.save(tmp_path / "model")
    output = ["-o", str(tmp_path / "b.png"), "--steps", "1", "--model", str(tmp_path / "model")]
    assert run(["image", "a bear", *output, "--count", "100"]) == 130
    kept = [tmp_path / f"b-{index}.png" for index in (0, 1)]
    stopped = f"stopped; what is finished is kept: '{kept[0]}' to '{kept[1]}'"
    assert capsys.readouterr().err.strip() == stopped
    assert sorted(tmp_path.glob("*.png")) == kept


@pytest.mark.usefixtures("stopping")
def test_a_stopped_grid_names_the_seed_that_was_asked_for(
    tiny: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.save(tmp_path / "model")
    output = ["-o", str(tmp_path / "b.png"), "--steps", "1", "--model", str(tmp_path / "model")]
    assert run(["image", "a bear", *output, "--seed", "5", "--axis", "seed=1,2,3"]) == 130
    assert "the same command with --seed 5 goes on from there" in capsys.readouterr().err
