#!/usr/bin/env bash
# diffusers 0.42.1: of two embeddings, one whose name begins like the other's is spoiled by it, in a way that chance decides.
#
# A textual inversion of several vectors is written as one word and stands for word, word_1, word_2. The pipeline puts these in
# its place with str.replace(), which also finds the name inside a longer one: with "ink" of three vectors and "inkv2" of two,
# "ink, inkv2" becomes "..., ink ink_1 ink_2v2 ...", so the second embedding's first vector is gone and "v2" is read as text. Which
# name is replaced first follows from the order of a set of strings, so it changes from process to process: two prompts from one
# text, and PYTHONHASHSEED decides the picture. Alone each works. Names that a later version extends are usual for the embeddings
# of negative prompts. Names in brackets, <ink> and <inkv2>, hold no other. Seen: 30 November 2026.
# What reverie does: a name is found as its whole tokens, the longest first, in one pass (adapters/inversion.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 numpy==2.4.6
cat > "$work/prompts.py" <<'PY'
import diffusers
from diffusers.loaders.textual_inversion import TextualInversionLoaderMixin
from transformers import CLIPTokenizer

letters = [chr(code) for code in range(33, 127)]
names = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
tokenizer = CLIPTokenizer({name: place for place, name in enumerate(names)}, [], model_max_length=77)
for word in ("ink", "ink_1", "ink_2", "inkv2", "inkv2_1"):  # as load_textual_inversion() adds them
    tokenizer.add_tokens(word)
texts = ("ink", "inkv2", "ink, inkv2")
print(diffusers.__version__, *(TextualInversionLoaderMixin().maybe_convert_prompt(text, tokenizer) for text in texts), sep="|")
PY
first() { PYTHONHASHSEED=$1 "$work/venv/bin/python" -c 'print(next(token for token in set(["ink", ",</w>", "inkv2"]) if "ink" in token))'; }
for seed in $(seq 0 99); do # two seeds of which the set's order differs
    case $(first "$seed") in ink) short=$seed ;; *) long=$seed ;; esac
    [ -z "${short:-}" ] || [ -z "${long:-}" ] || break
done
for seed in "$short" "$long"; do PYTHONHASHSEED=$seed "$work/venv/bin/python" "$work/prompts.py"; done | tee "$work/found"
"$work/venv/bin/python" - "$work/found" <<'PY'
import sys

lines = [line.rstrip("\n").split("|")[1:] for line in open(sys.argv[1])]
assert all(line[:2] == ["ink ink_1 ink_2", "inkv2 inkv2_1"] for line in lines), "an embedding alone is written otherwise"
assert "ink ink_1 ink_2, inkv2 inkv2_1" not in [line[2] for line in lines], "one of the prompts is right"
assert lines[0] != lines[1], "one text gives one prompt"
PY
