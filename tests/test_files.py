"""Writes are whole or not at all, locks exclude, fingerprints are SHA-256, and an OSError's reason is one line."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from reverie import files
from reverie.checkpoints.save import write_tensors
from reverie.errors import ReverieError
from reverie.files import InUse, atomic_folder, atomic_write, check_distinct, file_sha256, lock_folder, natural_order


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(TypeError), atomic_write(target) as temporary:
        temporary.write_text(3)  # type: ignore[arg-type]
    assert (names(tmp_path), target.read_text()) == (["a.txt"], "old")
    with atomic_write(target, sync=True) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert (names(tmp_path), target.read_text()) == (["a.txt"], "new")


def test_a_folder_takes_the_old_ones_place_at_once(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "film") as folder:
        (folder / "1").touch()
    with pytest.raises(ReverieError, match="no such file"), atomic_folder(tmp_path / "film") as folder:
        (folder / "gone/2").touch()
    assert names(tmp_path / "film") == ["1"]
    with atomic_folder(tmp_path / "film") as folder:
        (folder / "2").touch()
    assert (names(tmp_path), names(tmp_path / "film")) == (["film"], ["2"])


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_weights_are_as_readable_as_the_umask_allows(tmp_path: Path, mask: int) -> None:
    """safetensors 0.6 makes its files 0600; what `open` makes is 0666 less the umask (POSIX, open)."""
    before = os.umask(mask)
    try:
        write_tensors({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """/dev/full fails every write with ENOSPC (Linux, full(4))."""
    full = pytest.raises(ReverieError, match=r"^cannot write '.*a.bin': the disk is full$")
    with full, atomic_write(tmp_path / "a.bin"):
        Path("/dev/full").write_bytes(bytes(1 << 16))
    assert names(tmp_path) == []


def test_a_write_beyond_a_limit_gets_one_line_from_safetensors_too(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys, torch; from pathlib import Path\n"
        "from reverie.checkpoints.save import write_tensors\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))\n"
        "write_tensors({'a': torch.zeros(1 << 20)}, Path(sys.argv[1]))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.safetensors")], capture_output=True, text=True, check=False
    )
    assert ran.stderr.splitlines()[-1] == (
        f"reverie.errors.ReverieError: cannot write '{tmp_path / 'a.safetensors'}': {os.strerror(errno.EFBIG).lower()}"
    )
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EROFS, "Read-only file system"), "the file system is read-only"),
        (PermissionError(errno.EACCES, "Permission denied"), "permission denied"),
        (ValueError("cannot identify <_io.BytesIO object at 0x7f00>\n file"), "cannot identify file"),
        (MemoryError(), "not enough memory"),
        (EOFError(), "EOFError"),
    ],
)
def test_reasons_are_one_line_and_the_same_each_time(error: Exception, reason: str) -> None:
    assert files.reason_of(error) == reason


def test_a_lock_excludes_others_and_clears_what_they_left(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".log.jsonl.1.part").touch()  # of a process that is no more, whatever has its number now
    with lock_folder(folder, "training into"):
        assert names(folder) == [".lock"]
        refused = pytest.raises(InUse, match=r"^another process is training into '.*run'; wait until it is done$")
        with refused, lock_folder(folder, "training into"):
            pass
    with lock_folder(folder):
        pass


def test_what_killed_writers_of_one_file_left_is_swept(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in (f".a.mp4.{dead.pid}.part", f".a.mp4.{os.getpid()}.part", f".b.mp4.{dead.pid}.part"):
        (tmp_path / name).touch()
    (tmp_path / f".a.mp4.{dead.pid}.old.part").mkdir()
    files.sweep(tmp_path / "a.mp4")
    assert names(tmp_path) == sorted([f".a.mp4.{os.getpid()}.part", f".b.mp4.{dead.pid}.part"])


def test_fingerprints_are_sha256(tmp_path: Path) -> None:
    """FIPS 180-2, appendix B.1: the digest of "abc"."""
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256_of(["ab", b"c"]) != files.sha256_of(["a", "bc"]) != files.sha256_of(["abc"])
    framed = b"".join(len(part).to_bytes(8, "little") + part for part in (b"ab", b"c"))
    assert files.sha256_of(["ab", memoryview(b"c")]) == hashlib.sha256(framed).hexdigest()


def test_an_output_that_is_an_input_is_refused(tmp_path: Path) -> None:
    picture = tmp_path / "bear.png"
    picture.touch()
    (tmp_path / "link.png").symlink_to(picture)
    os.link(picture, tmp_path / "hard.png")
    for name in ("bear.png", "link.png", "hard.png"):
        with pytest.raises(ReverieError, match="is an input and would be written over"):
            check_distinct([tmp_path / name], [tmp_path / "gone.png", picture])
    check_distinct([tmp_path / "new.png"], [picture])


def test_numbers_in_names_count() -> None:
    ordered = ["2.png", "10.png", "frame2.png", "frame02b.png", "frame10.png", "frames.png"]
    assert sorted(set(ordered), key=natural_order) == ordered


NO_ROOM = """
import resource, signal, sys
from pathlib import Path
import numpy as np, torch
from PIL import Image
from reverie.animation.store import FrameStore
from reverie.corpora.shards import Corpus, write_corpus
from reverie.errors import ReverieError
from reverie.media import sound, video

folder = Path(sys.argv[1])
rng = np.random.default_rng(0)
frames = [Image.fromarray(rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)) for _ in range(8)]
noise = sound.Sound(torch.rand(2, 200_000) * 2 - 1, 44_100)
corpus = Corpus(0, {}, lambda key, index: [("jpg", bytes(30_000)), ("txt", b"x")])

def store(path):
    with FrameStore(path) as kept:
        kept.put({0.0: frames[0].resize((400, 400))})

films = {name: lambda path: video.write(frames, path, 10) for name in ("a.mp4", "a.webm", "a.gif", "a.webp", "frames")}
sounds = {name: lambda path: sound.write(noise, path) for name in ("a.wav", "a.flac", "a.ogg", "a.mp3")}
others = {"corpus": lambda path: list(write_corpus(path, corpus, 8)), "store": store}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
for name, write in {**films, **sounds, **others}.items():
    try:
        write(folder / name)
    except ReverieError as error:
        print(f"{name}: {error}")
"""


def test_no_room_is_one_line_that_names_the_output(tmp_path: Path) -> None:
    """Films, sounds, shards and frames, where the system lets no file grow beyond 40 kB (setrlimit(2), EFBIG)."""
    (tmp_path / "out").mkdir()
    (tmp_path / "script.py").write_text(NO_ROOM)
    words = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "out")]
    ran = subprocess.run(words, capture_output=True, text=True, check=True)
    lines = dict(line.split(": ", 1) for line in ran.stdout.splitlines())
    within = {"frames": "frames/frame-00000.png", "corpus": "corpus/00000.tar", "store": "store/0x0.0p+0.png"}
    assert set(lines) == {
        *(f"a{end}" for end in (".mp4", ".webm", ".gif", ".webp", ".wav", ".flac", ".ogg", ".mp3")),
        *within,
    }
    for name, line in lines.items():
        assert line == f"cannot write '{tmp_path / 'out' / within.get(name, name)}': file too large"
    assert ran.stderr == ""
    assert [path.name for path in tmp_path.glob("out/**/*.part")] == []
