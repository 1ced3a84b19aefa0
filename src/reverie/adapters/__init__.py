"""LoRAs, textual inversions and ControlNets: what steers a model from outside, and leaves it as it was."""
