"""Noise belongs to a seed, not to a batch; slerp keeps to the sphere."""

from __future__ import annotations

import pytest
import torch

from reverie.diffusion.noise import Noise, cpu_then_gpu_source, gpu_source, philox, slerp

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


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    """Random123 1.09, examples/kat_vectors: philox4x32 10."""
    words = philox([torch.tensor([word]) for word in counter], key)
    assert tuple(word.item() for word in words) == expected


def test_noise_of_a_gpu_is_what_a_gpu_draws() -> None:
    """torch.manual_seed(0); torch.randn(3, 4, device="cuda"): stable-diffusion-webui 1.10, rng_philox.py."""
    expected = [
        [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
        [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
        [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
    ]
    torch.testing.assert_close(gpu_source(0)((3, 4)), torch.tensor(expected), rtol=0, atol=1e-6)


def test_later_draws_of_a_gpu_are_others_and_normal() -> None:
    noise = Noise([2**40 + 3], (4, 64, 64), source=gpu_source)
    first, second = noise.initial(), noise.next()
    assert abs((first * second).mean().item()) < 0.03
    assert abs(first.std().item() - 1) < 0.02
    assert not torch.equal(first, Noise([3], (4, 64, 64), source=gpu_source).initial())


def test_the_first_draw_may_be_the_cpus_and_the_later_ones_a_gpus() -> None:
    noise = Noise([5], SHAPE, source=cpu_then_gpu_source)
    assert torch.equal(noise.initial(), Noise([5], SHAPE).initial())
    gpu = Noise([5], SHAPE, source=gpu_source)
    assert torch.equal(noise.next(), gpu.initial())
    assert torch.equal(noise.next(), gpu.next())


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
