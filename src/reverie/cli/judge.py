"""How are drawn pictures judged? The best of several by CLIP, and which word drew what."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import Parameter
from PIL import Image

from reverie.cli.options import Flag, ResultOptions, Whole
from reverie.cli.output import tell_numbered
from reverie.errors import ReverieError
from reverie.media.pictures import save
from reverie.requests.pictures import TextToImage

if TYPE_CHECKING:
    from reverie.pipeline import Pipeline
    from reverie.similarity.embed import Clip


@Parameter(name="*", group="Judge")
@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Choose among the pictures, and explain them."""

    best_of: Whole | None = None
    """Draw so many and keep the --count that CLIP finds most like the prompt, best first."""
    clip: str | None = None
    """CLIP that ranks them: a folder, a file or owner/name on the hub; the bundled one if not given."""
    explain: Flag = False
    """Draw beside each picture, in NAME-explained.png, where the attention to each word was; draws it once more."""

    def asked(self, request: TextToImage, result: ResultOptions) -> TextToImage:
        """Return the request for all that is drawn. Raises ReverieError for options that go ill together."""
        if self.clip is not None and self.best_of is None:
            raise ReverieError("--clip ranks pictures; say of how many with --best-of")
        if result.grid and (self.explain or self.best_of is not None):
            raise ReverieError("--grid is one file of all; leave it out with --best-of and --explain")
        if self.explain and request.refiner is not None:
            raise ReverieError("--explain cannot watch a refiner; leave out the refiner")
        if self.best_of is None:
            return request
        from reverie.similarity.embed import rivals  # brings torch, which takes seconds

        return rivals(request, self.best_of)

    def load(self, device: str) -> Clip | None:
        """Load the CLIP that ranks, where one does."""
        if self.best_of is None:
            return None
        from reverie.similarity.embed import load_clip

        return load_clip(self.clip, device=device)

    def chosen(
        self, pictures: Iterable[Image.Image], request: TextToImage, clip: Clip | None
    ) -> Iterator[tuple[int, Image.Image]]:
        """Yield what is kept, and which of those drawn it is: each as it comes, or the best when all are drawn."""
        if clip is None:
            yield from enumerate(pictures)
            return
        from reverie.similarity.embed import best

        ranked = best(clip, pictures, request)
        scores = ", ".join(f"{one.cosine:.3f}" for one in ranked)
        print(f"likeness to the prompt, the best of {self.best_of}: {scores}", file=sys.stderr)
        yield from ((one.place, one.picture) for one in ranked)


def explain_beside(system: Pipeline, request: TextToImage, path: Path) -> Path:
    """Write which word drew what in a request's picture, next to it; return the file."""
    beside = path.with_name(f"{path.stem}-explained.png")
    explained = system.explain(request)
    save(explained.sheet(), beside)
    tell_numbered(list(explained.maps))
    return beside
