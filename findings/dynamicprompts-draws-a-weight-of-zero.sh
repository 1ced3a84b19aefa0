#!/usr/bin/env bash
# dynamicprompts 0.31.0: where a variant takes several of its options, one of weight 0 is drawn all the same.
#
# In `{2$$ and $$a|0::b|c}` b has the weight 0, so the only pairs are "a and c" and "c and a". The random sampler draws one
# option after another without putting back; with the option that was drawn it takes away the first weight of that value,
# which is another option's wherever two weights are equal: after c, a's weight goes, and 0 and 1 are left for a and b. So
# half of the prompts are "c and b", and "c and a" never comes; without equal weights the odds are right.
# Seen: 29 November 2026.
# What reverie does: `--dynamic` takes the weight of the option that was drawn (docs/guide/pictures.md).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet dynamicprompts==0.31.0
"$work/venv/bin/python" - <<'PY'
from collections import Counter
from importlib.metadata import version

from dynamicprompts.generators import RandomPromptGenerator


def drawn(template: str) -> Counter[str]:
    return Counter(RandomPromptGenerator(seed=1).generate(template, num_images=400))


equal, apart = drawn("{2$$ and $$a|0::b|c}"), drawn("{2$$ and $$1::a|0::b|2::c}")
print("dynamicprompts", version("dynamicprompts"), dict(equal), "| without equal weights", dict(apart))
assert set(equal) == {"a and c", "c and b"}, "the weight of what was drawn is taken away now"
assert abs(equal["c and b"] - 200) < 60, "the odds changed"
assert set(apart) == {"a and c", "c and a"}, "an option of weight 0 comes without equal weights too"
PY
