"""Masks of a layer, and the constants of the fused map: shared by methods and by their packed graphs.

Each function returns masks float32 [N,h,w] for a layer of (h, w). Calls with the same arguments return the same array,
which is read-only.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ortcam.core.convention import Floats, interpolation_matrix, upsample
from ortcam.core.grids import draw_grids
from ortcam.core.query import Grids

FLOOR = 0.1  # added to every factor but the first
CELLS = 5  # rows and columns of a grid
VARIANCE = 0.25  # of a cell that is shown or hidden; between cells, an enlarged grid varies less
CERTAIN = float(np.log1p(-1e-3))  # a log-probability; above, differences are lost in rounding
ROUNDING = 8 * float(np.finfo(np.float32).eps)  # of a logit; scores that differ by less are equal


def half(length: int) -> int:
    """Return the number of blocks of two rows or columns."""
    return -(-length // 2)


@lru_cache(maxsize=4)
def places(size: tuple[int, int]) -> Floats:
    """Return a mask of each single place."""
    count = size[0] * size[1]
    return _kept(np.eye(count, dtype=np.float32).reshape(count, *size))


@lru_cache(maxsize=4)
def blocks(size: tuple[int, int]) -> Floats:
    """Return masks of 4 x 4 places: each block of 2 x 2, row by row, and the places around it."""
    rows, columns = (_around_pairs(length) for length in size)
    return _kept(np.einsum("iy,jx->ijyx", rows, columns).reshape(-1, *size).astype(np.float32))


@lru_cache(maxsize=4)
def between_blocks(length: int) -> Floats:
    """Return the matrix [length,blocks] that interpolates values of blocks at each row or column."""
    return interpolation_matrix(2 * half(length), half(length), False)[:length]


@lru_cache(maxsize=4)
def grids(count: int, seed: int, size: tuple[int, int]) -> Floats:
    """Return random grids of cells, each shown or hidden with equal probability, enlarged bilinearly."""
    return _kept(upsample(draw_grids(Grids((CELLS, CELLS), 0.5, seed), np.arange(count), (CELLS, CELLS))[0], size))


@lru_cache(maxsize=4)
def regressors(count: int, seed: int, size: tuple[int, int]) -> Floats:
    """Return, for each grid, the weight of its score in the slope of a regression on the value of the grids."""
    centred = grids(count, seed, size) - np.float32(0.5)
    return _kept(centred / np.square(centred).mean(axis=0))


def tent(length: int) -> Floats:
    """Return the weights [place,neighbour] of [1 2 1] / 4 along one side."""
    return (np.eye(length) / 2 + np.eye(length, k=1) / 4 + np.eye(length, k=-1) / 4).astype(np.float32)


def _around_pairs(length: int) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Return which rows belong to each pair of rows and its neighbours, bool [pair,row]."""
    begin, row = 2 * np.arange(half(length))[:, None], np.arange(length)
    made: np.ndarray[tuple[int, int], np.dtype[np.bool_]] = (row >= begin - 1) & (row <= begin + 2)
    return made


def _kept(masks: Floats) -> Floats:
    masks.setflags(write=False)
    return masks
