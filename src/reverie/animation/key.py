"""The key of a film's frames, over what determines them: request, files it names, the model's content, the machine."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reverie.files import file_sha256, sha256_of
from reverie.generate.conditioning import loras_of
from reverie.generate.modified import Modification
from reverie.requests import adapter_files
from reverie.requests.films import Animation
from reverie.system import StableDiffusion

FORMAT = 1  # of what is drawn and stored: raise it where the same request comes to another frame


def key_of(system: StableDiffusion, animation: Animation, *, batch: int) -> str:
    """Return the key of a film drawn by a model in batches of a size: 32 hexadecimal digits.

    Raises ReverieError where a LoRA or another file of the film is not found.
    """
    parts = {"format": FORMAT, "batch": batch, **circumstances(system), **contents(animation)}
    parts |= {"request": animation.to_record(), "model": fingerprint(system)}
    return sha256_of([json.dumps(parts, sort_keys=True, default=str)])[:32]


def circumstances(system: StableDiffusion) -> dict[str, Any]:
    """Tell what moves the last bits of a frame: the versions, where it computes and on how many threads."""
    return {
        "reverie": version("reverie"),
        "torch": torch.__version__,
        "device": system.device.type,
        "dtype": str(system.dtype),
        "threads": torch.get_num_threads(),
    }


def contents(animation: Animation) -> dict[str, Any]:
    """Sum up the files that are read as a film is made; what it starts from is recorded with its sum."""
    paths = adapter_files.embeddings(animation.embeddings, animation.folders)
    paths += [path for path, _, _ in loras_of(animation)]
    return {"files": {str(path): _file_sum(path) for path in paths}}


def _file_sum(path: Path) -> str:
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return sha256_of([file_sha256(file) for file in files])


def fingerprint(system: StableDiffusion) -> str:
    """Sum up all that a picture depends on in a model: weights, configurations, schedule and words.

    Reads every weight once, on several threads: of 3.4 GB in seconds.
    """
    networks = (*system.text_encoders, system.unet, system.autoencoder)
    towers = [asdict(tower.config) for tower in system.text_encoders]
    configs = [*towers, asdict(system.unet.config), asdict(system.autoencoder.config)]
    words = [[words.length, words.bos, words.eos, words.pad, words.vocab, words.merges] for words in system.tokenizers]
    parts = [configs, asdict(system.schedule_config), system.zero_empty, words]
    with Modification(system).active(), ThreadPoolExecutor() as pool:  # without another drawing's LoRAs
        weights = [named for network in networks for named in sorted(network.state_dict().items())]
        sums = list(pool.map(_tensor_sum, weights))
    return sha256_of([json.dumps(parts, sort_keys=True, default=str), *sums])


def _tensor_sum(named: tuple[str, Tensor]) -> str:
    name, tensor = named
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return sha256_of([name, str(tensor.dtype), str(tuple(tensor.shape)), data.data])
