"""Recipro-CAM (Byun and Lee 2022, arXiv 2209.14074): the class score of each single place of a layer.

    map(i, j) = f_c(tail(A * window_ij))

The features A [K,h,w] of the target layer go through the rest of the network (its tail) h * w times. Each time, one
place is kept and all other places are zero. The score of the target class is the value of the map at that place.

With the Gaussian kernel (the paper's equation 4), the features of the place are also copied to its eight neighbours,
weighted by [1 2 1; 2 4 2; 1 2 1] / 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np

from ortcam.core import windows
from ortcam.core.budget import Limits, Predictors
from ortcam.core.convention import Convention
from ortcam.core.forward import Forward
from ortcam.core.method import MapResult, Scores
from ortcam.core.query import Change, Maps, Query
from ortcam.core.targets import Wanted
from ortcam.errors import OptionError
from ortcam.methods.unlimited import Unlimited, check_places

# Min-max normalisation without a ReLU, and bilinear interpolation.
_CONVENTION = Convention(
    "recipro-cam", "Byun and Lee 2022, arXiv 2209.14074; OpenVINO XAI 1.1", steps=("normalize", "upsample")
)


@dataclass(frozen=True)
class ReciproCAM(Unlimited):
    """Recipro-CAM.

    Attributes:
        score: the value of the map: the target's ``logit``, or its ``probability``.
        kernel: keep a ``single`` place, or copy its features to its neighbours by a ``gaussian``.
    """

    score: Literal["logit", "probability"] = "probability"
    kernel: Literal["single", "gaussian"] = "single"

    name: ClassVar[str] = "recipro-cam"
    convention = _CONVENTION

    def __post_init__(self) -> None:
        if self.score not in ("logit", "probability"):
            raise OptionError(f"score is {self.score!r}; expected 'logit' or 'probability'")
        if self.kernel not in ("single", "gaussian"):
            raise OptionError(f"kernel is {self.kernel!r}; expected 'single' or 'gaussian'")

    @property
    def change(self) -> Change:
        return self.with_windows((1, 1))

    def with_windows(self, size: tuple[int, int]) -> Change:
        """Return the change that keeps one place of a layer of (h, w) for each mask."""
        gaussian = self.kernel == "gaussian"
        return Change(_windows(size, gaussian), at="layer", copied=gaussian)

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
        self.most = check_places(method.name, self._size)

    def next(self) -> Query | None:
        if self._scores is not None:
            return None
        return Query.unscaled(self._method.with_windows(self._size), np.arange(self.most))

    def observe(self, scores: Scores) -> None:
        self._scores = scores

    def finish(self) -> MapResult:
        assert self._scores is not None
        probability = self._method.score == "probability"
        values = (self._scores.probabilities if probability else self._scores.logits).T  # [T,hw]
        return MapResult(values.reshape(-1, *self._size), values, (None,) * len(values), None)


@lru_cache(maxsize=2)  # as many groups as are at work
def _windows(size: tuple[int, int], gaussian: bool) -> Maps:
    """Return masks that keep one place each of a layer of (h, w), or a Gaussian around it.

    Calls with the same arguments return the same object.
    """
    if not gaussian:
        return Maps(windows.places(size))
    rows, columns = map(windows.tent, size)
    return Maps(np.einsum("iy,jx->ijyx", rows, columns).reshape(-1, *size))
