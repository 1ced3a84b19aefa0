#!/usr/bin/env bash
# transformers 5.23.0: configured as Stable Diffusion's text encoders are, it takes a learned word for the prompt's end.
#
# CLIPTextModel pools at the end-of-text token. Where the configuration says eos_token_id 2, as those of Stable Diffusion and of
# SDXL's second encoder do from a mistake of old, it takes the largest id for it: 49407, the highest of the vocabulary. But
# textual inversion adds its word behind, as 49408 and on, and the pooled output is then that of the learned word: whatever
# follows it in the prompt is not in it, as the encoder looks back only. SDXL conditions on that vector, and CLIP's similarity is
# its; the outputs of every token, which cross-attention reads, are right. With eos_token_id at the end token's own id all is
# heard; a comment in modeling_clip.py says so, a message does not. Seen: 30 November 2026.
# What reverie does: 2 is read as the id that is meant, and the first end is pooled at (checkpoints/configs.py, models/clip.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
"$work/venv/bin/python" - <<'PY'
import torch, transformers
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

transformers.utils.logging.set_verbosity_error()
WORDS = "abcdefgh"  # a letter is a word, and a word is a token


def pooled(eos_token_id: int) -> dict[str, float]:
    """Give how much the pooled output changes where a prompt ends in other words, by what stands before them."""
    vocab = {f"{word}</w>": place for place, word in enumerate(WORDS)}
    vocab |= {"<|startoftext|>": len(WORDS), "<|endoftext|>": len(WORDS) + 1}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[], model_max_length=16)
    torch.manual_seed(0)
    encoder = CLIPTextModelWithProjection(CLIPTextConfig(
        vocab_size=len(vocab), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, projection_dim=8,
        max_position_embeddings=16, bos_token_id=len(WORDS), eos_token_id=eos_token_id, pad_token_id=len(WORDS) + 1,
    )).eval()
    tokenizer.add_tokens("<mine>")
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5) if parameter.dim() > 1 else None

    @torch.no_grad()
    def embedded(prompt: str) -> torch.Tensor:
        return encoder(tokenizer(prompt, padding="max_length", return_tensors="pt").input_ids).text_embeds

    return {begun: (embedded(begun + " b c") - embedded(begun + " d e")).abs().max().item() for begun in ("a", "<mine>", "a <mine>")}


old, right = pooled(2), pooled(len(WORDS) + 1)
print("transformers", transformers.__version__, "| what the last words change, eos_token_id 2:", old, "| the end token's:", right)
assert min(right.values()) > 0.1 and old["a"] > 0.1, "a plain prompt's end is not pooled"
assert old["<mine>"] == old["a <mine>"] == 0, "what follows a learned word is heard"
PY
