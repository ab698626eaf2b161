"""The boxes of a detector in a photo, and what a user may ask of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ortcam.core.convention import Floats
from ortcam.core.references import Box, Detecting, Reference, plain, refuse, suppress
from ortcam.core.targets import resolve_class
from ortcam.core.view import MOST_SHOWN, View, numbers, rounded
from ortcam.errors import TargetError


class Detections:
    """The detections of a photo."""

    def __init__(self, results: Sequence[Floats], view: View) -> None:
        self._boxes, self._scores = results
        self._view = view
        self._rows, self._classes = self._find(view.detecting)

    def _find(self, detecting: Detecting) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return the rows and classes of the detections in the part of the photo that the model sees."""
        rows, classes = suppress(self._boxes, self._scores, detecting)
        boxes = self._view.crop.to_photo(self._boxes[rows], self._view.input_size)
        seen = np.array([self._is_seen(box) for box in boxes], np.bool_)
        return rows[seen], classes[seen]

    def surest(self, count: int) -> tuple[Reference, ...]:
        if not len(self._rows):
            raise TargetError(self._nothing())
        return tuple(self._detection(number, number) for number in range(min(count, len(self._rows))))

    def find(self, asked: Any, place: int) -> Reference:
        if isinstance(asked, str | Integral):
            wanted = resolve_class(asked, self._scores.shape[1], self._view.labels or (), self._view.model)
            found = np.flatnonzero(self._classes == wanted)
            if not len(found):
                raise TargetError(
                    f"{self._view.show(wanted)!r} is not among the detections of the photo: {self._present()}"
                )
            return self._detection(int(found[0]), place)
        if not isinstance(asked, Box):
            raise refuse("detect", asked, self._view.model)
        which: Any = plain(asked.which)
        if isinstance(which, bool) or not isinstance(which, Integral | Sequence):
            raise TargetError(f"box is {which!r}; expected the number of a detection, or left, top, right, bottom")
        if isinstance(which, Integral):
            which = int(which)
            if not 0 <= which < len(self._rows):
                raise TargetError(f"box {which} is out of range: {self._present()}")
            if asked.label is not None:
                raise TargetError(
                    f"box {which} is a detection, which has its class; leave the label {asked.label!r} out"
                )
            return self._detection(which, place)
        return self._given(which, asked.label, place)

    def _is_seen(self, box: NDArray[Any]) -> bool:
        """Whether a box of the photo overlaps the part that the model sees; the padding of a letterbox is none."""
        crop = self._view.crop
        return bool(box[0] < crop.right and box[2] > crop.left and box[1] < crop.bottom and box[3] > crop.top)

    def _given(self, which: Sequence[Any], label: int | str | None, place: int) -> Reference:
        box = numbers(which, 4, "box", "left, top, right and bottom in pixels of the photo")
        height, width = self._view.photo_size
        left, top, right, bottom = box
        shown = ",".join(f"{side:g}" for side in box)
        if left >= right or top >= bottom:
            raise TargetError(f"box {shown} is empty or inverted; expected left < right and top < bottom")
        if right <= 0 or bottom <= 0 or left >= width or top >= height:
            raise TargetError(f"box {shown} lies outside the photo of {width}x{height}; expected a box inside")
        if not self._is_seen(np.array(box)):
            raise TargetError(
                f"box {shown} lies in a part that preprocessing cuts off; expected a box that the model sees"
            )
        if label is None and self._scores.shape[1] > 1:
            raise TargetError(
                f"box {shown} has no class, and {self._view.model} has several; give its label too (--target)"
            )
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
        more = f" and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
        return f"found are {', '.join(found[:MOST_SHOWN])}{more}"

    def _describe(self, row: int, index: int) -> str:
        box = self._view.crop.to_photo(self._boxes[row], self._view.input_size)
        where = ",".join(f"{side:.0f}" for side in box)
        return f"{self._view.show(int(index))} ({self._scores[row, index]:.2f}) at {where}"

    def _nothing(self) -> str:
        if not self._scores.size:
            return f"{self._view.model} returns no boxes for this photo"
        rows, classes = self._find(replace(self._view.detecting, score=0.0))
        if not len(rows):
            return f"{self._view.model} returns no box in this photo"
        best = [self._describe(row, index) for row, index in list(zip(rows, classes, strict=True))[:3]]
        return (
            f"no detection scores {self._view.detecting.score:g} or more; the best are {', '.join(best)}: give such a "
            "box with its label, or count less sure ones (detecting, --least-score)"
        )


def _box_place(number: int | None, box: Any, score: float | None) -> dict[str, Any]:
    return {"kind": "box", "number": number, "box": rounded(box), "score": score}
