"""The settings that other programs leave in pictures, films and sounds, as requests, with what cannot be honoured."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from reverie.errors import ReverieError
from reverie.media.pictures import PARAMETERS
from reverie.requests.foreign import a1111, comfyui, diffusers, invokeai, programs
from reverie.requests.foreign.draft import Draft
from reverie.requests.texts import Carrier, json_object

DAMAGE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def read_draft(carrier: Carrier) -> Draft | None:
    """Read the first of a file's texts that is understood; a file may carry those of several programs.

    Returns None where it holds no settings. Raises ReverieError, the first complaint, where it holds some and none is
    understood.
    """
    complaint: ReverieError | None = None
    for read in _readings(carrier):
        try:
            if (draft := read()) is not None:
                return draft
        except ReverieError as error:
            complaint = complaint or error
        except DAMAGE as error:
            complaint = complaint or ReverieError(f"the settings in the file are damaged: {error!r}")
    if complaint is not None:
        raise complaint
    return None


def _readings(carrier: Carrier) -> Iterator[Callable[[], Draft | None]]:
    """Yield what may read a file's texts, those first that say the most."""
    texts = carrier.texts
    if text := texts.get("invokeai_metadata"):
        yield lambda: invokeai.read(_need_object(text))
    if old := texts.get("sd-metadata"):
        yield lambda: invokeai.read_old(_need_object(old))
    if dream := texts.get("Dream"):
        yield lambda: invokeai.read_dream(dream)
    for name in (PARAMETERS, "prompt"):
        if found := texts.get(name):
            yield lambda found=found, name=name: _read_text(found, name, carrier)  # type: ignore[misc]
    yield lambda: programs.read(texts) or diffusers.read(texts)
    for name in ("UserComment", "Comment", "comment", "Description", "generation_data"):
        if found := texts.get(name):
            yield lambda found=found, name=name: _read_text(found, name, carrier)  # type: ignore[misc]
    for name, found in texts.items():  # some programs write one JSON object under a name of their own
        if found.lstrip().startswith("{") and name not in (PARAMETERS, "prompt", "workflow"):
            yield lambda found=found: _read_object(json_object(found) or {}, carrier)  # type: ignore[misc]


def _read_text(text: str, name: str, carrier: Carrier) -> Draft | None:
    """Read a text of JSON or of AUTOMATIC1111's. Raises ReverieError for JSON that is nobody's, or damaged."""
    data = json_object(text)
    if data is not None:
        draft = _read_object(data, carrier)
        if draft is None and name in (PARAMETERS, "prompt"):
            names = ", ".join(list(data)[:4]) or "nothing"
            raise ReverieError(f"the JSON in '{name}' is of no program that is known (it holds {names})")
        return draft
    if name == "prompt":
        if text.lstrip().startswith("{"):
            raise ReverieError(f"the settings in the file are damaged: {text[:40]!r} is no JSON object")
        return None
    draft = a1111.read(text)
    if draft is None and text.lstrip().startswith("{"):
        raise ReverieError(f"the settings in the file are damaged: {text[:40]!r} is no JSON object")
    return draft


def _read_object(data: dict[str, object], carrier: Carrier) -> Draft | None:
    """Read JSON by what it holds: a graph, or the settings of a program."""
    inner = data.get("prompt")
    if isinstance(inner, str) and "class_type" in inner:  # films' and sounds' comment: the graph as text within JSON
        inner = json_object(inner)
    for graph in (data, inner):
        if isinstance(graph, dict) and comfyui.is_graph(graph):
            return comfyui.read(graph, carrier.size)
    if "positive_prompt" in data:
        return invokeai.read(data)
    return programs.read(data) or diffusers.read(data)


def _need_object(text: str) -> dict[str, object]:
    data = json_object(text)
    if not data:
        raise ReverieError(f"the settings in the file are damaged: {text[:40]!r} is no JSON object")
    return data
