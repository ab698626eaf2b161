"""Score-CAM (Wang et al. 2019, arXiv 1910.01279, Algorithm 1), in the paper's order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ortcam.core.budget import Limits, Predictors
from ortcam.core.convention import PRESETS, Convention
from ortcam.core.forward import Forward
from ortcam.core.method import MapResult, Scores
from ortcam.core.query import Change, Channels, Query
from ortcam.core.selection import EXACT, ErrorEstimate, select_distinct
from ortcam.core.targets import Wanted


@dataclass(frozen=True)
class ScoreCAMMethod:
    """Score-CAM by one of its definitions; `Convention` states their differences."""

    convention: Convention = field(default_factory=lambda: PRESETS["official"])
    name: str = field(default="score-cam", init=False)
    stages: ClassVar[int] = 0

    @property
    def scored(self) -> Literal["logits", "output"]:
        return self.convention.scored

    @property
    def change(self) -> Change:
        return Change(Channels(), align_corners=self.convention.mask_align_corners)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}  # the record has an entry of its own for the convention

    def check(self, limits: Limits) -> None:
        pass  # all limits are supported

    def first_query(self, limits: Limits, channels: int | None, batch_size: int) -> int:
        return limits.first_stage(channels, batch_size)

    def begin(self, forward: Forward, targets: Sequence[Wanted], limits: Limits, predictors: Predictors) -> ScoreCAMRun:
        return ScoreCAMRun(self, forward, len(targets), limits, predictors)


class ScoreCAMRun:
    """Score-CAM of one photo, for T targets."""

    def __init__(
        self,
        method: ScoreCAMMethod,
        forward: Forward,
        targets: int,
        limits: Limits,
        predictors: Predictors,
        layer: int = 0,
    ) -> None:
        """Begin with a layer of the photo: the target layer (0), or an earlier stage (from 1)."""
        self._method, self._activations = method, forward.layer(layer)
        self._change = replace(method.change, layer=layer)
        # Every channel A_k becomes a mask over the input: upsampled, and normalised to [0,1].
        self._masks = method.convention.masks(self._activations, forward.size)
        # Channels with the same mask share a pass. A budget allows only some of the passes.
        self._selection = select_distinct(self._activations, self._masks, method.convention)
        self._plan = limits.plan(self._activations, self._selection, predictors, method.convention)
        self._scores = np.empty((0, targets), np.float32)  # [D,T] of the distinct masks, once they are known
        self._errors: tuple[ErrorEstimate | None, ...] = (EXACT,) * targets
        self._has_scores = False
        self.most = limits.most(self._selection)

    def next(self) -> Query | None:
        chosen: NDArray[np.intp] = self._plan.next()
        if len(chosen):
            selection = self._selection
            return Query(self._change, selection.channels[chosen], selection.affine[chosen])
        if self._has_scores:  # read now, because the predictors of a group go on with other photos
            self._scores, self._errors = self._plan.scores(), self._plan.errors()
        return None

    def observe(self, scores: Scores) -> None:
        # The score of the target class behind a mask: p_c(x * N_k), or f_c(x * N_k).
        of_probability = self._method.convention.of_probability
        self._plan.observe(scores.log_probabilities if of_probability else scores.logits)
        self._has_scores = True

    def finish(self) -> MapResult:
        # The score is the weight of the channel; some definitions take a softmax over the channels.
        weights = self._method.convention.weights(self._selection.spread(self._scores))  # [T,K]
        # The map is the weighted sum of the channels; ReLU, upsampling and normalisation follow when it is drawn.
        sums = np.tensordot(weights, self._activations, axes=1)  # [T,h,w]
        if not self._masks.live.any():
            sums[:] = 0  # else the map would show rounding errors of a sum of constants
        return MapResult(sums, weights, self._errors, int(self._masks.live.sum()))
