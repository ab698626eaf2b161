"""Make grids of random cells from a seed and a number: here with NumPy, in `ortcam.graph.masks` as nodes.

RISE (Petsiuk et al. 2018, arXiv 1806.07421) draws a small grid of cells, each shown with probability p. RISE enlarges
the grid to a little more than the picture, and cuts the picture's size out at a random place. Here cell c of grid n is
shown if hash(seed, n, c) < p * PRIME. So every device can make the same masks, in any order, and none is sent.

The hash is a sequence of permutations of the numbers modulo the prime 2^31 - 1: x -> x^5 + constant. No product leaves
int64, and ONNX has every operator.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ortcam.core.convention import Floats
from ortcam.core.query import Grids

PRIME = 2**31 - 1
NUMBER_FACTOR = 1_299_709_211
CELL_FACTOR = 715_827_883
SEED_FACTOR = 961_748_941
ROUNDS = (805_306_457, 1_610_612_741, 402_653_189)  # added after each fifth power


def grid_terms(grids: Grids) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Return the first terms of the hashes: int64 [s,s] of the cells, int64 [2] of the two shifts; and the limit."""
    rows, columns = grids.cells
    places = np.arange(rows * columns + 2, dtype=np.int64)
    terms = (grids.seed % PRIME * SEED_FACTOR % PRIME + (places + 1) * CELL_FACTOR % PRIME) % PRIME
    return terms[:-2].reshape(rows, columns), terms[-2:], round(grids.probability * PRIME)


def scramble(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the hashes of numbers; both lie in [0,PRIME)."""
    for added in ROUNDS:
        squares = numbers * numbers % PRIME
        numbers = (squares * squares % PRIME * numbers + added) % PRIME
    return numbers


def draw_grids(grids: Grids, numbers: NDArray[np.int64], size: tuple[int, int]) -> tuple[Floats, NDArray[np.int64]]:
    """Return the grids of some numbers and their shifts.

    Args:
        grids: the bank.
        numbers: int64 [M], from 0.
        size: the model's input size (H, W).

    Returns:
        float32 [M,s,s] of 0 and 1; int64 [M,2], the place down and across, in pixels, where the picture is cut out.
    """
    cells, shifts, limit = grid_terms(grids)
    begin = numbers % PRIME * NUMBER_FACTOR % PRIME
    shown = scramble((begin[:, None, None] + cells) % PRIME) < limit
    across = scramble((begin[:, None] + shifts) % PRIME) % np.array(cell_sizes(grids, size))
    return shown.astype(np.float32), across


def cell_sizes(grids: Grids, size: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width of a cell, in pixels, at an input size (H, W); the source rounds up."""
    return -(-size[0] // grids.cells[0]), -(-size[1] // grids.cells[1])


@lru_cache(maxsize=16)
def shifted_matrices(length: int, cells: int) -> Floats:
    """Return matrices [S,length,cells]; matrix s enlarges a grid to (cells + 1) * S pixels, and cuts out from pixel s.

    The array is read-only. Source: RISE's code enlarges with skimage.transform.resize(order=1), which is bilinear with
    half-pixel centres and mirrors the grid at its edges.
    """
    cell = -(-length // cells)
    places = (np.arange((cells + 1) * cell) + 0.5) * cells / ((cells + 1) * cell) - 0.5
    low = np.floor(places).astype(np.intp)
    whole = np.zeros((len(places), cells), np.float64)
    for at, weight in ((low, low + 1 - places), (low + 1, places - low)):
        np.add.at(whole, (np.arange(len(places)), _mirrored(at, cells)), weight)
    matrices = np.stack([whole[shift : shift + length] for shift in range(cell)]).astype(np.float32)
    matrices.setflags(write=False)
    return matrices


def _mirrored(at: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """Return the places of samples after mirroring at the edges; the first sample is not repeated."""
    if count == 1:
        return np.zeros_like(at)
    at = np.abs(at)
    return np.where(at >= count, 2 * (count - 1) - at, at)


def sum_masks(grids: Grids, numbers: NDArray[np.int64], weights: Floats, size: tuple[int, int]) -> Floats:
    """Return the weighted sums [T,H,W] of masks. Memory never holds all masks.

    Args:
        grids: the bank.
        numbers: int64 [M], the masks.
        weights: float32 [T,M].
        size: the model's input size (H, W).
    """
    down, across = (shifted_matrices(*pair) for pair in zip(size, grids.cells, strict=True))
    shown, shifts = draw_grids(grids, numbers, size)
    sums = np.zeros((len(weights), *size), np.float32)
    for row in range(len(down)):  # all masks of one shift down share its matrix
        chosen = np.flatnonzero(shifts[:, 0] == row)
        if len(chosen):
            wide = shown[chosen] @ across[shifts[chosen, 1]].transpose(0, 2, 1)  # [m,s,W]
            sums += down[row] @ np.tensordot(weights[:, chosen], wide, axes=1)
    return sums
