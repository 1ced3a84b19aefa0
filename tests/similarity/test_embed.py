"""`Clip` against transformers: embeddings to 1e-5, cosines to 1e-6; and what its batches and keys promise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

import reverie
from reverie.codecs.clip_images import squash
from reverie.errors import ReverieError
from reverie.requests.references import CLIP_FOLDER, CLIP_NAME
from reverie.similarity.embed import Clip, load_clip

TEXTS = [
    "a bear",
    "an apple next to a bear",
    "",
    "a bear on a blue background and an apple on a blue background",
    "apple",
]


@torch.no_grad()
def test_embeddings_and_cosines_equal_transformers(
    clip: Clip, oracle: CLIPModel, clip_folder: Path, pictures: list[Path]
) -> None:
    processor = CLIPImageProcessorPil.from_pretrained(clip_folder)
    tokens = CLIPTokenizer.from_pretrained(clip_folder)(
        TEXTS, padding="max_length", truncation=True, return_tensors="pt"
    )
    pixels = processor([Image.open(file).convert("RGB") for file in pictures], return_tensors="pt")["pixel_values"]
    theirs = oracle(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=pixels)
    images, texts = clip.embed_images(pictures), clip.embed_texts(TEXTS)
    assert (images - theirs.image_embeds).abs().max() < 1e-5
    assert (texts - theirs.text_embeds).abs().max() < 1e-5
    cosines = theirs.logits_per_image / oracle.logit_scale.exp()
    assert (clip.similarity(pictures, TEXTS).cosines - cosines).abs().max() < 1e-6


def test_embeddings_do_not_depend_on_the_batch(clip: Clip, pictures: list[Path]) -> None:
    whole = clip.embed_images(pictures)
    torch.testing.assert_close(clip.embed_images(pictures, batch=2), whole, atol=1e-6, rtol=0)
    loaded = [Image.open(file) for file in pictures]
    torch.testing.assert_close(clip.embed_images(loaded), whole, atol=1e-6, rtol=0)
    assert whole.norm(dim=1).tolist() == pytest.approx([1] * len(pictures))
    texts = clip.embed_texts(TEXTS, batch=2)  # sorted by length inside, and given back in order
    for row, text in zip(texts, TEXTS, strict=True):
        torch.testing.assert_close(clip.embed_texts([text])[0], row, atol=1e-6, rtol=0)


def test_nothing_gives_nothing(clip: Clip) -> None:
    assert clip.embed_images([]).shape == clip.embed_texts([]).shape == (0, 16)


def test_one_alone_is_no_list(clip: Clip) -> None:
    """Or the letters of "cat" would be three labels."""
    for asked in (
        lambda: clip.similarity("bear.png", ["a bear"]),
        lambda: clip.similarity([], "a bear"),
        lambda: clip.classify([], "cat"),
        lambda: clip.classify([], ["cat", "dog"], "a {}"),
    ):
        with pytest.raises(ReverieError, match=r"lists?, as in"):
            asked()


def test_short_texts_cost_few_positions(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    encode = clip.model.encode_text
    monkeypatch.setattr(clip.model, "encode_text", lambda ids: seen.append(tuple(ids.shape)) or encode(ids))
    clip.embed_texts(["a bear", "an apple next to a bear", "a bear"], batch=2)
    lengths = sorted(len(clip.tokenizer.encode(text)) + 2 for text in ("a bear", "an apple next to a bear"))
    assert seen == [(2, lengths[0]), (1, min(lengths[1], clip.tokenizer.length))]


def test_the_identity_is_that_of_the_contents(clip: Clip, clip_folder: Path, tmp_path: Path) -> None:
    """The same weights in another folder are the same; other weights or another preprocessing are not."""
    assert len(clip.identity) == 32
    for name in ("config.json", "vocab.json", "merges.txt", "preprocessor_config.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((clip_folder / name).read_bytes())
    weights = load_file(clip_folder / "model.safetensors")
    save_file(dict(reversed(weights.items())), tmp_path / "model.safetensors")
    assert load_clip(tmp_path, device="cpu").identity == clip.identity
    settings = json.loads((clip_folder / "preprocessor_config.json").read_text())
    square = {"height": 32, "width": 32}
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({**settings, "size": square, "do_center_crop": False})
    )
    other = load_clip(tmp_path, device="cpu")
    assert other.preprocessing.fit is squash
    weights["visual_projection.weight"][0, 0] += 1e-3
    save_file(weights, tmp_path / "model.safetensors")
    assert len({clip.identity, other.identity, load_clip(tmp_path, device="cpu").identity}) == 3


def test_settings_that_do_not_fit_are_told(clip_folder: Path, tmp_path: Path) -> None:
    for file in clip_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 64, "crop_size": 64}))
    with pytest.raises(ReverieError, match="makes pictures of 64 pixels; the vision tower takes 32"):
        load_clip(tmp_path)


def test_the_bundled_clip() -> None:
    clip = load_clip(device="cpu")
    assert (clip.name, clip.templates, clip.width) == ("reverie-clip", ("{}",), 192)
    for given in (CLIP_FOLDER, CLIP_NAME):
        assert (load_clip(given, device="cpu").templates, load_clip(given, device="cpu").name) == (("{}",), CLIP_NAME)
    alike = clip.similarity(texts=["a bear", "熊", "an apple"]).cosines
    assert alike.shape == (3, 3)
    assert alike[0, 1] > alike[0, 2] + 0.1


def test_a_damaged_picture_is_named(clip: Clip, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 broken")
    with pytest.raises(ReverieError, match=r"broken\.jpg"):
        clip.embed_images([tmp_path / "broken.jpg"])


def test_the_public_name() -> None:
    if not hasattr(reverie, "load_clip"):
        pytest.skip("reverie.load_clip is not exported yet")
    assert reverie.load_clip is load_clip
