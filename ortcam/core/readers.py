"""Resolve what a user asks of a detector, a segmenter, an embedding or plain values into references of a photo."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np

from ortcam.core.convention import Floats
from ortcam.core.detections import Detections
from ortcam.core.references import Asked, Embedding, Output, Reference, Similarity, unit
from ortcam.core.regions import Regions
from ortcam.core.targets import find_label, resolve_class
from ortcam.core.view import View, digest
from ortcam.errors import TargetError


def everything(task: str, results: Sequence[Floats], view: View) -> tuple[Reference, ...]:
    """Return all detections, regions or values of a photo, the surest first; values in their order.

    Raises:
        TargetError: there are none.
    """
    reader = _READERS[task](results, view)
    if isinstance(reader, _Values):
        return tuple(reader.find(Output(place), place) for place in range(len(results[0])))
    return reader.surest(max(1, sum(map(len, results))))


def resolve(task: str, asked: Any, top_k: int, results: Sequence[Floats], view: View) -> tuple[Reference, ...]:
    """Return the references that a user asks for, in order; each appears once.

    Args:
        task: ``detect``, ``segment``, ``embed`` or ``value``.
        asked: a class index, a label, a `Box`, `Region`, `Similarity` or `Output`, or several; None for the surest. Or
            references that were resolved before, with the results of another model.
        top_k: how many, if `asked` is None.
        results: the outputs of the photo.
        view: the photo.

    Raises:
        TargetError: it is not in the photo, or the task has no such target.
    """
    reader = _READERS[task](results, view)
    if asked is None:
        return reader.surest(top_k)
    words: Any = asked.tolist() if hasattr(asked, "tolist") else asked
    if isinstance(words, str) and words == "all" and not find_label("all", view.labels or ()):
        return everything(task, results, view)
    if isinstance(words, str | int | Asked | Reference):
        words = [words]
    if not isinstance(words, Iterable):
        raise TargetError(f"targets is {asked!r}; expected {reader.expected}")
    given = list(words)
    if not given:
        raise TargetError(f"targets is empty; expected {reader.expected}, or None for the surest")
    found: list[Reference] = []
    for one in given:
        reference = replace(one, index=len(found)) if isinstance(one, Reference) else reader.find(one, len(found))
        if not any(reference.is_same(other) for other in found):
            found.append(reference)
    return tuple(found)


class _Embedding:
    """The embedding of a photo."""

    expected = "ortcam.Similarity('reference.jpg')"

    def __init__(self, results: Sequence[Floats], view: View) -> None:
        (self._vector,) = results
        self._view = view

    def surest(self, count: int) -> tuple[Reference, ...]:
        raise TargetError(
            f"{self._view.model} returns an embedding, to compare with a reference; give {self.expected} (--like)"
        )

    def find(self, asked: Any, place: int) -> Reference:
        if not isinstance(asked, Similarity):
            raise TargetError(
                f"{self._view.model} returns an embedding, and the target is {asked!r}; expected {self.expected}"
            )
        like = asked.like if isinstance(asked.like, Embedding) else Embedding("a vector", None, np.asarray(asked.like))
        given = like.vector
        if given.shape != self._vector.shape:
            raise TargetError(
                f"the reference is a vector of shape {list(given.shape)}; expected {list(self._vector.shape)}, "
                f"an embedding of {self._view.model}"
            )
        unit(self._vector)  # an error if the photo's own embedding has no direction
        path = None if like.path is None else str(like.path.absolute())
        described = {"kind": "similarity", "like": like.name, "path": path, "sha256": digest(given)}
        return Reference(place, unit(given), None, None, described)


class _Values:
    """The plain values of a photo."""

    expected = "the number of a value, or ortcam.Output(0, sign=-1)"

    def __init__(self, results: Sequence[Floats], view: View) -> None:
        (self._values,) = results
        self._view = view

    def surest(self, count: int) -> tuple[Reference, ...]:
        if len(self._values) > 1:
            raise TargetError(
                f"{self._view.model} returns {len(self._values)} values; expected {self.expected} (see: --list)"
            )
        return (self.find(0, 0),)

    def find(self, asked: Any, place: int) -> Reference:
        if isinstance(asked, str | Integral):
            asked = Output(resolve_class(asked, len(self._values), self._view.labels or (), self._view.model))
        if not isinstance(asked, Output):
            raise TargetError(
                f"{self._view.model} returns values, and the target is {asked!r}; expected {self.expected}"
            )
        index, count = asked.index, len(self._values)
        if isinstance(index, bool) or not isinstance(index, Integral) or not 0 <= index < count:
            raise TargetError(f"value {index!r} is out of range; {self._view.model} returns {count}, 0 to {count - 1}")
        index = int(index)
        if asked.sign not in (1, -1):
            raise TargetError(f"sign is {asked.sign!r}; expected 1 or -1")
        vector = np.zeros(len(self._values), np.float32)
        vector[index] = asked.sign
        return Reference(place, vector, index, self._view.name_of(index), {"kind": "value", "sign": int(asked.sign)})


_Reader = Detections | Regions | _Embedding | _Values
_READERS: dict[str, Callable[[Sequence[Floats], View], _Reader]] = {
    "detect": Detections,
    "segment": Regions,
    "embed": _Embedding,
    "value": _Values,
}
