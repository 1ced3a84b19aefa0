"""The models that a request names beside the one that draws: written down by their SHA-256, and compared with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from reverie.adapters.control import control_files
from reverie.adapters.ip_adapter import image_prompt_files
from reverie.requests.adapter_files import files_sum
from reverie.requests.music import Film
from reverie.requests.pictures import TextToImage
from reverie.requests.references import recorded_name
from reverie.system import StableDiffusion, model_files


def with_sum(system: StableDiffusion, film: Film) -> tuple[Film, tuple[str, ...]]:
    """Return how a film is drawn to music with the sum of its model, and a note where that was another file."""
    if film.model is None:
        return film, ()
    name, sum = recorded_name(film.model), files_sum(model_files(film.model, system.dtype))
    return film.replace(sha256=sum), tuple(differences({name: sum}, {name: film.sha256 or sum}))


def with_sums(system: StableDiffusion, request: TextToImage) -> tuple[TextToImage, tuple[str, ...]]:
    """Return a request that knows the sums of its adapters' files and refiner, and notes where one was another file."""
    files = {control.model: control_files(control.model, system.dtype) for control in request.controls}
    for adapter in request.ip_adapters:
        files |= image_prompt_files(adapter)
    if request.refiner is not None:
        files[request.refiner.model] = model_files(request.refiner.model, system.dtype)
    found = {recorded_name(name): files_sum(listed) for name, listed in files.items()}
    before = dict(request.sums)
    return request.replace(sums={**before, **found}) if found else request, tuple(differences(found, before))


def differences(found: Mapping[str, str], before: Mapping[str, str]) -> Iterator[str]:
    """Say which models, by name with their sums, are not those that were written down."""
    for name, sum in found.items():
        if before.get(name, sum) != sum:
            yield f"'{name}' is not the model that it was: its SHA-256 is {sum} and was {before[name]}"
