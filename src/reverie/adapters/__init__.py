"""What steers a model from outside, and leaves it as it was? LoRAs, textual inversions, controls."""
