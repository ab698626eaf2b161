"""Asks: what metrics ask of a model about one photo, as data; and the run of many metrics together.

A metric is a generator: it yields asks, receives their answers, and returns its values. The metrics of all maps of a
photo run together, so that their changed inputs share batches.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ortcam.core.convention import Floats
from ortcam.core.forward import Forward
from ortcam.core.method import Scores
from ortcam.core.query import Baseline, Change, Maps, Rows
from ortcam.core.references import Reference
from ortcam.core.targets import Wanted
from ortcam.runtime.classifier import Classifier
from ortcam.runtime.scorer import Group

if TYPE_CHECKING:
    from ortcam.evaluation.localisation import Place
    from ortcam.evaluation.replacements import Replacements


@dataclass(frozen=True)
class Score:
    """The score of one target.

    Attributes:
        logit: the class's logit.
        probability: its probability, in [0,1]; of a target that is not a class, its score, as `logit`.
    """

    logit: float
    probability: float


@dataclass(frozen=True, eq=False)
class View:
    """One map of one photo, as metrics see it.

    Attributes:
        saliency: float32 [H,W] in [0,1], the map at the model's input size.
        on_photo: returns the map at the photo's size, float32 [h,w]; 0 where the model did not see the photo.
        tensor: float32 [1,C,H,W] (or the model's own layout), the preprocessed photo.
        channels_last: whether the tensor is [1,H,W,C].
        clean: the score of the scored class for the whole photo.
        replacements: makes the baselines of the photo.
        place: where the object is, in pixels of the photo; None if it is unknown.
        explain: makes the method's map of a changed input tensor, [H,W]; None if the map was given.
    """

    saliency: Floats
    on_photo: Callable[[], Floats]
    tensor: Floats
    channels_last: bool
    clean: Score
    replacements: Replacements
    place: Place | None = None
    explain: Callable[[Floats], Floats] | None = None

    @cached_property
    def rank(self) -> Floats:
        """float32 [1,H,W], the place of each pixel in the order of the map, from 0 for the highest value.

        Of equal pixels, the first comes first, row by row.
        """
        return rank_of(self.saliency)

    @cached_property
    def rank_with_last_ties(self) -> Floats:
        """The same, but of equal pixels, the last comes first."""
        return np.ascontiguousarray(rank_of(self.saliency[::-1, ::-1])[:, ::-1, ::-1])


def rank_of(saliency: Floats) -> Floats:
    """Return the rank [1,H,W] of the pixels of a map [H,W]; of equal pixels, the first comes first, row by row.

    The values and the places are sorted as one whole number each, which takes a third of the time of a stable argsort.
    float32 holds ranks exactly up to 16 million pixels.
    """
    bits = (saliency.ravel() + np.float32(0)).view(np.uint32)  # + 0: -0 and 0 are equal
    ascending = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))  # the order of the values
    keys = (~ascending).astype(np.uint64) << np.uint64(32) | np.arange(bits.size, dtype=np.uint64)
    keys.sort()
    rank = np.empty(bits.size, np.float32)
    rank[keys & np.uint64(0xFFFFFFFF)] = np.arange(bits.size, dtype=np.float32)
    return rank.reshape(1, *saliency.shape)


@dataclass(frozen=True, eq=False)
class Masked:
    """Ask for the scores of the photo behind masks, which the scoring graph makes.

    Attributes:
        maps: float32 [n,H,W], the bank of masks, at the model's input size.
        numbers: int64 [M], the number of the mask of each row.
        affine: float32 [M,3], shift, scale and offset of each row.
        binary: a mask is 1 where its value is above 0, else 0.
        baseline: the replacement for the hidden part; None for zeros.
    """

    maps: Floats
    numbers: NDArray[np.int64]
    affine: Floats
    binary: bool = False
    baseline: Baseline | None = None


@dataclass(frozen=True, eq=False)
class Pictures:
    """Ask for the scores of inputs that are made on the host.

    Attributes:
        tensors: M inputs, float32 [C,H,W] (or the model's own layout); they are made while they are run.
    """

    tensors: Iterable[Floats]


Ask = Masked | Pictures


@dataclass(frozen=True, eq=False)
class Answer:
    """The scores of the scored target for the M inputs of an ask; the fields are those of `Score`.

    Attributes:
        logits, probabilities: float64 [M].
    """

    logits: NDArray[np.float64]
    probabilities: NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """The values of a metric for one map; the fields are those of `Row`."""

    values: Mapping[str, float | None]
    reasons: Mapping[str, str] = field(default_factory=dict)
    curves: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


Measuring = Generator[Ask, Answer, Measured]
Read = Callable[[Forward, Wanted], Score]


def run_together(
    classifier: Classifier, group: Group, measurings: Sequence[tuple[Wanted, Measuring]], read: Read
) -> list[Measured]:
    """Run the metrics of one photo in lockstep. Return the values of each.

    Args:
        classifier: runs the model.
        group: the plain pass of the photo, alone.
        measurings: the scored target and the generator of each metric and map.
        read: returns the score of a target from a plain pass.
    """
    done: dict[int, Measured] = {}
    asked: dict[int, Ask] = {}

    def advance(at: int, answer: Answer | None) -> None:
        measuring = measurings[at][1]
        try:
            asked[at] = next(measuring) if answer is None else measuring.send(answer)
        except StopIteration as end:
            done[at] = end.value

    for at in range(len(measurings)):
        advance(at, None)
    while asked:
        now, asked = asked, {}
        targets = {at: measurings[at][0] for at in now}
        for at, answer in _answer(classifier, group, now, targets, read).items():
            advance(at, answer)
    return [done[at] for at in range(len(measurings))]


def _answer(
    classifier: Classifier, group: Group, asked: Mapping[int, Ask], targets: Mapping[int, Wanted], read: Read
) -> dict[int, Answer]:
    """Answer asks; masked photos with the same kind of change share batches."""
    alike: dict[Any, dict[int, Masked]] = defaultdict(dict)
    answers = {}
    for at, ask in asked.items():
        if isinstance(ask, Masked):
            alike[ask.binary, ask.baseline][at] = ask
        else:
            answers[at] = _answer_pictures(classifier, ask, targets[at], read)
    for (binary, baseline), asks in alike.items():
        bank = Maps(np.concatenate([ask.maps for ask in asks.values()]))
        change = Change(bank, binary=binary, baseline=baseline, upsampled=False)
        rows = _rows_of(asks, targets)
        scores, begin = classifier.score(group, rows, change), 0
        group.on_device.pop(bank, None)  # the next asks have another bank
        for at, ask in asks.items():
            end = begin + len(ask.numbers)
            answers[at] = _read(scores.take(begin, end), targets[at])
            begin = end
    return answers


def _answer_pictures(classifier: Classifier, ask: Pictures, target: Wanted, read: Read) -> Answer:
    """Run the inputs in batches."""
    scores, tensors = list[Score](), iter(ask.tensors)
    while batch := list(itertools.islice(tensors, classifier.batch_size)):
        scores.extend(read(one, target) for one in classifier.forward(np.stack(batch)).passes)
    return Answer(np.array([one.logit for one in scores]), np.array([one.probability for one in scores]))


def _rows_of(asks: Mapping[int, Masked], targets: Mapping[int, Wanted]) -> Rows:
    parts, first = [], 0
    for at, ask in asks.items():
        count = len(ask.numbers)
        plain = Rows(np.zeros(count, np.int64), ask.numbers + first, ask.affine, np.zeros((count, 1), np.int64))
        parts.append(_with_target(plain, targets[at]))
        first += len(ask.maps)
    return Rows.join(parts)


def _with_target(rows: Rows, target: Wanted) -> Rows:
    return Rows(rows.photos, rows.numbers, rows.affine, np.full((len(rows), 1), target.index, np.int64))


def _read(scores: Scores, target: Wanted) -> Answer:
    logits = scores.logits[:, 0].astype(np.float64)
    if isinstance(target, Reference):
        return Answer(logits, logits)
    return Answer(logits, np.exp(scores.log_probabilities[:, 0].astype(np.float64)))
