"""The small pictures of one photo: the photo, and the map of each column over it, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ortcam.core.convention import Floats
from ortcam.core.pictures import Crop, Photo
from ortcam.output.explanation import Explanation
from ortcam.output.render import draw_overlay, draw_place, encode_jpeg, resize_map, shrink_photo

LONGEST = 448  # pixels of the longer side of a picture in a report
_QUALITY = 93  # of JPEG


class Strip:
    """The pictures of one photo, all of one size."""

    def __init__(self, explanation: Explanation, side: int) -> None:
        """Take the photo of an explanation; `side` is the longer side of a picture in pixels."""
        photo = explanation.photo
        if photo is None:
            photo = np.full((*explanation.photo_size, 3), 128, np.uint8)
        times = side // max(photo.shape[:2])
        if times > 1:  # a tiny photo keeps its pixels
            photo = np.repeat(np.repeat(photo, times, axis=0), times, axis=1)
        self._small: Photo = shrink_photo(photo, side)
        self.pictures: list[Photo] = [self._small]

    def add(self, explanation: Explanation, place: int, saliency: Floats) -> None:
        """Draw the map of a target, float32 [H,W] at the photo's size, over the photo."""
        height, width = self._small.shape[:2]
        size = explanation.photo_size
        crop = explanation.crop.resized(size, (height, width))
        crop = Crop(crop.top, crop.left, max(crop.bottom, crop.top + 1), max(crop.right, crop.left + 1))
        overlay = draw_overlay(self._small, resize_map(saliency, height, width), crop)
        self.pictures.append(draw_place(overlay, explanation.targets[place].place or {}, crop, size))

    def encode(self) -> bytes:
        """Return all pictures in a row as a JPEG file."""
        return encode_jpeg(np.concatenate(self.pictures, axis=1), _QUALITY)


def split(row: Photo, count: int) -> Sequence[Photo]:
    """Return the `count` pictures of a row."""
    return np.split(row, count, axis=1)
