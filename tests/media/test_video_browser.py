"""Do the films play in a real browser, in full length and in the right colours?"""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reverie.media import video

pytestmark = pytest.mark.slow  # a browser takes seconds to start, and few machines have one

CHROMIUM = shutil.which("chromium")
TYPES = {".mp4": "video/mp4", ".webm": "video/webm", ".gif": "image/gif", ".webp": "image/webp"}
COLOURS = [(220, 30, 30), (30, 200, 60), (40, 60, 210), (230, 210, 50)]
PLAY = """async ([data, type]) => {
    const blob = await (await fetch(`data:${type};base64,${data}`)).blob();
    const film = document.createElement('video');
    film.muted = true;
    film.src = URL.createObjectURL(blob);
    document.body.append(film);
    await film.play();
    await new Promise((done, failed) => { film.onended = done; film.onerror = () => failed(film.error.message); });
    const canvas = new OffscreenCanvas(film.videoWidth, film.videoHeight).getContext('2d', {willReadFrequently: true});
    const seen = [];
    for (const time of [0.25, 0.75, 1.25, 1.75]) {
        const sought = new Promise(done => { film.onseeked = done; });
        film.currentTime = time;
        await sought;
        canvas.drawImage(film, 0, 0);
        seen.push([...canvas.getImageData(film.videoWidth / 2, film.videoHeight / 2, 1, 1).data].slice(0, 3));
    }
    const frames = film.getVideoPlaybackQuality().totalVideoFrames;
    const sound = film.webkitAudioDecodedByteCount;
    return {width: film.videoWidth, height: film.videoHeight, duration: film.duration, frames, sound, seen};
}"""
DECODE = """async ([data, type]) => {
    const bytes = await (await fetch(`data:${type};base64,${data}`)).arrayBuffer();
    const film = new ImageDecoder({data: bytes, type});
    await film.tracks.ready;
    const track = film.tracks.selectedTrack, seen = [];
    await film.completed;
    for (let index = 0; index < track.frameCount; index++) {
        const {image} = await film.decode({frameIndex: index});
        const canvas = new OffscreenCanvas(image.displayWidth, image.displayHeight).getContext('2d');
        canvas.drawImage(image, 0, 0);
        const middle = [...canvas.getImageData(image.displayWidth / 2, image.displayHeight / 2, 1, 1).data];
        seen.push([image.duration, ...middle.slice(0, 3)]);
    }
    return {loops: track.repetitionCount === Infinity, seen};
}"""


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    """Open a page in Chromium, where that and playwright are installed."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        )
        page = browser.new_page()
        page.route("https://film.test/", lambda route: route.fulfill(body="<body></body>", content_type="text/html"))
        page.goto("https://film.test/")  # ImageDecoder wants a secure context
        yield page
        browser.close()


def four_colours(each: int) -> list[Image.Image]:
    return [Image.new("RGB", (128, 96), colour) for colour in COLOURS for _ in range(each)]


def encoded(path: Path) -> list[str]:
    return [base64.b64encode(path.read_bytes()).decode(), TYPES[path.suffix]]


@pytest.mark.parametrize("name", ["film.mp4", "film.webm"])
def test_films_play(page: Any, name: str, tmp_path: Path) -> None:
    tone = SimpleNamespace(samples=0.3 * np.sin(np.arange(88200) / 16)[None].astype(np.float32), rate=44100)
    video.write(four_colours(10), tmp_path / name, 20, sound=tone)
    shown = page.evaluate(PLAY, encoded(tmp_path / name))
    assert (shown["width"], shown["height"]) == (128, 96)
    assert shown["duration"] == pytest.approx(2.0, abs=0.1)
    assert shown["frames"] >= 10  # a busy machine drops some
    assert shown["sound"] > 0
    assert strayed(shown["seen"]) <= 12  # 20 and more where the file does not tell its colour space


@pytest.mark.parametrize("name", ["film.gif", "film.webp"])
def test_animated_pictures_play(page: Any, name: str, tmp_path: Path) -> None:
    video.write(four_colours(1), tmp_path / name, 20)
    shown = page.evaluate(DECODE, encoded(tmp_path / name))
    assert shown["loops"]
    assert [seen[0] for seen in shown["seen"]] == [50_000] * 4  # microseconds
    assert strayed([seen[1:] for seen in shown["seen"]]) <= 12


def strayed(seen: list[list[int]]) -> int:
    return int(np.abs(np.array(seen) - np.array(COLOURS)).max())
