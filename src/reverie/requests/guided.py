"""How strictly is a prompt followed? As the request says, else as its model recommends."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field

from reverie.requests.recorded import Request

Guidance = Annotated[float, Field(ge=0, le=100)]


class Guided(Request):
    """Hold a request that follows prompts by classifier-free guidance; None is what the model recommends."""

    guidance: Guidance | None = Field(
        default=None, description="classifier-free guidance; 1 switches it off; the model's own if not given"
    )

    @property
    def scale(self) -> float:
        """Return the guidance of a request that was settled. Raises ValueError for one that was not."""
        if self.guidance is None:
            raise ValueError("the guidance is the model's, and nothing was asked of a model yet")
        return self.guidance

    def settled(self, own: float) -> Self:
        """Fill in the guidance where the request leaves it open: `own`, the model's."""
        return self if self.guidance is not None else self.replace(guidance=own)
