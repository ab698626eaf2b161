"""Sample: a photo of a data set with its true class and the place of its object."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ortcam.errors import DatasetError
from ortcam.evaluation.regions import Box, MaskSource, as_mask, cut, inside, shown
from ortcam.explain.signatures import check_images

if TYPE_CHECKING:
    from ortcam.core.pictures import Image

__all__ = ["Box", "MaskSource", "Sample", "name_photos"]


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
        masks: the masks of the objects of this class; paths of PNGs and arrays [H,W] may be given too.
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

    def __post_init__(self) -> None:
        """Make boxes and masks of what was given.

        Raises:
            DatasetError: the label or a mask has an unknown type, or a box has not four numbers.
        """
        if isinstance(self.label, bool) or not isinstance(self.label, Integral | str | None):
            raise DatasetError(
                f"{cut(self.name)}: label is {cut(repr(self.label))}; expected a class index, a label or None"
            )
        object.__setattr__(self, "label", int(self.label) if isinstance(self.label, Integral) else self.label)
        for box in self.boxes:
            if len(box) != 4:
                raise DatasetError(
                    f"{cut(self.name)}: box {box} has {len(box)} numbers; expected left, top, right, bottom"
                )
        object.__setattr__(self, "boxes", tuple(Box(*box) for box in self.boxes))
        object.__setattr__(self, "masks", tuple(map(as_mask, self.masks)))

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
            raise DatasetError(f"{cut(self.name)}{where}: {error}") from error
        return region


def name_photos(photos: Iterable[Image]) -> list[tuple[str, Any]]:
    """Return photos with unique names: the file's name, the path where names repeat, or a number.

    Raises:
        DatasetError: there are none.
        OptionError: a single photo was given.
    """
    check_images(photos)
    images = list(photos)
    if not images:
        raise DatasetError("got no photos; expected at least one")
    paths = [Path(image) if isinstance(image, str | PathLike) else None for image in images]
    names = [path.name for path in paths if path is not None]
    named, seen = list[tuple[str, Any]](), dict[str, int]()
    for number, (image, path) in enumerate(zip(images, paths, strict=True), 1):
        name = f"photo {number}" if path is None else path.name if names.count(path.name) == 1 else str(path)
        seen[name] = seen.get(name, 0) + 1
        named.append((name if seen[name] == 1 else f"{name} ({seen[name]})", image))
    return named
