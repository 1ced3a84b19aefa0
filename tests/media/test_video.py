"""Do films hold the frames, times, colours, texts and sound that were given, and read back?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from reverie.errors import ReverieError
from reverie.media import footage, video
from reverie.media.pictures import REQUEST
from reverie.media.sound import Sound
from reverie.media.video import TOLERANCE

FILMS = ("film.mp4", "film.webm", "film.webp", "film.gif", "frames")
TEXTS = {REQUEST: json.dumps({"kind": "animation", "prompt": "熊 | an apple", "long": "x" * 70_000}), "title": "熊"}


def moving(count: int = 12, size: tuple[int, int] = (64, 48)) -> list[Image.Image]:
    """Draw a soft blob that moves over a coloured slope: smooth, so that lossy codecs keep it."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    frames = []
    for index in range(count):
        blob = np.exp(-40 * ((x - index / count) ** 2 + (y - 0.5) ** 2))
        colours = np.stack([40 + 180 * blob, 60 + 120 * x, 200 - 150 * blob * y], axis=-1)
        frames.append(Image.fromarray(colours.astype(np.uint8)))
    return frames


def flat(*colours: tuple[int, int, int], size: tuple[int, int] = (32, 32)) -> list[Image.Image]:
    return [Image.new("RGB", size, colour) for colour in colours]


def strayed(a: Image.Image, b: Image.Image) -> np.ndarray:
    """Return by how many levels pixels differ."""
    return np.abs(np.asarray(a, dtype=int) - np.asarray(b.convert("RGB"), dtype=int))


@pytest.mark.parametrize("name", FILMS)
def test_what_is_written_reads_back(name: str, tmp_path: Path) -> None:
    frames, path = moving(), tmp_path / name
    assert video.write(iter(frames), path, 24, texts=TEXTS) == 12
    assert sorted(tmp_path.iterdir()) == [path]
    film = footage.read(path)
    assert film.size == (64, 48)
    assert film.fps is None if name == "frames" else film.fps == pytest.approx(24, rel=0.005)
    assert film.texts[REQUEST] == TEXTS[REQUEST]
    read = list(film.pictures())
    assert len(read) == 12
    assert film.count in (12, None)
    for given, got in zip(frames, read, strict=True):
        assert strayed(given, got).mean() < (0.01 if name == "frames" else 3)


@pytest.mark.parametrize("name", ["film.mp4", "film.webm", "film.webp"])
def test_colours_stay(name: str, tmp_path: Path) -> None:
    """Saturated colours tell BT.601 from BT.709, and the full range from the video range, by 10 levels and more."""
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 120, 40), (30, 90, 160)]
    frames = flat(*colours)
    video.write(frames, tmp_path / name, 10)
    for given, got in zip(frames, footage.read(tmp_path / name).pictures(), strict=True):
        assert strayed(given, got).max() <= 6


@pytest.mark.parametrize("name", FILMS[:4])
def test_the_same_frames_give_the_same_bytes(name: str, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        video.write(moving(), tmp_path / folder / name, 24, texts=TEXTS)
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone fills memory on request")
def test_bytes_do_not_depend_on_what_memory_held(tmp_path: Path) -> None:
    """64 pixels are no whole stride of x264's widest kernels; glibc fills fresh memory with a byte of our choice."""
    code = (
        "import sys; from PIL import Image; from reverie.media import video;"
        "video.write([Image.open(file) for file in sys.argv[2:]], sys.argv[1], 24)"
    )
    files = [str(tmp_path / f"{index:02}.png") for index in range(12)]
    for frame, file in zip(moving(), files, strict=True):
        frame.save(file)
    for fill in ("1", "170"):
        run = [sys.executable, "-c", code, str(tmp_path / f"{fill}.mp4"), *files]
        subprocess.run(run, env={**os.environ, "MALLOC_PERTURB_": fill}, check=True)
    assert (tmp_path / "1.mp4").read_bytes() == (tmp_path / "170.mp4").read_bytes()


def test_frames_of_an_animation_are_taken_as_they_are(tmp_path: Path) -> None:
    frames = moving(3)
    video.write((SimpleNamespace(picture=frame) for frame in frames), tmp_path / "f", 5)
    assert [strayed(a, b).max() for a, b in zip(frames, footage.read(tmp_path / "f").pictures(), strict=True)] == [
        0
    ] * 3


def test_mp4_is_what_every_player_shows(tmp_path: Path) -> None:
    import av

    path = tmp_path / "film.mp4"
    video.write(moving(), path, 29.97, texts=TEXTS)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # it plays while it loads
    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.codec_context.colorspace, stream.codec_context.color_range) == (1, 1)
        assert float(stream.average_rate or 0) == pytest.approx(29.97)


@pytest.mark.parametrize(("name", "size"), [("film.mp4", (34, 22)), ("film.webm", (34, 22)), ("film.gif", (33, 21))])
def test_odd_sizes_repeat_the_edge_where_the_codec_wants_even_ones(
    name: str, size: tuple[int, int], tmp_path: Path
) -> None:
    frames = moving(3, (33, 21))
    video.write(frames, tmp_path / name, 10)
    film = footage.read(tmp_path / name)
    assert film.size == size
    first = next(film.pictures())
    assert strayed(frames[0], first.crop((0, 0, 33, 21))).mean() < 4
    assert strayed(first.crop((32, 0, 33, 21)), first.crop((size[0] - 1, 0, size[0], 21))).mean() < 8


@pytest.mark.parametrize("fps", [7, 12.5, 24, 29.97, 50])
def test_gif_keeps_its_time(fps: float, tmp_path: Path) -> None:
    path = tmp_path / "film.gif"
    video.write(moving(30, (16, 16)), path, fps)
    with Image.open(path) as film:
        delays = []
        for index in range(30):
            film.seek(index)
            delays.append(film.info["duration"])
        assert film.info["loop"] == 0
    assert sum(delays) == pytest.approx(30_000 / fps, abs=10)
    assert max(delays) - min(delays) <= 10


def test_gif_frames_without_change_cost_next_to_nothing(tmp_path: Path) -> None:
    one, many = tmp_path / "one.gif", tmp_path / "many.gif"
    frames = moving(2, (64, 64))
    video.write(frames, one, 10)
    video.write([frames[0]] * 50 + [frames[1]] * 50, many, 10)
    assert footage.read(many).count == 100
    assert many.stat().st_size < one.stat().st_size + 98 * 70


def test_gif_errors_do_not_add_up(tmp_path: Path) -> None:
    """A fade so slow that no single step passes the tolerance is shown all the same."""
    frames = flat(*[(80 + index, 100, 120) for index in range(60)])
    video.write(frames, tmp_path / "film.gif", 10)
    worst = [strayed(a, b).max() for a, b in zip(frames, footage.read(tmp_path / "film.gif").pictures(), strict=True)]
    assert max(worst) <= TOLERANCE + 1


@pytest.mark.parametrize(("name", "most"), [("film.mp4", 40), ("film.webm", 40), ("film.gif", 4), ("frames", 4)])
def test_memory_holds_what_an_encoder_looks_ahead(name: str, most: int, tmp_path: Path) -> None:
    alive: list[weakref.ref[Image.Image]] = []
    seen = []

    def frames() -> Iterator[Image.Image]:
        for index in range(120):
            frame = Image.new("RGB", (32, 32), (index, 0, 0))
            alive.append(weakref.ref(frame))
            seen.append(sum(one() is not None for one in alive))
            yield frame

    assert video.write(frames(), tmp_path / name, 25) == 120
    assert max(seen) <= most


@pytest.mark.parametrize(
    ("count", "shown"), [(1, [0]), (5, [0, 1, 2, 3, 4]), (31, list(range(0, 31, 2))), (1000, None)]
)
def test_a_contact_sheet_shows_first_last_and_what_lies_evenly_between(
    count: int, shown: list[int] | None, tmp_path: Path
) -> None:
    path = tmp_path / "sheet.png"
    frames = (Image.new("RGB", (4, 4), (index % 256, index // 256, 9)) for index in range(count))
    video.write(frames, path, 20, texts=TEXTS)
    with Image.open(path) as sheet:
        assert json.loads(sheet.info[REQUEST])["kind"] == "animation"
        cells = np.asarray(sheet)[::4, ::4].reshape(-1, 3).astype(int)
    found = [int(red + 256 * green) for red, green, blue in cells if blue == 9]
    if shown is not None:
        assert found == shown
    else:
        assert found[0] == 0
        assert found[-1] == count - 1
        assert len(found) == video.SHEET
        assert max(np.diff(found)) <= 1.5 * min(np.diff(found))


def tone(hertz: float, seconds: float, rate: int, channels: int = 1) -> Sound:
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)
    return Sound(torch.from_numpy(np.stack([wave] * channels).astype(np.float32)), rate)


@pytest.mark.parametrize("name", ["film.mp4", "film.webm"])
@pytest.mark.parametrize(("rate", "channels", "seconds"), [(44100, 2, 9.0), (16000, 1, 0.5)])
def test_sound_goes_with_the_film_and_ends_with_it(
    name: str, rate: int, channels: int, seconds: float, tmp_path: Path
) -> None:
    import av

    path = tmp_path / name
    video.write(moving(20), path, 10, sound=tone(440, seconds, rate, channels))
    with av.open(str(path)) as film:
        stream = film.streams.audio[0]
        wave = np.concatenate([frame.to_ndarray()[0] for frame in film.decode(stream)])
        heard = stream.rate
    assert len(wave) / heard == pytest.approx(min(2.0, seconds), abs=0.1)
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    assert np.argmax(spectrum) * heard / len(wave) == pytest.approx(440, abs=5)
    assert np.abs(wave).max() == pytest.approx(0.5, abs=0.1)
    assert len(list(footage.read(path).pictures())) == 20


def test_a_film_that_breaks_off_leaves_the_old_one(tmp_path: Path) -> None:
    for name in FILMS:
        path = tmp_path / name
        video.write(moving(2), path, 10)
        before = sorted(path.iterdir()) if path.is_dir() else path.read_bytes()

        def broken() -> Iterator[Image.Image]:
            yield from moving(3)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            video.write(broken(), path, 10)
        assert (sorted(path.iterdir()) if path.is_dir() else path.read_bytes()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILMS)


def test_frames_take_the_place_of_earlier_ones(tmp_path: Path) -> None:
    video.write(moving(5), tmp_path / "f", 10)
    video.write(moving(2), tmp_path / "f", 10)
    assert len(list((tmp_path / "f").iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_what_killed_films_left_is_removed_and_what_others_write_stays(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead, living = (tmp_path / f".f.gif.{pid}.part" for pid in (gone.pid, os.getppid()))
    other = tmp_path / f".f.gifs.{gone.pid}.part"
    for path in (dead, living, other):
        path.write_bytes(b"")
    video.write(moving(2), tmp_path / "f.gif", 10)
    assert not dead.exists()
    assert living.exists()
    assert other.exists()


@pytest.mark.parametrize(
    ("name", "fps", "sound", "said"),
    [
        ("film.xyz", 20, False, "unknown container '.xyz'"),
        ("film.gif", 60, False, "at most 50"),
        ("film.mp4", 0, False, "0 frames a second"),
        ("film.gif", 20, True, "cannot hold sound"),
        ("frames", 20, True, "cannot hold sound"),
        ("no/film.mp4", 20, False, "no such folder"),
        ("taken", 20, False, "holds other things"),
        ("taken.mp4", 20, False, "is a folder"),
    ],
)
def test_what_cannot_be_written_is_said_first(name: str, fps: float, sound: bool, said: str, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "diary.txt").write_text("mine")
    (tmp_path / "taken.mp4").mkdir()
    with pytest.raises(ReverieError, match=said) as caught:
        video.check(tmp_path / name, fps, sound=sound)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [*FILMS, "sheet.png"])
def test_no_frames_and_frames_of_other_sizes_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ReverieError, match="zero frames"):
        video.write([], tmp_path / name, 10)
    with pytest.raises(ReverieError, match="frame 1 has 16x16 pixels, and the film 64x48"):
        video.write([*moving(1), *flat((0, 0, 0), size=(16, 16))], tmp_path / name, 10)
    assert list(tmp_path.iterdir()) == []


def test_frames_that_come_unevenly_are_shown_at_their_times() -> None:
    a, b, c = flat((1, 0, 0), (2, 0, 0), (3, 0, 0))
    timed = [(0.0, a), (0.35, b), (0.41, c)]  # b would stand for less than half a frame
    reds = [np.asarray(frame)[0, 0, 0] for frame in footage.evenly(timed, 10, 0.7)]
    assert reds == [1, 1, 1, 1, 3, 3, 3]
    assert [id(frame) for frame in footage.evenly([(0.0, a)], 10)] == [id(a)]
    assert list(footage.evenly([], 10)) == []


def test_a_playlist_is_not_followed(tmp_path: Path) -> None:
    """FFmpeg tells formats by their content, and some name other files."""
    video.write(moving(2), tmp_path / "secret.mp4", 10)
    playlists = {
        "a.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path / 'secret.mp4'}\n#EXT-X-ENDLIST\n",
        "b.mkv": f"ffconcat version 1.0\nfile '{tmp_path / 'secret.mp4'}'\n",
    }
    for name, text in playlists.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(ReverieError, match="cannot read"):
            footage.read(tmp_path / name)


@pytest.mark.parametrize("name", FILMS[:4])
def test_damage_is_said_in_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    video.write(moving(), path, 24)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for cut in (0, 7, 100, len(whole) // 2):
        path.write_bytes(whole[:cut])
        _read_or_refuse(path)
    for _ in range(20):
        damaged = bytearray(whole)
        for at in random.integers(0, len(whole), 20):
            damaged[at] = random.integers(256)
        path.write_bytes(damaged)
        _read_or_refuse(path)


def _read_or_refuse(path: Path) -> None:
    """Any other exception than ours fails the test."""
    with suppress(ReverieError):
        for _ in zip(range(50), footage.read(path).pictures(), strict=False):
            pass


def test_what_is_no_film_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    for name, said in (("a.txt", "cannot read"), ("empty", "no pictures"), ("none.mp4", "no film at")):
        with pytest.raises(ReverieError, match=said):
            footage.read(tmp_path / name)


@pytest.mark.parametrize("suffix", [".webp", ".gif", ".png"])
def test_frames_joined_into_long_ones_are_all_read(tmp_path: Path, suffix: str) -> None:
    """Pillow's writers, and libwebp's, join frames that do not differ; at the mean rate most others are skipped."""
    still, moving = (0, 0, 0), [(40 * k, 255 - 40 * k, 0) for k in range(1, 6)]
    shown = [*[still] * 20, *moving, *[still] * 15]
    frames = [Image.new("RGB", (16, 16), colour) for colour in shown]
    delay = 40
    options = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:], duration=delay, loop=0, **options)
    film = footage.read(tmp_path / f"a{suffix}")
    assert (film.fps, film.count) == (pytest.approx(25), 40)
    assert [
        strayed(Image.new("RGB", (16, 16), colour), got).max() < 12
        for colour, got in zip(shown, film.pictures(), strict=True)
    ] == [True] * 40


@pytest.mark.parametrize(
    ("delays", "fps"),
    [
        ([40, 40, 120, 40], 25),  # a multiple
        ([41, 42, 42, 83, 125, 10_000], 24),  # whole milliseconds of 24 a second
        ([30, 30, 40] * 5, 30),  # GIF's hundredths of 30 a second
        ([20, 30] * 20, 40),
        ([20] * 20 + [30] * 20, 100),  # a common divisor
        ([100, 250], 20),
        ([35] * 10 + [49] * 10, 1000 / 35),  # none that is meant
        ([100], 10),
    ],
)
def test_rates_lose_no_frame(delays: list[float], fps: float) -> None:
    rate = footage.rate_of(delays)
    assert rate == pytest.approx(fps, rel=2e-3)
    times = [sum(delays[:index]) / 1000 for index in range(len(delays))]
    timed = [(time, Image.new("L", (1, 1), index % 256)) for index, time in enumerate(times)]
    shown = [frame.getpixel((0, 0)) for frame in footage.evenly(timed, rate, sum(delays) / 1000)]
    assert sorted(set(shown)) == list(range(len(delays)))


def test_gif_delays_are_played_as_browsers_play_them(tmp_path: Path) -> None:
    """0 and 1 hundredth stand for a tenth of a second (WebKit, ImageDecoderCG.cpp, frameDurationAtIndex)."""
    frames = [Image.new("RGB", (8, 8), (60 * k, 0, 0)) for k in range(4)]
    for delay, fps in ((0, 10), (10, 10), (20, 50), (50, 20)):
        frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=delay)
        assert footage.read(tmp_path / "a.gif").fps == pytest.approx(fps)


def test_frames_of_a_folder_come_by_number(tmp_path: Path) -> None:
    for number in (10, 2, 1, 30):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"frame{number}.png")
    assert [frame.getpixel((0, 0))[0] for frame in footage.read(tmp_path).pictures()] == [1, 2, 10, 30]


def test_transparent_frames_are_read_on_white(tmp_path: Path) -> None:
    frames = [Image.new("RGBA", (8, 8), (0, 0, 0, 0)), Image.new("RGBA", (8, 8), (255, 0, 0, 255))]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=100, lossless=True)
    assert [frame.getpixel((4, 4)) for frame in footage.read(tmp_path / "a.webp").pictures()] == [
        (255,) * 3,
        (255, 0, 0),
    ]
