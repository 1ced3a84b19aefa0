"""Are latents made once for an encoder and its examples, and does a job that was stopped end in the same bits?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from reverie.data.loader import shuffled_index
from reverie.models.autoencoder import Autoencoder, AutoencoderConfig
from reverie.progress import Progress
from reverie.train.latents import ENCODE_BATCH, Stream, fill, latent_pool

TINY = AutoencoderConfig(latent_channels=4, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4)


@dataclass
class Noise:
    """Serve wide pictures of noise, and count which were drawn."""

    count: int = 40
    seed: int = 0
    drawn: Counter[int] = field(default_factory=Counter)

    def __len__(self) -> int:
        return self.count

    @property
    def identity(self) -> list[object]:
        return ["noise", self.count, self.seed]

    def picture(self, index: int) -> np.ndarray:
        self.drawn[index] += 1
        return np.random.default_rng((self.seed, index)).integers(0, 256, (8, 16, 3), np.uint8)

    def caption(self, index: int, turn: int) -> str:
        return f"{index} for the time {turn}"


@pytest.fixture
def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(replace(TINY, scaling_factor=0.5))


def test_latents_are_scaled_codes_in_order(autoencoder: Autoencoder, tmp_path: Path) -> None:
    examples = Noise()
    latents = latent_pool(autoencoder, examples, tmp_path / "new" / "latents.safetensors")
    assert (latents.shape, latents.dtype) == ((40, 4, 4, 8), torch.float16)
    for index in (0, 17, 39):
        pixels = torch.from_numpy(examples.picture(index)).permute(2, 0, 1)[None]
        with torch.no_grad():
            expected = autoencoder.encode(pixels / 127.5 - 1).mean * 0.5
        torch.testing.assert_close(latents[index].float(), expected[0], rtol=2e-3, atol=2e-3)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["latents.safetensors"]


def test_latents_are_made_again_only_for_what_they_depend_on(autoencoder: Autoencoder, tmp_path: Path) -> None:
    def drawn(examples: Noise) -> int:
        latent_pool(autoencoder, examples, tmp_path / "latents.safetensors")
        return len(examples.drawn)

    assert [drawn(Noise()) for _ in range(2)] == [40, 0]
    with torch.no_grad():
        autoencoder.decoder.conv_out.weight += 1
    assert drawn(Noise()) == 0  # another decoder decodes the same latents
    with torch.no_grad():
        autoencoder.encoder.conv_out.weight += 1
    assert drawn(Noise()) == 40
    autoencoder.config = replace(autoencoder.config, scaling_factor=1.0)
    assert drawn(Noise()) == 40
    assert [drawn(Noise(seed=1)), drawn(Noise(seed=1)), drawn(Noise())] == [40, 0, 40]
    (tmp_path / "latents.safetensors").write_bytes(b"damaged")
    assert [drawn(Noise()), drawn(Noise())] == [40, 0]


@pytest.mark.parametrize("torn", [0, 3])
def test_a_stopped_job_goes_on(autoencoder: Autoencoder, tmp_path: Path, torn: int) -> None:
    whole = latent_pool(autoencoder, Noise(), tmp_path / "whole.safetensors")
    path = tmp_path / "latents.safetensors"
    job = fill(autoencoder, Noise(), path)
    assert [next(job), next(job)] == [Progress(done, 40, "latents") for done in (ENCODE_BATCH, 2 * ENCODE_BATCH)]
    job.close()
    assert not path.exists()
    (part,) = tmp_path.glob("*.part")
    part.write_bytes(part.read_bytes()[: -torn or None])  # what a kill left of the last batch
    rest = Noise()
    assert torch.equal(latent_pool(autoencoder, rest, path), whole)
    done = ENCODE_BATCH if torn else 2 * ENCODE_BATCH
    assert set(rest.drawn) - {0} == set(range(done, 40))
    assert not list(tmp_path.glob("*.part"))


def test_what_another_job_left_is_not_gone_on_with(autoencoder: Autoencoder, tmp_path: Path) -> None:
    path = tmp_path / "latents.safetensors"
    next(fill(autoencoder, Noise(seed=1), path))
    assert torch.equal(
        latent_pool(autoencoder, Noise(), path), latent_pool(autoencoder, Noise(), tmp_path / "other.safetensors")
    )


def items(stream: Stream, count: int) -> Iterator[tuple[int, str]]:
    for index in range(count):
        latents, caption, weight = stream(index)
        assert weight == 0.25
        yield int(latents[0, 0, 0]), caption


def test_a_stream_tells_each_pass_anew_and_leaves_captions_out() -> None:
    latents = torch.arange(20).view(20, 1, 1, 1).expand(-1, 4, 2, 2).half()
    told = list(items(Stream(Noise(20), latents, seed=3, dropout=0.2, weight=0.25), 400))
    for index, (number, caption) in enumerate(told):
        turn, place = divmod(index, 20)
        assert number == shuffled_index(3, turn, 20, place)
        assert caption in ("", f"{number} for the time {turn}")
    assert sum(caption == "" for _, caption in told) / len(told) == pytest.approx(0.2, abs=0.06)
