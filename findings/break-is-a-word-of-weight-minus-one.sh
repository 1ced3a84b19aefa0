#!/usr/bin/env bash
# diffusion-prompt-embedder 0.4.2: BREAK does not break a prompt; it is read as the word "break", with weight -1.
#
# In AUTOMATIC1111, whose syntax the package reads, BREAK fills up the 75 tokens, and what follows is encoded apart. The parser
# marks it as the pair "BREAK" and -1, as there, and its documentation shows that; but get_embeddings_sd15() and
# get_embeddings_sd15_batch() take the mark for text and multiply by its number. So the prompt stays one of 77 places, both parts
# hear each other, and between them stands the word "break", whose outputs of the encoder have their signs turned: a vector that no
# prompt has. Within (a BREAK b:1.2) it is -1.2. Nothing is said. Prompts encoded one by one and joined are as meant.
# Seen: 1 December 2026.
# What reverie does: BREAK begins the next 75 tokens, within brackets as well (generate/prompt.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 numpy==2.4.6 diffusion-prompt-embedder==0.4.2
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

import torch, transformers
from diffusion_prompt_embedder import get_embeddings_sd15, get_embeddings_sd15_batch, parse_prompt_attention
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

transformers.utils.logging.set_verbosity_error()
START, END, LENGTH = 49406, 49407, 77  # of CLIP, which the package writes out
letters = "abcdefghijklmnopqrstuvwxyz"
vocab = {letter: place for place, letter in enumerate(letters)} | {f"{x}</w>": 26 + place for place, x in enumerate(letters)}
tokenizer = CLIPTokenizer(vocab | {"<|startoftext|>": START, "<|endoftext|>": END}, [], model_max_length=LENGTH)
torch.manual_seed(0)
sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
encoder = CLIPTextModel(CLIPTextConfig(**sizes, bos_token_id=START, eos_token_id=END)).eval()


@torch.no_grad()
def embedded(prompt: str, batch: bool = False) -> torch.Tensor:
    if batch:
        return get_embeddings_sd15_batch(tokenizer, encoder, prompts=[prompt])[0]
    return get_embeddings_sd15(tokenizer, encoder, prompt=prompt, pad_last_block=True)[0][0]


found = {prompt: embedded(prompt) for prompt in ("x BREAK y", "x break y", "(x BREAK y:1.2)")}
turned = [round((found["x BREAK y"] / found["x break y"])[place].mean().item(), 3) for place in range(9)]
within = [round((found["(x BREAK y:1.2)"] / found["x break y"])[place].mean().item(), 3) for place in range(9)]
print("diffusion-prompt-embedder", version("diffusion-prompt-embedder"), parse_prompt_attention("x BREAK y"))
print("places", len(found["x BREAK y"]), "| factors of 'x break y':", turned, "| within brackets:", within)
assert parse_prompt_attention("x BREAK y") == [["x", 1.0], ["BREAK", -1.0], ["y", 1.0]], "it is marked otherwise now"
assert len(found["x BREAK y"]) == LENGTH, "it breaks the prompt now"
assert turned == [1, 1, -1, -1, -1, -1, -1, 1, 1], "it is another word or another weight now"
assert within == [1, 1.2, -1.2, -1.2, -1.2, -1.2, -1.2, 1.2, 1], "it is another word or another weight in brackets now"
assert torch.allclose(embedded("x BREAK y", batch=True), found["x BREAK y"], atol=1e-6), "a batch reads it otherwise"
PY
