"""Models from the Hugging Face hub: from its cache where they are whole there, else fetched into it.

The cache is that of huggingface_hub, which other programs share; HF_HOME, HF_HUB_OFFLINE, HF_TOKEN and HF_ENDPOINT are
honoured as it does. It is imported when it is needed, as most models are on the disk. A single file holds no tokenizer:
it is found on the user's disk, else on the hub.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from reverie.checkpoints.load import STEMS, TRANSFORMERS_STEM
from reverie.checkpoints.weights import read_json
from reverie.errors import ReverieError
from reverie.tokenizer import Tokenizer

INDEX = "model_index.json"
# Of a tokenizer, either all of the first or all of the second; and what else there is.
VOCABULARIES = (("vocab.json", "merges.txt"), ("tokenizer.json",))
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
SINGLE = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")  # the better ones first
HALF = "fp16"  # taken where there is nothing else, as reverie converts
NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:/(?P<file>[\w.-]+(?:/[\w.-]+)*))?", re.ASCII)
REVISION = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)*", re.ASCII)
MAIN = "main"
VARIABLE = "REVERIE_TOKENIZER"
OPENAI = "openai/clip-vit-large-patch14"
MERGES = "bpe_simple_vocab_16e6.txt.gz"  # OpenAI's own form, which the packages clip and open_clip carry
HELP = (
    f"a single file holds no vocabulary; put vocab.json and merges.txt of {OPENAI} beside it, "
    f"or give their folder in {VARIABLE}"
)
PATIENCE = 5.0  # seconds to wait for the hub's first answer


@dataclass(frozen=True)
class Download:
    """Tell how far fetching is, in bytes over all files, and which file is under way."""

    file: str
    done: int
    total: int


Report = Callable[[Download], None]


def no_report(download: Download) -> None:
    """Tell nobody."""


def is_name(text: str) -> bool:
    """Tell whether a text could name a model on the hub, `owner/name`, or a file there, `owner/name/file`."""
    match = NAME.fullmatch(text)
    if match is None or match["repo"].endswith(SINGLE):  # models/x.safetensors is a file that is not there
        return False
    return ".." not in text and not (match["file"] or "").startswith(".")


def find(name: str, *, revision: str | None = None, variant: str | None = None, report: Report = no_report) -> Path:
    """Return the folder or file of a model, fetching what is not in the cache.

    A folder in diffusers' layout where the repository holds one, else its one checkpoint; `owner/name/file` names one
    of several. `revision` is a branch, tag or commit, `variant` the precision of the weights, such as fp16. What is
    whole in the cache is not asked for again. Raises ReverieError where there is no such model, or no way to it.
    """
    repo, file = _split(name)
    if file is not None:
        return fetch(repo, [file], revision=revision, report=report) / file
    place = _find_cached(repo, revision, variant)
    if place is None:
        sizes = _list(repo, revision)
        wanted = _list_files(repo, revision, variant, sizes)
        _download(repo, revision, {name: sizes[name] for name in wanted}, report)
        place = _find_cached(repo, revision, variant)
    if place is None:
        raise ReverieError(f"'{repo}' changed while it was fetched; run it again")
    return place


def fetch(repo: str, files: Iterable[str], *, revision: str | None = None, report: Report = no_report) -> Path:
    """Return the folder of a repository, owner/name, with at least these files of a `revision` of it.

    `report` hears of each piece that is fetched. Raises ReverieError as `find` does.
    """
    files = list(files)
    snapshot = _snapshot(repo, revision)
    if snapshot is not None and all((snapshot / file).is_file() for file in files):
        return snapshot
    sizes = _list(repo, revision)
    for file in files:
        if file not in sizes:
            raise ReverieError(f"'{repo}' holds no file '{file}'{_at(revision)}; {_offer(sizes)}")
    return _download(repo, revision, {file: sizes[file] for file in files}, report)


def _split(name: str) -> tuple[str, str | None]:
    match = NAME.fullmatch(name)
    if match is None or not is_name(name):
        raise ReverieError(f"'{name}' is no name on the hub; write owner/name, or owner/name/file for one file of it")
    return match["repo"], match["file"]


def _snapshot(repo: str, revision: str | None) -> Path | None:
    """Return the folder of the cache with a revision's files, as many as there are."""
    from huggingface_hub import constants

    if revision is not None and not REVISION.fullmatch(revision):
        raise ReverieError(f"revision '{revision}' is not possible; give a branch, a tag or a commit")
    root = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    reference = root / "refs" / (revision or MAIN)
    commit = reference.read_text().strip() if reference.is_file() else revision or MAIN
    snapshot = root / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def _find_cached(repo: str, revision: str | None, variant: str | None) -> Path | None:
    """Return a model's folder or file in the cache where all of it is there."""
    snapshot = _snapshot(repo, revision)
    if snapshot is None:
        return None
    names = {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()}
    try:
        if INDEX not in names:
            return snapshot / single_file(names, variant)
        folder_files(names, read_json(snapshot / INDEX), variant)
    except LookupError:
        return None
    return snapshot


def _list_files(repo: str, revision: str | None, variant: str | None, sizes: Mapping[str, int]) -> list[str]:
    """List the files to fetch; for a folder its index is fetched first, which names its parts."""
    try:
        if INDEX not in sizes:
            return [single_file(sizes, variant)]
        snapshot = _download(repo, revision, {INDEX: sizes[INDEX]}, no_report)
        return folder_files(sizes, read_json(snapshot / INDEX), variant)
    except LookupError as error:
        raise ReverieError(f"'{repo}'{_at(revision)} {error.args[0]}") from None


def _list(repo: str, revision: str | None) -> dict[str, int]:
    """Ask the hub for a repository's files and their sizes in bytes."""
    from huggingface_hub import HfApi

    with _explain_errors(repo, revision):
        info = HfApi().model_info(repo, revision=revision, timeout=PATIENCE, files_metadata=True)
    return {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}


def _download(repo: str, revision: str | None, sizes: Mapping[str, int], report: Report) -> Path:
    """Fetch files into the cache, where each appears when it is whole, and return the folder that they are in."""
    from huggingface_hub import hf_hub_download

    total, done = sum(sizes.values()), 0
    snapshot = Path()
    for file, size in sizes.items():
        before = done

        def tell(count: int, file: str = file) -> None:
            nonlocal done
            done += count
            report(Download(file, done, total))

        with _explain_errors(repo, revision):
            path = hf_hub_download(repo, file, revision=revision, etag_timeout=PATIENCE, tqdm_class=_bar(tell))
        done = before + size
        report(Download(file, done, total))
        snapshot = Path(path).parents[file.count("/")]
    return snapshot


def _bar(tell: Callable[[int], None]) -> type[Any]:
    """Make a class as huggingface_hub wants it for progress, which shows nothing and passes the bytes on."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **{**kwargs, "disable": True})
            tell(kwargs.get("initial") or 0)

        def update(self, n: float | None = 1) -> bool | None:
            tell(int(n or 0))
            return None

    return Bar


@contextmanager
def _explain_errors(repo: str, revision: str | None) -> Iterator[None]:
    """Turn what goes wrong between here and the hub into one line that says what to do."""
    from huggingface_hub import constants, errors

    if constants.HF_HUB_OFFLINE:
        raise ReverieError(
            f"'{repo}'{_at(revision)} is not whole in the cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE is set; "
            "unset it once to fetch the model, or give a path"
        )
    try:
        yield
    except errors.GatedRepoError:
        raise ReverieError(
            f"'{repo}' asks for its conditions to be accepted; do so at {constants.ENDPOINT}/{repo}, and set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ReverieError(
            f"there is no model '{repo}' at {constants.ENDPOINT}, or it is private; check the name, or set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise ReverieError(
            f"'{repo}' has no revision '{revision}'; leave it out, or give a branch, tag or commit"
        ) from None
    except Exception as error:  # the classes of its HTTP library change from version to version
        raise ReverieError(
            f"cannot fetch '{repo}' from {constants.ENDPOINT} ({_reason(error)}); check the network, or give a path"
        ) from error


def _reason(error: Exception) -> str:
    """Say in a few words why fetching failed: the hub's status, or the first cause."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"it answers {status}"
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return " ".join(str(error).split())[:120] or type(error).__name__


def _at(revision: str | None) -> str:
    return f" at revision '{revision}'" if revision else ""


def _offer(names: Iterable[str]) -> str:
    """Name a few of a repository's files."""
    files = sorted(name for name in names if name.endswith((".safetensors", ".ckpt", ".bin", ".json")))
    more = f" and {len(files) - 6} others" if len(files) > 6 else ""
    return f"it has {', '.join(files[:6])}{more}" if files else "it has no weights"


def folder_files(names: Collection[str], index: Mapping[str, Any], variant: str | None) -> list[str]:
    """List the files of a model in diffusers' layout, whose model_index.json is given, among a repository's `names`.

    Safetensors go before pickles, and the variant before plain files. Raises LookupError, saying in one line what the
    repository lacks.
    """
    parts = [part for part, kind in index.items() if isinstance(kind, list) and kind and kind[0]]
    files = [INDEX]
    for part in parts:
        if part in STEMS:
            files += [_one(names, f"{part}/config.json"), *_weights(names, part, STEMS[part], variant)]
        elif part in ("tokenizer", "tokenizer_2"):
            files += _tokenizer(names, part)
        elif part.endswith("scheduler"):
            files.append(_one(names, f"{part}/scheduler_config.json"))
    if variant and not any(re.search(rf"\.{re.escape(variant)}[.-]", name) for name in files):
        raise LookupError(f"has no variant '{variant}'; {_variants(names)}")
    return files


def single_file(names: Collection[str], variant: str | None) -> str:
    """Choose the one checkpoint among a repository's `names`. Raises LookupError where there is none, or a choice."""
    paths = [PurePosixPath(name) for name in names if "/" not in name and name.endswith(SINGLE)]
    if variant:
        paths = [path for path in paths if variant in re.split(r"[.\-_]", path.stem)]
    stems = sorted({path.stem for path in paths})
    if not stems:
        raise LookupError(f"holds neither {INDEX} nor a checkpoint{f' of variant {variant}' if variant else ''}")
    best = {stem: min((path for path in paths if path.stem == stem), key=_preference).name for stem in stems}
    if len(best) > 1:
        raise LookupError(f"holds several checkpoints; add one to the name, after a slash: {', '.join(best.values())}")
    return best[stems[0]]


def _preference(path: PurePosixPath) -> int:
    return SINGLE.index(path.suffix)


def _one(names: Collection[str], name: str) -> str:
    if name not in names:
        raise LookupError(f"holds no {name}")
    return name


def _weights(names: Collection[str], part: str, stem: str, variant: str | None) -> list[str]:
    pickled = "pytorch_model" if stem == TRANSFORMERS_STEM else stem
    for precision in (variant, None) if variant else (None, HALF):
        middle = f".{precision}" if precision else ""
        for name, kind in ((stem, "safetensors"), (pickled, "bin")):
            if (whole := f"{part}/{name}{middle}.{kind}") in names:
                return [whole]
            if (index := f"{part}/{name}.{kind}.index{middle}.json") in names:
                return [index, *_shards(names, f"{part}/{name}", middle, kind)]
    raise LookupError(f"holds no weights for {part} in safetensors or torch's format")


def _shards(names: Collection[str], stem: str, middle: str, kind: str) -> list[str]:
    """List the shards of an index; their variant stands before their number or behind it."""
    number, dotted = r"-\d{5}-of-(\d{5})", re.escape(middle)
    pattern = re.compile(rf"{re.escape(stem)}(?:{dotted}{number}|{number}{dotted})\.{kind}")
    found = [match for name in sorted(names) if (match := pattern.fullmatch(name))]
    count = int(found[0][1] or found[0][2]) if found else 1
    if len(found) < count:
        raise LookupError(f"holds {len(found)} of {count} shards of {stem}{middle}.{kind}")
    return [match[0] for match in found]


def _tokenizer(names: Collection[str], part: str) -> list[str]:
    for vocabulary in VOCABULARIES:
        if all(f"{part}/{name}" in names for name in vocabulary):
            return [f"{part}/{name}" for name in (*vocabulary, *SETTINGS) if f"{part}/{name}" in names]
    raise LookupError(f"holds no vocabulary for {part}")


def _variants(names: Collection[str]) -> str:
    """Say which variants there are."""
    found = {match[1] for name in names if (match := re.search(r"/[a-z_]+model\.([a-z]\w*)(?:-[^/]*)?\.(?:s|b)", name))}
    found -= {"safetensors", "bin"}
    return f"choose from {', '.join(sorted(found))}, or leave it out" if found else "leave it out"


def find_tokenizer(near: Path, size: int) -> Tokenizer:
    """Find CLIP's tokenizer of `size` tokens for a checkpoint.

    Looked for in the folder (or merges file) that REVERIE_TOKENIZER names, beside the checkpoint, in the hub's cache,
    in the packages clip and open_clip, and at last fetched from the hub. Raises ReverieError.
    """
    if given := os.environ.get(VARIABLE):
        return _check(Path(given), size)
    for place in (near.parent, near.parent / "tokenizer", near.parent / MERGES):
        if _is_vocabulary(place):
            return _check(place, size)
    for place in (*_cached_files(), *_installed_files()):
        with suppress(ReverieError):  # the cache holds those of other models too, which need not be like CLIP's
            tokenizer = read_tokenizer(place)
            if len(tokenizer) == size:
                return tokenizer
    try:
        return _check(fetch(OPENAI, VOCABULARIES[0]), size)
    except ReverieError as error:
        raise ReverieError(f"no tokenizer for '{near}': {HELP} ({error})") from error


def read_tokenizer(place: Path) -> Tokenizer:
    """Read the folder of a tokenizer, or OpenAI's file of merges."""
    return Tokenizer.load(place) if place.is_dir() else Tokenizer.from_merges(place)


def _check(place: Path, size: int) -> Tokenizer:
    tokenizer = read_tokenizer(place)
    if len(tokenizer) != size:
        raise ReverieError(f"the tokenizer in '{place}' has {len(tokenizer)} tokens; this model was made with {size}")
    return tokenizer


def _is_vocabulary(place: Path) -> bool:
    return place.is_file() or all((place / name).is_file() for name in VOCABULARIES[0])


def _cached_files() -> Iterator[Path]:
    """Find the tokenizers of models in the hub's cache: CLIP's own first."""
    models = sorted(_hub_cache().glob("models--*"), key=lambda path: (OPENAI.replace("/", "--") not in path.name, path))
    for model in models:
        for name in (".", "tokenizer", "tokenizer_2"):
            yield from (place for snapshot in model.glob("snapshots/*") if _is_vocabulary(place := snapshot / name))


def _hub_cache() -> Path:
    home = os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE", Path(home, "hub")))


def _installed_files() -> Iterator[Path]:
    """Find OpenAI's file in packages that have it, without importing them."""
    for package in ("open_clip", "clip"):
        spec = find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            if (file := Path(folder, MERGES)).is_file():
                yield file
