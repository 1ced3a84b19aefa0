"""AUTOMATIC1111's API, spoken by webuiapi, and by what Open WebUI, SillyTavern and LibreChat send."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from webuiapi import ControlNetUnit, WebUIApi, WebUIApiResult

import reverie
from reverie.checkpoints.single import load_upscaler
from reverie.codecs.image import enlarge
from reverie.media.pictures import png_bytes
from reverie.requests.foreign import a1111
from reverie.requests.parts import ControlInput, Hires, Refiner
from reverie.requests.pictures import TextToImage
from reverie.requests.records import from_metadata

Json = dict[str, Any]
SMALL: Json = {"width": 32, "height": 32, "steps": 2, "seed": 7}
# What img2img's schema of the web UI 1.10 has beside them, as programs send it that fill all of it in.
WHOLE: Json = dict.fromkeys(
    ("negative_prompt", "refiner_checkpoint", "firstpass_image", "script_name", "latent_mask", "infotext"), ""
)
WHOLE |= dict.fromkeys(
    ("eta", "s_min_uncond", "s_churn", "s_tmax", "s_tmin", "refiner_switch_at", "subseed_strength"), 0
)
WHOLE |= dict.fromkeys(("restore_faces", "tiling", "do_not_save_samples", "do_not_save_grid", "save_images"), False)
WHOLE |= {"subseed": -1, "seed_resize_from_h": -1, "seed_resize_from_w": -1, "resize_mode": 0, "mask_round": True}
WHOLE |= {"comments": {}, "override_settings": {}, "alwayson_scripts": {}, "styles": [], "script_args": []}
WHOLE |= {"s_noise": 1.0, "inpainting_fill": 0, "inpaint_full_res": True, "inpainting_mask_invert": 0}
WHOLE |= {"disable_extra_networks": False, "initial_noise_multiplier": 0, "image_cfg_scale": 0}


@pytest.fixture(scope="module")
def web_ui(url: str) -> WebUIApi:
    return WebUIApi(baseurl=f"{url}/sdapi/v1", username="anyone", password="secret")


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, auth=("anyone", "secret"), timeout=60) as http:
        yield http


def decoded(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def drawn(result: WebUIApiResult) -> Any:
    return from_metadata(result.image)


def test_txt2img_gives_the_librarys_pictures_and_tells_of_them(web_ui: WebUIApi, model_folder: Path) -> None:
    result = web_ui.txt2img(
        prompt="a bear", negative_prompt="snow", sampler_name="Euler a", scheduler="karras", batch_size=2, **SMALL
    )
    tiny = reverie.load(model_folder / "tiny")
    own = tiny.text_to_image(
        "a bear",
        negative="snow",
        sampler="euler_ancestral",
        schedule="karras",
        guidance=7,
        seed=7,
        steps=2,
        count=2,
        width=32,
        height=32,
    )
    assert [one.tobytes() for one in result.images] == [one.tobytes() for one in own]
    info = result.info
    assert (info["seed"], info["all_seeds"], info["width"], info["height"]) == (7, [7, 8], 32, 32)
    assert (info["sampler_name"], info["cfg_scale"], info["steps"], info["sd_model_name"]) == ("Euler a", 7, 2, "tiny")
    assert info["reverie_notes"] == []
    for text, picture in zip(info["infotexts"], result.images, strict=True):
        assert text == picture.info["parameters"]
        read = a1111.read(text)
        assert read is not None
        assert (read.fields["prompt"], read.notes) == ("a bear", [])


@pytest.mark.parametrize(
    ("sampler", "scheduler", "expected"),
    [
        ("DPM++ 2M Karras", "automatic", ("dpmpp_2m", "karras")),
        ("DPM++ 2M", "exponential", ("dpmpp_2m", "exponential")),
        ("Euler", "automatic", ("euler", "normal")),
        ("DPM++ 3M SDE", "automatic", ("dpmpp_3m_sde", "exponential")),
        ("DDIM", "karras", ("ddim", "a1111_ddim")),  # it walks levels of its own there
    ],
)
def test_samplers_and_spacings_are_the_web_uis(
    web_ui: WebUIApi, sampler: str, scheduler: str, expected: tuple[str, str]
) -> None:
    request = drawn(web_ui.txt2img(prompt="a bear", sampler_name=sampler, scheduler=scheduler, **SMALL))
    assert (request.sampler, request.schedule) == expected
    assert request.discard_penultimate == (request.sampler == "dpmpp_3m_sde")


def test_a_second_pass_and_a_variation(web_ui: WebUIApi) -> None:
    result = web_ui.txt2img(
        prompt="a bear",
        enable_hr=True,
        hr_scale=2,
        hr_second_pass_steps=3,
        denoising_strength=0.5,
        subseed=9,
        subseed_strength=0.25,
        tiling=True,
        override_settings={"randn_source": "NV", "CLIP_stop_at_last_layers": 2},
        **SMALL,
    )
    request = drawn(result)
    assert result.image.size == (64, 64)
    assert (result.info["width"], result.info["subseed"]) == (32, 9)
    assert (request.hires.upscaler, request.hires.steps, request.hires.strength) == ("latent", 3, 0.5)
    assert (request.variation.seed, request.variation.strength) == (9, 0.25)
    assert (request.tile, request.rng, request.clip_skip) == ("xy", "gpu", 2)


def test_img2img_starts_from_the_picture(web_ui: WebUIApi, model_folder: Path) -> None:
    picture = Image.new("RGB", (48, 32), "red")
    result = web_ui.img2img(images=[picture], prompt="a bear", denoising_strength=0.5, resize_mode=1, **SMALL)
    own = reverie.load(model_folder / "tiny").image_to_image(
        "a bear",
        picture.crop((8, 0, 40, 32)),
        strength=0.5,
        sampler="euler_ancestral",
        schedule="normal",
        **SMALL,
        guidance=7,
    )
    assert result.image.tobytes() == own[0].tobytes()
    assert "init_images" not in result.parameters


@pytest.mark.parametrize("invert", [0, 1])
def test_a_mask_says_what_is_painted(web_ui: WebUIApi, invert: int) -> None:
    picture = Image.new("RGB", (96, 32), "red")
    mask = Image.new("L", (96, 32), 255 * invert)
    mask.paste(255 - 255 * invert, (0, 0, 16, 32))
    result = web_ui.img2img(
        images=[picture],
        mask_image=mask,
        inpainting_mask_invert=invert,
        mask_blur=2,
        inpainting_fill=2,
        inpaint_full_res=False,
        prompt="a bear",
        **SMALL | {"width": 96},
    )
    assert result.image.crop((64, 0, 96, 32)).getcolors() == [(1024, (255, 0, 0))]
    assert result.image.crop((0, 0, 8, 32)).getcolors() != [(256, (255, 0, 0))]
    request = drawn(result)
    assert (request.mask_blur, request.fill, request.only_masked) == (2, "noise", False)


def test_all_fields_of_the_schema_may_be_given(http: httpx.Client) -> None:
    white = base64.b64encode(png_bytes(Image.new("RGB", (32, 32), "white"))).decode()
    body = WHOLE | SMALL | {"prompt": "a bear", "init_images": [white], "mask": white, "mask_blur_x": 6}
    answer = http.post("/sdapi/v1/img2img", json=body | {"mask_blur_y": 6}).json()
    assert json.loads(answer["info"])["reverie_notes"] == []
    assert from_metadata(decoded(answer["images"][0])).mask_blur == 6
    assert http.post("/sdapi/v1/img2img", json=body | {"mask_blur_y": 2}).json()["error"]["param"] == "mask_blur_y"


def test_a_controlnet_steers(web_ui: WebUIApi, model_folder: Path, controlnets: Path) -> None:
    hint = Image.linear_gradient("L").resize((32, 32)).convert("RGB")
    unit = ControlNetUnit(hint, model="steer [d14c016b]", module="canny", weight=0.5, guidance_end=0.8)
    result = web_ui.txt2img(prompt="a bear", sampler_name="Euler", controlnet_units=[unit], **SMALL)
    control = ControlInput(model=str(controlnets / "steer"), image=hint, weight=0.5, end=0.8, preprocessor="canny")
    tiny = reverie.load(model_folder / "tiny")
    own = tiny.text_to_image("a bear", sampler="euler", schedule="normal", guidance=7, controls=(control,), **SMALL)
    assert result.image.tobytes() == own[0].tobytes()
    after = web_ui.txt2img(prompt="a bear", sampler_name="Euler", **SMALL)  # findings/webuiapi-keeps-a-script.sh
    plain = tiny.text_to_image("a bear", sampler="euler", schedule="normal", guidance=7, **SMALL)
    assert after.image.tobytes() == plain[0].tobytes() != own[0].tobytes()
    assert any("threshold_a" in note for note in result.info["reverie_notes"])
    assert web_ui.controlnet_model_list() == ["steer"]
    unit.model = "other"
    with pytest.raises(RuntimeError, match="there is no controlnet"):
        web_ui.txt2img(prompt="a bear", controlnet_units=[unit], **SMALL)
    unit.enabled = False
    assert web_ui.txt2img(prompt="a bear", controlnet_units=[unit], **SMALL).images


def test_an_embedding_acts_where_the_prompt_names_it_and_a_refiner_at_the_end(
    http: httpx.Client, model_folder: Path, embeddings: Path
) -> None:
    tiny = reverie.load(model_folder / "tiny")
    asked: Json = SMALL | {"steps": 4}
    body = asked | {"prompt": "a bear, inkwash", "refiner_checkpoint": "tiny", "refiner_switch_at": 0.5}
    found = http.post("/sdapi/v1/txt2img", json=body).json()
    refiner = Refiner(model=str(model_folder / "tiny"), switch=0.5)
    file = str(embeddings / "inkwash.safetensors")
    own = tiny.text_to_image("a bear, inkwash", embeddings=(file,), refiner=refiner, **asked)
    assert decoded(found["images"][0]).tobytes() == own[0].tobytes()
    assert json.loads(found["info"])["reverie_notes"] == []
    plain = http.post("/sdapi/v1/txt2img", json=asked | {"prompt": "a bear, inkwashes"}).json()
    assert from_metadata(decoded(plain["images"][0])).embeddings == ()


def test_what_is_not_honoured_is_told_or_refused(web_ui: WebUIApi) -> None:
    off: Json = {"ADetailer": {"args": [False, True, {"ad_model": "face_yolov8n.pt"}]}}
    fields: Json = SMALL | {"restore_faces": True, "s_churn": 2, "s_noise": 0.9, "styles": ["no such"]}
    told = web_ui.txt2img(prompt="a bear", alwayson_scripts=off, **fields)
    said = " ".join(told.info["reverie_notes"])
    assert all(name in said for name in ("restore_faces", "s_churn", "s_noise", "styles"))
    assert from_metadata(web_ui.txt2img(prompt="a bear", eta=0.5, **SMALL).image).eta == 0.5  # of its own Euler a
    refused: dict[str, Json] = {
        "unknown sampler 'Restart'": {"sampler_name": "Restart"},
        "unknown scheduler 'beta'": {"scheduler": "beta"},
        "no script 'x/y plot'": {"script_name": "x/y plot"},
        "no script 'ADetailer'": {"alwayson_scripts": {"ADetailer": {"args": [True, {}]}}},
        "no model 'other'": {"override_settings": {"sd_model_checkpoint": "other"}},
        "sd_vae": {"override_settings": {"sd_vae": "other.safetensors"}},
        "hires scale 9": {"enable_hr": True, "hr_scale": 9},
    }
    for message, fields in refused.items():
        with pytest.raises(RuntimeError, match=message.replace("'", r"\\?.")) as caught:
            web_ui.txt2img(prompt="a bear", **SMALL | fields)
        assert caught.value.args[0] == 422


def test_override_settings_are_restored_unless_they_are_to_stay(web_ui: WebUIApi) -> None:
    settings = {"samples_format": "webp"}
    assert web_ui.txt2img(prompt="a bear", override_settings=settings, **SMALL).image.format == "WEBP"
    assert web_ui.txt2img(prompt="a bear", **SMALL).image.format == "PNG"
    web_ui.txt2img(prompt="a bear", override_settings=settings, override_settings_restore_afterwards=False, **SMALL)
    assert web_ui.get_options()["samples_format"] == "webp"
    assert web_ui.txt2img(prompt="a bear", **SMALL).image.format == "WEBP"
    web_ui.set_options({"samples_format": "png"})


def test_models_are_switched(web_ui: WebUIApi) -> None:
    assert set(web_ui.util_get_model_names()) == {"tiny", "reverie-emoji", "reverie-turbo"}
    assert web_ui.util_get_current_model() == "tiny"
    web_ui.util_set_model("reverie-emoji")
    assert web_ui.util_get_current_model() == "reverie-emoji"
    web_ui.util_wait_for_ready(check_interval=0.1)
    result = web_ui.txt2img(prompt="a bear", **SMALL)
    assert result.info["sd_model_name"] == "reverie-emoji"
    assert any("256" in note for note in result.info["reverie_notes"])  # the library's own: it draws at 256 pixels
    web_ui.set_options({"sd_model_checkpoint": "tiny"})
    assert web_ui.txt2img(prompt="a bear", **SMALL).info["sd_model_name"] == "tiny"


def test_progress_is_told_and_interrupt_stops(web_ui: WebUIApi) -> None:
    assert web_ui.get_progress()["progress"] == 0
    results: list[WebUIApiResult] = []
    thread = threading.Thread(
        target=lambda: results.append(web_ui.txt2img(prompt="a bear", **SMALL | {"steps": 1000, "width": 128}))
    )
    thread.start()
    seen: Json = {}
    for _ in range(600):
        seen = web_ui.get_progress()
        if seen["current_image"] and seen["state"]["sampling_steps"]:
            break
        time.sleep(0.1)
    assert 0 < seen["progress"] < 1
    assert (seen["state"]["job_count"], seen["state"]["sampling_steps"]) == (1, 1000)
    assert decoded(seen["current_image"]).size == (128, 32)
    web_ui.interrupt()
    thread.join(30)
    assert results[0].images == []
    assert "batch 1 of 1: interrupted or skipped" in results[0].info["reverie_notes"]
    assert web_ui.get_progress()["state"]["job_count"] == 0


def test_skip_leaves_out_the_batch_at_hand(web_ui: WebUIApi) -> None:
    """Each batch has the seeds that it has without the others."""
    results: list[WebUIApiResult] = []
    asked: Json = SMALL | {"steps": 150, "batch_size": 2, "n_iter": 3}
    thread = threading.Thread(target=lambda: results.append(web_ui.txt2img(prompt="a bear", **asked)))
    thread.start()
    while (seen := web_ui.get_progress())["state"]["job_no"] != 1:
        assert seen["progress"] < 0.4
        time.sleep(0.01)
    assert seen["state"]["job_count"] == 3
    assert web_ui.skip() is None
    thread.join(30)
    info = results[0].info
    assert info["all_seeds"] == [7, 8, 11, 12]
    assert info["reverie_notes"] == ["batch 2 of 3: interrupted or skipped"]
    last = web_ui.txt2img(prompt="a bear", **asked | {"n_iter": 1, "seed": 11})
    assert [one.tobytes() for one in last.images] == [one.tobytes() for one in results[0].images[2:]]


def test_pictures_are_enlarged_and_inspected(web_ui: WebUIApi) -> None:
    picture = web_ui.txt2img(prompt="a bear", **SMALL).image
    larger = web_ui.extra_single_image(picture, upscaler_1="Nearest", upscaling_resize=2)
    assert larger.image.resize((32, 32), Image.Resampling.NEAREST).tobytes() == picture.tobytes()
    covering = web_ui.extra_single_image(
        picture, upscaler_1="Lanczos", resize_mode=1, upscaling_resize_w=64, upscaling_resize_h=48
    )
    assert covering.image.size == (64, 48)
    with pytest.raises(RuntimeError, match='"param":"gfpgan_visibility"'):
        web_ui.extra_single_image(picture, gfpgan_visibility=1)
    assert web_ui.png_info(picture).info == picture.info["parameters"]
    assert web_ui.png_info(picture).parameters["Seed"] == "7"


def test_learned_upscalers_are_listed_and_enlarge(web_ui: WebUIApi, upscalers: Path) -> None:
    assert web_ui.get_upscalers()[-1]["name"] == "ink-4x"
    network = load_upscaler(upscalers / "ink-4x.pth")
    picture = web_ui.txt2img(prompt="a bear", **SMALL).image
    own = {size: enlarge(network, picture.convert("RGB"), size).tobytes() for size in ((96, 96), (64, 64))}
    larger = web_ui.extra_single_image(picture, upscaler_1="ink-4x", upscaling_resize=3).image
    assert (larger.size, larger.tobytes()) == ((96, 96), own[96, 96])
    cut = {"resize_mode": 1, "upscaling_resize_w": 64, "upscaling_resize_h": 48}
    both = web_ui.extra_batch_images([picture, picture], upscaler_1="ink-4x", **cut).images
    whole = Image.frombytes("RGB", (64, 64), own[64, 64])
    assert [one.tobytes() for one in both] == [whole.crop((0, 8, 64, 56)).tobytes()] * 2
    with pytest.raises(RuntimeError, match=r"unknown upscaler .*ink-8x.*; did you mean .*ink-4x"):
        web_ui.extra_single_image(picture, upscaler_1="ink-8x")
    with pytest.raises(RuntimeError, match="more pixels than the 65536 that this server allows"):
        web_ui.extra_batch_images([picture], upscaler_1="ink-4x", upscaling_resize=60)


def test_a_second_pass_by_a_learned_upscaler(web_ui: WebUIApi, model_folder: Path, upscalers: Path) -> None:
    passes = {"enable_hr": True, "hr_scale": 2, "denoising_strength": 0.5}
    result = web_ui.txt2img(prompt="a bear", sampler_name="Euler", hr_upscaler="ink-4x", **passes, **SMALL)
    second = Hires(upscaler=str(upscalers / "ink-4x.pth"), scale=2, strength=0.5)
    asked = {"sampler": "euler", "schedule": "normal", "guidance": 7, "hires": second}
    own = reverie.load(model_folder / "tiny").text_to_image("a bear", **asked, **SMALL)
    assert result.image.tobytes() == own[0].tobytes()
    assert result.info["reverie_notes"] == []
    assert "Hires upscaler: ink-4x" in result.info["infotexts"][0]
    unknown = web_ui.txt2img(prompt="a bear", hr_upscaler="ink-8x", **passes, **SMALL)
    assert "Hires upscaler: ink-8x; lanczos takes its place" in unknown.info["reverie_notes"][0]


def test_lists(web_ui: WebUIApi) -> None:
    assert "DPM++ 2M" in web_ui.util_get_sampler_names()
    assert {"automatic", "karras"} <= set(web_ui.util_get_scheduler_names())
    assert {"None", "Lanczos"} <= {one["name"] for one in web_ui.get_upscalers()}
    assert [one["name"] for one in web_ui.get_latent_upscale_modes()] == LATENT_MODES
    assert [one["name"] for one in web_ui.get_loras()] == ["broken"]
    assert list(web_ui.get_embeddings()["loaded"]) == ["inkwash"]
    assert web_ui.get_memory()["ram"]["total"] > 0
    assert web_ui.refresh_checkpoints() is None
    assert web_ui.get_cmd_flags()["api"] is True
    empty = (web_ui.get_sd_vae, web_ui.get_hypernetworks, web_ui.get_face_restorers)
    assert all(get() == [] for get in empty)


def test_styles_go_into_the_prompts(web_ui: WebUIApi) -> None:
    assert web_ui.get_prompt_styles() == [{"name": "ink", "prompt": "{prompt} in ink", "negative_prompt": "oil"}]
    drawn = web_ui.txt2img(prompt="a bear", styles=["ink"], **SMALL)
    asked = from_metadata(drawn.image)
    assert isinstance(asked, TextToImage)
    assert (asked.prompt, asked.negative) == ("a bear in ink", "oil")
    assert drawn.info["styles"] == ["ink"]


def test_dynamic_prompts_are_the_extensions(web_ui: WebUIApi) -> None:
    """One batch or several, and the command line (tests/cli/test_many.py), give one prompt for a seed."""
    script = "Dynamic Prompts v2.6.3"
    asked: Json = SMALL | {"prompt": "a {red|blue} __animals__", "seed": 1, "batch_size": 1, "n_iter": 3}
    drawn = web_ui.txt2img(alwayson_scripts={script: {"args": [True, False]}}, **asked)
    assert drawn.info["all_prompts"] == ["a blue bear", "a red bear", "a blue bear"]
    assert web_ui.txt2img(**asked | {"n_iter": 1}).info["all_prompts"] == [asked["prompt"]]
    with pytest.raises(RuntimeError, match="combinatorial generation"):
        web_ui.txt2img(alwayson_scripts={script: {"args": [True, True]}}, **asked)


def test_open_webui(http: httpx.Client) -> None:
    """Its engine automatic1111: 02530d5, backend/open_webui/routers/images.py."""
    models = [(one["title"], one["model_name"]) for one in http.get("/sdapi/v1/sd-models").json()]
    options = http.get("/sdapi/v1/options").json()
    assert (options["sd_model_checkpoint"],) * 2 in models
    http.post("/sdapi/v1/options", json=options | {"sd_model_checkpoint": "tiny"}).raise_for_status()
    body = {"prompt": "a bear", "batch_size": 2, "width": 64, "height": 32, "steps": 2, "negative_prompt": "snow"}
    answer = http.post(
        "/sdapi/v1/txt2img", json=body | {"cfg_scale": 4, "sampler_name": "Euler", "scheduler": "Karras"}
    )
    found = answer.json()
    assert [decoded(image).size for image in found["images"]] == [(64, 32)] * 2
    assert json.loads(found["info"])["cfg_scale"] == 4


LATENT_MODES = [  # modules/shared_items.py of 1.10
    *("Latent", "Latent (antialiased)", "Latent (bicubic)", "Latent (bicubic antialiased)"),
    *("Latent (nearest)", "Latent (nearest-exact)"),
]


def test_sillytavern(http: httpx.Client) -> None:
    """What 02903fd, src/endpoints/stable-diffusion.js, and public/scripts/extensions/stable-diffusion/index.js send."""
    upscalers, modes, samplers, schedulers, vaes, models = (
        [one[name] for one in http.get(f"/sdapi/v1/{path}").json()]
        for path, name in (
            *(("upscalers", "name"), ("latent-upscale-modes", "name"), ("samplers", "name"), ("schedulers", "name")),
            *(("sd-vae", "model_name"), ("sd-models", "title")),
        )
    )
    assert (upscalers[0], modes, vaes) == ("None", LATENT_MODES, [])
    assert http.get("/sdapi/v1/sd-modules").status_code == 404  # Forge's, which it does without
    http.post("/sdapi/v1/options", json={"sd_model_checkpoint": models[0]}).raise_for_status()
    state = http.get("/sdapi/v1/progress").json()
    assert (state["progress"], state["state"]["job_count"]) == (0, 0)
    http.post("/sdapi/v1/options", json={"sd_model_checkpoint": "tiny"}).raise_for_status()
    body = {
        **{"url": "http://127.0.0.1:7860", "auth": "anyone:secret", "prompt": "a bear", "negative_prompt": ""},
        **{"sampler_name": samplers[3], "scheduler": schedulers[2], "steps": 2, "cfg_scale": 7},
        **{"width": 32, "height": 32, "restore_faces": False, "enable_hr": True, "hr_upscaler": "Latent"},
        **{"hr_scale": 1.5, "hr_additional_modules": [], "denoising_strength": 0.7, "hr_second_pass_steps": 0},
        **{"override_settings": {"CLIP_stop_at_last_layers": 1}, "override_settings_restore_afterwards": True},
        **{"clip_skip": 1, "save_images": True, "send_images": True},
        **{"do_not_save_grid": False, "do_not_save_samples": False},
    }
    answer = http.post("/sdapi/v1/txt2img", json=body)
    assert decoded(answer.json()["images"][0]).size == (48, 48)
    assert json.loads(answer.json()["info"])["reverie_notes"] == []
    assert "secret" not in answer.text
    assert http.post("/sdapi/v1/interrupt").json() == {}


def test_librechat(http: httpx.Client) -> None:
    """Its tool stable-diffusion: 00b3bc3, api/app/clients/tools/structured/StableDiffusion.js; there 1024 pixels."""
    body = {"prompt": "a bear", "negative_prompt": "snow", "cfg_scale": 4.5, "steps": 2, "width": 64, "height": 64}
    found = http.post("/sdapi/v1/txt2img", json=body).json()
    info = json.loads(found["info"])
    assert decoded(found["images"][0]).size == (info["width"], info["height"]) == (64, 64)
    assert info["infotexts"][0].split("\n")[-1].startswith("Steps: 2")
    assert f"Seed: {info['seed']}" in info["infotexts"][0]
