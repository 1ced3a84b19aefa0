"""Does torch keep within a container's limit, never take more than it would, and one thread for small work?"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from reverie.generate.image import stream
from reverie.requests.pictures import TextToImage
from reverie.runtime.transform import CHOSEN, SMALL, limit_threads, quota, spare_threads
from reverie.system import load


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def unified(folder: Path, text: str) -> Path:
    (folder / "cpu.max").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("text", "granted"),
    [
        ("150000 100000\n", 1.5),
        ("max 100000\n", None),
        ("200000 100000", 2.0),
        ("", None),
        ("? ?", None),
        ("1 0", None),
    ],
)
def test_the_limit_of_a_control_group(tmp_path: Path, text: str, granted: float | None) -> None:
    assert quota(unified(tmp_path, text)) == granted


def test_the_older_layout(tmp_path: Path) -> None:
    assert quota(tmp_path) is None
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("300000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert quota(tmp_path) == 3
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert quota(tmp_path) is None


@pytest.mark.parametrize(("text", "threads"), [("150000 100000", 2), ("1000 100000", 1), ("900000 100000", 4)])
def test_threads_are_limited_and_never_added(tmp_path: Path, text: str, threads: int) -> None:
    limit_threads({}, unified(tmp_path, text))
    assert torch.get_num_threads() == threads


def test_who_chose_is_left_alone(tmp_path: Path) -> None:
    limit_threads({"OMP_NUM_THREADS": "4"}, unified(tmp_path, "100000 100000"))
    assert torch.get_num_threads() == 4


class Asks(nn.Module):
    """Tell how many threads there are while it computes."""

    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.ModuleList(inner)

    def forward(self, x: torch.Tensor) -> list[int]:
        if x.isnan().any():
            raise ValueError("not a number")
        return [torch.get_num_threads()] + [count for module in self.inner for count in module(torch.cat([x, x]))]


def test_small_work_is_one_threads() -> None:
    network = Asks(Asks())
    for one in (network, network.inner[0]):
        spare_threads(one, {})
    assert network(torch.zeros(SMALL + 1)) == [4, 4]
    assert network(torch.zeros(SMALL)) == [1, 1]  # no more inside than outside
    assert network(torch.zeros(SMALL // 2)) == [1, 1]
    assert torch.get_num_threads() == 4
    with pytest.raises(ValueError, match="not a number"):
        network(torch.full((2,), torch.nan))
    assert torch.get_num_threads() == 4
    assert copy.deepcopy(network)(torch.zeros(2)) == [1, 1]


def test_another_thread_keeps_its_own_count() -> None:
    network = Asks()
    spare_threads(network, {})
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(network, torch.zeros(2)).result() == [1]
    assert torch.get_num_threads() == 4


def test_whoever_chose_the_threads_has_them() -> None:
    network = Asks()
    spare_threads(network, {"OMP_NUM_THREADS": "4"})
    assert network(torch.zeros(2)) == [4]


def test_the_bundled_model_leaves_the_threads_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CHOSEN:
        monkeypatch.delenv(name, raising=False)
    system = load(device="cpu")
    counts = []
    system.unet.conv_in.register_forward_hook(lambda *_: counts.append(torch.get_num_threads()))
    for _ in stream(system, TextToImage(prompt="a bear", steps=2)):
        assert torch.get_num_threads() == 4
    assert counts == [1, 1]
