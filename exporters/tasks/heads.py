"""Plan how the raw heads of a YOLOv5 are read: a map of logits for each level, with several boxes in each cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ortcam.errors import OptionError
from ortcam.exporters.tasks.options import Named, ScoreKind
from ortcam.exporters.tasks.plan import Columns, Plan
from ortcam.exporters.tasks.source import RawSource

# The published anchors of YOLOv5 by stride, width and height in pixels: models/yolov5n.yaml and hub/yolov5n6.yaml.
_ANCHORS: tuple[dict[int, list[list[float]]], ...] = (
    {
        8: [[10, 13], [16, 30], [33, 23]],
        16: [[30, 61], [62, 45], [59, 119]],
        32: [[116, 90], [156, 198], [373, 326]],
    },
    {
        8: [[19, 27], [44, 40], [38, 94]],
        16: [[96, 68], [86, 152], [180, 137]],
        32: [[140, 301], [303, 264], [238, 542]],
        64: [[436, 615], [739, 380], [925, 792]],
    },
)
_PUBLISHED = 3  # anchors of a level
_LEAST = 6  # columns: a box, its objectness, a class


def find_heads(source: RawSource, anchors: NDArray[np.float64] | None) -> Plan | None:
    """Return the plan of a file whose outputs are all heads [B,3,h,w,5+C] of the usual strides; None for others."""
    if any(len(output.shape) != 5 for output in source.outputs):
        return None
    names = tuple(output.name for output in source.outputs)
    found = source.measure(names)
    count = _PUBLISHED if anchors is None or anchors.ndim != 3 else anchors.shape[1]
    if any(raw.ndim != 5 or raw.shape[:2] != (1, count) or raw.shape[4] < _LEAST for raw in found.values()):
        return None
    strides = [_stride(raw.shape[2:4], source.size) for raw in found.values()]
    if not any(sorted(known) == sorted(filter(None, strides)) for known in _ANCHORS):
        return None
    kind: ScoreKind = "objectness" if _is_within(found) else "objectness-logits"
    return plan_heads(source, Named(names, "yolov5"), Named(names, kind), anchors)


def plan_heads(source: RawSource, boxes: Named, scores: Named, anchors: NDArray[np.float64] | None) -> Plan:
    """Return the plan of heads [B,A,h,w,5+C] or [B,A*(5+C),h,w].

    Args:
        source: the source.
        boxes: the heads, whose names the source has.
        scores: the same heads, and ``objectness-logits``; or ``objectness`` for heads that end in a sigmoid.
        anchors: [levels,A,2], width and height in pixels; None for those of YOLOv5.

    Raises:
        OptionError: the heads, the scores or the anchors have another form.
    """
    names = boxes.names
    if not scores.form.startswith("objectness") or scores.names != names or scores.factors:
        joined = "+".join(names)
        raise OptionError(
            f"scores is {'+'.join(scores.names)}:{scores.form}, but heads of format yolov5 hold their scores: expected "
            f"{joined}:objectness-logits, or {joined}:objectness for heads that end in a sigmoid"
        )
    found = source.measure(names)
    if scores.form == "objectness" and not _is_within(found):
        raise OptionError(
            f"the heads {', '.join(names)} are not from 0 to 1, so their sigmoid is missing; expected kind "
            "objectness-logits"
        )
    if anchors is not None and (anchors.ndim != 3 or len(anchors) != len(names)):
        raise OptionError(
            f"anchors have shape {list(anchors.shape)}; expected [{len(names)},{_PUBLISHED},2] for the {len(names)} "
            "heads of format yolov5: widths and heights in pixels"
        )
    count = _PUBLISHED if anchors is None else anchors.shape[1]
    strides = tuple(_check_head(name, found[name], count, source.size) for name in names)
    notices: list[str] = []
    if anchors is None:
        anchors = _published(strides)
        notices.append(
            f"the anchors of YOLOv5 for strides {', '.join(map(str, strides))} are assumed; a YOLOv7, or a network "
            f"trained with other anchors, needs --task detect --anchors FILE (widths and "
            f"heights in pixels, [{len(names)},3,2])"
        )
    else:
        notices += _check_sizes(anchors, strides)
    parts = tuple(Columns(name, begin=0, end=4, boxes_of_a_cell=count) for name in names)
    end = None if source.classes is None else 5 + source.classes
    first = found[names[0]]
    behind = 0 if end is None else (first.shape[4] if first.ndim == 5 else first.shape[1] // count) - end
    if behind > 0:
        notices.append(
            f"{behind} columns of each box behind the {source.classes} labels are left out: masks, or classes without "
            "a label"
        )
    return Plan(
        "detect",
        parts,
        tuple(Columns(name, begin=4, end=end, boxes_of_a_cell=count) for name in names),
        "yolov5",
        "objectness" if scores.form == "objectness" else "objectness-logits",
        anchors=anchors,
        strides=strides,
        notices=tuple(notices),
    )


def _is_within(found: Mapping[str, NDArray[np.floating]]) -> bool:
    return all(raw.min() >= 0 and raw.max() <= 1 for raw in found.values())


def _stride(cells: Sequence[int], size: tuple[int, int]) -> int | None:
    """Return the stride of a head of (rows, columns); None if the sides of the input are no such multiple."""
    (rows, columns), (height, width) = cells, size
    return height // rows if rows and height % rows == 0 and height * columns == width * rows else None


def _check_head(name: str, raw: NDArray[np.floating], count: int, size: tuple[int, int]) -> int:
    """Return the stride of a head of one image.

    Raises:
        OptionError: the tensor is no head.
    """
    expected = f"a head [batch,{count},h,w,5+classes] or [batch,{count}*(5+classes),h,w]"
    shown = f"boxes names {name!r}, {raw.dtype} [{','.join(map(str, raw.shape))}]"
    if raw.ndim == 5:
        fits, cells = raw.shape[1] == count and raw.shape[4] >= _LEAST, raw.shape[2:4]
    else:
        fits = raw.ndim == 4 and raw.shape[1] % count == 0 and raw.shape[1] >= count * _LEAST
        cells = raw.shape[2:4]
    if not fits or len(raw) != 1 or not np.issubdtype(raw.dtype, np.floating):
        raise OptionError(f"{shown}; expected {expected}")
    stride = _stride(cells, size)
    if stride is None:
        raise OptionError(f"{shown}, whose cells do not divide an input of {size[0]}x{size[1]}; expected {expected}")
    return stride


def _published(strides: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the anchors of YOLOv5 for these strides.

    Raises:
        OptionError: YOLOv5 has other strides.
    """
    for known in _ANCHORS:
        if sorted(known) == sorted(strides):
            return np.array([known[stride] for stride in strides], np.float64)
    raise OptionError(
        f"the heads have strides {', '.join(map(str, strides))}, and YOLOv5 has 8, 16, 32 (or 64 too); give the "
        f"anchors with --anchors FILE: widths and heights in pixels, [{len(strides)},3,2]"
    )


def _check_sizes(anchors: NDArray[np.float64], strides: tuple[int, ...]) -> list[str]:
    """Return a notice if anchors look like multiples of strides.

    Raises:
        OptionError: the levels stand in another order than the strides.
    """
    areas = anchors.prod(axis=2).mean(axis=1)[np.argsort(strides)]
    if (np.diff(areas) <= 0).any():
        raise OptionError(
            f"anchors do not grow with the strides {', '.join(map(str, strides))}; expected the levels in the order of "
            "the heads"
        )
    if all(anchors[level].max() < stride for level, stride in enumerate(strides)):
        return [
            f"all anchors are smaller than a cell of their level (at most {anchors.max():.4g} pixels); if they are "
            "multiples of the strides, multiply them by the strides"
        ]
    return []
