"""Which other names do the same weights go by? Ours are those of diffusers and transformers of today."""

from __future__ import annotations

# diffusers before 0.17 named the autoencoder's attention after CompVis; files of that time are still about.
OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def same(name: str) -> str:
    """Leave a name as it is."""
    return name


def autoencoder(name: str) -> str:
    """Give today's name of an autoencoder's weight."""
    for old, new in OLD_ATTENTION.items():
        name = name.replace(old, new)
    return name


def text_tower(name: str) -> str:
    """Give the name of a text tower's weight under `text_model.`, which some writers leave out."""
    bare = name.startswith(("embeddings.", "encoder.", "final_layer_norm."))
    return f"text_model.{name}" if bare else name
