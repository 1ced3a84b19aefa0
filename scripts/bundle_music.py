"""What ships for music? Puts the trained model of music into the package's assets, in half precision, and its judge.

With it goes its student in few steps, a LoRA of train/distill.py. Nothing is replaced unless everything fits.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from bundle import HALF, ROOT, check_finite, check_sizes, copy_judge, put

from reverie.checkpoints.load import LORA, RECOMMENDED, SPECTROGRAM, Recommended, load_folder
from reverie.checkpoints.save import save_folder, write_tensors
from reverie.checkpoints.weights import open_source
from reverie.corpora.music.captions import CHINESE, ENGLISH, MODE_WORDS, TEMPO_WORDS
from reverie.corpora.music.clips import TEMPOS
from reverie.corpora.music.instruments import INSTRUMENTS
from reverie.corpora.music.styles import STYLES
from reverie.errors import ReverieError

LARGEST = 30_000_000  # bytes
GUIDANCE = 3.0
STEPS = 10  # the judge hears as much in clips of 20 (docs/measured/music.md)
FEW = 2  # steps of the student: as many as its phases


def arguments() -> argparse.Namespace:
    """Read the command line."""
    runs = ROOT / "runs"
    parser = argparse.ArgumentParser(description="Put the trained model of music into the package's assets.")
    parser.add_argument(
        "--model", type=Path, default=runs / "music-on" / "export", help="whole model, diffusers' layout"
    )
    parser.add_argument(
        "--turbo", type=Path, default=runs / "music-turbo" / "export" / "music-turbo.safetensors", help="its LoRA"
    )
    parser.add_argument("--judge", type=Path, default=runs / "music-judge" / "export", help="what measures it")
    return parser.parse_args()


def main() -> int:
    """Assemble, check and put into place; return the exit status."""
    options, assets = arguments(), ROOT / "src" / "reverie" / "assets"
    try:
        with tempfile.TemporaryDirectory(prefix=".bundling-", dir=assets) as staging:
            components, target = load_folder(options.model), Path(staging, "music")
            if components.spectrogram is None:
                raise ReverieError(f"{options.model} is no model of music: it has no spectrogram.json")
            check_finite(components.unet, components.autoencoder, *components.text_encoders)
            save_folder(replace(components, recommended=Recommended(guidance=GUIDANCE, steps=STEPS)), target, HALF)
            write_known(target / "concepts.json")
            write_student(options.turbo, target, Path(staging, "music-turbo"))
            check_sizes(Path(staging), LARGEST)
            for name in ("music", "music-turbo"):
                put(Path(staging, name), assets / name)
        copy_judge(options.judge, ROOT / "benchmarks" / "music-judge")
    except (ReverieError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def write_student(lora: Path, teacher: Path, target: Path) -> None:
    """Write what the model in few steps has of its own: what it adds to its teacher, which it shares the rest with."""
    source = open_source(lora)
    target.mkdir()
    write_tensors({name: source.tensor(name).half() for name in source.names()}, target / LORA)
    for name in ("model_index.json", SPECTROGRAM):
        shutil.copyfile(teacher / name, target / name)
    few = Recommended(guidance=1.0, steps=FEW, sampler="euler", schedule="trailing")
    (target / RECOMMENDED).write_text(json.dumps(few.fields(), indent=2) + "\n", encoding="utf-8")


def write_known(file: Path) -> None:
    """Write what the captions of composed music are made of, as `reverie concepts` lists it."""
    rows = [{"kind": "instrument", "en": one.en, "zh": one.zh} for one in INSTRUMENTS.values()]
    rows += [{"kind": "style", "en": one.en, "zh": one.zh} for one in STYLES.values()]
    rows += [{"kind": "tempo", "en": [f"{tempo} bpm"], "zh": [f"{tempo}拍"]} for tempo in TEMPOS]
    words = MODE_WORDS | TEMPO_WORDS
    rows += [{"kind": "word", "en": [en], "zh": [zh]} for en, zh in words.items()]
    rows += [{"kind": "word", "en": ENGLISH, "zh": CHINESE}]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    file.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
