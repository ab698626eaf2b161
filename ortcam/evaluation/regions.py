"""Regions of photos as data sets state them: boxes, PNG files, arrays, polygons and run lengths."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ortcam.errors import DatasetError, ImageError
from ortcam.model.image import decode_photo, read_file
from ortcam.model.png import MAGIC

# COCO and CUB have boxes that end a fraction of a pixel outside the photo, because their numbers are rounded.
TOLERANCE = 1.0  # pixels
_MOST_PIXELS = 1 << 40  # of a mask as run lengths: more is a mistake, and would overflow sums


class Box(NamedTuple):
    """A box in photo pixels: ``left <= x < right``, ``top <= y < bottom``; x grows to the right, y downwards.

    The first pixel of a row covers 0 to 1. A pixel belongs to the box if its centre does.
    """

    left: float
    top: float
    right: float
    bottom: float

    def __str__(self) -> str:
        return f"({', '.join(f'{number:g}' for number in self)})"


class MaskSource(Protocol):
    """A mask that is read when it is needed: a PNG file, polygons, run lengths or an array."""

    def read(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """Return the mask, bool [H,W], of a photo of `size` (H, W) pixels; True inside the object.

        Raises:
            DatasetError: the mask has another size, or cannot be read.
        """


def inside(box: Box, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the pixels of a photo of `size` (H, W) whose centres lie in the box, bool [H,W].

    Raises:
        DatasetError: the box is empty, or lies more than a pixel outside the photo.
    """
    height, width = size
    numbers = [float(number) for number in box]
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise DatasetError(f"box {Box(*box)} is not four finite numbers (left, top, right, bottom)")
    left, top, right, bottom = numbers
    if right <= left or bottom <= top:
        raise DatasetError(f"box {Box(*box)} is empty; expected left < right and top < bottom")
    if min(left, top) < -TOLERANCE or right > width + TOLERANCE or bottom > height + TOLERANCE:
        raise DatasetError(f"box {Box(*box)} lies outside the photo, which is {shown(size)}")
    region = np.zeros(size, np.bool_)
    rows, columns = (
        slice(max(0, math.ceil(a - 0.5)), max(0, math.ceil(b - 0.5))) for a, b in ((top, bottom), (left, right))
    )
    region[rows, columns] = True
    return region


def cut(text: object, most: int = 120) -> str:
    """Return a text of a file for a message: in one line, at most `most` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else line[: most - 3] + "..."


def shown(size: tuple[int, ...]) -> str:
    """Return (H, W) as in ``640x480 pixels``: the width first."""
    return f"{size[1]}x{size[0]} pixels"


@dataclass(frozen=True, eq=False)
class MaskFile:
    """A PNG file: a pixel belongs to the object if any of its colours is not 0 (black).

    So a file with 0 and 1, with 0 and 255, with a colour for each object, or with a palette whose first colour is
    black can be read. A palette's void colour (VOC's border, index 255) counts as the object.

    Attributes:
        path: the file.
        name: the name in the record: the path relative to the data set's folder.
    """

    path: Path
    name: str

    def read(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """Return the mask, bool [H,W].

        Raises:
            DatasetError: the file is missing, not a PNG, of another size, or has transparency or 16 bits.
        """
        try:
            data = read_file(self.path)
            if not data.startswith(MAGIC):
                raise DatasetError(f"mask {self.path} is not a PNG; expected one, with the object white on black")
            depth, colours = data[24:25], data[25:26]
            if colours in (b"\4", b"\6") or b"tRNS" in data[: data.find(b"IDAT")]:
                raise DatasetError(f"mask {self.path} has transparency; save it without: the object white on black")
            if depth == b"\x10":
                raise DatasetError(f"mask {self.path} has 16 bits a pixel; save it with 8")
            pixels = decode_photo(data, str(self.path))
        except ImageError as error:
            raise DatasetError(f"mask: {error}") from error
        if pixels.shape[:2] != size:
            raise DatasetError(
                f"mask {self.path} is {shown(pixels.shape)}, the photo is {shown(size)}; expected the same size"
            )
        return np.asarray(pixels.any(axis=2), np.bool_)

    def fingerprint(self) -> str:
        """Return the file's name."""
        return f"file {self.name}"


@dataclass(frozen=True, eq=False)
class MaskArray:
    """An array [H,W]: a pixel belongs to the object if its value is not 0.

    Attributes:
        values: bool or numbers [H,W].
    """

    values: NDArray[Any]

    def read(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """Return the mask, bool [H,W].

        Raises:
            DatasetError: the array has another shape.
        """
        if self.values.shape != size:
            raise DatasetError(f"mask has shape {list(self.values.shape)}, the photo is {shown(size)}; expected [H,W]")
        return np.asarray(self.values != 0, np.bool_)

    def fingerprint(self) -> str:
        """Return a hash of the object's pixels."""
        return f"array {list(self.values.shape)} {_hash(np.packbits(self.values != 0))}"


@dataclass(frozen=True)
class Rectangle:
    """A box as a mask, for an object without a mask beside others that have one."""

    box: Box

    def read(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """Return the box's pixels, bool [H,W].

        Raises:
            DatasetError: the box is empty or lies outside the photo.
        """
        return inside(self.box, size)

    def fingerprint(self) -> str:
        """Return the box."""
        return f"box {self.box}"


@dataclass(frozen=True, eq=False)
class Polygons:
    """The outlines of an object: its region is the union of the polygons.

    A pixel belongs to a polygon if its centre does, by the even-odd rule. COCO's own masks are drawn on a grid of a
    fifth of a pixel, so pixels at the outline may differ from them.

    Attributes:
        outlines: float [N,2] each, in photo pixels: x and y of the corners.
    """

    outlines: tuple[NDArray[np.float64], ...]

    def read(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """Return the mask, bool [H,W].

        Raises:
            DatasetError: a corner lies more than a pixel outside the photo.
        """
        region = np.zeros(size, np.bool_)
        for outline in self.outlines:
            low, high = outline.min(axis=0), outline.max(axis=0)
            if low.min() < -TOLERANCE or (high > np.array(size[::-1]) + TOLERANCE).any():
                corner = next(xy for xy in outline if xy.min() < -TOLERANCE or (xy > np.array(size[::-1]) + 1).any())
                raise DatasetError(
                    f"polygon has a corner ({corner[0]:g}, {corner[1]:g}) outside the photo, which is {shown(size)}"
                )
            region |= fill(outline, size)
        return region

    def fingerprint(self) -> str:
        """Return a hash of the corners."""
        return "polygons " + " ".join(map(_hash, self.outlines))


@dataclass(frozen=True, eq=False)
class RunLengths:
    """A mask as COCO's run lengths: column by column, first the number of pixels outside, then inside, in turn.

    Attributes:
        size: the mask's (H, W).
        counts: int64 [N], the lengths of the runs; their sum is H*W.
    """

    size: tuple[int, int]
    counts: NDArray[np.int64]

    def read(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """Return the mask, bool [H,W].

        Raises:
            DatasetError: the mask has another size.
        """
        if self.size != size:
            raise DatasetError(f"mask is {shown(self.size)}, the photo is {shown(size)}; expected the same size")
        values = np.arange(len(self.counts)) % 2 == 1
        return np.ascontiguousarray(np.repeat(values, self.counts).reshape(size[::-1]).T)

    def fingerprint(self) -> str:
        """Return a hash of the runs."""
        return f"runs {list(self.size)} {_hash(self.counts)}"


def as_mask(mask: MaskSource | str | PathLike[str] | NDArray[Any]) -> MaskSource:
    """Return a mask of a PNG's path or an array [H,W]; others as they are.

    Raises:
        DatasetError: it has another type.
    """
    if isinstance(mask, str | PathLike):
        return MaskFile(Path(mask), Path(mask).name)
    if isinstance(mask, np.ndarray) or hasattr(mask, "__array__"):
        return MaskArray(np.asarray(mask))
    if hasattr(mask, "read"):
        return mask
    raise DatasetError(
        f"mask has the type {type(mask).__name__}; expected a PNG's path, an array [H,W] or a MaskSource"
    )


def fill(outline: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the pixels whose centres lie inside a polygon by the even-odd rule, bool [H,W].

    Args:
        outline: x and y of the corners, [N,2], in photo pixels; the last corner is joined to the first.
        size: (H, W).
    """
    height, width = size
    flips = np.zeros((height, width + 1), np.bool_)  # pixels from which on the row's inside and outside change places
    corners = np.concatenate([outline, outline[:1]])
    for (x0, y0), (x1, y1) in pairwise(corners):
        if y0 > y1:
            x0, y0, x1, y1 = x1, y1, x0, y0
        first, last = (int(np.clip(np.ceil(y - 0.5), 0, height)) for y in (y0, y1))
        rows = np.arange(first, last)  # y0 <= row + 0.5 < y1: a corner counts for one of its two edges
        if rows.size:
            x = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
            flips[rows, np.clip(np.ceil(x - 0.5), 0, width).astype(np.intp)] ^= True
    return np.logical_xor.accumulate(flips, axis=1)[:, :width]


def polygons(values: Any) -> Polygons:
    """Return the polygons of COCO's `segmentation`: a list of lists x, y, x, y, ...

    Raises:
        DatasetError: it is not such a list; a polygon has fewer than three corners.
    """
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise DatasetError("segmentation has no polygons; expected lists of x, y, x, y, ...")
    outlines = []
    for one in values:
        try:
            numbers = np.array(one, np.float64)
        except (ValueError, TypeError, OverflowError) as error:
            raise DatasetError("segmentation has a polygon with something other than numbers") from error
        if numbers.ndim != 1 or numbers.size < 6 or numbers.size % 2 or not np.isfinite(numbers).all():
            raise DatasetError(
                f"segmentation has a polygon of {numbers.size} numbers; expected x, y of 3 corners or more"
            )
        outlines.append(numbers.reshape(-1, 2))
    return Polygons(tuple(outlines))


def run_lengths(size: Any, counts: Any) -> RunLengths:
    """Return the mask of COCO's `size` [H, W] and `counts`: a list of numbers, or a compressed string.

    Raises:
        DatasetError: they are something else, or the runs have another number of pixels than H*W.
    """
    if not isinstance(size, Sequence) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise DatasetError(f"segmentation has size {cut(size, 50)}; expected [height, width]")
    if isinstance(counts, str | bytes):
        runs = decompress(counts)
    elif isinstance(counts, list) and all(type(run) is int for run in counts):
        runs = counts
    else:
        raise DatasetError("segmentation has counts other than a list of whole numbers or a string")
    height, width = size
    total = sum(runs)
    if any(run < 0 for run in runs) or total != height * width or total > _MOST_PIXELS:
        raise DatasetError(f"segmentation has runs of {total} pixels; expected {height} x {width} = {height * width}")
    return RunLengths((height, width), np.array(runs, np.int64))


def decompress(counts: str | bytes) -> list[int]:
    """Return the runs that COCO's compressed string stands for.

    A character holds six bits, from the code 48 on: five bits of a number, the lowest first, and a bit that says that
    more follow. The highest bit of the last five is the sign. From the fourth run on, a number is the difference to the
    run two places before (pycocotools, common/maskApi.c).

    Raises:
        DatasetError: the string has another character, or ends inside a number.
    """
    codes = counts if isinstance(counts, bytes) else counts.encode("utf-8", errors="replace")
    runs: list[int] = []
    number = shift = 0
    for code in codes:
        bits = code - 48
        if not 0 <= bits < 64 or shift > 60:
            raise DatasetError(
                "segmentation has a string of counts with invalid characters; expected COCO's compression"
            )
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        runs.append(number + runs[-2] if len(runs) > 2 else number)
        number = shift = 0
    if shift:
        raise DatasetError("segmentation has a string of counts that is cut short; expected COCO's compression")
    return runs


def _hash(values: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]
