"""The models that a request names are written down by what they hold."""

from __future__ import annotations

import hashlib
from pathlib import Path

from reverie.generate.notes import with_sum
from reverie.pipeline import Pipeline
from reverie.requests.music import Film


def test_the_model_of_a_film_to_music_is_written_down_and_compared(tiny: Pipeline, tmp_path: Path) -> None:
    tiny.save(tmp_path / "painter")
    film, told = with_sum(tiny, Film(model=str(tmp_path / "painter")))
    assert told == ()
    assert with_sum(tiny, film) == (film, ())
    assert with_sum(tiny, Film()) == (Film(), ())
    _, (told,) = with_sum(tiny, film.replace(sha256="0" * 64))
    assert told == f"'painter' is not the model that it was: its SHA-256 is {film.sha256} and was {'0' * 64}"


def test_a_single_file_has_the_sum_that_other_programs_give_it(tiny: Pipeline, tmp_path: Path) -> None:
    file = tmp_path / "painter.safetensors"
    file.write_bytes(b"anything")
    film, _ = with_sum(tiny, Film(model=str(file)))
    assert film.sha256 == hashlib.sha256(b"anything").hexdigest()
