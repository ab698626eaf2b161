"""Fused: one map from several kinds of evidence, most of them cheap. This project's own method; see docs/fused.md.

    map = N(K) * (N(D) + f) * (N(R) + f) * (N(S) + f)

- K, contrastive CAM: what the log-probability of the class loses when one place of the target layer is set to zero.
- D, occlusion: the same for windows of 4 x 4 places of the stage before, one around each block of 2 x 2 places.
- R, RISE on features: the covariance of the log-probability with random grids that multiply the stage's features.
- S, Score-CAM of the stage, with a budget of masked images; without masked images, the factor is left out.

N is min-max normalisation, and f a floor of 0.1, so that no factor alone removes a place. K, D and R run only the rest
of the network (its tail) behind the layer. With logits in place of log-probabilities, K would be CAM for a linear head.
With log-probabilities, what speaks for other classes counts as well.
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
from ortcam.core.grids import draw_grids
from ortcam.core.method import MapResult, Scores
from ortcam.core.query import Change, Grids, Maps, Query
from ortcam.core.targets import Wanted
from ortcam.errors import OptionError
from ortcam.methods.reciprocam import check_places
from ortcam.methods.scorecam import ScoreCAMMethod, ScoreCAMRun

_CONVENTION = Convention("fused", "ortcam, docs/fused.md", steps=("upsample", "normalize"))
_FLOOR = np.float32(0.1)
_CELLS = 5  # rows and columns of a grid
_SHOWN, _HIDDEN = (0, 1, 0), (0, -1, 1)
_CERTAIN = float(np.log1p(-1e-3))  # a log-probability; above, differences are lost in rounding
_ROUNDING = 8 * float(np.finfo(np.float32).eps)  # of a logit


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
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
                raise OptionError(f"{name} is {value!r}; expected a whole number from {least}")
            object.__setattr__(self, name, int(value))

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
        sizes = [forward.layer(place).shape[1:] for place in (0, stage)]
        for size in sizes:
            check_places("fused", size)
        self._size = sizes[1]
        self._grids = _grids(method.grids, method.seed)
        hidden, pair = [_HIDDEN], [_SHOWN, _HIDDEN]
        self._queries = [
            _with_plain(_tails(_places(sizes[0]), 0, hidden)),
            _tails(_blocks(sizes[1]), stage, hidden),
            _tails(self._grids, stage, pair),
        ]
        self._seen: list[Floats] = []  # the scores [M,T] of each query
        self._certain = np.zeros(len(targets), np.bool_)
        self._noise = _ROUNDING * np.abs(forward.logits).max()
        self._scorecam = None
        if budget:
            limits = Limits(budget)
            self._scorecam = ScoreCAMRun(ScoreCAMMethod(), forward, len(targets), limits, predictors, stage)
        self._layer = sizes[0]
        self.most = sum(map(len, self._queries)) + (0 if self._scorecam is None else self._scorecam.most)

    def next(self) -> Query | None:
        if len(self._seen) < len(self._queries):
            return self._queries[len(self._seen)]
        return None if self._scorecam is None else self._scorecam.next()

    def observe(self, scores: Scores) -> None:
        if len(self._seen) < len(self._queries):
            if not self._seen:
                self._certain = scores.log_probabilities[-1] > _CERTAIN
                scores = scores.take(0, len(scores.logits) - 1)
            self._seen.append(np.where(self._certain, scores.logits, scores.log_probabilities))
        elif self._scorecam is not None:
            self._scorecam.observe(scores)

    def finish(self) -> MapResult:
        places, windows, grids = self._seen  # [M,T] each
        count = len(self._certain)
        factors = [
            upsample(_scaled(-places.T.reshape(count, *self._layer), self._noise), self._size),
            _scaled(_between(-windows.T.reshape(count, *map(_half, self._size)), self._size), self._noise),
            _scaled(self._covariance(grids), self._noise * np.sqrt(len(grids))),
        ]
        live = None
        if self._scorecam is not None:
            result = self._scorecam.finish()
            factors.append(normalize(np.maximum(result.sums, 0)))
            live = result.live
        product = factors[0]
        for factor in factors[1:]:
            product = product * (factor + _FLOOR)
        return MapResult(product, np.concatenate(self._seen).T, (None,) * count, live)

    def _covariance(self, scores: Floats) -> Floats:
        """Return the covariance [T,h,w] of the scores with the masks of the grids; their mean is 1/2 at each place."""
        masks = upsample(self._grids.values, self._size) - np.float32(0.5)
        shown, hidden = np.split(scores, 2)
        sums: Floats = np.tensordot((shown - hidden).T, masks, axes=1)
        return sums


def _tails(masks: Maps, layer: int, affine: Sequence[tuple[int, int, int]]) -> Query:
    """Return the query that runs the tail of a layer with every mask, once for each affine."""
    count = len(masks.values)
    rows = np.repeat(np.array(affine, np.float32), count, axis=0)
    return Query(Change(masks, at="layer", layer=layer), np.tile(np.arange(count), len(affine)), rows)


def _with_plain(query: Query) -> Query:
    """Return the query with a last row that hides nothing."""
    plain = np.array([[0, 0, 1]], np.float32)
    return Query(query.change, np.append(query.numbers, 0), np.concatenate([query.affine, plain]))


def _scaled(maps: Floats, noise: float) -> Floats:
    """Return maps [T,h,w] min-max normalised; a map whose range is at most `noise` becomes zero."""
    scaled = normalize(maps)
    scaled[np.ptp(maps, axis=(1, 2)) <= noise] = 0
    return scaled


def _half(length: int) -> int:
    """Return the number of blocks of two rows or columns."""
    return -(-length // 2)


def _between(maps: Floats, size: tuple[int, int]) -> Floats:
    """Return maps [T,h/2,w/2] of blocks of 2 x 2 places, interpolated at each place of (h, w)."""
    doubled = upsample(maps, (2 * maps.shape[1], 2 * maps.shape[2]))
    return doubled[:, : size[0], : size[1]]


@lru_cache(maxsize=2)  # as many groups as are at work
def _places(size: tuple[int, int]) -> Maps:
    """Return masks of one place each of a layer of (h, w). Calls with the same size return the same object."""
    count = size[0] * size[1]
    return Maps(np.eye(count, dtype=np.float32).reshape(count, *size))


@lru_cache(maxsize=2)
def _blocks(size: tuple[int, int]) -> Maps:
    """Return masks of 4 x 4 places each of a layer of (h, w): a block of 2 x 2, and the places around it."""
    rows, columns = (
        (np.arange(n) >= 2 * np.arange(_half(n))[:, None] - 1) & (np.arange(n) <= 2 * np.arange(_half(n))[:, None] + 2)
        for n in size
    )
    return Maps(np.einsum("iy,jx->ijyx", rows, columns).reshape(-1, *size).astype(np.float32))


@lru_cache(maxsize=2)
def _grids(count: int, seed: int) -> Maps:
    """Return random grids of cells, each shown or hidden. Calls with the same arguments return the same object."""
    return Maps(draw_grids(Grids((_CELLS, _CELLS), 0.5, seed), np.arange(count), (_CELLS, _CELLS))[0])
