"""Draw the small pictures of a report: photos, overlays and the contact sheet."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ortcam.output.render import draw_sheet, encode_jpeg, shrink_photo
from ortcam.output.show import draw
from ortcam.output.text import AsciiFont, spell

if TYPE_CHECKING:
    from ortcam.core.pictures import Photo
    from ortcam.output.explanation import Pictures
    from ortcam.output.render import Style

_STEPS = ((448, 80), (448, 65), (320, 70), (224, 65), (160, 60), (96, 50))  # longer side in pixels, JPEG quality
_SHEET_SIDE = 176  # pixels of a picture on the contact sheet
_LONGEST_CAPTION = 19  # characters below a picture of the contact sheet
_GREY = 128  # a photo that is unknown


class Thumbnails:
    """The small pictures of one explanation."""

    def __init__(self, explanation: Pictures, style: Style) -> None:
        """Shrink the photo; overlays are drawn when they are asked for."""
        self._explanation, self._style = explanation, style
        size, photo = explanation.photo_size, explanation.photo
        self.photo = shrink_photo(np.full((*size, 3), _GREY, np.uint8) if photo is None else photo, _STEPS[0][0])

    def overlay(self, place: int) -> Photo:
        """Draw the overlay of the target at a place of `targets`, uint8 [h,w,3] RGB of the size of `photo`."""
        crop = self._explanation.crop.resized(self._explanation.photo_size, self.photo.shape[:2])
        if not crop.height or not crop.width:  # the part that the model saw is less than a pixel of this size
            return self.photo
        return draw(self._explanation, place, self._style, longest=_STEPS[0][0])

    def encode(self, most_bytes: int) -> Iterator[str]:
        """Yield the photo and then the overlay of each target as JPEG in base64.

        Args:
            most_bytes: for all of them together. The smallest pictures have about 2 kB, whatever this says.
        """
        count = len(self._explanation.targets) + 1
        most = most_bytes * 3 // 4 // count
        yield encode_small(self.photo, most)
        for place in range(count - 1):
            yield encode_small(self.overlay(place), most)


def encode_small(picture: Photo, most: int) -> str:
    """Return a picture as JPEG in base64: the best of `_STEPS` with at most `most` bytes, or the smallest."""
    data = b""
    for longest, quality in _STEPS:
        data = encode_jpeg(shrink_photo(picture, longest), quality)
        if len(data) <= most:
            break
    return base64.b64encode(data).decode("ascii")


class Sheet:
    """A contact sheet of at most `most` photos, spread evenly over all that are offered, however many they are."""

    def __init__(self, most: int = 48) -> None:
        self._most, self._step, self._offered = most, 1, 0
        self._entries: list[tuple[Photo, Photo, str]] = []

    def wants(self) -> bool:
        """Count a photo, and return whether it is to be added."""
        self._offered += 1
        return (self._offered - 1) % self._step == 0

    def add(self, photo: Photo, overlay: Photo, caption: str) -> None:
        """Add a photo with a caption in ASCII.

        When there are too many, every second photo is dropped, and from then on as many are skipped.
        """
        if len(self._entries) == self._most:
            self._entries = self._entries[::2]
            self._step *= 2
            if (self._offered - 1) % self._step:
                return
        photo, overlay = (shrink_photo(picture, 2 * _SHEET_SIDE) for picture in (photo, overlay))
        self._entries.append((photo, overlay, caption))

    def draw(self) -> Photo:
        """Draw the sheet, uint8 [H,W,3] RGB."""
        blank = np.full((8, 8, 3), 235, np.uint8)
        return draw_sheet(self._entries or [(blank, blank, "nothing explained")], _SHEET_SIDE, columns=6)


def as_caption(name: str, index: int, score: str) -> str:
    """Return a name and a score in ASCII that fit below a picture; a name in other letters becomes ``class N``."""
    plain = spell(name, AsciiFont()) or f"class {index}"
    most = _LONGEST_CAPTION - len(score) - 1
    return f"{plain if len(plain) <= most else plain[: most - 3] + '...'} {score}"
