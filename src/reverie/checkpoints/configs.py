"""config.json files to config dataclasses and back, refusing what our networks cannot do.

Defaults for absent keys are those of diffusers' and transformers' own signatures, which their files rely on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from reverie.diffusion.denoiser import ScheduleConfig
from reverie.errors import ReverieError
from reverie.models.autoencoder import AutoencoderConfig, TinyConfig
from reverie.models.clip import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from reverie.models.k_unet import KUNetConfig
from reverie.models.unet import UNetConfig

Json = dict[str, Any]

# The version of the layout, not of a library: from 0.9 on diffusers takes sample_size as it stands.
DIFFUSERS_VERSION = "0.30.0"


BETA_SCHEDULES = {"scaled_linear": "scaled_linear", "linear": "linear", "squaredcos_cap_v2": "squared_cosine"}
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
EDM_SIGMAS = ("sigma_min", "sigma_max", "sigma_data")
EDM_PREDICTIONS = {"epsilon": "edm", "v_prediction": "edm_v"}  # of diffusers' EDM schedulers

UNET_FIXED: Json = {
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_only_cross_attention": None,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_eps": 1e-5,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "cross_attention_norm": None,
}
# Classes of autoencoders; diffusers has no patched one.
PLAIN, PATCHED, TINY = "AutoencoderKL", "PatchedAutoencoderKL", "AutoencoderTiny"
AUTOENCODER_FIXED: Json = {"act_fn": "silu", "shift_factor": None}
K_FIXED: Json = {  # of the U-Nets with k-diffusion's blocks
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "act_fn": "gelu",
    "norm_num_groups": None,
    "mid_block_type": None,
    "resnet_time_scale_shift": "scale_shift",
    "time_embedding_type": "fourier",
    "timestep_post_act": "gelu",
    "conv_in_kernel": 1,
    "conv_out_kernel": 1,
}
TINY_FIXED: Json = {
    "act_fn": "relu",
    "upsample_fn": "nearest",
    "upsampling_scaling_factor": 2,
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
}
TEXT_DEFAULTS: Json = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}
VISION_SPACE = 512  # dimensions of a vision tower's projection, where its config leaves that out
VISION_DEFAULTS: Json = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "image_size": 224,
    "patch_size": 32,
}
ATTENDED_MIDDLE, PLAIN_MIDDLE = "UNetMidBlock2DCrossAttn", "UNetMidBlock2D"
UNET_BLOCKS = {"DownBlock2D": "UpBlock2D", "CrossAttnDownBlock2D": "CrossAttnUpBlock2D"}


def read_unet(raw: Json, where: str) -> UNetConfig:
    """Translate diffusers' UNet2DConditionModel config. `where` names the file in errors."""
    if raw.get("time_embedding_type") == K_FIXED["time_embedding_type"]:
        return _read_k_unet(raw, where)
    _expect(raw, UNET_FIXED, where)
    widths = _levels(raw, "block_out_channels", where)
    down = _need(raw, "down_block_types", where)
    for block in down:
        if block not in UNET_BLOCKS:
            raise _unsupported_value(where, "down_block_types", block, f"one of {', '.join(UNET_BLOCKS)}")
    _expect(raw, {"up_block_types": [UNET_BLOCKS[block] for block in reversed(down)]}, where)
    layers = _one_for_all(raw, "layers_per_block", 2, len(widths), where)
    given = _transformer_depths(raw, len(widths), layers, where)
    depths = tuple(depth if block.startswith("CrossAttn") else 0 for block, depth in zip(down, given, strict=True))
    middle = raw.get("mid_block_type", ATTENDED_MIDDLE)
    if middle not in (middles := {ATTENDED_MIDDLE: given[-1], PLAIN_MIDDLE: 0, None: None}):
        raise _unsupported_value(where, "mid_block_type", middle, f"{ATTENDED_MIDDLE!r}, {PLAIN_MIDDLE!r} or null")
    crossed = _per_level(raw, "only_cross_attention", False, len(widths), where)
    added = raw.get("addition_embed_type")
    if added not in (None, "text_time"):
        raise _unsupported_value(where, "addition_embed_type", added, "null or 'text_time'")
    projected = raw.get("class_embed_type")
    if projected not in (None, "projection"):
        raise _unsupported_value(where, "class_embed_type", projected, "null or 'projection'")
    width = _need(raw, "projection_class_embeddings_input_dim", where) if added or projected else None
    return UNetConfig(
        in_channels=raw.get("in_channels", 4),
        out_channels=raw.get("out_channels", 4),
        sample_size=_need(raw, "sample_size", where),
        block_out_channels=widths,
        layers_per_block=layers,
        transformer_depth=depths,
        mid_transformer_depth=middles[middle],
        up_transformer_depth=_up_depths(raw, depths, layers, where),
        only_cross_attention=tuple(map(bool, crossed)) if any(crossed) else None,
        # The key is named wrongly in every file, and diffusers reads it as the number of heads (its issue 2011).
        num_heads=_per_level(raw, "attention_head_dim", 8, len(widths), where),
        cross_attention_dim=_one_for_all(raw, "cross_attention_dim", 1280, len(widths), where),
        use_linear_projection=raw.get("use_linear_projection", False),
        norm_num_groups=raw.get("norm_num_groups", 32),
        addition_time_embed_dim=raw.get("addition_time_embed_dim") if added else None,
        projection_input_dim=width,
        num_class_embeds=raw.get("num_class_embeds"),
        time_cond_proj_dim=raw.get("time_cond_proj_dim"),
    )


def _read_k_unet(raw: Json, where: str) -> KUNetConfig:
    widths = _levels(raw, "block_out_channels", where)
    down, up = _k_blocks(len(widths))
    _expect(raw, {**K_FIXED, "down_block_types": down, "up_block_types": up}, where)
    head = _one_for_all(raw, "attention_head_dim", 8, len(widths), where)  # here it is what its name says
    return KUNetConfig(
        in_channels=_need(raw, "in_channels", where),
        out_channels=_need(raw, "out_channels", where),
        sample_size=raw.get("sample_size") or KUNetConfig.sample_size,
        block_out_channels=widths,
        layers_per_block=_one_for_all(raw, "layers_per_block", 2, len(widths), where),
        transformer_depth=(0, *[1] * (len(widths) - 1)),
        num_heads=tuple(width // head for width in widths),
        cross_attention_dim=_one_for_all(raw, "cross_attention_dim", 1280, len(widths), where),
        condition_dim=_need(raw, "time_cond_proj_dim", where),
    )


def _k_blocks(levels: int) -> tuple[list[str], list[str]]:
    """Name the blocks of a U-Net of k-diffusion, whose outermost level alone does not attend, down and up."""
    inner = levels - 1
    return ["KDownBlock2D", *["KCrossAttnDownBlock2D"] * inner], [*["KCrossAttnUpBlock2D"] * inner, "KUpBlock2D"]


def _write_k_unet(config: KUNetConfig) -> Json:
    down, up = _k_blocks(len(config.block_out_channels))
    return {
        **_write_shape(config),
        **K_FIXED,
        "down_block_types": down,
        "up_block_types": up,
        "attention_head_dim": config.block_out_channels[0] // config.num_heads[0],
        "time_cond_proj_dim": config.condition_dim,
    }


def _transformer_depths(raw: Json, levels: int, layers: int, where: str) -> tuple[int, ...]:
    """Read a number a level; a list, one a layer, is of equal ones in all models that there are."""
    key = "transformer_layers_per_block"
    given = raw.get(key, 1)
    if isinstance(given, list):
        given = [depth[0] if isinstance(depth, list) and depth == depth[:1] * layers else depth for depth in given]
    return _per_level({key: given}, key, 1, levels, where)


def _up_depths(raw: Json, depths: tuple[int, ...], layers: int, where: str) -> tuple[tuple[int, ...], ...] | None:
    """Read the depths of the way up, from the picture on, as UNetConfig has them; None where the way down tells them.

    diffusers begins with the lowest level, and does not look at those of a level without attention.
    """
    key = "reverse_transformer_layers_per_block"
    if (given := raw.get(key)) is None:
        return None
    if not isinstance(given, list) or len(given) != len(depths):
        raise _unsupported_value(where, key, given, f"{len(depths)} numbers or lists of {layers + 1}")
    up = tuple(
        _per_level({key: level if depth else 0}, key, 0, layers + 1, where)
        for level, depth in zip(reversed(given), depths, strict=True)
    )
    return None if up == tuple((depth,) * (layers + 1) for depth in depths) else up


def _write_shape(config: UNetConfig) -> Json:
    """Write what all kinds of U-Nets have."""
    return {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": DIFFUSERS_VERSION,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "sample_size": config.sample_size,
        "block_out_channels": list(config.block_out_channels),
        "layers_per_block": config.layers_per_block,
        "cross_attention_dim": config.cross_attention_dim,
    }


def write_unet(config: UNetConfig) -> Json:
    """Write a U-Net's config as diffusers reads it. Raises ReverieError for shapes that diffusers cannot express."""
    if isinstance(config, KUNetConfig):
        return _write_k_unet(config)
    depths, middle, up = list(config.transformer_depth), config.mid_transformer_depth, config.up_transformer_depth
    if middle and depths[-1] not in (0, middle):
        raise ReverieError(
            f"diffusers has no U-Net with transformer depth {depths[-1]} in its last level and {middle} in the middle; "
            "make the last level's the same or 0"
        )
    attended = [depth > 0 for depth in depths]
    down = ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in attended]
    return {
        **_write_shape(config),
        "down_block_types": down,
        "up_block_types": [UNET_BLOCKS[block] for block in reversed(down)],
        "mid_block_type": None if middle is None else ATTENDED_MIDDLE if middle else PLAIN_MIDDLE,
        # A level without attention does not look at its depth; the last one's is also the middle's.
        "transformer_layers_per_block": [depth or 1 for depth in (*depths[:-1], middle or depths[-1])],
        "reverse_transformer_layers_per_block": up and [[depth or 1 for depth in level] for level in reversed(up)],
        "only_cross_attention": list(config.only_cross_attention or [False] * len(depths)),
        "attention_head_dim": list(config.num_heads),
        "use_linear_projection": config.use_linear_projection,
        "norm_num_groups": config.norm_num_groups,
        "addition_embed_type": "text_time" if config.takes_sizes else None,
        "class_embed_type": "projection" if config.projection_input_dim and not config.takes_sizes else None,
        "addition_time_embed_dim": config.addition_time_embed_dim,
        "projection_class_embeddings_input_dim": config.projection_input_dim,
        "num_class_embeds": config.num_class_embeds,
        "time_cond_proj_dim": config.time_cond_proj_dim,
    }


def read_autoencoder(raw: Json, where: str) -> AutoencoderConfig:
    """Translate the config of diffusers' AutoencoderKL or of a patched autoencoder."""
    if (kind := raw.get("_class_name", PLAIN)) not in (PLAIN, PATCHED):
        raise _unsupported_value(where, "_class_name", kind, f"one of {PLAIN}, {PATCHED}, {TINY}")
    widths = _levels(raw, "block_out_channels", where)
    blocks = {
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
    }
    _expect(raw, {**AUTOENCODER_FIXED, **blocks}, where)
    given = {**asdict(AutoencoderConfig()), "layers_per_block": 1, "sample_size": 32, **raw}
    known: Json = {field.name: given[field.name] for field in fields(AutoencoderConfig)}
    known |= {key: tuple(value) for key, value in known.items() if isinstance(value, list)}
    if not isinstance(patch_size := known["patch_size"], int) or patch_size < 1:
        raise _unsupported_value(where, "patch_size", patch_size, "a whole number from 1 on")
    return AutoencoderConfig(**known)


def write_autoencoder(config: AutoencoderConfig | TinyConfig) -> Json:
    """Write an autoencoder's config as diffusers reads it, who knows no patched ones and refuses their class."""
    if isinstance(config, TinyConfig):
        return _write_tiny(config)
    levels, own = len(config.block_out_channels), asdict(config)
    if config.patch_size == 1:
        del own["patch_size"]  # which diffusers' AutoencoderKL does not know
    return {
        "_class_name": PLAIN if config.patch_size == 1 else PATCHED,
        "_diffusers_version": DIFFUSERS_VERSION,
        **own,
        "act_fn": "silu",
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def read_latent_factor(raw: Json, where: str) -> int:
    """Read from an autoencoder's config, of whatever class, how many pixels a latent spans."""
    if raw.get("_class_name") == TINY:
        return TinyConfig(num_decoder_blocks=_levels(raw, "num_decoder_blocks", where)).factor
    return read_autoencoder(raw, where).factor


def check_tiny(raw: Json, where: str) -> None:
    """Raise ReverieError where an AutoencoderTiny's config asks for what is not computed; shapes tell the rest."""
    _expect(raw, TINY_FIXED, where)


def _write_tiny(config: TinyConfig) -> Json:
    blocks = {"encoder": config.num_encoder_blocks, "decoder": config.num_decoder_blocks}
    widths = {"encoder": config.encoder_width, "decoder": config.decoder_width}
    return {
        "_class_name": TINY,
        "_diffusers_version": DIFFUSERS_VERSION,
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        **{f"num_{half}_blocks": list(counts) for half, counts in blocks.items()},
        **{f"{half}_block_out_channels": [widths[half]] * len(counts) for half, counts in blocks.items()},
        "scaling_factor": config.scaling_factor,
    }


def read_text(raw: Json, where: str) -> CLIPTextConfig:
    """Translate transformers' CLIPTextConfig."""
    given = {**TEXT_DEFAULTS, **raw}
    if given["eos_token_id"] == 2:  # files before transformers 4.31 say so by mistake, and pool at the largest id
        given["eos_token_id"] = given["vocab_size"] - 1
    given["projection_dim"] = raw.get("projection_dim") or given["hidden_size"]
    return CLIPTextConfig(**{field.name: given[field.name] for field in fields(CLIPTextConfig)})


def write_text(config: CLIPTextConfig, architecture: str) -> Json:
    """Write a text tower's config as transformers reads it; `architecture` is its class there."""
    return {
        "architectures": [architecture],
        "model_type": "clip_text_model",
        **asdict(config),
        "bos_token_id": config.eos_token_id - 1,  # CLIP's layout of the vocabulary; neither side's towers look at it
        "pad_token_id": config.eos_token_id,
    }


def read_clip(raw: Json, where: str) -> CLIPConfig:
    """Translate transformers' CLIPConfig."""
    text, space = raw.get("text_config") or {}, raw.get("projection_dim", 512)
    return CLIPConfig(
        text=read_text({**text, "projection_dim": space}, where),
        vision=read_vision(raw.get("vision_config") or {}, where),
        projection_dim=space,
        logit_scale_init_value=raw.get("logit_scale_init_value", 2.6592),
    )


def read_vision(raw: Json, where: str) -> CLIPVisionConfig:
    """Translate transformers' CLIPVisionConfig, but for its `projection_dim`."""
    _expect(raw, {"num_channels": 3}, where)
    return CLIPVisionConfig(**{key: {**VISION_DEFAULTS, **raw}[key] for key in VISION_DEFAULTS})


def write_vision(config: CLIPVisionConfig, projection_dim: int) -> Json:
    """Write a vision tower's config as transformers' CLIPVisionModelWithProjection reads it."""
    return {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        **asdict(config),
        "projection_dim": projection_dim,
    }


def write_clip(config: CLIPConfig) -> Json:
    """Write both towers' config as transformers' CLIPModel reads it."""
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.projection_dim,
        "logit_scale_init_value": config.logit_scale_init_value,
        "text_config": write_text(config.text, "CLIPTextModel"),
        "vision_config": write_vision(config.vision, config.projection_dim),
    }


def read_schedule(raw: Json, where: str) -> ScheduleConfig:
    """Translate the config of diffusers' schedulers: those over discrete betas, EDM's, and of rectified flow."""
    kind, prediction = str(raw.get("_class_name")), raw.get("prediction_type", "epsilon")
    edm = kind.startswith("EDM")
    if kind.startswith("FlowMatch"):
        _expect(raw, {"use_dynamic_shifting": False, "shift_terminal": None}, where)
        return _read_flow(raw, "shift")
    if prediction == "flow_prediction":  # of DPMSolverMultistepScheduler and UniPCMultistepScheduler
        _expect(raw, {"use_dynamic_shifting": False}, where)
        return _read_flow(raw, "flow_shift")
    predictions = EDM_PREDICTIONS if edm else PREDICTIONS
    if prediction not in predictions:
        raise _unsupported_value(where, "prediction_type", prediction, f"one of {', '.join(predictions)}")
    if edm:
        plain = ScheduleConfig(prediction=EDM_PREDICTIONS[prediction])  # whose sigmas are the defaults there too
        sigmas: Json = {key: float(raw[key]) for key in EDM_SIGMAS if key in raw}
        return replace(plain, **sigmas)
    _expect(raw, {"trained_betas": None}, where)
    beta_schedule = raw.get("beta_schedule")
    if beta_schedule not in BETA_SCHEDULES:
        raise _unsupported_value(where, "beta_schedule", beta_schedule, f"one of {', '.join(BETA_SCHEDULES)}")
    return ScheduleConfig(
        beta_schedule=BETA_SCHEDULES[beta_schedule],
        beta_start=raw.get("beta_start", 0.0001),
        beta_end=raw.get("beta_end", 0.02),
        steps=raw.get("num_train_timesteps", 1000),
        prediction=PREDICTIONS[prediction],
        zero_terminal_snr=raw.get("rescale_betas_zero_snr", False),
        timestep_spacing=raw.get("timestep_spacing", "leading"),
        steps_offset=raw.get("steps_offset", 0),
    )


def _read_flow(raw: Json, shift: str) -> ScheduleConfig:
    return ScheduleConfig(
        prediction="flow", steps=raw.get("num_train_timesteps", 1000), shift=float(raw.get(shift, 1.0))
    )


def write_schedule(config: ScheduleConfig) -> Json:
    """Write a schedule as the config of diffusers' DDIMScheduler, with the settings of Stable Diffusion, or of its kin.

    That is the EDMEulerScheduler for EDM, and the FlowMatchEulerDiscreteScheduler for rectified flow.
    """
    raw: Json = {"_diffusers_version": DIFFUSERS_VERSION, "num_train_timesteps": config.steps}
    if config.prediction == "flow":
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", **raw, "shift": config.shift}
    if config.is_edm:
        sigmas = {key: getattr(config, key) for key in EDM_SIGMAS}
        prediction = _key_of(EDM_PREDICTIONS, config.prediction)
        return {"_class_name": "EDMEulerScheduler", **raw, **sigmas, "prediction_type": prediction}
    return {
        "_class_name": "DDIMScheduler",
        **raw,
        "beta_schedule": _key_of(BETA_SCHEDULES, config.beta_schedule),
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "prediction_type": _key_of(PREDICTIONS, config.prediction),
        "rescale_betas_zero_snr": config.zero_terminal_snr,
        "timestep_spacing": config.timestep_spacing,
        "steps_offset": config.steps_offset,
        "clip_sample": False,
        "set_alpha_to_one": False,
    }


def _key_of(table: Mapping[str, str], value: str) -> str:
    return next(key for key, other in table.items() if other == value)


def _unsupported_value(where: str, key: str, given: object, allowed: str) -> ReverieError:
    return ReverieError(f"{where}: {key} is {given!r}, which is not supported; it should be {allowed}")


def _expect(raw: Json, allowed: Mapping[str, Any], where: str) -> None:
    """Raise ReverieError where a key differs from the one value supported; absent, null and false are alike."""
    for key, value in allowed.items():
        given = raw.get(key, value)
        if given != value and (given or value):
            raise _unsupported_value(where, key, given, repr(value))


def _need(raw: Json, key: str, where: str) -> Any:
    if raw.get(key) is None:
        raise ReverieError(f"{where}: {key} is missing")
    return raw[key]


def _levels(raw: Json, key: str, where: str) -> tuple[int, ...]:
    """Read a number of each level, of which there are as many as numbers."""
    given = _need(raw, key, where)
    if not isinstance(given, list | tuple) or not given or not all(isinstance(value, int) for value in given):
        raise _unsupported_value(where, key, given, "a list of whole numbers, one a level")
    return tuple(given)


def _per_level(raw: Json, key: str, default: int, levels: int, where: str) -> tuple[int, ...]:
    """Read a number, or one a level, as one a level."""
    given = raw.get(key, default)
    values = tuple(given) if isinstance(given, list) else (given,) * levels
    if len(values) != levels or not all(isinstance(value, int) for value in values):
        raise _unsupported_value(where, key, given, f"a whole number, or {levels} of them")
    return values


def _one_for_all(raw: Json, key: str, default: int, levels: int, where: str) -> int:
    values = set(_per_level(raw, key, default, levels, where))
    if len(values) > 1:
        raise _unsupported_value(where, key, raw[key], "the same in every level")
    return values.pop()
