"""A client of a reverie server, with the methods of a loaded model: `reverie.Client("http://127.0.0.1:7860")`."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

import httpx
from PIL import Image

from reverie.errors import ReverieError
from reverie.media.pictures import open_picture
from reverie.requests.base import SampledRequest
from reverie.requests.films import Animation
from reverie.requests.music import Music
from reverie.requests.pictures import ImageToImage, PictureMethods, TextToImage
from reverie.requests.references import Picture, SoundInput, references

if TYPE_CHECKING:
    from reverie.media.sound import Sound
    from reverie.requests.options import MusicOptions, PictureLike

Listener = Callable[[dict[str, Any]], None]


class Client(PictureMethods):
    """Ask a server for what a `Pipeline` makes. Raises ReverieError for what the server refuses, or is not there.

    `token` is the server's key, `model` the one of its models that is asked for, where not its default. `listen` gets
    the events of each job: state, position, progress, preview, note, file.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:7860",
        *,
        token: str | None = None,
        model: str | None = None,
        listen: Listener | None = None,
    ) -> None:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=httpx.Timeout(60, read=None))
        self.model, self.listen = model, listen

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def draw(self, request: TextToImage) -> list[Image.Image]:
        """Draw the pictures that a request asks for; each carries its request in `.info`."""
        return [open_picture(io.BytesIO(data)) for data in self.run(request, formats=["png"])]

    def best(self, request: TextToImage, *, of: int) -> list[Image.Image]:
        """Draw `of` pictures and return the `request.count` most like the prompt, the best first."""
        return [open_picture(io.BytesIO(data)) for data in self.run(request, formats=["png"], best_of=of)]

    def animate(self, animation: Animation, format: str = "mp4") -> bytes:
        """Draw a film and return what its file holds: mp4, webm, gif or webp."""
        (film,) = self.run(animation, formats=[format])
        return film

    def music(self, prompt: str = "", **options: Unpack[MusicOptions]) -> list[Sound]:
        """Play clips of music; the options are the fields of `Music`."""
        from reverie.media import sound  # brings torch, which takes seconds

        made = self.run(Music.of({"prompt": prompt, **options}), formats=["wav"])
        return [sound.read(io.BytesIO(data)) for data in made]

    def run(self, request: SampledRequest, **options: Any) -> list[bytes]:
        """Ask for a request, with the options of `POST /api/jobs`, wait, and return what its files hold.

        Interrupted, it cancels the job.
        """
        fields = json.loads(request.to_json())
        kind = fields.pop("kind")
        for name, reference in references(request):
            if name in fields and not isinstance(reference, Picture):
                fields[name] = {"name": reference.name, "sha256": reference.sha256, "path": self._upload(reference)}
        job = self._json(
            "POST", "/api/jobs", {"kind": kind, "request": fields, "model": self.model, "options": options}
        )
        try:
            for event in self._events(job["id"]):
                if self.listen is not None:
                    self.listen(event)
                job = event.get("job", job)
        except BaseException:
            self._json("DELETE", f"/api/jobs/{job['id']}")
            raise
        if job["state"] != "done":
            raise ReverieError(job["error"] or f"the job was {job['state']}", field=job["field"])
        return [self._answer("GET", file["url"]).content for file in job["files"]]

    def compare(self, pictures: Sequence[PictureLike] = (), texts: Sequence[str] = ()) -> dict[str, Any]:
        """Return rows, columns and the cosines of their CLIP embeddings."""
        return self._json("POST", "/api/compare", {"pictures": _urls(pictures), "texts": list(texts)})

    def classify(self, pictures: Sequence[PictureLike], labels: Sequence[str], *, top: int = 5) -> list[Any]:
        """Return for each picture the likeliest labels with their probabilities."""
        body = {"pictures": _urls(pictures), "labels": list(labels), "top": top}
        return self._json("POST", "/api/classify", body)["guesses"]

    def models(self) -> list[dict[str, Any]]:
        """Return the server's models."""
        return self._json("GET", "/api/models")["models"]

    def _events(self, id: str) -> Iterator[dict[str, Any]]:
        with self._http.stream("GET", f"/api/jobs/{id}/events") as events:
            for line in events.iter_lines():
                if line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))

    def _upload(self, reference: Any) -> str:
        """Send a sound or a film, and return its name on the server."""
        data = _encode(reference) if reference.path is None else Path(reference.path).read_bytes()
        answer = self._answer("POST", "/api/files", files={"file": ("file", data)})
        return answer.json()["files"][0]["name"]

    def _json(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        return self._answer(method, path, json=body).json()

    def _answer(self, method: str, path: str, **content: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **content)
        except httpx.HTTPError as error:
            raise ReverieError(f"no answer from {self._http.base_url}: {error}; is `reverie serve` running?") from error
        if answer.is_success:
            return answer
        try:
            refusal = answer.json()["error"]
        except (ValueError, KeyError, TypeError):
            raise ReverieError(f"{self._http.base_url} answers {answer.status_code}") from None
        raise ReverieError(refusal["message"], field=refusal["param"])


class AsyncClient:
    """The methods of a `Client`, to be awaited: each runs on a thread."""

    def __init__(self, url: str = "http://127.0.0.1:7860", **options: Any) -> None:
        self._client = Client(url, **options)

    def __getattr__(self, name: str) -> Any:
        """Return a method of the client that is awaited."""
        return partial(asyncio.to_thread, getattr(self._client, name))


def _urls(pictures: Sequence[PictureLike]) -> list[str]:
    init = (ImageToImage.of({"init": picture}).model_dump(mode="json")["init"] for picture in pictures)
    return list(init)


def _encode(reference: SoundInput) -> bytes:
    """Return a sound, or the picture of one, that is in memory as a file."""
    held = reference.open()
    if isinstance(held, Image.Image):
        held.save(buffer := io.BytesIO(), "PNG")
        return buffer.getvalue()
    from reverie.media.sound import encode  # brings torch, which takes seconds

    return encode(held, ".flac")
