"""LoRAs, textual inversions, ControlNets and IP-Adapters: what steers a model from outside, and leaves it as it was."""
