"""Are stored frames there to the bit, and batches there wholly or not at all?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reverie.animation import store
from reverie.animation.store import FrameStore, prune
from reverie.errors import ReverieError
from reverie.files import lock_folder


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def same(a: Image.Image | None, b: Image.Image) -> bool:
    return a is not None and a.mode == b.mode and a.tobytes() == b.tobytes()


def test_frames_come_back_to_the_bit_also_in_another_process(tmp_path: Path) -> None:
    places = [0.0, 1 / 3, 1.0, 1.0 + 2**-52, 2.5]
    with FrameStore(tmp_path / "film") as frames:
        frames.put({place: noise(index) for index, place in enumerate(places[:3])})
        frames.put({place: noise(index + 3) for index, place in enumerate(places[3:])})
    with FrameStore(tmp_path / "film") as frames:
        assert len(frames) == 5
        assert all(same(frames.get(place), noise(index)) for index, place in enumerate(places))
        assert frames.get(0.5) is None
        assert 0.5 not in frames
        assert 1 in frames


def test_a_batch_without_its_line_is_not_there(tmp_path: Path) -> None:
    """However much of the last batch was written when the process was killed."""
    with FrameStore(tmp_path) as frames:
        frames.put({0.0: noise(0), 0.1: noise(1)})
    journal = tmp_path / store.JOURNAL
    first = journal.stat().st_size
    with FrameStore(tmp_path) as frames:
        frames.put({0.2: noise(2), 0.3: noise(3)})
    whole = journal.read_bytes()
    for cut in range(first, len(whole)):
        journal.write_bytes(whole[:cut])
        with FrameStore(tmp_path) as frames:
            assert [place in frames for place in (0.0, 0.1, 0.2, 0.3)] == [True, True, False, False]
    with FrameStore(tmp_path) as frames:  # and what follows is there again
        frames.put({0.2: noise(4)})
    with FrameStore(tmp_path) as frames:
        assert same(frames.get(0.2), noise(4))
        assert len(frames) == 3


def test_damaged_files_are_drawn_again(tmp_path: Path) -> None:
    with FrameStore(tmp_path) as frames:
        frames.put({0.0: noise(0), 1.0: noise(1), 2.0: noise(2)})
        first, second, _ = sorted(tmp_path.glob("*.png"))
        first.write_bytes(first.read_bytes()[:-9])
        second.unlink()
    with (tmp_path / store.JOURNAL).open("ab") as journal:
        journal.write(b"not json\n[1]\n")
    with FrameStore(tmp_path) as frames:
        assert sum(frames.get(place) is not None for place in (0.0, 1.0, 2.0)) == 1


def test_two_processes_do_not_make_one_film(tmp_path: Path) -> None:
    with FrameStore(tmp_path), pytest.raises(ReverieError, match="another process"), FrameStore(tmp_path):
        pass
    with FrameStore(tmp_path):
        pass


def test_a_killed_process_leaves_whole_batches_and_no_lock(tmp_path: Path) -> None:
    code = """
import sys, numpy as np
from PIL import Image
from reverie.animation.store import FrameStore
with FrameStore(sys.argv[1]) as frames:
    for batch in range(10_000):
        drawn = {batch + k / 4: Image.fromarray(np.full((64, 64, 3), batch % 256, np.uint8)) for k in range(4)}
        frames.put(drawn)
        print(batch, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    done = 0
    while done < 5:
        done = int(process.stdout.readline())
    time.sleep(0.003)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = max([done, *map(int, process.stdout.read().split())])
    process.stdout.close()
    with FrameStore(tmp_path) as frames:
        assert len(frames) % 4 == 0
        assert len(frames) // 4 in (done + 1, done + 2)
        assert all(frames.get(index / 4) is not None for index in range(len(frames)))


def test_without_a_place_to_keep_frames_a_film_is_drawn_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with ExitStack() as stack:
        with pytest.warns(UserWarning, match="not kept.*REVERIE_CACHE"):
            frames = stack.enter_context(FrameStore(tmp_path / "file" / "film"))
        frames.put({0.0: noise(0)})
        assert same(frames.get(0.0), noise(0))
        assert tmp_path not in frames.folder.parents
    assert not frames.folder.exists()


def test_the_oldest_films_make_room(tmp_path: Path) -> None:
    for age, name in ((30, "old"), (20, "busy"), (10, "new")):
        with FrameStore(tmp_path / name) as frames:
            frames.put({0.0: noise(0)})
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    size = sum(file.stat().st_size for file in (tmp_path / "new").iterdir())
    with lock_folder(tmp_path / "busy"):
        prune(tmp_path, 3 * size)
        assert len(list(tmp_path.iterdir())) == 3
        prune(tmp_path, 2 * size)
        assert sorted(film.name for film in tmp_path.iterdir()) == ["busy", "new"]
        prune(tmp_path, 0)
        assert [film.name for film in tmp_path.iterdir()] == ["busy"]
