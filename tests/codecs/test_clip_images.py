"""CLIP's preprocessing against transformers' and the rules of torchvision, OpenAI's and open_clip's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from reverie.codecs.clip_images import Preprocessing, as_picture, read_open_clip, read_preprocessing
from reverie.errors import ReverieError
from reverie.models.clip import IMAGE_MEAN, IMAGE_STD

SIZES = [(224, 224), (500, 375), (375, 501), (97, 640), (225, 224), (1023, 767)]


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A picture with waves of all lengths, so that a crop or a filter that is a pixel off shows."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[1], : size[0]]
    waves = [128 + 127 * np.sin(x / rng.uniform(1, 40) + y / rng.uniform(1, 40)) for _ in range(3)]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8))


def torchvision(picture: Image.Image, size: int) -> np.ndarray:
    """Restate torchvision's Resize and CenterCrop on a picture, which OpenAI's and open_clip's transforms are made of.

    Source: torchvision/transforms/functional.py, `_compute_resized_output_size` and `center_crop`.
    """
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    other = int(size * long / short)
    resized = picture.resize((size, other) if width <= height else (other, size), Image.Resampling.BICUBIC)
    left, top = int(round((resized.width - size) / 2.0)), int(round((resized.height - size) / 2.0))  # noqa: RUF046
    return np.asarray(resized)[top : top + size, left : left + size].astype(np.float32) / 255


@pytest.mark.parametrize("size", SIZES)
def test_equals_openai_and_open_clip(size: tuple[int, int]) -> None:
    picture = noise(size)
    ours = Preprocessing().levels([picture])[0].permute(1, 2, 0).numpy() / 255
    assert np.abs(ours - torchvision(picture, 224)).max() < 1 / 255


@pytest.mark.parametrize("size", SIZES)
def test_a_folder_of_transformers_equals_its_processor(size: tuple[int, int]) -> None:
    picture, processor = noise(size), CLIPImageProcessorPil()
    made = read_preprocessing(processor.to_dict(), "preprocessor_config.json")
    oracle = processor(picture, return_tensors="pt")["pixel_values"]
    difference = (made([picture]) - oracle).abs() * torch.tensor(IMAGE_STD)[:, None, None]  # of pixels in [0, 1]
    assert difference.max() < 1 / 255


def test_the_references_differ_where_half_a_pixel_is_left() -> None:
    """At 224 x 227 torchvision begins at line 2 (1.5 goes to the even), transformers at line 1."""
    picture = Image.fromarray(np.repeat(np.arange(227, dtype=np.uint8)[:, None, None], 224, 1).repeat(3, 2))
    assert Preprocessing().levels([picture])[0, 0, 0, 0] == 2
    made = read_preprocessing(CLIPImageProcessorPil().to_dict(), "")
    assert made.levels([picture])[0, 0, 0, 0] == 1


def test_other_sizes_and_filters() -> None:
    picture = noise((300, 200))
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 64}, crop_size={"height": 48, "width": 48}, resample=2, image_mean=[0.5] * 3
    )
    made = read_preprocessing(processor.to_dict(), "")
    oracle = processor(picture, return_tensors="pt")["pixel_values"]
    assert (made([picture]) - oracle).abs().max() < 1 / 255 / min(IMAGE_STD)


def test_open_clips_ways() -> None:
    squashed = read_open_clip({"resize_mode": "squash", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}, 32, "")
    picture = noise((90, 40))
    assert np.array_equal(
        squashed.levels([picture])[0].permute(1, 2, 0).numpy(),
        np.asarray(picture.resize((32, 32), Image.Resampling.BICUBIC)),
    )
    assert squashed([Image.new("RGB", (8, 8), "white")]).max() == pytest.approx(1)
    # `longest` lays the whole picture on black: 90 x 35 becomes 32 x 12, with 10 lines above and 10 below.
    levels = read_open_clip({"resize_mode": "longest"}, 32, "").levels([Image.new("RGB", (90, 35), "white")])[0, 0]
    assert levels[:, 0].nonzero().flatten().tolist() == list(range(10, 22))


def test_mean_and_deviation() -> None:
    levels = (torch.tensor(IMAGE_MEAN) * 255).round().to(torch.uint8).view(1, 3, 1, 1).expand(1, 3, 224, 224)
    assert Preprocessing().normalise(levels).abs().max() < 0.5 / 255 / min(IMAGE_STD)


def test_any_mode_is_read_and_faults_name_the_file(tmp_path: Path) -> None:
    for mode in ("L", "RGBA", "P", "CMYK", "1", "I;16"):
        assert as_picture(Image.new(mode, (9, 8))).mode == "RGB"
    noise((64, 64)).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    for name, data in {"cut.png": whole[:900], "text.png": b"no picture", "empty.jpg": b""}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ReverieError, match=name):
            Preprocessing().levels([tmp_path / name])
    with pytest.raises(ReverieError, match=r"missing\.png"):
        as_picture(tmp_path / "missing.png")


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        ({"do_normalize": False}, "do_normalize"),
        ({"size": {"shortest_edge": 100}, "crop_size": 224}, "cannot be cut"),
        ({"size": {"height": 100, "width": 90}}, "not square"),
        ({"size": "large"}, "no whole number"),
        ({"image_mean": [0.5]}, "three numbers"),
        ({"resample": 0}, "bicubic"),
    ],
)
def test_what_no_clip_asks_for_is_refused(raw: dict[str, object], fault: str) -> None:
    with pytest.raises(ReverieError, match=fault):
        read_preprocessing(raw, "preprocessor_config.json")


def test_open_clip_faults() -> None:
    for raw, fault in (({"resize_mode": "fill"}, "resize_mode"), ({"size": 384}, "384")):
        with pytest.raises(ReverieError, match=fault):
            read_open_clip(raw, 224, "open_clip_config.json")
