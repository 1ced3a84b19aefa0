"""Is what a file says of its parameterisation honoured, and does the network then draw as diffusers' pipelines do?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from safetensors.torch import load_file as read_tensors
from safetensors.torch import save_file
from torch import Tensor

from reverie.checkpoints.configs import read_schedule, write_schedule
from reverie.checkpoints.convert import convert
from reverie.checkpoints.families import FAMILIES, Family
from reverie.checkpoints.identify import identify
from reverie.checkpoints.load import Components, load_folder
from reverie.checkpoints.single import Networks, load_file
from reverie.checkpoints.weights import open_source
from reverie.codecs.image import ImageCodec
from reverie.diffusion.denoiser import PARAMETERISATIONS, denoiser
from reverie.diffusion.noise import Noise
from reverie.diffusion.samplers import SAMPLERS
from reverie.diffusion.schedule import to_ve
from reverie.errors import ReverieError
from reverie.system import StableDiffusion

Writer = Callable[[str], tuple[Path, Networks]]
# The values of playgroundai/playground-v2.5-1024px-aesthetic, vae/config.json and scheduler_config.json.
PLAYGROUND_MEAN, PLAYGROUND_STD = (-1.6574, 1.886, -1.383, 2.5155), (8.4927, 5.9022, 6.5498, 5.2299)
COSXL = {"edm_vpred.sigma_max": torch.tensor(120.0), "edm_vpred.sigma_min": torch.tensor(0.002)}
PLAYGROUND = {
    "edm_mean": torch.tensor(PLAYGROUND_MEAN).view(1, 4, 1, 1),
    "edm_std": torch.tensor(PLAYGROUND_STD).view(1, 4, 1, 1),
}
YAML = """model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    {}linear_start: 0.00085
"""
SGM = """denoiser_config:
  scaling_config:
    target: sgm.modules.diffusionmodules.denoiser_scaling.{}
"""


def marked(file: Path, markers: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file(read_tensors(file) | markers, file, metadata)
    return file


def said(file: Path, family: Family) -> tuple[str, bool, float]:
    found = identify(open_source(file), file, families=[family]).family
    assert found is not None
    return found.schedule.prediction, found.schedule.zero_terminal_snr, found.schedule.sigma_max


ZERO_SNR = torch.linspace(0.999, 0, 1000)
# What the file holds, its header, the .yaml beside it; and what that means.
STATEMENTS: dict[str, tuple[dict[str, Tensor], dict[str, str], str, tuple[str, bool, float]]] = {
    "nothing": ({}, {}, "", ("eps", False, 80)),
    "NoobAI's keys": ({"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, {}, "", ("v", True, 80)),
    "OneTrainer's key": ({"v_pred": torch.tensor([]), "alphas_cumprod": ZERO_SNR + 0.0047}, {}, "", ("v", False, 80)),
    "OneTrainer's table": ({"v_pred": torch.tensor([]), "alphas_cumprod": ZERO_SNR}, {}, "", ("v", True, 80)),
    "CosXL": (COSXL, {}, "", ("edm_v", False, 120)),
    "CosXL of another range": ({"edm_vpred.sigma_max": torch.tensor([90.0])}, {}, "", ("edm_v", False, 90)),
    "Playground": (PLAYGROUND, {}, "", ("edm", False, 80)),
    "ModelSpec of sd-scripts": ({}, {"modelspec.prediction_type": "v"}, "", ("v", False, 80)),
    "ModelSpec of eps": ({}, {"modelspec.prediction_type": "epsilon"}, "", ("eps", False, 80)),
    "CompVis' yaml": ({}, {}, YAML.format('parameterization: "v"\n    '), ("v", False, 80)),
    "CompVis' yaml before the header": ({}, {"modelspec.prediction_type": "v"}, YAML.format(""), ("eps", False, 80)),
    "generative-models' yaml": ({}, {}, SGM.format("VScaling"), ("v", False, 80)),
    "CosXL's yaml": ({}, {}, SGM.format("VScalingWithEDMcNoise"), ("edm_v", False, 120)),
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_what_files_state(name: str, single_file: Writer) -> None:
    """Keys: ComfyUI 0.3.64 supported_models.py; yaml: A1111 1.10 and Forge 2.0.1 loader.py; header: ModelSpec 1.0.1."""
    markers, metadata, yaml, expected = STATEMENTS[name]
    file, networks = single_file("sdxl")
    marked(file, markers, metadata)
    if yaml:
        file.with_suffix(".yaml").write_text(yaml)
    assert said(file, networks.family) == expected


def test_lightning_in_one_step_is_known_by_its_name(single_file: Writer) -> None:
    file, networks = single_file("sdxl")
    named = file.rename(file.with_name("sdxl_lightning_1step_unet_x0.safetensors"))
    assert said(named, networks.family)[0] == "x0"


def test_it_holds_for_sd_1_and_settles_sd_2(single_file: Writer) -> None:
    file, networks = single_file("sd15")
    marked(file, {}, {"modelspec.prediction_type": "v"})
    assert load_file(file, config=networks.family).schedule_config.prediction == "v"
    assert load_file(file, config=networks.family, prediction="eps").schedule_config.prediction == "eps"
    file, networks = single_file("sd2")
    marked(file, {}, {"modelspec.prediction_type": "v"})
    contents = identify(open_source(file), file, families=[networks.family, networks.family])
    assert not contents.doubtful
    assert contents.family is not None
    assert contents.family.schedule.prediction == "v"


@pytest.mark.parametrize("name", PARAMETERISATIONS)
def test_the_way_out(name: str, single_file: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    file, networks = single_file("sd15")
    loaded = load_file(file, config=networks.family, prediction=name)
    expected = PARAMETERISATIONS[name]
    assert loaded.schedule_config == expected
    with pytest.raises(ReverieError, match="unknown prediction 'w'; choose from eps, v, x0, flow, edm, edm_v, v_zsnr"):
        load_file(file, config=networks.family, prediction="w")


def drawn(components: Components, steps: list[float], x: Tensor) -> Tensor:
    """Draw with our Euler sampler over given noise levels, towards a fixed prompt."""
    system = StableDiffusion(**vars(components))
    conditioning = system.encode_prompt(["a bear"], width=32, height=32)
    denoise = denoiser(system.network(conditioning), system.schedule, system.scalings)
    sigmas = torch.tensor([*steps, 0.0], dtype=torch.float64)
    *_, last = SAMPLERS["euler"](denoise, to_ve(x, steps[0]), sigmas, Noise([1], x.shape[1:]), ())
    return last.x


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "markers"), [("edm_v", COSXL), ("edm", PLAYGROUND)])
def test_edm_draws_as_diffusers(name: str, markers: dict[str, Tensor], single_file: Writer, tmp_path: Path) -> None:
    """CosXL and Playground 2.5, at random weights: by diffusers' EDMEulerScheduler (0.42.1), from our converted folder.

    So the conversion, the noise levels, the scalings and the conditioning on log(sigma) / 4 agree with it.
    """
    file, networks = single_file("sdxl")
    marked(file, markers)
    convert(file, tmp_path / "folder", config=networks.family)
    components = load_folder(tmp_path / "folder")
    assert components.schedule_config == load_file(file, config=networks.family).schedule_config
    assert components.schedule_config.prediction == name
    scheduler = EDMEulerScheduler.from_pretrained(tmp_path / "folder/scheduler")
    assert scheduler.config.prediction_type == {"edm": "epsilon", "edm_v": "v_prediction"}[name]
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "folder/unet")
    system = StableDiffusion(**vars(components))
    conditioning = system.encode_prompt(["a bear"], width=32, height=32)
    noise = torch.randn((1, 4, 4, 4), generator=torch.Generator().manual_seed(1))
    scheduler.set_timesteps(6)
    latents = noise * scheduler.init_noise_sigma
    added = {"text_embeds": conditioning.pooled, "time_ids": conditioning.sizes}
    for t in scheduler.timesteps:
        inputs = scheduler.scale_model_input(latents, t)
        out = unet(inputs, t, encoder_hidden_states=conditioning.tokens, added_cond_kwargs=added).sample
        latents = scheduler.step(out, t, latents).prev_sample
    ours = drawn(components, scheduler.sigmas[:-1].tolist(), noise)
    assert (ours - latents).abs().max() <= 1e-4 * latents.abs().max()
    assert scheduler.sigmas[0].item() == pytest.approx(components.schedule_config.sigma_max)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_flow_draws_as_diffusers(single_file: Writer) -> None:
    file, networks = single_file("sdxl")
    components = load_file(file, config=networks.family, prediction="flow")
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(write_schedule(components.schedule_config))
    system = StableDiffusion(**vars(components))
    conditioning = system.encode_prompt(["a bear"], width=32, height=32)
    predict = system.network(conditioning)
    noise = torch.randn((1, 4, 4, 4), generator=torch.Generator().manual_seed(1))
    scheduler.set_timesteps(sigmas=[0.99, 0.7, 0.4, 0.1])
    latents = noise
    for t in scheduler.timesteps:
        latents = scheduler.step(predict(latents, t[None]), t, latents).prev_sample
    # Ours hold x0 + sigma eps with sigma = t / (1 - t): the same latents times 1 + sigma.
    levels = [t / (1 - t) for t in (0.99, 0.7, 0.4, 0.1)]
    start = noise * (1 + levels[0]) / (1 + levels[0] ** 2) ** 0.5
    assert (drawn(components, levels, start) - latents).abs().max() <= 1e-3 * latents.abs().max()


def test_latents_of_playground_are_standardised(single_file: Writer) -> None:
    """Decoded as diffusers' StableDiffusionXLPipeline does: latents * std / scaling_factor + mean."""
    file, networks = single_file("sdxl")
    config = load_file(marked(file, PLAYGROUND), config=networks.family).autoencoder.config
    assert (config.scaling_factor, config.latents_mean) == (0.5, pytest.approx(PLAYGROUND_MEAN))
    codec = ImageCodec(load_file(file, config=networks.family).autoencoder)
    latents = torch.randn((1, 4, 2, 2), generator=torch.Generator().manual_seed(0))
    mean, std = PLAYGROUND["edm_mean"], PLAYGROUND["edm_std"]
    expected = codec.autoencoder.decode(latents * std / 0.5 + mean).clamp(-1, 1)
    assert (codec.decode(latents) - expected).abs().max() < 1e-5
    images = torch.rand((1, 3, 16, 16), generator=torch.Generator().manual_seed(0)) * 2 - 1
    z = codec.autoencoder.encode(images).mode()
    assert (codec.encode_tensor(images) - (z - mean) * 0.5 / std).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["v", "v_zsnr", "edm", "edm_v", "flow"])
def test_a_converted_file_says_what_it_predicts(name: str, single_file: Writer, tmp_path: Path) -> None:
    file, networks = single_file("sdxl")
    convert(file, tmp_path / "a.safetensors", config=networks.family, prediction=name)
    assert load_file(tmp_path / "a.safetensors", config=networks.family).schedule_config == PARAMETERISATIONS[name]
    marked(file, PLAYGROUND)
    convert(file, tmp_path / "b.safetensors", config=networks.family)
    assert read_tensors(tmp_path / "b.safetensors")["edm_std"].equal(PLAYGROUND["edm_std"])


@pytest.mark.parametrize("name", PARAMETERISATIONS)
def test_schedules_survive_a_folder(name: str) -> None:
    schedule = PARAMETERISATIONS[name]
    assert read_schedule(write_schedule(schedule), "x") == schedule


def test_a_control_counts_the_way_in_noise_levels(tiny_family: Callable[[str], Family]) -> None:
    """EDM's network is given log(sigma) / 4, from which half of the way in log sigma is half of the way."""
    config = PARAMETERISATIONS["edm_v"]
    assert FAMILIES["sdxl"].schedule.is_edm is False

    class Timed(StableDiffusion):
        def __init__(self) -> None:
            pass

    object.__setattr__(timed := Timed(), "schedule_config", config)
    middle = torch.tensor(config.sigma_min * config.sigma_max).sqrt().log().item() / 4
    assert timed.progress(middle) == pytest.approx(0.5, abs=1e-3)
    assert timed.progress(torch.tensor(config.sigma_max).log().item() / 4) == pytest.approx(0, abs=1e-6)
