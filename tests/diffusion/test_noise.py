"""Noise belongs to a seed, not to a batch; slerp keeps to the sphere."""

from __future__ import annotations

import pytest
import torch

from reverie.diffusion.noise import Noise, slerp

SHAPE = (4, 3, 5)


def test_noise_is_what_a_cpu_generator_of_the_seed_draws() -> None:
    noise, generator = Noise([11], SHAPE), torch.Generator("cpu").manual_seed(11)
    draws = [torch.randn(SHAPE, generator=generator) for _ in range(3)]
    assert torch.equal(noise.initial()[0], draws[0])
    assert torch.equal(noise.next()[0], draws[1])
    assert torch.equal(noise.next()[0], draws[2])
    assert torch.equal(noise.initial()[0], draws[0])
    assert noise.initial().dtype == torch.float32


def test_a_picture_of_a_batch_has_the_noise_of_the_picture_alone() -> None:
    batch, alone = Noise([5, 6, 7], SHAPE), Noise([6], SHAPE)
    assert torch.equal(batch.initial()[1], alone.initial()[0])
    for _ in range(3):
        assert torch.equal(batch.next()[1], alone.next()[0])


def test_a_seed_may_be_as_large_as_64_bits() -> None:
    assert Noise([2**64 - 1, 0], SHAPE).initial().shape == (2, *SHAPE)


def test_slerp_starts_and_ends_where_it_should() -> None:
    a, b = torch.randn(2, 3, *SHAPE, dtype=torch.float64).unbind()
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)


def test_slerp_keeps_the_norm_and_divides_the_angle() -> None:
    a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    third = slerp(a, b, 1 / 3)
    torch.testing.assert_close(third, 3 * torch.tensor([[0.75**0.5, 0.5]]))


def test_slerp_treats_each_sample_on_its_own() -> None:
    a, b = torch.randn(2, 2, *SHAPE).unbind()
    b[1] = 1.0001 * a[1]  # parallel: this sample is interpolated linearly, the other on its arc
    both = slerp(a, b, 0.3)
    torch.testing.assert_close(both[:1], slerp(a[:1], b[:1], 0.3))
    torch.testing.assert_close(both[1], torch.lerp(a[1], b[1], 0.3))


@pytest.mark.parametrize("sign", [1, -1])
def test_slerp_of_parallel_samples_is_finite(sign: int) -> None:
    a = torch.ones(1, *SHAPE)
    assert slerp(a, sign * a, 0.25).isfinite().all()
