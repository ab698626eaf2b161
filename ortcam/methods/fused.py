"""Fused: one map from several kinds of evidence, most of them cheap. This project's own method; see docs/fused.md.

    map = N(K) * (N(D) + f) * (N(S) + f)

K is what the log-probability of the class loses when one place of the target layer is set to zero, D is the same for
each 3 x 3 window of the stage before, and S is Score-CAM of that stage with a budget of passes. N is min-max
normalisation, and f a floor, so that one factor alone does not decide. K and D run only the rest of the network (its
tail) behind the layer. For a linear head, K with logits in place of log-probabilities would be CAM. With
log-probabilities, what speaks for other classes counts as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from numbers import Integral
from typing import Any, ClassVar, Literal

import numpy as np

from ortcam.core.budget import Limits, Predictors
from ortcam.core.convention import Convention, Floats, normalize, upsample
from ortcam.core.forward import Forward
from ortcam.core.method import MapResult, Scores
from ortcam.core.query import Change, Maps, Query
from ortcam.core.targets import Wanted
from ortcam.errors import OptionError
from ortcam.methods.reciprocam import check_places
from ortcam.methods.scorecam import ScoreCAMMethod, ScoreCAMRun

_CONVENTION = Convention("fused", "ortcam, docs/fused.md", steps=("upsample", "normalize"))
_FLOOR = np.float32(0.1)
_WINDOW = 3  # places of the stage


@dataclass(frozen=True)
class Fused:
    """The fused map.

    Attributes:
        passes: the number of masked images; a budget replaces it. With 0, only tails are run.
    """

    passes: int = 32

    name = "fused"
    convention = _CONVENTION
    scored: ClassVar[Literal["logits", "output"]] = "logits"
    stages: ClassVar[int] = 1
    change = Change(Maps(np.zeros((1, 1, 1), np.float32)), at="layer")

    def __post_init__(self) -> None:
        if isinstance(self.passes, bool) or not isinstance(self.passes, Integral) or self.passes < 0:
            raise OptionError(f"passes is {self.passes!r}; expected a whole number from 0")
        object.__setattr__(self, "passes", int(self.passes))

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self)}

    def check(self, limits: Limits) -> None:
        if limits.tolerance is not None or limits.selection != "predict":
            raise OptionError(
                "fused takes only a budget, the number of masked images; leave tolerance and selection out"
            )

    def first_query(self, limits: Limits, channels: int | None, batch_size: int) -> int:
        return batch_size

    def begin(self, forward: Forward, targets: Sequence[Wanted], limits: Limits, predictors: Predictors) -> FusedRun:
        budget = self.passes if limits.budget is None else limits.budget
        return FusedRun(forward, len(targets), budget, predictors)


class FusedRun:
    """The fused map of one photo, for T targets."""

    def __init__(self, forward: Forward, targets: int, budget: int, predictors: Predictors) -> None:
        # The stage is the last layer with a larger map; a network without one has only its target layer.
        self._stage = min(1, len(forward.stages))
        self._sizes = [forward.layer(layer).shape[1:] for layer in range(1 + self._stage)]
        self._losses: list[Floats] = []  # [T,h,w] of each layer
        self._scorecam = None
        if budget:
            method = ScoreCAMMethod()
            self._scorecam = ScoreCAMRun(method, forward, targets, Limits(budget), predictors, self._stage)
        tails = sum(check_places("fused", size) for size in self._sizes)
        self.most = tails + (0 if self._scorecam is None else self._scorecam.most)

    def next(self) -> Query | None:
        layer = len(self._losses)
        if layer <= self._stage:
            windows = _windows(self._sizes[layer], _WINDOW if layer else 1)
            numbers = np.arange(len(windows.values))
            hidden = np.tile(np.array([0, -1, 1], np.float32), (len(numbers), 1))
            return Query(Change(windows, at="layer", layer=layer), numbers, hidden)
        return None if self._scorecam is None else self._scorecam.next()

    def observe(self, scores: Scores) -> None:
        layer = len(self._losses)
        if layer <= self._stage:
            self._losses.append(-scores.log_probabilities.T.reshape(-1, *self._sizes[layer]))
        elif self._scorecam is not None:
            self._scorecam.observe(scores)

    def finish(self) -> MapResult:
        size = self._sizes[-1]
        product = upsample(normalize(self._losses[0]), size)
        for loss in self._losses[1:]:
            product = product * (normalize(loss) + _FLOOR)
        live = None
        if self._scorecam is not None:
            result = self._scorecam.finish()
            product = product * (normalize(np.maximum(result.sums, 0)) + _FLOOR)
            live = result.live
        return MapResult(product, product.reshape(len(product), -1), (None,) * len(product), live)


@lru_cache(maxsize=4)  # two layers of as many groups as are at work
def _windows(size: tuple[int, int], side: int) -> Maps:
    """Return masks of one window of `side` x `side` places around each place of a layer of (h, w)."""
    rows, columns = (np.abs(np.subtract.outer(np.arange(n), np.arange(n))) <= side // 2 for n in size)
    return Maps(np.einsum("iy,jx->ijyx", rows, columns).reshape(-1, *size).astype(np.float32))
