"""Plan how the outputs of a detector are read: from the user's names and formats, or from a known form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ortcam.errors import ExportError, OptionError
from ortcam.exporters.tasks.centerface import find_centerface, plan_centerface
from ortcam.exporters.tasks.cut import find_cut, has_suppression_inside
from ortcam.exporters.tasks.heads import find_heads, plan_heads
from ortcam.exporters.tasks.options import (
    ON_ANCHORS,
    ON_CELLS,
    TURNED,
    BoxFormat,
    Named,
    ScoreKind,
    TaskOptions,
    read_boxes,
    read_kind,
)
from ortcam.exporters.tasks.plan import Columns, Plan, cell_corners, cells_of, find_strides
from ortcam.exporters.tasks.source import RawSource, Ultralytics

HOW = "--boxes NAME:FORMAT --scores NAME:KIND"
_LIKE_CELLS = 0.9  # the least correlation of boxes' centres with the cells of their pyramid
_FAR = 10  # inputs away: boxes in pixels that are taken for parts of the input
_ANCHORS_OF_A_CELL = 3  # of YOLOv5 and v7


def plan_detector(source: RawSource, options: TaskOptions, metadata: Ultralytics | None) -> Plan:
    """Return the plan of a detector.

    Raises:
        ExportError: no form fits, and the user does not state it.
        OptionError: the user's names or formats do not fit the source.
    """
    if options.boxes is not None or options.scores is not None:
        if options.boxes is None or options.scores is None:
            missing = "boxes" if options.boxes is None else "scores"
            raise OptionError(f"{missing} is missing; expected both {HOW}")
        return _stated(source, read_boxes(options.boxes), read_kind(options.scores), options.anchors)
    plan = known_form(source, metadata, options.anchors)
    if plan is not None:
        if plan.anchors is None and options.anchors is not None:
            raise OptionError(f"anchors are given, but the boxes of {source.name} use none; expected {HOW} with them")
        return plan
    boxes = [output for output in source.outputs if len(output.shape) == 3 and 4 in output.shape[1:]]
    heads = "+".join(output.name for output in source.outputs)
    if has_suppression_inside(source.proto):
        reason = (
            "; its suppression stands inside a branch, where the graph cannot be cut: export it without suppression"
        )
    elif boxes:
        reason = f"; boxes relative to anchors also need --anchors FILE, such as --boxes {boxes[0].name}:ssd"
    elif len(source.outputs) in (3, 4) and all(len(output.shape) in (4, 5) for output in source.outputs):
        reason = f"; for the heads of a YOLOv5, --boxes {heads}:yolov5 --scores {heads}:objectness-logits"
    else:
        reason = ""
    raise ExportError(f"{source.name} returns {source.listed}; the form of its boxes is unknown: give {HOW}{reason}")


def known_form(
    source: RawSource, metadata: Ultralytics | None, anchors: NDArray[np.float64] | None = None
) -> Plan | None:
    """Return the plan of a detector whose metadata or outputs have a known form; None for other files."""
    tables = [output for output in source.outputs if len(output.shape) == 3]
    names = {output.name.rpartition("/")[2]: output.name for output in source.outputs}
    if {"logits", "pred_boxes"} <= set(names):  # DETR
        boxes, scores = (
            Named((names["pred_boxes"],), "cxcywh-unit"),
            Named((names["logits"],), "softmax-background-last"),
        )
        return _stated(source, boxes, scores, None)
    if not tables:
        return find_heads(source, anchors) or find_centerface(source) or _before_suppression(source)
    raw = source.measure([tables[0].name])[tables[0].name]
    if raw.ndim != 3 or raw.shape[0] != 1:
        return None
    if metadata is not None:
        plan = _ultralytics(source, metadata, tables[0].name, raw)
        if plan is not None:
            return plan
    return _before_suppression(source) or (_yolo(source, tables[0].name, raw) if len(tables) == 1 else None)


def _ultralytics(source: RawSource, metadata: Ultralytics, name: str, raw: NDArray[Any]) -> Plan | None:
    """Return the plan of a file of ultralytics: [B,4+C+...,N], or YOLOv5's [B,N,5+C+...]."""
    count, (_, first, second) = len(metadata.labels), raw.shape
    labels, what = metadata.labels, f"{source.name} has the metadata of an ultralytics {metadata.task} model"
    if metadata.task == "obb":
        if first != 4 + count + 1 or first >= second:
            raise ExportError(
                f"{what} (turned boxes) and returns {_shown(raw)}; expected all its boxes, [batch,{4 + count + 1},N]: "
                "export it with nms=False and end2end=False"
            )
        turned = _stated(source, Named((name,), TURNED), Named((name,), "probabilities"), None)
        return replace(turned, labels=labels)
    if (second < 4 + count and second in (6, 6 + 32)) or (second >= 6 and first == 300):
        return _end_to_end(source, name, raw, labels)
    if first >= 4 + count and first < second:
        boxes, scores = Columns(name, True, 0, 4), Columns(name, True, 4, 4 + count)
        return Plan("detect", (boxes,), (scores,), "cxcywh", labels=labels)
    if second >= 5 + count and first == _ANCHORS_OF_A_CELL * cells_of(source.size, (8, 16, 32)):
        boxes, scores = Columns(name, False, 0, 4), Columns(name, False, 4, 5 + count)
        return Plan("detect", (boxes,), (scores,), "cxcywh", "objectness", labels=labels)
    return None


def _end_to_end(source: RawSource, name: str, raw: NDArray[Any], labels: tuple[str, ...]) -> Plan:
    """Return the plan of detections [B,300,6]: what the graph has before its TopK, else the detections."""
    plan = _before_suppression(source) or _head_inside(source, len(labels))
    if plan is not None:
        return replace(plan, labels=labels)
    notice = (
        f"{name!r} holds the final detections, and the graph cannot be cut before them: the score of a detection falls "
        "to 0 where it leaves the list"
    )
    boxes, scores = Columns(name, False, 0, 4), Columns(name, False, 4, 6)
    return Plan(
        "detect", (boxes,), (scores,), "xyxy", "confidence-class", labels=labels, classes=len(labels), notices=(notice,)
    )


def _head_inside(source: RawSource, count: int) -> Plan | None:
    """Return the plan of a table [B,4+C,N] inside the graph, which the graph filters later; None without it."""
    names = [node.output[0] for node in source.proto.graph.node if node.op_type == "Concat"]
    cells = cells_of(source.size, (8, 16, 32))
    for name, raw in reversed(list(source.measure(names).items())):
        if raw.ndim == 3 and raw.shape[1] >= 4 + count and raw.shape[2] == cells:
            plan = _yolo(source, name, raw[:, : 4 + count])
            if plan is not None:
                notice = f"the graph is cut before it filters its detections, at {name!r}"
                scores = replace(plan.scores[0], end=4 + count)
                return replace(plan, scores=(scores,), notices=(*plan.notices, notice))
    return None


def _before_suppression(source: RawSource) -> Plan | None:
    """Return the plan of a graph with NonMaxSuppression or TopK at its top level: the tensors before it."""
    cut = find_cut(source.proto)
    if cut is None:
        return None
    found = source.measure([*cut.boxes, *cut.scores])
    tables = [name for name in cut.boxes if found[name].ndim == 3 and found[name].shape[2] == 4]
    for boxes in tables:
        count = found[boxes].shape[1]
        if not count:
            continue
        for scores in cut.scores:
            dims = found[scores].shape
            if len(dims) != 3 or count not in dims[1:] or scores == boxes:
                continue
            form: BoxFormat = cut.box_format or "xyxy"
            if np.abs(found[boxes]).max() <= 2:
                form = cast(BoxFormat, f"{form}-unit")
            lowest, highest = float(found[scores].min()), float(found[scores].max())
            kind = "probabilities" if lowest >= 0 and highest <= 1 else "logits"
            notice = (
                f"the graph is cut before its {cut.kind}: {boxes!r} is read as {form}, {scores!r} as {kind}; "
                f"--boxes {boxes}:FORMAT --scores {scores}:KIND reads them otherwise"
            )
            plan = _stated(source, Named((boxes,), form), Named((scores,), kind), None)
            return replace(plan, notices=(*plan.notices, notice))
    return None


def _yolo(source: RawSource, name: str, raw: NDArray[Any]) -> Plan | None:
    """Return the plan of a YOLO without metadata, whose rows are the cells of a pyramid; None if they are not."""
    transposed = raw.shape[1] < raw.shape[2]
    rows: NDArray[Any] = (raw.transpose(0, 2, 1) if transposed else raw)[0]
    count, columns = rows.shape
    strides = find_strides(source.size, count)
    if strides is None:
        three = _ANCHORS_OF_A_CELL * cells_of(source.size, (8, 16, 32))
        if transposed or count != three or columns < 6:
            return None
        return Plan("detect", (Columns(name, False, 0, 4),), (Columns(name, False, 4),), "cxcywh", "objectness")
    corners, steps = cell_corners(source.size, strides)
    cells = (corners + 0.5) * steps
    decoded = all(_correlation(rows[:, axis], cells[:, axis]) > _LIKE_CELLS for axis in (0, 1))
    corner = decoded and all(_correlation(rows[:, 2 + axis], cells[:, axis]) > _LIKE_CELLS for axis in (0, 1))
    form: BoxFormat = "xyxy" if corner else "cxcywh"
    if transposed and decoded and columns >= 5:  # v8, v9, v11: no objectness
        return Plan("detect", (Columns(name, True, 0, 4),), (Columns(name, True, 4),), form)
    if transposed or columns < 6 or rows[:, 4:].min() < 0 or rows[:, 4:].max() > 1:
        return None
    parts = (Columns(name, False, 0, 4),), (Columns(name, False, 4),)
    if decoded:  # YOLOX decoded, YOLOv6
        return Plan("detect", *parts, form, "objectness")
    notice = f"{name!r} is read as the undecoded output of a YOLOX with strides {', '.join(map(str, strides))}"
    return Plan("detect", *parts, "yolox", "objectness", strides=strides, notices=(notice,))


def _correlation(a: NDArray[Any], b: NDArray[Any]) -> float:
    a, b = a.astype(np.float64) - a.mean(), b.astype(np.float64) - b.mean()
    size = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / size if size > 0 else 0.0


def _stated(source: RawSource, boxes: Named, scores: Named, anchors: NDArray[np.float64] | None) -> Plan:
    """Return the plan for tensors of stated formats.

    Raises:
        OptionError: they do not fit the source or each other.
    """
    for name in boxes.names:
        source.check_name(name, "boxes")
    for name in (*scores.names, *scores.factors):
        source.check_name(name, "scores")
    if boxes.form == "yolov5":
        return plan_heads(source, boxes, scores, anchors)
    if boxes.form == "centerface":
        _check_anchors("centerface", anchors, 0)
        return plan_centerface(source, boxes, scores)
    found = source.measure([*boxes.names, *scores.names, *scores.factors])
    form, kind = cast(BoxFormat, boxes.form), cast(ScoreKind, scores.form)
    flat = all(array.ndim == 2 for array in found.values())  # [N,K], without a batch
    found = {name: array[None] if flat else array for name, array in found.items()}
    box_columns = [replace(_box_columns(name, found[name], form), unbatched=flat) for name in boxes.names]
    count = sum(found[part.name].shape[2 if part.transposed else 1] for part in box_columns)
    _check_anchors(form, anchors, count)
    rows, strides = _cells(source.size, count) if form in ON_CELLS else (1, ())
    if strides is None:
        height, width = source.size
        raise OptionError(
            f"{count} boxes of format {form} are not the cells of strides 8, 16 and 32 (or of some of 4 to 64) of an "
            f"input of {height}x{width}; expected {cells_of(source.size, (8, 16, 32))}"
        )
    if kind == "confidence-class" and source.classes is None:
        raise OptionError(
            "scores of kind confidence-class name the class by its index; give the class names with --labels"
        )
    return Plan(
        "detect",
        tuple(box_columns),
        _score_parts(source, found, scores.names, box_columns, form, kind),
        form,
        kind,
        boxes.scales,
        anchors,
        strides,
        rows,
        beside=tuple(replace(part, begin=-1, end=None) for part in box_columns) if form == TURNED else (),
        notices=("turned boxes are read as the upright boxes around them",) if form == TURNED else (),
        classes=source.classes or 0,
        factors=_score_parts(source, found, scores.factors, box_columns, form, kind) if scores.factors else (),
    )


def _score_parts(
    source: RawSource,
    found: Mapping[str, NDArray[Any]],
    names: Sequence[str],
    boxes: Sequence[Columns],
    form: BoxFormat,
    kind: ScoreKind,
) -> tuple[Columns, ...]:
    """Return the columns of scores, level by level: behind the boxes in their tensors, or tensors of their own."""
    if list(names) == [part.name for part in boxes]:
        extra = 5 if kind.startswith("objectness") else 4
        last = -1 if form == TURNED else None
        end = last if source.classes is None else extra + source.classes
        return tuple(replace(part, begin=4, end=_end(found[part.name], part, end)) for part in boxes)
    if len(names) != len(boxes):
        raise OptionError(f"scores names {len(names)} tensors and boxes {len(boxes)}; expected equal numbers")
    counts = [found[box.name].shape[2 if box.transposed else 1] for box in boxes]
    return tuple(
        replace(_score_columns(name, found[name], count), unbatched=box.unbatched)
        for name, count, box in zip(names, counts, boxes, strict=True)
    )


def _check_anchors(form: BoxFormat, anchors: NDArray[np.float64] | None, count: int) -> None:
    """Refuse boxes without their anchors, and anchors without boxes.

    Raises:
        OptionError: the number of anchors is not that of the boxes.
    """
    if anchors is not None and anchors.ndim == 3:
        raise OptionError(f"anchors have shape {list(anchors.shape)}; expected [{count},4]: cx, cy, w, h of each box")
    if form in ON_ANCHORS and anchors is None:
        raise OptionError(
            f"boxes of format {form} are relative to anchors; give the {count} anchors with --anchors FILE (.npy, "
            ".json or .csv, rows of cx, cy, w, h as parts of the input)"
        )
    if form in ON_ANCHORS and anchors is not None and len(anchors) != count:
        raise OptionError(f"anchors has {len(anchors)} rows, but there are {count} boxes; expected a row for each box")
    if form not in ON_ANCHORS and anchors is not None:
        raise OptionError(f"anchors are given, but boxes of format {form} use none; expected {', '.join(ON_ANCHORS)}")


def _cells(size: tuple[int, int], count: int) -> tuple[int, tuple[int, ...] | None]:
    """Return the number of boxes of a cell, and the strides whose cells there are; None without any."""
    for rows in (1, 2, 3):
        strides = find_strides(size, count // rows) if count % rows == 0 else None
        if strides is not None:
            return rows, strides
    return 1, None


def _box_columns(name: str, raw: NDArray[Any], form: BoxFormat) -> Columns:
    """Return the columns of the boxes in a tensor [B,N,K] or [B,K,N]: the first four, or all bins."""
    least = 5 if form == TURNED else 4
    if raw.ndim != 3 or len(raw) != 1 or min(raw.shape[1:]) < least or not np.issubdtype(raw.dtype, np.floating):
        raise OptionError(
            f"boxes names {name!r}, {raw.dtype} {_shown(raw)}; expected numbers [batch,N,{least}] or "
            f"[batch,{least},N], or more columns with the boxes first"
        )
    _, first, second = raw.shape
    transposed = second != least and (first == least or first < second)
    columns = first if transposed else second
    if form == "bins" and columns % 4:
        raise OptionError(f"boxes names {name!r} {_shown(raw)}; expected a multiple of 4 columns for format bins")
    return Columns(name, transposed, 0, columns if form == "bins" else 4 if columns > 4 else None)


def _score_columns(name: str, raw: NDArray[Any], count: int) -> Columns:
    if raw.ndim != 3 or len(raw) != 1 or count not in raw.shape[1:] or not np.issubdtype(raw.dtype, np.floating):
        raise OptionError(
            f"scores names {name!r}, {raw.dtype} {_shown(raw)}; expected numbers [batch,{count},classes] or "
            f"[batch,classes,{count}], as there are {count} boxes"
        )
    return Columns(name, raw.shape[1] != count)


def _end(raw: NDArray[Any], part: Columns, end: int | None) -> int | None:
    """Return the end of the score columns: other columns, such as those of masks, may follow."""
    columns = raw.shape[1 if part.transposed else 2]
    if columns < 5:
        raise OptionError(f"scores names {part.name!r} {_shown(raw)}, which holds boxes only; name another tensor")
    return end if end is not None and end < columns else None


def _shown(raw: NDArray[Any]) -> str:
    return f"[{','.join(map(str, raw.shape))}]"


def check_decoded(source: RawSource, plan: Plan, decoded: dict[str, NDArray[Any]]) -> Sequence[str]:
    """Check the decoded boxes and scores of one image; return notices for the user.

    Raises:
        OptionError: scores are not in 0..1.
    """
    boxes, scores = decoded["boxes"], decoded["scores"]
    lowest, highest = float(scores.min(initial=0)), float(scores.max(initial=0))
    if lowest < -1e-6 or highest > 1 + 1e-6:
        names = "+".join(part.name for part in plan.scores)
        raise OptionError(
            f"the scores of {source.name}, read as {plan.kind}, reach from {lowest:.3g} to {highest:.3g}; expected "
            f"0 to 1: state another kind with --scores {names}:KIND, such as logits"
        )
    if plan.labels is not None and scores.shape[2] != len(plan.labels):
        raise OptionError(f"{source.name} has {scores.shape[2]} scores a box, but {len(plan.labels)} labels")
    named, reach = "+".join(part.name for part in plan.boxes), float(np.abs(boxes).max(initial=0))
    if plan.box_format.endswith("-unit") and reach > _FAR * max(source.size):
        return [
            f"boxes reach {reach:.0f} pixels of {max(source.size)}; if they are pixels already, export with --boxes "
            f"{named}:{plan.box_format.removesuffix('-unit')}"
        ]
    if boxes.size and reach <= 2 and not plan.box_format.endswith("-unit"):
        return [
            f"all boxes reach at most {reach:.2g} pixels; if they are parts of the input, export with "
            f"--boxes {named}:{plan.box_format}-unit"
        ]
    return []
