"""How is a request written down, and read back?"""

from __future__ import annotations

import json
from typing import Any, ClassVar, Self

from reverie.errors import ReverieError
from reverie.requests.frozen import Frozen
from reverie.requests.references import RECORDED


class Request(Frozen):
    """Hold what can be asked for: the same object is flags, HTTP body and metadata."""

    kind: ClassVar[str] = ""

    def to_json(self) -> str:
        """Write the request as one line of JSON, with its pictures as data URLs."""
        return self.model_dump_json()

    def recorded(self) -> dict[str, Any]:
        """Return what the metadata holds of the request: its pictures by path and SHA-256."""
        return self.model_dump(mode="json", context=RECORDED)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a request written by `to_json`."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ReverieError(f"request is not JSON: {error}") from error
        if not isinstance(data, dict):
            raise ReverieError(f"request must be a JSON object, not {type(data).__name__}")
        return cls.of(data)
