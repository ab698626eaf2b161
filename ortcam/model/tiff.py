"""Read TIFF files whose samples are not plain RGB or grey: find the range and the colours of their samples.

Source: TIFF 6.0 (tags, CIELab), Adobe's TIFF Technical Notes (ICCLab), BigTIFF.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ortcam.errors import ImageError

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _SAMPLES, _EXTRA, _FORMAT = 256, 257, 258, 262, 277, 338, 339
_MIN, _MAX, _SMIN, _SMAX, _ORIENTATION = 280, 281, 340, 341, 274
_TAGS = {
    _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _SAMPLES, _EXTRA, _FORMAT, _MIN, _MAX, _SMIN, _SMAX, _ORIENTATION
}  # fmt: skip
_TYPES = {1: "B", 3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 11: "f", 12: "d", 16: "Q", 17: "q"}  # struct's letters
_MOST_VALUES = 64  # the most values of a tag that are read
_WHITE_IS_ZERO, _RGB, _CMYK, _CIELAB, _ICCLAB, _ITULAB = 0, 2, 5, 8, 9, 10
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_ASSOCIATED, _UNASSOCIATED = 1, 2
# XYZ at D50 to linear sRGB, Bradford's adaptation included (brucelindbloom.com).
_D50 = np.array([0.96422, 1.0, 0.82521])
_XYZ_TO_SRGB = np.array(
    [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]
)


@dataclass(frozen=True)
class TiffSamples:
    """The meaning of the samples in a TIFF file's first image.

    Attributes:
        data: the file. If its colours are Lab, the tags in `data` say RGB, so that decoders do not change the samples.
        size: (height, width); None if the file does not state it.
        limits: the values of black and white; None for the limits of the type.
        inverted: whether the least value is white.
        lab: the kind of Lab colours, by its number in the file; None for other colours.
        alpha: the kind of the fourth sample: ``straight``, ``premultiplied`` or ``none``.
    """

    data: bytes
    size: tuple[int, int] | None
    limits: tuple[float, float] | None
    inverted: bool
    lab: int | None
    alpha: str

    def to_rgb(self, samples: NDArray[Any], name: str) -> NDArray[Any]:
        """Turn decoded samples [H,W] or [H,W,C] (R, G, B first) into a photo of 8 or 16 bits.

        Raises:
            ImageError: a value is NaN or infinite.
        """
        if self.lab is not None:
            return _lab_to_rgb(samples, self.lab)
        if self.limits is None and self.inverted and samples.dtype != np.uint8:  # OpenCV inverts 8 bits and fewer
            samples = np.iinfo(samples.dtype).max - samples
        if self.limits is not None:
            low, high = self.limits[::-1] if self.inverted else self.limits
            values = (samples.astype(np.float64) - low) * (255 / (high - low))
            if not np.isfinite(values).all():
                raise ImageError(f"{name} has NaN or infinite values; expected finite numbers")
            samples = np.rint(np.clip(values, 0, 255)).astype(np.uint8)
        if samples.ndim == 3 and samples.shape[2] == 4:
            if self.alpha == "none":
                return np.ascontiguousarray(samples[:, :, :3])
            # libtiff multiplies colours of 8 bits by their alpha.
            if self.alpha == "premultiplied" or samples.dtype == np.uint8:
                white = np.iinfo(samples.dtype).max
                over = samples[:, :, :3].astype(np.uint32) + (white - samples[:, :, 3:].astype(np.uint32))
                samples = np.minimum(over, white).astype(samples.dtype)
        return samples


def read_samples(data: bytes, name: str) -> TiffSamples:
    """Read the meaning of the samples from the tags.

    Raises:
        ImageError: the file does not state the range of the samples, or its colours are of an unknown kind.
    """
    tags, places = _read_tags(data)
    bits, sample_format = max(tags.get(_BITS, [1])), tags.get(_FORMAT, [_UNSIGNED])[0]
    size = (tags[_HEIGHT][0], tags[_WIDTH][0]) if _HEIGHT in tags and _WIDTH in tags else None
    photometric, extra = tags.get(_PHOTOMETRIC, [_RGB])[0], tags.get(_EXTRA, [0])[0]
    alpha = {_ASSOCIATED: "premultiplied", _UNASSOCIATED: "straight"}.get(extra, "none")
    if photometric in (_CIELAB, _ICCLAB, _ITULAB):
        if (
            photometric == _ITULAB
            or tags.get(_SAMPLES, [3])[0] != 3
            or bits not in (8, 16)
            or sample_format != _UNSIGNED
        ):
            raise ImageError(f"{name} has an unsupported kind of Lab colours; convert it to RGB")
        at, letter = places[_PHOTOMETRIC]
        rgb = data[:at] + struct.pack(letter, _RGB) + data[at + struct.calcsize(letter) :]
        return TiffSamples(rgb, size, None, False, photometric, alpha)
    if photometric == _CMYK:  # CMYK becomes RGB with an opaque alpha
        alpha = "straight"
    limits = None
    if sample_format != _UNSIGNED or bits > 16:
        kinds = {_UNSIGNED: f"uint{bits}", _SIGNED: f"int{bits}", _FLOAT: f"float{bits}"}
        low, high = (tags.get(_SMIN) or tags.get(_MIN)), (tags.get(_SMAX) or tags.get(_MAX))
        if sample_format not in kinds or low is None or high is None or not min(low) < max(high):
            raise ImageError(
                f"{name} has samples of type {kinds.get(sample_format, 'complex or unknown')} and does not state which "
                "values are black and white (SMinSampleValue, SMaxSampleValue); expected 8 or 16 bits: scale it to "
                "these first"
            )
        limits = float(min(low)), float(max(high))
    return TiffSamples(data, size, limits, photometric == _WHITE_IS_ZERO, None, alpha)


def read_orientation(data: bytes) -> int:
    """Return the orientation, 1 to 8, of a TIFF file or an EXIF block; 1 if it states none."""
    found = _read_tags(data)[0].get(_ORIENTATION, [1])[0] if data[:4] in MAGIC else 1
    return found if found in range(1, 9) else 1


def _read_tags(data: bytes) -> tuple[dict[int, list[Any]], dict[int, tuple[int, str]]]:
    """Return the values of the first image's tags, and their positions with their struct formats.

    Broken tags are left out; the decoder reports a broken file.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = 43 in (data[2], data[3])
    tags: dict[int, list[Any]] = {}
    places: dict[int, tuple[int, str]] = {}
    try:
        (begin,) = struct.unpack_from(order + ("Q" if big else "L"), data, 8 if big else 4)
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, begin)
        begin += 8 if big else 2
        entry, inline = ("HHQ", 8) if big else ("HHL", 4)
        head = struct.calcsize(order + entry)
        for number in range(min(count, 4096)):
            place = begin + number * (head + inline)
            tag, kind, length = struct.unpack_from(order + entry, data, place)
            if tag not in _TAGS or kind not in _TYPES or not 0 < length <= _MOST_VALUES:
                continue
            form, at = f"{order}{length}{_TYPES[kind]}", place + head
            if struct.calcsize(form) > inline:
                (at,) = struct.unpack_from(order + ("Q" if big else "L"), data, at)
            tags[tag], places[tag] = list(struct.unpack_from(form, data, at)), (at, form)
    except struct.error:
        pass
    return tags, places


def _lab_to_rgb(samples: NDArray[Any], kind: int) -> NDArray[np.uint8]:
    """Turn L*a*b* at D50 into sRGB.

    Args:
        samples: [H,W,3], uint8 or uint16. CIELab has signed a and b, ICCLab has them with an offset.
        kind: the photometric interpretation, 8 or 9.
    """
    bits = samples.dtype.itemsize * 8
    unit = 1 << (bits - 8)  # of a and b
    lightness = samples[:, :, 0].astype(np.float32) * (100 / (255 * unit if kind == _ICCLAB else (1 << bits) - 1))
    if kind == _CIELAB:
        opponents = samples[:, :, 1:].view(np.int8 if bits == 8 else np.int16).astype(np.float32) / unit
    else:
        opponents = samples[:, :, 1:].astype(np.float32) / unit - 128
    y = (lightness + 16) / 116
    roots = np.stack([y + opponents[:, :, 0] / 500, y, y - opponents[:, :, 1] / 200], axis=-1)
    xyz = np.where(roots > 6 / 29, roots**3, (roots - 4 / 29) * (3 * (6 / 29) ** 2)) * _D50
    linear = np.clip(xyz @ _XYZ_TO_SRGB.T, 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    photo: NDArray[np.uint8] = np.rint(srgb * 255).astype(np.uint8)
    return photo
