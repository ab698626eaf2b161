"""Read the pixels of paths, bytes and open files of pictures, of Pillow images, arrays and tensors."""

from __future__ import annotations

from os import PathLike
from typing import Any

import numpy as np

from ortcam.core.provenance import Origin
from ortcam.errors import ImageError, one_line
from ortcam.model.image import MAX_PIXELS, decode_photo, read_file, read_stream


def read_image(image: Any, max_pixels: int = MAX_PIXELS) -> tuple[np.ndarray[Any, Any], Origin | None]:
    """Return the pixels of a path, of a picture's bytes or binary file, of a Pillow image, a torch tensor or an array.

    Also return the origin of a picture file, hashed from the same bytes that are decoded. Other images have None: their
    origin is their pixels or values.

    Raises:
        ImageError: the image has another type, or the file cannot be read.
    """
    if isinstance(image, str | PathLike):
        data = read_file(image)
        return decode_photo(data, str(image), max_pixels), Origin.of_file(data, image)
    if isinstance(image, bytes | bytearray | memoryview) or _is_stream(image):
        data = read_stream(image) if _is_stream(image) else bytes(image)
        return decode_photo(data, "image", max_pixels), Origin.of_file(data)
    return read_pixels(image), None


def _is_stream(image: Any) -> bool:
    return hasattr(image, "read") and not hasattr(image, "__array__")


def read_pixels(image: Any, max_pixels: int = MAX_PIXELS) -> np.ndarray[Any, Any]:
    """Return the pixels of any image that `read_image` takes."""
    if isinstance(image, str | PathLike | bytes | bytearray | memoryview) or _is_stream(image):
        return read_image(image, max_pixels)[0]
    try:
        if hasattr(image, "convert") and hasattr(image, "getbands"):
            return _from_pillow(image)
        if hasattr(image, "detach") and hasattr(image, "cpu"):  # a torch tensor, on any device, of any float type
            image = image.detach().cpu()
            image = image.float() if image.is_floating_point() else image
        if hasattr(image, "__array__"):
            return np.asarray(image)
    except Exception as error:  # any error of Pillow (which decodes a file only now), torch and others
        raise ImageError(f"image, a {type(image).__name__}, cannot be read: {one_line(error)}") from error
    raise ImageError(
        f"image is a {type(image).__name__}; expected a path, the bytes of a picture, an RGB photo uint8 [H,W,3] "
        "or an input tensor"
    )


def _from_pillow(image: Any) -> np.ndarray[Any, Any]:
    """Return the pixels of a Pillow image as `read_photo` returns them: upright, with 16 bits and alpha kept."""
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode in ("F", "I"):  # Pillow would clip these to 0 to 255
        raise ValueError(f"mode {image.mode} does not say which values are black and white; scale it to 8 bits first")
    if image.mode in ("LA", "PA", "La", "RGBa") or (image.mode == "P" and "transparency" in image.info):
        image = image.convert("RGBA")
    if image.mode not in ("L", "RGB", "RGBA", "I;16"):
        image = image.convert("RGB")
    return np.asarray(image)
