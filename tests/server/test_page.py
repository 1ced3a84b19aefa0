"""The page in Debian's Chromium, over a tiny model of random weights: what a person does, and what then is there."""

from __future__ import annotations

import base64
import io
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from PIL import Image

from reverie.media.sound import read as read_sound
from reverie.server.settings import Settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not here")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not here")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--autoplay-policy=no-user-gesture-required",
]  # fmt: skip
PHONE = {"width": 360, "height": 740}
ROOMS = ("draw", "animate", "compare", "music", "gallery")
WAIT = 60_000  # milliseconds, on a busy machine


@pytest.fixture(scope="module")
def address(
    serve: Callable[[Settings], AbstractContextManager[str]],
    settings: Settings,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """Serve on a free port."""
    own = replace(settings, home=tmp_path_factory.mktemp("page"), limits=replace(settings.limits, steps=150))
    with serve(own) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with playwright.sync_playwright() as run:
        browser = run.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Callable[..., Page]]:
    """Open the page in a context of its own; afterwards no script may have complained."""
    contexts, wrong = [], []

    def visit(room: str = "draw", **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, "locale": "en-US", **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
        page.goto(f"{address}/#{room}")
        page.locator("#ask [name=sampler] option" if room == "draw" else "[aria-current]").first.wait_for(
            state="attached"
        )
        return page

    yield visit
    for context in contexts:
        context.close()
    assert [text for text in wrong if "status of 422" not in text] == []  # refusals are shown on the page


def gallery(address: str) -> list[dict[str, Any]]:
    return httpx.get(f"{address}/api/gallery").json()["jobs"]


def stroke(page: Page, places: list[tuple[float, float]]) -> None:
    """Draw with the mouse through places on the paper, fractions of its size."""
    box = page.locator("#paper").bounding_box()
    assert box is not None
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in places]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=4)
    page.mouse.up()


def set_steps(page: Page, steps: int = 2) -> None:
    page.evaluate(f"document.querySelector('#ask [name=steps]').value = {steps}")


def test_a_prompt_becomes_a_picture_and_stands_in_the_gallery(visit: Callable[..., Page], address: str) -> None:
    page = visit()
    page.fill("#prompt", "a {quiet|quiet} bear")
    page.click("#ask summary")
    page.select_option("#style", "ink")
    set_steps(page)
    page.press("#prompt", "Enter")
    picture = page.locator("#recent img")
    picture.first.wait_for()
    assert page.evaluate("document.querySelector('#picture').naturalWidth") > 0
    (job,) = gallery(address)
    width = page.evaluate("document.querySelector('#picture').naturalWidth")
    page.click("#enlarge")
    picture.nth(1).wait_for()
    assert page.evaluate("document.querySelector('#picture').decode().then(() => picture.naturalWidth)") == 2 * width
    assert [one["kind"] for one in gallery(address)] == ["upscale", "text_to_image"]
    httpx.delete(f"{address}/api/gallery/{gallery(address)[0]['id']}").raise_for_status()
    assert picture.first.get_attribute("alt") == f"a quiet bear in ink, seed {job['request']['seed']}"
    words = "a {quiet|quiet} bear in ink"
    assert (job["kind"], job["request"]["prompt"], job["request"]["steps"]) == ("text_to_image", words, 2)
    page.click("nav a[href='#gallery']")
    page.click("#shelf .card")
    assert words in page.inner_text("#piece")
    page.click("#piece .primary")  # use its settings
    assert (page.input_value("#prompt"), page.input_value("#style")) == (words, "")
    assert page.input_value("#ask [name=seed]") == str(job["request"]["seed"])


@pytest.mark.slow
def test_a_picture_is_varied_and_each_of_several_is_downloaded(visit: Callable[..., Page], address: str) -> None:
    page = visit()
    hidden = "document.querySelector('#vary').hidden"
    assert page.evaluate(hidden)  # the tiny model sees no pictures
    page.select_option("#model", "reverie-turbo")
    assert not page.evaluate(hidden)
    page.evaluate("document.querySelector('#ask [name=count]').value = 2")
    page.fill("#prompt", "a panda")
    page.press("#prompt", "Enter")
    page.locator("#recent img").nth(1).wait_for()
    (first,) = [one for one in gallery(address) if one["request"]["prompt"] == "a panda"]
    page.click("#vary")
    page.locator("#recent img").nth(2).wait_for()
    varied = gallery(address)[0]
    shown = first["files"][0]["name"]
    assert (varied["kind"], varied["request"]["prompt"], varied["request"]["vary"]) == ("text_to_image", "", [shown])
    assert len(varied["files"]) == 1
    alt = page.locator("#recent img").first.get_attribute("alt")
    assert alt == f"like another picture, seed {varied['request']['seed']}"
    page.click("nav a[href='#gallery']")
    page.click("#shelf .card:has-text('a panda')")
    links = page.locator("#piece a")
    assert links.all_inner_texts() == ["Download png 1", "Download png 2"]
    assert [link.get_attribute("download") for link in links.all()] == [one["name"] for one in first["files"]]
    page.keyboard.press("Escape")
    page.click("#shelf .card:has-text('like another picture')")
    assert links.all_inner_texts() == ["Download png"]
    page.keyboard.press("Escape")
    page.click("nav a[href='#draw']")
    assert "{0}" not in page.inner_text("#room-draw")
    box = "document.querySelector('#doings')"
    assert page.evaluate(f"{box}.scrollWidth <= {box}.clientWidth")  # nothing to be done is out of sight


@pytest.mark.slow
def test_strokes_lead_the_picture_and_can_be_undone(visit: Callable[..., Page], address: str) -> None:
    page = visit()
    set_steps(page)
    stroke(page, [(0.3, 0.3), (0.7, 0.7)])
    page.click("#ask .primary")
    page.locator("#recent img").wait_for()
    job = gallery(address)[0]
    assert job["kind"] == "image_to_image"
    init = httpx.get(f"{address}/api/files/{job['request']['init']}")
    picture = Image.open(io.BytesIO(init.content)).convert("RGB")
    assert picture.getpixel((picture.width // 2, picture.height // 2)) == (0x8A, 0x5A, 0x2B)
    assert picture.getpixel((picture.width - 1, 0)) == (0xA0, 0xA0, 0xA0)  # unpainted, and far from the stroke
    page.fill("#strength", "0")
    page.click("#ask .primary")
    page.locator("#recent img").nth(1).wait_for()
    job = gallery(address)[0]
    assert job["kind"] == "inpaint"
    drawn = Image.open(io.BytesIO(httpx.get(f"{address}{job['files'][0]['url']}").content)).convert("RGB")
    assert drawn.getpixel((drawn.width // 2, drawn.height // 2)) == (0x8A, 0x5A, 0x2B)  # strokes stay to the bit
    page.click("#undo")
    page.click("#ask .primary")
    page.locator("#recent img").nth(2).wait_for()
    assert gallery(address)[0]["kind"] == "text_to_image"


@pytest.mark.slow
def test_settings_used_again_bring_back_the_sheet_and_what_the_form_does_not_show(
    visit: Callable[..., Page], address: str
) -> None:
    page = visit()
    set_steps(page, 6)
    stroke(page, [(0.3, 0.3), (0.7, 0.7)])
    page.click("#ask .primary")
    page.locator("#recent img").wait_for()
    page.click("#variations")
    page.locator("#recent img").nth(4).wait_for()
    first = gallery(address)[0]["request"]
    page.click("#clear")
    page.click("nav a[href='#gallery']")
    page.click("#shelf .card >> nth=0")
    page.click("#piece .primary")
    page.locator("body.sketched").wait_for()
    assert page.input_value("#ask [name=steps]") == "6"
    assert "variation" in page.locator("#carried").text_content()
    page.click("#ask .primary")
    page.locator("#recent img").nth(8).wait_for()
    again = gallery(address)[0]["request"]
    assert {name: first[name] for name in again if name != "init"} == {
        name: again[name] for name in again if name != "init"
    }


@pytest.mark.slow
def test_the_keyboard_alone_sketches_and_draws(visit: Callable[..., Page], address: str) -> None:
    page = visit()
    set_steps(page)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "paper":
            break
    page.keyboard.down(" ")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    page.keyboard.up(" ")
    assert page.locator("#undo").is_enabled()
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "prompt":
            break
    page.keyboard.type("a line")
    page.keyboard.press("Enter")
    page.locator("#recent img").wait_for()
    job = gallery(address)[0]
    assert (job["kind"], job["request"]["prompt"]) == ("image_to_image", "a line")


@pytest.mark.slow
def test_live_draws_the_newest_canvas_and_keeps_nothing(visit: Callable[..., Page], address: str) -> None:
    page, before = visit(), len(gallery(address))
    page.check("#live", force=True)
    page.locator("#picture[data-seconds]").wait_for()
    first = page.get_attribute("#picture", "src")
    stroke(page, [(0.2, 0.5), (0.8, 0.5)])
    page.locator(f'#picture:not([src="{first}"])').wait_for()
    page.uncheck("#live", force=True)
    assert len(gallery(address)) == before


@pytest.mark.slow
def test_a_dropped_picture_brings_its_settings_back(visit: Callable[..., Page], address: str) -> None:
    page = visit()
    page.fill("#prompt", "a bear, kept")
    set_steps(page, 3)
    page.press("#prompt", "Enter")
    page.locator("#recent img").wait_for()
    job = gallery(address)[0]
    content = base64.b64encode(httpx.get(f"{address}{job['files'][0]['url']}").content).decode()
    page.fill("#prompt", "")
    page.evaluate(
        """(content) => {
          const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File([bytes], "bear.png", { type: "image/png" }));
          document.querySelector("#ask").dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
        }""",
        content,
    )
    page.locator("#toast:not([hidden])").wait_for()
    assert page.input_value("#prompt") == "a bear, kept"
    assert page.input_value("#ask [name=steps]") == "3"
    assert page.input_value("#ask [name=seed]") == str(job["request"]["seed"])


@pytest.mark.slow
def test_a_film_plays_and_a_wrong_one_is_told_in_words(visit: Callable[..., Page]) -> None:
    page = visit("animate")
    for name, value in {"seconds": "1", "fps": "4", "steps": "3"}.items():
        page.fill(f"#film [name={name}]", value)
    page.click("#film .primary")
    page.locator("#player:not([hidden])").wait_for()
    page.locator("#film-files a").nth(2).wait_for()
    assert page.locator("#film-files a").all_inner_texts() == ["Download mp4", "Download webm", "Download gif"]
    page.click("#keyframes .remove >> nth=0")
    page.click("#film .primary")
    page.locator("#film-work .error").wait_for()
    assert "one keyframe makes no film" in page.inner_text("#film-work")


@pytest.mark.slow
def test_pictures_and_sentences_become_a_heat_map(visit: Callable[..., Page], tmp_path: Path) -> None:
    page = visit("compare")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    page.locator("#comparison").wait_for()
    count = page.locator("#compared button").count()
    with page.expect_file_chooser() as chooser:
        page.click("#choose-pictures")
    chooser.value.set_files(tmp_path / "red.png")
    page.locator("#compared button").nth(count).wait_for()
    page.fill("#sentences", "a red background\na bear")
    page.click("#comparison .primary")
    page.locator("#bars figure").first.wait_for()
    assert page.locator("#heat thead th").all_inner_texts() == ["a red background", "a bear"]
    assert page.locator("#heat tbody tr").count() == page.locator("#compared button").count()


@pytest.mark.slow
def test_words_are_shown_over_the_picture_that_they_drew(visit: Callable[..., Page], address: str) -> None:
    body = {"kind": "text_to_image", "request": {"prompt": "a bear", "steps": 2}}
    job = httpx.post(f"{address}/api/jobs", json=body).json()
    while job["id"] not in [one["id"] for one in gallery(address)]:
        time.sleep(0.1)
    page = visit("compare")
    page.locator("#compared button").first.wait_for()
    for other in reversed(page.locator("#compared button").all()[1:]):
        other.click()
    page.click("#words")
    sheet = page.locator("#explained img")
    sheet.wait_for()
    assert sheet.get_attribute("alt") == "Which word of “a bear” went where"
    width = "(image) => image.decode().then(() => image.naturalWidth)"
    assert sheet.evaluate(width) > page.locator("#compared img").evaluate(width)


@pytest.mark.slow
def test_music_sounds_with_its_spectrogram(visit: Callable[..., Page]) -> None:
    page = visit("music")
    for name, value in {"prompt": "funk bass", "steps": "2", "seconds": "3"}.items():
        page.fill(f"#tune [name={name}]", value)
    page.click("#tune .primary")
    page.locator("#score:not([hidden])").wait_for()
    assert "funk bass" in page.inner_text("#playing")
    page.wait_for_timeout(200)
    places = {line_place(page), page.wait_for_timeout(300), line_place(page)} - {None, -1}
    assert len(places) == 2


def line_place(page: Page) -> int:
    """Return in which column of the spectrogram the white line stands, or -1."""
    return page.evaluate(
        """() => {
          const canvas = document.querySelector("#spectrogram");
          const row = new Uint32Array(canvas.getContext("2d").getImageData(0, 5, canvas.width, 1).data.buffer);
          return row.indexOf(0xffffffff);
        }"""
    )


@pytest.mark.slow
def test_endless_music_is_recorded_as_it_is_heard_by_the_keyboard_alone(
    visit: Callable[..., Page], tmp_path: Path
) -> None:
    page = visit("music")
    for name, value in {"prompt": "funk bass", "steps": "2", "seconds": "2"}.items():
        page.fill(f"#tune [name={name}]", value)
    page.press("#endless", "Enter")
    page.locator("#score:not([hidden])").wait_for()
    page.press("#keep", "Enter")
    page.locator("#keep[aria-pressed=true]").wait_for()
    assert page.inner_text("#keep") == "Stop recording"
    page.click("#language")
    assert page.inner_text("#keep") == "停止录制"
    page.wait_for_timeout(1500)
    page.press("#keep", "Enter")
    page.locator("#recording:focus").wait_for()
    assert page.inner_text("#keep") == "录制正在播放的音乐"
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    page.press("#endless", "Enter")
    assert download.value.suggested_filename == "reverie.webm"
    download.value.save_as(tmp_path / "reverie.webm")
    recording = read_sound(tmp_path / "reverie.webm")
    assert recording.seconds > 1
    assert recording.samples.abs().max() > 0.01


@pytest.mark.slow
def test_chinese_and_the_dark_are_remembered(visit: Callable[..., Page]) -> None:
    page = visit(color_scheme="light")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert page.locator("#model option").first.text_content() == "default model"
    page.click("#language")
    assert page.locator("#model option").first.text_content() == "默认模型"
    page.click("#theme")
    page.reload()
    page.locator("#ask [name=sampler] option").first.wait_for(state="attached")
    assert page.inner_text("#ask .primary") == "绘画"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light


@pytest.mark.slow
def test_every_room_fits_a_small_phone(visit: Callable[..., Page]) -> None:
    page = visit(viewport=PHONE, has_touch=True)
    for room in ROOMS:
        page.click(f"nav a[href='#{room}']")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], room


@pytest.mark.slow
def test_axe_finds_nothing_serious(visit: Callable[..., Page], axe: str) -> None:
    for scheme in ("light", "dark"):
        page = visit(color_scheme=scheme)
        for room in ROOMS:
            page.click(f"nav a[href='#{room}']")
            page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
            page.evaluate(axe)
            found = page.evaluate("axe.run()")["violations"]
            serious = [one["id"] for one in found if one["impact"] in ("serious", "critical")]
            assert serious == [], (scheme, room)


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Fetch axe-core with npm; its source."""
    import subprocess

    folder, npm = tmp_path_factory.mktemp("axe"), shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not here, which fetches axe-core")
    done = subprocess.run([npm, "pack", "axe-core@4.14.1"], cwd=folder, capture_output=True, check=False, timeout=60)
    if done.returncode:
        pytest.skip("npm could not fetch axe-core")
    shutil.unpack_archive(folder / "axe-core-4.14.1.tgz", folder)
    return (folder / "package" / "axe.min.js").read_text(encoding="utf-8")
