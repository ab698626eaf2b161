"""Resolve what a user asks of a detector, a segmenter, an embedding or plain values into references of a photo."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np

from ortcam.core.convention import Floats
from ortcam.core.detections import Detections
from ortcam.core.references import (
    EXPECTED,
    KINDS,
    Asked,
    Box,
    Embedding,
    Output,
    Reference,
    Region,
    Similarity,
    refuse,
    unit,
)
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


def list_targets(asked: Any, labels: Sequence[str] | None) -> list[Any] | None:
    """Return the targets that a user names, one by one; None for ``"all"``, alone or as the only one of a list.

    Raises:
        TargetError: it is no target and no list, or "all" is among other targets.
    """
    words: Any = asked.tolist() if hasattr(asked, "tolist") else asked
    if isinstance(words, str | int | Asked | Reference):
        words = [words]
    if not isinstance(words, Iterable):
        raise TargetError(f"targets is {asked!r}; expected a target, or a list of targets")
    given = list(words)
    if any(isinstance(one, str) and one == "all" for one in given) and not find_label("all", labels or ()):
        if len(given) > 1:
            raise TargetError("targets has 'all' and other targets; give 'all' alone, or the targets")
        return None
    return given


def check(task: str, asked: Any, classes: int | None, labels: Sequence[str] | None, model: str) -> None:
    """Refuse what no photo has: targets of another kind of model, unknown classes, and unknown values.

    Args:
        task: ``detect``, ``segment``, ``embed`` or ``value``.
        asked: the targets as for `resolve`; not an iterator.
        classes: the number of classes or values; None if it is unknown.
        labels: their names; None if they are unknown.
        model: the model's name.

    Raises:
        TargetError: no photo has such a target.
    """
    if asked is None:
        if task == "embed":
            raise _nothing_like(model)
        if task == "value" and classes is not None and classes > 1:
            raise _which_value(classes, model)
        return
    given = list_targets(asked, labels)
    if given is None and task == "embed":
        raise refuse(task, "all", model)
    for one in given or ():
        if isinstance(one, Reference):
            continue
        is_class = isinstance(one, str | Integral) and task != "embed"
        if not is_class and not isinstance(one, KINDS[task]):
            raise refuse(task, one, model)
        if isinstance(one, Output):
            check_value(one, classes, model)
        named = one.label if isinstance(one, Box | Region) else one if is_class else None
        if named is not None and classes is not None:
            resolve_class(named, classes, labels or (), model, "values" if task == "value" else "classes")


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
    given = list_targets(asked, view.labels)
    if given is None and task != "embed":
        return everything(task, results, view)
    if given is None:
        raise refuse(task, "all", view.model)
    if not given:
        raise TargetError(f"targets is empty; expected {EXPECTED[task]}, or None for the surest")
    found: list[Reference] = []
    for one in given:
        reference = replace(one, index=len(found)) if isinstance(one, Reference) else reader.find(one, len(found))
        if not any(reference.is_same(other) for other in found):
            found.append(reference)
    return tuple(found)


class _Embedding:
    """The embedding of a photo."""

    def __init__(self, results: Sequence[Floats], view: View) -> None:
        (self._vector,) = results
        self._view = view

    def surest(self, count: int) -> tuple[Reference, ...]:
        raise _nothing_like(self._view.model)

    def find(self, asked: Any, place: int) -> Reference:
        if not isinstance(asked, Similarity):
            raise refuse("embed", asked, self._view.model)
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

    def __init__(self, results: Sequence[Floats], view: View) -> None:
        (self._values,) = results
        self._view = view

    def surest(self, count: int) -> tuple[Reference, ...]:
        if len(self._values) > 1:
            raise _which_value(len(self._values), self._view.model)
        return (self.find(0, 0),)

    def find(self, asked: Any, place: int) -> Reference:
        if isinstance(asked, str | Integral):
            labels, count = self._view.labels or (), len(self._values)
            asked = Output(resolve_class(asked, count, labels, self._view.model, "values"))
        if not isinstance(asked, Output):
            raise refuse("value", asked, self._view.model)
        index = check_value(asked, len(self._values), self._view.model)
        vector = np.zeros(len(self._values), np.float32)
        vector[index] = asked.sign
        return Reference(place, vector, index, self._view.name_of(index), {"kind": "value", "sign": int(asked.sign)})


def check_value(asked: Output, count: int | None, model: str) -> int:
    """Return the number of the value that a user names, after checking it; `count` is None if it is unknown.

    Raises:
        TargetError: there is no such value, or the sign is another number.
    """
    index = asked.index
    whole = isinstance(index, Integral) and not isinstance(index, bool) and index >= 0
    if not whole or (count is not None and index >= count):
        has = "" if count is None else f"; {model} returns {count}, 0 to {count - 1}"
        raise TargetError(f"value {index!r} is out of range{has}")
    if asked.sign not in (1, -1):
        raise TargetError(f"sign is {asked.sign!r}; expected 1 or -1")
    return int(index)


def _nothing_like(model: str) -> TargetError:
    return TargetError(f"{model} returns an embedding, to compare with a reference; expected {EXPECTED['embed']}")


def _which_value(count: int, model: str) -> TargetError:
    return TargetError(f"{model} returns {count} values, 0 to {count - 1}; expected {EXPECTED['value']}")


_Reader = Detections | Regions | _Embedding | _Values
_READERS: dict[str, Callable[[Sequence[Floats], View], _Reader]] = {
    "detect": Detections,
    "segment": Regions,
    "embed": _Embedding,
    "value": _Values,
}
