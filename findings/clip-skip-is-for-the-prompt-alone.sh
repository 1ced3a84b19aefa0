#!/usr/bin/env bash
# diffusers 0.42.1 with transformers 5.23.0: clip_skip skips for SDXL's prompt and not for its negative prompt; SD 1 and 2 raise.
#
# encode_prompt() of StableDiffusionXLPipeline takes the prompt's embeddings from the layer that clip_skip names, and the negative
# prompt's from the last but one whatever it is. So one text given as both, which cancels without clip_skip, no longer does:
# guidance pushes along the difference of two layers, in every step. AUTOMATIC1111 and ComfyUI, whose settings people bring
# along, skip for both; ComfyUI's -3 is clip_skip=1 here. To have that, encode the negative prompt as a prompt, and give
# it as negative_prompt_embeds. StableDiffusionPipeline asks for text_encoder.text_model.final_layer_norm, which text encoders
# of this transformers no longer have: every clip_skip is an AttributeError, 0 too. Seen: 30 November 2026.
# What reverie does: `--clip-skip` is for both prompts; a replay of such arguments notes it (docs/compatibility.md).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import diffusers, torch, transformers
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

letters = [chr(code) for code in range(33, 127)]
names = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
tokenizer = CLIPTokenizer({name: place for place, name in enumerate(names)}, [], model_max_length=77)
config = CLIPTextConfig(
    vocab_size=len(names), hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=4, projection_dim=8,
    bos_token_id=len(names) - 2, eos_token_id=len(names) - 1, pad_token_id=len(names) - 1,
)  # fmt: skip
torch.manual_seed(0)
first, second = CLIPTextModel(config).eval(), CLIPTextModelWithProjection(config).eval()
shared = {"vae": AutoencoderKL(), "unet": None, "text_encoder": first, "tokenizer": tokenizer}
shared["scheduler"] = DDIMScheduler(clip_sample=False, steps_offset=1)
small = StableDiffusionPipeline(**shared, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
large = StableDiffusionXLPipeline(**shared, text_encoder_2=second, tokenizer_2=tokenizer)


@torch.no_grad()
def encoded(pipeline: StableDiffusionPipeline, skip: int | None) -> list[torch.Tensor]:
    """Give the embeddings of one text, as the prompt and as the negative prompt."""
    text = {"prompt": "a red cat", "negative_prompt": "a red cat"}
    return pipeline.encode_prompt(
        **text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True, clip_skip=skip
    )[:2]  # fmt: skip


(prompt, negative), (skipped, kept) = encoded(large, None), encoded(large, 1)
pairs = {"both, without": (prompt, negative), "the prompt": (prompt, skipped), "the negative": (negative, kept)}
found = {name: (a - b).abs().max().item() for name, (a, b) in (pairs | {"both, with it": (skipped, kept)}).items()}
refused = {}
for skip in (None, 0, 1):
    try:
        encoded(small, skip)
    except AttributeError as error:
        refused[skip] = str(error)
print("diffusers", diffusers.__version__, "transformers", transformers.__version__, "SDXL, what clip_skip moves:", found)
print("SD 1 and 2:", refused)
assert found["both, without"] == 0 < 0.1 < found["the prompt"], "clip_skip skips nothing, or one text is read in two ways"
assert found["the negative"] == 0 < 0.1 < found["both, with it"], "the negative prompt skips too now"
assert [*refused] == [0, 1], "SD 1 and 2 skip layers now"
PY
