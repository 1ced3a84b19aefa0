"""Do windows cover all, agree where they lie over one another, and close a circle?"""

from __future__ import annotations

import itertools

import pytest
import torch

from reverie.diffusion.denoiser import Level
from reverie.diffusion.noise import Noise
from reverie.diffusion.samplers import SAMPLERS
from reverie.diffusion.schedule import scaled_linear
from reverie.diffusion.spacings import karras
from reverie.diffusion.windows import Windows, by_rows, circle, line, multi_diffusion
from reverie.errors import ReverieError


@pytest.mark.parametrize(("length", "width"), [(8, 8), (9, 8), (12, 8), (13, 8), (100, 8), (37, 32), (33, 2)])
def test_a_line_is_covered_from_end_to_end_by_windows_half_over_one_another(length: int, width: int) -> None:
    windows = line(length, width)
    assert windows.starts[0] == 0
    assert windows.starts[-1] == length - width
    gaps = [after - before for before, after in itertools.pairwise(windows.starts)]
    assert all(0 < gap <= -(-width // 2) for gap in gaps)
    assert len(windows) == -(-2 * (length - width) // width) + 1


@pytest.mark.parametrize(("length", "width"), [(8, 8), (9, 8), (100, 8), (37, 32), (5, 8), (1, 8)])
def test_a_circle_has_no_end(length: int, width: int) -> None:
    windows = circle(length, width)
    gaps = [after - before for before, after in itertools.pairwise([*windows.starts, length])]
    assert windows.starts[0] == 0
    assert all(0 < gap <= width // 2 for gap in gaps)


def test_windows_may_keep_time() -> None:
    """Strides that are no whole columns do not drift, and rounding at the end makes no window more."""
    assert line(110, 32, 15.625).starts == (0, 16, 31, 47, 62, 78)
    assert line(111, 32, 15.625).starts == (0, 16, 31, 47, 62, 78, 79)
    assert circle(47, 32, 15.625).starts == (0, 16, 31)
    assert circle(16, 32, 15.625).starts == (0,)


@pytest.mark.parametrize("windows", [line(21, 8), circle(21, 8), circle(5, 8), circle(8, 8), line(21, 8, 5.5)])
def test_what_is_cut_and_laid_back_is_the_same(windows: Windows) -> None:
    x = torch.randn(3, 4, 2, windows.length)
    assert torch.allclose(windows.average(windows.cut(x)), x, atol=1e-6)


def test_windows_that_disagree_are_averaged_by_weights_that_fade() -> None:
    """Two windows over 12 columns that answer 0 and 1: the mean goes from one to the other without a jump."""
    windows = line(12, 8)
    rows = torch.cat([torch.zeros(1, 1, 1, 8), torch.ones(1, 1, 1, 8)])
    answer = windows.average(rows)[0, 0, 0]
    assert torch.equal(answer[:4], torch.zeros(4))
    assert torch.equal(answer[8:], torch.ones(4))
    angles = torch.pi * (torch.arange(4) + 0.5) / 8  # sin^2 of the one and cos^2 of the other window
    assert torch.allclose(answer[4:8], angles.sin().square(), atol=1e-6)


def test_columns_follow_each_other_across_the_wrap() -> None:
    cut = circle(6, 4).cut(torch.arange(6.0).view(1, 1, 1, 6))
    assert cut[:, 0, 0].tolist() == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 0, 1]]


def test_a_short_circle_is_seen_repeated() -> None:
    cut = circle(3, 8).cut(torch.arange(3.0).view(1, 1, 1, 3))
    assert cut[:, 0, 0].tolist() == [[0, 1, 2, 0, 1, 2, 0, 1]]


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "unipc", "euler_ancestral"])
def test_what_knows_no_neighbours_is_denoised_as_in_one_piece(sampler: str) -> None:
    def shrunk(x: torch.Tensor, sigma: Level) -> torch.Tensor:
        return x / (1 + sigma**2)

    sigmas = karras(scaled_linear(), 6)
    x = sigmas[0].item() * Noise([1], (4, 2, 21)).initial()
    *_, whole = SAMPLERS[sampler](shrunk, x, sigmas, Noise([1], (4, 2, 21)))
    for windows in (line(21, 8), circle(21, 8)):
        *_, parts = SAMPLERS[sampler](multi_diffusion(shrunk, windows), x, sigmas, Noise([1], (4, 2, 21)))
        assert torch.allclose(parts.x, whole.x, atol=1e-4)


def test_a_rolled_circle_is_denoised_to_the_rolled_answer() -> None:
    """Rolled by a window's distance; the denoiser sees where in a window a column stands, as zero padding lets it."""

    def edged(x: torch.Tensor, sigma: Level) -> torch.Tensor:
        return torch.nn.functional.conv1d(x[:, 0], torch.tensor([[[0.2, 0.5, 0.3]]]), padding=1)[:, None]

    x = torch.randn(1, 1, 1, 20)
    denoise = multi_diffusion(edged, circle(20, 8))
    assert torch.allclose(denoise(x.roll(4, -1), 1.0), denoise(x, 1.0).roll(4, -1), atol=1e-6)
    assert not torch.allclose(edged(x.roll(4, -1), 1.0), edged(x, 1.0).roll(4, -1), atol=1e-3)


def test_one_window_is_the_denoiser_itself() -> None:
    def denoise(x: torch.Tensor, sigma: Level) -> torch.Tensor:
        return x

    assert multi_diffusion(denoise, line(8, 8)) is denoise
    assert multi_diffusion(denoise, circle(8, 8)) is not denoise


def test_rows_go_to_their_denoisers() -> None:
    denoise = by_rows([lambda x, sigma: x * 0, lambda x, sigma: x * sigma], [2, 3])
    assert denoise(torch.ones(5, 1), 4.0)[:, 0].tolist() == [0, 0, 4, 4, 4]


def test_what_is_shorter_than_a_window_is_told() -> None:
    with pytest.raises(ReverieError, match="7 columns are fewer than a window of 8"):
        line(7, 8)
    with pytest.raises(ReverieError, match="not possible"):
        Windows(0, 8, (0,))
    with pytest.raises(ReverieError, match="leave gaps"):
        line(30, 8, 9.5)
