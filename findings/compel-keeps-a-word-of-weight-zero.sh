#!/usr/bin/env bash
# compel 2.5.1: of several words of weight 0 that stand apart, each goes on shaping the rest of the prompt.
#
# For every stretch of a weight below 1 compel encodes the prompt once more without it, and takes the mean of all these and of
# the whole prompt, weighted by tan((1 - weight) * pi / 2), which is practically infinite at 0. With one such stretch the mean is
# the prompt without it: whichever word stands there, the rest is the same. With two, it is the mean of the prompt without the
# first and of the prompt without the second, and either holds the other word: changing a word of weight 0 changes the rest again.
# The same dilution acts at every weight: at 0.5 twice, a third of the mean lacks the word, not a half. Words of one weight that
# follow each other are one stretch and leave together. Seen: 30 November 2026.
# What reverie does: a weight multiplies its word's own outputs of the encoder, as A1111's (generate/conditioning.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 diffusers==0.42.1 compel==2.5.1
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

import torch
from compel import Compel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WORDS = "abcdefgh"  # a letter is a word, and a word is a token
vocab = {f"{word}</w>": place for place, word in enumerate(WORDS)}
vocab |= {"<|startoftext|>": len(WORDS), "<|endoftext|>": len(WORDS) + 1}
tokenizer = CLIPTokenizer(vocab=vocab, merges=[], model_max_length=16)
torch.manual_seed(0)
encoder = CLIPTextModel(CLIPTextConfig(
    vocab_size=len(vocab), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    max_position_embeddings=16, bos_token_id=len(WORDS), eos_token_id=len(WORDS) + 1,
)).eval()
for parameter in encoder.parameters():
    if parameter.dim() > 1:
        torch.nn.init.normal_(parameter, std=0.5)
compel = Compel(tokenizer=tokenizer, text_encoder=encoder)


@torch.no_grad()
def heard(prompt: str) -> float:
    """Tell how much the embeddings change where the word at {} is another one."""
    return (compel(prompt.format("a")) - compel(prompt.format("b"))).abs().max().item()


plain, one = heard("{} c d e f"), heard("({})0 c d e f")
two, three = heard("({})0 c (d)0 e f"), heard("({})0 c (d)0 e (f)0")
beside = heard("({} d)0 c e f")
print("compel", version("compel"), "a word's effect: plain", plain, "| of weight 0", one, "| beside another, joined", beside)
print("of weight 0, with another apart:", two, "| with two others apart:", three)
assert plain > 1 and max(one, beside) < 1e-3, "one word of weight 0 is heard"
assert two > 0.1 and three > 0.1, "a word of weight 0 is no longer heard beside another"
PY
