"""Eigen-CAM (Muhammad and Yeasin 2020, arXiv 2008.00299): the first principal component of a layer. It has no class.

    A = U S V^T, A [hw,K]          map = A v_1

Each channel is centred first, as in pytorch-grad-cam; the paper takes the activations as they are. The sign of a
singular vector is arbitrary. Here the map grows with the sum of the activations, so it marks where the layer is active.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from ortcam.core.budget import Limits, Predictors
from ortcam.core.convention import Convention
from ortcam.core.forward import Forward
from ortcam.core.method import MapResult, Scores
from ortcam.core.query import Change, Channels, Query
from ortcam.core.targets import Wanted
from ortcam.errors import OptionError
from ortcam.methods.unlimited import Unlimited

_CONVENTION = Convention("eigen-cam", "Muhammad and Yeasin 2020, arXiv 2008.00299; pytorch-grad-cam 1.5")


@dataclass(frozen=True)
class EigenCAM(Unlimited):
    """Eigen-CAM: the same map for every class.

    Attributes:
        centred: ``yes``: subtract the mean of each channel first (pytorch-grad-cam); ``no``: do not (the paper).
    """

    centred: Literal["yes", "no"] = "yes"

    name: ClassVar[str] = "eigen-cam"
    convention = _CONVENTION
    change = Change(Channels())

    def __post_init__(self) -> None:
        if self.centred not in ("yes", "no"):
            raise OptionError(f"centred is {self.centred!r}; expected 'yes' or 'no'")

    def begin(self, forward: Forward, targets: Sequence[Wanted], limits: Limits, predictors: Predictors) -> EigenCAMRun:
        return EigenCAMRun(self, forward, len(targets))


class EigenCAMRun:
    """Eigen-CAM of one photo."""

    most = 0

    def __init__(self, method: EigenCAM, forward: Forward, targets: int) -> None:
        self._method, self._activations, self._targets = method, forward.activations, targets

    def next(self) -> Query | None:
        return None

    def observe(self, scores: Scores) -> None:
        raise AssertionError("eigen-cam runs no changed inputs")

    def finish(self) -> MapResult:
        channels, height, width = self._activations.shape
        lanes = self._activations.reshape(channels, -1).T.astype(np.float64)  # [hw,K]
        if self._method.centred == "yes":
            lanes = lanes - lanes.mean(axis=0)
        # The singular vectors are the eigenvectors of A A^T [hw,hw] and A^T A [K,K]; one of them is small: a late layer
        # has few places, an early layer few channels.
        if channels < height * width:
            component = lanes @ np.linalg.eigh(lanes.T @ lanes)[1][:, -1]
        else:
            values, vectors = np.linalg.eigh(lanes @ lanes.T)
            component = vectors[:, -1] * np.sqrt(max(values[-1], 0))
        active = self._activations.reshape(channels, -1).sum(axis=0, dtype=np.float64)
        sign = -1 if component @ (active - active.mean()) < 0 else 1
        one = (sign * component).reshape(height, width).astype(np.float32)
        sums = np.repeat(one[None], self._targets, axis=0)
        return MapResult(sums, np.zeros((self._targets, 0), np.float32), (None,) * self._targets, None)
