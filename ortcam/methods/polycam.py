"""Poly-CAM (Englebert et al. 2022, arXiv 2204.13359): Score-CAM's maps of several layers, multiplied into one.

    S^l = ReLU(sum over k of w_k A_k^l)                        the map of layer l
    P^L = S^L                                                  the target layer
    P^l = S^l / up(down(S^l)) * up(P^(l+1))                    an earlier stage, divided by its local mean

`down` is the size of the next later layer, and `up` the own size. A channel's weight is what its mask adds to the
probability (`+`), what its removal takes away (`-`), or both (`+-`). Masks and the last normalisation are those of the
authors' code: clip((A - q) / Q, 0, 1), with q and Q the percentiles 0.1 and 99.9 of the channel at the layer's size. It
divides by Q, not by Q - q.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from ortcam.core.budget import Limits, Predictors
from ortcam.core.convention import Convention, Floats, by_percentiles, upsample
from ortcam.core.forward import Forward
from ortcam.core.method import MapResult, Scores
from ortcam.core.query import Change, Channels, Maps, Query
from ortcam.core.targets import Wanted
from ortcam.errors import OptionError, whole
from ortcam.methods.unlimited import Unlimited

_CONVENTION = Convention(
    "poly-cam", "Englebert et al. 2022, arXiv 2204.13359; aenglebert/polycam", steps=("percentiles", "upsample")
)
_LEAST = np.float32(1e-12)  # a divisor, as in the authors' code
_AS_IT_IS, _REMOVED, _PLAIN = (0, 1, 0), (0, -1, 1), (0, 0, 1)


@dataclass(frozen=True)
class PolyCAM(Unlimited):
    """Poly-CAM.

    Attributes:
        variant: the weight of a channel: the probability that its mask keeps (``+``), the loss without it (``-``), or
            the sum of what both change (``+-``).
        layers: the largest number of layers: the target layer, and as many earlier stages as the model has.
    """

    variant: Literal["+", "-", "+-"] = "+"
    layers: int = 3

    name: ClassVar[str] = "poly-cam"
    reason: ClassVar[str] = "scores every channel of its layers"
    convention = _CONVENTION
    change = Change(Channels())

    def __post_init__(self) -> None:
        if self.variant not in ("+", "-", "+-"):
            raise OptionError(f"variant is {self.variant!r}; expected '+', '-' or '+-'")
        object.__setattr__(self, "layers", whole("layers", self.layers))

    @property
    def stages(self) -> int:
        return self.layers - 1

    def begin(self, forward: Forward, targets: Sequence[Wanted], limits: Limits, predictors: Predictors) -> PolyCAMRun:
        return PolyCAMRun(self, forward)


class PolyCAMRun:
    """Poly-CAM of one photo, for T targets."""

    def __init__(self, method: PolyCAM, forward: Forward) -> None:
        self._layers = [
            forward.layer(place) for place in range(1 + min(method.stages, len(forward.stages)))
        ]  # the target layer first
        self._used = [np.flatnonzero(layer.any(axis=(1, 2))) for layer in self._layers]  # others add nothing
        self._affine = {"+": [_AS_IT_IS], "-": [_REMOVED], "+-": [_AS_IT_IS, _REMOVED]}[method.variant]
        self._variant = method.variant
        self._maps: list[Floats] = []  # S^l [T,h,w], the target layer's first
        self._weights: list[Floats] = []  # [T,K]
        self.most = sum(len(used) * len(self._affine) + 1 for used in self._used)

    def next(self) -> Query | None:
        place = len(self._maps)
        if place == len(self._layers):
            return None
        used = self._used[place]
        banks = Maps(by_percentiles(self._layers[place][used] if len(used) else self._layers[place][:1]))
        affine = np.concatenate([np.tile(np.array([one], np.float32), (len(used), 1)) for one in self._affine])
        affine = np.concatenate([affine, np.array([_PLAIN], np.float32)])
        numbers = np.append(np.tile(np.arange(len(used)), len(self._affine)), 0)
        return Query(Change(banks), numbers, affine)

    def observe(self, scores: Scores) -> None:
        place = len(self._maps)
        layer, used = self._layers[place], self._used[place]
        probabilities = scores.probabilities
        plain = probabilities[-1]
        of_kind = probabilities[:-1].reshape(len(self._affine), len(used), -1)
        gains = {"+": 0, "-": plain, "+-": plain}[self._variant]
        signs = [1 if one == _AS_IT_IS else -1 for one in self._affine]
        changes = sum(sign * kind for sign, kind in zip(signs, of_kind, strict=True))
        weights = np.zeros((len(plain), len(layer)), np.float32)
        weights[:, used] = np.maximum(gains + changes, 0).T
        self._weights.append(weights)
        self._maps.append(np.maximum(np.tensordot(weights, layer, axes=1), 0))

    def finish(self) -> MapResult:
        product = self._maps[0]
        later = product.shape[1:]
        for one in self._maps[1:]:
            size = one.shape[1:]
            local = np.maximum(upsample(upsample(one, later), size), _LEAST)
            product = np.maximum(one / local * upsample(product, size), 0)
            later = size
        weights = np.concatenate(self._weights, axis=1)
        return MapResult(product, weights, (None,) * len(weights), None)
