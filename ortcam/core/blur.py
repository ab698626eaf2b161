"""Blur with matrix products, so that a graph needs only MatMul."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ortcam.core.convention import Floats

_TRUNCATE = 4.0  # standard deviations; beyond, a Gaussian counts as zero


@lru_cache(maxsize=16)
def blur_matrix(length: int, sigma: float) -> Floats:
    """Return the read-only matrix [length,length] that blurs samples with a Gaussian of `sigma` samples.

    A blurred picture is ``blur_matrix(H, s) @ picture @ blur_matrix(W, s).T``.

    Source: scipy.ndimage.gaussian_filter, with its default edges: samples are mirrored, the first and last included.
    """
    radius = int(_TRUNCATE * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2) if sigma > 0 else np.ones(1)
    weights /= weights.sum()
    places = np.arange(length)[:, None] + offsets
    period = 2 * length
    places = places % period
    places = np.where(places >= length, period - 1 - places, places)
    matrix = np.zeros((length, length), np.float64)
    np.add.at(matrix, (np.arange(length)[:, None], places), np.broadcast_to(weights, places.shape))
    made: Floats = matrix.astype(np.float32)
    made.setflags(write=False)
    return made
