"""Fused: one map from several kinds of evidence, most of them cheap. This project's own method; see docs/fused.md.

    map = N(K) * (N(D) + f) * (N(R) + f) * (N(S) + f)

- K, contrastive CAM: what the log-probability of the class loses when one place of the target layer is set to zero.
- D, occlusion: the same for windows of 4 x 4 places of the stage before, one around each block of 2 x 2 places.
- R, RISE on features: random grids multiply the features of the stage. At each place, R is the slope of a regression of
  the log-probability on the value of the grid there.
- S, Score-CAM of the stage, with a budget of masked images; without masked images, the factor is left out.

N is min-max normalisation, and f a floor of 0.1, so that no factor alone removes a place. K, D and R run only the rest
of the network (its tail) behind the layer. With logits in place of log-probabilities, K would be CAM for a linear head.
With log-probabilities, what speaks for other classes counts as well. A flat factor is left out. If a class is so
probable that its log-probability is lost in rounding, its logit is taken instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np

from ortcam.core import windows
from ortcam.core.budget import Limits, Predictors
from ortcam.core.convention import Convention, Floats, normalize, upsample
from ortcam.core.forward import Forward
from ortcam.core.method import MapResult, Scores
from ortcam.core.query import Change, Maps, Query
from ortcam.core.targets import Wanted
from ortcam.errors import OptionError, whole
from ortcam.methods.scorecam import ScoreCAMMethod, ScoreCAMRun
from ortcam.methods.unlimited import check_places

_CONVENTION = Convention("fused", "ortcam, docs/fused.md", steps=("upsample", "normalize"))
_TAIL_FACTORS = 3  # K, D and R
_SHOWN, _HIDDEN = (0, 1, 0), (0, -1, 1)


@dataclass(frozen=True)
class Fused:
    """The fused map.

    Attributes:
        passes: the number of masked images; a budget replaces it. With 0, only tails are run.
        grids: the number of random grids; each is run twice, the second time with shown and hidden cells exchanged.
        seed: the same seed makes the same grids on every device.
    """

    passes: int = 16
    grids: int = 98
    seed: int = 0

    name = "fused"
    convention = _CONVENTION
    scored: ClassVar[Literal["logits", "output"]] = "logits"
    stages: ClassVar[int] = 1
    change = Change(Maps(np.zeros((1, 1, 1), np.float32)), at="layer")

    def __post_init__(self) -> None:
        for name, least in (("passes", 0), ("grids", 1), ("seed", 0)):
            object.__setattr__(self, name, whole(name, getattr(self, name), least=least))

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
        return FusedRun(self, forward, targets, budget, predictors)


class FusedRun:
    """The fused map of one photo, for T targets."""

    def __init__(self, method: Fused, forward: Forward, targets: Sequence[Wanted], budget: int, predictors: Predictors):
        # The stage is the last layer with a larger map; a network without one has only its target layer.
        stage = min(1, len(forward.stages))
        self._layer, self._size = (forward.layer(place).shape[1:] for place in (0, stage))
        for size in (self._layer, self._size):
            check_places("fused", size)
        self._regressors = windows.regressors(method.grids, method.seed, self._size)
        self._queries = [
            _with_plain(_tails(_places(self._layer), 0, [_HIDDEN])),
            _tails(_blocks(self._size), stage, [_HIDDEN]),
            _tails(_grids(method.grids, method.seed, self._size), stage, [_SHOWN, _HIDDEN]),
        ]
        self._seen: list[Floats] = []  # the scores [M,T] of each query
        self._certain = np.zeros(len(targets), np.bool_)
        self._noise = windows.ROUNDING * np.abs(forward.logits).max()
        # Windows at the edge are smaller. If the stage is the same everywhere, that alone would make a map.
        features = forward.layer(stage)
        self._varies = bool((features.max(axis=(1, 2)) > features.min(axis=(1, 2))).any())
        self._scorecam = None
        if budget:
            limits = Limits(budget)
            self._scorecam = ScoreCAMRun(ScoreCAMMethod(), forward, len(targets), limits, predictors, stage)
        self.most = sum(map(len, self._queries)) + (0 if self._scorecam is None else self._scorecam.most)

    def next(self) -> Query | None:
        if len(self._seen) < len(self._queries):
            return self._queries[len(self._seen)]
        return None if self._scorecam is None else self._scorecam.next()

    def observe(self, scores: Scores) -> None:
        if len(self._seen) < len(self._queries):
            if not self._seen:
                self._certain = scores.log_probabilities[-1] > windows.CERTAIN
                scores = scores.take(0, len(scores.logits) - 1)
            self._seen.append(np.where(self._certain, scores.logits, scores.log_probabilities))
        elif self._scorecam is not None:
            self._scorecam.observe(scores)

    def finish(self) -> MapResult:
        places, blocks, grids = (scores.T for scores in self._seen)  # [T,M] each
        rows, columns = map(windows.between_blocks, self._size)
        pairs = -blocks.reshape(-1, rows.shape[1], columns.shape[1])
        occlusion = (rows @ pairs @ columns.T).astype(np.float32)
        shown, hidden = np.split(grids, 2, axis=1)
        slopes = np.tensordot(shown - hidden, self._regressors, axes=1)
        factors = [
            upsample(_scaled(-places.reshape(-1, *self._layer), self._noise), self._size),
            self._varies * _scaled(occlusion, self._noise),
            self._varies * _scaled(slopes, self._noise * np.sqrt(len(grids[0])) / windows.VARIANCE),
        ]
        live = None
        if self._scorecam is not None:
            result = self._scorecam.finish()
            factors.append(normalize(np.maximum(result.sums, 0)))
            live = result.live
        return MapResult(_product(factors), np.concatenate(self._seen).T, (None,) * len(self._certain), live)


# Photos of a group share the bank, so that the device gets the masks once.
@lru_cache(maxsize=2)
def _places(size: tuple[int, int]) -> Maps:
    return Maps(windows.places(size))


@lru_cache(maxsize=2)
def _blocks(size: tuple[int, int]) -> Maps:
    return Maps(windows.blocks(size))


@lru_cache(maxsize=2)
def _grids(count: int, seed: int, size: tuple[int, int]) -> Maps:
    return Maps(windows.grids(count, seed, size))


def _tails(masks: Maps, layer: int, affine: Sequence[tuple[int, int, int]]) -> Query:
    """Return the query that runs the tail of a layer with every mask, once for each affine."""
    count = len(masks.values)
    rows = np.repeat(np.array(affine, np.float32), count, axis=0)
    change = Change(masks, at="layer", layer=layer)
    return Query(change, np.tile(np.arange(count), len(affine)), rows)


def _with_plain(query: Query) -> Query:
    """Return the query with a last row that hides nothing."""
    plain = np.array([[0, 0, 1]], np.float32)
    return Query(query.change, np.append(query.numbers, 0), np.concatenate([query.affine, plain]))


def _scaled(maps: Floats, noise: float) -> Floats:
    """Return maps [T,h,w] min-max normalised; a map whose range is at most `noise` becomes zero."""
    scaled = normalize(maps)
    scaled[np.ptp(maps, axis=(1, 2)) <= noise] = 0
    return scaled


def _product(factors: Sequence[Floats]) -> Floats:
    """Return the product [T,h,w] of factors, each with a floor but the first. Factors that are flat are left out.

    If K, D and R are all flat, nothing speaks for the class, and the map is zero. Score-CAM alone is no evidence then:
    equal scores for all masks make a map of the activations.
    """
    product, any_varies = np.ones_like(factors[0]), np.zeros((len(factors[0]), 1, 1), np.bool_)
    for place, factor in enumerate(factors):
        varies = np.ptp(factor, axis=(1, 2), keepdims=True) > 0
        product *= np.where(varies, factor + np.float32(windows.FLOOR if place else 0), 1)
        any_varies |= varies & (place < _TAIL_FACTORS)
    return np.where(any_varies, product, 0).astype(np.float32)
