"""How are two sides compared fairly? In turns, in the same minute, and told with the machine."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

PROMPT, GUIDANCE = "a bear on a blue background", 5.0  # what both sides are asked to draw
PAUSE = 0.05  # seconds between two looks at a process's memory
# What is wanted at least, how many times as fast as the peer, by row and peer; on two AVX2 cores, in float32.
GOALS = {
    ("SD 1.5 U-Net step, 256 px", "diffusers"): 1.9,
    ("SD 1.5 U-Net step, 512 px", "diffusers"): 1.4,
    ("SD 1.5 U-Net step, 256 px", "OpenVINO"): 1.05,
    ("SD 1.5 U-Net step, 512 px", "OpenVINO"): 1.15,
    ("SD 1.5 U-Net step in bfloat16, 256 px", "OpenVINO"): 1.1,
    ("SD 1.5 U-Net step in bfloat16, 512 px", "OpenVINO"): 1.15,
    ("SD 1.5 U-Net step in int8, 256 px", "OpenVINO"): 1.1,
    ("SD 1.5 U-Net step in int8, 512 px", "OpenVINO"): 1.1,
    ("SD 1.5 U-Net step, 256 px", "diffusers, compiled and frozen"): 1.2,
    ("SD 1.5 U-Net step, 256 px", "stable-diffusion.cpp"): 2.5,
    ("SD 1.5 U-Net step, 256 px", "the floor"): 1 / 1.1,
    ("SD 1.5 U-Net step, 512 px", "the floor"): 1.0,
    ("SD 1.5 VAE decode, 512 px", "diffusers"): 1.5,
    ("SD 1.5 prompt to file, cold, 256 px, 4 steps", "diffusers"): 1.7,
    ("SD 1.5 prompt to file, cold, 512 px, 20 steps", "diffusers"): 1.45,
    ("SD 1.5 prompt to file, cold, 512 px, 20 steps", "OpenVINO"): 1.2,
}
# By name: what torch's own kernels, oneDNN (OpenVINO's too) and MKL read from the environment when they load.
ISAS = {
    "native": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}


@dataclass
class Row:
    """Hold what one row of the table measured, round by round: seconds or MiB of either side, lower is better."""

    name: str
    unit: str = "s"
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    peer: str = "diffusers"
    note: str = ""

    @property
    def gain(self) -> float | None:
        """Divide their median by ours: above 1 we are ahead. None where there is no peer."""
        return statistics.median(self.theirs) / statistics.median(self.ours) if self.theirs else None

    @property
    def noise(self) -> tuple[float, float] | None:
        """Return the least and the largest gain of a single round: what differs by less says nothing."""
        gains = [theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=False)]
        return (min(gains), max(gains)) if len(gains) > 1 else None

    @property
    def goal(self) -> float | None:
        """Return the gain that is wanted at least."""
        return GOALS.get((self.name, self.peer))


def restrict(name: str) -> None:
    """Start this process anew with an instruction set's variables where it lacks them; its children inherit them."""
    if any(os.environ.get(key) != value for key, value in ISAS[name].items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ISAS[name]})


def seconds(action: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def alternate(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> tuple[list[float], list[float]]:
    """Call the two in turns, A B A B; each returns its own measurement."""
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    return [a for a, _ in pairs], [b for _, b in pairs]


@dataclass(frozen=True)
class Run:
    """Tell what one process cost: wall-clock seconds, its largest resident set in MiB, and what it printed."""

    seconds: float
    peak_mib: float
    output: str


def run(command: Sequence[str], **environment: str) -> Run:
    """Run a process to its end. Raises RuntimeError with its last words where it fails."""
    environment = {**os.environ, **environment}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # neither side should compile its sources every time
    with tempfile.TemporaryFile("w+") as said, ThreadPoolExecutor() as watcher:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment)
        peak = watcher.submit(peak_of, process)
        process.wait()
        taken = time.perf_counter() - start
        said.seek(0)
        output = said.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{output[-2000:]}")
    return Run(taken, peak.result(), output)


def peak_of(process: subprocess.Popen) -> float:
    """Watch a process to its end and return its largest resident set in MiB; its rusage counts ours before exec too."""
    peak = 0.0
    while process.returncode is None and (now := peak_by_now(process.pid)) is not None:
        peak = now or peak  # a process that ended has none
        time.sleep(PAUSE)
    return peak


def peak_by_now(pid: int) -> float | None:
    """Return the largest resident set of a process up to now, in MiB; 0 once it has ended, None where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


class Remote:
    """Hold a peer that lives in an environment of its own: it answers every line with the seconds that a call took.

    `said` is what it says once it is ready.
    """

    def __init__(self, command: Sequence[str], **environment: str) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        self.said = self._answer("ready").removeprefix("ready").strip()

    def seconds(self, clock: str = "wall") -> float:
        """Let it make one call and return how long that took: by the wall's clock, or by the processor's."""
        assert self.process.stdin is not None
        self.process.stdin.write("again\n")
        self.process.stdin.flush()
        wall, processor = self._answer("").split()
        return float(processor if clock == "cpu" else wall)

    def _answer(self, start: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(start):
                return line
        raise RuntimeError(f"the peer ended with {self.process.wait()}")

    def close(self) -> None:
        """Let it end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def borrowed() -> str:
    """Return the PYTHONPATH by which a peer in an environment of its own borrows torch and reverie of this one."""
    return os.pathsep.join(
        filter(None, [str(Path(__file__).parent), str(Path(torch.__file__).parents[1]), *sys.path[1:]])
    )


def machine() -> dict[str, str]:
    """Describe the processor, its load and the versions that were measured."""
    from importlib.metadata import version

    cpuinfo, told = Path("/proc/cpuinfo"), "ONEDNN_MAX_CPU_ISA" in os.environ
    models = [
        line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
    ]
    return {
        "processor": models[0] if models else platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability() + (" (told so)" if told else ""),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "load": f"{os.getloadavg()[0]:.1f}",
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "diffusers", "transformers")},
    }
