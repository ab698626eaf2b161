"""Job: a photo, read and prepared for the model."""

from __future__ import annotations

import time
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from ortcam.core.pictures import Crop, Photo, Tensor
from ortcam.core.provenance import Origin
from ortcam.model.cam_model import CamModel
from ortcam.model.pixels import read_image
from ortcam.runtime.threads import calm_blas

if TYPE_CHECKING:
    from ortcam.core.pictures import Image


@dataclass(frozen=True)
class Job:
    """A photo that was read and preprocessed in `seconds`."""

    source: Path | None
    origin: Origin
    photo: Photo | None
    tensor: Tensor
    crop: Crop
    seconds: float


def prepare(model: CamModel, image: Image) -> Job:
    """Read an image and prepare the model's input tensor.

    Raises:
        ImageError: the image cannot be read, or does not fit the model.
    """
    begin = time.perf_counter()
    with calm_blas():
        pixels, origin = read_image(image)
        photo, tensor, crop = model.prepare(pixels)
    if origin is None:
        origin = Origin.of_array(tensor if photo is None or pixels.dtype.kind == "f" else photo)
    source = Path(image) if isinstance(image, str | PathLike) else None
    return Job(source, origin, photo, tensor, crop, time.perf_counter() - begin)
