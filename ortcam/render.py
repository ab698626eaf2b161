"""Pictures: a map laid over its photo, and PNG files."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ortcam.errors import OptionError, OutputError, nearest
from ortcam.image import Crop, Photo

COLORMAPS = {"turbo": cv2.COLORMAP_TURBO, "jet": cv2.COLORMAP_JET, "inferno": cv2.COLORMAP_INFERNO, "viridis": cv2.COLORMAP_VIRIDIS}


def draw_overlay(
    photo: Photo, saliency: NDArray[np.float32], crop: Crop, opacity: float = 0.6, colormap: str = "turbo"
) -> Photo:
    """Lay a map over its photo; what the model did not see is shown dim and grey.

    Args:
        photo: uint8 [H,W,3] RGB.
        saliency: float32 [H,W] in [0,1].
        crop: the part that the model saw.
        opacity: how much of the colour covers the photo, in [0,1].
        colormap: turbo, jet, inferno or viridis.

    Returns:
        uint8 [H,W,3] RGB.

    Raises:
        OptionError: an unknown colormap, or an opacity out of range.
    """
    if colormap not in COLORMAPS:
        raise OptionError(f"colormap {colormap!r} does not exist; expected {', '.join(COLORMAPS)}{nearest(colormap, COLORMAPS)}")
    if not 0 <= opacity <= 1:
        raise OptionError(f"opacity is {opacity}; expected a number from 0 to 1")
    inside = slice(crop.top, crop.bottom), slice(crop.left, crop.right)
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
    overlay = np.repeat((grey // 2 + 24)[:, :, None], 3, axis=2)
    levels = np.rint(np.clip(saliency[inside], 0, 1) * 255).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, COLORMAPS[colormap]), cv2.COLOR_BGR2RGB)
    overlay[inside] = cv2.addWeighted(np.ascontiguousarray(photo[inside]), 1 - opacity, colours, opacity, 0)
    return overlay


def encode_png(picture: Photo) -> bytes:
    """Return the PNG file of an RGB picture uint8 [H,W,3]."""
    done, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not done:
        raise OutputError(f"a picture of {picture.shape[1]}x{picture.shape[0]} pixels cannot be written as PNG")
    return bytes(data)


def resize_map(saliency: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Resize a map [h,w] bilinearly (half-pixel centres) to [height,width]."""
    resized: NDArray[np.float32] = cv2.resize(saliency, (width, height), interpolation=cv2.INTER_LINEAR)
    return resized
