"""References: what a user asks of a model of another task, and the arrays that its scores are computed from.

A reference is to such a model what a class is to a classifier: the t-th reference of a photo has the index t. Its score
is computed in the scoring graph from the model's outputs and the arrays that `stack` makes (`ortcam.graph.tasks`):

    detect    max over n of IoU(boxes[n], box) * scores[n, class]    D-RISE (Petsiuk et al. 2021), no class vector
    segment   mean over the region of mask[class]
    embed     cosine(embedding, vector)
    value     +value or -value
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ortcam.core.convention import TINY, Floats
from ortcam.errors import OptionError, TargetError, one_line


@dataclass(frozen=True)
class Box:
    """A target of a detector.

    Attributes:
        which: the number of a detection in the photo, the surest is 0; or left, top, right and bottom in pixels of the
            photo.
        label: the class of given coordinates, as index or label; not needed if the model has a single class.
    """

    which: int | tuple[float, float, float, float]
    label: int | str | None = None

    def to_json(self) -> dict[str, Any]:
        return {"box": plain(self.which), "label": plain(self.label)}


@dataclass(frozen=True, eq=False)
class Region:
    """A target of a segmenter: the mean probability of a class over a region.

    Attributes:
        label: the class, as index or label; None for the class at `at`, or for the only class.
        mask: the region, bool [H,W] at the photo's size; None for the places where the model sees the class.
        at: (x, y), a pixel of the photo: the connected region of its class.
    """

    label: int | str | None = None
    mask: NDArray[Any] | None = None
    at: tuple[float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        return {"region": plain(self.label), "at": plain(self.at), "mask": None if self.mask is None else "given"}


@dataclass(frozen=True, eq=False)
class Similarity:
    """A target of a model that returns an embedding: the cosine of the photo's embedding and a reference.

    Attributes:
        like: a reference picture, in any form that `explain` takes; or the embedding itself, float [D].
    """

    like: Any

    def to_json(self) -> dict[str, Any]:
        return {"similarity": self.like.name if isinstance(self.like, Embedding) else "given"}


@dataclass(frozen=True)
class Output:
    """A target of a model that returns plain values.

    Attributes:
        index: the number of the value.
        sign: 1 to explain what raises the value, -1 for what lowers it.
    """

    index: int = 0
    sign: int = 1

    def to_json(self) -> dict[str, Any]:
        return {"output": plain(self.index), "sign": plain(self.sign)}


@dataclass(frozen=True, eq=False)
class Embedding:
    """The embedding of a reference.

    Attributes:
        name: the name of the file that it comes from, or what else it is.
        path: the file; None if it comes from none.
        vector: float32 [D].
    """

    name: str
    path: Path | None
    vector: Floats


@dataclass(frozen=True, eq=False)
class Reference:
    """A target of a photo, resolved.

    Attributes:
        index: its place among the references of the photo.
        vector: float32 [R]: a box in pixels of the input, the weights [H*W] of a region, a direction [D], or the
            factors [N] of values.
        class_index: the class of a box or region; None for a similarity. For a value, its number.
        label: the name of the class; None if it has none.
        place: plain JSON that says which box, region, picture or value it is.
    """

    index: int
    vector: Floats
    class_index: int | None
    label: str | None
    place: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return dict(self.place)

    def is_same(self, other: Reference) -> bool:
        """Whether it asks for the same as another reference."""
        return self.class_index == other.class_index and np.array_equal(self.vector, other.vector)


@dataclass(frozen=True)
class Detecting:
    """Which boxes of a detector count as detections of a photo.

    Attributes:
        score: the least score.
        overlap: the largest intersection over union with a surer detection of the same class.
    """

    score: float = 0.25
    overlap: float = 0.45

    def __post_init__(self) -> None:
        for name in ("score", "overlap"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise OptionError(f"{name} of detections is {value!r}; expected a number from 0 to 1")


# The targets of models of other tasks, as a user writes them.
Asked = Box | Region | Similarity | Output

# For messages: what a model of each task does, the targets that it has, and how they are named, in Python and on the
# command line.
_DOES = {
    "classify": "is a classifier",
    "detect": "is a detector",
    "segment": "is a segmenter",
    "embed": "returns an embedding",
    "value": "returns plain values",
}
EXPECTED = {
    "classify": "a class index or label (--target)",
    "detect": "a class (--target), or a box (--box; in Python ortcam.Box)",
    "segment": "a class (--target), or the region at a pixel (--at; in Python ortcam.Region)",
    "embed": "a reference picture or embedding (--like; in Python ortcam.Similarity)",
    "value": "the number of a value (--target), and --sign -1 for what lowers it (in Python ortcam.Output(0, -1))",
}
KINDS: dict[str, type] = {"detect": Box, "segment": Region, "embed": Similarity, "value": Output}
_NAMES = {Box: "a box", Region: "a region", Similarity: "a reference to compare with", Output: "a value with a sign"}


def refuse(task: str, asked: Any, model: str) -> TargetError:
    """Return the error for a target of another kind of model.

    Args:
        task: the task of the model.
        asked: the target.
        model: the model's name.
    """
    shown = _NAMES.get(type(asked)) or repr(asked)
    return TargetError(f"{model} {_DOES[task]}, and the target is {shown}; expected {EXPECTED[task]}")


def plain(value: Any) -> Any:
    """Return numbers and sequences as JSON knows them."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def stack(references: Sequence[Sequence[Reference]], classes: int) -> tuple[Floats, Floats]:
    """Return the arrays of a group of P photos for the scoring graph.

    A photo with fewer references than another repeats its last; a photo without any has zeros.

    Args:
        references: those of each photo.
        classes: C, the number of classes that a box or a region may have; 1 without classes.

    Returns:
        The vectors, float32 [P,R,T], and the selected classes, float32 [P,C,T], 1 or 0.
    """
    most = max(map(len, references))
    length = next(len(photo[0].vector) for photo in references if photo)
    vectors = np.zeros((len(references), length, most), np.float32)
    chosen = np.zeros((len(references), classes, most), np.float32)
    for number, photo in enumerate(references):
        for place in range(most if photo else 0):
            one = photo[min(place, len(photo) - 1)]
            vectors[number, :, place] = one.vector
            if one.class_index is not None and one.class_index < classes:
                chosen[number, one.class_index, place] = 1
    return vectors, chosen


def score(task: str, outputs: Sequence[Floats], references: Sequence[Reference]) -> Floats:
    """Return the scores of references, float32 [T], from the outputs of a photo (`ortcam.model.contract.ROLES`)."""
    rule = {"detect": _score_box, "segment": _score_region, "embed": _score_similarity, "value": _score_value}[task]
    return np.array([rule(outputs, one) for one in references], np.float32)


def _score_box(outputs: Sequence[Floats], one: Reference) -> float:
    boxes, scores = outputs
    if not len(boxes):
        return 0.0
    return float((overlaps(boxes, one.vector) * scores[:, one.class_index]).max())


def _score_region(outputs: Sequence[Floats], one: Reference) -> float:
    (mask,) = outputs
    return float(mask[one.class_index].reshape(-1).astype(np.float64) @ one.vector)


def _score_similarity(outputs: Sequence[Floats], one: Reference) -> float:
    return float(unit(outputs[0]) @ one.vector)


def _score_value(outputs: Sequence[Floats], one: Reference) -> float:
    return float(outputs[0] @ one.vector)


def read_vector(path: str | PathLike[str]) -> Floats:
    """Read an embedding from a .npy file.

    Raises:
        TargetError: the file cannot be read, or holds no vector.
    """
    try:
        vector = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise TargetError(f"cannot read the reference {path}: {one_line(error)}") from error
    return as_vector(vector, str(path))


def as_vector(given: Any, name: str) -> Floats:
    """Return an embedding, float32 [D]; the batch of [1,D] is removed.

    Raises:
        TargetError: it is no vector of real numbers.
    """
    array = np.asarray(given)
    flat = array[0] if array.ndim == 2 and len(array) == 1 else array
    if flat.ndim != 1 or not (np.issubdtype(flat.dtype, np.floating) or np.issubdtype(flat.dtype, np.integer)):
        raise TargetError(f"{name} holds {array.dtype} of shape {list(array.shape)}; expected one embedding, float [D]")
    return np.asarray(flat, np.float32)


def unit(vector: NDArray[Any]) -> Floats:
    """Return a vector [D] with length 1.

    Raises:
        TargetError: it has no length.
    """
    wide = np.asarray(vector, np.float64)
    length = np.linalg.norm(wide)
    if not length >= TINY or not np.isfinite(length):
        raise TargetError(
            "the reference is a vector of zeros, or not finite; expected an embedding that has a direction"
        )
    return np.asarray(wide / length, np.float32)


def overlaps(boxes: Floats, box: Floats) -> Floats:
    """Return the intersection over union of boxes [N,4] with a box [4], each left, top, right, bottom."""
    corner, end = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    shared = np.maximum(end - corner, 0).prod(axis=1)
    areas = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=1)
    both = areas + np.maximum(box[2:] - box[:2], 0).prod() - shared
    return np.asarray(shared / np.maximum(both, TINY), np.float32)


def suppress(
    boxes: Floats, scores: Floats, detecting: Detecting = Detecting()
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the detections of a photo: the rows that stay after suppression, and the class of each, the surest first.

    Greedy suppression within each class, as most detectors use it: a row counts with its best class; it is dropped if
    its box is empty, or overlaps a surer row of its class by more. Equal scores are in the order of
    the rows.

    Args:
        boxes: float32 [N,4].
        scores: float32 [N,C].
        detecting: rows below its score are left out, and rows that overlap by more than it allows.
    """
    best = scores.argmax(axis=1) if scores.size else np.empty(0, np.intp)
    values = scores[np.arange(len(scores)), best]
    order = np.argsort(-values, kind="stable")
    sized = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)  # an inverted box overlaps nothing, not even itself
    order = order[(values >= detecting.score)[order] & sized[order]]
    kept: list[int] = []
    while len(order):
        first, order = order[0], order[1:]
        kept.append(int(first))
        near = (best[order] == best[first]) & (overlaps(boxes[order], boxes[first]) > detecting.overlap)
        order = order[~near]
    rows = np.array(kept, np.intp)
    return rows, best[rows]
