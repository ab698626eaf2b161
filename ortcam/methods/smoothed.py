"""SS-CAM and IS-CAM: Score-CAM whose channels are scored several times, as torchcam defines them.

    SS-CAM: w_k = softmax over k of the mean over n of f_c(x * (N_k + noise_n))          (Wang et al. 2020)
    IS-CAM: w_k = softmax over k of the mean over n of f_c(x * N_k * ramp_n)             (Naidu et al. 2020)

N_k is the channel, min-max normalised at the layer's size and then enlarged. f_c is the logit of the class. The score
of the photo itself, which both papers subtract, cancels in the softmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import ClassVar, Literal

import numpy as np

from ortcam.core.budget import Limits, Predictors
from ortcam.core.convention import PRESETS, Convention, Floats
from ortcam.core.forward import Forward
from ortcam.core.method import MapResult, Scores
from ortcam.core.query import Change, Channels, Noise, Query
from ortcam.core.selection import select_distinct
from ortcam.core.targets import Wanted
from ortcam.errors import OptionError, whole
from ortcam.methods.unlimited import Unlimited


@dataclass(frozen=True)
class _Smoothed(Unlimited):
    """What SS-CAM and IS-CAM share."""

    reason: ClassVar[str] = "scores every channel many times"
    convention: ClassVar[Convention]

    @property
    def rounds(self) -> int:
        """The number of times that each channel is scored."""
        raise NotImplementedError

    def change_of(self, at: int) -> Change:
        """Return the change of a round."""
        raise NotImplementedError

    def factor(self, at: int) -> float:
        """Return the factor of the masks of a round."""
        raise NotImplementedError

    @property
    def change(self) -> Change:
        return self.change_of(0)

    def begin(
        self, forward: Forward, targets: Sequence[Wanted], limits: Limits, predictors: Predictors
    ) -> _SmoothedRun:
        return _SmoothedRun(self, forward, len(targets))


@dataclass(frozen=True)
class SSCAM(_Smoothed):
    """SS-CAM (Wang et al. 2020, arXiv 2006.14255), with noise on the masks.

    Attributes:
        samples: the number of noisy copies of each mask.
        sigma: the standard deviation of the noise; masks lie in [0,1].
        seed: the same seed makes the same noise on every device.
    """

    samples: int = 35
    sigma: float = 2.0
    seed: int = 0

    name: ClassVar[str] = "ss-cam"
    convention: ClassVar[Convention] = replace(
        PRESETS["torchcam"], name="ss-cam", source="Wang et al. 2020, arXiv 2006.14255; torchcam 0.5"
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", whole("samples", self.samples))
        if isinstance(self.sigma, bool) or not isinstance(self.sigma, Real) or not 0 < self.sigma < np.inf:
            raise OptionError(f"sigma is {self.sigma!r}; expected a number above 0")
        object.__setattr__(self, "sigma", float(self.sigma))
        object.__setattr__(self, "seed", whole("seed", self.seed, least=0))

    @property
    def rounds(self) -> int:
        return self.samples

    def change_of(self, at: int) -> Change:
        return Change(Channels(), noise=Noise(self.sigma, self.seed, at))

    def factor(self, at: int) -> float:
        return 1.0


@dataclass(frozen=True)
class ISCAM(_Smoothed):
    """IS-CAM (Naidu et al. 2020, arXiv 2010.03023), with masks of growing strength.

    Attributes:
        steps: the number N of strengths.
        ramp: the strength of the n-th of N steps: ``accumulated``, (1 + 2 + ... + n) / N, as torchcam has it: .1, .3,
            .6, ..., 5.5; or ``linear``, n / N.
    """

    steps: int = 10
    ramp: Literal["accumulated", "linear"] = "accumulated"

    name: ClassVar[str] = "is-cam"
    convention: ClassVar[Convention] = replace(
        PRESETS["torchcam"], name="is-cam", source="Naidu et al. 2020, arXiv 2010.03023; torchcam 0.5"
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", whole("steps", self.steps))
        if self.ramp not in ("accumulated", "linear"):
            raise OptionError(f"ramp is {self.ramp!r}; expected 'accumulated' or 'linear'")

    @property
    def rounds(self) -> int:
        return self.steps

    def change_of(self, at: int) -> Change:
        return Change(Channels())

    def factor(self, at: int) -> float:
        n = at + 1
        return (n * (n + 1) / 2 if self.ramp == "accumulated" else n) / self.steps


class _SmoothedRun:
    """SS-CAM or IS-CAM of one photo, for T targets."""

    def __init__(self, method: _Smoothed, forward: Forward, targets: int) -> None:
        self._method, self._activations = method, forward.activations
        self._masks = method.convention.masks(forward.activations, forward.size)
        self._selection = select_distinct(forward.activations, self._masks, method.convention)
        self._sum: Floats = np.zeros((len(self._selection), targets), np.float32)  # of the logits, [D,T]
        self._round = 0
        self.most = method.rounds * len(self._selection)

    def next(self) -> Query | None:
        if self._round == self._method.rounds or not len(self._selection):
            return None
        affine = self._selection.affine.copy()
        affine[:, 1:] *= np.float32(self._method.factor(self._round))
        return Query(self._method.change_of(self._round), self._selection.channels, affine)

    def observe(self, scores: Scores) -> None:
        self._sum += scores.logits
        self._round += 1

    def finish(self) -> MapResult:
        convention = self._method.convention
        weights = convention.weights(self._selection.spread(self._sum / np.float32(self._method.rounds)))  # [T,K]
        sums = np.tensordot(weights, self._activations, axes=1)
        if not self._masks.live.any():
            sums[:] = 0  # else the map would show rounding errors of a sum of constants
        return MapResult(sums, weights, (None,) * len(sums), int(self._masks.live.sum()))
