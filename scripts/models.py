"""Make the bundled models of pictures from nothing: every recipe in turn, as far as it is not done yet.

`python scripts/models.py` (or `make models`) goes on where it was stopped, and tells how long each recipe took, in
minutes of the processor and of the clock. At last it puts everything into the package, see bundle.py.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs"
REVERIE = Path(sys.executable).with_name("reverie")
ORDER = (
    *("clip", "autoencoder", "features", "decoder"),
    *("unet", "unet-pairs", "unet-common", "unet-more", "everyday", "enlarge", "everyday-on", "forgiving"),
    *("everyday-more", "mending", "everyday-long", "mending-long", "everyday-again", "everyday-fresh", "mending-fresh"),
    *("everyday-anew", "mending-anew"),
    *("honest-judge", "turbo", "turbo-anew", "patched", "ip-adapter"),
)
SAME_LATENTS = {  # as those of an earlier run, which are copied
    **{"enlarge": "everyday", "forgiving": "everyday-on"},
    **{"everyday-again": "everyday-long", "turbo": "everyday-fresh", "turbo-anew": "everyday-anew"},
}
DRAWINGS = RUNS / "noto" / "package"  # where corpora/drawings.py looks


def main() -> int:
    """Run what is missing; return the exit status of the first command that fails, or 0."""
    RUNS.mkdir(exist_ok=True)
    if not DRAWINGS.is_dir() and (status := fetch_drawings()):
        return status
    for name in ORDER:
        out = RUNS / name
        if (out / "export").is_dir():
            continue
        if (earlier := SAME_LATENTS.get(name)) and not (out / "latents.safetensors").exists():
            out.mkdir(exist_ok=True)
            shutil.copyfile(RUNS / earlier / "latents.safetensors", out / "latents.safetensors")
        resume = ["--resume"] if (out / "checkpoint.pt").exists() else []
        start = time.monotonic()
        command = [str(REVERIE), "train", f"recipes/{name}.toml", "--out", str(out), *resume]
        if status := subprocess.run(command, cwd=ROOT, check=False).returncode:
            return status
        sys.stderr.write(f"{name}: {(time.monotonic() - start) / 60:.0f} minutes\n")
    return subprocess.run([sys.executable, "scripts/bundle.py"], cwd=ROOT, check=False).returncode


def fetch_drawings() -> int:
    """Fetch the vector drawings of the emoji from npm and unpack them."""
    folder = DRAWINGS.parent
    folder.mkdir(parents=True, exist_ok=True)
    status = subprocess.run(["npm", "pack", "@iconify-json/noto"], cwd=folder, check=False).returncode
    for packed in folder.glob("*.tgz"):
        shutil.unpack_archive(packed, folder, filter="data")
    return status


if __name__ == "__main__":
    sys.exit(main())
