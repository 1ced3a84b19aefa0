"""Are large pictures that are denoised in tiles what the whole would be where it can be told, and without seams?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from reverie.adapters.control import Control, bind_controls
from reverie.diffusion.windows import Tiles, by_tiles
from reverie.errors import ReverieError
from reverie.generate.image import fill_in, passes, picture_run
from reverie.generate.sample import Steering
from reverie.models.autoencoder import AUTOENCODERS, Autoencoder
from reverie.models.controlnet import ControlNet, ControlNetConfig, T2IAdapter, T2IAdapterConfig
from reverie.models.layers import TransformerBlock
from reverie.models.unet import UNet
from reverie.pipeline import Pipeline
from reverie.requests.pictures import ImageToImage, Inpaint, TextToImage

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8))
X = torch.randn(2, 3, 13, 18, generator=torch.Generator().manual_seed(0))


def request(**changes: object) -> TextToImage:
    plain = {"prompt": "a bear", "negative": "blue", "seed": 7, "steps": 2, "guidance": 6.0, "width": 128, "height": 96}
    return (ImageToImage if "init" in changes else TextToImage).of({**plain, **changes})


def drawn(system: Pipeline, asked: TextToImage, refiner: Pipeline | None = None) -> Tensor:
    asked = fill_in(system, asked)
    with picture_run(system, asked, refiner) as run, torch.no_grad():
        *_, (last, _) = passes(run, [asked])
        return last.x


def test_tiles_cover_an_image_and_what_they_agree_on_stays() -> None:
    tiles = Tiles.over(13, 18, 6)
    assert tiles.average([torch.full((2, 3, 6, 6), 0.3)] * len(tiles.places)).sub(0.3).abs().max() < 1e-6
    torch.testing.assert_close(tiles.average(X[..., *place] for place in tiles.places), X)
    assert not tiles.whole
    assert Tiles.over(5, 6, 6).whole
    assert [(rows.start, columns.start) for rows, columns in Tiles.over(6, 12, 6).places] == [(0, 0), (0, 3), (0, 6)]


def test_each_tile_is_asked_for_its_place() -> None:
    tiles, asked = Tiles.over(13, 18, 6), []

    def denoise_at(place: tuple[slice, slice]):  # type: ignore[no-untyped-def]
        asked.append(place)
        return lambda x, sigma: x * sigma

    torch.testing.assert_close(by_tiles(tiles, denoise_at)(X, 2.0), 2 * X)
    assert asked == tiles.places


def test_one_tile_is_the_plain_way_to_the_bit(tiny: Pipeline) -> None:
    plain = drawn(tiny, request())
    assert drawn(tiny, request(tile_size=128)).equal(plain)
    assert not drawn(tiny, request(tile_size=64)).equal(plain)


class Bounded(nn.Module):
    """Keep values in bounds without looking around, where a GroupNorm looks at the whole image."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


def localise(network: nn.Module) -> nn.Module:
    """Let a network of random weights see no further than the place itself: the whole is then what tiles give."""
    for name, part in list(network.named_modules()):
        if isinstance(part, nn.GroupNorm):
            network.set_submodule(name, Bounded())
        elif isinstance(part, nn.Conv2d) and part.padding != (0, 0):
            centre = part.weight[:, :, 1, 1].clone()
            part.weight.data.zero_()
            part.weight.data[:, :, 1, 1] = 3 * centre
        elif isinstance(part, TransformerBlock):
            part.attn1.to_out[0].weight.data.zero_()
    return network.eval()


@pytest.fixture(scope="module")
def local(tiny: Pipeline) -> Pipeline:
    torch.manual_seed(3)
    return replace(tiny, unet=localise(UNet(tiny.unet.config)))


def lllite_weights() -> dict[str, Tensor]:
    """Draw a ControlNet-LLLite for two cross-attentions, one of them where the image is halved."""
    state: dict[str, Tensor] = {}
    for name, kernels, width in (("input_blocks_1_1", (4, 2), 8), ("middle_block_1", (4, 4), 16)):
        shapes = {"down.0": (4, width), "mid.0": (4, 4 + 6), "up.0": (width, 4)}
        shapes |= {f"conditioning1.{2 * n}": (6 if n else 3, 3, side, side) for n, side in enumerate(kernels)}
        for part, shape in shapes.items():
            stem = f"lllite_unet_{name}_transformer_blocks_0_attn2_to_q.{part}"
            state[f"{stem}.weight"], state[f"{stem}.bias"] = 0.3 * torch.randn(shape), 0.3 * torch.randn(shape[0])
    return state


def steered(kind: str, system: Pipeline, folder: Path) -> tuple[Pipeline, dict[str, object]]:
    """Return a system and what a request asks of it, by what is to steer it."""
    torch.manual_seed(4)
    half = Image.new("L", PICTURE.size)
    half.paste(255, (32, 0, 128, 64))
    if kind in ("ControlNet-LLLite", "editing"):
        save_file(lllite_weights(), folder / "control.safetensors")
    if kind == "T2I-Adapter":
        adapter = T2IAdapter(T2IAdapterConfig(widths=system.unet.config.block_out_channels, layers=1))
        for parameter in adapter.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        state = {f"adapter.{name}": tensor for name, tensor in localise(adapter).state_dict().items()}
        save_file(state, folder / "control.safetensors")
    if kind == "editing":
        system = replace(system, unet=localise(UNet(replace(system.unet.config, in_channels=8))))
    if kind == "x4 upscaler":
        config = replace(system.unet.config, in_channels=7, num_class_embeds=1000)
        small = replace(AUTOENCODERS["x4-upscaler"], block_out_channels=(8,) * 3, layers_per_block=1, norm_num_groups=4)
        system = replace(system, unet=localise(UNet(config)), autoencoder=Autoencoder(small).eval())
    controls = [{"model": str(folder / "control.safetensors"), "image": PICTURE, "weight": 4.0}]
    regions = [{"prompt": "an apple", "negative": "red", "mask": half}, {"prompt": "blue", "box": (0, 0, 0.25, 1)}]
    asked: dict[str, dict[str, object]] = {
        "nothing": {"init": PICTURE, "strength": 0.5},
        "regions": {"regions": regions},
        "T2I-Adapter": {"controls": controls},
        "ControlNet-LLLite": {"controls": controls},
        "editing": {"init": PICTURE, "image_guidance": 3.0, "strength": 1.0, "controls": controls},  # also blind to it
        "refiner": {"refiner": {"model": "other", "switch": 0.5}},
        "x4 upscaler": {"init": PICTURE.resize((16, 12)), "width": 64, "height": 48, "noise_level": 30},
    }
    return system, asked[kind]


STEERED = ("nothing", "regions", "T2I-Adapter", "ControlNet-LLLite", "editing", "refiner", "x4 upscaler")


@pytest.mark.parametrize("kind", STEERED)
def test_a_network_that_sees_no_further_than_a_place_gives_in_tiles_what_it_gives_at_once(
    kind: str, local: Pipeline, tmp_path: Path
) -> None:
    system, asked = steered(kind, local, tmp_path)
    torch.manual_seed(5)
    other = replace(system, unet=localise(UNet(system.unet.config))) if kind == "refiner" else None
    whole, tiled = (drawn(system, request(**asked, tile_size=side), other) for side in (None, 64))
    assert (tiled - whole).abs().max() < 1e-4
    if "init" not in asked:
        assert (whole - drawn(system, request())).abs().max() > 1e-2


def seams(picture: Image.Image, side: int) -> tuple[float, float]:
    """Return the mean step between columns at the edges of tiles that lie half over one another, and elsewhere."""
    steps = np.abs(np.diff(np.asarray(picture, dtype=float), axis=1)).mean((0, 2))
    at = np.zeros(len(steps), dtype=bool)
    at[side // 2 - 1 :: side // 2] = True
    return steps[at].mean(), steps[~at].mean()


def test_the_second_pass_of_a_large_picture_has_no_seams(tiny: Pipeline) -> None:
    asked = request(width=64, height=64, hires={"scale": 4.0, "strength": 0.7, "steps": 4}, tile_size=64)
    (picture,) = tiny.draw(asked)
    assert picture.size == (256, 256)
    at, elsewhere = seams(picture, 64)
    assert at < 1.1 * elsewhere


def test_what_steers_is_cut_with_its_tile(tiny: Pipeline) -> None:
    torch.manual_seed(2)
    network = ControlNet(ControlNetConfig(tiny.unet.config, hint_widths=(4, 4, 4, 4))).eval()
    for parameter in network.parameters():  # zeros where it would say nothing
        parameter.data = 0.1 * torch.randn_like(parameter)
    control = Control(network, PICTURE.resize((32, 24)))
    cut = Steering(tiny, [control], []).stretch(12, 16).cut((slice(2, 6), slice(4, 12)))
    picture = PICTURE.resize((32, 24)).resize((128, 96), Image.Resampling.LANCZOS).crop((32, 16, 96, 48))
    assert cut.controls[0].picture.tobytes() == picture.tobytes()
    given, x, t = tiny.encode_prompt(["a bear"]), torch.randn(1, 4, 4, 8), torch.tensor([500.0])
    with torch.no_grad():
        steered = cut.bind()(given)(x, t)
        assert steered.equal(bind_controls(tiny, [replace(control, picture=picture)])(given)(x, t))
        assert not steered.equal(tiny.network(given)(x, t))


def test_masks_models_that_edit_and_inpainting_ones_go_in_tiles(tiny: Pipeline) -> None:
    torch.manual_seed(1)
    mask = Image.new("L", PICTURE.size)
    mask.paste(255, (0, 0, 64, 96))
    plain = {"prompt": "a bear", "seed": 7, "steps": 2, "tile_size": 64}
    for channels in (4, 8, 9):
        system = replace(tiny, unet=UNet(replace(tiny.unet.config, in_channels=channels)).eval())
        (picture,) = system.draw(Inpaint.of({**plain, "init": PICTURE, "mask": mask, "mask_blur": 0}))
        assert np.array_equal(np.asarray(picture)[:, 64:], np.asarray(PICTURE)[:, 64:])
        assert not np.array_equal(np.asarray(picture)[:, :64], np.asarray(PICTURE)[:, :64])


def test_what_does_not_go_with_tiles_is_said(tiny: Pipeline) -> None:
    for other in ({"cache_steps": 2}, {"tile": "x"}):
        with pytest.raises(ReverieError, match=f"`tile_size` does not go with `{next(iter(other))}`"):
            request(tile_size=64, **other)
    with pytest.raises(ReverieError, match="the attention of tiles is not recorded"):
        tiny.explain(request(tile_size=64))
