"""Does the loop step as it says, and does a run that was stopped end in the bits of one that was not?"""

from __future__ import annotations

import json
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from reverie.cli import app as cli
from reverie.data.loader import WHOLE, BatchPart
from reverie.errors import RequestWarning, ReverieError
from reverie.train.begun import deciding
from reverie.train.checkpoint import load_checkpoint
from reverie.train.loop import Learner, RunSettings, step_generator, train
from reverie.train.optimisers import learning_rate
from reverie.train.recipe import OBJECTIVES

Make = Callable[..., RunSettings]


def logged(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_learning_rate_rises_then_falls_to_a_tenth() -> None:
    settings = RunSettings(steps=100, lr=2.0, warmup=10)
    assert learning_rate(settings, 0) == pytest.approx(0.2, rel=1e-3)
    assert learning_rate(settings, 4) == pytest.approx(1.0, rel=1e-2)
    assert learning_rate(settings, 50) == pytest.approx(2.0 * 0.55)
    assert learning_rate(settings, 100) == pytest.approx(0.2)
    cosine = [2.0 * (0.1 + 0.45 * (1 + math.cos(math.pi * step / 100))) for step in range(10, 100)]
    assert [learning_rate(settings, step) for step in range(10, 100)] == pytest.approx(cosine)
    constant = RunSettings(steps=100, lr=2.0, warmup=10, decay="constant")
    assert [learning_rate(constant, step) for step in (0, 4, 9, 50, 99)] == pytest.approx([0.2, 1, 2, 2, 2])
    assert learning_rate(RunSettings(steps=2, lr=2.0, warmup=0), 0) == 2.0
    linear = RunSettings(steps=100, lr=2.0, warmup=10, decay="linear")
    assert [learning_rate(linear, step) for step in (0, 10, 50, 99)] == pytest.approx([0.2, 1.8, 1.0, 0.02])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps = 0 .* give more than 0"),
        ({"lr": math.nan}, "lr = nan"),
        ({"save_every": 0}, "save_every = 0"),
        ({"decay": "steps"}, r"unknown decay in \[run\] 'steps'; choose from constant, cosine, linear"),
        ({"precision": "half"}, r"unknown precision in \[run\] 'half'; choose from float32, bfloat16, float16"),
    ],
)
def test_settings_that_no_run_can_use(settings: Make, wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ReverieError, match=message):
        settings(**wrong)


def test_random_numbers_depend_on_seed_step_and_stream() -> None:
    def draw(*place: int) -> float:
        return torch.rand((), generator=step_generator(*place)).item()

    assert draw(1, 2) == draw(1, 2)
    assert len({draw(1, 2), draw(1, 3), draw(2, 2), draw(1, 2, 1)}) == 4


def descend(learner: Learner, loss: Tensor, group: str = "convolution") -> None:
    list(learner._gradients(0, WHOLE, iter([(group, loss, {})])))
    learner._descend(group, 0.1, 0)


def test_a_loss_moves_its_own_group_alone(toy: type, settings: Make) -> None:
    objective = toy()
    learner = Learner(objective, settings())
    states = objective.losses(0)
    before = {name: value.clone() for name, value in objective.networks.state_dict().items()}
    name, loss, _ = next(states)
    descend(learner, loss, name)
    for key, value in objective.networks.named_parameters():
        assert torch.equal(value, before[key]) == (not key.startswith("convolution"))
        assert value.grad is None


def test_a_step_is_adamw_on_clipped_gradients(toy: type, settings: Make) -> None:
    """Fused AdamW reads memory in order: a gradient laid out in another way than its parameter would go astray."""
    objective, other = toy(), toy()
    learner = Learner(objective, settings(clip=0.05))
    plain = {name: torch.optim.AdamW(group, 1, weight_decay=0.1) for name, group in other.groups().items()}
    for step in range(4):
        learner.step(step)
        for name, loss, _ in other.losses(step):
            group = other.groups()[name]
            gradients = torch.autograd.grad(loss, group)
            norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
            for parameter, gradient in zip(group, gradients, strict=True):
                parameter.grad = (gradient * min(1, 0.05 / (norm.item() + 1e-6))).contiguous()
            plain[name].param_groups[0]["lr"] = learning_rate(settings(), step)
            plain[name].step()
        other.after_step()
    for ours, theirs in zip(objective.networks.parameters(), other.networks.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_gains_and_biases_can_be_spared_the_decay(toy: type, settings: Make) -> None:
    for spared in (False, True):
        objective = toy()
        learner = Learner(objective, settings(weight_decay=0.5, spare_gains=spared))
        before = {name: value.clone() for name, value in objective.averaged.named_parameters()}
        still = sum((parameter * 0).sum() for parameter in objective.averaged.parameters())
        descend(learner, still)
        torch.testing.assert_close(objective.averaged.weight, 0.95 * before["weight"])
        torch.testing.assert_close(objective.averaged.bias, (1 if spared else 0.95) * before["bias"])


def test_steps_that_overflow_half_precision_are_left_out(toy: type, settings: Make) -> None:
    objective = toy()
    learner = Learner(objective, settings(precision="float16"))
    scale = learner.scaler.get_scale()
    before = objective.averaged.weight.clone()
    descend(learner, objective.averaged.weight.sum() * 1e35)  # finite, but not when scaled up
    assert torch.equal(objective.averaged.weight, before)
    assert learner.scaler.get_scale() == scale / 2
    descend(learner, objective.averaged.weight.sum())
    assert not torch.equal(objective.averaged.weight, before)
    other = Learner(toy(), settings(precision="float16"))
    other.load_state_dict(learner.state_dict())
    assert other.scaler.get_scale() == scale / 2


def test_measures_are_told_when_sheets_are_drawn(toy: type, settings: Make, tmp_path: Path) -> None:
    objective = toy()
    objective.measures = lambda: {"bias": objective.averaged.bias[0].item()}
    events = list(train(lambda: objective, settings(log_every=3), tmp_path))
    assert [event.step for event in events] == [3, 4, 6, 8]
    assert ["bias" in event.metrics for event in events] == [False, True, False, True]
    average = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["average"]["weights"]["bias"]
    assert events[-1].metrics["bias"] == average[0].item()  # of the average, not of the weights


def test_a_run_tells_saves_draws_and_exports(toy: type, settings: Make, tmp_path: Path) -> None:
    events = list(train(toy, settings(log_every=2, steps=7), tmp_path))
    assert [event.step for event in events] == [2, 4, 6, 7]
    assert all(event.total == 7 and event.rate > 0 for event in events)
    assert events[-1].seconds_left == 0
    assert events[0].metrics.keys() == {"loss", "line", "lr"}
    written = [
        {name: getattr(event, name) for name in ("step", "total", "metrics", "rate", "seconds_left")}
        for event in events
    ]
    assert logged(tmp_path) == written
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["000004.png", "000007.png"]
    with Image.open(tmp_path / "samples/000007.png") as sheet:
        assert sheet.size == (8, 4)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state.keys() == {"step", "networks", "optimisers", "average"}
    exported = load_file(tmp_path / "export/toy.safetensors")
    assert torch.equal(exported["weight"], state["average"]["weights"]["weight"])
    assert not torch.equal(exported["weight"], state["networks"]["convolution.weight"])


def test_two_runs_into_one_folder_are_refused(toy: type, settings: Make, tmp_path: Path) -> None:
    first = train(toy, settings(log_every=1, steps=3, save_every=9), tmp_path)
    next(first)
    with pytest.raises(ReverieError, match=r"^another process is training into '.*'; wait until it is done$"):
        next(train(toy, settings(), tmp_path))
    assert len(list(first)) == 2


def test_without_an_average_the_weights_themselves_are_exported(toy: type, settings: Make, tmp_path: Path) -> None:
    list(train(toy, settings(ema=0.0), tmp_path))
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["average"] is None
    exported = load_file(tmp_path / "export/toy.safetensors")
    assert torch.equal(exported["weight"], state["networks"]["convolution.weight"])


def test_events_average_the_metrics_since_the_last(toy: type, settings: Make, tmp_path: Path) -> None:
    each = list(train(toy, settings(), tmp_path / "each"))
    (whole,) = train(toy, settings(log_every=100), tmp_path / "whole")
    assert whole.metrics["loss"] == pytest.approx(sum(event.metrics["loss"] for event in each) / len(each))


@pytest.mark.parametrize("stopped", [4, 5, 7, 8])
def test_resuming_is_exact(
    toy: type, settings: Make, tmp_path: Path, same_run: Callable[[Path, Path], None], stopped: int
) -> None:
    list(train(toy, settings(), tmp_path / "whole"))
    run = train(toy, settings(), tmp_path / "parts")
    for event in run:
        if event.step == stopped:
            run.close()  # the steps after the last checkpoint, of every third step, are lost
    # A resumed process starts from other weights than those saved, and torch's global generator stands elsewhere.
    list(train(lambda: toy(seed=0), settings(), tmp_path / "parts", resume=True))
    same_run(tmp_path / "whole", tmp_path / "parts")
    assert [line["step"] for line in logged(tmp_path / "parts")] == list(range(1, 9))
    metrics = [[line["metrics"] for line in logged(tmp_path / name)] for name in ("whole", "parts")]
    assert metrics[0] == metrics[1]


def test_a_line_that_a_kill_cut_in_two_is_dropped(toy: type, settings: Make, tmp_path: Path) -> None:
    run = train(toy, settings(), tmp_path)
    while next(run).step < 5:
        pass
    run.close()
    log = tmp_path / "log.jsonl"
    log.write_text(log.read_text()[:-9])
    list(train(toy, settings(), tmp_path, resume=True))
    assert [line["step"] for line in logged(tmp_path)] == list(range(1, 9))


def test_a_checkpoint_without_fused_adamw_goes_on_without_it(toy: type, settings: Make, tmp_path: Path) -> None:
    run = train(toy, settings(), tmp_path)
    while next(run).step < 4:
        pass
    run.close()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    for optimiser in state["optimisers"].values():
        optimiser["param_groups"][0]["fused"] = None
    torch.save(state, tmp_path / "checkpoint.pt")
    learner = Learner(toy(), settings())
    assert load_checkpoint(tmp_path / "checkpoint.pt", learner) == 3
    assert {optimiser.param_groups[0]["fused"] for _, optimiser in learner._named_optimisers()} == {None}


def test_a_kill_while_writing_leaves_the_last_checkpoint(
    toy: type, settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(toy, settings(), tmp_path)
    while next(run).step < 4:
        pass
    run.close()
    saved = (tmp_path / "checkpoint.pt").read_bytes()

    def half(state: object, file: object) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        list(train(toy, settings(), tmp_path, resume=True))
    assert (tmp_path / "checkpoint.pt").read_bytes() == saved


def test_a_full_disk_leaves_the_last_checkpoint(
    toy: type, settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(train(toy, settings(), tmp_path), 4)
    saved, save = (tmp_path / "checkpoint.pt").read_bytes(), torch.save

    def full(state: object, file: object) -> None:
        with Path("/dev/full").open("wb") as full:
            save(state, full)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ReverieError, match=r"cannot write '.*checkpoint\.pt': the disk is full"):
        list(train(toy, settings(), tmp_path, resume=True))
    assert (tmp_path / "checkpoint.pt").read_bytes() == saved
    assert not list(tmp_path.glob("*.part"))


def test_a_run_ends_when_its_validation_loss_has_not_fallen_for_long(
    toy: type, settings: Make, tmp_path: Path, same_run: Callable[[Path, Path], None]
) -> None:
    """Measured after every second step: 3, 1, 2, 1; so the run ends after the eighth of its twenty steps."""
    losses = dict(zip((2, 4, 6, 8, 10), (3.0, 1.0, 2.0, 1.0, 0.0), strict=True))

    def build() -> Any:
        objective, steps = toy(), []
        objective.before_step = steps.append
        objective.measures = lambda: {"validation": losses[steps[-1] + 1]}
        return objective

    chosen = settings(steps=20, sample_every=2, patience=2, decay="constant")
    events = list(train(build, chosen, tmp_path / "whole"))
    assert events[-1].step == 8
    assert (tmp_path / "whole" / "export").is_dir()
    stop_at(train(build, chosen, tmp_path / "parts"), 7)
    assert list(train(build, chosen, tmp_path / "parts", resume=True))[-1].step == 8
    same_run(tmp_path / "whole", tmp_path / "parts")
    assert not list(train(build, chosen, tmp_path / "parts", resume=True))  # it has ended
    with pytest.raises(ReverieError, match=r"patience in \[run\] waits for a validation loss"):
        list(train(toy, chosen, tmp_path / "none"))


def stop_at(run: Iterator[Any], step: int) -> None:
    while next(run).step < step:
        pass
    run.close()


def test_another_learning_rate_on_resume_is_told_once(toy: type, settings: Make, tmp_path: Path) -> None:
    """Fault 39: the run went on with it, and nobody said so."""
    stop_at(train(toy, settings(lr=0.05), tmp_path, sections={"data": {"batch": 4}}), 5)
    other = {"data": {"batch": 8, "workers": 2}}
    said = r"data\.batch was 4 and is 8; run\.lr was 0\.05 and is 0\.01$"
    with pytest.warns(RequestWarning, match=said):
        stop_at(train(toy, settings(lr=0.01, log_every=2, threads=1), tmp_path, resume=True, sections=other), 4)
    with pytest.warns(RequestWarning, match=said):  # no checkpoint was written with it yet
        stop_at(train(toy, settings(lr=0.01), tmp_path, resume=True, sections=other), 7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(train(toy, settings(lr=0.01), tmp_path, resume=True, sections=other))


def test_a_run_stopped_before_its_first_checkpoint_goes_on(
    toy: type, settings: Make, tmp_path: Path, same_run: Callable[[Path, Path], None]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(train(interrupted, settings(), tmp_path / "parts"))
    list(train(toy, settings(), tmp_path / "parts", resume=True))
    list(train(toy, settings(), tmp_path / "whole"))
    same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_recipe_keeps_what_decides_and_no_folders(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    sections = {"data": {"pictures": str(tmp_path / "cats"), "workers": 3}, "lora": {"targets": ["a/b"]}, "x": 1}
    kept = deciding(sections, {"lr": 0.1, "log_every": 3, "betas": (0.9, 0.99)})
    assert kept == {"data.pictures": "cats", "lora.targets": ["a/b"], "run.lr": 0.1, "run.betas": [0.9, 0.99]}


def test_runs_are_not_overwritten_or_made_up(toy: type, settings: Make, tmp_path: Path) -> None:
    def never() -> None:
        pytest.fail("refuse before anything is built: it may take minutes")

    with pytest.raises(ReverieError, match=r"nothing to resume in .*; start without `resume`"):
        next(train(never, settings(), tmp_path / "none", resume=True))
    assert not (tmp_path / "none").exists()
    list(train(toy, settings(steps=1), tmp_path))
    with pytest.raises(ReverieError, match="already holds a run; continue it with `resume`"):
        next(train(never, settings(), tmp_path))


def other_shapes(objective: object) -> None:
    objective.networks["line"] = nn.Linear(3, 2)


def other_names(objective: object) -> None:
    objective.networks["more"] = nn.Linear(1, 1)


def other_groups(objective: object) -> None:
    everything = list(objective.networks.parameters())
    objective.groups = lambda: {"all": everything}


def fewer_parameters(objective: object) -> None:
    groups = objective.groups()
    objective.groups = lambda: groups | {"line": groups["line"][:1]}


@pytest.mark.parametrize("change", [other_shapes, other_names, other_groups, fewer_parameters, None])
def test_a_checkpoint_of_another_recipe_gets_one_line(
    toy: type, settings: Make, tmp_path: Path, change: Callable[[object], None] | None
) -> None:
    list(train(toy, settings(steps=1), tmp_path))
    objective = toy()
    if change is not None:
        change(objective)
    changed = settings(ema=0.9 if change else 0.0)  # without a change, only the average is missing
    with pytest.raises(ReverieError, match=r"checkpoint\.pt was written by another recipe; resume with that one"):
        next(train(lambda: objective, changed, tmp_path, resume=True))


def test_a_flipped_bit_in_a_checkpoint_is_noticed(toy: type, settings: Make, tmp_path: Path) -> None:
    list(train(toy, settings(steps=1), tmp_path))
    path = tmp_path / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    with ZipFile(path) as archive:
        tensors = [archive.read(name) for name in archive.namelist() if "/data/" in name]
    content[content.index(max(tensors, key=len))] ^= 1
    path.write_bytes(content)
    with pytest.raises(ReverieError, match="is damaged or not a checkpoint"):
        next(train(toy, settings(steps=2), tmp_path, resume=True))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_damaged_checkpoint_gets_one_line(toy: type, settings: Make, tmp_path: Path, content: bytes | None) -> None:
    list(train(toy, settings(steps=1), tmp_path))
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    with pytest.raises(ReverieError, match="is damaged or not a checkpoint"):
        next(train(toy, settings(), tmp_path, resume=True))


def test_a_loss_that_explodes_stops_the_run(toy: type, settings: Make, tmp_path: Path) -> None:
    objective = toy()

    def explode(step: int) -> None:
        if step == 2:
            with torch.no_grad():
                objective.averaged.weight.fill_(math.inf)

    objective.before_step = explode
    with pytest.raises(ReverieError, match=r"the loss of convolution became (nan|inf) at step 2; lower lr"):
        list(train(lambda: objective, settings(), tmp_path))


def test_what_was_learned_from_when_a_loss_or_a_gradient_exploded_is_named(
    toy: type, settings: Make, tmp_path: Path
) -> None:
    class Traced(toy):  # type: ignore[misc]
        def keys(self, step: int, part: BatchPart) -> list[str]:
            return [f"{step}.png", "bear.png"]

    def explode(objective: Traced, what: str) -> None:
        if what == "loss":
            with torch.no_grad():
                objective.averaged.weight.fill_(math.nan)
        else:  # the loss stays what it was
            objective.averaged.weight.register_hook(lambda gradient: gradient * math.inf)

    for what in ("loss", "gradient"):
        objective = Traced()
        objective.before_step = lambda step, objective=objective, what=what: step == 1 and explode(objective, what)
        message = rf"the {what} of convolution became (nan|inf) at step 1, learned from 1.png, bear.png: look at these;"
        with pytest.raises(ReverieError, match=message):
            list(train(lambda objective=objective: objective, settings(), tmp_path / what))


def test_tensorboard(toy: type, settings: Make, tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="needs `train`")
    run = train(toy, settings(), tmp_path)
    while next(run).step < 5:
        pass
    run.close()
    list(train(toy, settings(), tmp_path, resume=True))
    board = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert set(board.Tags()["scalars"]) == {"loss", "line", "lr", "rate"}
    assert board.Tags()["images"] == ["samples"]
    told = {line["step"]: line["metrics"]["loss"] for line in logged(tmp_path)}
    assert {scalar.step: scalar.value for scalar in board.Scalars("loss")} == pytest.approx(told)


def test_without_tensorboard(toy: type, settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # as where it is not installed
    list(train(toy, settings(), tmp_path))
    assert len(logged(tmp_path)) == 8
    assert not (tmp_path / "tensorboard").exists()


def test_ctrl_c_through_the_command_line(
    toy: type,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    same_run: Callable[[Path, Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    objective = toy()
    module = ModuleType("toy")
    monkeypatch.setattr(module, "build", lambda sections, seed, out: objective, raising=False)
    monkeypatch.setitem(sys.modules, "toy", module)
    monkeypatch.setitem(OBJECTIVES, "toy", ("toy", ()))
    recipe = tmp_path / "toy.toml"
    recipe.write_text(
        'objective = "toy"\n[run]\nsteps = 8\nlr = 0.05\nema = 0.9\nsave_every = 3\nlog_every = 1\nthreads = 1\n'
    )
    assert cli.run(["train", str(recipe), "--out", str(tmp_path / "whole")]) == 0

    def interrupt(step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    objective = toy()
    objective.before_step = interrupt
    assert cli.run(["train", str(recipe), "--out", str(tmp_path / "parts")]) == 130
    assert torch.load(tmp_path / "parts/checkpoint.pt", weights_only=True)["step"] == 3
    objective = toy()
    assert cli.run(["train", str(recipe), "--out", str(tmp_path / "parts"), "--resume"]) == 0
    same_run(tmp_path / "whole", tmp_path / "parts")
    assert re.search(r"steps 8/8, loss \S+ line \S+ lr \S+ \S+/s, 0 s left", capsys.readouterr().err)
    assert cli.run(["train", str(recipe), "--out", str(tmp_path / "parts")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    recipe.write_text(recipe.read_text().replace("lr = 0.05", "lr = 0.01"))
    assert cli.run(["train", str(recipe), "--out", str(tmp_path / "parts"), "--resume"]) == 0
    told = capsys.readouterr().err
    assert told.endswith("was trained with so far: run.lr was 0.05 and is 0.01\n")
    assert told.count("\n") == 1
