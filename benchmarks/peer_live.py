"""How long does a live picture of 512 pixels take in OpenVINO? The networks of live_networks.py, of static shapes.

Runs in OpenVINO's own environment, with torch and reverie on PYTHONPATH: `live.py` starts it, to convert the networks
into files, and then, in a process that has read nothing else, to draw with them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino
import torch

from live_networks import NOISE, SIGNAL, answer, given, parts, side_options

HINTS = {"float32": "f32", "bfloat16": "bf16"}


def main() -> None:
    """Convert, or draw."""
    options = side_options()
    files = {part: options.folder / f"{options.name}-{part}.xml" for part in given(options.name)}
    if options.what == "write":
        convert(options.folder, options.name, files)
    else:
        draw(files, options.name, options.threads, HINTS[options.dtype])


def convert(folder: Path, name: str, files: dict[str, Path]) -> None:
    """Write each network as a file of OpenVINO's, in float32, of static shapes."""
    if all(file.exists() for file in files.values()):
        return
    network = parts(folder, name)
    for part, tensors in given(name).items():
        with torch.no_grad():
            model = openvino.convert_model(network[part], example_input=tensors)
        shapes = {port: list(tensor.shape) for port, tensor in zip(model.inputs, tensors, strict=True)}
        model.reshape(shapes)
        openvino.save_model(model, files[part], compress_to_fp16=False)


def draw(files: dict[str, Path], name: str, threads: int, hint: str) -> None:
    """Draw for each line of the input."""
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint}
    network = {part: openvino.compile_model(file, "CPU", options) for part, file in files.items()}
    (image,), (noise, t, context) = ([one.numpy() for one in given(name)[part]] for part in ("encode", "predict"))

    def once() -> np.ndarray:
        noisy = SIGNAL * network["encode"]([image])[0] + NOISE * noise
        eps = network["predict"]([noisy, t, context])[0]
        return network["decode"]([(noisy - NOISE * eps) / SIGNAL])[0]

    answer(once)


if __name__ == "__main__":
    main()
