"""The nodes of ComfyUI's graphs that its reader honours whole: a table, and what is wrong with a graph of them.

Names, numbers and kinds of errors are those of ComfyUI 0.3.64 (nodes.py; execution.py, validate_inputs).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reverie.errors import ReverieError
from reverie.requests.foreign import DAMAGE, comfyui
from reverie.requests.foreign.draft import stem_of
from reverie.requests.pictures import TextToImage
from reverie.requests.references import looking_in

Json = dict[str, Any]
NODES = Path(__file__).with_name("core_nodes.json").read_text(encoding="utf-8")  # "$name" is a list of what is here
NUMBERS: Mapping[str, tuple[type, ...]] = {"INT": (int,), "FLOAT": (int, float)}
VALUES = (*NUMBERS, "STRING")
SAVERS = ("SaveImage", "PreviewImage")
TOLERATED = ("noise:", "seed:", "weights in the prompt:")


def table(lists: Mapping[str, Sequence[str]]) -> dict[str, Json]:
    """Return what ComfyUI tells of each class, with lists of names such as "checkpoints"."""
    return json.loads(re.sub(r'"\$(\w+)"', lambda name: json.dumps(lists.get(name[1], [])), NODES))


def as_graph(given: object) -> Json:
    """Return a graph, or an empty one for what is none."""
    nodes = given.values() if isinstance(given, dict) else [None]
    kinds = ((type(one.get("class_type")), type(one.get("inputs"))) if isinstance(one, dict) else None for one in nodes)
    return given if isinstance(given, dict) and all(kind == (str, dict) for kind in kinds) else {}


def of_class(graph: Json, *kinds: str) -> list[str]:
    """Return the names of the nodes of some classes."""
    return [name for name, node in graph.items() if node["class_type"] in kinds]


def reduce(graph: Json, nodes: Mapping[str, Json]) -> Json:
    """Return the nodes that lead to a picture that is saved or shown, and those of classes that are not known.

    Their inputs are values, links, or None for whatever else; those that their class does not have are left out.
    """
    plain: Json = {}
    for name, node in graph.items():
        kind, known = node["class_type"], _inputs(nodes.get(node["class_type"], {}))
        inputs = {field: _plain(value) for field, value in node["inputs"].items() if field in known}
        plain[name] = {"class_type": kind, "inputs": inputs}
    found = [name for name in plain if nodes.get(plain[name]["class_type"], {"output_node": True})["output_node"]]
    for name in found:  # which grows
        links = [str(value[0]) for value in plain[name]["inputs"].values() if isinstance(value, list)]
        found += dict.fromkeys(link for link in links if link in plain and link not in found)
    return {name: plain[name] for name in found}


def _inputs(node: Json) -> Json:
    return {field: want for group in node.get("input", {}).values() for field, want in group.items()}


def _plain(value: object) -> object:
    is_link = isinstance(value, list) and [type(part) for part in value] in ([str, int], [int, int])
    return value if is_link or isinstance(value, str | int | float) else None


def check(graph: Json, nodes: Mapping[str, Json], is_picture: Callable[[str], bool]) -> dict[str, list[Json]]:
    """Return ComfyUI's errors by node; `is_picture` tells whether a picture of a name is here."""
    return {name: wrong for name in graph if (wrong := list(_check_node(graph, name, nodes, is_picture)))}


def error(kind: str, details: str, **extra: object) -> Json:
    """Return an error as ComfyUI writes it."""
    return {"type": kind, "message": kind.replace("_", " ").capitalize(), "details": details, "extra_info": extra}


def request_of(graph: Json, *folders: Path) -> tuple[TextToImage, str, list[str]]:
    """Return the request of a graph without errors, its model's name, and notes on what only a seed's noise differs in.

    Files are looked for by their names in folders. Raises ReverieError for all else that is not honoured.
    """
    copy = {name: node | {"inputs": dict(node["inputs"])} for name, node in graph.items()}
    counts = {copy[name]["inputs"].pop("batch_size") for name in of_class(copy, "EmptyLatentImage")} or {1}
    if len(counts) > 1 or len({str(copy[name]["inputs"]["images"]) for name in of_class(copy, *SAVERS)}) > 1:
        raise ReverieError("a graph is of one picture or batch here; send another one for each of the others")
    with looking_in(*folders):
        try:
            draft = comfyui.read(copy)
            request = draft.request(None).replace(count=counts.pop())
        except ReverieError:
            raise
        except DAMAGE as error:
            raise ReverieError(f"the graph cannot be read: {error!r}") from error
    if refused := [note for note in draft.notes if not note.startswith(TOLERATED)]:
        raise ReverieError("; ".join(refused))
    return request, draft.model, draft.notes


def _check_node(graph: Json, name: str, nodes: Mapping[str, Json], is_picture: Callable[[str], bool]) -> Iterator[Json]:
    kind, given = graph[name]["class_type"], graph[name]["inputs"]
    if kind not in nodes:
        yield error("missing_node_type", f"{kind}; choose from {', '.join(nodes)}")
        return
    for field, want in _inputs(nodes[kind]).items():
        extra = {"input_name": field, "input_config": want, "received_value": given.get(field)}
        if field in given:
            source = _source(given[field], graph, nodes)
            if (wrong := _wrong(given[field], source, want[0], dict(*want[1:]), is_picture)) is not None:
                allowed = f" not in {want[0]}" if wrong == "value_not_in_list" else ""
                yield error(wrong, f"{field}: {str(given[field])[:200]!r}{allowed}", **extra)
        elif field in nodes[kind]["input"]["required"]:
            yield error("required_input_missing", field, **extra)


def _source(link: object, graph: Json, nodes: Mapping[str, Json]) -> object:
    """Return the type of the output that a link leads to, or None."""
    if not isinstance(link, list):
        return None
    outputs = nodes.get(graph.get(str(link[0]), {}).get("class_type"), {}).get("output", ())
    return next((kind for slot, kind in enumerate(outputs) if link[1:] == [slot]), None)


def _wrong(value: object, source: object, want: Any, options: Json, is_picture: Callable[[str], bool]) -> str | None:
    """Return which error the value of an input is, or None. What is no value, such as a model, is a link."""
    linked, file, listed = isinstance(value, list), "image_upload" in options, isinstance(want, list)
    number = value if isinstance(value, NUMBERS.get(str(want), ())) and not isinstance(value, bool) else None
    wrong = {
        "bad_linked_input": linked == (listed or want in VALUES) or (linked and source != want),
        "custom_validation_failed": file and not is_picture(str(value)),
        "value_not_in_list": listed and not file and stem_of(value) not in map(stem_of, want),
        "invalid_input_type": want in VALUES and number is None and (want, type(value)) != ("STRING", str),
        "value_smaller_than_min": number is not None and number < options["min"],
        "value_bigger_than_max": number is not None and number > options["max"],
    }
    return next((kind for kind, is_so in wrong.items() if is_so), None)
