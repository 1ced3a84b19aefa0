"""Does the search for a learning rate find what is known of a bowl, and leave all as it was?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from reverie.cli import app as cli
from reverie.data.loader import WHOLE, BatchPart
from reverie.errors import ReverieError
from reverie.train import recipe
from reverie.train.loop import Learner, RunSettings
from reverie.train.optimisers import OPTIMISERS
from reverie.train.rate import RateStep, find_rate, suggest

CURVATURE, START = 8.0, 3.0


class Bowl:
    """Half the curvature times the square of a weight: descent diverges from a rate of 2 / CURVATURE on."""

    def __init__(self, sign: float = 1.0) -> None:
        self.averaged = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.averaged.weight, START)
        self.networks, self.sign = nn.ModuleDict({"bowl": self.averaged}), sign

    def move(self, device: torch.device) -> None:
        self.networks.to(device)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {"bowl": list(self.averaged.parameters())}

    def losses(self, step: int, part: BatchPart = WHOLE) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
        loss = CURVATURE / 2 * self.averaged.weight.square().sum()
        yield "bowl", self.sign * loss, {"loss": loss.item()}

    def after_step(self) -> None:
        pass


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> RunSettings:
    monkeypatch.setitem(OPTIMISERS, "sgd", lambda groups, settings: {"": torch.optim.SGD(groups, settings.lr)})
    return RunSettings(steps=5, lr=0.5, optimiser="sgd", clip=1e30, ema=0.5, threads=1, device="cpu")


def test_a_bowls_losses_fall_up_to_the_rate_that_is_known(settings: RunSettings) -> None:
    learner = Learner(Bowl(), settings)  # type: ignore[arg-type]
    before = deepcopy(learner.state_dict())
    steps = list(find_rate(learner, 1e-4, 10.0, 200))
    rates = 1e-4 * 1e5 ** (np.arange(200) / 199)
    assert [step.rate for step in steps] == pytest.approx(rates[: len(steps)])
    weights = START * np.cumprod(np.concatenate([[1], 1 - CURVATURE * rates]))[: len(steps)]
    assert [step.loss for step in steps] == pytest.approx(CURVATURE / 2 * weights**2, rel=1e-3, abs=1e-30)
    assert len(steps) < 200  # it ended where the loss had grown
    losses = [step.loss for step in steps]
    for rate, loss, after in zip(rates, losses, losses[1:], strict=False):
        assert (after > loss) is bool(rate > 2 / CURVATURE)
    best = suggest(steps)
    assert 1e-3 < best < 2 / CURVATURE
    assert learner.settings is settings
    for now, then in ((learner.state_dict(), before),):
        assert torch.equal(now["networks"]["bowl.weight"], then["networks"]["bowl.weight"])
        assert now["optimisers"] == then["optimisers"]
        assert str(now["average"]) == str(then["average"])


def test_a_loss_that_becomes_no_number_ends_the_search(settings: RunSettings) -> None:
    learner = Learner(Bowl(), settings)  # type: ignore[arg-type]
    steps = list(find_rate(learner, 1e25, 1e30, 60))  # after one step the loss is infinite in float32
    assert len(steps) == 1
    assert learner.objective.averaged.weight.item() == START  # type: ignore[operator,union-attr]


def test_the_loss_is_that_of_all_parts_of_a_batch(settings: RunSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    def losses(self: Bowl, step: int, part: BatchPart = WHOLE) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
        yield "bowl", self.averaged.weight.square().sum(), {"loss": float(part.index), "other": 9.0}

    monkeypatch.setattr(Bowl, "losses", losses)
    learner = Learner(Bowl(), replace(settings, accumulate=4))  # type: ignore[arg-type]
    assert next(find_rate(learner, 1e-4, 1e-3, 2)).loss == 1.5


def test_few_easy_examples_at_the_start_decide_nothing(settings: RunSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A diffusion model's loss depends on the level of noise: the first may be a hundredth of the next."""
    plain = Bowl.losses

    def losses(self: Bowl, step: int, part: BatchPart = WHOLE) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
        for group, loss, metrics in plain(self, step, part):
            yield group, loss, {"loss": metrics["loss"] * (0.01 if step < 2 else 1)}

    monkeypatch.setattr(Bowl, "losses", losses)
    steps = list(find_rate(Learner(Bowl(), settings), 1e-4, 10.0, 200))  # type: ignore[arg-type]
    assert steps[2].smoothed > 4 * steps[0].smoothed
    assert len(steps) > 100
    assert 1e-3 < suggest(steps) < 2 / CURVATURE


def test_the_rate_of_the_steepest_fall_is_chosen() -> None:
    """A logistic fall is steepest in its middle, here at 1e-3; what comes after the lowest loss is no fall."""
    rates = 10 ** np.linspace(-6, 0, 121)
    losses = 1 / (1 + np.exp(3 * (np.log10(rates) + 3)))
    losses[100:] += np.linspace(0, 5, 21)
    losses[115:] -= 3
    steps = [
        RateStep(n + 1, 121, "steps", rate, loss, loss)
        for n, (rate, loss) in enumerate(zip(rates, losses, strict=True))
    ]
    assert suggest(steps) == pytest.approx(1e-3)


def test_a_loss_that_never_falls_proposes_nothing(settings: RunSettings) -> None:
    learner = Learner(Bowl(sign=-1.0), settings)  # type: ignore[arg-type]
    with pytest.raises(ReverieError, match="the loss rose from the start, or fell in 1 steps alone"):
        suggest(list(find_rate(learner, 1e-3, 1.0, 30)))


def test_the_command_prints_a_table_and_begins_no_run(
    settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module: Any = type("Bowls", (), {"build": staticmethod(lambda sections, seed, out: Bowl())})
    monkeypatch.setattr("reverie.train.rate.import_module", lambda name: module)
    monkeypatch.setitem(recipe.OBJECTIVES, "bowl", ("bowls", ()))
    path = tmp_path / "bowl.toml"
    path.write_text('objective = "bowl"\n[run]\nsteps = 5\nlr = 1\noptimiser = "sgd"\nclip = 1e30\ndevice = "cpu"\n')
    assert cli.run(["train", str(path), "--out", str(tmp_path / "run"), "--find-rate"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert len(table) >= 14
    assert table[0].startswith("lr  1.0e-07   loss 36")
    made = json.loads((tmp_path / "run/rate.json").read_text())
    assert last.startswith(f"lr = {made['lr']:.1e} is proposed: there the loss falls fastest; see ")
    assert 1e-3 < made["lr"] < 2 / CURVATURE
    with Image.open(tmp_path / "run/rate.png") as picture:
        assert picture.convert("RGB").getcolors(10**6)
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == [".lock", "rate.json", "rate.png"]
    assert cli.run(["train", str(path), "--find-rate", "--resume"]) == 2
    assert "--find-rate begins no run; leave out --resume" in capsys.readouterr().err
    module.build = staticmethod(lambda sections, seed, out: Bowl(sign=-1.0))
    (tmp_path / "run/recipe.json").touch()  # of a run that was killed before its first checkpoint
    assert cli.run(["train", str(path), "--out", str(tmp_path / "run"), "--find-rate"]) == 2
    assert "which proposes no rate" in capsys.readouterr().err
    assert json.loads((tmp_path / "run/rate.json").read_text())["lr"] is None
    assert (tmp_path / "run/recipe.json").exists()
    path.write_text(path.read_text().replace('"sgd"', '"prodigy"'))
    assert cli.run(["train", str(path), "--out", str(tmp_path / "run"), "--find-rate"]) == 2
    assert "finds its own rate" in capsys.readouterr().err
