"""Drop, increase, gain and ADCC: the class score of the photo behind its own map.

With Y the score of the whole photo and O the score of photo * map:

    drop = max(0, Y - O) / Y       increase = 1 if O > Y, else 0       gain = max(0, O - Y) / (1 - Y)

Drop and increase are from Grad-CAM++ (Chattopadhyay et al. 2018, arXiv 1710.11063); ADCC from Poppi et al. 2021
(arXiv 2104.10252). Means over photos are means of these ratios.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ortcam.core.convention import Floats, normalize
from ortcam.core.query import Baseline
from ortcam.evaluation.asks import Answer, Masked, Measured, Measuring, View
from ortcam.evaluation.checks import check_convention
from ortcam.evaluation.curves import read_score
from ortcam.evaluation.replacements import REPLACEMENTS
from ortcam.evaluation.rows import Column
from ortcam.evaluation.similarity import pearson

Rule = Literal["full", "top50-soft", "top50-binary"]


@dataclass(frozen=True)
class Masking:
    """A convention of drop, increase or gain.

    Attributes:
        metric: the value.
        name: the name of the convention.
        source: the project or paper that it is from.
        mask: ``full``: the map; ``top50-soft``: the map, 0 for the lower half of the pixels; ``top50-binary``: 1 for
            the upper half of the pixels, else 0.
        rescaled: the map is min-max normalised first.
        relative: drop and gain are divided by Y and by 1 - Y.
        epsilon: added to the divisor.
        score: the ``probability`` or the ``logit`` of the scored class.
    """

    metric: Literal["drop", "increase", "gain"]
    name: str
    source: str
    mask: Rule = "full"
    rescaled: bool = False
    relative: bool = True
    epsilon: float = 0.0
    score: Literal["probability", "logit"] = "probability"

    def __post_init__(self) -> None:
        check_convention(self)

    def columns(self, column: str, size: tuple[int, int]) -> tuple[Column, ...]:
        return (Column(column, f"{self.metric}:{self.name}", "lower" if self.metric == "drop" else "higher"),)

    def measure(self, column: str, view: View) -> Measuring:
        """Return the value of one map; undefined if its divisor is 0, or negative with a similarity or value."""
        mask = mask_of(normalize(view.saliency[None])[0] if self.rescaled else view.saliency, self.mask, view)
        answer: Answer = yield _ask(mask)
        values = answer.logits if self.score == "logit" else answer.probabilities
        clean, behind = read_score(view.clean, self.score), float(values[0])
        if self.metric == "increase":
            return Measured({column: float(behind > clean)})
        change = max(0.0, clean - behind if self.metric == "drop" else behind - clean)
        if not self.relative:
            return Measured({column: change})
        divisor = (clean if self.metric == "drop" else 1 - clean) + self.epsilon
        if divisor == 0 or (divisor < 0 and self.score == "probability"):
            return Measured(
                {column: None}, {column: f"clean score {clean:g}" if divisor == 0 else "clean score below 0"}
            )
        return Measured({column: change / divisor})


@dataclass(frozen=True)
class ADCC:
    """Average drop, coherency, complexity, and their harmonic mean.

        complexity = mean of the map       coherency = (r(map of photo, map of photo * map) + 1) / 2
        adcc = 3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop))

    ADCC is 0 if one of its three terms is 0. Coherency needs a second map from the method, so it is undefined for given
    maps.

    Attributes:
        metric: ``adcc``.
        name: the name of the convention.
        source: the project or paper that it is from.
        hidden: the photo behind the map is mixed with ``zero`` of the preprocessed input, or with ``black``.
    """

    metric: Literal["adcc"]
    name: str
    source: str
    hidden: Literal["zero", "black"] = "zero"

    def __post_init__(self) -> None:
        check_convention(self)

    def columns(self, column: str, size: tuple[int, int]) -> tuple[Column, ...]:
        metric = f"{self.metric}:{self.name}"
        return (
            Column(f"{column} coherency", metric, "higher"),
            Column(f"{column} complexity", metric, "lower"),
            Column(f"{column} drop", metric, "lower"),
            Column(column, metric, "higher"),
        )

    def measure(self, column: str, view: View) -> Measuring:
        coherency_of, complexity_of, drop_of = (f"{column} {part}" for part in ("coherency", "complexity", "drop"))
        baseline = view.replacements.of(REPLACEMENTS[self.hidden])
        answer: Answer = yield _ask(view.saliency, baseline)
        clean = view.clean.probability
        drop = max(0.0, clean - float(answer.probabilities[0])) / clean if clean > 0 else None
        complexity = float(view.saliency.mean(dtype=np.float64))
        reasons = {} if drop is not None else {drop_of: "clean score 0" if clean == 0 else "clean score below 0"}
        coherency = None
        if view.explain is None:
            reasons[coherency_of] = "given map"
        else:
            again = view.explain(masked_tensor(view, baseline))
            coherency = coherence(view.saliency, again)
            if coherency is None:
                reasons[coherency_of] = "flat map of photo * map"
        adcc = None
        if drop is not None and coherency is not None:
            terms = coherency, 1 - complexity, 1 - drop
            adcc = 3 / sum(1 / term for term in terms) if min(terms) > 0 else 0.0
        else:
            reasons[column] = next(iter(reasons.values()))
        return Measured({coherency_of: coherency, complexity_of: complexity, drop_of: drop, column: adcc}, reasons)


def mask_of(saliency: Floats, rule: Rule, view: View) -> Floats:
    """Return the mask [H,W] of a map."""
    if rule == "full":
        return saliency
    upper = view.rank[0] < saliency.size // 2
    return upper.astype(np.float32) if rule == "top50-binary" else np.where(upper, saliency, np.float32(0))


def _ask(mask: Floats, baseline: Baseline | None = None) -> Masked:
    return Masked(mask[None], np.zeros(1, np.int64), np.array([[0, 1, 0]], np.float32), False, baseline)


def masked_tensor(view: View, baseline: Baseline | None) -> Floats:
    """Return photo * map as an input tensor, for its own explanation."""
    mask = view.saliency[None, :, :, None] if view.channels_last else view.saliency[None, None]
    hidden = 0 if baseline is None else baseline.values * (1 - mask)
    return np.ascontiguousarray(view.tensor * mask + hidden, np.float32)


def coherence(saliency: Floats, again: Floats) -> float | None:
    """Return (r + 1) / 2 with Pearson's r of two maps; None if one is flat."""
    r = pearson(saliency.ravel(), again.ravel())
    return None if r is None else (r + 1) / 2


def _presets(metric: Literal["drop", "increase", "gain"]) -> dict[str, Masking]:
    return {
        masking.name: masking
        for masking in (
            Masking(metric, "grad-cam++", "Chattopadhyay et al. 2018, arXiv 1710.11063"),
            Masking(
                metric,
                "paper",
                "Score-CAM, section 4.2: half of the pixels are muted; that the others stay soft is our reading",
                mask="top50-soft",
            ),
            Masking(metric, "paper-binary", "Score-CAM, section 4.2, with the other half kept whole", "top50-binary"),
            Masking(
                metric,
                "torchcam",
                "frgfm/torch-cam 0.5, ClassificationMetric with a softmax as logits_fn",
                epsilon=1e-7,
            ),
            Masking(
                metric, "pytorch-grad-cam", "jacobgil/pytorch-grad-cam 1.5.7: differences, not ratios", relative=False
            ),
            Masking(metric, "xplique", "deel-ai/xplique 2.0.2", rescaled=True, epsilon=1e-8),
        )
    }


DROP, INCREASE, GAIN = _presets("drop"), _presets("increase"), _presets("gain")
ADCC_PRESETS = {
    "paper": ADCC("adcc", "paper", "Poppi et al. 2021, arXiv 2104.10252; aimagelab/ADCC"),
    "openvino-xai": ADCC(
        "adcc",
        "openvino-xai",
        "openvino_xai 1.1.0, for photos of the model's input size; it averages the parts over photos first",
        hidden="black",
    ),
}
