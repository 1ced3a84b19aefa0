"""Training of the judge of music: the lead, the tempo and the drums of clips that it hears but dimly.

Clips are played once and kept as spectrograms of the judge's own; blur and noise are laid over them, as a classifier's
pictures are blurred, so that it hears through what a small autoencoder and restored phases leave.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import PositiveInt
from safetensors.torch import load_file
from torch import Tensor, nn

from reverie.checkpoints.save import write_tensors
from reverie.corpora.music.clips import TEMPOS, clip_at
from reverie.corpora.music.instruments import INSTRUMENTS
from reverie.corpora.music.synth import render
from reverie.data.loader import WHOLE, Batches, BatchPart
from reverie.errors import ReverieError
from reverie.media.sound import Sound
from reverie.models.classifier import Listener, ListenerConfig
from reverie.sound.spectrogram import SpectrogramParams, spectrogram
from reverie.train.classifier import coarsen, in_half, in_single
from reverie.train.kept import is_kept, keep, read_tensor
from reverie.train.loop import device_of, step_generator
from reverie.train.recipe import section

HEARING = SpectrogramParams(
    sample_rate=16_000, step_ms=16, window_ms=32, padded_ms=32, mels=64, high=8_000, columns=320
)
"""What the judge hears of a sound: coarser in pitch and finer in time than what the bundled model draws."""
SECONDS = HEARING.seconds


@dataclass(frozen=True)
class ListenerSettings:
    """Choose the clips and the network."""

    pool: PositiveInt = 4000
    widths: tuple[int, ...] = (24, 48, 96, 160)
    batch: PositiveInt = 32
    coarsest: PositiveInt = 3  # largest factor by which a spectrogram is shrunk and enlarged again
    noise: float = 0.1  # largest standard deviation of the noise laid over the levels


class Verdict(NamedTuple):
    """Hold what was heard in a sound: the lead's name, the tempo in beats a minute, drums or none."""

    lead: str
    tempo: int
    drums: bool


class ListenerObjective:
    """Train a listener on a pool of composed clips."""

    def __init__(self, settings: ListenerSettings, seed: int, out: Path) -> None:
        config = ListenerConfig(len(INSTRUMENTS), len(TEMPOS), HEARING.mels, widths=settings.widths)
        self.averaged = Listener(config)
        self.networks = nn.ModuleDict({"listener": self.averaged})
        self.settings, self.seed = settings, seed
        self.pool = heard_clips(seed, settings.pool, out / "heard.safetensors")
        self.batches = Batches(self._item, settings.batch)

    def _item(self, index: int) -> tuple[Tensor, int, int, float]:
        number = index % self.settings.pool
        clip = clip_at(self.seed, number)
        lead, tempo = list(INSTRUMENTS).index(clip.lead), TEMPOS.index(clip.tempo)
        return self.pool[number].float(), lead, tempo, float(clip.has_drums)

    def move(self, device: torch.device) -> None:
        """Put the network onto a device."""
        self.networks.to(device)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the one group."""
        return {"listener": list(self.averaged.parameters())}

    def losses(self, step: int, part: BatchPart = WHOLE) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
        """Yield the sum of the three cross-entropies."""
        mel, lead, tempo, drums = (one.to(device_of(self.averaged)) for one in self.batches(step, part))
        heard = self.averaged(blur_levels(mel, self.settings, step_generator(self.seed, step), part))
        timbre, pulse = F.cross_entropy(heard.instrument, lead), F.cross_entropy(heard.tempo, tempo)
        beaten = F.binary_cross_entropy_with_logits(heard.drums, drums.to(heard.drums.dtype))
        right = heard.instrument.argmax(1).eq(lead).float().mean().item()
        in_time = heard.tempo.argmax(1).eq(tempo).float().mean().item()
        loss = timbre + pulse + beaten
        yield "listener", loss, {"loss": loss.item(), "lead": right, "tempo": in_time, "drums": beaten.item()}

    def after_step(self) -> None:
        """Leave the parameters as they are."""

    def samples(self) -> None:
        """A listener draws nothing."""

    def export(self, folder: Path) -> None:
        """Save the weights in half precision beside the config and the names of what it tells apart."""
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(in_half(self.averaged.cpu().state_dict()), folder / "model.safetensors")
        config = asdict(self.averaged.config) | {"leads": list(INSTRUMENTS), "speeds": list(TEMPOS)}
        (folder / "config.json").write_text(json.dumps(config, ensure_ascii=False, indent=1))


@dataclass(frozen=True, eq=False)
class MusicJudge:
    """Tell what leads in sounds, how fast they are and whether there are drums."""

    network: Listener
    leads: Sequence[str]
    speeds: Sequence[int]

    @torch.no_grad()
    def __call__(self, sound: Sound) -> Verdict:
        """Judge the first 5.12 s of a sound, repeated where it is shorter."""
        heard = self.network(hearing(sound)[None])
        lead, speed = (int(part.argmax()) for part in (heard.instrument, heard.tempo))
        return Verdict(self.leads[lead], self.speeds[speed], bool(heard.drums > 0))


def hearing(sound: Sound) -> Float[Tensor, "mels columns"]:
    """Return the mel amplitudes of the first 5.12 s as the judge hears them, both ears together."""
    samples = sound.resampled(HEARING.sample_rate).mono().samples
    wanted = round(SECONDS * HEARING.sample_rate)
    return spectrogram(samples.repeat(1, -(-wanted // samples.shape[1]))[:, :wanted], HEARING)[0]


def heard_clips(seed: int, count: int, path: Path) -> Float[Tensor, "n mels columns"]:
    """Return what the judge hears of the first clips of a stream, in half precision; made once, kept at `path`."""
    made_of = json.dumps([seed, count, asdict(HEARING)])
    if is_kept(made_of, path):
        return read_tensor(path)
    clips = (render(clip_at(seed, index), HEARING.sample_rate, SECONDS) for index in range(count))
    heard = torch.stack([_quiet(hearing(Sound(torch.from_numpy(clip), HEARING.sample_rate))) for clip in clips])
    keep(heard, made_of, path)
    return heard


def _quiet(mel: Tensor) -> Tensor:
    """Bring amplitudes into the range of half precision: the loudest of a clip is 1000."""
    return (mel / mel.max() * 1000).half()


def blur_levels(
    mel: Float[Tensor, "b mels columns"],
    settings: ListenerSettings,
    generator: torch.Generator,
    part: BatchPart = WHOLE,
) -> Float[Tensor, "b mels columns"]:
    """Blur each clip's spectrogram by a factor of its own, and let its levels waver by an amount of their own."""
    count = part.count * len(mel)
    factors = part.rows(torch.randint(1, settings.coarsest + 1, (count,), generator=generator))
    roots = mel.pow(1 / 4)[:, None]  # on the amplitudes themselves, blur would leave the loudest alone
    rows = zip(roots.split(1), factors.tolist(), strict=True)
    roots = torch.cat([coarsen(row, factor) for row, factor in rows])
    amount = settings.noise * part.rows(torch.rand(count, 1, 1, 1, generator=generator))
    wavering = part.randn_like(roots, generator) * amount
    return (roots * (1 + wavering.to(roots)).clamp(min=0)).pow(4)[:, 0]


def load_judge(folder: Path) -> MusicJudge:
    """Load a trained judge. Raises ReverieError where there is none."""
    try:
        raw = json.loads((folder / "config.json").read_text())
        state = load_file(folder / "model.safetensors")
    except OSError as error:
        raise ReverieError(f"no trained judge of music in {folder}: {error}; train one with its recipe") from error
    leads, speeds = raw.pop("leads"), raw.pop("speeds")
    network = Listener(ListenerConfig(**raw | {"widths": tuple(raw["widths"])}))
    network.load_state_dict(in_single(state))
    return MusicJudge(network.eval().requires_grad_(False), leads, speeds)


def build(sections: dict[str, Any], seed: int, out: Path) -> ListenerObjective:
    """Build the objective from a recipe's table [listener]."""
    torch.manual_seed(seed)
    return ListenerObjective(section(sections, "listener", ListenerSettings), seed, out)
