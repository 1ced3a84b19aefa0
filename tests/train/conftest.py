"""What the tests of training share: a toy to learn that needs no files, and tiny recipes that learn for real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from reverie.corpora.concepts import CLDR
from reverie.corpora.scenes import FONT
from reverie.data.loader import WHOLE, BatchPart
from reverie.diffusion.denoiser import ScheduleConfig
from reverie.train import run
from reverie.train.checkpoint import latest
from reverie.train.loop import RunSettings, step_generator


class Toy:
    """Fit a small convolution to random targets, and a line to what the convolution gives."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.averaged = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
        self.networks = nn.ModuleDict(
            {"convolution": self.averaged, "line": nn.Linear(3, 1), "norm": nn.BatchNorm1d(3)}
        )
        self.seed = seed
        self.before_step: Callable[[int], None] = lambda step: None

    def move(self, device: torch.device) -> None:
        self.networks.to(device)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        line = [*self.networks["line"].parameters(), *self.networks["norm"].parameters()]
        return {"convolution": list(self.averaged.parameters()), "line": line}

    def losses(self, step: int, part: BatchPart = WHOLE) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
        self.before_step(step)
        x, y = map(part.rows, torch.randn(2, 4, 2, 3, 3, generator=step_generator(self.seed, step)))
        # The weight's gradient comes contiguous, the weight is not: an optimiser must not read both in memory order.
        features = F.conv2d(x, self.averaged.weight.contiguous(), self.averaged.bias)
        loss = (features.mean((1, 2, 3)) - y.mean((1, 2, 3))).square().mean() + self.line(features).mean()
        yield "convolution", loss, {"loss": loss.item()}
        loss = (self.line(features.detach()) - 1).square().mean()
        yield "line", loss, {"line": loss.item()}

    def line(self, features: Tensor) -> Tensor:
        return self.networks["line"](self.networks["norm"](features.flatten(1)))

    def after_step(self) -> None:
        with torch.no_grad():
            self.averaged.bias.clamp_(-0.1, 0.1)

    def samples(self) -> Image.Image:
        return Image.new("RGB", (8, 4), (int(self.averaged.bias[0] * 0) + 200, 0, 0))

    def export(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        save_file(
            {name: value.contiguous() for name, value in self.averaged.state_dict().items()}, folder / "toy.safetensors"
        )


@pytest.fixture
def toy() -> type[Toy]:
    """Give the class of an objective that needs no files: two groups, a buffer, a layout that is not contiguous."""
    return Toy


@pytest.fixture
def settings() -> Callable[..., RunSettings]:
    """Make the settings of a short run."""

    def make(**changed: object) -> RunSettings:
        short = {"steps": 8, "lr": 0.05, "warmup": 3, "ema": 0.9, "weight_decay": 0.1, "log_every": 1, "save_every": 3}
        return RunSettings(**short | {"sample_every": 4, "threads": 1, "device": "cpu"} | changed)

    return make


def equal(a: object, b: object) -> bool:
    """Tell whether two states are the same to the bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(equal, a, b))
    return a == b


def last_state(out: Path) -> object:
    """Return the last checkpoint of a run; one in parts as torch itself joins it."""
    file = latest(out)
    assert file is not None
    if file.is_dir():
        from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

        dcp_to_torch_save(file, joined := out / "joined.pt")
        file = joined
    return torch.load(file, weights_only=True)


def assert_same_run(one: Path, other: Path) -> None:
    """Compare the last checkpoints (weights, optimisers, average) and the exports of two runs, to the bit."""
    assert equal(last_state(one), last_state(other))
    files = sorted(path.relative_to(one) for path in (one / "export").rglob("*") if path.is_file())
    assert files
    for file in files:
        assert (one / file).read_bytes() == (other / file).read_bytes(), file


@pytest.fixture
def same_run() -> Callable[[Path, Path], None]:
    """Give the comparison of two runs."""
    return assert_same_run


RUN = """
[run]
steps = 6
lr = 1e-3
warmup = 2
ema = 0.9
weight_decay = 0.01
seed = 3
threads = 1
device = "cpu"
log_every = 1
save_every = 2
"""
RECIPES = {
    "features": """
objective = "classifier"
[classifier]
make = "plain"
widths = [4, 8]
subset = "instruments"
crop = 32
batch = 2
""",
    "autoencoder": """
objective = "autoencoder"
[model]
latent_channels = 4
block_out_channels = [8, 8, 8, 8, 8]
layers_per_block = 1
norm_num_groups = 4
sample_size = 128
[data]
subset = "instruments"
crop = 32
batch = 2
[loss]
kl = 1e-5
perceptual = 0.05
features = "{features}/export"
adversarial = 0.1
adversarial_start = 1
adversarial_width = 8
""",
    "clip": """
objective = "clip"
[text]
vocabulary = 600
length = 16
width = 16
layers = 1
heads = 2
captions = 300
[vision]
width = 16
layers = 1
heads = 2
patch = 32
size = 128
[contrast]
subset = "instruments"
batch = 4
projection = 16
""",
    "diffusion": """
objective = "diffusion"
[unet]
in_channels = 4
out_channels = 4
sample_size = 8
block_out_channels = [8, 16]
layers_per_block = 1
transformer_depth = [1, 0]
num_heads = [2, 2]
cross_attention_dim = 16
norm_num_groups = 4
[data]
autoencoder = "{autoencoder}/export"
clip = "{clip}/export"
subset = "instruments"
pool = 20
batch = 4
dropout = 0.2
""",
}
KILLED = """
import os, signal, sys
from pathlib import Path
from reverie.data.loader import WHOLE, BatchPart
from reverie.diffusion.denoiser import ScheduleConfig
from reverie.train import run

assert not any(name.startswith("tensorboard") for name in sys.modules), "it costs a second: only a run may import it"
for event in run(Path(sys.argv[1]), Path(sys.argv[2])):
    if event.step == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@dataclass
class Workshop:
    """Carry out the tiny recipes, each once, in one folder."""

    folder: Path
    done: dict[str, Path] = field(default_factory=dict)

    def recipe(self, name: str) -> Path:
        """Write a recipe, after the runs that it builds on."""
        needed = {other: self.trained(other) for other in RECIPES if f"{{{other}}}" in RECIPES[name]}
        path = self.folder / f"{name}.toml"
        text = RECIPES[name]
        for other, out in needed.items():
            text = text.replace(f"{{{other}}}", str(out))
        path.write_text(text + RUN)
        return path

    def trained(self, name: str) -> Path:
        """Return the folder of an uninterrupted run."""
        if name not in self.done:
            out = self.folder / name
            list(run(self.recipe(name), out))
            self.done[name] = out
        return self.done[name]

    def killed(self, name: str, out: Path, step: int) -> None:
        """Carry out a recipe in a process that is killed with SIGKILL right after a step."""
        arguments = [sys.executable, "-W", "error", "-c", KILLED, str(self.recipe(name)), str(out), str(step)]
        ended = subprocess.run(arguments, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False, timeout=300)
        assert ended.returncode == -signal.SIGKILL

    def stopped(self, name: str, out: Path, step: int) -> None:
        """Carry out a recipe and let go of it right after a step."""
        next(event for event in run(self.recipe(name), out) if event.step == step)

    def resumed(self, name: str, out: Path) -> None:
        """Carry a run on to its end."""
        list(run(self.recipe(name), out, resume=True))


@pytest.fixture(scope="session")
def corpus() -> None:
    """Skip where the font or the names of the emoji corpus are not installed."""
    if not (FONT.is_file() and CLDR.is_dir()):
        pytest.skip("needs Debian's fonts-noto-color-emoji and unicode-cldr-core")


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory, corpus: None) -> Workshop:
    """Give the tiny recipes, carried out when they are asked for."""
    return Workshop(tmp_path_factory.mktemp("workshop"))


Expecting = Callable[[Tensor, ScheduleConfig, list[float]], nn.Module]


@pytest.fixture
def expecting() -> Expecting:
    """Make networks that expect one x0 at every noise level, and note the timesteps that they are asked for."""

    def network(expected: Tensor, config: ScheduleConfig, asked: list[float]) -> nn.Module:
        def v_of(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
            asked.extend(t.tolist())
            sigma = config.schedule().t_to_sigma(t).view(-1, 1, 1, 1).to(x)
            kept, noise = 1 / (1 + sigma**2).sqrt(), sigma / (1 + sigma**2).sqrt()
            return kept * (x - kept * expected) / noise - noise * expected

        unet = nn.Identity()
        unet.forward = v_of  # type: ignore[method-assign, assignment]
        return unet

    return network
