"""However a command ends, it says so in one line and by its exit status."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reverie.cli.app import run
from reverie.media import pictures
from reverie.pipeline import Pipeline

PROGRAM = [sys.executable, "-m", "reverie"]


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, check=False, env={**os.environ, **environment})


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


def test_closed_stdout_is_no_failure() -> None:
    done = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *PROGRAM, "concepts"], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_what_is_finished_is_named_when_it_is_stopped(
    tiny: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.save(tmp_path / "model")
    save, written = pictures.save, []

    def stopped(picture: object, path: Path, **options: object) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        save(picture, path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("reverie.jobs.pictures.save", stopped)
    output = ["-o", str(tmp_path / "b.png"), "--count", "100", "--steps", "1", "--model", str(tmp_path / "model")]
    assert run(["image", "a bear", *output]) == 130
    kept = [tmp_path / f"b-{index}.png" for index in (0, 1)]
    assert capsys.readouterr().err.strip() == f"stopped; what is finished is kept: '{kept[0]}' to '{kept[1]}'"
    assert sorted(tmp_path.glob("*.png")) == kept
