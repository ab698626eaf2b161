"""Resize photos with Pillow's filters, in float32.

photo uint8 [H,W,3] -> float32 [3,h,w], values 0 to 255
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ortcam.core.pictures import Photo, Tensor

Interpolation = Literal["nearest", "box", "bilinear", "linear", "hamming", "bicubic", "lanczos"]
_ROWS_OF_A_BAND, _COLUMNS_OF_A_BAND = 8, 16


def resample(
    photo: Photo,
    full: tuple[int, int],
    offset: tuple[int, int],
    size: tuple[int, int],
    interpolation: Interpolation,
) -> Tensor:
    """Resize a photo to `full` = (rows, columns), antialiased, and return the part of `size` at `offset`.

    The filters are Pillow's (widened by the scale when shrinking), without its rounding to 8 bits between the passes.
    ``linear`` is bilinear that is never widened, OpenCV's INTER_LINEAR.
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
    stretch = 1.0 if interpolation == "linear" else max(scale, 1.0)
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
    "nearest": 0.5, "box": 0.5, "bilinear": 1.0, "hamming": 1.0, "bicubic": 2.0, "lanczos": 3.0, "linear": 1.0
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
    "nearest": _box, "box": _box, "bilinear": _triangle, "hamming": _hamming, "bicubic": _cubic, "lanczos": _lanczos,
    "linear": _triangle,
}  # fmt: skip
