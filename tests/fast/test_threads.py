"""Does torch keep within a container's limit, and never take more than it would?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from reverie.fast.threads import limit_threads, quota


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
