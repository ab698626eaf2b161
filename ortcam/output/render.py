"""Draw maps over photos, and encode pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ortcam.core.pictures import Crop, Photo
from ortcam.core.regions import of_runs
from ortcam.errors import OptionError, OutputError, nearest

COLORMAPS = {
    "turbo": cv2.COLORMAP_TURBO,
    "jet": cv2.COLORMAP_JET,
    "inferno": cv2.COLORMAP_INFERNO,
    "viridis": cv2.COLORMAP_VIRIDIS,
}


@dataclass(frozen=True)
class Style:
    """How overlays are drawn.

    Attributes:
        opacity: opacity of the heat map, 0 to 1.
        colormap: turbo, jet, inferno or viridis.
        caption: write a caption and a colour bar under the overlay.
        boxes: draw the box around the map's maximum (`MapMeasures.peak_box`), dashed.

    Raises:
        OptionError: the colormap is unknown, or the opacity is out of range.
    """

    opacity: float = 0.6
    colormap: str = "turbo"
    caption: bool = False
    boxes: bool = False

    def __post_init__(self) -> None:
        check_style(self.opacity, self.colormap)


def check_style(opacity: float, colormap: str) -> None:
    """Raise an OptionError if the colormap is unknown or the opacity is out of range."""
    if not isinstance(colormap, str) or colormap not in COLORMAPS:
        raise OptionError(
            f"colormap {colormap!r} is unknown; expected {', '.join(COLORMAPS)}{nearest(str(colormap), COLORMAPS)}"
        )
    if not isinstance(opacity, int | float) or not 0 <= opacity <= 1:
        raise OptionError(f"opacity is {opacity}; expected a number from 0 to 1")


def draw_overlay(
    photo: Photo, saliency: NDArray[np.float32], crop: Crop, opacity: float = 0.6, colormap: str = "turbo"
) -> Photo:
    """Draw a map over its photo: the more salient, the more colour. Parts that the model did not see are dim and grey.

    Args:
        photo: uint8 [H,W,3] RGB.
        saliency: float32 [H,W] in [0,1].
        crop: the part that the model saw.
        opacity: opacity of the colour where the map is 1, in [0,1].
        colormap: turbo, jet, inferno or viridis.

    Returns:
        uint8 [H,W,3] RGB.

    Raises:
        OptionError: the colormap is unknown, or the opacity is out of range.
    """
    check_style(opacity, colormap)
    inside = crop.inside
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
    # np.repeat would hold up all other threads.
    overlay: Photo = np.asarray(cv2.cvtColor(grey // 2 + 24, cv2.COLOR_GRAY2RGB), np.uint8)
    levels = np.rint(np.clip(saliency[inside], 0, 1) * 255).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, COLORMAPS[colormap]), cv2.COLOR_BGR2RGB)
    cover = (np.float32(opacity) * np.sqrt(levels.astype(np.float32) / 255))[:, :, None]
    overlay[inside] = np.rint(photo[inside] * (1 - cover) + colours * cover).astype(np.uint8)
    return overlay


def draw_box(overlay: Photo, box: Sequence[float]) -> Photo:
    """Return an overlay with the outline of a box in white and black.

    Args:
        overlay: uint8 [H,W,3] RGB.
        box: left, top, right and bottom in pixels; it may reach beyond the photo.
    """
    drawn = overlay.copy()
    height, width = overlay.shape[:2]
    thick = max(1, round(min(height, width) / 250))
    left, top, right, bottom = (round(side) for side in box)
    # The outline of a box that fills the photo stays visible.
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        return drawn
    corners = (max(left, 0), max(top, 0)), (min(right, width) - 1, min(bottom, height) - 1)
    cv2.rectangle(drawn, *corners, (0, 0, 0), 3 * thick)
    cv2.rectangle(drawn, *corners, (255, 255, 255), thick)
    return drawn


def draw_place(overlay: Photo, where: Mapping[str, Any], crop: Crop, photo_size: tuple[int, int]) -> Photo:
    """Return an overlay with the outline of the box or the region of a target; the overlay itself for another target.

    Args:
        overlay: uint8 [H,W,3] RGB.
        where: `Target.place`.
        crop: the part that the model saw, in pixels of the overlay.
        photo_size: (H, W) of the photo, whose pixels the box has.
    """
    height, width = overlay.shape[:2]
    region = where.get("region")
    if region is not None:
        cells = of_runs(region["runs"], region["grid"]).astype(np.float32)
        return _draw_outline(overlay, place_map(cells, crop, (height, width)) >= 0.5)
    if where.get("box") is None:
        return overlay
    ratios = (width / photo_size[1], height / photo_size[0]) * 2
    return draw_box(overlay, [side * ratio for side, ratio in zip(where["box"], ratios, strict=True)])


def _draw_outline(overlay: Photo, region: NDArray[np.bool_]) -> Photo:
    """Return an overlay with the outlines of a region [H,W] in white and black, those of its holes too."""
    drawn = overlay.copy()
    thick = max(1, round(min(overlay.shape[:2]) / 250))
    outlines, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(drawn, outlines, -1, (0, 0, 0), 3 * thick)
    cv2.drawContours(drawn, outlines, -1, (255, 255, 255), thick)
    return drawn


def draw_dashed_box(overlay: Photo, box: Crop) -> Photo:
    """Return an overlay with the outline of a box inside the photo: white with black dashes, seen on any ground."""
    drawn = overlay.copy()
    thick = max(1, round(min(overlay.shape[:2]) / 220))
    last = max(box.right - thick, box.left), max(box.bottom - thick, box.top)
    for x in (box.left, last[0]):  # inside the box, so that a box at the photo's edge is whole
        _draw_dashes(drawn[box.top : box.bottom, x : x + thick], thick)
    for y in (box.top, last[1]):
        _draw_dashes(drawn[y : y + thick, box.left : box.right].transpose(1, 0, 2), thick)
    return drawn


def _draw_dashes(bar: Photo, thick: int) -> None:
    """Colour a bar [length,thick,3] in white with black dashes; both ends are white."""
    length = 6 * thick
    count = max(1, round(len(bar) / length) // 2 * 2 + 1)
    bar[:] = np.where(np.arange(len(bar)) * count // len(bar) % 2, 0, 255)[:, None, None]


def find_peak_box(saliency: NDArray[np.float32], maximum: tuple[int, int]) -> Crop:
    """Return the box around the connected pixels with at least half of the map's maximum that hold the maximum.

    Pixels that touch at a corner are connected.

    Args:
        saliency: float32 [H,W].
        maximum: (x, y) of the highest pixel.
    """
    x, y = maximum
    above = (saliency >= saliency[y, x] / 2).astype(np.uint8)
    _, _, _, (left, top, width, height) = cv2.floodFill(above, None, (x, y), 2, flags=8)
    return Crop(top, left, top + height, left + width)


def place_map(saliency: NDArray[np.float32], crop: Crop, size: tuple[int, int]) -> NDArray[np.float32]:
    """Return a map [h,w] of the model's input at the photo's size, float32 [H,W]; 0 outside the crop.

    The map is resized bilinearly (half-pixel centres). What lies over the padding of a letterbox is cut off.
    """
    top, left, bottom, right = crop.padding
    if top or bottom:
        saliency = _cut_padding(saliency, top, crop.height, bottom)
    if left or right:
        saliency = _cut_padding(saliency.T, left, crop.width, right).T
    placed = np.zeros(size, np.float32)
    placed[crop.inside] = resize_map(saliency, crop.height, crop.width)
    return placed


def _cut_padding(saliency: NDArray[np.float32], before: float, length: int, after: float) -> NDArray[np.float32]:
    """Resize the rows of a map [n,m] to `before` + `length` + `after` pixels, and return `length` of them.

    OpenCV resizes to whole pixels only, but padding ends between two pixels of the photo.
    """
    last = len(saliency) - 1
    places = (before + np.arange(length) + 0.5) * (len(saliency) / (before + length + after)) - 0.5
    places = np.clip(places, 0, last)
    first = places.astype(np.intp)
    share = (places - first).astype(np.float32)[:, None]
    placed: NDArray[np.float32] = saliency[first] * (1 - share) + saliency[np.minimum(first + 1, last)] * share
    return placed


def draw_sheet(entries: list[tuple[Photo, Photo, str]], side: int = 224, columns: int = 4) -> Photo:
    """Draw photos and their overlays one above the other, with captions, on one sheet.

    Args:
        entries: photo and overlay, uint8 [H,W,3] RGB, and a caption in ASCII, per photo.
        side: the side of a picture on the sheet in pixels; longer photos are cut in the middle.
        columns: the number of photos side by side.

    Returns:
        uint8 [H,W,3] RGB, on white.
    """
    gap, line = 8, 26
    columns = min(columns, max(len(entries), 1))
    rows = -(-len(entries) // columns)
    height, width = 2 * side + line + 2 * gap, side + gap
    sheet: Photo = np.full((rows * height + gap, columns * width + gap, 3), 255, np.uint8)
    for number, (photo, overlay, caption) in enumerate(entries):
        top, left = gap + number // columns * height, gap + number % columns * width
        for offset, picture in ((0, photo), (side + 4, overlay)):
            sheet[top + offset : top + offset + side, left : left + side] = _thumbnail(picture, side)
        baseline = (left, top + 2 * side + line - 4)
        cv2.putText(sheet, caption, baseline, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (30, 30, 30), 1, cv2.LINE_AA)
    return sheet


def _thumbnail(picture: Photo, side: int) -> Photo:
    height, width = picture.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    square = np.ascontiguousarray(picture[top : top + short, left : left + short])
    return cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA).astype(np.uint8)


def encode_png(picture: Photo) -> bytes:
    """Return the PNG file of an RGB picture uint8 [H,W,3]."""
    done, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not done:
        raise OutputError(f"a picture of {picture.shape[1]}x{picture.shape[0]} pixels cannot be written as PNG")
    return bytes(data)


def colour_table(colormap: str) -> Photo:
    """Return the colours of the levels 0 to 255, uint8 [256,3] RGB."""
    table = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], COLORMAPS[colormap])
    return cv2.cvtColor(table, cv2.COLOR_BGR2RGB)[:, 0].astype(np.uint8)


def shrink_photo(photo: Photo, longest: int) -> Photo:
    """Make a photo smaller, if it must be, so that its longer side has at most `longest` pixels."""
    ratio = min(1.0, longest / max(photo.shape[:2]))
    height, width = (max(1, round(side * ratio)) for side in photo.shape[:2])
    return photo if ratio == 1 else cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8)


def shrink_map(saliency: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Make a map [H,W] smaller by the means of its pixels; a map of this size is returned as it is."""
    if saliency.shape == (height, width):
        return saliency
    return cv2.resize(saliency, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32, copy=False)


def join_pictures(pictures: Sequence[Photo], gap: int = 8) -> Photo:
    """Return pictures uint8 [H,W,3] RGB side by side on white."""
    height, widths = max(len(one) for one in pictures), [one.shape[1] for one in pictures]
    joined: Photo = np.full((height, sum(widths) + gap * (len(pictures) - 1), 3), 255, np.uint8)
    left = 0
    for one, width in zip(pictures, widths, strict=True):
        joined[: len(one), left : left + width] = one
        left += width + gap
    return joined


def encode_jpeg(picture: Photo, quality: int = 95) -> bytes:
    """Return the JPEG file of an RGB picture uint8 [H,W,3]."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise OutputError(f"a picture of {picture.shape[1]}x{picture.shape[0]} pixels cannot be written as JPEG")
    return bytes(data)


def resize_map(saliency: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Resize a map [h,w] bilinearly (half-pixel centres) to [height,width]."""
    return cv2.resize(saliency, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32, copy=False)
