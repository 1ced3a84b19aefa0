"""A film's job goes on with kept frames, and a perceptual pace is Python's as it is the command's."""

from __future__ import annotations

from pathlib import Path

import pytest

from reverie.animation.pacing import angle
from reverie.errors import ReverieError
from reverie.jobs.events import Finished, Note, Saved
from reverie.jobs.films import FilmJob
from reverie.media import video
from reverie.pipeline import Pipeline
from reverie.progress import Progress
from reverie.requests.films import Animation
from reverie.similarity.embed import load_clip

FILM = Animation(keyframes=("a bear", "an apple"), frames=5, fps=10, steps=2, seed=3, guidance=1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVERIE_CACHE", str(tmp_path / "cache"))


def test_a_job_that_is_closed_goes_on_with_its_frames(tiny: Pipeline, tmp_path: Path) -> None:
    job = FilmJob(request=FILM, outputs=(tmp_path / "a.gif",))
    events = job.run(lambda _: tiny)
    next(event for event in events if isinstance(event, Progress))
    events.close()  # type: ignore[attr-defined]
    assert not (tmp_path / "a.gif").exists()
    *events, last = job.run(lambda _: tiny)
    assert any(isinstance(event, Note) and "going on" in event.text for event in events)
    assert [event for event in events if isinstance(event, Progress)] == [Progress(k, 5, "frames") for k in range(1, 6)]
    assert Saved(tmp_path / "a.gif") in events
    assert isinstance(last, Finished)
    assert last.record["kept"] > 0
    assert (last.record["frames"], last.record["seconds"]) == (5, 0.5)


def test_a_perceptual_pace_needs_no_distance_in_python(tiny: Pipeline) -> None:
    film = FILM.replace(pace="perceptual")
    told = tiny.animate(film, distance=angle(load_clip().embed_images))
    assert [frame.place for frame in tiny.animate(film)] == [frame.place for frame in told]


def test_a_film_never_replaces_the_one_that_it_is_drawn_over(tiny: Pipeline, tmp_path: Path) -> None:
    own = tmp_path / "own.gif"
    video.write((frame.picture for frame in tiny.animate(FILM)), own, 10)
    request = Animation(keyframes=("a bear",), init_video=str(own), seed=1)
    with pytest.raises(ReverieError, match="is an input and would be written over"):
        FilmJob(request=request, outputs=(own,)).check()
