"""Measure maps: their maximum, their extent, and the correlation of two maps.

docs/record.md gives the definitions to users.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ortcam.core.pictures import Crop

EDGE = 0.05  # share of the crop's height and width, on each side
MOST_CORRELATED = 20  # classes; a larger matrix is left out
_LONGEST_SIDE = 256  # samples of a map for r, in each direction


@dataclass(frozen=True)
class MapMeasures:
    """Measures of one map [H,W]; all are None if the map is flat.

    Attributes:
        maximum: (x, y), the pixel of the photo where the map is highest; the first of several, row by row.
        half_maximum_box: the smallest box that holds every pixel where the map has at least half of its maximum, in
            photo pixels; `bottom` and `right` lie outside of it.
        share_above_half: the share of the photo's pixels where the map has at least half of its maximum, in [0,1].
        share_at_edge: the share of the map's sum within 5 % of the crop's height or width from the crop's edge, in
            [0,1]. A constant map has 0.19.
        peak_box: the smallest box that holds the pixels with at least half of the maximum that are connected with the
            maximum, also over corners.
        peak_share: the share of the photo's pixels inside `peak_box`, in [0,1].
    """

    maximum: tuple[int, int] | None = None
    half_maximum_box: Crop | None = None
    share_above_half: float | None = None
    share_at_edge: float | None = None
    peak_box: Crop | None = None
    peak_share: float | None = None


FindBox = Callable[[NDArray[np.float32], tuple[int, int]], Crop]


class Meter:
    """Measures the maps of one photo one by one, because all maps together may not fit into memory."""

    def __init__(self, crop: Crop, count: int, find_peak_box: FindBox | None = None) -> None:
        """Prepare for `count` maps of a photo.

        Args:
            crop: the part that the model saw.
            count: the number of maps.
            find_peak_box: returns `MapMeasures.peak_box` of a map and its maximum (x, y); None to leave it out.
        """
        self._crop = crop
        self._find_peak_box = find_peak_box
        self._correlates = count <= MOST_CORRELATED
        self._samples: list[NDArray[np.float64] | None] = []
        self.measures: list[MapMeasures] = []

    def add(self, saliency: NDArray[np.float32]) -> None:
        """Measure the next map, float32 [H,W]."""
        self.measures.append(measure_map(saliency, self._crop, self._find_peak_box))
        if self._correlates:
            self._samples.append(_samples(saliency, self._crop))

    def correlations(self) -> tuple[tuple[float | None, ...], ...] | None:
        """Return Pearson's r of every two maps, [T,T]; None for a flat map, and None alone for more than 20 maps.

        r is computed from a regular grid of at most 256 x 256 pixels of the crop.
        """
        if not self._correlates:
            return None
        return tuple(
            tuple(None if a is None or b is None else float(np.clip((a * b).sum(), -1, 1)) for b in self._samples)
            for a in self._samples
        )


def measure_map(saliency: NDArray[np.float32], crop: Crop, find_peak_box: FindBox | None = None) -> MapMeasures:
    """Measure a map, float32 [H,W] in [0,1]; the arguments are those of `Meter`."""
    inside = saliency[crop.inside]
    highest = inside.max()
    if not highest > 0:
        return MapMeasures()
    y, x = np.unravel_index(int(inside.argmax()), inside.shape)
    above = inside >= highest / 2
    rows, columns = np.flatnonzero(above.any(axis=1)), np.flatnonzero(above.any(axis=0))
    box = Crop(
        crop.top + int(rows[0]),
        crop.left + int(columns[0]),
        crop.top + int(rows[-1]) + 1,
        crop.left + int(columns[-1]) + 1,
    )
    # einsum, not a matrix product: the threads of NumPy's BLAS would wait busily for the next product.
    inner = np.einsum("y,yx->x", _coverage(crop.height), inside) @ _coverage(crop.width)
    whole = inside.sum(dtype=np.float64)
    maximum = crop.left + int(x), crop.top + int(y)
    peak = None if find_peak_box is None else find_peak_box(saliency, maximum)
    return MapMeasures(
        maximum=maximum,
        half_maximum_box=box,
        share_above_half=int(np.count_nonzero(above)) / saliency.size,
        share_at_edge=float(np.clip(1 - inner / whole, 0, 1)),
        peak_box=peak,
        peak_share=None if peak is None else peak.height * peak.width / saliency.size,
    )


def contrast_maps(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what speaks for one target rather than for another, float32 [H,W] in [0,1], from their maps [H,W].

    With a and b the maps, the contrast is max(0, a / sum(a) - b / sum(b)), divided by its maximum: the places that have
    a larger share of a than of b. The sums make the contrast independent of the two probabilities, and of the map's
    scale. What the maps have in common cancels: the contrast of a and b and that of b and a nowhere overlap. The
    contrast of equal maps is zero everywhere; the contrast with a flat map is the map.
    """
    difference = np.maximum(_shares(ours) - _shares(theirs), 0)
    highest = difference.max()
    return np.asarray(difference / highest if highest > 0 else difference, np.float32)


def mass_in_common(one: NDArray[Any], other: NDArray[Any]) -> float | None:
    """Return the sum of the smaller of two maps [H,W], each divided by its sum, in [0,1]; None if a map is zero."""
    sums = [float(saliency.sum(dtype=np.float64)) for saliency in (one, other)]
    if not all(total > 0 for total in sums):
        return None
    return min(1.0, float(np.minimum(one / sums[0], other / sums[1]).sum(dtype=np.float64)))


def _shares(saliency: NDArray[np.float32]) -> NDArray[np.float32]:
    whole = np.float32(saliency.sum(dtype=np.float64))
    return saliency / whole if whole > 0 else saliency


def _coverage(length: int) -> NDArray[np.float64]:
    """Return the part of each of `length` pixels that lies further than EDGE from both ends."""
    begins = np.arange(length, dtype=np.float64)
    return np.asarray(np.clip(np.minimum(begins + 1, (1 - EDGE) * length) - np.maximum(begins, EDGE * length), 0, 1))


def _samples(saliency: NDArray[np.float32], crop: Crop) -> NDArray[np.float64] | None:
    """Return the map at a grid of pixels with mean 0 and length 1, so that r is a product; None for a flat map."""
    values = sample_map(saliency, crop).ravel()
    if values.min() == values.max():
        return None
    values -= values.mean()
    unit: NDArray[np.float64] = values / np.sqrt((values * values).sum())
    return unit


def sample_map(saliency: NDArray[np.float32], area: Crop) -> NDArray[np.float64]:
    """Return a map, float32 [H,W], at a regular grid of at most 256 x 256 pixels of a part of it, float64 [n,m]."""
    rows, columns = (_grid(begin, end) for begin, end in ((area.top, area.bottom), (area.left, area.right)))
    return saliency[np.ix_(rows, columns)].astype(np.float64)


def _grid(begin: int, end: int) -> NDArray[np.intp]:
    count = min(end - begin, _LONGEST_SIDE)
    return begin + ((np.arange(count) + 0.5) * (end - begin) / count).astype(np.intp)
