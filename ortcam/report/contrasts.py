"""Draw the pictures of a mistake: both maps, their contrasts, and the photo without the top region."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ortcam.evaluation.debugging import top_region
from ortcam.output.render import place_map, shrink_photo
from ortcam.output.show import draw
from ortcam.report.thumbnails import encode_small

if TYPE_CHECKING:
    from ortcam.core.pictures import Photo
    from ortcam.output.explanation import Explanation
    from ortcam.output.render import Style

_LONGEST = 448  # pixels of a picture's longer side
_GREY = 128  # a photo that is unknown


def encode_mistake(explanation: Explanation, style: Style, most_bytes: int) -> Iterator[str]:
    """Yield six pictures of a mistake as JPEG in base64.

    They are the photo, the overlay of the predicted class, that of the true class, the photo without the top region,
    the contrast of the predicted with the true class, and that of the true with the predicted class.

    Args:
        explanation: has two targets, the predicted and the true class.
        style: the colours of the overlays.
        most_bytes: for all of them together.
    """
    size, whole = explanation.photo_size, explanation.photo
    photo = shrink_photo(np.full((*size, 3), _GREY, np.uint8) if whole is None else whole, _LONGEST)
    small = photo.shape[0], photo.shape[1]
    crop = explanation.crop.resized(size, small)
    if crop.height > 0 and crop.width > 0:
        removed = photo.copy()
        region = place_map(top_region(explanation).astype(np.float32), crop, small) >= 0.5
        removed[region] = _colour_of_zero(explanation)
        first, second = (draw(explanation, place, style, longest=_LONGEST) for place in (0, 1))
        contrasts = [draw(explanation, place, style, against=1 - place, longest=_LONGEST) for place in (0, 1)]
        pictures = [photo, first, second, removed, *contrasts]
    else:  # the part that the model saw is less than a pixel of this size
        pictures = [photo] * 6
    most = most_bytes * 3 // 4 // len(pictures)
    for picture in pictures:
        yield encode_small(picture, most)


def _colour_of_zero(explanation: Explanation) -> Photo:
    """Return the colour that the preprocessing turns into 0, uint8 [3] RGB; grey if it is unknown."""
    stated = explanation.provenance.preprocessing
    if stated is None:
        return np.full(3, _GREY, np.uint8)
    colour = np.broadcast_to(np.array(stated["mean"], np.float64) / stated["scale"], 3)
    levels: Photo = np.rint(np.clip(colour[::-1] if stated["channels"] == "BGR" else colour, 0, 255)).astype(np.uint8)
    return levels
