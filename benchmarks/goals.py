"""What does issue 7 want at least, how many times as fast as each peer? On two AVX2 cores, in float32."""

from __future__ import annotations

# By row and peer.
GOALS = {
    ("SD 1.5 U-Net step, 256 px", "diffusers"): 1.9,
    ("SD 1.5 U-Net step, 512 px", "diffusers"): 1.4,
    ("SD 1.5 U-Net step, 256 px", "OpenVINO"): 1.05,
    ("SD 1.5 U-Net step, 512 px", "OpenVINO"): 1.15,
    ("SD 1.5 U-Net step, 256 px", "diffusers, compiled and frozen"): 1.2,
    ("SD 1.5 U-Net step, 256 px", "stable-diffusion.cpp"): 2.5,
    ("SD 1.5 U-Net step, 256 px", "the floor"): 1 / 1.1,
    ("SD 1.5 U-Net step, 512 px", "the floor"): 1.0,
    ("SD 1.5 VAE decode, 512 px", "diffusers"): 1.5,
    ("SD 1.5 prompt to file, cold, 256 px, 4 steps", "diffusers"): 1.7,
}
