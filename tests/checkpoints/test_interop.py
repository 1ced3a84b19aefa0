"""Do diffusers and transformers read what we save, and draw the same picture from the same noise? And the reverse?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer, CLIPVisionModelWithProjection

from reverie.checkpoints.convert import convert
from reverie.checkpoints.description import describe
from reverie.checkpoints.load import CLIPComponents, load_clip, load_folder, load_image_encoder
from reverie.checkpoints.save import Precision, save_clip, save_folder, save_image_encoder
from reverie.codecs.clip_images import Preprocessing
from reverie.diffusion.noise import Noise
from reverie.diffusion.samplers import SAMPLERS
from reverie.errors import ReverieError
from reverie.generate.conditioning import encode, steady
from reverie.generate.image import fill_in
from reverie.generate.sample import guided_denoiser, noise_levels, sample
from reverie.models.autoencoder import Autoencoder, AutoencoderConfig
from reverie.models.clip import CLIP, CLIPConfig, CLIPTextConfig, CLIPVisionConfig, VisionTowerWithProjection
from reverie.models.unet import UNet
from reverie.pipeline import Pipeline, load
from reverie.requests.pictures import TextToImage
from reverie.requests.references import BUNDLED, BUNDLED_NAME
from reverie.requests.samplers import SamplerName, ScheduleName
from reverie.tokenizer import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # the oracles warn of their own affairs
TOLERANCE = 1e-3  # on [-1, 1]
PROMPT, NEGATIVE, SEED, GUIDANCE = "a bear next to an apple", "blue", 7, 4.0


def ours(system: Pipeline, sampler: SamplerName, schedule: ScheduleName, steps: int) -> Tensor:
    """Draw without rounding to eight bits."""
    request = TextToImage(
        prompt=PROMPT,
        negative=NEGATIVE,
        seed=SEED,
        steps=steps,
        guidance=GUIDANCE,
        sampler=sampler,
        schedule=schedule,
    )
    request = fill_in(system, request)
    positive, negative = system.encode_prompt([PROMPT]), system.encode_negative([NEGATIVE])
    noise = Noise([SEED], system.codec.latent_shape(system.size, system.size))
    sigmas = noise_levels(system, request)
    denoise = guided_denoiser(system, request, steady(positive, negative), sigmas)
    *_, last = sample(denoise, sigmas, noise, SAMPLERS[sampler])
    with torch.no_grad():
        return system.codec.decode(last.x)


def theirs(pipeline: StableDiffusionPipeline, scheduler: type, steps: int, **settings: object) -> Tensor:
    """Draw from the noise that a seed means to us."""
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **settings)
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.randn(
        (1, pipeline.unet.config.in_channels, pipeline.unet.config.sample_size, pipeline.unet.config.sample_size),
        generator=torch.Generator("cpu").manual_seed(SEED),
    )
    images = pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        guidance_scale=GUIDANCE,
        num_inference_steps=steps,
        latents=latents,
        output_type="pt",
    ).images
    return images * 2 - 1


def assert_same_pictures(system: Pipeline, folder: Path, kind: type = StableDiffusionPipeline, steps: int = 5) -> None:
    pipeline = kind.from_pretrained(folder, torch_dtype=torch.float32)  # transformers keeps the files' half precision
    # With "leading", diffusers' Euler starts as we always do: from noise that the network sees with unit variance.
    spacing: ScheduleName = "trailing" if system.schedule_config.zero_terminal_snr else "leading"
    pairs = {
        "ddim": (
            ours(system, "ddim", "ddim", steps),
            theirs(pipeline, DDIMScheduler, steps, timestep_spacing="leading"),
        ),
        "euler": (
            ours(system, "euler", spacing, steps),
            theirs(pipeline, EulerDiscreteScheduler, steps, timestep_spacing=spacing),
        ),
    }
    for sampler, (a, b) in pairs.items():
        assert a.shape == b.shape
        assert a.std() > 0.01, "a picture without contrast proves nothing"
        assert (a - b).abs().max() < TOLERANCE, sampler


def test_tiny(tiny: Pipeline, tmp_path: Path) -> None:
    tiny.save(tmp_path)
    assert_same_pictures(tiny, tmp_path)


def test_tiny_v_of_zero_terminal_snr(tiny_v: Pipeline, tmp_path: Path) -> None:
    tiny_v.save(tmp_path, Precision(shard_bytes=20_000))
    assert_same_pictures(tiny_v, tmp_path)


def test_tiny_xl(tiny_xl: Pipeline, tmp_path: Path) -> None:
    tiny_xl.save(tmp_path)
    assert_same_pictures(tiny_xl, tmp_path, StableDiffusionXLPipeline)


def test_tiny_latent_consistency_model(tiny: Pipeline, tmp_path: Path) -> None:
    torch.manual_seed(1)
    unet = UNet(replace(tiny.unet.config, time_cond_proj_dim=8)).eval()
    replace(tiny, unet=unet).save(tmp_path)
    system, pipeline = load(tmp_path, device="cpu"), LatentConsistencyModelPipeline.from_pretrained(tmp_path)
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(SEED)
    shape = (1, *system.codec.latent_shape(system.size, system.size))
    asked = {"guidance_scale": GUIDANCE, "num_inference_steps": 4, "output_type": "pt"}
    b = pipeline(PROMPT, latents=torch.randn(shape, generator=generator), generator=generator, **asked).images * 2 - 1

    def drawn(guidance: float) -> Tensor:
        request = TextToImage(prompt=PROMPT, seed=SEED, steps=4, guidance=guidance, sampler="lcm", schedule="lcm")
        sigmas = noise_levels(system, fill_in(system, request))
        denoise = guided_denoiser(system, request, encode(system, request), sigmas)
        *_, last = sample(denoise, sigmas, Noise([SEED], shape[1:]), SAMPLERS["lcm"])
        with torch.no_grad():
            return system.codec.decode(last.x)

    assert b.std() > 0.01
    assert (drawn(GUIDANCE) - b).abs().max() < TOLERANCE
    assert (drawn(1.0) - b).abs().max() > TOLERANCE
    for prompt, negative in (("a bear AND an apple", ""), ("a bear", "blue")):
        with pytest.raises(ReverieError, match="guided within; leave out the negative prompt and AND"):
            system.text_to_image(prompt, negative=negative, sampler="lcm", schedule="lcm")


@pytest.fixture
def refiner(tiny_xl: Pipeline) -> Pipeline:
    """Give a tiny SDXL refiner: the second encoder alone, and a score in place of the target size."""
    config = tiny_xl.unet.config
    width = config.cross_attention_dim // 2
    pooled = config.projection_input_dim - 6 * config.addition_time_embed_dim
    torch.manual_seed(0)
    unet = UNet(
        replace(config, cross_attention_dim=width, projection_input_dim=pooled + 5 * config.addition_time_embed_dim)
    )
    towers, tokenizers = tiny_xl.text_encoders[1:], tiny_xl.tokenizers[1:]
    return replace(tiny_xl, text_encoders=towers, tokenizers=tokenizers, unet=unet.eval())


def with_mask(system: Pipeline) -> Pipeline:
    """Give a system whose U-Net also takes a mask and a masked picture's latents."""
    return replace(system, unet=UNet(replace(system.unet.config, in_channels=9)).eval())


def test_every_kind_is_saved_as_what_it_is(
    tiny: Pipeline, tiny_xl: Pipeline, refiner: Pipeline, tmp_path: Path
) -> None:
    kinds = {
        StableDiffusionPipeline: tiny,
        StableDiffusionXLPipeline: tiny_xl,
        StableDiffusionInpaintPipeline: with_mask(tiny),
        StableDiffusionXLInpaintPipeline: with_mask(tiny_xl),
        StableDiffusionXLImg2ImgPipeline: refiner,
    }
    for kind, system in kinds.items():
        folder = tmp_path / kind.__name__
        system.save(folder)
        pipeline = DiffusionPipeline.from_pretrained(folder)
        assert type(pipeline) is kind
        assert pipeline.config.get("requires_aesthetics_score", False) == (system is refiner)
        loaded = load_folder(folder)
        assert loaded.unet.config == system.unet.config
        assert len(loaded.text_encoders) == len(system.text_encoders)


@pytest.mark.parametrize("negative", ["", NEGATIVE])
@pytest.mark.parametrize("prompt", ["", PROMPT])
@pytest.mark.parametrize("kind", ["tiny_xl", "refiner"])
def test_xl_tells_the_unet_what_diffusers_does(
    kind: str, prompt: str, negative: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """An empty negative prompt is one left out there, where no prompt is ever left out."""
    system = request.getfixturevalue(kind)
    system.save(tmp_path)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    told: dict[str, Tensor] = {}

    def record(_: object, inputs: tuple[object, ...], named: dict[str, Any]) -> None:
        told.update(named["added_cond_kwargs"], tokens=named["encoder_hidden_states"])

    pipeline.unet.register_forward_pre_hook(record, with_kwargs=True)
    start = {"image": torch.zeros(1, 3, 32, 32), "strength": 1.0} if kind == "refiner" else {}
    pipeline(prompt, negative_prompt=negative or None, num_inference_steps=1, output_type="latent", **start)
    both = system.encode_negative([negative]).cat(system.encode_prompt([prompt]))
    assert torch.allclose(told["tokens"], both.tokens, atol=1e-5)
    assert torch.allclose(told["text_embeds"], both.pooled, atol=1e-5)
    assert told["time_ids"].equal(both.sizes)


@pytest.mark.skipif(
    not (BUNDLED[BUNDLED_NAME] / "model_index.json").exists(), reason="the bundled model is not trained yet"
)
def test_bundled() -> None:
    assert_same_pictures(load(device="cpu", dtype="float32"), BUNDLED[BUNDLED_NAME], steps=10)


def test_diffusers_refuses_a_patched_autoencoder(tiny: Pipeline, tmp_path: Path) -> None:
    config = AutoencoderConfig(12, 12, block_out_channels=(8, 8, 8), norm_num_groups=4, patch_size=2)
    tiny.save(tmp_path / "plain")
    components = replace(load_folder(tmp_path / "plain"), autoencoder=Autoencoder(config).eval())
    save_folder(components, tmp_path / "patched")
    with pytest.raises(ValueError, match="has no class `PatchedAutoencoderKL`"):
        StableDiffusionPipeline.from_pretrained(tmp_path / "patched")
    assert load_folder(tmp_path / "patched").autoencoder.config == config
    assert describe(tmp_path / "patched").resolution == 32
    assert describe(tmp_path / "patched" / "vae").kind == "vae"
    with pytest.raises(ReverieError, match="decodes by patches of pixels, which no single file holds"):
        convert(tmp_path / "patched", tmp_path / "one.safetensors")


@pytest.mark.parametrize("kind", ["tiny", "tiny_xl"])
def test_what_diffusers_saves(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """transformers 5 writes text towers without their prefix."""
    system = request.getfixturevalue(kind)
    system.save(tmp_path / "a")
    pipeline = (StableDiffusionXLPipeline if kind == "tiny_xl" else StableDiffusionPipeline).from_pretrained(
        tmp_path / "a", torch_dtype=torch.float16
    )
    pipeline.save_pretrained(tmp_path / "b", variant="fp16", max_shard_size="20KB")
    loaded = load_folder(tmp_path / "b", dtype=torch.float16)
    parts = [(system.unet, loaded.unet), *zip(system.text_encoders, loaded.text_encoders, strict=True)]
    for a, b in parts:
        theirs = b.state_dict()
        assert all(torch.equal(tensor.half(), theirs[name]) for name, tensor in a.state_dict().items())
    assert loaded.schedule_config == system.schedule_config
    assert loaded.tokenizers[0]([PROMPT]).equal(system.tokenizers[0]([PROMPT]))


def test_clip(tokenizer: Tokenizer, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shared = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = CLIPTextConfig(
        **shared,
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.length,
        eos_token_id=tokenizer.eos_id,
        projection_dim=24,
    )
    clip = CLIP(
        CLIPConfig(text=text, vision=CLIPVisionConfig(**shared, image_size=16, patch_size=4), projection_dim=24)
    )
    save_clip(CLIPComponents(clip, tokenizer), tmp_path)
    oracle = CLIPModel.from_pretrained(tmp_path).eval()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    pixels = CLIPImageProcessor.from_pretrained(tmp_path)(picture, return_tensors="pt")["pixel_values"]
    padded = CLIPTokenizer.from_pretrained(tmp_path)(
        [PROMPT], padding="max_length", truncation=True, max_length=tokenizer.length, return_tensors="pt"
    )
    with torch.no_grad():
        theirs = oracle(input_ids=padded["input_ids"], pixel_values=pixels)
        images, texts = clip(Preprocessing(size=16, edge=16)([picture]), tokenizer([PROMPT]))
    assert padded["input_ids"].equal(tokenizer([PROMPT]))
    for a, b in ((images, theirs.image_embeds), (texts, theirs.text_embeds)):
        assert torch.allclose(torch.nn.functional.normalize(a, dim=-1), b, atol=1e-3)
    oracle.save_pretrained(tmp_path / "theirs")
    tokenizer.save(tmp_path / "theirs")
    loaded = load_clip(tmp_path / "theirs").clip
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in clip.state_dict().items())


def test_vision_tower_with_projection(tmp_path: Path) -> None:
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    torch.manual_seed(3)
    save_image_encoder(VisionTowerWithProjection(config, 12).eval(), tmp_path)
    ours, theirs = load_image_encoder(tmp_path), CLIPVisionModelWithProjection.from_pretrained(tmp_path).eval()
    pixels = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        a, b = ours(pixels), theirs(pixels, output_hidden_states=True)
    torch.testing.assert_close(a.pooled, b.image_embeds)
    torch.testing.assert_close(a.hidden[-2], b.hidden_states[-2])
