"""Limits of an explanation: the budget and its stages, and the plan that predicts scores with a surrogate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from ortcam.core.convention import Convention, Floats
from ortcam.core.selection import EXACT, ErrorEstimate, Plan, Selection, plan_exact, plan_top_spread
from ortcam.core.surrogate import Prediction, Surrogate
from ortcam.errors import OptionError, nearest, whole

Selecting = Literal["predict", "top-std"]
SMALLEST_STAGE = 4
STAGE_STEP = 16  # scores; after each such step, a stage grows by SMALLEST_STAGE
FEWEST_FOR_AN_ERROR = 8  # scores; fewer give no estimate of their spread
LARGEST_STAGE = 16
LARGEST_SIDE = 14  # of the masks that the surrogate sees; larger masks are averaged
# The median, and the 4th and 96th percentiles, of the true error over the surrogate's: 4 trained networks, 37 photos,
# 2 presets, 2 classes, budgets of 16 to 128. See docs/budget-inside.md.
CALIBRATION = (1.3, 0.35, 6.5)
LARGEST_ERROR = 2.0  # 1 - r of a map against its opposite


@dataclass(frozen=True)
class Limits:
    """Limits for the cost and the error of an explanation.

    Attributes:
        budget: the largest number of masked inputs; None for no limit. See `most`.
        tolerance: the estimated error to stop at; None to use the whole budget.
        selection: the treatment of channels that are not run: ``predict`` their scores, or leave them out
            (``top-std``).
    """

    budget: int | None = None
    tolerance: float | None = None
    selection: Selecting = "predict"

    def __post_init__(self) -> None:
        if self.budget is not None:
            object.__setattr__(self, "budget", whole("budget", self.budget))
        if self.tolerance is not None:
            number = isinstance(self.tolerance, int | float | np.floating) and not isinstance(self.tolerance, bool)
            if not number or not 0 < self.tolerance < 1:
                raise OptionError(f"tolerance is {self.tolerance!r}; expected an error 1 - r between 0 and 1, as 0.01")
        if self.selection not in get_args(Selecting):
            raise OptionError(
                f"selection {self.selection!r} is unknown; expected {' or '.join(get_args(Selecting))}"
                f"{nearest(str(self.selection), get_args(Selecting))}"
            )
        if self.selection == "top-std" and (self.budget is None or self.tolerance is not None):
            raise OptionError("selection 'top-std' needs a budget and takes no tolerance; give budget=32 alone")

    def plan(self, activations: Floats, masks: Selection, predictors: Predictors, convention: Convention) -> Plan:
        """Return the plan for a photo with `activations` [K,h,w] and the distinct `masks`.

        Raises:
            OptionError: scores are to be predicted that are no probabilities or logits.
        """
        most = self.most(masks)
        if not len(masks) or (self.tolerance is None and most == len(masks)):
            return plan_exact(masks)
        if self.selection == "top-std":
            return plan_top_spread(masks, activations, most)
        if convention.weight == "centred logit":
            raise OptionError(
                "a budget predicts scores that have logarithms, and plain values have none; leave budget and tolerance "
                "out, or give selection='top-std' (--selection top-std)"
            )
        return PredictedPlan(activations, masks, most, self.tolerance, predictors, convention.is_centred)

    def most(self, masks: Selection) -> int:
        """Return the largest number of masked inputs of a photo: all of them, if the budget covers every mask.

        The blank input that some presets run for constant channels does not count toward the budget, because it
        belongs to no channel.
        """
        blank = int((masks.affine[:, 1] == 0).any())
        if self.budget is None or self.budget >= len(masks) - blank:
            return len(masks)
        return self.budget

    def first_stage(self, channels: int | None, batch_size: int) -> int:
        """Return the least number of masked inputs in the first stage of a photo with `channels` channels."""
        most = batch_size if self.budget is None or (channels and self.budget >= channels) else self.budget
        in_stages = self.tolerance is not None or (most == self.budget and self.selection == "predict")
        return min(most, batch_size, SMALLEST_STAGE if in_stages else batch_size)


class Predictor(Protocol):
    """Chooses masks of one photo and predicts the scores of the other masks, like `Surrogate`, on any device."""

    chosen: list[int]

    def choose(self, count: int) -> NDArray[np.intp]: ...
    def observe(self, scores: Floats) -> None: ...
    def predictions(self) -> list[Prediction]: ...
    def expected_error(self, target: int) -> float: ...


class Predictors(Protocol):
    """The predictors of a group of photos."""

    def add(self, masks: Floats, parts: Floats, grid: tuple[int, int]) -> Predictor:
        """Return the predictor of one more photo. All photos must be added before a predictor chooses.

        The arguments are those of `Surrogate`.
        """


class HostPredictors:
    """Independent predictors in NumPy."""

    def add(self, masks: Floats, parts: Floats, grid: tuple[int, int]) -> Surrogate:
        """Return the predictor of one more photo."""
        return Surrogate(masks, parts, grid)


class PredictedPlan:
    """Runs masks in growing stages, each chosen from the scores seen so far, and predicts the others' scores."""

    def __init__(
        self,
        activations: Floats,
        selection: Selection,
        most: int,
        tolerance: float | None,
        predictors: Predictors,
        centred: bool = False,
    ) -> None:
        """Plan for `activations` [K,h,w].

        Args:
            activations: the activations of the photo.
            selection: its distinct masks.
            most: run at most this number of masks.
            tolerance: stop when the estimated error of every target is at most this.
            predictors: makes the predictor of the photo.
            centred: the mean is subtracted from the weights. That is the same map as weights without it give of
                channels minus their mean: sum of (w_k - mean of w) A_k = sum of w_k (A_k - mean of A).
        """
        shift, scale, _ = selection.affine.T[:, :, None]
        small = shrink(activations, LARGEST_SIDE)
        flat = small.reshape(len(small), -1)
        masks = np.clip((flat[selection.channels] - shift) * scale, 0, 1)
        # Scale to about 1, so that no square overflows float32. A power of two rounds only tiny values.
        flat = np.ldexp(flat, -np.frexp(np.abs(flat).max())[1])
        if centred:
            flat = flat - flat[selection.rows >= 0].mean(axis=0)
        parts = flat[selection.channels]
        more = selection.rows >= 0  # channels that share the mask of an earlier channel
        more[selection.channels] = False
        np.add.at(parts, selection.rows[more], flat[more])
        self._predictor = predictors.add(masks, parts, (small.shape[1], small.shape[2]))
        self._count = len(selection)
        self._most = most
        self._tolerance = tolerance
        self._seen = np.empty((0, 0), np.float32)

    def next(self) -> NDArray[np.intp]:
        done = len(self._seen)
        if done >= self._most or self._is_within_tolerance():
            return np.empty(0, np.intp)
        return self._predictor.choose(min(stage_size(done), self._most - done))

    def observe(self, scores: Floats) -> None:
        self._seen = np.concatenate([self._seen.reshape(-1, scores.shape[1]), scores])
        self._predictor.observe(scores)

    def scores(self) -> Floats:
        best = self._seen.max(axis=0)
        scores = np.stack([one.log_weights for one in self._predictor.predictions()], axis=1) + best
        scores[self._predictor.chosen] = self._seen  # exact bits
        return np.asarray(scores, np.float32)

    def errors(self) -> tuple[ErrorEstimate | None, ...]:
        targets = range(self._seen.shape[1])
        if len(self._seen) == self._count:
            return (EXACT,) * len(targets)
        return tuple(map(self._estimate, targets))

    def _estimate(self, target: int) -> ErrorEstimate | None:
        if len(self._seen) < FEWEST_FOR_AN_ERROR:
            return None
        expected = self._predictor.expected_error(target)
        return ErrorEstimate(*(min(factor * expected, LARGEST_ERROR) for factor in CALIBRATION))

    def _is_within_tolerance(self) -> bool:
        if self._tolerance is None or not len(self._seen):
            return False
        estimates = map(self._estimate, range(self._seen.shape[1]))  # lazy: none follows an estimate that is too large
        return all(error is not None and error.expected <= self._tolerance for error in estimates)


def stage_size(done: int) -> int:
    """Return the size of the next stage after `done` scores: a quarter of them, a multiple of 4, from 4 to 16."""
    return min(max(done // STAGE_STEP * SMALLEST_STAGE, SMALLEST_STAGE), LARGEST_STAGE)


def shrink(maps: Floats, side: int) -> Floats:
    """Average maps [K,h,w] over areas, to at most `side` rows and columns. The surrogate compares these masks."""
    rows, columns = (averaging_matrix(length, min(length, side)) for length in maps.shape[1:])
    if maps.shape[1:] == (len(rows), len(columns)):
        return maps
    return np.asarray(rows @ maps @ columns.T, np.float32)


def averaging_matrix(length: int, size: int) -> Floats:
    """Return the matrix [size,length] that averages `length` samples over `size` equal stretches."""
    edges = np.linspace(0, length, size + 1)
    begins, ends = edges[:-1, None], edges[1:, None]
    places = np.arange(length)
    covered = np.clip(np.minimum(ends, places + 1) - np.maximum(begins, places), 0, None)
    return np.asarray(covered * size / length, np.float32)
