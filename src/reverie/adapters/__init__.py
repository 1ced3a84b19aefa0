"""LoRAs, inversions, ControlNets, T2I- and IP-Adapters: what steers a model from outside, and leaves it as it was."""
