"""Which weight of a model does a key of a LoRA file mean? Every layout's names, brought to one.

The layouts: kohya's sd-scripts (`lora_unet_down_blocks_0_...`, for SDXL also with the blocks of the original code,
`lora_unet_input_blocks_4_...`; `lora_te_`, `lora_te1_`, `lora_te2_`), diffusers' and peft's (`unet.down_blocks.0...`,
`text_encoder_2...`), the attention processors of diffusers before 0.17 (`...attn1.processor.to_q_lora.down.weight`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from reverie.checkpoints.compvis import places, unet
from reverie.system import StableDiffusion

# What the last part of a key says the tensor is, under the names that `deltas` uses.
ROLES = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector.default.weight": "magnitude",
    **{
        f".{role}": role
        for role in (
            *("alpha", "dora_scale", "diff", "diff_b", "w_norm", "b_norm"),
            *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
            *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
            "on_input",
        )
    },
    ".weight": "ia3",
}
_BY_LENGTH = sorted(ROLES, key=len, reverse=True)

# The first part of a key, and the network it means: the U-Net, the first and the second text encoder.
PREFIXES = (
    ("lora_unet_", "unet_"),
    ("lora_te1_", "te1_"),
    ("lora_te2_", "te2_"),
    ("lora_te_", "te1_"),
    ("unet_", "unet_"),
    ("text_encoder_2_", "te2_"),
    ("text_encoder_", "te1_"),
    ("", "unet_"),  # the first files of diffusers hold nothing but the U-Net's
)


@dataclass(frozen=True, eq=False)
class Target:
    """Hold a layer of a model, and whether it is a text encoder's."""

    module: nn.Module
    text: bool


def group(keys: Iterable[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Group a file's keys by the layer they name, role by role; return the keys of no known role beside them."""
    layers: dict[str, dict[str, str]] = {}
    unknown = []
    for key in keys:
        ending = next((ending for ending in _BY_LENGTH if key.endswith(ending)), None)
        if ending is None:
            unknown.append(key)
        else:
            layers.setdefault(_canonical(key[: -len(ending)]), {})[ROLES[ending]] = key
    return layers, unknown


def _canonical(name: str) -> str:
    """Bring a layer's name to `unet_`, `te1_` or `te2_` and its path with underscores."""
    name = name.removeprefix("base_model.model.").replace(".processor.", ".").replace(".", "_")
    name = f"{name}_0" if name.endswith("_to_out") else name
    prefix, network = next(pair for pair in PREFIXES if name.startswith(pair[0]))
    return network + name.removeprefix(prefix)


def targets(system: StableDiffusion) -> Mapping[str, Target]:
    """List the layers of a model under every name that files give them."""
    found = {}
    layers = dict(_weighted(system.unet))
    for name, place in places(layers, unet(system.unet.config), "").items():
        found["unet_" + name.replace(".", "_")] = found["unet_" + place.name.replace(".", "_")] = Target(
            layers[name], False
        )
    for number, tower in enumerate(system.text_encoders, start=1):
        for name, module in _weighted(tower):
            found[f"te{number}_" + name.replace(".", "_")] = Target(module, True)
    return found


def _weighted(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in network.named_modules():
        # The first two always have one; asking a packed one for it would unpack it.
        if isinstance(module, nn.Linear | nn.Conv2d) or isinstance(getattr(module, "weight", None), nn.Parameter):
            yield name, module
