"""Select the masked inputs to run: one for each distinct mask, all of them or a budget of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ortcam.core.convention import Convention, Floats, Masks

# Masks in [0,1] that differ by less than this count as equal: far below the resolution of float32 convolutions.
MASK_RESOLUTION = 2.0**-20
_FACTOR = np.int64(0x1E3779B97F4A7C15)  # an arbitrary odd number


@dataclass(frozen=True)
class Selection:
    """The distinct masks of one photo.

    Attributes:
        channels: int64 [D], the channel of each mask.
        affine: float32 [D,3], as in `Masks`.
        rows: intp [K], the number of the mask of each channel; -1 if the channel is left out.
    """

    channels: NDArray[np.int64]
    affine: Floats
    rows: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.channels)

    def spread(self, scores: Floats) -> Floats:
        """Return the scores of the channels [K,T] from the scores of the masks [D,T]; -inf if a channel is left out."""
        return np.concatenate([scores, np.full((1, scores.shape[1]), -np.inf, scores.dtype)])[self.rows]


def select_distinct(activations: Floats, masks: Masks, convention: Convention) -> Selection:
    """Select one channel for each distinct mask: Score-CAM stays exact, and no pass is repeated.

    Channels that are active in the same single place have the same mask, whatever their strength. There are many such
    channels after a ReLU. All constant channels have the blank mask. The convention leaves it out, or runs it once.

    Args:
        activations: float32 [K,h,w].
        masks: their masks by the convention.
        convention: states the treatment of constant channels.
    """
    counted = masks.live if convention.constant_channels == "skip" else np.ones_like(masks.live)
    shift, scale, _ = masks.affine[counted].T[:, :, None, None]
    levels = np.rint((activations[counted] - shift) * scale / np.float32(MASK_RESOLUTION)).astype(np.int32)
    firsts, which = _first_of_equals(levels.reshape(len(levels), activations.shape[1] * activations.shape[2]))
    rows = np.full(len(activations), -1, np.intp)
    rows[counted] = which
    channels = np.flatnonzero(counted)[firsts].astype(np.int64)
    return Selection(channels, rows=rows, affine=np.ascontiguousarray(masks.affine[channels]))


def _first_of_equals(lines: NDArray[np.int32]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the indices [D] of the first of each distinct line, in order; and for each line, its place among these."""
    _, firsts, which = np.unique(_sum_up(lines), return_index=True, return_inverse=True)
    if not np.array_equal(lines[firsts][which], lines):  # different lines have equal sums
        _, firsts, which = np.unique(lines, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(firsts)
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return firsts[order], places[which.reshape(-1)]


def _sum_up(lines: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return a sum for each line. Different lines hardly ever have equal sums."""
    factors = np.cumprod(np.full(lines.shape[1], _FACTOR))  # modulo 2^64; numpy.random takes 20 ms to import
    return np.asarray(np.einsum("kp,p->k", lines, factors), np.int64)


@dataclass(frozen=True)
class ErrorEstimate:
    """The estimated error of a map: 1 - r, with r Pearson's correlation of the map and the exact map.

    Attributes:
        expected: the estimate; 0 for the exact map.
        low, high: the interval that contains the true error in 90 of 100 cases.
    """

    expected: float
    low: float
    high: float


EXACT = ErrorEstimate(0.0, 0.0, 0.0)


class Plan(Protocol):
    """Chooses the masks to run among the D distinct masks of a photo, stage by stage, and scores the others."""

    def next(self) -> NDArray[np.intp]:
        """Return the masks to run next; empty at the end."""

    def observe(self, scores: Floats) -> None:
        """Take the scores [m,T] of the masks that `next` returned: logs of probabilities, or logits."""

    def scores(self) -> Floats:
        """Return the scores of all masks, float32 [D,T], observed or predicted; -inf if a mask has no score.

        Call `observe` first.
        """

    def errors(self) -> tuple[ErrorEstimate | None, ...]:
        """Return the estimated error of the map of every target; None if it is unknown. Call `observe` first."""


class FixedPlan:
    """Runs a list of masks in one stage, and gives the other masks no weight."""

    def __init__(self, masks: NDArray[np.intp], count: int) -> None:
        self._masks = masks
        self._error = EXACT if len(masks) == count else None
        self._count = count
        self._seen: Floats | None = None

    def next(self) -> NDArray[np.intp]:
        return self._masks if self._seen is None else self._masks[:0]

    def observe(self, scores: Floats) -> None:
        self._seen = scores

    def scores(self) -> Floats:
        assert self._seen is not None
        scores = np.full((self._count, self._seen.shape[1]), -np.inf, np.float32)
        scores[self._masks] = self._seen
        return scores

    def errors(self) -> tuple[ErrorEstimate | None, ...]:
        assert self._seen is not None
        return tuple(self._error for _ in range(self._seen.shape[1]))


def plan_exact(selection: Selection) -> FixedPlan:
    """Plan to run every distinct mask."""
    return FixedPlan(np.arange(len(selection)), len(selection))


def plan_top_spread(selection: Selection, activations: Floats, budget: int) -> FixedPlan:
    """Plan to run the masks of the channels with the highest standard deviation: Faster-Score-CAM.

    Source: Li et al. (github.com/tabayashi0117/Score-CAM, "Faster-Score-CAM"): the channels beyond the budget get
    no weight.
    """
    spread = np.zeros(len(selection), np.float32)
    counted = selection.rows >= 0
    np.maximum.at(spread, selection.rows[counted], activations[counted].std(axis=(1, 2)))
    chosen = np.sort(np.argsort(-spread, kind="stable")[:budget])
    return FixedPlan(chosen, len(selection))
