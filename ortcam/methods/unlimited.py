"""What methods share that have no budget: the rest of the `Method` protocol, beside `change` and `begin`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from ortcam.core.budget import Limits
from ortcam.errors import LayerError, OptionError

_MOST_PLACES = 128 * 128  # their windows take 1 GB


@dataclass(frozen=True)
class Unlimited:
    """A method that takes no limits. Its options are its fields."""

    name: ClassVar[str]
    scored: ClassVar[Literal["logits", "output"]] = "logits"
    reason: ClassVar[str] = "runs no masked images"  # why there are no limits

    @property
    def stages(self) -> int:
        return 0

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self)}

    def check(self, limits: Limits) -> None:
        if limits != Limits():
            raise OptionError(f"{self.name} {self.reason}; leave budget, tolerance and selection out")

    def first_query(self, limits: Limits, channels: int | None, batch_size: int) -> int:
        return batch_size


def check_places(method: str, size: tuple[int, ...]) -> int:
    """Return the number of places of a layer of (h, w).

    Raises:
        LayerError: there are too many.
    """
    count = size[0] * size[1]
    if count > _MOST_PLACES:
        raise LayerError(
            f"the layer has {size[0]}x{size[1]} places, and {method} runs the rest of the model for each; "
            f"expected at most {_MOST_PLACES} places: choose a later layer (see: ortcam inspect)"
        )
    return count
