"""Noise for masks: cuts of one plane of normal random numbers, at places that follow from the number of the mask.

Two masks share most of the plane, at other places. So the plane goes to the device once, and a mask needs only numbers.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ortcam.core.convention import Floats
from ortcam.core.query import Noise

SHIFTS = 251  # places down and across; a prime, so that the factors reach every place
SHIFT_FACTORS = (97, 178)  # down, across
SAMPLE_FACTOR = 4099  # between the masks of two samples; a prime above the number of channels of most layers


@lru_cache(maxsize=4)
def _plane(sigma: float, seed: int, size: tuple[int, int]) -> Floats:
    drawn: Floats = np.random.default_rng(seed).standard_normal((size[0] + SHIFTS, size[1] + SHIFTS), np.float32)
    drawn *= np.float32(sigma)
    drawn.setflags(write=False)
    return drawn


def plane(noise: Noise, size: tuple[int, int]) -> Floats:
    """Return the plane of random numbers for masks of (H, W), float32 [H+S,W+S]; read-only."""
    return _plane(noise.sigma, noise.seed, size)


def cut(noise: Noise, numbers: NDArray[np.int64], size: tuple[int, int]) -> Floats:
    """Return the noise of masks with these numbers, float32 [M,H,W]; the scoring graph cuts the same."""
    whole = plane(noise, size)
    begin = numbers + noise.sample * SAMPLE_FACTOR
    rows, columns = (
        (begin * factor % SHIFTS)[:, None] + np.arange(length)
        for factor, length in zip(SHIFT_FACTORS, size, strict=True)
    )
    made: Floats = whole[rows[:, :, None], columns[:, None, :]]
    return made
