#!/usr/bin/env bash
# diffusers 0.42.1 with transformers 5.23.0: an embedding is heard inside every word that holds its name.
#
# load_textual_inversion() adds the name to the tokenizer as a word that may begin and end anywhere (AddedToken with
# single_word=False). So with an embedding "art" loaded, "a party" is read as "p", the embedding, "y": the prompt has lost its
# word and gained a style, and pictures change that never asked for it. Loading is enough, the embedding need not be named.
# AUTOMATIC1111 and ComfyUI match whole tokens or ask for "embedding:". Names in brackets, <art>, are in no word.
# tokenizer.add_tokens(AddedToken(name, single_word=True)) before loading leaves words whole. Seen: 30 November 2026.
# What reverie does: a name is found as its whole tokens, as in AUTOMATIC1111 (adapters/inversion.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import diffusers, torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


def pipeline_with(**embeddings: int) -> StableDiffusionPipeline:
    """Make a pipeline whose tokenizer knows single letters, and load embeddings of so many vectors each."""
    letters = [chr(code) for code in range(33, 127)]
    names = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer({name: place for place, name in enumerate(names)}, [], model_max_length=77)
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(names), hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=2,
            bos_token_id=len(names) - 2, eos_token_id=len(names) - 1, pad_token_id=len(names) - 1,
        )
    )  # fmt: skip
    made = StableDiffusionPipeline(
        vae=AutoencoderKL(), unet=None, scheduler=DDIMScheduler(), text_encoder=encoder, tokenizer=tokenizer,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    for name, vectors in embeddings.items():
        made.load_textual_inversion({name: torch.randn(vectors, 8)}, token=name)
    return made


without, loaded, bracketed = (pipeline_with(**names).tokenizer for names in ({}, {"art": 1}, {"<art>": 1}))
read = {text: loaded.tokenize(text) for text in ("art", "a party", "a smart start")}
print("diffusers", diffusers.__version__, read)
assert read["art"] == ["art"], "the embedding is not heard where it is named"
assert bracketed.tokenize("a party") == without.tokenize("a party"), "a name in brackets is heard too"
assert ["".join(tokens).count("art") for tokens in read.values()] == [1, 1, 2], "another number of words"
assert all("art" in tokens for tokens in read.values()), "words are left whole now"
PY
