"""Codecs: between pictures or spectrograms and latents, and pictures as CLIP reads them."""
