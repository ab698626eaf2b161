"""Preprocessing: what turns a photo into a model's input tensor.

photo [H,W,3] uint8 RGB -> input [1,C,H,W] (or [1,H,W,C]) float32
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ortcam.errors import OptionError, nearest, one_line
from ortcam.image import Photo, as_photo

Tensor = NDArray[np.float32]
GRAY_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601 luma of R, G and B
_ROWS_OF_A_BAND, _COLUMNS_OF_A_BAND = 8, 16


@dataclass(frozen=True)
class Crop:
    """The part of a photo that the model saw: rows ``top:bottom``, columns ``left:right``, in photo pixels."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left


@dataclass(frozen=True)
class Preprocessing:
    """How a photo becomes a model's input. Stored in the model file; every field is plain JSON.

    The photo is resized, cut to ``height`` x ``width``, its channels ordered, and each value v in [0, 255]
    becomes ``(v * scale - mean) / std``, per channel in the order of `channels`.

    Attributes:
        height, width: the input size in pixels.
        channels: ``RGB``, ``BGR`` or ``GRAY`` (ITU-R BT.601 luma, as OpenCV and Pillow).
        resize: the length in pixels that the shorter side of the photo gets before the centre is cut out
            (torchvision's Resize and CenterCrop); None stretches the whole photo to the input size.
        interpolation: ``bilinear`` or ``bicubic`` (a = -0.5), both antialiased, with Pillow's filter definitions.
        scale, mean, std: see above.
    """

    height: int
    width: int
    channels: Literal["RGB", "BGR", "GRAY"] = "RGB"
    resize: int | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        count = len("L" if self.channels == "GRAY" else self.channels)
        if self.channels not in ("RGB", "BGR", "GRAY"):
            raise OptionError(f"preprocessing channels is {self.channels!r}; expected RGB, BGR or GRAY")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise OptionError(f"preprocessing interpolation is {self.interpolation!r}; expected bilinear or bicubic")
        for name in ("height", "width", "resize"):
            number = getattr(self, name)
            if not (name == "resize" and number is None) and (type(number) is not int or number < 1):
                raise OptionError(f"preprocessing {name} is {number!r}; expected a whole number of pixels from 1")
        if isinstance(self.scale, bool) or not isinstance(self.scale, int | float) or not 0 < abs(self.scale) < np.inf:
            raise OptionError(f"preprocessing scale is {self.scale!r}; expected a finite number other than 0")
        if self.resize is not None and self.resize < max(self.height, self.width):
            raise OptionError(
                f"preprocessing resize is {self.resize}, less than the input size {self.height}x{self.width}; "
                "expected the length of the photo's shorter side before the crop, or null to stretch"
            )
        object.__setattr__(self, "mean", _per_channel(self.mean, count, "mean"))
        object.__setattr__(self, "std", _per_channel(self.std, count, "std"))
        if 0.0 in self.std:
            raise OptionError("preprocessing std has a 0; expected values to divide by")

    @classmethod
    def named(cls, name: str, height: int, width: int, channels: int = 3) -> Preprocessing:
        """Return a named preprocessing: ``imagenet``, ``tf``, ``caffe``, ``lite`` or ``raw``.

        ``imagenet`` is torchvision's (values / 255, ImageNet mean and deviation); ``tf`` and ``caffe`` are
        Keras' `preprocess_input` modes (values / 127.5 - 1; BGR minus the mean), with Keras' stretching;
        ``lite`` is EfficientNet-Lite's ((values - 127) / 128, bicubic, cut out of size + 32); ``raw`` passes
        the values 0 to 255 on. With ``channels=1`` the photo is made grey and the means are averaged.
        """
        short = max(height, width)
        presets: dict[str, dict[str, Any]] = {
            "imagenet": {
                "resize": round(short * 256 / 224),
                "scale": 1 / 255,
                "mean": (0.485, 0.456, 0.406),
                "std": (0.229, 0.224, 0.225),
            },
            "tf": {"scale": 1 / 127.5, "mean": (1.0, 1.0, 1.0)},
            "caffe": {"channels": "BGR", "mean": (103.939, 116.779, 123.68)},
            "lite": {
                "resize": short + 32,
                "interpolation": "bicubic",
                "mean": (127.0, 127.0, 127.0),
                "std": (128.0, 128.0, 128.0),
            },
            "raw": {},
        }
        if name not in presets:
            raise OptionError(
                f"preprocessing {name!r} does not exist; expected {', '.join(presets)} or a JSON file"
                + nearest(name, presets)
            )
        fields = presets[name]
        if channels == 1:
            fields["channels"] = "GRAY"
            for key in ("mean", "std"):
                fields[key] = (float(np.mean(fields.get(key, (float(key == "std"),)))),)
        return cls(height, width, **fields)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Preprocessing:
        """Return the preprocessing whose fields a JSON object gives.

        Raises:
            OptionError: an unknown field, or a value that makes no sense.
        """
        if not isinstance(fields, Mapping):
            raise OptionError("preprocessing is no JSON object; expected fields such as height, width, mean, std")
        known = list(cls.__dataclass_fields__)
        for name in fields:
            if name not in known:
                raise OptionError(
                    f"preprocessing has no field {name!r}; expected {', '.join(known)}{nearest(name, known)}"
                )
        for name in ("height", "width"):
            if name not in fields:
                raise OptionError(f"preprocessing has no {name}; expected the input size in pixels")
        return cls(**fields)

    @classmethod
    def from_file(cls, path: str | PathLike[str]) -> Preprocessing:
        """Read the preprocessing from a JSON file."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise OptionError(f"cannot read the preprocessing {path}: {one_line(error)}") from error

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def resized(self, height: int, width: int) -> Preprocessing:
        """Return the same preprocessing for another input size; the crop keeps its proportion."""
        ratio = max(height, width) / max(self.height, self.width)
        return replace(
            self,
            height=height,
            width=width,
            resize=None if self.resize is None else round(self.resize * ratio),
        )

    @property
    def channel_count(self) -> int:
        return len(self.mean)

    def crop(self, photo_height: int, photo_width: int) -> Crop:
        """Return the part of a photo of this size that reaches the model."""
        (full_h, top), (full_w, left) = self._placement(photo_height, photo_width)
        y0, y1 = _photo_span(top, self.height, full_h, photo_height)
        x0, x1 = _photo_span(left, self.width, full_w, photo_width)
        return Crop(y0, x0, y1, x1)

    def apply(self, photo: Photo, layout: Literal["NCHW", "NHWC"] = "NCHW") -> Tensor:
        """Turn a photo uint8 [H,W,3] RGB into an input float32 [1,C,height,width], or [1,height,width,C]."""
        (full_h, top), (full_w, left) = self._placement(*photo.shape[:2])
        planes = resample(photo, (full_h, full_w), (top, left), (self.height, self.width), self.interpolation)
        if self.channels == "GRAY":
            planes = np.tensordot(GRAY_WEIGHTS[None], planes, axes=1)
        elif self.channels == "BGR":
            planes = planes[::-1]
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        tensor = (planes * np.float32(self.scale) - mean) / std
        if layout == "NHWC":
            tensor = tensor.transpose(1, 2, 0)
        return np.ascontiguousarray(tensor[None], np.float32)

    def invert(self, tensor: Tensor, layout: Literal["NCHW", "NHWC"] = "NCHW") -> Photo:
        """Turn an input float32 [1,C,H,W] (or [1,H,W,C]) back into a photo uint8 [H,W,3], to draw upon."""
        pixels = tensor[0].transpose(1, 2, 0) if layout == "NCHW" else tensor[0]
        pixels = (pixels * np.array(self.std, np.float32) + np.array(self.mean, np.float32)) / self.scale
        pixels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
        return as_photo(np.ascontiguousarray(pixels[:, :, ::-1] if self.channels == "BGR" else pixels))

    def _placement(self, photo_height: int, photo_width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return, for rows and columns, the size of the whole resized photo and where the crop begins in it."""
        if self.resize is None:
            return (self.height, 0), (self.width, 0)
        short = min(photo_height, photo_width)
        full_h = int(self.resize * photo_height / short)  # torchvision's Resize truncates the longer side
        full_w = int(self.resize * photo_width / short)
        # torchvision's CenterCrop: Python's rounding of half the rest
        return (full_h, round((full_h - self.height) / 2)), (full_w, round((full_w - self.width) / 2))


def _per_channel(values: Any, count: int, name: str) -> tuple[float, ...]:
    if isinstance(values, int | float):
        values = [values]
    try:
        if isinstance(values, str):
            raise TypeError
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise OptionError(f"preprocessing {name} is {values!r}; expected {count} numbers") from error
    if len(set(numbers)) == 1:
        numbers = numbers[:1] * count
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise OptionError(f"preprocessing {name} has the values {list(numbers)}; expected {count} finite numbers")
    return numbers


def _photo_span(begin: int, length: int, full: int, photo: int) -> tuple[int, int]:
    first = min(round(begin * photo / full), photo - 1)
    return first, min(max(round((begin + length) * photo / full), first + 1), photo)


def resample(
    photo: Photo,
    full: tuple[int, int],
    offset: tuple[int, int],
    size: tuple[int, int],
    interpolation: Literal["bilinear", "bicubic"],
) -> Tensor:
    """Resize a photo to `full` = (rows, columns), antialiased, and return the part of `size` at `offset`.

    The filters are Pillow's (triangle, and cubic with a = -0.5, widened by the scale when shrinking), without
    its rounding to 8 bits between the passes. Only the part is computed, and no float copy of the photo is held.

    Returns:
        float32 [3, rows, columns], values about 0 to 255 (bicubic is cut to that range, as 8-bit images are).
    """
    down = _bands(photo.shape[0], full[0], offset[0], size[0], interpolation, _ROWS_OF_A_BAND)
    across = _bands(photo.shape[1], full[1], offset[1], size[1], interpolation, _COLUMNS_OF_A_BAND)
    x_begin, x_end = min(columns.start for _, columns, _ in across), max(columns.stop for _, columns, _ in across)
    width = x_end - x_begin
    rows = np.empty((3, size[0], width), np.float32)
    for at, samples, band in down:
        strip = photo[samples, x_begin:x_end].astype(np.float32).reshape(band.shape[1], -1)
        rows[:, at] = (band @ strip).reshape(len(band), width, 3).transpose(2, 0, 1)
    lines = rows.reshape(-1, width)
    pixels = np.empty((len(lines), size[1]), np.float32)
    for at, samples, band in across:
        pixels[:, at] = lines[:, samples.start - x_begin : samples.stop - x_begin] @ band.T
    return np.clip(pixels, 0, 255, out=pixels).reshape(3, *size)


@lru_cache(maxsize=16)
def _bands(
    length: int, full: int, offset: int, size: int, interpolation: Literal["bilinear", "bicubic"], most: int
) -> list[tuple[slice, slice, NDArray[np.float32]]]:
    """Cut a resampling matrix, nearly all of which is zero, into bands of at most `most` rows: quick products.

    The arguments but the last are those of `filter_taps`. Kept for the next photo of the size.

    Returns:
        Of each band the output samples, the samples that they are made of, and the matrix [outputs,samples].
    """
    first, weights = filter_taps(length, full, offset, size, interpolation)
    bands = []
    for begin in range(0, size, most):
        at = slice(begin, min(begin + most, size))
        low, high = int(first[at].min()), min(int(first[at].max()) + weights.shape[1], length)
        band = np.zeros((at.stop - begin, high - low), np.float32)
        for row, start, taps in zip(band, first[at] - low, weights[at], strict=True):
            row[start : start + len(taps)] = taps[: len(row) - start]
        bands.append((at, slice(low, high), band))
    return bands


def filter_taps(
    length: int, full: int, offset: int, size: int, interpolation: Literal["bilinear", "bicubic"]
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return which samples make each output sample: the first one [size], and the weights [size, taps].

    Taps that lie outside the photo weigh 0; the weights of each output sample sum to 1.
    """
    scale = length / full
    stretch = max(scale, 1.0)
    support = (1.0 if interpolation == "bilinear" else 2.0) * stretch
    centre = (np.arange(offset, offset + size) + 0.5) * scale
    first = np.clip(np.floor(centre - support + 0.5).astype(np.intp), 0, length - 1)
    taps = min(int(np.ceil(support * 2)) + 1, length)
    at = first[:, None] + np.arange(taps)
    distance = np.abs((at + 0.5 - centre[:, None]) / stretch)
    weights = _triangle(distance) if interpolation == "bilinear" else _cubic(distance)
    weights[at >= length] = 0
    return first, (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _triangle(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(1 - distance, 0)


def _cubic(distance: NDArray[np.float64], a: float = -0.5) -> NDArray[np.float64]:
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
