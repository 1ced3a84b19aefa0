"""Is the watermark unseen, does it survive JPEG, and is nothing read where nothing was written?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter
from scipy import fft

from reverie.errors import ReverieError
from reverie.media.pictures import open_picture, save
from reverie.media.provenance import (
    LUMA,
    STEP,
    embed_bits,
    extract_votes,
    read_watermark,
    watermark_room,
    write_watermark,
)


def clouds(size: int, seed: int = 0) -> Image.Image:
    """Draw noise whose spectrum falls as a photograph's does."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size))) + 1 / size
    noise = np.random.default_rng(seed).normal(size=(3, size, size))
    planes = np.fft.ifft2(np.fft.fft2(noise) / frequency).real
    planes = 0.8 * planes[:1] + 0.4 * planes
    return Image.fromarray((128 + 50 * planes / planes.std()).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def discs(size: int) -> Image.Image:
    """Draw pure colours on white, which leave no room upwards, with soft edges."""
    picture = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(picture)
    for index, colour in enumerate(("red", "blue", "black", "lime")):
        x, y = index % 2 * size // 2, index // 2 * size // 2
        draw.ellipse((x, y, x + size // 3, y + size // 3), fill=colour)
    return picture.filter(ImageFilter.GaussianBlur(1))


def psnr(a: Image.Image, b: Image.Image) -> float:
    error = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    return float(10 * np.log10(255**2 / (error**2).mean()))


@pytest.mark.parametrize("quality", [95, 85, 75])
@pytest.mark.parametrize("size", [128, 512])
@pytest.mark.parametrize("make", [clouds, discs])
def test_survives_jpeg(make, size: int, quality: int, tmp_path: Path) -> None:
    text, file = {128: "reverie 0.1", 512: "drawn by reverie from the prompt 'a bear'"}[size], tmp_path / "x.jpg"
    picture = make(size)
    marked = write_watermark(picture, text)
    assert psnr(picture, marked) > 43
    marked.save(file, quality=quality)
    assert read_watermark(file) == text


def test_survives_other_formats_and_a_change_of_brightness(tmp_path: Path) -> None:
    marked = write_watermark(clouds(128), "reverie")
    assert read_watermark(marked) == "reverie"
    for suffix in ("png", "webp"):
        save(marked, tmp_path / f"x.{suffix}")
        assert read_watermark(tmp_path / f"x.{suffix}") == "reverie"
    wiped = np.asarray(marked).copy()
    wiped[:32, :32] = 0
    assert read_watermark(Image.fromarray(wiped)) == "reverie"


def test_nothing_is_read_where_nothing_was_written(tmp_path: Path) -> None:
    pictures = [clouds(128, seed) for seed in range(10)]
    pictures += [Image.new("RGB", (256, 256), colour) for colour in ("white", "black", "teal")]
    for picture in (*pictures, Image.new("RGB", (8, 8))):
        with pytest.raises(ReverieError, match="holds no watermark"):
            read_watermark(picture)
    with pytest.raises(ReverieError, match=r"cannot read '.*nothing\.png': no such file"):
        read_watermark(tmp_path / "nothing.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ReverieError, match="not a picture, or damaged"):
        read_watermark(tmp_path / "text.png")


@settings(max_examples=20, deadline=None)
@given(text=st.text(min_size=1, max_size=3), width=st.integers(96, 140), height=st.integers(96, 140))
def test_every_text_and_size(text: str, width: int, height: int) -> None:
    picture = clouds(140).crop((0, 0, width, height))
    if 0 < len(text.encode(errors="replace")) <= watermark_room(picture):
        assert read_watermark(write_watermark(picture, text)) == text


def test_what_does_not_fit_is_refused() -> None:
    assert [watermark_room(Image.new("RGB", (size, size))) for size in (64, 128, 256, 1024)] == [0, 12, 60, 60]
    with pytest.raises(
        ReverieError, match="13 bytes does not fit a picture of 128 x 128 pixels; give a text of 1 to 12"
    ):
        write_watermark(clouds(128), "reverie 0.1.0")
    with pytest.raises(ReverieError, match="give one of at least 96 x 96"):
        write_watermark(clouds(64), "x")
    with pytest.raises(ReverieError, match="0 bytes"):
        write_watermark(clouds(128), "")


def test_transparency_and_metadata_stay(tmp_path: Path) -> None:
    picture = clouds(128)
    picture.putalpha(Image.linear_gradient("L").resize((128, 128)))
    picture.info["parameters"] = "a bear\nSteps: 20"
    marked = write_watermark(picture, "reverie")
    save(marked, tmp_path / "x.png")
    assert marked.getchannel("A").tobytes() == picture.getchannel("A").tobytes()
    assert open_picture(tmp_path / "x.png").info["parameters"] == "a bear\nSteps: 20"


def test_a_palette_s_transparency_stays(tmp_path: Path) -> None:
    discs(128).quantize(16).save(tmp_path / "x.png", transparency=0)
    picture = open_picture(tmp_path / "x.png")
    marked = write_watermark(picture, "reverie")
    save(marked, tmp_path / "y.png")
    assert marked.getchannel("A").tobytes() == picture.convert("RGBA").getchannel("A").tobytes()
    assert read_watermark(tmp_path / "y.png") == "reverie"


def test_a_bit_is_in_the_largest_singular_value_of_the_wavelet_s_cosine_transform() -> None:
    """Compute the three transforms one after another, as the method is named."""
    bits = np.random.default_rng(0).integers(0, 2, 16 * 16).astype(np.uint8)
    luma = embed_bits(np.asarray(clouds(128), dtype=np.float64), bits) @ LUMA
    low = (luma[::2, ::2] + luma[1::2, ::2] + luma[::2, 1::2] + luma[1::2, 1::2]) / 2
    for index, (row, column) in enumerate(np.ndindex(16, 16)):
        block = low[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        largest = np.linalg.svd(fft.dctn(block, norm="ortho"), compute_uv=False)[0]
        assert (largest / STEP % 1 > 0.5) == bits[index]
    assert ((extract_votes(luma) > 0) == bits).all()
    assert np.abs(extract_votes(luma)).mean() > 0.9
