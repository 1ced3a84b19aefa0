#!/usr/bin/env bash
# peft 0.21.2: add_weighted_adapter() with "dare_linear" merges half of a LoRA and half of the same to twice that LoRA.
#
# DARE (2311.03099) merges differences of weights. Here it, "magnitude_prune" and "linear" merge the A of all and the B of all
# apart, each times the root of its weight, and a layer multiplies the two results: beside what each LoRA adds stand the products
# of one's A with the other's B, which nobody trained ("ties" merges apart too). With a density of 1, where nothing is dropped,
# two random LoRAs end 1.28 times a LoRA's length from their sum, and 1 and 1 of a LoRA and of its like with A and B negated end
# at nothing. Of "linear" alone the documentation says "very rough approximation". "dare_linear_svd" merges the differences, "cat"
# and "svd" add; so does diffusers' set_adapters([a, b]), so a merged LoRA draws other pictures than the two did together. Seen:
# 30 November 2026.
# What reverie does: several LoRAs add what each adds (adapters/deltas.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$work/venv/bin/python" - <<'PY'
import peft, torch
from peft import LoraConfig, get_peft_model

torch.manual_seed(0)
NAMES = ("one", "other", "one again", "one negated twice")
configs = {name: LoraConfig(r=4, lora_alpha=4, target_modules=["0"]) for name in NAMES}
model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(64, 64)), configs["one"], "one")
for name in NAMES[1:]:
    model.add_adapter(name, configs[name])
layer = model.base_model.model[0]
for matrices in (layer.lora_A, layer.lora_B):
    for name in NAMES[:2]:
        torch.nn.init.normal_(matrices[name].weight)
    matrices["one again"].weight.data = matrices["one"].weight.data.clone()
    matrices["one negated twice"].weight.data = -matrices["one"].weight.data


WAYS = ("linear", "dare_linear", "magnitude_prune")
WHOLE = ("cat", "svd", "dare_linear_svd", "magnitude_prune_svd")


def off(names: tuple[str, str], weights: list[float]) -> dict[str, float]:
    """Give how far a merged LoRA lies from the weighted sum, in lengths of the first LoRA."""
    meant, found = sum(w * layer.get_delta_weight(n) for w, n in zip(weights, names)), {}
    for way in (*WAYS, *WHOLE):
        model.add_weighted_adapter(list(names), weights, "merged", combination_type=way, svd_rank=8, density=1.0)
        found[way] = round(((layer.get_delta_weight("merged") - meant).norm() / layer.get_delta_weight("one").norm()).item(), 3)
        model.delete_adapter("merged")
    return found


two, same, negated = off(NAMES[:2], [1.0, 1.0]), off((NAMES[0], NAMES[2]), [0.5, 0.5]), off((NAMES[0], NAMES[3]), [1.0, 1.0])
print("peft", peft.__version__, "off the sum: two LoRAs", two, "\nhalves of one", same, "\none and its like", negated)
assert all(found[way] < 1e-3 for found in (two, same, negated) for way in WHOLE), "merging whole differences is no sum"
assert all(same[way] == 1 and negated[way] == 2 and two[way] > 1 for way in WAYS), "they add, or err in another way"
PY
