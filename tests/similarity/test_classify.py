"""Zero-shot classification against its definition restated on transformers, and OpenAI's 80 templates."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from reverie.errors import ReverieError
from reverie.similarity import classify
from reverie.similarity.classify import (
    OPENAI,
    OPENAI_SEVEN,
    TEMPLATES,
    Classifier,
    embed_labels,
    fill_template,
    find_templates,
)
from reverie.similarity.embed import Clip

LABELS = ["bear", "apple", "blue background", "next to"]
SENTENCES = ("a {}", "{} on a background", "an apple next to a {}")


def test_openais_templates() -> None:
    """The 80 of "Prompt Engineering for ImageNet" (openai/CLIP, notebooks), by the hash of their sorted lines."""
    assert len(OPENAI) == len(set(OPENAI)) == 80
    digest = hashlib.sha256("\n".join(sorted(OPENAI)).encode()).hexdigest()
    assert digest == "a8a4822f2921936e2ef07cf2e7a5df69be9532aab2f3f4880156bb03563e2467"
    assert set(OPENAI_SEVEN) <= set(OPENAI)


@torch.no_grad()
def test_probabilities_equal_the_definition_on_transformers(
    clip: Clip, oracle: CLIPModel, clip_folder: Path, pictures: list[Path]
) -> None:
    """Average the normalised embeddings of the templates, normalise again, softmax of scale times cosine."""
    tokenizer, processor = (
        CLIPTokenizer.from_pretrained(clip_folder),
        CLIPImageProcessorPil.from_pretrained(clip_folder),
    )
    rows = []
    for label in LABELS:
        tokens = tokenizer(
            [s.format(label) for s in SENTENCES], padding="max_length", truncation=True, return_tensors="pt"
        )
        pooled = oracle.text_model(**tokens).pooler_output
        rows.append(F.normalize(F.normalize(oracle.text_projection(pooled), dim=-1).mean(0), dim=0))
    from PIL import Image

    pixels = processor([Image.open(file).convert("RGB") for file in pictures], return_tensors="pt")["pixel_values"]
    seen = F.normalize(oracle.visual_projection(oracle.vision_model(pixels).pooler_output), dim=-1)
    expected = (oracle.logit_scale.exp() * seen @ torch.stack(rows).T).softmax(-1)

    found = clip.classify(pictures, LABELS, SENTENCES, top=len(LABELS))
    for told, row in zip(found, expected, strict=True):
        assert {guess.label: guess.probability for guess in told.guesses} == pytest.approx(
            dict(zip(LABELS, row.tolist(), strict=True)), abs=1e-5
        )
        probabilities = [guess.probability for guess in told.guesses]
        assert probabilities == sorted(probabilities, reverse=True)
        assert told.label == LABELS[row.argmax()]
    assert [told.picture for told in found] == [str(file) for file in pictures]


def test_top_k(clip: Clip, pictures: list[Path]) -> None:
    classifier = clip.classifier(LABELS)
    everything = classifier.name(pictures[:2], top=99)
    best = classifier.name(pictures[:2], top=2, batch=1)
    assert [len(told.guesses) for told in everything] == [4, 4]
    for few, all_of_them in zip(best, everything, strict=True):
        assert [g.label for g in few.guesses] == [g.label for g in all_of_them.guesses[:2]]
    with pytest.raises(ReverieError, match="ask for 1 label or more"):
        classifier.name(pictures, top=0)


def test_thousands_of_labels_are_embedded_some_at_a_time(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [f"bear {number}" for number in range(60)]
    whole = clip.classifier(labels, SENTENCES)
    monkeypatch.setattr(classify, "TEXTS_AT_ONCE", 3 * 25)
    events = list(embed_labels(clip, labels, SENTENCES))
    assert [(event.done, event.total) for event in events] == [(25, 60), (50, 60), (60, 60)]
    torch.testing.assert_close(torch.cat([event.rows for event in events]), whole.weights, atol=1e-6, rtol=0)


def test_the_models_own_templates_are_taken(clip: Clip) -> None:
    assert torch.equal(clip.classifier(LABELS).weights, Classifier.of(clip, LABELS, ("a photo of a {}.",)).weights)


def test_results_show_themselves(clip: Clip, pictures: list[Path]) -> None:
    told = clip.classify(pictures[:1], ["<b>", "bear"])[0]
    assert "&lt;b&gt;" in told._repr_html_()
    assert "<b>" not in told._repr_html_()
    assert told.record()["guesses"][0]["label"] == told.label


def test_templates_are_found_by_name_sentence_and_file(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a sketch of a {}\n\n{}, 一张照片\n", encoding="utf-8")
    assert find_templates("openai") is OPENAI
    assert find_templates("a {} in the snow") == ("a {} in the snow",)
    assert find_templates(str(tmp_path / "mine.txt")) == ("a sketch of a {}", "{}, 一张照片")
    assert fill_template("a {}", "{0.__class__}") == "a {0.__class__}"
    (tmp_path / "none.txt").write_text("a sketch\n")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    for given, fault in {
        "clip80": f"choose from {', '.join(TEMPLATES)}",
        str(tmp_path / "none.txt"): "has no place for a label",
        str(tmp_path / "empty.txt"): "holds no templates",
        str(tmp_path / "bytes.txt"): "no text in UTF-8",
    }.items():
        with pytest.raises(ReverieError, match=fault):
            find_templates(given)


def test_nothing_to_choose_from(clip: Clip) -> None:
    with pytest.raises(ReverieError, match="needs a label"):
        clip.classifier([])
