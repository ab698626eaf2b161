"""The regions of a segmenter in a photo, and what a user may ask of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ortcam.core.convention import Floats
from ortcam.core.references import Reference, Region, refuse
from ortcam.core.targets import resolve_class
from ortcam.core.view import MOST_SHOWN, View, digest, numbers, rounded
from ortcam.errors import TargetError

CERTAIN = 0.5  # the probability from which a pixel belongs to the only class of a segmenter
BACKGROUND = ("background", "__background__")


class Regions:
    """The regions of a photo: where a segmenter sees its classes."""

    def __init__(self, results: Sequence[Floats], view: View) -> None:
        (self._mask,) = results  # [C,h,w]
        self._view = view
        self._seen = self._mask.argmax(axis=0) if len(self._mask) > 1 else np.where(self._mask[0] >= CERTAIN, 0, -1)

    def surest(self, count: int) -> tuple[Reference, ...]:
        present = self._present()
        if not present:
            raise TargetError(
                f"{self._view.model} sees no region in the photo; in Python, ortcam.Region(mask=...) gives one"
            )
        return tuple(self.find(index, place) for place, index in enumerate(present[:count]))

    def find(self, asked: Any, place: int) -> Reference:
        if isinstance(asked, str | Integral):
            asked = Region(int(asked) if isinstance(asked, Integral) else asked)
        if not isinstance(asked, Region):
            raise refuse("segment", asked, self._view.model)
        index = None
        if asked.label is not None:
            index = resolve_class(asked.label, len(self._mask), self._view.labels or (), self._view.model)
        cell = None if asked.at is None else self._cell(asked.at)
        if index is None and cell is not None:
            index = int(self._seen[cell])
            if index < 0:
                raise TargetError(f"{self._view.model} sees no class at {_point(asked)}; {self._listed()}")
        if index is None:
            if len(self._mask) > 1:
                raise TargetError(
                    f"the region has no class, and {self._view.model} has several; give its label (--target)"
                )
            index = 0
        if asked.mask is not None:
            region = self._given(asked.mask)
        else:
            region = (self._seen == index) & self._inside()
            if cell is not None:
                region = self._connected(region, cell, index, asked)
        if not region.any():
            raise TargetError(f"the region of {self._view.show(index)!r} is empty in this photo; {self._listed()}")
        vector = (region / region.sum()).astype(np.float32).reshape(-1)
        return Reference(place, vector, index, self._view.name_of(index), self._place(region, asked))

    def _present(self) -> list[int]:
        seen = self._seen[self._inside()]
        counts = np.bincount(seen[seen >= 0], minlength=len(self._mask))
        order = [int(index) for index in np.argsort(-counts, kind="stable") if counts[index]]
        return [index for index in order if (self._view.name_of(index) or "").lower() not in BACKGROUND]

    def _listed(self) -> str:
        shown = ", ".join(map(self._view.show, self._present()[:MOST_SHOWN]))
        return f"seen are {shown}" if shown else "nothing is seen in it"

    def _cell(self, at: Any) -> tuple[int, int]:
        """Return the row and column of the mask that hold a pixel of the photo."""
        x, y = numbers(at, 2, "at", "x and y in pixels of the photo")
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
                f"at is {x:g},{y:g}, a pixel that preprocessing cuts off; expected a pixel that the model sees"
            )
        return cell

    def _given(self, mask: Any) -> NDArray[np.bool_]:
        """Return a region of the photo on the grid of the model's mask: the pixel at the centre of each cell counts."""
        given = np.asarray(mask)
        if given.dtype != np.bool_ and not (np.issubdtype(given.dtype, np.number) and np.isfinite(given).all()):
            raise TargetError(f"mask holds {given.dtype}, or NaN; expected bool")
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

    def _connected(
        self, region: NDArray[np.bool_], cell: tuple[int, int], index: int, asked: Region
    ) -> NDArray[np.bool_]:
        if not region[cell]:
            raise TargetError(f"{self._view.show(index)!r} is not seen at {_point(asked)}; {self._listed()}")
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
        mask = None if asked.mask is None else digest(region)
        return {
            "kind": "region", "box": rounded(box), "share": float(region.mean()), "at": at, "mask_sha256": mask,
            "region": {"grid": list(region.shape), "runs": as_runs(region)},
        }  # fmt: skip


def _point(asked: Region) -> str:
    return ",".join(f"{float(side):g}" for side in asked.at or ())


def as_runs(region: NDArray[np.bool_]) -> list[int]:
    """Return a region [h,w] as the lengths of its runs, row by row: outside, inside, ...; the first may be 0."""
    flat = region.reshape(-1)
    ends = [0, *(np.flatnonzero(flat[1:] != flat[:-1]) + 1).tolist(), len(flat)]
    runs = [end - begin for begin, end in pairwise(ends)]
    return [0, *runs] if flat[0] else runs


def of_runs(runs: Sequence[int], grid: Sequence[int]) -> NDArray[np.bool_]:
    """Return the region [h,w] of `as_runs`."""
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(tuple(grid))
