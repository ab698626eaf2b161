"""What is known of a photo beside the results of a model, and how targets are written down."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ortcam.core.pictures import Crop
from ortcam.core.references import Detecting
from ortcam.errors import TargetError

MOST_SHOWN = 5  # in an error message


@dataclass(frozen=True)
class View:
    """What is known of a photo beside its results.

    Attributes:
        crop: the part of the photo that the model saw.
        input_size: (H, W) of the model's input.
        photo_size: (H, W) of the photo.
        labels: the names of the classes or values; None if they are unknown.
        model: the model's name in messages.
        detecting: which boxes of a detector count.
    """

    crop: Crop
    input_size: tuple[int, int]
    photo_size: tuple[int, int]
    labels: Sequence[str] | None
    model: str
    detecting: Detecting

    def name_of(self, index: int) -> str | None:
        """Return the name of a class; None if it has none."""
        return self.labels[index] if self.labels is not None and index < len(self.labels) else None

    def show(self, index: int) -> str:
        return self.name_of(index) or f"class {index}"


def numbers(given: Any, count: int, what: str, expected: str) -> tuple[float, ...]:
    """Return finite numbers of a sequence, after checking them.

    Raises:
        TargetError: they are not `count` numbers.
    """
    given = given.tolist() if hasattr(given, "tolist") else given
    values = tuple(given) if isinstance(given, Sequence) else ()
    right = len(values) == count and all(isinstance(one, Real) and not isinstance(one, bool) for one in values)
    if not right or not all(np.isfinite(float(one)) for one in values):
        raise TargetError(f"{what} is {given!r}; expected {count} numbers: {expected}")
    return tuple(map(float, values))


def rounded(box: Any) -> list[float]:
    """Return the sides of a box for a record."""
    return [round(float(side), 3) for side in box]


def digest(values: NDArray[Any]) -> str:
    """Return the SHA-256 of numbers, as float32."""
    return hashlib.sha256(np.ascontiguousarray(values, np.float32).tobytes()).hexdigest()
