"""Turn a photo into a model's input tensor.

photo [H,W,3] uint8 RGB -> input [1,C,H,W] (or [1,H,W,C]) float32
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ortcam.core.pictures import Crop, Photo, Tensor
from ortcam.errors import OptionError, nearest, one_line
from ortcam.model.image import as_photo
from ortcam.model.processors import translate
from ortcam.model.resampling import Interpolation, resample

Fit = Literal["letterbox", "stretch", "crop"]
PadPlace = Literal["centre", "end"]
NAMES = ("imagenet", "tf", "caffe", "lite", "raw")  # of `Preprocessing.named`
GRAY_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601 luma of R, G and B


@dataclass(frozen=True)
class Preprocessing:
    """The steps that turn a photo into a model's input. The model file stores them; every field is plain JSON.

    The photo is fitted into ``height`` x ``width``, its channels ordered, and each value v in [0, 255]
    becomes ``(v * scale - mean) / std``, per channel in the order of `channels`.

    `resize` belongs to ``crop`` alone: the other two fits have a null `resize`. Without `fit`, a photo is cropped if
    `resize` is given, else stretched.

    Attributes:
        height: the input height in pixels.
        width: the input width in pixels.
        channels: ``RGB``, ``BGR`` or ``GRAY`` (ITU-R BT.601 luma, as OpenCV and Pillow).
        resize: the length in pixels to which the shorter side of the photo is resized before the centre is cut out
            (torchvision's Resize and CenterCrop); or the (height, width) to which the photo is stretched before the
            cut. None stretches the whole photo to the input size.
        interpolation: Pillow's filters: ``nearest``, ``box``, ``bilinear``, ``hamming``, ``bicubic`` (a = -0.5) or
            ``lanczos``; all but ``nearest`` are antialiased. ``linear`` is OpenCV's INTER_LINEAR, not antialiased.
        scale: the factor of every value.
        mean: what is subtracted then, per channel.
        std: what each channel is divided by at last.
        crop_rounding: where the cut-out begins if an odd number of pixels is left: ``even`` rounds the half to an
            even number (torchvision), ``down`` rounds it down (transformers).
        fit: ``crop`` resizes as `resize` says and cuts out the centre; ``stretch`` resizes the whole photo to the input
            size; ``letterbox`` resizes the whole photo by one factor, so that it just fits, and pads the rest
            (ultralytics' LetterBox: the sides are ``round(side * factor)``). None: as `resize` says.
        pad_value: the padding of ``letterbox``, 0 to 255: one number, or one per channel in the order of `channels`.
            None means 114, as ultralytics pads.
        pad_place: where ``letterbox`` pads: ``centre`` on both sides, an odd pixel more at the bottom and right;
            ``end`` at the bottom and right only. None means ``centre``.
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
    fit: Fit | None = None
    pad_value: tuple[float, ...] | None = None
    pad_place: PadPlace | None = None

    def __post_init__(self) -> None:
        count = len("L" if self.channels == "GRAY" else self.channels)
        if self.channels not in ("RGB", "BGR", "GRAY"):
            raise OptionError(f"preprocessing channels is {self.channels!r}; expected RGB, BGR or GRAY")
        for name, known in _CHOICES.items():
            given = getattr(self, name)
            if given not in known and not (given is None and name in _FIELDS_OF_FIT):
                expected = f"{', '.join(known[:-1])} or {known[-1]}"
                raise OptionError(f"preprocessing {name} is {given!r}; expected {expected}")
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
        self._check_fit(count)

    def _check_fit(self, count: int) -> None:
        """Refuse contradictions of `fit` and other fields; fill the padding of a letterbox in."""
        if self.fit in ("letterbox", "stretch") and self.resize is not None:
            raise OptionError(
                f"preprocessing fit is {self.fit!r} and resize is {self.resize}; expected resize null: only fit 'crop' "
                "has a size before the cut"
            )
        if self.fit == "crop" and self.resize is None:
            raise OptionError(
                "preprocessing fit is 'crop' and resize is null; expected resize, the length of the photo's shorter "
                "side before the cut"
            )
        if self.fit != "letterbox":
            for name in ("pad_value", "pad_place"):
                if getattr(self, name) is not None:
                    raise OptionError(
                        f"preprocessing {name} is {getattr(self, name)!r} and fit is {self.fit!r}; expected fit "
                        f"'letterbox', or no {name}"
                    )
            return
        pads = _per_channel(_USUAL_PADDING if self.pad_value is None else self.pad_value, count, "pad_value")
        if min(pads) < 0 or max(pads) > 255:
            raise OptionError(f"preprocessing pad_value is {self.pad_value!r}; expected numbers from 0 to 255")
        object.__setattr__(self, "pad_value", pads)
        object.__setattr__(self, "pad_place", self.pad_place or "centre")

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
        """Return plain JSON; `fit` and its fields only if they are given, so that older versions read the rest."""
        return {name: value for name, value in asdict(self).items() if value is not None or name not in _FIELDS_OF_FIT}

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
        if self.fit == "letterbox":
            down, across = photo_height / full_h, photo_width / full_w
            below, right = self.height - full_h + top, self.width - full_w + left
            padding = (-top * down, -left * across, below * down, right * across)
            return Crop(0, 0, photo_height, photo_width, padding)
        y0, y1 = _photo_span(top, self.height, full_h, photo_height)
        x0, x1 = _photo_span(left, self.width, full_w, photo_width)
        return Crop(y0, x0, y1, x1)

    def apply(self, photo: Photo, layout: Literal["NCHW", "NHWC"] = "NCHW") -> Tensor:
        """Turn a photo uint8 [H,W,3] RGB into an input float32 [1,C,height,width], or [1,height,width,C]."""
        (full_h, top), (full_w, left) = self._placement(*photo.shape[:2])
        if self.fit == "letterbox":
            planes = self._ordered(resample(photo, (full_h, full_w), (0, 0), (full_h, full_w), self.interpolation))
            planes = self._padded(planes, -top, -left)
        else:
            planes = resample(photo, (full_h, full_w), (top, left), (self.height, self.width), self.interpolation)
            planes = self._ordered(planes)
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        tensor = (planes * np.float32(self.scale) - mean) / std
        if layout == "NHWC":
            tensor = tensor.transpose(1, 2, 0)
        return np.ascontiguousarray(tensor[None], np.float32)

    def _ordered(self, planes: Tensor) -> Tensor:
        """Return planes [3,h,w] of R, G and B as the planes [C,h,w] of `channels`."""
        if self.channels == "GRAY":
            return np.tensordot(GRAY_WEIGHTS[None], planes, axes=1)
        return planes[::-1] if self.channels == "BGR" else planes

    def _padded(self, planes: Tensor, top: int, left: int) -> Tensor:
        """Put planes [C,h,w] into [C,height,width] of the padding's value."""
        whole = np.empty((self.channel_count, self.height, self.width), np.float32)
        whole[:] = np.array(self.pad_value, np.float32)[:, None, None]
        whole[:, top : top + planes.shape[1], left : left + planes.shape[2]] = planes
        return whole

    def invert(self, tensor: Tensor, layout: Literal["NCHW", "NHWC"] = "NCHW") -> Photo:
        """Turn an input float32 [1,C,H,W] (or [1,H,W,C]) back into a photo uint8 [H,W,3], to draw on it.

        The padding of a letterboxed input stays in the photo, because the tensor does not say where the padding ends.
        """
        pixels = tensor[0].transpose(1, 2, 0) if layout == "NCHW" else tensor[0]
        pixels = (pixels * np.array(self.std, np.float32) + np.array(self.mean, np.float32)) / self.scale
        pixels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
        return as_photo(np.ascontiguousarray(pixels[:, :, ::-1] if self.channels == "BGR" else pixels))

    def _placement(self, photo_height: int, photo_width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return, for rows and columns, the size of the whole resized photo and where the input begins in it.

        The input of a letterbox begins before the photo: at 0 or less.
        """
        if self.fit == "letterbox":
            factor = min(self.height / photo_height, self.width / photo_width)
            full_h, full_w = max(round(photo_height * factor), 1), max(round(photo_width * factor), 1)
            if self.pad_place == "end":
                return (full_h, 0), (full_w, 0)
            return (full_h, -((self.height - full_h) // 2)), (full_w, -((self.width - full_w) // 2))
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


_CHOICES = {
    "interpolation": get_args(Interpolation),
    "crop_rounding": ("even", "down"),
    "fit": get_args(Fit),
    "pad_place": get_args(PadPlace),
}
_FIELDS_OF_FIT = ("fit", "pad_value", "pad_place")  # null unless given
_USUAL_PADDING = 114.0  # of ultralytics


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
