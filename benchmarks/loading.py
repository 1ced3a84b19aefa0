"""What does loading a model cost beyond reading its file? `python benchmarks/loading.py` writes and loads an SD 1.5.

The file has the names and shapes of the official one in float16 (2.1 GB) and random weights. Both sides go in turns on
a warm disk, in one process; a load counts to where every page of every weight was touched, as mapped ones cost nothing
before. Goals: at most 1.1 times the time of reading, and 1.2 times the weights' memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import struct
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from measure import run, seconds
from reverie.checkpoints import configs
from reverie.checkpoints.families import SD15
from reverie.checkpoints.load import DIFFUSERS_STEM, TRANSFORMERS_STEM, load_autoencoder, load_text_encoder, load_unet
from reverie.checkpoints.single import Networks, load_networks

PAGE = os.sysconf("SC_PAGE_SIZE")
BLOCK = 16 << 20
Modules = list[nn.Module]
Load = Callable[[Path], Modules]


def empty() -> Networks:
    """Build the networks of SD 1.5 without values."""
    towers = tuple(tower.part().blueprint() for tower in SD15.towers)
    return Networks(SD15, SD15.unet_part().blueprint(), SD15.autoencoder_part().blueprint(), towers)


def write(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file in float16 with these names and shapes, and random weights that repeat."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [end, end + 2 * tensor.numel()]}
        end += 2 * tensor.numel()
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    block = (torch.randn(BLOCK // 2) * 0.02).half().numpy().tobytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(raw)) + raw)
        for start in range(0, end, BLOCK):
            opened.write(block[: end - start])


def write_folder(folder: Path, networks: Networks) -> None:
    """Write the networks in diffusers' layout."""
    tower = networks.text_encoders[0]
    parts = (
        ("unet", DIFFUSERS_STEM, networks.unet, configs.write_unet(networks.unet.config)),
        ("vae", DIFFUSERS_STEM, networks.autoencoder, configs.write_autoencoder(networks.autoencoder.config)),
        ("text_encoder", TRANSFORMERS_STEM, tower, configs.write_text(tower.config, "CLIPTextModel")),
    )
    for part, stem, module, config in parts:
        write(folder / part / f"{stem}.safetensors", module.state_dict())
        (folder / part / "config.json").write_text(json.dumps(config))


def load_single(file: Path, dtype: torch.dtype) -> Modules:
    """Load the single file."""
    networks = load_networks(file, dtype=dtype)
    return [networks.unet, networks.autoencoder, *networks.text_encoders]


def load_parts(folder: Path, dtype: torch.dtype) -> Modules:
    """Load the folder's networks."""
    unet, autoencoder = load_unet(folder / "unet", dtype=dtype), load_autoencoder(folder / "vae", dtype=dtype)
    return [unet, autoencoder, load_text_encoder(folder / "text_encoder", dtype=dtype)]


def read(files: list[Path]) -> None:
    """Read files whole."""
    for file in files:
        file.read_bytes()


def touch(modules: Modules) -> int:
    """Look at every page of every weight and return how many bytes they have."""
    tensors = [tensor for module in modules for tensor in module.state_dict().values()]
    for tensor in tensors:
        tensor.flatten().view(torch.uint8)[::PAGE].sum()
    return sum(tensor.nbytes for tensor in tensors)


def resident(key: str) -> int:
    """Read a line of the process's memory in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024


def peak(load: Load, place: Path) -> float:
    """Return the largest memory that loading and touching took in this process, in weights."""
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    weights = touch(load(place))
    return (resident("VmHWM") - before) / weights


def compare(case: str, place: Path, rounds: int) -> None:
    """Time both sides in turns, measure the memory in a new process, which has freed none, and print a line."""
    load, files = CASES[case], [place] if place.is_file() else sorted(place.rglob("*.safetensors"))
    load(place)  # imports, and the disk's cache
    read(files)
    pairs = [(seconds(lambda: touch(load(place))), seconds(lambda: read(files))) for _ in range(rounds)]
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    child = run([sys.executable, __file__, "--peak", case, str(place)])
    print(
        f"{case}: loaded in {ours:.2f} s, read in {theirs:.2f} s: {ours / theirs:.2f} times; "
        f"peak {float(child.output):.2f} weights"
    )


CASES: dict[str, Load] = {
    "file-float16": lambda place: load_single(place, torch.float16),
    "file-float32": lambda place: load_single(place, torch.float32),
    "folder-float16": lambda place: load_parts(place, torch.float16),
}


def main() -> None:
    """Write the files, compare, and remove them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "PATH"), help="only measure the memory of one case")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        print(peak(CASES[arguments.peak[0]], Path(arguments.peak[1])))
        return
    with tempfile.TemporaryDirectory(prefix="reverie-loading-") as scratch:
        file, folder, networks = Path(scratch, "v1-5.safetensors"), Path(scratch, "folder"), empty()
        write(file, networks.tensors())
        print(f"{file.stat().st_size / 1e9:.2f} GB, load {os.getloadavg()[0]:.1f}, medians of {arguments.rounds}")
        for case in ("file-float16", "file-float32"):
            compare(case, file, arguments.rounds)
        file.unlink()
        write_folder(folder, networks)
        compare("folder-float16", folder, arguments.rounds)


if __name__ == "__main__":
    main()
