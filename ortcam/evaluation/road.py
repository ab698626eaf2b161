"""ROAD: remove the pixels that a map marks, and fill the gaps so that they do not show.

Source: Rong et al. 2022, "A Consistent and Efficient Evaluation Strategy for Attribution Methods", arXiv 2202.00449,
noisy linear imputation. A removed pixel is the weighted mean of its 8 neighbours: 1/6 for the 4 direct ones, 1/12 for
the 4 diagonal ones. Weights are divided by their sum where neighbours lie outside the picture.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ortcam.errors import OptionError
from ortcam.evaluation.asks import Answer, Measured, Measuring, Pictures, View
from ortcam.evaluation.rows import Column

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

_OUTSIDE, _KNOWN = -2, -1  # instead of the number of an unknown
_NEIGHBOURS = tuple(
    (row, column, 1 / 6 if row == 0 or column == 0 else 1 / 12)
    for row in (-1, 0, 1)
    for column in (-1, 0, 1)
    if (row, column) != (0, 0)
)


@dataclass(frozen=True)
class Road:
    """One definition of ROAD.

    Attributes:
        name: the preset's name.
        source: the paper or project that defines it.
        percentiles: numbers from 0 to 100, one step each: the percentage of pixels that ``rank`` removes, or that
            ``value`` keeps.
        order: ``morf`` removes the most relevant pixels first, ``lerf`` the least relevant; ``combined`` does both.
        threshold: ``rank`` removes exactly floor(p P / 100) of the P pixels; equal pixels rank row by row.
            ``value`` keeps the pixels whose value is below percentile p of the map; of 1 - map for ``lerf``. If more
            than p % of the map has the lowest value, ``value`` removes every pixel.
        noise: the standard deviation of the noise on imputed pixels, in the units of the picture.
        seed: the seed of the noise. Step i uses seed + i, for each picture alike.
        metric: ``road``.
    """

    name: str
    source: str
    percentiles: tuple[float, ...] = (10, 20, 30, 40, 50, 60, 70, 80, 90)
    order: Literal["morf", "lerf", "combined"] = "combined"
    threshold: Literal["rank", "value"] = "rank"
    noise: float = 0.01
    seed: int = 0
    metric: Literal["road"] = "road"

    def __post_init__(self) -> None:
        for field, value, allowed in (
            ("order", self.order, ("morf", "lerf", "combined")),
            ("threshold", self.threshold, ("rank", "value")),
        ):
            if value not in allowed:
                raise OptionError(f"{field} is {value!r}; expected {' or '.join(allowed)}")
        if not self.percentiles or not all(0 <= p <= 100 for p in self.percentiles):
            raise OptionError(f"percentiles are {self.percentiles!r}; expected at least one number from 0 to 100")
        if not (0 <= self.noise < np.inf):
            raise OptionError(f"noise is {self.noise!r}; expected a number of at least 0")
        if self.seed < 0:
            raise OptionError(f"seed is {self.seed!r}; expected a whole number of at least 0")

    def columns(self, column: str, size: tuple[int, int]) -> tuple[Column, ...]:
        """Return the column of its value; `size` is the model's input size (H, W)."""
        return (Column(column, f"{self.metric}:{self.name}", "lower" if self.order == "morf" else "higher"),)

    def measure(self, column: str, view: View) -> Measuring:
        """Return the value of one map. The imputed pictures are made on the host, a batch at a time."""
        picture = view.tensor[0].transpose(2, 0, 1) if view.channels_last else view.tensor[0]
        made = self.pictures(picture, view.saliency)
        answer: Answer = yield Pictures(one.transpose(1, 2, 0) if view.channels_last else one for one in made)
        return Measured({column: self.average(answer.probabilities, view.clean.probability)})

    def masks(self, saliency: Floats) -> Bools:
        """Return the removed pixels of each step, bool [S,H,W], from a map [H,W].

        S is the number of percentiles. For ``combined`` it is twice that: first ``morf``, then ``lerf``.
        """
        orders = ("morf", "lerf") if self.order == "combined" else (self.order,)
        masks = [self._removed(saliency, p, order == "lerf") for order in orders for p in self.percentiles]
        return np.stack(masks)

    def pictures(self, picture: Floats, saliency: Floats) -> Iterator[Floats]:
        """Yield the imputed picture float32 [C,H,W] of each step of `masks`.

        Raises:
            OptionError: scipy is missing, or the picture and the map differ in size.
        """
        for step, removed in enumerate(self.masks(saliency)):
            yield impute(picture, removed, self.noise, self.seed + step)

    def average(self, scores: Sequence[float] | NDArray[Any], clean: float) -> float:
        """Return the value of a map from the scores [S] of its pictures and the score of the unchanged picture.

        ``morf`` and ``lerf``: the mean of score - clean. ``combined``: (lerf - morf) / 2; higher is better.
        """
        changes = np.asarray(scores, np.float64).reshape(-1, len(self.percentiles)).mean(1) - clean
        return float((changes[1] - changes[0]) / 2 if self.order == "combined" else changes[0])

    def _removed(self, saliency: Floats, percentile: float, least: bool) -> Bools:
        """Return the pixels [H,W] that one step removes."""
        if self.threshold == "value":
            values = 1 - saliency if least else saliency
            return ~(values < np.percentile(values, percentile))
        order = np.argsort(-saliency, axis=None, kind="stable")
        count = int(percentile * saliency.size / 100)
        removed = np.zeros(saliency.size, np.bool_)
        removed[order[saliency.size - count :] if least else order[:count]] = True
        return removed.reshape(saliency.shape)


ROAD: dict[str, Road] = {
    road.name: road
    for road in (
        Road("ortcam", "Rong et al. 2022, arXiv 2202.00449, with a fixed number of pixels in each step"),
        Road("pytorch-grad-cam", "jacobgil/pytorch-grad-cam 1.5.7, ROADCombined", threshold="value"),
    )
}


def impute(picture: Floats, removed: Bools, noise: float = 0.01, seed: int = 0) -> Floats:
    """Replace removed pixels by the solution of the linear system of their neighbours, plus noise.

    If every pixel is removed, nothing is known and the system is singular: each pixel becomes 0 plus noise. In a
    normalised input, 0 is the mean colour.

    Args:
        picture: [C,H,W].
        removed: [H,W], True for the pixels to replace.
        noise: the standard deviation of the noise, in the units of the picture.
        seed: the seed of the noise. Noise is drawn for each pixel of the picture, whether removed or not. A pixel's
            noise therefore depends on the seed and the picture's shape only.

    Raises:
        OptionError: scipy is missing, or the picture and the mask differ in size.
    """
    if picture.ndim != 3 or picture.shape[1:] != removed.shape:
        raise OptionError(
            f"picture is {list(picture.shape)} and mask {list(removed.shape)}; expected [C,H,W] and [H,W]"
        )
    filled = picture.astype(np.float32)
    if not removed.any():
        return filled
    filled[:, removed] = 0 if removed.all() else _solve(picture, removed).T
    if noise:
        drawn = np.random.default_rng(seed).standard_normal(picture.shape, np.float32)
        filled[:, removed] += np.float32(noise) * drawn[:, removed]
    return filled


def _solve(picture: Floats, removed: Bools) -> NDArray[np.float64]:
    """Return the removed pixels [n,C], row by row, that are the weighted means of their neighbours."""
    sparse, linalg = _load_scipy()
    known, triplets = _system(picture, removed)
    matrix = sparse.csc_matrix(triplets, shape=(len(known), len(known)))
    # The matrix is symmetric and positive definite: no pivoting is needed. This ordering takes half the time of the
    # default one; conjugate gradients take ten times as long on one gap of 90 % of 224 x 224 pixels.
    factors = linalg.splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    solution: NDArray[np.float64] = factors.solve(known)
    return solution


def _load_scipy() -> tuple[Any, Any]:
    """Return scipy.sparse and scipy.sparse.linalg, which are loaded when they are first needed."""
    try:
        return importlib.import_module("scipy.sparse"), importlib.import_module("scipy.sparse.linalg")
    except ImportError as error:
        raise OptionError("ROAD needs scipy: pip install 'ortcam[evaluation]'") from error


def _system(picture: Floats, removed: Bools) -> tuple[NDArray[np.float64], Any]:
    """Return the right-hand side [n,C] and the matrix of the system of the n removed pixels.

    The matrix is given as values, and the pair of their rows and columns, as scipy.sparse takes them.

    Row i reads: (sum of its weights) x_i - sum of weight * unknown neighbour = sum of weight * known neighbour.
    """
    count = int(removed.sum())
    numbers = np.pad(np.full(removed.shape, _KNOWN, np.int64), 1, constant_values=_OUTSIDE)
    numbers[1:-1, 1:-1][removed] = np.arange(count)
    padded = np.pad(picture.astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    at_row, at_column = (places + 1 for places in np.nonzero(removed))
    totals, known = np.zeros(count), np.zeros((count, len(picture)))
    rows, columns, values = [np.arange(count)], [np.arange(count)], [totals]
    for row, column, weight in _NEIGHBOURS:
        places = at_row + row, at_column + column
        number = numbers[places]
        totals += weight * (number != _OUTSIDE)
        known += (weight * (number == _KNOWN) * padded[:, *places]).T
        unknown = np.flatnonzero(number >= 0)
        rows.append(unknown)
        columns.append(number[unknown])
        values.append(np.full(len(unknown), -weight))
    return known, (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
