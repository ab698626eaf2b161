"""Compare two maps of one photo: Pearson's r, Spearman's correlation and the energy in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ortcam.core.convention import Floats
from ortcam.core.measures import mass_in_common, sample_map
from ortcam.core.pictures import Crop

DEFINITIONS = {
    "maps": "at the photo's size, sampled on a regular grid of at most 256 x 256 pixels of the part of the photo that "
    "the models of all columns see",
    "r": "Pearson's correlation of the samples; null for a flat map",
    "spearman": "Spearman's rank correlation; equal values have their mean rank; null for a flat map",
    "energy_in_common": "the sum of the smaller of the two maps, each divided by its sum: 1 for equal maps, 0 for maps "
    "that share no pixel; null for a map of zeros",
    "same_class": "whether the two models' most probable classes are the same; null within one model",
    "difference": "probability of the explained class by the second model minus that by the first; of another target, "
    "its score; null within one model, and for columns with different targets",
    "intervals": "mean over the photos and its 95 % BCa bootstrap interval, 10000 resamples, seed 0",
    "unrelated_r": "mean r of the first column's maps of different photos, each resized to 32 x 32",
}


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples of one map.

    Attributes:
        values: float64 [n,m].
    """

    values: NDArray[np.float64]

    @property
    def is_flat(self) -> bool:
        return bool(self.values.min() == self.values.max())

    @cached_property
    def unit(self) -> NDArray[np.float64]:
        """float64 [n*m] with mean 0 and length 1, so that r is a product."""
        return _unit(self.values.ravel())

    @cached_property
    def unit_ranks(self) -> NDArray[np.float64]:
        """The same of the ranks."""
        _, place, counts = np.unique(self.values.ravel(), return_inverse=True, return_counts=True)
        last = np.cumsum(counts)
        return _unit((last - (counts - 1) / 2)[place])


@dataclass(frozen=True)
class Similarity:
    """The similarity of two maps.

    Attributes:
        r, spearman: in [-1,1]; None if a map is flat.
        energy_in_common: in [0,1]; None if a map is zero everywhere.
    """

    r: float | None
    spearman: float | None
    energy_in_common: float | None


def common_area(crops: Sequence[Crop]) -> Crop | None:
    """Return the part of a photo that all models see; None if there is none."""
    top, left = max(crop.top for crop in crops), max(crop.left for crop in crops)
    bottom, right = min(crop.bottom for crop in crops), min(crop.right for crop in crops)
    return Crop(top, left, bottom, right) if top < bottom and left < right else None


def sample(saliency: Floats, area: Crop) -> Samples:
    """Return the samples of a map, float32 [H,W] at the photo's size, in a part of the photo."""
    return Samples(sample_map(saliency, area))


def compare_samples(one: Samples, other: Samples) -> Similarity:
    """Return the similarity of two maps that were sampled on the same grid."""
    common = mass_in_common(one.values, other.values)
    if one.is_flat or other.is_flat:
        return Similarity(None, None, common)
    return Similarity(_product(one.unit, other.unit), _product(one.unit_ranks, other.unit_ranks), common)


def _unit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = values - values.mean()
    length = float(np.sqrt((centred * centred).sum()))
    return np.asarray(centred / length) if length > 0 else centred


def _product(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    return float(np.clip((one * other).sum(), -1, 1))
