"""Curves: the class score while pixels are shown or hidden in the order of a map.

    insertion: the highest pixels are shown first, all others are replaced
    deletion:  the highest pixels are replaced first

Both are from RISE (Petsiuk et al. 2018, arXiv 1806.07421). The value is the area under the curve. `HighestConfidence`
is the largest score on an insertion curve.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ortcam.evaluation.asks import Answer, Ask, Masked, Measured, Measuring, Score, View
from ortcam.evaluation.checks import check_convention
from ortcam.evaluation.replacements import REPLACEMENTS
from ortcam.evaluation.rows import Column

CurveScores = Generator[Ask, Answer, NDArray[np.float64]]
_SHARES = (0.25, 0.5, 0.75)  # of the points, beside all of them


@dataclass(frozen=True)
class Curve:
    """A convention of insertion or deletion.

    Attributes:
        metric: the direction.
        name: the name of the convention.
        source: the project or paper that it is from.
        steps: the number of steps from no pixel to all P pixels.
        spacing: after step i, ``even``: int(i P / steps) pixels are shown or hidden; ``ceil``: i ceil(P / steps), with
            a shorter last step.
        baseline: the replacement for hidden pixels, a name in `REPLACEMENTS`.
        ties: of pixels with equal values, the ``first`` or the ``last``, row by row, comes first.
        area: ``trapezoid``: by the trapezoidal rule over the fractions of pixels; ``rise``: the same, as if all steps
            were equal; ``mean``: the mean of the points.
        begins: the curve has a point at 0 % of the pixels.
        score: the ``probability`` or the ``logit`` of the scored class.
    """

    metric: Literal["insertion", "deletion"]
    name: str
    source: str
    steps: int = 30
    spacing: Literal["even", "ceil"] = "even"
    baseline: str = "zero"
    ties: Literal["first", "last"] = "first"
    area: Literal["trapezoid", "rise", "mean"] = "trapezoid"
    begins: bool = True
    score: Literal["probability", "logit"] = "probability"

    def __post_init__(self) -> None:
        check_convention(self)

    def columns(self, column: str, size: tuple[int, int]) -> tuple[Column, ...]:
        """Return the column of the area; `size` is the model's input size (H, W)."""
        better: Literal["higher", "lower"] = "higher" if self.metric == "insertion" else "lower"
        fractions = self._counts(size[0] * size[1]) / (size[0] * size[1])
        return (Column(column, f"{self.metric}:{self.name}", better, tuple(fractions.tolist())),)

    def measure(self, column: str, view: View) -> Measuring:
        """Return the area under the curve of one map."""
        scores = yield from curve_scores(self, view, self._counts(view.saliency.size))
        fractions = self._counts(view.saliency.size) / view.saliency.size
        return Measured({column: self._area(scores, fractions)}, curves={column: tuple(scores.tolist())})

    def _counts(self, pixels: int) -> NDArray[np.int64]:
        if self.spacing == "even":
            counts = np.arange(self.steps + 1) * pixels // self.steps
        else:
            counts = np.append(np.arange(0, pixels, -(-pixels // self.steps)), pixels)
        return counts if self.begins else counts[1:]

    def _area(self, scores: NDArray[np.float64], fractions: NDArray[np.float64]) -> float:
        if self.area == "mean":
            return float(scores.mean())
        middles = (scores[1:] + scores[:-1]) / 2
        return float(middles.mean() if self.area == "rise" else (middles * np.diff(fractions)).sum())


@dataclass(frozen=True)
class HighestConfidence:
    """The largest score while the highest pixels of the map are shown.

    The values are the largest score among the first quarter, half and three quarters of the points, and among all.

    Attributes:
        metric: ``highest-confidence``.
        name, source, baseline, ties, score: as in `Curve`.
        steps: the number of steps from no pixel to all P pixels; the points are 1 to steps - 1, with int(i P / steps)
            pixels each.
    """

    metric: Literal["highest-confidence"]
    name: str
    source: str
    steps: int = 25
    baseline: str = "black"
    ties: Literal["first", "last"] = "first"
    score: Literal["probability", "logit"] = "probability"

    def __post_init__(self) -> None:
        check_convention(self)

    def columns(self, column: str, size: tuple[int, int]) -> tuple[Column, ...]:
        metric = f"{self.metric}:{self.name}"
        fractions = tuple((self._counts(size[0] * size[1]) / (size[0] * size[1])).tolist())
        parts = tuple(Column(_part(column, share), metric, "higher") for share in _SHARES)
        return (*parts, Column(column, metric, "higher", fractions))

    def measure(self, column: str, view: View) -> Measuring:
        scores = yield from curve_scores(self, view, self._counts(view.saliency.size))
        values = {_part(column, share): float(scores[: max(1, int(share * len(scores)))].max()) for share in _SHARES}
        return Measured({**values, column: float(scores.max())}, curves={column: tuple(scores.tolist())})

    def _counts(self, pixels: int) -> NDArray[np.int64]:
        return np.arange(1, self.steps) * pixels // self.steps


def _part(name: str, share: float) -> str:
    return f"{name} {share:.0%}"


def curve_scores(convention: Curve | HighestConfidence, view: View, counts: NDArray[np.int64]) -> CurveScores:
    """Ask for the scores of the photo after `counts` [n] of its pixels were shown or hidden. Return them, float64 [n].

    The whole photo is not run again, and only the counts go up: a mask is 1 where the rank of a pixel lies on one side
    of the count.
    """
    shows = convention.metric != "deletion"
    whole = view.saliency.size if shows else 0
    run = counts[counts != whole]
    rank = view.rank if convention.ties == "first" else view.rank_with_last_ties
    sign = -1.0 if shows else 1.0
    # (rank - count) * sign + sign / 2 is above 0 where the pixel stays; ranks are whole numbers.
    affine = np.stack([run, np.full(len(run), sign), np.full(len(run), sign / 2)], axis=1).astype(np.float32)
    baseline = view.replacements.of(REPLACEMENTS[convention.baseline])
    answer: Answer = yield Masked(rank, np.zeros(len(run), np.int64), affine, True, baseline)
    scores = np.full(len(counts), read_score(view.clean, convention.score))
    scores[counts != whole] = answer.logits if convention.score == "logit" else answer.probabilities
    return scores


def read_score(score: Score, kind: Literal["probability", "logit"]) -> float:
    return score.logit if kind == "logit" else score.probability


def _presets(metric: Literal["insertion", "deletion"]) -> dict[str, Curve]:
    return {
        curve.name: curve
        for curve in (
            Curve(metric, "ortcam", "points as OpenVINO XAI, zeros and area as torchcam, ties row by row"),
            Curve(
                metric,
                "rise",
                "Petsiuk et al. 2018; eclique/RISE, evaluation.py, for single photos of 224 x 224",
                steps=224,
                spacing="ceil",
                baseline="blurred-rise" if metric == "insertion" else "zero",
                ties="last",
                area="rise",
            ),
            Curve(metric, "paper", "Score-CAM, section 4.2: a step of 1 %; it states no area rule", steps=100),
            Curve(metric, "torchcam", "frgfm/torch-cam 0.5, DeletionInsertionMetric", steps=20, spacing="ceil"),
            Curve(metric, "xplique", "deel-ai/xplique 2.0.2", steps=10, ties="last", area="rise"),
            Curve(
                metric,
                "openvino-xai",
                "openvino_xai 1.1.0, for photos of the model's input size",
                baseline="black",
                area="rise",
            ),
            Curve(
                metric,
                "polycam",
                "aenglebert/polycam, benchmarks/metrics.py",
                steps=224,
                spacing="ceil",
                baseline="blurred-polycam",
                ties="last",
                area="mean",
                begins=False,
            ),
            Curve(
                metric,
                "smdl",
                "RuoyuChen10/SMDL-Attribution, which calls xplique with 25 steps",
                steps=25,
                ties="last",
                area="rise",
            ),
        )
    }


INSERTION, DELETION = _presets("insertion"), _presets("deletion")
HIGHEST_CONFIDENCE = {
    "smdl": HighestConfidence(
        "highest-confidence", "smdl", "RuoyuChen10/SMDL-Attribution, for photos of the model's input size"
    )
}
