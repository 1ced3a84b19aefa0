"""How long until a sketch is a picture on the screen? Strokes in Chromium, drawn live by a server.

From the end of each stroke until the picture of the whole sketch is shown; before it one of a part of the sketch may
still be drawn up to its next step. Beside it stand the parts of it: in the browser until the canvas is sent, until its
picture is there, of that drawing on the server, and in the browser until it is shown, two frames after it was decoded.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from statistics import median, quantiles

from playwright.sync_api import Page, sync_playwright

from reverie.server.app import Server, listen, uvicorn_config
from reverie.server.settings import Settings

PROMPT = "a bear on a green background"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
WAIT = 120_000  # milliseconds, on a busy machine
SECONDS = 0.6  # that a stroke takes
PARTS = (
    "until it is on the screen",
    "until it is sent",
    "until its picture came",
    "of that drawing",
    "until it is shown",
)
WATCH = """() => {
  Object.assign(window, { released: 0, sent: 0, heard: 0, seen: 0 });
  addEventListener("pointerup", (event) => (released = event.timeStamp), true);
  const send = WebSocket.prototype.send;
  WebSocket.prototype.send = function (text) {
    if (!sent) this.addEventListener("message", ({ data, timeStamp }) => JSON.parse(data).image && (heard = timeStamp));
    sent = performance.now();
    send.call(this, text);
  };
  const show = () => requestAnimationFrame(() => requestAnimationFrame(() => (seen = performance.now())));
  document.querySelector("#picture").addEventListener("load", show);
}"""


def main() -> int:
    """Print the quartiles of the milliseconds; return the exit status."""
    parser = argparse.ArgumentParser(description="Measure from the end of a stroke to the picture.")
    parser.add_argument("--strokes", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, served(Path(home)) as address, sync_playwright() as run:
        browser = run.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(WAIT)
        page.goto(f"{address}/#draw")
        page.locator("#ask [name=sampler] option").first.wait_for(state="attached")
        page.fill("#prompt", PROMPT)
        parts = [*zip(*strokes(page, options.strokes), strict=True)]
        browser.close()
    print("| from the end of a stroke | least | lower quartile | median | upper quartile | most |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, values in zip(PARTS, parts, strict=True):
        cells = (min(values), *quantiles(values, n=4), max(values))
        print(f"| {name}, ms | {' | '.join(f'{value:.0f}' for value in cells)} |")
    print(f"median {median(parts[0]):.0f} ms, {len(parts[0])} strokes of {SECONDS:g} s")
    return 0


def strokes(page: Page, count: int) -> Iterator[tuple[float, ...]]:
    """Draw live, and yield of each stroke the milliseconds until its picture, and `PARTS` of them."""
    last = {"sent": 0, "heard": 0}  # numbers of canvases

    def note_sent(text: str | bytes) -> None:
        last["sent"] = json.loads(text)["number"]

    def note_heard(text: str | bytes) -> None:
        event = json.loads(text)
        last["heard"] = event["number"] if event["type"] == "picture" else last["heard"]

    page.on("websocket", lambda socket: (socket.on("framesent", note_sent), socket.on("framereceived", note_heard)))
    page.evaluate(WATCH)
    page.check("#live", force=True)
    page.locator("#picture[data-seconds]").wait_for()
    box, random = page.locator("#paper").bounding_box(), Random(0)
    assert box is not None

    def somewhere() -> tuple[float, float]:
        return box["x"] + box["width"] * random.uniform(0.2, 0.8), box["y"] + box["height"] * random.uniform(0.2, 0.8)

    for number in range(count + 2):
        page.mouse.move(*somewhere())
        page.mouse.down()
        start = time.monotonic()
        while time.monotonic() - start < SECONDS:
            page.mouse.move(*somewhere(), steps=3)
        page.mouse.up()
        still = 0
        while still < 5:  # looks at an idle page, one after the other
            page.wait_for_timeout(30)
            still = still + 1 if last["sent"] == last["heard"] else 0
        if number >= 2:  # the first ones warm up
            seconds = page.get_attribute("#picture", "data-seconds") or ""
            released, sent, heard, seen = page.evaluate("[released, sent, heard, seen]")
            if sent < released:  # all of it was drawn, or sent, when the stroke ended
                continue
            parts = (seen - released, sent - released, heard - sent, 1000 * float(seconds), seen - heard)
            print(f"stroke {number - 1}: {', '.join(f'{part:.0f}' for part in parts)} ms", file=sys.stderr)
            yield parts


@contextmanager
def served(home: Path) -> Iterator[str]:
    """Serve the bundled models on a free port."""
    settings, ready = Settings(home=home, port=0), threading.Event()
    with listen(settings) as listener:
        server = Server(uvicorn_config(settings), ready.set)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        ready.wait()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
