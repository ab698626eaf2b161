"""A plan: which tensors of a source become the outputs of a task, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ortcam.exporters.tasks.options import SSD_SCALES, BoxFormat, ScoreKind
from ortcam.model.contract import Task

Dims = tuple[int, ...]


@dataclass(frozen=True)
class Columns:
    """Some columns of a tensor [B,N,K] or, transposed, [B,K,N]; or [N,K], of a graph that fixes a batch of 1.

    Attributes:
        name: the tensor in the source's graph.
        transposed: whether the columns come before the rows.
        begin, end: the columns; None for the last.
        unbatched: whether the batch is missing.
        boxes_of_a_cell: of a head [B,A,h,w,K] or [B,A*K,h,w], A; 0 for a table.
    """

    name: str
    transposed: bool = False
    begin: int = 0
    end: int | None = None
    unbatched: bool = False
    boxes_of_a_cell: int = 0


@dataclass(frozen=True)
class Plan:
    """How the outputs of a task are made from tensors of the source.

    Attributes:
        task: the task.
        boxes, scores: for a detector: the tensors; levels of a pyramid are joined along N.
        beside: tensors whose columns follow those of the boxes, row by row: the offsets of a CenterFace, or
            the angles of turned boxes.
        factors: tensors by which the scores are multiplied, of the same kind; () for none.
        box_format, scales, anchors, kind: how they are read, as the options state it.
        strides: for formats of cells, the strides of the levels in pixels.
        rows_of_a_cell: how many boxes each cell has, one after the other.
        name: for other tasks, the tensor.
        channels_last: for a segmenter, whether the tensor is [B,H,W,C].
        labels: the class names that the file states; None if it states none.
        classes: for ``confidence-class``, the number of classes.
        notices: notices for the user.
    """

    task: Task
    boxes: tuple[Columns, ...] = ()
    scores: tuple[Columns, ...] = ()
    box_format: BoxFormat = "xyxy"
    kind: ScoreKind = "probabilities"
    scales: tuple[float, ...] = SSD_SCALES
    anchors: NDArray[np.float64] | None = field(default=None, compare=False)
    strides: tuple[int, ...] = ()
    rows_of_a_cell: int = 1
    name: str = ""
    channels_last: bool = False
    labels: tuple[str, ...] | None = None
    classes: int = 0
    beside: tuple[Columns, ...] = ()
    factors: tuple[Columns, ...] = ()
    notices: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that the plan reads, each once."""
        named = (
            [part.name for part in (*self.boxes, *self.beside, *self.scores, *self.factors)]
            if self.task == "detect"
            else [self.name]
        )
        return tuple(dict.fromkeys(named))


# Strides of the levels of pyramids, the usual ones first.
_STRIDES = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (8, 16), (16, 32), (8,), (16,), (32,), (4,))


def cells_of(size: tuple[int, int], strides: tuple[int, ...]) -> int:
    """Return the number of cells of all levels for an input (height, width)."""
    return sum(-(-size[0] // stride) * -(-size[1] // stride) for stride in strides)


def find_strides(size: tuple[int, int], count: int) -> tuple[int, ...] | None:
    """Return the strides of a pyramid with `count` cells on an input (height, width); None if no usual one fits.

    >>> find_strides((416, 416), 3549)
    (8, 16, 32)
    """
    return next((strides for strides in _STRIDES if cells_of(size, strides) == count), None)


def cell_corners(
    size: tuple[int, int], strides: tuple[int, ...], repeated: int = 1
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return x and y of the cells of all levels, in cells of their level [N,2], and their strides [N,1], in pixels.

    Each cell is repeated, one row after the other.
    """
    places, steps = [], []
    for stride in strides:
        rows, columns = (-(-side // stride) for side in size)
        y, x = np.mgrid[:rows, :columns]
        places.append(np.stack([x.ravel(), y.ravel()], axis=1).repeat(repeated, axis=0))
        steps.append(np.full((rows * columns * repeated, 1), stride))
    return np.concatenate(places).astype(np.float32), np.concatenate(steps).astype(np.float32)


def head_cells(
    size: tuple[int, int], strides: tuple[int, ...], anchors: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Return x and y [N,2], strides [N,1] and anchors [N,2] of the boxes of all heads: level, anchor, row, column.

    Args:
        size: (height, width) of the input.
        strides: the strides of the levels.
        anchors: [levels,A,2], width and height in pixels.
    """
    places, steps, spans = [], [], []
    for stride, own in zip(strides, anchors, strict=True):
        corners, step = cell_corners(size, (stride,))
        for anchor in own:
            places.append(corners)
            steps.append(step)
            spans.append(np.broadcast_to(anchor, corners.shape))
    return np.concatenate(places), np.concatenate(steps), np.concatenate(spans).astype(np.float32)


Shapes = Mapping[str, Dims]
