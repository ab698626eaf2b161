"""Sample: a photo of a data set with its true class and the place of its object."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ortcam.errors import DatasetError

if TYPE_CHECKING:
    from ortcam.core.pictures import Image

# COCO and CUB have boxes that end a fraction of a pixel outside the photo, because their numbers are rounded.
TOLERANCE = 1.0  # pixels


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

    def fingerprint(self) -> str:
        """Return a short text that differs between different masks, for the record."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A photo, and one class in it.

    Attributes:
        image: the photo: a path, or anything else that `explain` takes.
        name: a name that is unique in the data set: the path relative to the data set's folder. Where a photo has
            objects of several classes, each class has a sample, such as ``a.jpg#dog``; these follow each other and
            share the same `image` object.
        label: the true class: its index, or a label of the model; None if it is unknown.
        boxes: the boxes of the objects of this class, in pixels of the upright photo.
        masks: the masks of the objects of this class.
        source: the file that states the boxes and masks, for messages; empty if no file does.
        size: the photo's (H, W) as that file states it; None if it does not.
    """

    image: Image
    name: str
    label: int | str | None = None
    boxes: tuple[Box, ...] = ()
    masks: tuple[MaskSource, ...] = ()
    source: str = ""
    size: tuple[int, int] | None = None

    def region(self, size: tuple[int, int]) -> NDArray[np.bool_] | None:
        """Return the pixels of the objects, bool [H,W]: the union of the masks; without masks, that of the boxes.

        Args:
            size: the photo's (H, W) in pixels.

        Returns:
            None if the sample has neither masks nor boxes.

        Raises:
            DatasetError: a mask or the annotations are of another size, a box is empty or lies more than a pixel
                outside the photo, or the region has no pixels.
        """
        if not self.masks and not self.boxes:
            return None
        where = f" ({self.source})" if self.source else ""
        try:
            if self.size not in (None, size):
                raise DatasetError(
                    f"the photo is {shown(size)}, but its annotations are for {shown(self.size or size)}; expected the "
                    "photo that was annotated"
                )
            masks = (mask.read(size) for mask in self.masks) if self.masks else (inside(b, size) for b in self.boxes)
            region = np.zeros(size, np.bool_)
            for mask in masks:
                region |= mask
            if not region.any():
                raise DatasetError("the region of the object has no pixels; correct or remove its annotation")
        except DatasetError as error:
            raise DatasetError(f"{self.name}{where}: {error}") from error
        return region


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


def shown(size: tuple[int, ...]) -> str:
    """Return (H, W) as in ``640x480 pixels``: the width first."""
    return f"{size[1]}x{size[0]} pixels"
