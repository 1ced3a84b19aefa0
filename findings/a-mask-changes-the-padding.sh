#!/usr/bin/env bash
# transformers 5.23.0 with diffusers 0.42.1: text_encoder(**tokenizer(prompt)) are not the embeddings that a pipeline draws with.
#
# The tokenizer gives token ids and an attention mask; transformers' way is to hand on both. Stable Diffusion was trained without
# the mask, and its pipelines leave it out: the tokens of padding behind the prompt's end, which the network attends to like
# words, see each other. With the mask they see the prompt alone. Up to the end token both are the same to the bit, as CLIP looks
# back only; every place behind it is another, and for a short prompt these are nearly all of the 77. So prompt_embeds made in the
# usual way (to cache them, to blend two, to train) draw another picture than prompt=, without a word.
# text_encoder(tokens.input_ids) are the pipeline's. Seen: 30 November 2026.
# What reverie does: padding is encoded as in training, without a mask (models/clip.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import diffusers, torch, transformers
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

letters = [chr(code) for code in range(33, 127)]
names = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
tokenizer = CLIPTokenizer({name: place for place, name in enumerate(names)}, [], model_max_length=77)
torch.manual_seed(0)
encoder = CLIPTextModel(
    CLIPTextConfig(
        vocab_size=len(names), hidden_size=64, intermediate_size=128, num_attention_heads=4, num_hidden_layers=4,
        bos_token_id=len(names) - 2, eos_token_id=len(names) - 1, pad_token_id=len(names) - 1,
    )
).eval()  # fmt: skip
pipeline = StableDiffusionPipeline(
    vae=AutoencoderKL(), unet=None, scheduler=DDIMScheduler(), text_encoder=encoder, tokenizer=tokenizer, safety_checker=None,
    feature_extractor=None, requires_safety_checker=False,
)  # fmt: skip
tokens = tokenizer("a cat", padding="max_length", return_tensors="pt")
end = int(tokens.attention_mask.sum())
with torch.no_grad():
    drawn = pipeline.encode_prompt("a cat", "cpu", 1, False)[0]
    other = pipeline.encode_prompt("9 big dogs", "cpu", 1, False)[0]
    natural, plain = encoder(**tokens)[0], encoder(tokens.input_ids)[0]
off = (natural - drawn).abs().amax(-1)[0]
print("transformers", transformers.__version__, "diffusers", diffusers.__version__, "up to the end:", off[:end].max().item())
print("behind it, on average:", off[end:].mean().item(), "two prompts:", (other - drawn).abs().amax(-1)[0, end:].mean().item())
assert torch.equal(plain, drawn), "without the mask the embeddings are others too"
assert off[:end].max() < 1e-5, "the prompt itself is encoded otherwise"
assert off[end + 1 :].min() > 0.05, "padding is the same with and without the mask"
PY
