#!/usr/bin/env bash
# transformers 5.23.0: of clips that are all short, CLAP takes one at random for a long one, and hears it otherwise.
#
# CLAP with fusion (laion/clap-htsat-fused, and ClapFeatureExtractor as it comes) hears clips above 10 seconds as a whole beside
# three pieces, and is told which by is_longer. Where no clip of a batch is longer, ClapFeatureExtractor marks one, by numpy's
# global generator: the same clip, the same weights, alone or in a batch, have another embedding by chance, and so another score
# beside the prompt. A single short clip is always the one that is marked, so it never has the embedding that it mostly has in a
# batch. Seed numpy, or set is_longer to False oneself. Seen: 30 November 2026. What reverie does: its music is judged by a network of its own, which draws nothing at random.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import numpy as np
import torch
import transformers
from transformers import ClapAudioConfig, ClapAudioModelWithProjection, ClapFeatureExtractor

torch.manual_seed(0)
model = ClapAudioModelWithProjection(ClapAudioConfig(
    enable_fusion=True, patch_embeds_hidden_size=16, hidden_size=32, depths=[1, 1], num_attention_heads=[2, 2], projection_dim=16,
)).eval()
extractor = ClapFeatureExtractor()
random = np.random.default_rng(0)
clips = [random.standard_normal(5 * 48000).astype(np.float32) / 10 for _ in range(3)]


def heard(clips: list[np.ndarray], seed: int, mark: bool = True) -> tuple[list[bool], torch.Tensor]:
    """Embed clips, with one of them marked as the extractor does, or with none."""
    np.random.seed(seed)
    inputs = extractor(clips, sampling_rate=48000, return_tensors="pt")
    longer = inputs["is_longer"] if mark else torch.zeros_like(inputs["is_longer"])
    with torch.no_grad():
        found = model(input_features=inputs["input_features"], is_longer=longer).audio_embeds
    return longer.flatten().tolist(), found / found.norm(dim=-1, keepdim=True)


marks, cosines = [], []
_, plain = heard(clips, 0, mark=False)
for seed in range(6):
    longer, found = heard(clips, seed)
    marks.append(longer.index(True))
    assert sum(longer) == 1
    for place, likeness in enumerate((plain * found).sum(-1).tolist()):
        cosines.append((place == marks[-1], likeness))
alone = [heard(clips[:1], seed)[0] for seed in range(3)]
print("transformers", transformers.__version__, "marked as long, of three clips of 5 s:", marks, "alone:", alone,
      "least likeness of others", min(c for marked, c in cosines if not marked),
      "greatest of the marked", max(c for marked, c in cosines if marked))
assert len(set(marks)) > 1 and alone == [[True]] * 3, "short clips are not marked any more"
assert all((likeness < 0.9999) == marked for marked, likeness in cosines), "the mark changes nothing now"
PY
