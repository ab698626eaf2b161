"""Answers: explanations and predictions as tensors of the protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ortcam.core.targets import Target
from ortcam.deploy.packed import PackedExplanation
from ortcam.output.explanation import Explanation
from ortcam.output.render import encode_png
from ortcam.serving.questions import Question
from ortcam.serving.refusal import invalid
from ortcam.serving.tensors import Tensor

Explained = Explanation | PackedExplanation


@dataclass(frozen=True, eq=False)
class Answer:
    """What was found for the N photos of a question.

    Attributes:
        targets: the targets of each photo.
        explained: the explanation of each photo; empty if only a prediction was asked for.
        seconds: from the beginning of the work on the photos, and on those explained together with them, to its end.
    """

    targets: Sequence[Sequence[Target]]
    explained: Sequence[Explained]
    seconds: float


def to_tensors(answer: Answer, question: Question) -> list[Tensor]:
    """Return the outputs of a question in order; `ortcam.serving.questions.OUTPUTS` has the shapes.

    Raises:
        Refusal: the maps of several photos have different sizes.
    """
    return [_WRITERS[name](name, answer, question) for name in question.outputs]


def _all(answer: Answer) -> list[Target]:
    return [target for targets in answer.targets for target in targets]


def _target_class(name: str, answer: Answer, _: Question) -> Tensor:
    return Tensor.of_array(name, np.array([one.index for one in _all(answer)], np.int64))


def _label(name: str, answer: Answer, _: Question) -> Tensor:
    return Tensor.of_bytes(name, [(one.label or "").encode() for one in _all(answer)])


def _probability(name: str, answer: Answer, _: Question) -> Tensor:
    return Tensor.of_array(name, np.array([one.probability for one in _all(answer)], np.float32))


def _image_index(name: str, answer: Answer, _: Question) -> Tensor:
    counts = [len(targets) for targets in answer.targets]
    return Tensor.of_array(name, np.repeat(np.arange(len(counts), dtype=np.int64), counts))


def _target_box(name: str, answer: Answer, _: Question) -> Tensor:
    boxes = [(one.place or {}).get("box") or [np.nan] * 4 for one in _all(answer)]
    return Tensor.of_array(name, np.array(boxes, np.float32).reshape(-1, 4))


def _scored(name: str, answer: Answer, _: Question) -> Tensor:
    return Tensor.of_array(name, np.array([one.scored for one in answer.explained], np.int64))


def _error(name: str, answer: Answer, _: Question) -> Tensor:
    rows = [
        [np.nan] * 3 if error is None else [error.expected, error.low, error.high]
        for one in answer.explained
        for error in one.errors
    ]
    return Tensor.of_array(name, np.array(rows, np.float32).reshape(-1, 3))


def _saliency(name: str, answer: Answer, question: Question) -> Tensor:
    maps = [map_of(one, place, question.size) for one in answer.explained for place in range(len(one.targets))]
    sizes = {one.shape for one in maps}
    if len(sizes) > 1:
        shown = ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
        raise invalid(f"the maps have different sizes ({shown}); send one photo in a request")
    return Tensor.of_array(name, np.stack(maps))


def map_of(explained: Explained, place: int, size: str) -> NDArray[np.float32]:
    """Return the map of the target at a place, float32 [H,W] at the size of the input or of the photo."""
    if size == "photo":
        return explained.map_at(place)
    assert explained.input_maps is not None  # a question of size input was refused
    one: NDArray[np.float32] = explained.input_maps[place]
    return one


def _overlay(name: str, answer: Answer, question: Question) -> Tensor:
    return Tensor.of_bytes(
        name,
        [
            encode_png(one.overlay_at(place, caption=question.caption))
            for one in answer.explained
            for place in range(len(one.targets))
        ],
    )


_WRITERS: dict[str, Callable[[str, Answer, Question], Tensor]] = {
    "target_class": _target_class,
    "label": _label,
    "probability": _probability,
    "saliency": _saliency,
    "scored": _scored,
    "error": _error,
    "image_index": _image_index,
    "target_box": _target_box,
    "overlay": _overlay,
}
