"""Turn a photo into a model's input tensor.

photo [H,W,3] uint8 RGB -> input [1,C,H,W] (or [1,H,W,C]) float32
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ortcam.core.pictures import Crop, Photo, Tensor
from ortcam.errors import OptionError, nearest, one_line
from ortcam.model.image import as_photo
from ortcam.model.processors import translate

Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
NAMES = ("imagenet", "tf", "caffe", "lite", "raw")  # of `Preprocessing.named`
GRAY_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601 luma of R, G and B
_ROWS_OF_A_BAND, _COLUMNS_OF_A_BAND = 8, 16


@dataclass(frozen=True)
class Preprocessing:
    """The steps that turn a photo into a model's input. The model file stores them; every field is plain JSON.

    The photo is resized, cut to ``height`` x ``width``, its channels ordered, and each value v in [0, 255]
    becomes ``(v * scale - mean) / std``, per channel in the order of `channels`.

    Attributes:
        height, width: the input size in pixels.
        channels: ``RGB``, ``BGR`` or ``GRAY`` (ITU-R BT.601 luma, as OpenCV and Pillow).
        resize: the length in pixels to which the shorter side of the photo is resized before the centre is cut out
            (torchvision's Resize and CenterCrop); or the (height, width) to which the photo is stretched before the
            cut. None stretches the whole photo to the input size.
        interpolation: Pillow's filters: ``nearest``, ``box``, ``bilinear``, ``hamming``, ``bicubic`` (a = -0.5) or
            ``lanczos``; all but ``nearest`` are antialiased.
        scale, mean, std: see above.
        crop_rounding: where the cut-out begins if an odd number of pixels is left: ``even`` rounds the half to an
            even number (torchvision), ``down`` rounds it down (transformers).
    """

    height: int
    width: int
    channels: Literal["RGB", "BGR", "GRAY"] = "RGB"
    resize: int | tuple[int, int] | None = None
    interpolation: Interpolation = "bilinear"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    crop_rounding: Literal["even", "down"] = "even"

    def __post_init__(self) -> None:
        count = len("L" if self.channels == "GRAY" else self.channels)
        if self.channels not in ("RGB", "BGR", "GRAY"):
            raise OptionError(f"preprocessing channels is {self.channels!r}; expected RGB, BGR or GRAY")
        for name, known in (("interpolation", get_args(Interpolation)), ("crop_rounding", ("even", "down"))):
            if getattr(self, name) not in known:
                expected = f"{', '.join(known[:-1])} or {known[-1]}"
                raise OptionError(f"preprocessing {name} is {getattr(self, name)!r}; expected {expected}")
        for name in ("height", "width"):
            if not _is_length(getattr(self, name)):
                given = getattr(self, name)
                raise OptionError(f"preprocessing {name} is {given!r}; expected a whole number of pixels from 1")
        if isinstance(self.scale, bool) or not isinstance(self.scale, int | float) or not 0 < abs(self.scale) < np.inf:
            raise OptionError(f"preprocessing scale is {self.scale!r}; expected a finite number other than 0")
        object.__setattr__(self, "resize", self._checked_resize())
        object.__setattr__(self, "mean", _per_channel(self.mean, count, "mean"))
        object.__setattr__(self, "std", _per_channel(self.std, count, "std"))
        if 0.0 in self.std:
            raise OptionError("preprocessing std has a 0; expected values to divide by")

    def _checked_resize(self) -> int | tuple[int, int] | None:
        """Return `resize` as a number, a pair or None; in JSON, pairs are lists."""
        if self.resize is None:
            return None
        pair = isinstance(self.resize, list | tuple)
        sides: tuple[Any, ...] = tuple(self.resize) if isinstance(self.resize, list | tuple) else (self.resize,) * 2
        if len(sides) != 2 or not all(_is_length(side) for side in sides):
            raise OptionError(
                f"preprocessing resize is {self.resize!r}; expected a whole number of pixels from 1, or [height, width]"
            )
        least = (self.height, self.width) if pair else (max(self.height, self.width),) * 2
        if any(side < length for side, length in zip(sides, least, strict=True)):
            raise OptionError(
                f"preprocessing resize is {self.resize}, less than the input size {self.height}x{self.width}; "
                "expected the length of the photo's shorter side before the crop, or null to stretch"
            )
        return (sides[0], sides[1]) if pair else sides[0]

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
                f"preprocessing {name!r} is unknown; expected {', '.join(presets)} or a JSON file"
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
        """Make a preprocessing from the fields of a JSON object.

        Args:
            fields: the fields of this class, or the object in a preprocessor_config.json of Hugging Face's
                transformers, or in a config.json of timm.

        Raises:
            OptionError: a field is unknown, a value is invalid, or a step cannot be done exactly.
        """
        if not isinstance(fields, Mapping):
            raise OptionError("preprocessing is not a JSON object; expected fields such as height, width, mean, std")
        fields = translate(fields)
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
        """Read a preprocessing from a JSON file, in the forms of `from_dict`."""
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise OptionError(f"cannot read the preprocessing {path}: {one_line(error)}") from error
        try:
            return cls.from_dict(fields)
        except OptionError as error:
            raise OptionError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def resized(self, height: int, width: int) -> Preprocessing:
        """Return the same preprocessing for another input size; the crop keeps its proportion."""
        ratio = max(height, width) / max(self.height, self.width)
        resize = self.resize
        if isinstance(resize, tuple):
            resize = round(resize[0] * height / self.height), round(resize[1] * width / self.width)
        elif resize is not None:
            resize = round(resize * ratio)
        return replace(self, height=height, width=width, resize=resize)

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
        """Turn an input float32 [1,C,H,W] (or [1,H,W,C]) back into a photo uint8 [H,W,3], to draw on it."""
        pixels = tensor[0].transpose(1, 2, 0) if layout == "NCHW" else tensor[0]
        pixels = (pixels * np.array(self.std, np.float32) + np.array(self.mean, np.float32)) / self.scale
        pixels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
        return as_photo(np.ascontiguousarray(pixels[:, :, ::-1] if self.channels == "BGR" else pixels))

    def _placement(self, photo_height: int, photo_width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return, for rows and columns, the size of the whole resized photo and where the crop begins in it."""
        if self.resize is None:
            return (self.height, 0), (self.width, 0)
        if isinstance(self.resize, tuple):
            full_h, full_w = self.resize
        else:
            short = min(photo_height, photo_width)
            full_h = int(self.resize * photo_height / short)  # torchvision's Resize truncates the longer side
            full_w = int(self.resize * photo_width / short)
        return (full_h, self._half(full_h - self.height)), (full_w, self._half(full_w - self.width))

    def _half(self, rest: int) -> int:
        return rest // 2 if self.crop_rounding == "down" else round(rest / 2)  # Python rounds half to even


def _is_length(value: Any) -> bool:
    return type(value) is int and value >= 1


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
    interpolation: Interpolation,
) -> Tensor:
    """Resize a photo to `full` = (rows, columns), antialiased, and return the part of `size` at `offset`.

    The filters are Pillow's (widened by the scale when shrinking), without its rounding to 8 bits between the passes.
    Only the part is computed, and no float copy of the photo is held.

    Returns:
        float32 [3, rows, columns], values 0 to 255 (filters that overshoot are cut to that range, as 8-bit images are).
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
    length: int, full: int, offset: int, size: int, interpolation: Interpolation, most: int
) -> list[tuple[slice, slice, NDArray[np.float32]]]:
    """Cut a resampling matrix, which is nearly all zero, into bands of at most `most` rows, for fast products.

    All arguments except the last are those of `filter_taps`. The result is kept for the next photo of the size.

    Returns:
        For each band the output samples, the input samples that they need, and the matrix [outputs,samples].
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
    length: int, full: int, offset: int, size: int, interpolation: Interpolation
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return the input samples of each output sample: the first sample [size], and the weights [size, taps].

    Taps outside the photo have weight 0; the weights of each output sample sum to 1.
    """
    scale = length / full
    stretch = max(scale, 1.0)
    centre = (np.arange(offset, offset + size) + 0.5) * scale
    if interpolation == "nearest":  # a box as wide as one sample, over the sample that contains the centre
        # Pillow adds up the scale (Geometry.c), which decides the side of a centre that lies between two samples.
        centre = np.cumsum([scale / 2] + [scale] * (offset + size - 1))[offset:]
        centre, stretch = np.floor(centre) + 0.5, 1.0
    support = SUPPORT[interpolation] * stretch
    first = np.clip(np.floor(centre - support + 0.5).astype(np.intp), 0, length - 1)
    taps = min(int(np.ceil(support * 2)) + 1, length)
    at = first[:, None] + np.arange(taps)
    weights = _KERNELS[interpolation]((at + 0.5 - centre[:, None]) / stretch)
    weights[at >= length] = 0
    return first, (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


# Pillow's filters (src/libImaging/Resample.c): how far each reaches, and its weights by distance.
SUPPORT: dict[Interpolation, float] = {
    "nearest": 0.5, "box": 0.5, "bilinear": 1.0, "hamming": 1.0, "bicubic": 2.0, "lanczos": 3.0
}  # fmt: skip


def _box(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    weights: NDArray[np.float64] = np.where((distance > -0.5) & (distance <= 0.5), 1.0, 0.0)
    return weights


def _triangle(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    weights: NDArray[np.float64] = np.maximum(1 - np.abs(distance), 0)
    return weights


def _hamming(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    window = 0.54 + 0.46 * np.cos(np.pi * distance)
    return np.where(np.abs(distance) < 1, np.sinc(distance) * window, 0.0)


def _cubic(distance: NDArray[np.float64], a: float = -0.5) -> NDArray[np.float64]:
    distance = np.abs(distance)
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))


def _lanczos(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0.0)


_KERNELS: dict[Interpolation, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "nearest": _box, "box": _box, "bilinear": _triangle, "hamming": _hamming, "bicubic": _cubic, "lanczos": _lanczos
}  # fmt: skip
