"""Do pictures, masks, borders, second passes, refiners and edges come out as asked, each with its own request?"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

from reverie.codecs import image as codec_image
from reverie.codecs.image import ImageCodec, to_pictures
from reverie.errors import ReverieError
from reverie.generate import image
from reverie.generate.canvas import UPSCALERS, prepare, size_of
from reverie.generate.image import picture_run
from reverie.models.unet import UNet
from reverie.pipeline import Pipeline
from reverie.requests.parts import Hires, Refiner, Variation
from reverie.requests.pictures import ImageToImage, Inpaint, Outpaint, TextToImage
from reverie.requests.records import from_metadata, texts
from reverie.runtime import pack

BEAR = {"prompt": "a bear", "negative": "red", "seed": 7, "steps": 4}


def picture(width: int = 32, height: int = 32, seed: int = 0) -> Image.Image:
    generator = torch.Generator("cpu").manual_seed(seed)
    return to_pictures(torch.rand(1, 3, height, width, generator=generator) * 2 - 1)[0]


def box_mask(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", size, 0)
    mask.paste(255, box)
    return mask


INIT, MASK = picture(), box_mask((32, 32), (8, 8, 24, 24))
ASKED: dict[str, TextToImage] = {
    "image_to_image": ImageToImage(**BEAR, init=INIT, strength=0.5),
    "inpaint": Inpaint(**BEAR, init=INIT, mask=MASK, strength=0.5),
    "only_masked": Inpaint(**BEAR, init=picture(64, 48), mask=box_mask((64, 48), (8, 8, 24, 24)), only_masked=True),
    "noise": Inpaint(**BEAR, init=INIT, mask=MASK, fill="noise"),
    "outpaint": Outpaint(**BEAR, init=INIT, left=8, bottom=16),
    "variation": TextToImage(**BEAR, variation=Variation(seed=3, strength=0.2)),
    "hires_latent": TextToImage(**BEAR, hires=Hires(scale=1.5, strength=0.5)),
    "hires_lanczos": ImageToImage(**BEAR, init=INIT, hires=Hires(upscaler="lanczos", steps=2, width=40, height=48)),
    "tile": TextToImage(**BEAR, tile="xy"),
    "lcm": TextToImage(**BEAR, sampler="lcm", schedule="lcm", guidance=1),
}
SIZES = {"only_masked": (64, 48), "outpaint": (40, 48), "hires_latent": (48, 48), "hires_lanczos": (40, 48)}


def inside(one: Image.Image, other: Image.Image, box: tuple[int, int, int, int]) -> bool:
    """Tell whether two pictures agree within a box."""
    return ImageChops.difference(one.crop(box), other.crop(box)).getbbox() is None


@pytest.fixture(scope="module")
def inpainter(make_system: Callable[..., Pipeline]) -> Pipeline:
    """Give a tiny model of 9 channels."""
    system = make_system()
    torch.manual_seed(1)
    return replace(system, unet=UNet(replace(system.unet.config, in_channels=9)).eval())


@pytest.mark.parametrize("name", ASKED)
def test_each_picture_tells_how_to_make_it_alone(tiny: Pipeline, name: str) -> None:
    request = ASKED[name].replace(count=2)
    pictures = tiny.draw(request)
    assert {one.size for one in pictures} == {SIZES.get(name, (32, 32))}
    assert pictures[0].tobytes() != pictures[1].tobytes()
    told = from_metadata(pictures[1])
    assert type(told) is type(request)
    assert told == image.fill_in(tiny, request).only(1)
    assert tiny.draw(request.only(1))[0].tobytes() == pictures[1].tobytes()


def test_models_are_as_before(tiny: Pipeline) -> None:
    before = tiny.draw(TextToImage(**BEAR))[0].tobytes()
    for _ in tiny.stream(ASKED["tile"]):
        break
    assert tiny.draw(TextToImage(**BEAR))[0].tobytes() == before


def test_strength_1_is_text_to_image(tiny: Pipeline) -> None:
    plain = tiny.draw(TextToImage(**BEAR))[0]
    assert tiny.image_to_image(init=INIT, strength=1, **BEAR)[0].tobytes() == plain.tobytes()
    assert tiny.image_to_image(init=INIT, strength=0.9, **BEAR)[0].tobytes() != plain.tobytes()


def test_steps_are_those_that_the_strength_leaves(tiny: Pipeline) -> None:
    steps = [event.total for event in tiny.stream(ASKED["image_to_image"].replace(steps=20, strength=0.33))]
    assert steps == [6] * 6
    assert len(list(tiny.stream(ASKED["hires_lanczos"]))) == 3 + 1


def test_few_steps_of_a_second_pass_go_with_a_weak_first(tiny: Pipeline) -> None:
    request = ASKED["hires_lanczos"].replace(steps=20, strength=0.1, hires=Hires(scale=1.5, steps=4, strength=0.5))
    assert len(list(tiny.stream(request))) == 2 + 2


def test_the_second_size_is_filled_in_before_any_work(tiny: Pipeline) -> None:
    assert image.fill_in(tiny, ASKED["hires_latent"]).hires == Hires(scale=1.5, width=48, height=48, strength=0.5)
    with pytest.raises(ReverieError, match=r"^hires width 12800 is not possible"):
        tiny.stream(ASKED["hires_latent"].replace(width=1600, height=32, hires=Hires(scale=8)))


def keys(t: float, a: float) -> float:
    """Return Keys' cubic convolution kernel (1981), eq. 4 of its general a."""
    t = abs(t)
    near, far = (a + 2) * t**3 - (a + 3) * t**2 + 1, a * (t**3 - 5 * t**2 + 8 * t - 4)
    return near if t < 1 else far if t < 2 else 0.0


@pytest.mark.parametrize(
    ("upscaler", "kernel"),
    [
        ("latent", lambda t: max(0.0, 1 - abs(t))),
        ("latent-antialiased", lambda t: max(0.0, 1 - abs(t))),
        ("latent-bicubic", lambda t: keys(t, -0.75)),
        ("latent-bicubic-antialiased", lambda t: keys(t, -0.5)),  # torch's other a: findings/bicubic-has-two-shapes.sh
        ("latent-nearest", lambda t: float(-0.5 <= t < 0.5)),
        ("latent-nearest-exact", lambda t: float(-0.5 <= t < 0.5)),
    ],
)
def test_latents_are_enlarged_by_the_kernel_of_their_name(
    tiny: Pipeline, upscaler: str, kernel: Callable[[float], float]
) -> None:
    codec, latents = tiny.codec, torch.zeros(1, 4, 8, 8)
    latents[..., 4] = 1
    size = 32 * codec.factor
    row = UPSCALERS[upscaler](codec, (size, size), latents)[0, 0, 0, 10:26]
    expected = [kernel((column + 0.5) / 4 - 0.5 - 4) for column in range(10, 26)]
    assert row.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_weak_strength_keeps_the_latents(tiny: Pipeline) -> None:
    request = ImageToImage(**BEAR | {"steps": 1000}, init=INIT, strength=0.001, schedule="normal")
    *_, last = tiny.stream(request)
    assert (last.latents - tiny.codec.encode([INIT])).abs().max() < 0.3


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("fill", ["original", "surroundings", "noise", "nothing"])
def test_what_lies_outside_the_mask_stays_to_the_bit(tiny: Pipeline, strength: float, fill: str) -> None:
    drawn = tiny.inpaint("a bear", INIT, MASK, seed=7, steps=2, mask_blur=0, strength=strength, fill=fill)[0]  # type: ignore[arg-type]
    for box in ((0, 0, 32, 8), (0, 24, 32, 32), (0, 0, 8, 32), (24, 0, 32, 32)):
        assert inside(drawn, INIT, box)
    assert not inside(drawn, INIT, (8, 8, 24, 24))


def test_the_latents_outside_are_the_pictures(tiny: Pipeline) -> None:
    *_, last = tiny.stream(ASKED["inpaint"])
    known, hidden = tiny.codec.encode([INIT]), torch.ones(1, 4, 4, 4, dtype=torch.bool)
    hidden[..., 1:3, 1:3] = False
    assert torch.equal(last.latents[hidden], known[hidden])


def test_only_masked_draws_the_box_in_full_size(tiny: Pipeline) -> None:
    request = ASKED["only_masked"].replace(padding=4, mask_blur=0)
    assert {event.latents.shape[2:] for event in tiny.stream(request)} == {(4, 4)}
    drawn, init = tiny.draw(request)[0], picture(64, 48)
    assert inside(drawn, init, (24, 0, 64, 48))
    assert not inside(drawn, init, (8, 8, 24, 24))


def test_transparent_parts_of_a_sketch_are_painted(tiny: Pipeline) -> None:
    sketch = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    sketch.paste(INIT.crop((0, 0, 32, 16)), (0, 0))
    drawn = tiny.inpaint("a bear", sketch, seed=7, steps=2, mask_blur=0)[0]
    assert inside(drawn, INIT, (0, 0, 32, 16))
    assert not inside(drawn, Image.new("RGB", (32, 32), "white"), (0, 16, 32, 32))


def test_outpainting_keeps_the_picture(tiny: Pipeline) -> None:
    drawn = tiny.outpaint("a bear", INIT, left=8, bottom=16, seed=7, steps=2, mask_blur=0)[0]
    assert drawn.size == (40, 48)
    assert drawn.crop((8, 0, 40, 32)).tobytes() == INIT.tobytes()


@pytest.mark.parametrize("size", [(20, 12), (505, 300), (12, 100), (3, 300), (40, 24), (500, 500), (512, 300)])
def test_the_size_of_a_picture_that_is_started_from_keeps_its_ratio(tiny: Pipeline, size: tuple[int, int]) -> None:
    """No other multiples of 8 next to its sides stray less from their ratio."""

    def stray(sides: tuple[int, int]) -> float:
        ratio = sides[0] / sides[1] / (size[0] / size[1])
        return max(ratio, 1 / ratio)

    drawn = size_of(tiny, ImageToImage(prompt="a bear", init=Image.new("RGB", size)))
    near = [[max(8, side // 8 * 8 + step) for step in (0, 8 * (side % 8 > 0))] for side in size]
    assert drawn in [(width, height) for width in near[0] for height in near[1]]
    assert stray(drawn) == pytest.approx(min(stray((width, height)) for width in near[0] for height in near[1]))


def test_large_seamless_pictures_pass_the_decoder_in_strips(tiny: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large they are: tiles would not meet at the outer edges."""
    system = replace(tiny, autoencoder=pack(deepcopy(tiny.autoencoder)))
    wrapped, plain = (system.text_to_image(**BEAR, tile=tile)[0] for tile in ("xy", "none"))
    large = ImageCodec(system.autoencoder, whole=16 * 16, strips=16 * 16)
    monkeypatch.setattr(type(system), "codec", large)
    passed = []
    in_strips = codec_image.decode_in_strips
    monkeypatch.setattr(codec_image, "decode_in_strips", lambda *given: passed.append(given) or in_strips(*given))
    (drawn,) = replace(system).text_to_image(**BEAR, tile="xy")  # which has no codec yet
    assert len(passed) == 1
    apart = np.asarray(ImageChops.difference(drawn, wrapped))
    assert apart.max() <= 1
    assert np.asarray(ImageChops.difference(plain, wrapped)).max() > 1


def encoded(system: Pipeline, request: TextToImage, monkeypatch: pytest.MonkeyPatch) -> tuple[Image.Image, Image.Image]:
    """Return the picture that is encoded for a request, and what comes of it where all that is drawn is green."""
    seen: list[Image.Image] = []
    encode = ImageCodec.encode
    monkeypatch.setattr(ImageCodec, "encode", lambda codec, given: seen.extend(given) or encode(codec, given))
    canvas = prepare(system, system.codec, request)
    return seen[0], canvas.finish(Image.new("RGB", seen[0].size, "lime"))


def test_outpainting_leaves_no_white_halo(tiny: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is unknown goes on with the nearest colours, and the blend knows the picture and the drawing alone."""
    request = Outpaint(**BEAR, init=Image.new("RGB", (64, 64), "red"), right=32, width=96, height=64, mask_blur=4)
    base, result = encoded(tiny, request, monkeypatch)
    assert base.getcolors() == [(96 * 64, (255, 0, 0))]
    row = [result.getpixel((x, 32)) for x in range(96)]
    assert all(
        blue == 0 and abs(red + green - 255) <= 1 for red, green, blue in row
    )  # red and lime in shares, no white
    assert row[64:] == [(0, 255, 0)] * 32
    assert row[:52] == [(255, 0, 0)] * 52  # 12 pixels, three times the blur, are blended
    greens = [green for _, green, _ in row]
    assert greens == sorted(greens)
    assert greens[63] > 200


def test_strokes_stay_and_what_is_beside_them_is_drawn(tiny: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    sheet = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    sheet.paste((0, 0, 255, 255), (0, 28, 64, 36))  # 8 pixels wide
    sheet.paste((0, 0, 255, 128), (0, 36, 64, 37))
    base, result = encoded(tiny, Inpaint(**BEAR, init=sheet, width=64, height=64), monkeypatch)
    assert base.getcolors() == [(64 * 64, (0, 0, 255))]
    column = [result.getpixel((32, y)) for y in range(64)]
    assert column[28:36] == [(0, 0, 255)] * 8
    assert column[:28] == [(0, 255, 0)] * 28
    assert column[37:] == [(0, 255, 0)] * 27
    assert column[36] in ((0, 127, 128), (0, 128, 128))


@pytest.mark.parametrize("brush", ["white", "black", "red"])
def test_a_brush_on_a_transparent_mask_paints_whatever_its_colour(tiny: Pipeline, brush: str) -> None:
    mask = Image.new("RGBA", (32, 32), (255, 255, 255, 0))
    mask.paste(brush, (8, 8, 24, 24))
    drawn = tiny.draw(ASKED["inpaint"].replace(mask=mask))[0]
    assert drawn.tobytes() == tiny.draw(ASKED["inpaint"])[0].tobytes()


@pytest.mark.parametrize("request_", [TextToImage(**BEAR), *(ASKED[name] for name in ("inpaint", "hires_latent"))])
def test_inpainting_networks_see_mask_and_masked_picture(
    inpainter: Pipeline, request_: TextToImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    forward = inpainter.unet.forward

    def recorded(x: torch.Tensor, *rest: torch.Tensor, **named: object) -> torch.Tensor:
        seen.append(x)
        return forward(x, *rest, **named)

    monkeypatch.setattr(inpainter.unet, "forward", recorded)
    inpainter.draw(request_)
    masked = isinstance(request_, Inpaint)
    hidden = INIT.copy()
    hidden.paste((128, 128, 128), (8, 8, 24, 24))  # grey is 0 of [-1, 1] but for rounding
    expected = inpainter.codec.encode([hidden if masked else Image.new("RGB", (32, 32), (128, 128, 128))])[0]
    cells = torch.zeros(4, 4) if masked else torch.ones(4, 4)
    cells[1:3, 1:3] = 1
    assert all(x.shape[:2] == (2, 9) for x in seen)
    assert all(torch.equal(row, cells) for row in seen[0][:, 4])
    assert (seen[0][:, 5:] - expected).abs().max() < 0.05


def test_the_refiner_takes_the_last_steps(tiny: Pipeline, make_system: Callable[..., Pipeline], tmp_path: Path) -> None:
    tiny.save(tmp_path)
    request = TextToImage(**BEAR, refiner=Refiner(model=str(tmp_path), switch=0.5), sampler="dpmpp_2m")
    plain = tiny.draw(TextToImage(**BEAR))[0]
    assert tiny.draw(request)[0].tobytes() == plain.tobytes()  # the same model goes on as if it were one
    with pytest.raises(ReverieError, match="hands over to a refiner"):
        next(image.stream(tiny, request))
    other, asked = make_system(), []
    with torch.no_grad():
        other.unet.conv_out.bias.add_(1)
    other.unet.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[1][0].item()))
    *_, drawn = image.stream(tiny, request.replace(steps=10, schedule="linspace"), refiner=other)
    assert asked == [444.0, 333.0, 222.0, 111.0, 0.0]
    assert drawn.pictures[0].tobytes() != plain.tobytes()


def test_seamless_pictures_roll(tiny: Pipeline) -> None:
    """Rolled noise gives the rolled picture, so no place on it is an edge."""
    with picture_run(tiny, image.fill_in(tiny, ASKED["tile"]), None) as run:
        one, noise = run.passes[0], torch.randn(1, 4, 4, 4)
        denoise = run._denoiser(one, [ASKED["tile"]], noise)
        with torch.no_grad():
            a, b = denoise(noise, 3.0), denoise(noise.roll((2, 2), (2, 3)), 3.0)
            assert torch.allclose(a.roll((2, 2), (2, 3)), b, atol=1e-4)
            there = tiny.codec.decode(a).roll((16, 16), (2, 3))
            assert torch.allclose(there, tiny.codec.decode(b), atol=1e-4)


def test_sizes_follow_the_picture(tiny: Pipeline) -> None:
    sizes = {
        (50, 21): (56, 24),
        (3, 3): (8, 8),
    }
    for given, drawn in sizes.items():
        request = image.fill_in(tiny, ImageToImage(init=picture(*given)))
        assert (request.width, request.height) == drawn
        canvas = prepare(tiny, tiny.codec, request)
        assert canvas.start is not None
        assert canvas.start.shape[2:] == (drawn[1] // 8, drawn[0] // 8)
    assert image.fill_in(tiny, ImageToImage(init=INIT, width=64)).width == 64


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (
            lambda: ImageToImage(init=INIT, strength=1.5),
            "strength 1.5 is not possible; it should be less than or equal",
        ),
        (lambda: ImageToImage(init=INIT, strength=0), "strength 0 is not possible; it should be greater than 0"),
        (lambda: ImageToImage(init=INIT, strength=0.04), "strength 0.04 of 20 steps leaves none; give at least 0.05"),
        (lambda: Inpaint(init=INIT), "nothing says where to paint: give a mask, or a picture with transparent parts"),
        (lambda: Inpaint(mask=MASK), "init is missing; Inpaint needs it"),
        (lambda: Inpaint(init=INIT, mask=MASK.resize((8, 9))), "the mask has 8x9 pixels and the picture 32x32; give"),
        (lambda: Inpaint(init=INIT, mask=MASK, fill="red"), "unknown fill 'red'; choose from original, "),
        (lambda: Inpaint(init=INIT, mask=MASK, hires=Hires()), "a second pass does not go with a mask"),
        (lambda: Outpaint(init=INIT), "outpainting by 0 pixels on every side; give left, right, top or bottom"),
        (lambda: Outpaint(init=INIT, left=7), "left 7 is not possible; it should be a multiple of 8"),
        (lambda: TextToImage(hires={"scale": 1}), "hires scale 1 is not possible; it should be greater than 1"),
        (lambda: TextToImage(hires={"width": 8}), "a second pass takes both width and height, or neither and a scale"),
        (lambda: TextToImage(steps=2, hires={"strength": 0.4}), "strength 0.4 of 2 steps leaves none; give at least"),
        (lambda: TextToImage(variation={"strength": 2}), "variation strength 2 is not possible"),
        (
            lambda: TextToImage(variation={"seed": 2**32 - 1}, count=2),
            "seed 4294967295 with count 2 passes the largest",
        ),
        (lambda: TextToImage(tile="z"), "unknown tile 'z'; choose from none, x, y, xy"),
    ],
)
def test_refusals(ask: Callable[[], TextToImage], told: str) -> None:
    with pytest.raises(ReverieError) as caught:
        ask()
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


def test_parameters_of_automatic1111() -> None:
    request = ImageToImage(
        **BEAR,
        init=INIT,
        guidance=5,
        width=32,
        height=32,
        clip_skip=2,
        variation=Variation(seed=3, strength=0.25, width=64, height=64),
        hires=Hires(steps=9),
        refiner=Refiner(model="refiner"),
        tile="x",
    )
    told = texts(request, "m")["parameters"].rpartition("Model: m, RNG: CPU, ")[2].split(", ")
    assert told == [
        "Clip skip: 2",
        "Tiling: x",
        "Denoising strength: 0.75",
        "Variation seed: 3",
        "Variation seed strength: 0.25",
        "Seed resize from: 64x64",
        "Hires resize: 64x64",
        "Hires upscaler: Latent",
        "Hires steps: 9",
        "Hires denoising strength: 0.7",
        "Refiner: refiner",
        "Refiner switch at: 0.8",
    ]
