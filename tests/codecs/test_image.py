"""Is the scale factor applied once, and do pictures and latents fit each other?"""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from PIL import Image

from reverie.codecs.image import ImageCodec, to_pictures, to_tensor
from reverie.errors import ReverieError
from reverie.pipeline import Pipeline


@pytest.fixture
def pictures() -> list[Image.Image]:
    ramp = Image.linear_gradient("L").resize((24, 16))
    return [ramp.convert("RGB"), ramp.rotate(180).convert("RGB")]


def test_pixels_survive_the_way_through_tensors(pictures: list[Image.Image]) -> None:
    images = to_tensor(pictures)
    assert images.shape == (2, 3, 16, 24)
    assert images.min() >= -1
    assert images.max() <= 1
    assert [picture.tobytes() for picture in to_pictures(images)] == [picture.tobytes() for picture in pictures]
    assert to_pictures(torch.full((1, 3, 1, 1), 7.0))[0].getpixel((0, 0)) == (255, 255, 255)


def test_transparent_pixels_are_laid_on_white() -> None:
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert to_tensor([clear]).eq(1).all()
    assert to_tensor([Image.new("L", (2, 2), 0)]).eq(-1).all()


def test_the_scale_factor_is_applied_on_both_ways(tiny: Pipeline, pictures: list[Image.Image]) -> None:
    autoencoder, codec = tiny.autoencoder, tiny.codec
    with torch.no_grad():
        z = autoencoder.encode(to_tensor(pictures)).mode()
        latents = codec.encode(pictures)
        assert torch.equal(latents, z * 0.18215)
        decoded = codec.decode(latents)
        assert torch.allclose(decoded, autoencoder.decode(z).clamp(-1, 1), atol=1e-5)
    assert codec.pictures(latents)[1].tobytes() == to_pictures(decoded)[1].tobytes()
    assert codec.latent_shape(24, 16) == (4, 2, 3) == latents.shape[1:]


def test_pictures_and_latents_take_the_autoencoders_dtype(tiny: Pipeline, pictures: list[Image.Image]) -> None:
    autoencoder = deepcopy(tiny.autoencoder).to(torch.bfloat16)
    assert (autoencoder.device.type, autoencoder.dtype) == ("cpu", torch.bfloat16)
    codec = ImageCodec(autoencoder)
    latents = codec.encode(pictures)
    assert latents.dtype == torch.float32
    assert codec.pictures(latents)[0].size == (24, 16)


def test_a_decoded_picture_does_not_depend_on_its_batch(tiny: Pipeline) -> None:
    latents = torch.randn(5, 4, 4, 4)
    with torch.no_grad():
        together = tiny.codec.decode(latents)
        assert torch.equal(together[2:3], tiny.codec.decode(latents[2:3]))


def test_refusals(tiny: Pipeline, pictures: list[Image.Image]) -> None:
    with pytest.raises(ReverieError, match=r"^width 20 is not a multiple of 8; the nearest are 16 or 24$"):
        tiny.codec.latent_shape(20, 16)
    with pytest.raises(ReverieError, match=r"^height 4 is not a multiple of 8; the nearest are 8$"):
        tiny.codec.latent_shape(16, 4)
    with pytest.raises(ReverieError, match="width 25 is not a multiple"):
        tiny.codec.encode([pictures[0].resize((25, 16))])
    with pytest.raises(
        ReverieError, match=r"^pictures of sizes 16x16, 24x16 do not stack; give one or more of one size$"
    ):
        tiny.codec.encode([pictures[0], pictures[0].resize((16, 16))])
