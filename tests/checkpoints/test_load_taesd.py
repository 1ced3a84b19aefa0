"""Is a TAESD read in its author's layout and in diffusers', and does it decode as diffusers' does?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file

from reverie.checkpoints.load import load_tiny
from reverie.errors import ReverieError

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
        assert torch.allclose(load_tiny(folder / name).encode(images), oracle.encode(images).latents, atol=1e-5)


def test_halves_and_wrong_shapes_are_refused(folder: Path, tmp_path: Path) -> None:
    decoder, encoder = load_tiny(folder / "taesd_decoder.pth"), load_tiny(folder / "taesd_encoder.pth")
    with pytest.raises(ReverieError, match="has only a decoder; give taesd_encoder"):
        decoder.encode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ReverieError, match="has only an encoder; give taesd_decoder"):
        encoder.decode(torch.zeros(1, 4, 8, 8))
    with pytest.raises(ReverieError, match="cannot decode 16 latent channels; give 4"):
        decoder.decode(torch.zeros(1, 16, 8, 8))
    with pytest.raises(ReverieError, match="of 9x8 pixels; give multiples of 8"):
        encoder.encode(torch.zeros(1, 3, 8, 9))
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ReverieError, match=r"is no TAESD; give taesd_decoder.pth"):
        load_tiny(tmp_path / "x.safetensors")
