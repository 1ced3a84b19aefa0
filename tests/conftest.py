"""Tiny systems of random weights, in the shapes of SD 1, SD 2 (v-prediction) and SDXL, that many tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import jaxtyping
import pytest
import torch
from safetensors.torch import save_file

from reverie.corpora.concepts import CLDR, Concept, concepts
from reverie.corpora.scenes import FONT
from reverie.diffusion.denoiser import ScheduleConfig
from reverie.models.autoencoder import Autoencoder, AutoencoderConfig
from reverie.models.clip import CLIPTextConfig, TextTower, TextTowerWithProjection
from reverie.models.unet import UNet, UNetConfig
from reverie.pipeline import Pipeline
from reverie.sound.spectrogram import SpectrogramParams
from reverie.tokenizer import Tokenizer

LENGTH = 12
WIDTH = 16

UNET = UNetConfig(
    sample_size=4,
    block_out_channels=(8, 16),
    layers_per_block=1,
    transformer_depth=(1, 0),
    num_heads=(2, 4),
    cross_attention_dim=WIDTH,
    norm_num_groups=4,
)
UNET_XL = UNetConfig(
    sample_size=4,
    block_out_channels=(8, 16),
    layers_per_block=1,
    transformer_depth=(0, 2),
    mid_transformer_depth=2,
    num_heads=(1, 2),
    cross_attention_dim=2 * WIDTH,
    use_linear_projection=True,
    norm_num_groups=4,
    addition_time_embed_dim=4,
    projection_input_dim=WIDTH + 6 * 4,
)
AUTOENCODER = AutoencoderConfig(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4)
EPS = ScheduleConfig()
V_ZERO_SNR = ScheduleConfig(prediction="v", zero_terminal_snr=True, timestep_spacing="trailing")

CALCULATING = ("models", "diffusion", "codecs", "sound", "adapters", "generate", "animation", "music")
"""The rooms in whose tests the shapes and types of each call are checked; it takes up to half of their time."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Switch the checks of shapes before a test's fixtures are made."""
    room = item.path.relative_to(Path(__file__).parent).parts[0]
    jaxtyping.config.jaxtyping_disable = room not in CALCULATING


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Compute on one thread, where results repeat to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a bear on a blue background", "an apple next to a bear"] * 2, 530, length=LENGTH)


@pytest.fixture(scope="session")
def make_tower(tokenizer: Tokenizer) -> Callable[[type[TextTower]], TextTower]:
    """Build a tiny text tower of a class, for the tiny tokenizer."""

    def make(kind: type[TextTower]) -> TextTower:
        config = CLIPTextConfig(
            hidden_size=WIDTH,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            vocab_size=len(tokenizer),
            max_position_embeddings=LENGTH,
            eos_token_id=tokenizer.eos_id,
            projection_dim=WIDTH,
        )
        return kind(config).eval()

    return make


@pytest.fixture(scope="session")
def make_system(tokenizer: Tokenizer, make_tower: Callable[[type[TextTower]], TextTower]) -> Callable[..., Pipeline]:
    """Build a tiny system, as SD 1's or with `xl` as SDXL's; its pictures have 32 x 32 pixels."""

    def make(schedule: ScheduleConfig = EPS, xl: bool = False) -> Pipeline:
        torch.manual_seed(0)
        towers = (make_tower(TextTower), make_tower(TextTowerWithProjection)) if xl else (make_tower(TextTower),)
        return Pipeline(
            tokenizers=(tokenizer,) * len(towers),
            text_encoders=towers,
            unet=UNet(UNET_XL if xl else UNET).eval(),
            autoencoder=Autoencoder(AUTOENCODER).eval(),
            schedule_config=schedule,
            zero_empty=xl,
            name="tiny",
        )

    return make


@pytest.fixture(scope="session")
def tiny(make_system: Callable[..., Pipeline]) -> Pipeline:
    """Give the tiny system in the shape of SD 1; tests must not change it."""
    return make_system()


@pytest.fixture(scope="module")
def model(tiny: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give the folder of the tiny system, whose pictures have 32 x 32 pixels, for `--model`."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny.save(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_v(make_system: Callable[..., Pipeline]) -> Pipeline:
    """Give the tiny system that predicts v on a schedule of zero terminal SNR."""
    return make_system(V_ZERO_SNR)


@pytest.fixture(scope="session")
def tiny_xl(make_system: Callable[..., Pipeline]) -> Pipeline:
    """Give the tiny system in the shape of SDXL."""
    return make_system(xl=True)


@pytest.fixture
def ink(tiny: Pipeline, tmp_path: Path) -> Path:
    """Write a LoRA of random matrices for some layers of the tiny model's U-Net."""
    drawn = {}
    for name, part in tiny.unet.named_modules():
        if name.endswith(("attn1.to_q", "resnets.0.conv1", "proj_in")):
            key, shape = f"lora_unet_{name.replace('.', '_')}", part.weight.shape
            drawn[f"{key}.lora_down.weight"] = torch.randn(2, *shape[1:])
            drawn[f"{key}.lora_up.weight"] = torch.randn(shape[0], 2, *[1] * (len(shape) - 2))
    save_file(drawn, file := tmp_path / "ink.safetensors")
    return file


@pytest.fixture(scope="session")
def hearing() -> SpectrogramParams:
    return SpectrogramParams(sample_rate=8_000, step_ms=10, window_ms=32, padded_ms=32, mels=32, high=4_000, columns=32)


@pytest.fixture(scope="session")
def player(tiny: Pipeline, hearing: SpectrogramParams) -> Pipeline:
    """Give the tiny system as a model of music; tests must not change it."""
    return replace(tiny, spectrogram=hearing)


@pytest.fixture(scope="session")
def cldr() -> None:
    """Skip where Unicode's names are not installed."""
    if not CLDR.is_dir():
        pytest.skip("needs the names of Debian's unicode-cldr-core")


@pytest.fixture(scope="session")
def font() -> None:
    """Skip where the emoji font is not installed."""
    if not FONT.is_file():
        pytest.skip("needs the font of Debian's fonts-noto-color-emoji")


@pytest.fixture(scope="session")
def everything(cldr: None) -> tuple[Concept, ...]:
    """Give all concepts of the corpus."""
    return concepts("all")
