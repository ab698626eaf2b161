"""A budget of masked inputs: how many, in which stages, and the plan that a surrogate makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from ortcam.core.convention import Floats
from ortcam.core.selection import EXACT, ErrorEstimate, Plan, Selection, plan_exact, plan_top_spread
from ortcam.core.surrogate import Prediction, Surrogate
from ortcam.errors import OptionError, nearest, whole

Method = Literal["predict", "top-std"]
SMALLEST_STAGE = 4
STAGE_STEP = 16  # scores; after so many more a stage is larger by the smallest
FEWEST_FOR_AN_ERROR = 8  # scores; fewer say nothing of their own spread
LARGEST_STAGE = 16
LARGEST_SIDE = 14  # of the masks that the surrogate sees; larger ones are averaged
# The median, and the 4th and 96th percentiles, of the true error over the surrogate's: 4 trained networks, 37 photos,
# 2 presets, 2 classes, budgets of 16 to 128. See docs/budget.md.
CALIBRATION = (1.3, 0.35, 6.5)
LARGEST_ERROR = 2.0  # 1 - r of a map against its opposite


@dataclass(frozen=True)
class Limits:
    """What an explanation may cost, or how far it may be off.

    Attributes:
        budget: the most masked inputs; None for no limit. See `most`.
        tolerance: the estimated error to stop at; None to use the budget up.
        method: what becomes of the channels that are not run.
    """

    budget: int | None = None
    tolerance: float | None = None
    method: Method = "predict"

    def __post_init__(self) -> None:
        if self.budget is not None:
            object.__setattr__(self, "budget", whole("budget", self.budget))
        if self.tolerance is not None:
            number = isinstance(self.tolerance, int | float | np.floating) and not isinstance(self.tolerance, bool)
            if not number or not 0 < self.tolerance < 1:
                raise OptionError(f"tolerance is {self.tolerance!r}; expected an error 1 - r between 0 and 1, as 0.01")
        if self.method not in get_args(Method):
            raise OptionError(
                f"selection {self.method!r} does not exist; expected {' or '.join(get_args(Method))}"
                f"{nearest(str(self.method), get_args(Method))}"
            )
        if self.method == "top-std" and (self.budget is None or self.tolerance is not None):
            raise OptionError("selection 'top-std' needs a budget and knows no tolerance; give budget=32 alone")

    def plan(self, activations: Floats, selection: Selection, surrogate: MakePredictor = Surrogate) -> Plan:
        """Return the plan for a photo with `activations` [K,h,w]; `surrogate` is what predicts."""
        most = self.most(selection)
        if not len(selection) or (self.tolerance is None and most == len(selection)):
            return plan_exact(selection)
        if self.method == "top-std":
            return plan_top_spread(selection, activations, most)
        return PredictedPlan(activations, selection, most, self.tolerance, surrogate)

    def most(self, selection: Selection) -> int:
        """Return the most masked inputs that a photo can take: all of them, if the budget has one for every mask.

        The blank input that some presets run for constant channels comes on top: it is nobody's mask.
        """
        blank = int((selection.affine[:, 1] == 0).any())
        if self.budget is None or self.budget >= len(selection) - blank:
            return len(selection)
        return self.budget

    def first_stage(self, channels: int | None, batch_size: int) -> int:
        """Return how many masked inputs a photo with so many channels brings to its first batches, at least."""
        most = batch_size if self.budget is None or (channels and self.budget >= channels) else self.budget
        in_stages = self.tolerance is not None or (most == self.budget and self.method == "predict")
        return min(most, batch_size, SMALLEST_STAGE if in_stages else batch_size)


class Predictor(Protocol):
    """What `Surrogate` does, however it is computed."""

    chosen: list[int]

    def choose(self, count: int) -> NDArray[np.intp]: ...
    def observe(self, scores: Floats) -> None: ...
    def predictions(self) -> list[Prediction]: ...
    def expected_error(self, target: int) -> float: ...


MakePredictor = Callable[[Floats, Floats, tuple[int, int]], Predictor]


class PredictedPlan:
    """Runs masks in growing stages, each chosen from the scores seen so far, and predicts the others' scores."""

    def __init__(
        self,
        activations: Floats,
        selection: Selection,
        most: int,
        tolerance: float | None,
        surrogate: MakePredictor = Surrogate,
    ) -> None:
        """Plan for `activations` [K,h,w].

        Args:
            activations: of the photo.
            selection: its distinct masks.
            most: run at most so many.
            tolerance: stop when the estimated error of every target is at most this.
            surrogate: what predicts.
        """
        shift, scale, _ = selection.affine.T[:, :, None]
        small = shrink(activations, LARGEST_SIDE)
        flat = small.reshape(len(small), -1)
        masks = np.clip((flat[selection.channels] - shift) * scale, 0, 1)
        # To about 1, so that no square leaves float32; by a power of two, which rounds only what is next to nothing.
        flat = np.ldexp(flat, -np.frexp(np.abs(flat).max())[1])
        parts = flat[selection.channels]
        more = selection.rows >= 0  # channels with a mask that an earlier one has
        more[selection.channels] = False
        np.add.at(parts, selection.rows[more], flat[more])
        self._surrogate = surrogate(masks, parts, (small.shape[1], small.shape[2]))
        self._count = len(selection)
        self._most = most
        self._tolerance = tolerance
        self._seen = np.empty((0, 0), np.float32)
        self._result: tuple[Floats, tuple[ErrorEstimate | None, ...]] | None = None  # once it has finished

    def next(self) -> NDArray[np.intp]:
        done = len(self._seen)
        if self._result is None:
            if done < self._most and not self._is_within_tolerance():
                return self._surrogate.choose(min(stage_size(done), self._most - done))
            self._result = self._scores(), self._errors()  # the surrogate may go on with other photos
        return np.empty(0, np.intp)

    def observe(self, scores: Floats) -> None:
        self._seen = np.concatenate([self._seen.reshape(-1, scores.shape[1]), scores])
        self._surrogate.observe(self._seen)

    def scores(self) -> Floats:
        assert self._result is not None, "scores asked for before the plan has finished"
        return self._result[0]

    def errors(self) -> tuple[ErrorEstimate | None, ...]:
        assert self._result is not None, "errors asked for before the plan has finished"
        return self._result[1]

    def _scores(self) -> Floats:
        best = self._seen.max(axis=0)
        scores = np.stack([one.log_weights for one in self._surrogate.predictions()], axis=1) + best
        scores[self._surrogate.chosen] = self._seen  # to the bit
        return np.asarray(scores, np.float32)

    def _errors(self) -> tuple[ErrorEstimate | None, ...]:
        targets = range(self._seen.shape[1])
        if len(self._seen) == self._count:
            return (EXACT,) * len(targets)
        return tuple(map(self._estimate, targets))

    def _estimate(self, target: int) -> ErrorEstimate | None:
        if len(self._seen) < FEWEST_FOR_AN_ERROR:
            return None
        expected = self._surrogate.expected_error(target)
        return ErrorEstimate(*(min(factor * expected, LARGEST_ERROR) for factor in CALIBRATION))

    def _is_within_tolerance(self) -> bool:
        if self._tolerance is None or not len(self._seen):
            return False
        estimates = map(self._estimate, range(self._seen.shape[1]))  # none is made after the first that is too large
        return all(error is not None and error.expected <= self._tolerance for error in estimates)


def stage_size(done: int) -> int:
    """Return how many masks are chosen at once after `done` scores: a quarter, in fours, within limits."""
    return min(max(done // STAGE_STEP * SMALLEST_STAGE, SMALLEST_STAGE), LARGEST_STAGE)


def shrink(maps: Floats, side: int) -> Floats:
    """Average maps [K,h,w] over areas, to at most `side` rows and columns: what the surrogate compares masks by."""
    rows, columns = (averaging_matrix(length, min(length, side)) for length in maps.shape[1:])
    if maps.shape[1:] == (len(rows), len(columns)):
        return maps
    return np.asarray(rows @ maps @ columns.T, np.float32)


def averaging_matrix(length: int, size: int) -> Floats:
    """Return the mean over each of `size` equal stretches of `length` samples as a matrix [size,length]."""
    edges = np.linspace(0, length, size + 1)
    begins, ends = edges[:-1, None], edges[1:, None]
    places = np.arange(length)
    covered = np.clip(np.minimum(ends, places + 1) - np.maximum(begins, places), 0, None)
    return np.asarray(covered * size / length, np.float32)
