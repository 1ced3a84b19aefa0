"""The jobs that AUTOMATIC1111's txt2img and img2img become, with what the server's folders hold of styles and files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reverie.errors import ReverieError
from reverie.requests.adapter_files import SUFFIXES
from reverie.requests.base import RANDOM_SEED, random_seed
from reverie.requests.foreign.a1111 import REAL_ESRGAN
from reverie.requests.foreign.a1111_api import Drawing, WebOptions, draft_of, url_of
from reverie.requests.foreign.draft import shorten
from reverie.requests.references import content_of, looking_in
from reverie.requests.templates import add_styles, read_styles
from reverie.server.api import names_in
from reverie.server.dispatcher import Dispatcher
from reverie.server.settings import Settings
from reverie.server.shelf import Shelf

Json = dict[str, Any]

FORMATS = {"png": "png", "jpg": "jpg", "jpeg": "jpg", "webp": "webp"}


def submissions_of(asked: Drawing, options: WebOptions, served: Dispatcher) -> tuple[list[Json], list[str]]:
    """Return the bodies of the jobs, one for each batch, and what of them cannot be honoured."""
    settings = served.settings
    if (total := asked.batch_size * asked.n_iter) > (most := settings.limits.count):
        raise ReverieError(f"n_iter and batch_size ask for {total} pictures; this server allows {most}", field="n_iter")
    styled, unknown = _add_styles(asked, settings)
    with looking_in(*settings.upscalers):
        draft = draft_of(styled, options)
    draft.fields["embeddings"] = _named_embeddings(styled, settings)
    fields = served.shelf.replace_content(draft.fields, asked.save_images)
    body = {"kind": draft.kind.kind, "model": options.sd_model_checkpoint, "dynamic": asked.dynamic()}
    body |= {"options": {"formats": [FORMATS[options.samples_format]], "keep": asked.save_images}}
    bodies = [
        body | {"request": one, "attached": {"job_no": number, "job_count": asked.n_iter}}
        for number, one in enumerate(_batches(fields, asked))
    ]
    return bodies, [*unknown, *draft.notes, *asked.remarks()]


def _batches(fields: Json, asked: Drawing) -> Iterator[Json]:
    """Yield the fields of each batch; its pictures have the seeds that follow those of the batch before."""
    seed = random_seed() if asked.seed == RANDOM_SEED else asked.seed
    for first in range(0, asked.batch_size * asked.n_iter, asked.batch_size):
        if variation := fields.get("variation"):
            yield fields | {"seed": seed, "variation": variation | {"seed": variation["seed"] + first}}
        else:
            yield fields | {"seed": seed + first}


def _add_styles(asked: Drawing, settings: Settings) -> tuple[Drawing, list[str]]:
    """Return what is asked for with its styles in the prompts, and a line for each that is not known."""
    known = {} if settings.styles is None else read_styles(settings.styles)
    unknown = [
        f"styles: {shorten(name)} is not known here" for name in dict.fromkeys(asked.styles) if name not in known
    ]
    named = [name for name in asked.styles if name in known]
    words = add_styles(named, known, asked.prompt, asked.negative_prompt)
    return asked.model_copy(update={"prompt": words["prompt"], "negative_prompt": words["negative"]}), unknown


def _named_embeddings(asked: Drawing, settings: Settings) -> list[str]:
    """Return the textual inversions that the prompts name, as the web UI finds them."""
    said = f"{asked.prompt} {asked.negative_prompt}"
    names = names_in(settings.embeddings)
    return [name for name in names if re.search(rf"(?<!\w){re.escape(Path(name).stem)}(?!\w)", said)]


def upscalers_of(settings: Settings) -> dict[str, str]:
    """Return the files of learned upscalers by the names that the web UI gives them."""
    files = {Path(name).stem: name for name in names_in(settings.upscalers) if name.endswith(SUFFIXES)}
    labels = {stem: label for label, stem in REAL_ESRGAN.items()}
    return {labels.get(stem, stem): name for stem, name in files.items()}


def keep(shelf: Shelf, text: str) -> Path:
    """Keep a picture that is given as base64 or as a data URL."""
    return shelf.add(content_of(url_of(text)))
