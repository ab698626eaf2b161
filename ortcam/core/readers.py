"""Resolve what a user asks of a detector, a segmenter, an embedding or plain values into references of a photo."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ortcam.core.convention import Floats
from ortcam.core.pictures import Crop
from ortcam.core.references import (
    Asked,
    Box,
    Detecting,
    Embedding,
    Output,
    Reference,
    Region,
    Similarity,
    suppress,
    unit,
)
from ortcam.core.targets import resolve_class
from ortcam.errors import TargetError

_CERTAIN = 0.5  # the probability from which a pixel belongs to the only class of a segmenter
_MOST_SHOWN = 5
_BACKGROUND = ("background", "__background__")


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
        asked: a class index, a label, a `Box`, `Region`, `Similarity` or `Output`, or several; None for the surest.
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
    if isinstance(words, str | int | Asked):
        words = [words]
    if not isinstance(words, Iterable):
        raise TargetError(f"targets is {asked!r}; expected {reader.expected}")
    given = list(words)
    if not given:
        raise TargetError(f"targets is empty; expected {reader.expected}, or None for the surest")
    return tuple(reader.find(one, place) for place, one in enumerate(given))


class _Detections:
    """The detections of a photo."""

    expected = "a label, or ortcam.Box(3) or ortcam.Box((10, 20, 90, 200), 'person')"

    def __init__(self, results: Sequence[Floats], view: View) -> None:
        self._boxes, self._scores = results
        self._view = view
        self._rows, self._classes = suppress(self._boxes, self._scores, view.detecting)

    def surest(self, count: int) -> tuple[Reference, ...]:
        if not len(self._rows):
            raise TargetError(self._nothing())
        return tuple(self._detection(number, number) for number in range(min(count, len(self._rows))))

    def find(self, asked: Any, place: int) -> Reference:
        if isinstance(asked, str | Integral):
            wanted = resolve_class(asked, self._scores.shape[1], self._view.labels or (), self._view.model)
            numbers = np.flatnonzero(self._classes == wanted)
            if not len(numbers):
                raise TargetError(
                    f"{self._view.show(wanted)!r} is not among the detections of the photo: {self._present()}"
                )
            return self._detection(int(numbers[0]), place)
        if not isinstance(asked, Box):
            raise TargetError(
                f"{self._view.model} is a detector, and the target is {asked!r}; expected {self.expected}"
            )
        which = asked.which
        if isinstance(which, bool) or not isinstance(which, Integral | Sequence):
            raise TargetError(f"box is {which!r}; expected the number of a detection, or left, top, right, bottom")
        if isinstance(which, Integral):
            if not 0 <= which < len(self._rows):
                raise TargetError(f"box {which} is out of range: {self._present()}")
            return self._detection(int(which), place)
        return self._given(which, asked.label, place)

    def _given(self, which: Sequence[Any], label: int | str | None, place: int) -> Reference:
        box = _numbers(which, 4, "box", "left, top, right and bottom in pixels of the photo")
        height, width = self._view.photo_size
        left, top, right, bottom = box
        shown = ",".join(f"{side:g}" for side in box)
        if left >= right or top >= bottom:
            raise TargetError(f"box {shown} is empty or inverted; expected left < right and top < bottom")
        if right <= 0 or bottom <= 0 or left >= width or top >= height:
            raise TargetError(f"box {shown} lies outside the photo of {width}x{height}; expected a box inside")
        if label is None and self._scores.shape[1] > 1:
            raise TargetError(f"box {shown} has no class, and {self._view.model} knows several; give its label too")
        index = resolve_class(
            0 if label is None else label, self._scores.shape[1], self._view.labels or (), self._view.model
        )
        inside = self._view.crop.to_input(np.array(box), self._view.input_size)
        return Reference(
            place, inside.astype(np.float32), index, self._view.name_of(index), _box_place(None, box, None)
        )

    def _detection(self, number: int, place: int) -> Reference:
        row, index = int(self._rows[number]), int(self._classes[number])
        box = self._view.crop.to_photo(self._boxes[row], self._view.input_size)
        score = float(self._scores[row, index])
        return Reference(place, self._boxes[row], index, self._view.name_of(index), _box_place(number, box, score))

    def _present(self) -> str:
        if not len(self._rows):
            return self._nothing()
        found = [
            f"{number} {self._describe(row, index)}"
            for number, (row, index) in enumerate(zip(self._rows, self._classes, strict=True))
        ]
        more = f" and {len(found) - _MOST_SHOWN} more" if len(found) > _MOST_SHOWN else ""
        return f"found are {', '.join(found[:_MOST_SHOWN])}{more}"

    def _describe(self, row: int, index: int) -> str:
        box = self._view.crop.to_photo(self._boxes[row], self._view.input_size)
        where = ",".join(f"{side:.0f}" for side in box)
        return f"{self._view.show(int(index))} ({self._scores[row, index]:.2f}) at {where}"

    def _nothing(self) -> str:
        if not self._scores.size:
            return f"{self._view.model} returns no boxes for this photo"
        rows, classes = suppress(self._boxes, self._scores, replace(self._view.detecting, score=0.0))
        best = [self._describe(row, index) for row, index in list(zip(rows, classes, strict=True))[:3]]
        return (
            f"no detection scores {self._view.detecting.score:g} or more; the best are {', '.join(best)}: give such a "
            "box with its label, or count less sure ones (detecting, --least-score)"
        )


def _box_place(number: int | None, box: Any, score: float | None) -> dict[str, Any]:
    return {"kind": "box", "number": number, "box": _rounded(box), "score": score}


def _rounded(box: Any) -> list[float]:
    return [round(float(side), 3) for side in box]


class _Regions:
    """The regions of a photo: where a segmenter sees its classes."""

    expected = "a label, or ortcam.Region('car') or ortcam.Region(at=(x, y))"

    def __init__(self, results: Sequence[Floats], view: View) -> None:
        (self._mask,) = results  # [C,h,w]
        self._view = view
        self._seen = self._mask.argmax(axis=0) if len(self._mask) > 1 else np.where(self._mask[0] >= _CERTAIN, 0, -1)

    def surest(self, count: int) -> tuple[Reference, ...]:
        present = self._present()
        if not present:
            raise TargetError(f"{self._view.model} sees no region in the photo; give one: ortcam.Region(mask=...)")
        return tuple(self.find(index, place) for place, index in enumerate(present[:count]))

    def find(self, asked: Any, place: int) -> Reference:
        if isinstance(asked, str | Integral):
            asked = Region(int(asked) if isinstance(asked, Integral) else asked)
        if not isinstance(asked, Region):
            raise TargetError(
                f"{self._view.model} is a segmenter, and the target is {asked!r}; expected {self.expected}"
            )
        index = None
        if asked.label is not None:
            index = resolve_class(asked.label, len(self._mask), self._view.labels or (), self._view.model)
        cell = None if asked.at is None else self._cell(asked.at)
        if index is None and cell is not None:
            index = int(self._seen[cell])
            if index < 0:
                raise TargetError(f"{self._view.model} sees no class at {asked.at}; {self._listed()}")
        if index is None:
            if len(self._mask) > 1:
                raise TargetError(f"the region has no class, and {self._view.model} knows several; give its label")
            index = 0
        if asked.mask is not None:
            region = self._given(asked.mask)
        else:
            region = (self._seen == index) & self._inside()
            if cell is not None:
                region = self._connected(region, cell, asked)
        if not region.any():
            raise TargetError(f"the region of {self._view.show(index)!r} is empty in this photo; {self._listed()}")
        vector = (region / region.sum()).astype(np.float32).reshape(-1)
        return Reference(place, vector, index, self._view.name_of(index), self._place(region, asked))

    def _present(self) -> list[int]:
        seen = self._seen[self._inside()]
        counts = np.bincount(seen[seen >= 0], minlength=len(self._mask))
        order = [int(index) for index in np.argsort(-counts, kind="stable") if counts[index]]
        return [index for index in order if (self._view.name_of(index) or "").lower() not in _BACKGROUND]

    def _listed(self) -> str:
        shown = ", ".join(map(self._view.show, self._present()[:_MOST_SHOWN]))
        return f"seen are {shown}" if shown else "nothing is seen in it"

    def _cell(self, at: Any) -> tuple[int, int]:
        """Return the row and column of the mask that hold a pixel of the photo."""
        x, y = _numbers(at, 2, "at", "x and y in pixels of the photo")
        height, width = self._view.photo_size
        if not (0 <= x < width and 0 <= y < height):
            raise TargetError(f"at is {x:g},{y:g}, outside the photo of {width}x{height}; expected a pixel of it")
        column, row, _, _ = self._view.crop.to_input(
            np.array([x + 0.5, y + 0.5, x + 0.5, y + 0.5]), self._view.input_size
        )
        rows, columns = self._seen.shape
        cell = int(row * rows // self._view.input_size[0]), int(column * columns // self._view.input_size[1])
        if not (0 <= cell[0] < rows and 0 <= cell[1] < columns):
            raise TargetError(
                f"at is {x:g},{y:g}, a pixel that preprocessing cuts off; expected one that the model sees"
            )
        return cell

    def _given(self, mask: Any) -> NDArray[np.bool_]:
        """Return a region of the photo on the grid of the model's mask: the pixel at the centre of each cell counts."""
        given = np.asarray(mask)
        if given.shape != self._view.photo_size:
            raise TargetError(
                f"mask has the shape {list(given.shape)}; expected the photo's, {list(self._view.photo_size)}"
            )
        rows, columns = self._pixels()
        rows, columns = (np.clip(one, 0, side - 1) for one, side in zip((rows, columns), given.shape, strict=True))
        return np.asarray(given.astype(np.bool_)[rows[:, None], columns] & self._inside())

    def _pixels(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return the rows and columns of the photo at the centres of the cells; those of padding lie outside."""
        (rows, columns), (height, width) = self._seen.shape, self._view.input_size
        across, down = (np.arange(columns) + 0.5) * width / columns, (np.arange(rows) + 0.5) * height / rows
        to_photo, size = self._view.crop.to_photo, self._view.input_size
        x = to_photo(np.stack([across] * 4, axis=1), size)[:, 0]
        y = to_photo(np.stack([down] * 4, axis=1), size)[:, 1]
        return np.floor(y).astype(np.intp), np.floor(x).astype(np.intp)

    def _inside(self) -> NDArray[np.bool_]:
        """Return which cells lie in the photo, and not in the padding."""
        (rows, columns), (height, width) = self._pixels(), self._view.photo_size
        return ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))

    def _connected(self, region: NDArray[np.bool_], cell: tuple[int, int], asked: Region) -> NDArray[np.bool_]:
        if not region[cell]:
            raise TargetError(f"{asked.label!r} is not seen at {asked.at}; {self._listed()}")
        part = np.zeros_like(region)
        part[cell] = True
        while True:  # grow by one place in all eight directions, until nothing is new
            padded = np.pad(part, 1)
            rows = padded[:-2] | padded[1:-1] | padded[2:]
            grown = (rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]) & region
            if (grown == part).all():
                return part
            part = grown

    def _place(self, region: NDArray[np.bool_], asked: Region) -> dict[str, Any]:
        rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
        down, across = (length / cells for length, cells in zip(self._view.input_size, region.shape, strict=True))
        inside = [columns[0] * across, rows[0] * down, (columns[-1] + 1) * across, (rows[-1] + 1) * down]
        box = self._view.crop.to_photo(np.array(inside), self._view.input_size)
        at = None if asked.at is None else [float(one) for one in asked.at]
        given = asked.mask is not None
        return {"kind": "region", "box": _rounded(box), "share": float(region.mean()), "at": at, "mask_given": given}


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
        path = None if like.path is None else str(like.path)
        return Reference(place, unit(given), None, None, {"kind": "similarity", "like": like.name, "path": path})


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
        index = resolve_class(asked.index, len(self._values), (), self._view.model)
        if asked.sign not in (1, -1):
            raise TargetError(f"sign is {asked.sign!r}; expected 1 or -1")
        vector = np.zeros(len(self._values), np.float32)
        vector[index] = asked.sign
        return Reference(place, vector, index, self._view.name_of(index), {"kind": "value", "sign": int(asked.sign)})


def _numbers(given: Any, count: int, what: str, expected: str) -> tuple[float, ...]:
    """Return finite numbers of a sequence, after checking them."""
    values = tuple(given.tolist() if hasattr(given, "tolist") else given) if isinstance(given, Sequence) else ()
    right = len(values) == count and all(isinstance(one, Real) and not isinstance(one, bool) for one in values)
    if not right or not all(np.isfinite(float(one)) for one in values):
        raise TargetError(f"{what} is {given!r}; expected {count} numbers: {expected}")
    return tuple(map(float, values))


_Reader = _Detections | _Regions | _Embedding | _Values
_READERS: dict[str, Callable[[Sequence[Floats], View], _Reader]] = {
    "detect": _Detections,
    "segment": _Regions,
    "embed": _Embedding,
    "value": _Values,
}
