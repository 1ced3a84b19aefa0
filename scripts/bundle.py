"""What ships? Puts the trained models into the package's assets, in half precision, and the judge beside the benchmark.

The model is a whole folder written by train/diffusion.py; its decoder may come from a later run that left the encoder
alone, its student in few steps from train/distill.py, with an autoencoder of train/patched.py. Nothing is replaced
unless everything fits.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reverie.adapters.ip_adapter import load_ip_adapter
from reverie.checkpoints.load import Recommended, load_autoencoder, load_clip, load_folder
from reverie.checkpoints.save import Precision, save_clip, save_folder, write_tensors
from reverie.cli.options import say
from reverie.corpora.concepts import concepts
from reverie.errors import ReverieError
from reverie.models.autoencoder import Autoencoder, ImageAutoencoder
from reverie.train import enlarge
from reverie.train.diffusion import LatentSettings
from reverie.train.recipe import read

ROOT = Path(__file__).parents[1]
GUIDANCE = 2.0  # of so little training more drives colours and shapes apart
STEPS = 10  # the judge finds as much in pictures of 20 (docs/measured/bundled-model.md)
LARGEST = 75_000_000  # bytes of the model and CLIP together
HALF = Precision(torch.float16)
Known = dict[str, Any]  # {"emoji": ..., "en": [names], "zh": [names]}
ENCODER = ("encoder.", "quant_conv.")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    runs = ROOT / "runs"
    parser = argparse.ArgumentParser(description="Put trained models into the package's assets, in half precision.")
    parser.add_argument(
        "--unet", type=Path, default=runs / "everyday-anew" / "export", help="whole model, diffusers' layout"
    )
    parser.add_argument(
        "--decoder",
        type=Path,
        default=runs / "mending-anew" / "export",
        help="autoencoder with the decoder that ships",
    )
    parser.add_argument("--turbo", type=Path, default=runs / "turbo-anew" / "export", help="its student in few steps")
    parser.add_argument("--patched", type=Path, default=runs / "patched" / "export", help="the student's autoencoder")
    parser.add_argument("--clip", type=Path, default=runs / "clip" / "export", help="CLIP, transformers' layout")
    parser.add_argument(
        "--adapter",
        type=Path,
        default=runs / "ip-adapter" / "export" / "ip-adapter.safetensors",
        help="IP-Adapter of the model and of CLIP",
    )
    parser.add_argument("--judge", type=Path, default=runs / "honest-judge" / "export", help="probe for the benchmark")
    parser.add_argument(
        "--recipe", type=Path, default=ROOT / "recipes" / "everyday-anew.toml", help="names the concepts"
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="repository to write into")
    return parser.parse_args()


def main() -> int:
    """Assemble, check and put into place; return the exit status."""
    options = arguments()
    assets = options.root / "src" / "reverie" / "assets"
    try:
        assets.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".bundling-", dir=assets) as staging:
            things = known(options.recipe)
            check_judge(options.judge, things)
            write_model(options.unet, options.decoder, Path(staging, "bundled"))
            write_concepts(things, Path(staging, "bundled", "concepts.json"))
            write_student(options.turbo, options.patched, Path(staging, "turbo"))
            save_clip(load_clip(options.clip), Path(staging, "clip"), HALF)
            write_adapter(options.adapter, Path(staging, "ip_adapter"))
            check_sizes(Path(staging), LARGEST)
            for name in ("bundled", "turbo", "clip", "ip_adapter"):
                put(Path(staging, name), assets / name)
        copy_judge(options.judge, options.root / "benchmarks" / "judge")
    except (ReverieError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def known(recipe: Path) -> list[Known]:
    """Return the concepts that a recipe's U-Net learns, as `reverie concepts` lists them."""
    tables = read(recipe)
    subset = tables.get("scenes", tables.get("data", {})).get("subset", LatentSettings.subset)
    return [
        {"emoji": thing.emoji, "en": list(thing.en), "zh": list(thing.zh), "keywords": list(thing.keywords_en)}
        for thing in concepts(subset)
    ]


def check_judge(folder: Path, things: list[Known]) -> None:
    """Raise ReverieError where the judge cannot tell the model's concepts."""
    config = folder / "config.json"
    if not config.is_file():
        raise ReverieError(f"no trained judge in {folder}; train one with its recipe")
    names = json.loads(config.read_text(encoding="utf-8"))["names"]
    if missing := [thing["en"][0] for thing in things if thing["emoji"] not in names]:
        raise ReverieError(f"the judge in {folder} does not know {', '.join(missing[:5])}; train it on the same subset")


def write_model(unet: Path, decoder: Path, target: Path) -> None:
    """Write the model with the decoder of another run. Raises ReverieError where that does not fit."""
    components, tuned = load_folder(unet), load_autoencoder(decoder)
    if not same_latents(components.autoencoder, tuned):
        raise ReverieError(f"{decoder} has another encoder than {unet / 'vae'}; fine-tune with decoder_only = true")
    components = replace(components, autoencoder=tuned, recommended=Recommended(guidance=GUIDANCE, steps=STEPS))
    check_finite(components.unet, components.autoencoder, *components.text_encoders)
    save_folder(components, target, HALF)


def write_student(student: Path, autoencoder: Path, target: Path) -> None:
    """Write what a model in few steps has of its own; the rest is the bundled model's, see requests/references.py."""
    components = replace(load_folder(student), autoencoder=load_autoencoder(autoencoder))
    check_finite(components.unet, components.autoencoder, *components.text_encoders)
    with tempfile.TemporaryDirectory(prefix=".student-", dir=target.parent) as whole:
        save_folder(components, Path(whole, "model"), HALF)
        target.mkdir()
        for part in ("unet", "vae", "model_index.json", "recommended.json"):
            Path(whole, "model", part).replace(target / part)


def write_adapter(file: Path, target: Path) -> None:
    """Write the IP-Adapter by which the model varies pictures; its vision tower is CLIP's."""
    adapter = load_ip_adapter(file)
    check_finite(adapter)
    target.mkdir()
    write_tensors({name: value.half() for name, value in adapter.state_dict().items()}, target / "model.safetensors")


def check_finite(*parts: nn.Module) -> None:
    """Raise ReverieError where a weight does not fit half precision."""
    for part in parts:
        for name, value in part.state_dict().items():
            if not torch.isfinite(value.half()).all():
                raise ReverieError(f"{type(part).__name__}'s {name} does not fit half precision; lower its weights")


def same_latents(first: ImageAutoencoder, second: ImageAutoencoder) -> bool:
    """Tell whether two autoencoders encode alike, to the bit: of one configuration, or the second enlarged.

    Tiny ones (TAESD) do not: their encoders are parts of no run.
    """
    if not (isinstance(first, Autoencoder) and isinstance(second, Autoencoder)):
        return False
    theirs = second.state_dict()
    return enlarge.same_latents(first, second) or (
        first.config == second.config
        and all(
            torch.equal(value, theirs[name]) for name, value in first.state_dict().items() if name.startswith(ENCODER)
        )
    )


def write_concepts(things: list[Known], file: Path) -> None:
    """Write one concept a line."""
    lines = ",\n".join(json.dumps(thing, ensure_ascii=False) for thing in things)
    file.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    say(f"{len(things)} concepts")


def check_sizes(staging: Path, largest: int) -> None:
    """Tell what each part weighs. Raises ReverieError above the limit."""
    parts = sorted({path.parent for path in staging.rglob("*") if path.is_file()})
    for part in parts:
        weight = sum(path.stat().st_size for path in part.iterdir() if path.is_file())
        say(f"{part.relative_to(staging)}: {weight / 1e6:.2f} MB")
    total = sum(path.stat().st_size for path in staging.rglob("*") if path.is_file())
    say(f"together: {total / 1e6:.2f} MB of {largest / 1e6:.0f}")
    if total > largest:
        raise ReverieError(
            f"{total / 1e6:.1f} MB are more than the {largest / 1e6:.0f} MB that may ship; train smaller"
        )


def put(folder: Path, target: Path) -> None:
    """Move a folder into the place of another."""
    if target.exists():
        shutil.rmtree(target)
    folder.replace(target)
    say(f"written: {target}")


def copy_judge(folder: Path, target: Path) -> None:
    """Copy the judge, which its run saves in half precision already."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ("model.safetensors", "config.json"):
        shutil.copyfile(folder / name, target / name)
    say(f"written: {target}, {sum(path.stat().st_size for path in target.iterdir()) / 1e6:.2f} MB")


if __name__ == "__main__":
    sys.exit(main())
