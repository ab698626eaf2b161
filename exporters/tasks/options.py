"""The user's options for a task, and the plan that they and the file's outputs give."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ortcam.errors import OptionError, nearest, one_line
from ortcam.model.contract import Task

BoxFormat = Literal[
    "xyxy",
    "cxcywh",
    "yxyx",
    "xyxy-unit",
    "cxcywh-unit",
    "yxyx-unit",
    "ssd",
    "ssd-xy",
    "linear",
    "yolox",
    "bins",
    "distances",
    "distances-corner",
    "yolov5",
    "centerface",
    "cxcywh-angle",
]
ScoreKind = Literal[
    "probabilities", "logits", "softmax", "softmax-background-first", "softmax-background-last",
    "probabilities-background-first", "probabilities-background-last", "logits-background-first",
    "logits-background-last", "objectness", "objectness-logits",
    "confidence-class",
]  # fmt: skip
ON_CELLS: tuple[BoxFormat, ...] = ("yolox", "bins", "distances", "distances-corner")
ON_ANCHORS: tuple[BoxFormat, ...] = ("ssd", "ssd-xy", "linear")
TURNED: BoxFormat = "cxcywh-angle"  # the angle, in radians, is the last column
SSD_SCALES = (10.0, 10.0, 5.0, 5.0)  # TensorFlow's BoxCoder; the same as Caffe's variances .1, .1, .2, .2
_LARGEST_ANCHOR = 16.0  # in parts of the input; larger numbers are pixels


@dataclass(frozen=True)
class TaskOptions:
    """The user's options for a task; None for an option that was not given.

    Attributes:
        task: ``auto`` or a task of the contract.
        boxes: ``NAME:FORMAT``, or ``NAME+NAME:FORMAT`` for the levels of a pyramid; FORMAT is a `BoxFormat`, with the
            scales of offsets behind an @ (``ssd@10,10,5,5``).
        scores: ``NAME:KIND``, or ``NAME+NAME:KIND``; KIND is a `ScoreKind`. ``NAME*NAME:KIND`` multiplies two scores.
        anchors: float64 [N,4], centre x, centre y, width and height, as parts of the input's width and height; of a
            YOLOv5, [levels,A,2], width and height in pixels.
    """

    task: str = "auto"
    boxes: str | None = None
    scores: str | None = None
    anchors: NDArray[np.float64] | None = None

    @property
    def is_stated(self) -> bool:
        """Whether the user named a task other than classification."""
        return self.task not in ("auto", "classify")


@dataclass(frozen=True)
class Named:
    """Tensors of a source by name, and how to read them.

    Attributes:
        names: the tensors; the levels of a pyramid in order.
        form: a `BoxFormat` or a `ScoreKind`; "" where only names are given.
        scales: the divisors of SSD offsets.
        factors: the tensors of a second score, by which the first is multiplied, such as an objectness.
    """

    names: tuple[str, ...]
    form: str = ""
    scales: tuple[float, ...] = SSD_SCALES
    factors: tuple[str, ...] = ()


def check_options(task: str, boxes: str | None, scores: str | None, anchors: Any) -> TaskOptions:
    """Return the options of a call of `export`.

    Raises:
        OptionError: an option is unknown, cannot be read, or does not fit the task.
    """
    tasks = ("auto", *get_args(Task))
    if task not in tasks:
        raise OptionError(f"task is {task!r}; expected {', '.join(tasks)}{nearest(str(task), tasks)}")
    for option, given in (("boxes", boxes), ("scores", scores), ("anchors", anchors)):
        allowed = ("detect", "segment") if option == "scores" else ("detect",)
        if given is not None and task not in allowed:
            raise OptionError(f"{option} is given for task {task!r}; expected task {' or '.join(map(repr, allowed))}")
    if boxes is not None:
        read_boxes(boxes)
    if scores is not None:
        read_kind(scores)
    return TaskOptions(task, boxes, scores, None if anchors is None else read_anchors(anchors))


def read_boxes(text: str) -> Named:
    """Read ``NAME:FORMAT`` or ``NAME:FORMAT@a,b,c,d``.

    >>> read_boxes("box_encodings:ssd@1,1,1,1")
    Named(names=('box_encodings',), form='ssd', scales=(1.0, 1.0, 1.0, 1.0), factors=())

    Raises:
        OptionError: the format is missing or unknown, or the scales are not four positive numbers.
    """
    names, form = _split(text, "boxes", get_args(BoxFormat), optional="@")
    form, _, numbers = form.partition("@")
    scales: tuple[float, ...] = SSD_SCALES
    if numbers:
        try:
            scales = tuple(float(number) for number in numbers.split(","))
        except ValueError:
            scales = ()
        if form not in ON_ANCHORS or len(scales) != 4 or not all(0 < scale < np.inf for scale in scales):
            raise OptionError(
                f"boxes is {text!r}; expected four positive scales behind a format of offsets, such as ssd@10,10,5,5"
            )
    return Named(names, form, scales)


def read_kind(text: str) -> Named:
    """Read ``NAME:KIND`` or ``NAME*NAME:KIND``.

    Raises:
        OptionError: the kind is missing or unknown.
    """
    names, form = _split(text, "scores", get_args(ScoreKind))
    first, star, second = "+".join(names).partition("*")
    factors = _names(second) if star else ()
    return Named(_names(first), form, factors=factors)


def _split(text: str, option: str, known: Sequence[str], optional: str = "\0") -> tuple[tuple[str, ...], str]:
    """Return the names and the form of ``NAME+NAME:FORM``; a name may have colons of its own."""
    name, colon, form = str(text).rpartition(":")
    if not colon or not name or form.partition(optional)[0] not in known:
        word = "FORMAT" if option == "boxes" else "KIND"
        found = nearest(form, known) if colon else ""
        raise OptionError(f"{option} is {text!r}; expected NAME:{word}, {word} one of {', '.join(known)}{found}")
    return _names(name), form


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split("+"))


def read_anchors(given: str | PathLike[str] | NDArray[Any] | Sequence[Any]) -> NDArray[np.float64]:
    """Return anchors [N,4]: centre x, centre y, width and height, as parts of the input's width and height.

    Args:
        given: an array, or a ``.npy``, ``.json``, ``.csv`` or ``.txt`` file of it. Arrays [levels,A,2], [levels,6] and
            [levels*3,2] are the widths and heights of a YOLOv5, in pixels; they are returned as [levels,A,2].

    Raises:
        OptionError: the file cannot be read, or it does not hold such numbers.
    """
    where = "anchors"
    try:
        if isinstance(given, str | PathLike):
            path, where = Path(given), f"anchors {given}"
            if path.suffix == ".npy":
                values = np.load(path, allow_pickle=False)
            elif path.suffix == ".json":
                values = json.loads(path.read_text(encoding="utf-8"))
            else:
                values = np.loadtxt(path, delimiter="," if "," in path.read_text(encoding="utf-8") else None)
        else:
            values = given
        anchors = np.asarray(values, np.float64)
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise OptionError(
            f"{where} cannot be read: {one_line(error)}; expected a .npy, .json or .csv file of N rows of 4 numbers"
        ) from error
    shape = anchors.shape
    if anchors.ndim == 3 or (anchors.ndim == 2 and (shape[1] == 6 or (shape[1] == 2 and len(anchors) % 3 == 0))):
        return _check_sizes(anchors if anchors.ndim == 3 else anchors.reshape(-1, 3, 2), where)
    if anchors.ndim != 2 or anchors.shape[1] != 4 or not len(anchors) or not np.isfinite(anchors).all():
        raise OptionError(
            f"{where} have shape {list(anchors.shape)}; expected finite numbers [N,4]: cx, cy, w, h "
            "(of YOLOv5's heads [levels,3,2]: w, h)"
        )
    if np.abs(anchors).max() > _LARGEST_ANCHOR:
        raise OptionError(
            f"{where} reach {np.abs(anchors).max():.4g}; expected parts of the input's width and height (0 to 1): "
            "divide pixels by the input size"
        )
    if (anchors[:, 2:] <= 0).any():
        raise OptionError(f"{where} have a width or height of 0 or less; expected centre x, centre y, width, height")
    return anchors


def _check_sizes(anchors: NDArray[np.float64], where: str) -> NDArray[np.float64]:
    """Return widths and heights [levels,A,2].

    Raises:
        OptionError: they are not positive numbers of pixels.
    """
    if anchors.shape[2] != 2 or not anchors.size or not np.isfinite(anchors).all() or anchors.min() <= 0:
        raise OptionError(f"{where} have shape {list(anchors.shape)}; expected positive numbers [levels,3,2]: w, h")
    if anchors.max() <= 1:
        raise OptionError(f"{where} reach {anchors.max():.4g}; expected widths and heights in pixels of the input")
    return anchors
