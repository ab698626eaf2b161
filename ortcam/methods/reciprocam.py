"""Recipro-CAM (Byun and Lee 2022, arXiv 2209.14074): the class score of each single place of a layer.

    map(i, j) = f_c(tail(A * window_ij))

The features A [K,h,w] of the target layer go through the rest of the network (its tail) h * w times. Each time, one
place is kept and all other places are zero. The score of the target class is the value of the map at that place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np

from ortcam.core.budget import Limits, Predictors
from ortcam.core.convention import Convention
from ortcam.core.forward import Forward
from ortcam.core.method import MapResult, Scores
from ortcam.core.query import Change, Maps, Query
from ortcam.core.targets import Wanted
from ortcam.errors import LayerError, OptionError

# Min-max normalisation without a ReLU, and bilinear interpolation.
_CONVENTION = Convention(
    "recipro-cam", "Byun and Lee 2022, arXiv 2209.14074; OpenVINO XAI 1.1", steps=("normalize", "upsample")
)
_MOST_PLACES = 128 * 128  # their windows take 1 GB


@dataclass(frozen=True)
class ReciproCAM:
    """Recipro-CAM.

    Attributes:
        score: the value of the map: the target's ``logit``, or its ``probability``.
    """

    score: Literal["logit", "probability"] = "probability"

    name = "recipro-cam"
    convention = _CONVENTION
    scored: ClassVar[Literal["logits", "output"]] = "logits"
    change = Change(Maps(np.zeros((1, 1, 1), np.float32)), at="layer")

    def __post_init__(self) -> None:
        if self.score not in ("logit", "probability"):
            raise OptionError(f"score is {self.score!r}; expected 'logit' or 'probability'")

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "score": self.score}

    def check(self, limits: Limits) -> None:
        if limits != Limits():
            raise OptionError("recipro-cam runs the tail for every place of the layer; leave budget and tolerance out")

    def first_query(self, limits: Limits, channels: int | None, batch_size: int) -> int:
        return batch_size

    def begin(
        self, forward: Forward, targets: Sequence[Wanted], limits: Limits, predictors: Predictors
    ) -> ReciproCAMRun:
        return ReciproCAMRun(self, forward)


class ReciproCAMRun:
    """Recipro-CAM of one photo."""

    def __init__(self, method: ReciproCAM, forward: Forward) -> None:
        self._method = method
        self._size = forward.activations.shape[1:]  # (h, w)
        self._scores: Scores | None = None
        self.most = int(np.prod(self._size))
        if self.most > _MOST_PLACES:
            raise LayerError(
                f"the layer has {self._size[0]}x{self._size[1]} places, and recipro-cam runs the rest of the model for "
                f"each; expected at most {_MOST_PLACES} places: choose a later layer (see: ortcam inspect)"
            )

    def next(self) -> Query | None:
        if self._scores is not None:
            return None
        return Query.unscaled(Change(_windows(self._size), at="layer"), np.arange(self.most))

    def observe(self, scores: Scores) -> None:
        self._scores = scores

    def finish(self) -> MapResult:
        assert self._scores is not None
        probability = self._method.score == "probability"
        values = (np.exp(self._scores.log_probabilities) if probability else self._scores.logits).T  # [T,hw]
        return MapResult(values.reshape(-1, *self._size), values, (None,) * len(values), None)


@lru_cache(maxsize=2)  # as many groups as are at work
def _windows(size: tuple[int, int]) -> Maps:
    """Return masks that keep one place each of a layer of (h, w). Calls with the same size return the same object."""
    count = size[0] * size[1]
    return Maps(np.eye(count, dtype=np.float32).reshape(count, *size))
