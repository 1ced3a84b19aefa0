"""A model from a single file to a folder in diffusers' layout, and back, without losing a bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from reverie.checkpoints.families import Family, family_of
from reverie.checkpoints.identify import HEADER, MARKERS
from reverie.checkpoints.load import load_folder
from reverie.checkpoints.save import FORMAT, Precision, save_folder, write_tensors
from reverie.checkpoints.single import STATISTICS, Networks, find_tokenizers, load_networks
from reverie.checkpoints.weights import open_source
from reverie.errors import ReverieError
from reverie.files import check_distinct
from reverie.models.autoencoder import TinyAutoencoder
from reverie.requests.references import locate_model

# What a single file holds and no network of a folder has room for, as SD 2's last text layer: it goes into a file of
# its own, which diffusers does not look at.
REST = "rest_of_single_file.safetensors"
PARTS = ("unet", "autoencoder", "text_encoders", "image_encoder", "embedding_noise")
# What only the training needed.
TRAINING = ("model_ema.", "first_stage_model.loss.", "optimizer_states.", "callbacks.", "loops.", "lr_schedulers.")


def convert(
    source: str | Path,
    target: str | Path,
    *,
    dtype: torch.dtype | None = None,
    config: str | Family | None = None,
    prediction: str | None = None,
    ema: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a model, a single file, a folder or a bundled one, as a folder or as a single file.

    What the target is called decides: `.safetensors` is a single file, a name without suffix a folder. `dtype` None
    keeps each weight's own; `config` and `prediction` name the family and the parameterisation of a single file where
    it does not tell; `ema` takes the running averages of its U-Net. What a training left is not written. Raises
    ReverieError, also where the target is there and `overwrite` is not set.
    """
    source, target = locate_model(source), Path(target)
    _check(source, target, overwrite)
    if source.is_dir():
        if ema or prediction or isinstance(config, str):
            raise ReverieError(f"'{source}' is a folder, which says what it is; leave out config, prediction and ema")
        components = load_folder(source, dtype=None)
        own = components.autoencoder
        if isinstance(own, TinyAutoencoder) or own.config.patch_size > 1:
            kind = "a TAESD" if isinstance(own, TinyAutoencoder) else "patches of pixels"
            raise ReverieError(f"'{source}' decodes by {kind}, which no single file holds; give it an AutoencoderKL")
        family = config if isinstance(config, Family) else family_of(components)
        parts = {name: getattr(components, name) for name in PARTS}
        networks = Networks(family, **parts)
        held = open_source(source / REST) if (source / REST).is_file() else None
    else:
        networks = load_networks(source, config=config, prediction=prediction, ema=ema)
        components, held = None, open_source(source)
    names = set() if held is None else set(held.names())
    names -= networks.names(names) | {*MARKERS, *STATISTICS}
    rest = {name: held.tensor(name) for name in names if held is not None and not name.startswith(TRAINING)}
    if target.suffix == ".safetensors":
        predicted = {"eps": "epsilon"}.get(networks.family.schedule.prediction, networks.family.schedule.prediction)
        write_tensors(_in_dtype({**rest, **networks.tensors()}, dtype), target, {**FORMAT, HEADER: predicted})
        return
    if components is None:
        components = networks.components(find_tokenizers(source, networks.family), target.name)
    save_folder(components, target, Precision(dtype))
    if rest:
        write_tensors(_in_dtype(rest, dtype), target / REST)
    else:
        (target / REST).unlink(missing_ok=True)  # of what was written over


def _in_dtype(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Convert tensors to a dtype, None keeps each its own; whole numbers always do."""
    return {name: tensor.to(dtype if tensor.is_floating_point() else None) for name, tensor in tensors.items()}


def _check(source: Path, target: Path, overwrite: bool) -> None:
    """Refuse what cannot be meant, before any work is done."""
    if not source.exists():
        raise ReverieError(f"no model at '{source}': there is no such file or folder")
    if target.suffix not in ("", ".safetensors"):
        raise ReverieError(
            f"cannot write '{target}': give a name that ends in .safetensors for a single file, or one without suffix "
            "for a folder"
        )
    if source.is_dir() and target.suffix == "":
        raise ReverieError(f"'{source}' is a folder already; give a target that ends in .safetensors")
    check_distinct([target], [source])
    if target.exists() and not overwrite and (target.is_file() or any(target.iterdir())):
        raise ReverieError(f"'{target}' is there already; give another name, or `force` to write over it")
