"""Predict the scores of all masks from the scores of some, with their uncertainty, by a Gaussian process over masks.

The sixth root of a mask's weight is modelled as a smooth function of the mask plus a part of its own (the nugget):

    w(m)^(1/6) = a + b * area(m) + f(m) + e_m,   cov f = s2 * k(m, m'),   var e = s2 * NUGGET

The root is almost a logarithm for weights that matter, and compresses weights that make no difference to the map (a
power transform: Box and Cox 1964). k is the Matern 3/2 kernel of the distance between masks at the layer's size. Two
masks are near if they show the network the same content. The distance therefore counts places by their activity, and
places whose activations are alike (by cosine) count as nearly the same place. Masks are scaled to a more equal size, so
that two small masks with different content are as different as two large masks.

Masks are chosen one after the other, always the mask that most reduces the uncertainty of the *map*, not of the scores:
Bayesian A-optimal design (Chaloner and Verdinelli 1995) for the linear functional "sum of w_k A_k". Kernel algebra:
Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, equations 2.23 to 2.45.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ortcam.core.convention import TINY, Floats

ROOT = 6  # `sixth_moment` belongs to it
NUGGET = np.float32(0.05)
LENGTH = 2.5  # the kernel's squared length scale over the mean squared distance of two masks
# A mask counts by the weight at this many standard deviations of the root above its prediction: masks that may turn out
# strong matter.
HOPE = 1.5
LEAST_ROOT = 0.05  # the least root of a predicted weight
PRIOR_OF_AREA = 0.01  # ridge on b
SHORTEST = 1e-12  # the least mean squared distance: closer masks count as one
ACTIVITY = 0.7  # differences at a place count by its activity to this power
ALIKE = 0.4  # the degree to which places with the same channels count as the same place
EVEN = 0.3  # masks are divided by their size to this power
# The uncertainty counts only in the smooth part of the map: a quarter of its directions, but at least the fewest.
_SMOOTH_SHARE = 4
_FEWEST_DIRECTIONS = 16
_BLOCK = 128
_CANCELLED = 1e-5  # the part of a sum of numbers that is left if they cancel out: rounding of float32


class Prediction(NamedTuple):
    """The weights of all masks for one target, up to a factor.

    Attributes:
        log_weights: float32 [D], at most 0 for a mask that was scored.
        amplitude: s2, estimated from the observed scores.
    """

    log_weights: Floats
    amplitude: float


class Surrogate:
    """Chooses masks to score, and predicts the scores of the others; deterministic."""

    def __init__(self, masks: Floats, parts: Floats, grid: tuple[int, int]) -> None:
        """Start without scores.

        Args:
            masks: float32 [D,P], the masks in [0,1] at the P places of the layer.
            parts: float32 [D,P], the part of the map for a weight of 1 of each mask: the sum of its channels.
            grid: rows and columns of the P places.
        """
        self._parts = parts
        self._basis = smooth_directions(grid)  # [P,R]
        self._kernel = _Kernel(masks, parts)
        self._rows = np.empty((0, len(masks)), np.float32)  # rows of the kernel, for the chosen masks
        self._factor = np.empty((0, len(masks)), np.float32)  # rows of the pivoted Cholesky factor of the kernel
        self._variance = np.ones(len(masks), np.float32)  # of f, given the chosen masks
        area = masks.mean(axis=1)
        self._trend = np.stack([np.ones_like(area), area - area.mean()], axis=1).astype(np.float64)
        self._weights = np.ones(len(masks), np.float32)
        self._maps = map_of_equal_weights(parts)[None]
        self._predictions: list[Prediction] = []
        self._scores = np.empty((0, 0), np.float32)  # [n,T] of what is chosen
        self.chosen: list[int] = []

    def choose(self, count: int) -> NDArray[np.intp]:
        """Return the next `count` masks to score."""
        parts = self._parts @ _away_from(self._maps, self._basis) * self._weights[:, None]  # [D,R]
        begin = len(self.chosen)
        rows, factor = (np.empty((begin + count, len(parts)), np.float32) for _ in range(2))
        rows[:begin], factor[:begin] = self._rows, self._factor
        effect = np.ascontiguousarray((self._kernel.times(parts) + NUGGET * parts).T)  # [R,D]
        effect -= (parts.T @ factor[:begin].T) @ factor[:begin]
        for row in range(begin, begin + count):
            gain = np.einsum("rd,rd->d", effect, effect) / (self._variance + NUGGET)
            gain[self.chosen] = -1
            best = int(gain.argmax())
            rows[row] = self._kernel.row(best)
            line = rows[row] - factor[:row, best] @ factor[:row]
            line /= np.sqrt(self._variance[best] + NUGGET)
            factor[row] = line
            self._variance = np.maximum(self._variance - line * line, 0)
            effect -= np.multiply.outer(parts.T @ line, line)
            self.chosen.append(best)
        self._rows, self._factor = rows, factor
        return np.array(self.chosen[begin:], np.intp)

    def observe(self, scores: Floats) -> None:
        """Take the scores [m,T] of the masks that were chosen last, and predict those of the others."""
        scores = self._scores = np.concatenate([self._scores.reshape(-1, scores.shape[1]), scores])
        chosen = self.chosen
        inverse = np.linalg.inv(self._rows[:, chosen].astype(np.float64) + NUGGET * np.eye(len(chosen)))
        trend = self._trend[chosen]
        normal = trend.T @ inverse @ trend
        normal[1, 1] += PRIOR_OF_AREA
        below_best = (scores - scores.max(axis=0)).astype(np.float64)
        roots = np.exp(below_best / ROOT)
        slopes = np.linalg.solve(normal, trend.T @ inverse @ roots)
        rest = roots - trend @ slopes
        amplitudes = (rest * (inverse @ rest)).mean(axis=0)
        predicted = self._trend @ slopes + self._rows.T @ (inverse @ rest).astype(np.float32)
        predicted = np.maximum(predicted, LEAST_ROOT)
        variances = amplitudes * (self._variance + NUGGET)[:, None]
        logs = np.log(sixth_moment(predicted, variances))
        logs[chosen] = below_best
        hoped = predicted + HOPE * np.sqrt(variances)
        hoped[chosen] = roots
        self._aim(logs, hoped)
        self._predictions = [
            Prediction(column.astype(np.float32), float(s2)) for column, s2 in zip(logs.T, amplitudes, strict=True)
        ]

    def predictions(self) -> list[Prediction]:
        """Return the weights of all masks for every target."""
        return self._predictions

    def _aim(self, logs: NDArray[np.float64], hoped: NDArray[np.float64]) -> None:
        """Make the next choice count masks by their possible weights, for all targets together.

        Args:
            logs: the predicted log weights [D,T].
            hoped: the roots of weights [D,T] to count masks by.
        """
        self._maps = np.exp(logs.T).astype(np.float32) @ self._parts
        self._maps /= np.linalg.norm(self._maps, axis=1, keepdims=True) + TINY
        shares = sixth_moment(hoped / hoped.max(axis=0), 0)  # the sixth power, and quicker than `**`
        self._weights = np.sqrt(np.square(shares).mean(axis=1)).astype(np.float32)

    def expected_error(self, target: int) -> float:
        """Return the expected 1 - r between a target's map at the layer's size and the exact map, to first order."""
        logs, amplitude = self._predictions[target]
        whole = np.exp(logs) @ self._parts
        centred = whole - whole.mean()
        slopes = ROOT * np.exp(logs * (1 - 1 / ROOT))  # of the weights over their roots
        slopes[self.chosen] = 0
        uncertain = self._parts @ _away_from(whole[None], self._basis) * slopes[:, None]
        through = uncertain.T @ self._factor.T
        spread = np.einsum("dr,dr->", self._kernel.times(uncertain), uncertain) - np.square(through).sum()
        spread += NUGGET * np.square(uncertain).sum()
        size = float(centred @ centred)
        return 0.5 * amplitude * max(float(spread), 0.0) / size if size > 0 else 1.0


def map_of_equal_weights(parts: Floats) -> Floats:
    """Return the sum [P] of the parts [D,P]; zeros if they cancel out, because the sum is then only rounding.

    The parts of centred weights cancel out. Rounding differs from machine to machine, and must choose no mask.
    """
    whole: Floats = parts.sum(axis=0)
    cancels = np.linalg.norm(whole) <= _CANCELLED * np.linalg.norm(np.abs(parts).sum(axis=0))
    return np.zeros_like(whole) if cancels else whole


def sixth_moment(mean: Any, variance: Any) -> Any:
    """Return the mean of the sixth power of a normal variable, for arrays or for values of a graph."""
    square = mean * mean
    return square * square * (square + variance * 15) + variance * variance * (square * 45 + variance * 15)


class _Kernel:
    """The Matern 3/2 kernel [D,D] of the masks: the triangle below the diagonal, in blocks of rows."""

    def __init__(self, masks: Floats, parts: Floats) -> None:
        self._left, self._right = _distance_factors(masks, parts)
        self._blocks = []
        scratch = np.empty(_BLOCK * len(masks), np.float32)
        for begin in range(0, len(masks), _BLOCK):  # a block stays in the processor's cache
            end = min(begin + _BLOCK, len(masks))
            squares = scratch[: (end - begin) * end].reshape(end - begin, end)
            block = _matern(np.matmul(self._left[begin:end], self._right[:, :end], out=squares))
            np.fill_diagonal(block[:, begin:], 1)
            self._blocks.append(block)

    def row(self, mask: int) -> Floats:
        """Return the kernel [D] of one mask with all."""
        row = _matern(self._left[mask] @ self._right)
        row[mask] = 1
        return row

    def times(self, columns: Floats) -> Floats:
        """Return the product of the kernel and `columns` [D,R]."""
        product = np.zeros(columns.shape, np.float32)
        begin = 0
        for block in self._blocks:  # read once for both triangles
            end = begin + len(block)
            product[:end] += block.T @ columns[begin:end]
            product[begin:end] += block[:, :begin] @ columns[:begin]
            begin = end
        return product


def _distance_factors(masks: Floats, parts: Floats) -> tuple[Floats, Floats]:
    """Return [D,P+2] and [P+2,D], whose product is the squared distances of the masks, scaled for the kernel."""
    points = masks @ _metric(parts)
    norms = np.einsum("dp,dp->d", points, masks)
    enlarged = np.maximum(norms, TINY) ** np.float32(-EVEN / 2)
    masks, points, norms = masks * enlarged[:, None], points * enlarged[:, None], norms * enlarged**2
    centre = masks.mean(axis=0)
    mean = 2 * (norms.mean() - points.mean(axis=0) @ centre)  # of the squared distances
    scale = np.float32(3 / (LENGTH * max(float(mean), SHORTEST)))
    points, norms = points * scale, norms * scale
    ones = np.ones_like(norms)
    # |a|^2 + |b|^2 - 2ab in one product.
    left = np.concatenate([points * -2, norms[:, None], ones[:, None]], axis=1)
    right = np.concatenate([masks, ones[:, None], norms[:, None]], axis=1)
    return left, np.ascontiguousarray(right.T)


def _matern(squares: Floats) -> Floats:
    """Return the kernel of squared distances, which are overwritten."""
    distances = np.sqrt(np.abs(squares, out=squares), out=squares)  # rounding makes small ones negative
    np.negative(distances, out=distances)
    kernel: Floats = np.exp(distances)
    np.subtract(1, distances, out=distances)
    kernel *= distances
    return kernel


def _metric(parts: Floats) -> Floats:
    """Return the matrix [P,P] of the quadratic form that measures how different two masks are for the network."""
    gram = (parts.T @ parts).astype(np.float64)
    size = np.sqrt(np.maximum(np.diag(gram), TINY))
    alike = ALIKE * gram / np.outer(size, size) + (1 - ALIKE) * np.eye(len(gram))
    activity = (size / size.mean()) ** (ACTIVITY / 2)
    return np.asarray(alike * np.outer(activity, activity), np.float32)


def smooth_directions(grid: tuple[int, int]) -> Floats:
    """Return the smoothest maps on a grid, without the constant map, as orthonormal columns [P,R].

    R is a quarter of the places, but at least 16: 16 for 7x7, 49 for 14x14. With only 16 for 14x14, the stated error
    was three times too small; with all of them, it is too large.

    Source: the type-2 discrete cosine transform (Ahmed, Natarajan, Rao 1974), lowest spatial frequencies first.
    """
    rows, columns = (_cosines(length) for length in grid)
    frequencies = [(v / grid[0], u / grid[1]) for v in range(grid[0]) for u in range(grid[1])]
    count = max(len(frequencies) // _SMOOTH_SHARE, _FEWEST_DIRECTIONS)
    order = np.argsort([y * y + x * x for y, x in frequencies], kind="stable")[1 : count + 1]
    waves = np.einsum("vy,ux->vuyx", rows, columns).reshape(len(frequencies), -1)
    return np.ascontiguousarray(waves[order].T, np.float32)


def _cosines(length: int) -> NDArray[np.float64]:
    """Return the discrete cosine transform as a matrix [frequency,place], orthonormal."""
    frequency, place = np.arange(length)[:, None], np.arange(length) + 0.5
    waves = np.cos(np.pi * frequency * place / length) * np.sqrt(2 / length)
    waves[0] /= np.sqrt(2)
    return np.asarray(waves)


def _away_from(maps: Floats, basis: Floats) -> Floats:
    """Remove from directions [P,R] the direction of the mean of `maps` [T,P]: a factor does not change r.

    A constant does not change r either, but none of the directions contains a constant.
    """
    mean = maps.mean(axis=0)
    mean = mean - mean.mean()
    mean /= np.linalg.norm(mean) + TINY
    away: Floats = basis - np.multiply.outer(mean, mean @ basis)
    return away
