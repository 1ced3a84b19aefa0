"""Does the noise go from one seed towards another, and keep its middle at another size?"""

from __future__ import annotations

import torch

from reverie.diffusion.noise import Noise, gpu_source
from reverie.generate.canvas import starting_noise
from reverie.requests.parts import Variation
from reverie.requests.pictures import TextToImage

SHAPE = (4, 6, 8)


def first(variation: Variation | None, seed: int = 7) -> torch.Tensor:
    return starting_noise([TextToImage(seed=seed, variation=variation)], SHAPE, 8).initial()


def plain(seed: int, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    return Noise([seed], shape).initial()


def test_the_ends_of_a_variation() -> None:
    assert torch.equal(first(None), plain(7))
    assert torch.equal(first(Variation(seed=9)), plain(7))
    assert torch.allclose(first(Variation(seed=9, strength=1)), plain(9), atol=1e-6)


def test_a_variation_keeps_the_deviation_of_noise() -> None:
    """The great circle of each column; on the straight line the middle would have the deviation 0.71."""
    shape = (4, 64, 64)
    noise = starting_noise([TextToImage(seed=7, variation=Variation(seed=9, strength=0.5))], shape, 8).initial()
    assert abs(noise.std().item() - 1) < 0.02
    a, b = plain(7, shape), plain(9, shape)
    u, v = a[0, 1, :, 3], b[0, 1, :, 3]
    angle = (u @ v / u.norm() / v.norm()).acos()
    expected = ((angle / 2).sin() / angle.sin()) * (u + v)
    assert torch.allclose(noise[0, 1, :, 3], expected, atol=1e-5)


def test_a_seed_of_another_size_lies_in_the_middle() -> None:
    noise = first(Variation(width=32, height=16))  # 4 x 2 latents in 8 x 6
    assert torch.equal(noise[0, :, 2:4, 2:6], plain(7, (4, 2, 4))[0])
    assert torch.equal(noise[0, :, 0], plain(7)[0, :, 0])
    larger = first(Variation(width=80, height=64))  # 10 x 8 latents, cut
    assert torch.equal(larger, plain(7, (4, 8, 10))[:, :, 1:7, 1:9])
    assert torch.equal(first(Variation(width=64, height=48)), plain(7))


def test_the_request_says_which_generator_draws() -> None:
    """stable-diffusion-webui 1.10, modules/rng.py: variations are drawn by the same generator."""
    gpu = starting_noise([TextToImage(seed=7, rng="gpu")], SHAPE, 8)
    assert torch.equal(gpu.initial()[0], gpu_source(7)(SHAPE))
    varied = starting_noise([TextToImage(seed=7, rng="gpu", variation=Variation(seed=9, strength=1))], SHAPE, 8)
    assert torch.allclose(varied.initial()[0], gpu_source(9)(SHAPE), atol=1e-6)
    draw = gpu_source(7)
    draw(SHAPE)
    assert torch.equal(varied.next()[0], draw(SHAPE))


def test_a_batch_has_the_noise_of_each_alone() -> None:
    request = TextToImage(seed=7, count=3, variation=Variation(seed=9, strength=0.3))
    singles = [request.only(k) for k in range(3)]
    assert [(single.seed, single.variation.seed) for single in singles if single.variation] == [
        (7, 9),
        (7, 10),
        (7, 11),
    ]
    together = starting_noise(singles, SHAPE, 8)
    alone = [starting_noise([single], SHAPE, 8) for single in singles]
    assert torch.equal(together.initial(), torch.cat([one.initial() for one in alone]))
    assert torch.equal(together.next(), torch.cat([one.next() for one in alone]))
