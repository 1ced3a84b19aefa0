"""`reverie convert`: a model from a single file to a folder, and back."""

from __future__ import annotations

from pathlib import Path

from reverie.cli.options import Flag
from reverie.cli.output import say


def convert(
    source: str,
    target: Path,
    /,
    *,
    dtype: str | None = None,
    config: str | None = None,
    prediction: str | None = None,
    ema: Flag = False,
    force: Flag = False,
) -> None:
    """Write a model as a single file or as a folder in diffusers' layout, to the bit where no dtype is given.

    Parameters
    ----------
    source
        A single file (.safetensors, .ckpt), or a folder in diffusers' layout.
    target
        A name that ends in .safetensors for a single file, or one without suffix for a folder.
    dtype
        float32, float16 or bfloat16; if not given, that of each weight.
    config
        What a single file is, where it does not tell: sd15, sdxl, ...; an unknown name lists them all.
    prediction
        What a single file predicts, where it does not say: eps, v, v_zsnr, x0, edm, edm_v, flow.
    ema
        Take the running averages of the U-Net's weights, where the file has them.
    force
        Write over a target that is there.
    """
    from reverie.checkpoints import convert as checkpoints  # brings torch, which takes seconds
    from reverie.errors import choose
    from reverie.system import DTYPES

    kind = None if dtype is None else choose("dtype", dtype, DTYPES)
    checkpoints.convert(source, target, dtype=kind, config=config, prediction=prediction, ema=ema, overwrite=force)
    say(str(target))
