"""The maps of a video over time: averaged over explained frames, interpolated between them, with one scale.

S_j are the raw maps of the explained frames, t_j their times in seconds, and s the number of seconds of `steady`:

    M_j = sum_i exp(-|t_i - t_j| / s) S_i  /  sum_i exp(-|t_i - t_j| / s)        over the frames i of j's shot
    M(n) = (1 - u) M_j + u M_k,   u = (n - j) / (k - j)                          between two explained frames j < n < k

A shot ends at a cut, at an explained frame without a map, and where the target changes to another object: the boxes of
a detector's target overlap by less than 0.3, the bound of SORT (Bewley et al. 2016). M_j = S_j if s is 0.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ortcam.core.convention import Floats
from ortcam.core.references import overlaps

_SAME_OBJECT = 0.3  # least overlap of the boxes of one object in two explained frames


@dataclass(frozen=True)
class Place:
    """Where a frame stands between explained frames.

    Attributes:
        first, second: rows of the maps; equal where the map is held.
        share: the weight of the second map, 0 to 1.
    """

    first: int
    second: int
    share: float


class Timeline:
    """The explained frames of a video in their order.

    Attributes:
        numbers: the number of each explained frame, ascending.
        seconds: the time of each explained frame.
        has_map: whether each explained frame has a map.
        cuts: the numbers of the frames that begin a shot, ascending; without frame 0.
        changes: the rows after which the target is another object.
    """

    def __init__(
        self,
        numbers: Sequence[int] = (),
        seconds: Sequence[float] = (),
        has_map: Sequence[bool] = (),
        cuts: Sequence[int] = (),
        changes: Sequence[int] = (),
    ) -> None:
        self.numbers, self.seconds, self.has_map, self.cuts = list(numbers), list(seconds), list(has_map), list(cuts)
        self.changes = set(changes)
        self._box: Floats | None = None

    def add(self, has_map: bool, box: Floats | None) -> None:
        """Add whether the next explained frame has a map, and the box [4] of its target; None if it has no box."""
        last, self._box = self._box, box
        if last is not None and box is not None and overlaps(last[None], box)[0] < _SAME_OBJECT:
            self.changes.add(len(self.has_map) - 1)
        self.has_map.append(has_map)

    def find(self, number: int) -> Place | None:
        """Return where a frame stands; None if it has no map.

        Before a cut the map is that of the explained frame before it, and after the cut that of the frame after it.
        """
        row = bisect_right(self.numbers, number) - 1
        later = row + 1
        if row < 0:
            return None
        if later == len(self.numbers) or self.numbers[row] == number:
            return self._held(row)
        begun = bisect_right(self.cuts, number) - bisect_right(self.cuts, self.numbers[row])
        to_come = bisect_right(self.cuts, self.numbers[later]) - bisect_right(self.cuts, number)
        if begun and to_come:
            return None  # a shot without an explained frame
        if begun:
            return self._held(later)
        if to_come or row in self.changes or not (self.has_map[row] and self.has_map[later]):
            return self._held(row)
        share = (number - self.numbers[row]) / (self.numbers[later] - self.numbers[row])
        return Place(row, later, share)

    def average(self, maps: NDArray[np.float32], steady: float, out: NDArray[np.float32]) -> None:
        """Write the averages M_j of the maps S_j into `out`, in one pass forward and one pass backward.

        Args:
            maps: float32 [J,h,w]; rows without a map are not read.
            steady: s, in seconds; 0 copies the maps.
            out: float32 [J,h,w].
        """
        # The sum over the frames before j and j itself, and the sum of its weights.
        weights = np.zeros(len(self.numbers))
        for row in range(len(self.numbers)):
            if self.has_map[row]:
                fading = self._fading(row - 1, steady)
                out[row] = maps[row] + (np.float32(fading) * out[row - 1] if fading else 0)
                weights[row] = 1 + fading * weights[row - 1]
        after, weight = np.zeros(maps.shape[1:], np.float32), 0.0  # the same of the frames after j
        for row in reversed(range(len(self.numbers))):
            fading = self._fading(row, steady)
            if self.has_map[row]:
                after, weight = np.float32(fading) * after, fading * weight
                out[row] = (out[row] + after) / np.float32(weights[row] + weight)
                after, weight = after + maps[row], weight + 1

    def _held(self, row: int) -> Place | None:
        return Place(row, row, 0.0) if self.has_map[row] else None

    def _fading(self, row: int, steady: float) -> float:
        """Return the factor between the explained frames `row` and `row` + 1: 0 if a shot ends between them."""
        if not 0 <= row < len(self.numbers) - 1 or not (self.has_map[row] and self.has_map[row + 1]):
            return 0.0
        ends = bisect_right(self.cuts, self.numbers[row]) != bisect_right(self.cuts, self.numbers[row + 1])
        if ends or row in self.changes or steady <= 0:
            return 0.0
        return float(np.exp(-abs(self.seconds[row + 1] - self.seconds[row]) / steady))


def blend(place: Place, maps: NDArray[np.float32]) -> Floats:
    """Return the map of a frame, float32 [h,w], from the maps [J,h,w] of the explained frames."""
    if place.first == place.second:
        return np.array(maps[place.first], np.float32)
    share = np.float32(place.share)
    return np.asarray((1 - share) * maps[place.first] + share * maps[place.second], np.float32)
