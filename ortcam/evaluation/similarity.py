"""Similarity of two maps: rank correlation, structural similarity, correlation of oriented gradients.

Source: Adebayo et al. 2018 (arXiv 1810.03292), section 3.1. SciPy and scikit-image compute them.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ortcam.core.convention import TINY, Floats, normalize
from ortcam.errors import OptionError

_SSIM_SIGMA = 1.5  # Wang et al. 2004: a Gaussian window of 11 x 11 with a deviation of 1.5
_SSIM_WINDOW = 11
_HOG_CELL = 16  # pixels, as in the notebooks of Adebayo et al.; smaller for maps that have fewer than 3 x 3 such cells
_HOG_BLOCK = 3  # cells


@dataclass(frozen=True)
class Similarity:
    """The similarity of two maps; each value is 1 for equal maps.

    Attributes:
        spearman: Spearman's rank correlation, in [-1,1].
        spearman_abs: the same of the maps' absolute values. Equal to `spearman` for maps without negative values.
        ssim: structural similarity in [-1,1], with Gaussian weights, of the maps scaled to [0,1]. None for a map with
            fewer than 11 rows or columns.
        hog: Pearson's correlation of the histograms of oriented gradients, in [-1,1]. None for a map with fewer than 6
            rows or columns, or without gradients.
    """

    spearman: float
    spearman_abs: float
    ssim: float | None
    hog: float | None


def compare(one: Floats, other: Floats, signed: tuple[Floats, Floats] | None = None) -> Similarity | None:
    """Return the similarity of two maps; None if one of them is flat.

    Args:
        one, other: float32 [h,w].
        signed: the same two maps before their negative values were cut off, for Spearman's correlations; None for the
            maps themselves.

    Raises:
        OptionError: the maps differ in shape or have other than two dimensions, or a package is missing.
    """
    if is_flat(one) or is_flat(other):
        return None
    ranks, absolute = (spearman(*(signed or (one, other)), absolute) for absolute in (False, True))
    if ranks is None or absolute is None:
        return None
    return Similarity(ranks, absolute, ssim(one, other), hog(one, other))


def is_flat(values: Floats) -> bool:
    """Return whether a map has the same value everywhere."""
    return bool(values.max() - values.min() < TINY)


def spearman(one: Floats, other: Floats, absolute: bool = False) -> float | None:
    """Return Spearman's rank correlation of two maps; ties get their mean rank.

    Args:
        one, other: float32 [h,w].
        absolute: rank the absolute values.

    Returns:
        In [-1,1]; None if a map is flat.

    Raises:
        OptionError: the maps differ in shape, or SciPy is missing.
    """
    _check(one, other)
    rankdata = _load("scipy.stats", "scipy").rankdata
    ranks = [rankdata(np.abs(values) if absolute else values, axis=None) for values in (one, other)]
    return pearson(*ranks)


def ssim(one: Floats, other: Floats) -> float | None:
    """Return the structural similarity (Wang et al. 2004) of two maps, each scaled to [0,1] first.

    Args:
        one, other: float32 [h,w].

    Returns:
        In [-1,1]; None if a map is flat or has fewer than 11 rows or columns.

    Raises:
        OptionError: the maps differ in shape, or scikit-image is missing.
    """
    _check(one, other)
    if is_flat(one) or is_flat(other) or min(one.shape) < _SSIM_WINDOW:
        return None
    measure = _load("skimage.metrics", "scikit-image").structural_similarity
    scaled = normalize(np.stack([one, other]))
    return float(
        measure(*scaled, data_range=1.0, gaussian_weights=True, sigma=_SSIM_SIGMA, use_sample_covariance=False)
    )


def hog(one: Floats, other: Floats) -> float | None:
    """Return Pearson's correlation of two maps' histograms of oriented gradients, each map scaled to [0,1] first.

    The histograms have 9 orientations, cells of 16 x 16 pixels and blocks of 3 x 3 cells. Maps with fewer than 48 rows
    or columns get smaller cells.

    Args:
        one, other: float32 [h,w].

    Returns:
        In [-1,1]; None if a map has no gradients, or fewer than 6 rows or columns.

    Raises:
        OptionError: the maps differ in shape, or scikit-image is missing.
    """
    _check(one, other)
    cell = min(_HOG_CELL, min(one.shape) // _HOG_BLOCK)
    if cell < 2 or is_flat(one) or is_flat(other):
        return None
    describe = _load("skimage.feature", "scikit-image").hog
    scaled = normalize(np.stack([one, other]))
    features = [
        describe(values, orientations=9, pixels_per_cell=(cell, cell), cells_per_block=(_HOG_BLOCK, _HOG_BLOCK))
        for values in scaled
    ]
    return pearson(*features)


def pearson(one: NDArray[Any], other: NDArray[Any]) -> float | None:
    """Return Pearson's correlation of two series of numbers [N], in [-1,1]; None if one is constant."""
    first, second = (values - values.mean() for values in (one.astype(np.float64), other.astype(np.float64)))
    norm = float(np.sqrt((first @ first) * (second @ second)))
    return float(np.clip(first @ second / norm, -1, 1)) if norm > 0 else None


def _check(one: Floats, other: Floats) -> None:
    if one.ndim != 2 or one.shape != other.shape:
        raise OptionError(f"the maps have shapes {list(one.shape)} and {list(other.shape)}; expected two equal [h,w]")


def require_packages() -> None:
    """Raise an OptionError if SciPy or scikit-image is missing."""
    _load("scipy.stats", "scipy")
    _load("skimage.metrics", "scikit-image")


def _load(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise OptionError(f"the similarity of maps needs {package}: pip install 'ortcam[evaluation]'") from error
