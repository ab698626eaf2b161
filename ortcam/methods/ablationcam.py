"""Ablation-CAM (Desai and Ramaswamy 2020, WACV): how much of the score is lost without each channel.

    w_k = (f_c(A) - f_c(A without channel k)) / f_c(A)          map = ReLU(sum over k of w_k A_k)

f_c is the logit of the class; the rest of the network (the tail) runs once for each channel that is not zero anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ortcam.core.budget import Limits, Predictors
from ortcam.core.convention import TINY, Convention, Floats
from ortcam.core.forward import Forward
from ortcam.core.method import MapResult, Scores
from ortcam.core.query import Ablations, Change, Query
from ortcam.core.targets import Wanted
from ortcam.methods.unlimited import Unlimited

_CONVENTION = Convention("ablation-cam", "Desai and Ramaswamy 2020, WACV, equation 3; pytorch-grad-cam 1.5")
_CHANGE = Change(Ablations(), at="layer")
_AT_ONCE = 2048  # channels per query; progress is reported in between


@dataclass(frozen=True)
class AblationCAM(Unlimited):
    """Ablation-CAM."""

    name: ClassVar[str] = "ablation-cam"
    convention = _CONVENTION
    change = _CHANGE

    def begin(
        self, forward: Forward, targets: Sequence[Wanted], limits: Limits, predictors: Predictors
    ) -> AblationCAMRun:
        return AblationCAMRun(forward, targets)


class AblationCAMRun:
    """Ablation-CAM of one photo."""

    def __init__(self, forward: Forward, targets: Sequence[Wanted]) -> None:
        self._activations = forward.activations
        self._clean = forward.logits[[one.index for one in targets]]  # [T]
        self._live = np.flatnonzero(forward.activations.any(axis=(1, 2)))  # without a zero channel, nothing changes
        self._kept: list[Floats] = []
        self.most = len(self._live)

    def next(self) -> Query | None:
        done = sum(map(len, self._kept))
        channels = self._live[done : done + _AT_ONCE]
        return Query.unscaled(_CHANGE, channels) if len(channels) else None

    def observe(self, scores: Scores) -> None:
        self._kept.append(scores.logits)

    def finish(self) -> MapResult:
        weights = np.zeros((len(self._clean), len(self._activations)), np.float32)  # [T,K]
        if self._kept:
            # A logit of 0 has no share to lose; the loss itself then gives the same map up to a factor.
            divisor = np.where(np.abs(self._clean) < TINY, 1, self._clean)
            weights[:, self._live] = ((self._clean - np.concatenate(self._kept)) / divisor).T
        sums = np.tensordot(weights, self._activations, axes=1)
        return MapResult(sums, weights, (None,) * len(sums), len(self._live))
