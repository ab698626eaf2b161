"""CAM (Zhou et al. 2016, arXiv 1512.04150): what each place of a layer adds to the score of a class.

    map(i, j) = sum over k of w_kc A_k(i, j)

The weights w are those of the linear head behind the pooling of the layer. They are not read from the graph: if the
head is linear, the logit of the class adds up over the places,

    f_c(A) = f_c(0) + sum over i, j of (f_c(A * window_ij) - f_c(0))

and the summand of a place is its map value, up to a factor that normalisation removes. So a head with a folded
BatchNorm, several linear layers, or another order of its nodes is the same as a single linear layer; and a head that is
not linear is found by the sum, which is wrong then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from ortcam.core.budget import Limits, Predictors
from ortcam.core.convention import Convention
from ortcam.core.forward import Forward
from ortcam.core.method import MapResult, Scores
from ortcam.core.query import Change, Maps, Query
from ortcam.core.targets import Wanted
from ortcam.errors import LayerError
from ortcam.methods.unlimited import Unlimited, check_places

# No ReLU, as in torchcam: evidence against the class lowers the map.
_CONVENTION = Convention("cam", "Zhou et al. 2016, arXiv 1512.04150", steps=("upsample", "normalize"))
_MOST_DEVIATION = 1e-3  # of the sum of all places, relative to the sum of their sizes


@dataclass(frozen=True)
class CAM(Unlimited):
    """CAM of a model whose head is linear behind the pooling of the layer."""

    name: ClassVar[str] = "cam"
    convention = _CONVENTION
    change = Change(Maps(np.zeros((1, 1, 1), np.float32)), at="layer")

    def begin(self, forward: Forward, targets: Sequence[Wanted], limits: Limits, predictors: Predictors) -> CAMRun:
        return CAMRun(forward, targets)


class CAMRun:
    """CAM of one photo."""

    def __init__(self, forward: Forward, targets: Sequence[Wanted]) -> None:
        self._size = forward.activations.shape[1:]  # (h, w)
        self._logits = forward.logits[[one.index for one in targets]]
        self._scores: Scores | None = None
        self.most = check_places("cam", self._size) + 1

    def next(self) -> Query | None:
        if self._scores is not None:
            return None
        return Query.unscaled(Change(_places_and_nothing(self._size), at="layer"), np.arange(self.most))

    def observe(self, scores: Scores) -> None:
        self._scores = scores

    def finish(self) -> MapResult:
        assert self._scores is not None
        logits = self._scores.logits.astype(np.float64)
        parts = (logits[:-1] - logits[-1]).T  # [T,hw]
        missing = np.abs(parts.sum(axis=1) - (self._logits - logits[-1]))
        size = np.abs(parts).sum(axis=1) + np.abs(self._logits)
        if (missing > _MOST_DEVIATION * size).any():
            raise LayerError(
                f"the scores do not add up over the places of the layer ({missing.max():.2g} of {size.max():.2g} is "
                "missing), so what follows the layer is not a pooling and a linear head, which cam needs; use "
                "recipro-cam, ablation-cam or score-cam, or choose the last layer"
            )
        sums = parts.reshape(-1, *self._size).astype(np.float32)
        return MapResult(sums, sums.reshape(len(sums), -1), (None,) * len(sums), None)


@lru_cache(maxsize=2)  # as many groups as are at work
def _places_and_nothing(size: tuple[int, int]) -> Maps:
    """Return masks that keep one place each of a layer of (h, w), and a last mask that keeps none."""
    count = size[0] * size[1]
    return Maps(np.eye(count + 1, count, dtype=np.float32).reshape(count + 1, *size))
