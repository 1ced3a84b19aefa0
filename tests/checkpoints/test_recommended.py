"""Does a model say how it wants to be guided, and is it heard?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import reverie
from reverie import Pipeline, ReverieError, TextToImage
from reverie.checkpoints.load import RECOMMENDED, Recommended
from reverie.checkpoints.single import recommendation_for
from reverie.diffusion.denoiser import ScheduleConfig
from reverie.generate.conditioning import follow_recommended
from reverie.generate.sample import noise_levels
from reverie.jobs.pictures import PictureJob
from reverie.models.unet import UNet
from reverie.requests.parts import Hires
from reverie.requests.records import from_metadata

BEAR = TextToImage(prompt="a bear", seed=7, steps=2)


def test_a_request_that_says_nothing_follows_the_model(tiny: Pipeline, tmp_path: Path) -> None:
    replace(tiny, recommended=Recommended(guidance=1.5)).save(tmp_path)
    model = reverie.load(tmp_path, device="cpu")
    picture = model.draw(BEAR)[0]
    assert from_metadata(picture).guidance == 1.5
    assert "CFG scale: 1.5," in picture.info["parameters"]
    assert picture.tobytes() == model.draw(BEAR.replace(guidance=1.5))[0].tobytes()
    assert picture.tobytes() != model.draw(BEAR.replace(guidance=5))[0].tobytes()
    tiny.save(tmp_path)  # which recommends nothing
    assert not (tmp_path / RECOMMENDED).exists()
    assert reverie.load(tmp_path, device="cpu").guidance == 5


@pytest.mark.parametrize("value", ['"strong"', "-1", "NaN", "true"])
def test_what_is_no_guidance_is_refused(value: str, tiny: Pipeline, tmp_path: Path) -> None:
    tiny.save(tmp_path)
    (tmp_path / RECOMMENDED).write_text(f'{{"guidance": {value}}}')
    with pytest.raises(ReverieError, match=r"recommended.json recommends what cannot be: guidance: "):
        reverie.load(tmp_path, device="cpu")


def test_what_a_request_leaves_open_is_the_models(tiny: Pipeline, tmp_path: Path) -> None:
    few = Recommended(guidance=1.0, steps=3, sampler="euler", schedule="trailing")
    replace(tiny, recommended=few).save(tmp_path)
    model = reverie.load(tmp_path, device="cpu")
    assert model.recommended == few
    open_request = TextToImage(prompt="a bear", seed=7)
    made = from_metadata(model.draw(open_request)[0])
    assert (made.guidance, made.steps, made.sampler, made.schedule) == (1.0, 3, "euler", "trailing")
    said = from_metadata(model.draw(open_request.replace(steps=20, sampler="dpmpp_2m"))[0])
    assert (said.steps, said.sampler, said.schedule) == (20, "dpmpp_2m", "trailing")
    assert model.draw(made)[0].tobytes() == model.draw(open_request)[0].tobytes()


def test_what_is_told_of_a_job_and_its_sheet_is_what_was_drawn(tiny: Pipeline, tmp_path: Path) -> None:
    model, file = replace(tiny, recommended=Recommended(steps=3, sampler="euler")), tmp_path / "sheet.png"
    job = PictureJob(request=TextToImage(prompt="a bear", seed=7, count=2), output=file, grid=True)
    *_, finished = job.run(lambda _: model)
    assert (finished.record["request"]["steps"], finished.record["request"]["sampler"]) == (3, "euler")
    sheet = from_metadata(file)
    assert (sheet.steps, sheet.sampler, sheet.count) == (3, "euler", 2)


def test_the_bundled_models_recommend_theirs() -> None:
    assert reverie.load(device="cpu").guidance == 2
    assert reverie.load("reverie-music", device="cpu").guidance == 3


def test_a_family_of_few_steps_is_known_by_its_name(tiny: Pipeline, tmp_path: Path) -> None:
    tiny.save(tmp_path / "sd-turbo")
    model = reverie.load(tmp_path / "sd-turbo", device="cpu")
    *_, step = model.stream(TextToImage(prompt="a bear", seed=7))
    (picture,) = step.pictures
    made = from_metadata(picture)
    assert (made.sampler, made.schedule, made.steps, made.guidance) == ("euler", "trailing", 1, 1)
    assert picture.tobytes() == tiny.draw(made)[0].tobytes()
    first = next(iter(model.stream(TextToImage(prompt="a bear", seed=7))))
    assert first.notes == ("SD-Turbo is made for guidance 1, steps 1, sampler euler, schedule trailing",)
    first = next(iter(model.stream(TextToImage(prompt="a bear", seed=7, steps=3, guidance=2))))
    assert first.total == 3
    assert first.notes[0].endswith("trailing; the request has guidance 2, steps 3")


def test_a_lora_for_few_steps_brings_its_settings(tiny: Pipeline, ink: Path, tmp_path: Path) -> None:
    file = ink.rename(tmp_path / "Hyper-SD15-4steps-lora.safetensors")
    request = TextToImage(prompt="a bear", seed=7, loras=(f"{file}:0.5",))
    made = from_metadata(tiny.draw(request)[0])
    assert (made.sampler, made.schedule, made.steps, made.guidance) == ("ddim", "trailing", 4, 1)
    tagged = TextToImage(prompt=f"a bear <lora:{file.stem}:0.5>", seed=7, guidance=3, folders=(str(tmp_path),))
    assert follow_recommended(tiny, tagged).guidance == 3
    assert follow_recommended(tiny, tagged).steps == 4
    assert follow_recommended(tiny, tagged.replace(prompt=f"a bear <lora:{file.stem}:0>")).steps == 20
    (tmp_path / "lcm-lora-sdxl").mkdir()
    folder = file.rename(tmp_path / "lcm-lora-sdxl" / "pytorch_lora_weights.safetensors")
    assert follow_recommended(tiny, request.replace(loras=(str(folder),))).sampler == "lcm"


def test_timesteps_are_recommended_as_a_list(tiny: Pipeline, tmp_path: Path) -> None:
    tiny.save(tmp_path)
    (tmp_path / RECOMMENDED).write_text('{"sampler": "lcm", "steps": 2, "guidance": 1.0, "timesteps": [999, 399]}')
    model = reverie.load(tmp_path, device="cpu")
    made = from_metadata(model.draw(TextToImage(prompt="a bear", seed=7))[0])
    assert (made.timesteps, made.steps, made.sampler) == ((999, 399), 2, "lcm")
    hires = TextToImage(prompt="a bear", seed=7, hires=Hires(steps=3, strength=1.0))
    first = next(iter(model.stream(hires)))
    assert first.total == 2 + 3


def test_rectified_flow_is_drawn_over_even_times(tiny: Pipeline, tmp_path: Path) -> None:
    replace(tiny, schedule_config=ScheduleConfig(prediction="flow", shift=3.0)).save(tmp_path)
    model = reverie.load(tmp_path, device="cpu")
    request = follow_recommended(model, TextToImage(prompt="a bear", seed=7, steps=3))
    assert (request.sampler, request.schedule) == ("euler", "normal")
    sigmas = noise_levels(model, request)[1:]
    u = torch.tensor([500.5, 1.0, 0.0], dtype=torch.float64) / 1000
    t = 3 * u / (1 + 2 * u)
    torch.testing.assert_close(sigmas / (1 + sigmas), t, rtol=1e-5, atol=0)
    free = noise_levels(model, TextToImage(prompt="a bear", sigmas=(1.0, 0.5, 0.0)))
    assert free.tolist() == [model.schedule.sigma_max, 1.0, 0.0]
    times = noise_levels(model, TextToImage(prompt="a bear", timesteps=(750, 500)))
    torch.testing.assert_close(times, torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64))


def test_the_u_net_that_was_put_in_goes_first_then_the_folder_then_names_and_keys(tiny: Pipeline) -> None:
    own = replace(tiny, recommended=Recommended(guidance=1.5))
    assert recommendation_for(own, "sd-turbo") == own.recommended
    found = recommendation_for(own, "sd-turbo", "unets/dmd2_sdxl_1step_unet_fp16.bin")
    assert (found.family, found.sampler, found.timesteps, found.guidance) == ("DMD2 in one step", "lcm", (399,), 1)
    assert recommendation_for(own, "v1-5", "other.safetensors") == own.recommended
    consistent = replace(tiny, unet=UNet(replace(tiny.unet.config, time_cond_proj_dim=8)))
    assert recommendation_for(consistent, "mine").family == "LCM"
    assert recommendation_for(tiny, "mine") == Recommended()
