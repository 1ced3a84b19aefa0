"""Are LoRAs and embeddings found by the names that prompts and records give them, and known again by their content?"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from reverie.errors import ReverieError
from reverie.requests.adapter_files import FOLDERS, LoraTag, embeddings, extract, find, loras, parse
from reverie.requests.films import Animation
from reverie.requests.pictures import TextToImage
from reverie.requests.records import KINDS


def safetensors(path: Path, names: tuple[str, ...] = (), **metadata: str) -> Path:
    """Write the header of a safetensors file, by hand, and empty tensors."""
    table = {name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for name in names}
    header = json.dumps(table | {"__metadata__": metadata}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return path


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDERS, raising=False)


def test_tags_are_taken_out() -> None:
    """As A1111 1.10 does: `<(\\w+):([^>]+)>` in modules/extra_networks.py."""
    text, tags, notes = extract("a <lora:ink:0.8>bear<lora:old film>, <lyco:x:0.5:1.0><lora:y:te=0.1:unet=0.2>")
    assert text == "a bear, "
    assert tags == (
        LoraTag("ink", 0.8, 0.8),
        LoraTag("old film", 1.0, 1.0),
        LoraTag("x", 0.5, 1.0),
        LoraTag("y", 0.1, 0.2),
    )
    assert notes == ()


def test_other_words_are_taken_out_and_said() -> None:
    text, tags, notes = extract("a <hypernet:agm:1.1>bear <segment:face>and<lora:ink:1:0.5:lbw=MIDD>")
    assert (text, tags) == ("a bear and", (LoraTag("ink", 1.0, 0.5),))
    assert [note.split(" is left out")[0] for note in notes] == [
        "'<hypernet:agm:1.1>' in the prompt",
        "'<segment:face>' in the prompt",
        "'lbw=MIDD' in '<lora:ink:1:0.5:lbw=MIDD>'",
    ]


@pytest.mark.parametrize("text", ["<lora>", "<lora:", "<b>bear</b>", "a < b > c", "<lora:a:" * 5000])
def test_what_is_no_tag_stays_text(text: str) -> None:
    assert extract(text) == (text, (), ())


@pytest.mark.parametrize(
    ("text", "told"), [("<lora:ink:much>", "has no number for a weight"), ("<lora: :1>", "names no")]
)
def test_a_lora_without_strength_or_name_is_refused(text: str, told: str) -> None:
    with pytest.raises(ReverieError, match=told):
        extract(text)


def test_the_command_lines_form() -> None:
    """The strengths come back as U-Net's, text encoders'; they are written the other way, as in A1111's tags."""
    cases = {
        "ink.safetensors": ("ink.safetensors", 1, 1),
        "a/ink.pt:0.8": ("a/ink.pt", 0.8, 0.8),
        "ink:0.5:1": ("ink", 1, 0.5),
        "ink:-.5": ("ink", -0.5, -0.5),
        "C:\\ink.pt": ("C:\\ink.pt", 1, 1),
        "a:1:2:3": ("a:1", 3, 2),
        "ink:nan": ("ink:nan", 1, 1),
    }
    assert {text: parse(text) for text in cases} == {
        text: (Path(path), unet, words) for text, (path, unet, words) in cases.items()
    }
    with pytest.raises(ReverieError, match=r"^LoRA ':0.8' names no file; give FILE or FILE:STRENGTH$"):
        parse(":0.8")


def test_names_are_found_in_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ReverieError, match=r"^nowhere to look for the LoRA 'ink'; set REVERIE_LORA_DIR to the folder that holds it$"
    ):
        find("ink")
    here, there = (
        safetensors(tmp_path / "here/deep/ink.safetensors"),
        safetensors(tmp_path / "there/ink v2.safetensors"),
    )
    assert find("ink", [tmp_path / "here" / "deep"]) == here
    monkeypatch.setenv(FOLDERS, str(tmp_path / "there"))
    assert find("ink v2") == there
    assert find("ink v2.safetensors", [tmp_path / "here"]) == there
    with pytest.raises(ReverieError, match="did you mean 'ink v2'"):
        find("ink v3")
    monkeypatch.setenv(FOLDERS, str(tmp_path))
    assert find("here/deep/ink") == here  # as SD.Next and ComfyUI name them


def test_an_alias_is_the_headers_name(tmp_path: Path) -> None:
    """A1111 1.10 (extensions-builtin/Lora/networks.py): available_network_aliases by name, then `ss_output_name`."""
    file = safetensors(tmp_path / "my-file-v3.safetensors", ss_output_name="inkwash")
    other = safetensors(tmp_path / "second.safetensors", ss_output_name="my-file-v3")
    (tmp_path / "damaged.safetensors").write_bytes(b"\xff" * 20)
    assert find("inkwash", [tmp_path]) == file
    assert find("my-file-v3", [tmp_path]) == file
    assert find("second", [tmp_path]) == other


def test_records_hold_names_and_sums_and_no_folder(tmp_path: Path) -> None:
    ink, film = safetensors(tmp_path / "one/ink.safetensors", ("a",)), safetensors(tmp_path / "one/film.safetensors")
    cat, dog = (
        safetensors(tmp_path / "words/cat.safetensors"),
        safetensors(tmp_path / "words/dog.safetensors", ("<hund>",)),
    )
    safetensors(tmp_path / "words/unused.safetensors")
    request = TextToImage(
        prompt="a Cat and a <hund> <lora:film:0.4>",
        loras=(f"{ink}:0.5:1",),
        embeddings=(str(tmp_path / "words"),),
        seed=1,
    )
    record = request.to_record()
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (ink, film, cat, dog)}
    assert (record["loras"], record["embeddings"]) == (
        ["ink.safetensors:0.5:1"],
        ["cat.safetensors", "dog.safetensors"],
    )
    assert record["sums"] == sums
    assert str(tmp_path) not in json.dumps(record)
    again = TextToImage(**record, folders=(str(tmp_path / "one"), str(tmp_path / "words")))
    assert loras(again.loras, again.prompts, again.folders) == [(ink, 1, 0.5), (film, 0.4, 0.4)]
    assert embeddings(again.embeddings, again.folders) == [cat, dog]
    assert again.to_record() == record
    elsewhere = TextToImage(**record)
    assert elsewhere.to_record() == record  # though no file is here
    assert hash(elsewhere)


def test_a_request_without_adapters_records_none_of_it() -> None:
    for request in (TextToImage(seed=1), Animation(keyframes=("a bear", "an apple"), seed=1)):
        assert not {"sums", "folders"} & request.to_record().keys()
        assert KINDS[request.kind](**request.to_record()) == request


def test_a_film_records_its_keyframes_loras(tmp_path: Path) -> None:
    ink = safetensors(tmp_path / "ink.safetensors")
    film = Animation(keyframes=("a bear", "an apple <lora:ink:1>"), folders=(str(tmp_path),), seed=1)
    assert film.to_record()["sums"] == {"ink.safetensors": hashlib.sha256(ink.read_bytes()).hexdigest()}
