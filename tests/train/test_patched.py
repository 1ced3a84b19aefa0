"""Does a patched autoencoder learn what the levels did that it replaces, and nothing else?"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reverie.checkpoints.load import Components, Recommended, load_autoencoder
from reverie.data.loader import WHOLE, BatchPart
from reverie.diffusion.denoiser import ScheduleConfig
from reverie.errors import ReverieError
from reverie.models.autoencoder import Autoencoder, AutoencoderConfig
from reverie.train.loop import Learner, RunSettings
from reverie.train.patched import HELD_OUT, RIM_WIDTH, PatchedObjective, draw_sketches, patch, play_latents, sides

OWN = AutoencoderConfig(block_out_channels=(4, 8, 8, 16), layers_per_block=1, norm_num_groups=4, scaling_factor=0.5)
DIVISIONS = ([WHOLE], [BatchPart(0, 2), BatchPart(1, 2)])


def test_the_outer_level_learns_and_the_coarse_ones_stay(tmp_path: Path) -> None:
    torch.manual_seed(0)
    own, sketches = Autoencoder(OWN), draw_sketches(4, 32, np.random.default_rng(0))
    objective = PatchedObjective(own, 4, torch.randn(HELD_OUT + 4, 4, 4, 4), sketches, batch=4, seed=0)
    before = {name: value.clone() for name, value in objective.averaged.state_dict().items()}
    first = objective.measures()
    whole, halves = (
        [[loss.item() for _, loss, _ in objective.losses(0, part)] for part in parts] for parts in DIVISIONS
    )
    assert torch.allclose(torch.tensor(whole), torch.tensor(halves).mean(0), atol=1e-6)
    learner = Learner(objective, RunSettings(steps=40, lr=1e-2, warmup=5))
    told = [dict(learner.step(step)) for step in range(40)]
    assert told[-1]["error"] < told[0]["error"] / 2
    last = objective.measures()
    assert last["psnr"] > first["psnr"] + 3
    assert last["latent_error"] < first["latent_error"]
    theirs, moved = own.state_dict(), set()
    for name, value in objective.averaged.state_dict().items():
        if not torch.equal(value, before[name]):
            moved.add(".".join(name.split(".")[:3]) if "blocks" in name else name.rsplit(".", 1)[0])
    assert moved == {
        *("encoder.conv_in", "encoder.down_blocks.0", "decoder.up_blocks.1", "decoder.conv_norm_out"),
        "decoder.conv_out",
    }
    ours = objective.averaged.state_dict()
    for new, old in (
        ("decoder.up_blocks.0", "decoder.up_blocks.0"),
        ("encoder.down_blocks.1", "encoder.down_blocks.3"),
    ):
        assert torch.equal(ours[f"{new}.resnets.0.conv1.weight"], theirs[f"{old}.resnets.0.conv1.weight"])
    objective.export(tmp_path)
    loaded = load_autoencoder(tmp_path)
    assert (loaded.config.patch_size, loaded.factor) == (4, own.factor)
    z = torch.ones(1, 4, 2, 2)
    assert torch.allclose(loaded.decode(z), objective.averaged.decode(z), atol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_patch_is_of_the_size_of_levels(size: int) -> None:
    with pytest.raises(ReverieError, match=rf"patch_size {size} is that of no levels here; give one of \[2, 4\]"):
        patch(Autoencoder(OWN), size)


def test_the_rim_is_what_lies_along_the_sides() -> None:
    inside = F.pad(torch.ones(2, 3, 4, 6), (RIM_WIDTH,) * 4)
    assert [{*torch.cat([side.flatten() for side in sides(x)]).tolist()} for x in (inside, 1 - inside)] == [{0}, {1}]


def test_latents_are_played_in_the_steps_that_a_model_recommends(expecting: Any) -> None:
    """A network that expects one x0 leads there, asked as often as there are steps, at trailing timesteps."""
    expected, config, asked = torch.randn(1, 4, 2, 4), ScheduleConfig(prediction="v"), list[float]()
    unet = expecting(expected, config, asked)
    base = SimpleNamespace(
        unet=unet,
        schedule_config=config,
        recommended=Recommended(steps=2),
        tokenizers=(lambda texts: torch.zeros(len(texts), 1),),
        text_encoders=(lambda ids: SimpleNamespace(last=ids),),
    )
    played = play_latents(cast(Components, base), ["a", "b"], (4, 2, 4), np.random.default_rng(0))
    torch.testing.assert_close(played, expected.expand(2, -1, -1, -1), atol=5e-3, rtol=1e-3)
    assert asked == [999, 499, 999, 499]
