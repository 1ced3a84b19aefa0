"""Is a TAESD read in its author's layout and in diffusers', and does it decode as diffusers' does?"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, EulerDiscreteScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import save_file

from reverie.checkpoints.load import load_folder, load_tiny
from reverie.checkpoints.save import save_autoencoder
from reverie.checkpoints.single import load_vae
from reverie.errors import ReverieError
from reverie.models.autoencoder import TinyAutoencoder, TinyConfig
from reverie.pipeline import Pipeline, load

pytestmark = pytest.mark.filterwarnings("ignore")  # the oracle warns of its own affairs


@pytest.fixture(scope="module")
def oracle() -> AutoencoderTiny:
    torch.manual_seed(0)
    return AutoencoderTiny().eval()


@pytest.fixture(scope="module")
def folder(oracle: AutoencoderTiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give diffusers' folder, with the author's two files in it."""
    path = tmp_path_factory.mktemp("taesd")
    oracle.save_pretrained(path)
    for half, first in (("encoder", 0), ("decoder", 1)):  # the decoder begins with a clamp
        layers = getattr(oracle, half).layers.state_dict()
        numbered = {f"{int(name.split('.')[0]) + first}.{name.split('.', 1)[1]}": x for name, x in layers.items()}
        torch.save(numbered, path / f"taesd_{half}.pth")
        save_file({f"taesd_{half}.{name}": x for name, x in numbered.items()}, path / f"taesd_{half}.safetensors")
    return path


@pytest.mark.parametrize(
    "name", ["", "diffusion_pytorch_model.safetensors", "taesd_decoder.pth", "taesd_decoder.safetensors"]
)
def test_decodes_as_diffusers_does(name: str, oracle: AutoencoderTiny, folder: Path) -> None:
    z = torch.randn(1, 4, 4, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = load_tiny(folder / name).decode(z)
        assert ours.shape == (1, 3, 32, 40)
        assert torch.allclose(ours, oracle.decode(z).sample, atol=1e-5)


@pytest.mark.parametrize("name", ["", "taesd_encoder.pth", "taesd_encoder.safetensors"])
def test_encodes_as_diffusers_does(name: str, oracle: AutoencoderTiny, folder: Path) -> None:
    images = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        assert torch.allclose(load_tiny(folder / name).encode(images).mode(), oracle.encode(images).latents, atol=1e-5)


def test_halves_and_wrong_shapes_are_refused(folder: Path, tmp_path: Path) -> None:
    decoder, encoder = load_tiny(folder / "taesd_decoder.pth"), load_tiny(folder / "taesd_encoder.pth")
    with pytest.raises(ReverieError, match="has only a decoder; give taesd_encoder"):
        decoder.encode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ReverieError, match="has only an encoder; give taesd_decoder"):
        encoder.decode(torch.zeros(1, 4, 8, 8))
    with pytest.raises(ReverieError, match="cannot decode 16 latent channels; give 4"):
        decoder.decode(torch.zeros(1, 16, 8, 8))
    with pytest.raises(ReverieError, match="9x8 pixels; give 3 channels, width and height multiples of 8"):
        encoder.encode(torch.zeros(1, 3, 8, 9))
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ReverieError, match=r"is no TAESD; give taesd_decoder.pth"):
        load_tiny(tmp_path / "x.safetensors")


OWN = TinyConfig(
    latent_channels=3,
    encoder_width=8,
    decoder_width=16,
    num_encoder_blocks=(0, 0, 1, 2, 1),
    num_decoder_blocks=(2, 1, 0, 1, 0),
)


def test_one_of_its_own_shape_is_saved_as_diffusers_reads_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tiny = TinyAutoencoder(OWN).eval()
    save_autoencoder(tiny, tmp_path)
    theirs, again = AutoencoderTiny.from_pretrained(tmp_path), load_tiny(tmp_path)
    assert again.config == OWN
    assert again.factor == 16
    z, images = torch.randn(1, 3, 3, 4), torch.rand(1, 3, 48, 64)
    with torch.no_grad():
        assert torch.allclose(again.decode(z), theirs.decode(z).sample, atol=1e-5)
        assert torch.allclose(again.encode(images).mode(), theirs.encode(images).latents, atol=1e-5)


def test_what_is_not_computed_is_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.5}))
    with pytest.raises(ReverieError, match=r"scaling_factor is 0.5, which is not supported; it should be 1.0"):
        load_tiny(tmp_path)


def test_only_a_decoder_of_the_models_latents_draws(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ReverieError, match="holds only the encoder of a TAESD; give its decoder"):
        load_vae(folder / "taesd_encoder.pth")
    save_autoencoder(TinyAutoencoder(OWN), tmp_path)
    for path in (tmp_path, tmp_path / "diffusion_pytorch_model.safetensors"):
        with pytest.raises(ReverieError, match="of 3 latent channels; the model's latents have 4"):
            load_vae(path)


@pytest.fixture
def models(tiny: Pipeline, tmp_path: Path) -> tuple[Path, Path]:
    """Give a model's folder, and that of a tiny autoencoder of its factor, whose weights are not small."""
    stages = len(tiny.autoencoder.config.block_out_channels)
    blocks = (1,) * (stages - 1) + (0,)
    torch.manual_seed(0)
    own = TinyAutoencoder(replace(TinyConfig(), num_encoder_blocks=blocks[::-1], num_decoder_blocks=blocks)).eval()
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.mul_(1.5)
    tiny.save(tmp_path / "model")
    save_autoencoder(own, tmp_path / "taesd")
    return tmp_path / "model", tmp_path / "taesd"


@pytest.mark.parametrize("fast", [True, False])
def test_it_draws_and_redraws_as_diffusers_with_it_does(models: tuple[Path, Path], fast: bool) -> None:
    model, taesd = models
    ours = load(model, device="cpu", vae=taesd / "diffusion_pytorch_model.safetensors", fast=fast)
    assert isinstance(ours.autoencoder, TinyAutoencoder)
    assert ours.name.startswith("model + diffusion_pytorch_model.safetensors [")
    side = ours.size
    sketch = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))
    options = {"steps": 4, "guidance": 3.0, "sampler": "euler", "schedule": "leading"}
    drawn = ours.text_to_image("a bear", seed=5, **options)[0]
    redrawn = ours.image_to_image("a bear", sketch, strength=0.5, seed=5, **options)[0]

    parts = {"vae": AutoencoderTiny.from_pretrained(taesd), "safety_checker": None, "torch_dtype": torch.float32}
    pipeline = StableDiffusionPipeline.from_pretrained(model, **parts)
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="leading")
    pipeline.set_progress_bar_config(disable=True)
    asked = {"guidance_scale": 3.0, "num_inference_steps": 4, "negative_prompt": ""}
    seed = torch.Generator().manual_seed
    shape = (1, *ours.codec.latent_shape(side, side))
    theirs = pipeline("a bear", latents=torch.randn(shape, generator=seed(5)), **asked).images[0]
    img2img = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    img2img.set_progress_bar_config(disable=True)
    again = img2img("a bear", image=sketch, strength=0.5, generator=seed(5), **asked).images[0]
    for a, b in ((drawn, theirs), (redrawn, again)):
        difference = np.asarray(a, int) - np.asarray(b, int)
        assert np.asarray(b).std() > 2, "a picture without contrast proves nothing"
        assert abs(difference).max() <= 1


def test_a_model_whose_folder_holds_one_draws_with_it_and_is_saved_so(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    model, taesd = models
    load(model, device="cpu", vae=taesd).save(tmp_path / "again")
    index = json.loads((tmp_path / "again" / "model_index.json").read_text())
    assert index["vae"] == ["diffusers", "AutoencoderTiny"]
    again = load_folder(tmp_path / "again")
    for name, value in load_tiny(taesd).state_dict().items():
        assert torch.equal(again.autoencoder.state_dict()[name], value), name
