"""Plan how the maps of a CenterFace are read: scores, sizes and offsets of a box in each cell."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ortcam.errors import OptionError
from ortcam.exporters.tasks.options import Named, ScoreKind
from ortcam.exporters.tasks.plan import Columns, Plan
from ortcam.exporters.tasks.source import CENTERFACE, RawSource

_SMALL = 128  # pixels: the published file states 32, and takes any multiple
_KINDS = ("probabilities", "logits")


def find_centerface(source: RawSource) -> Plan | None:
    """Return the plan of a file whose outputs are the four maps of a CenterFace; None for others."""
    if any(len(output.shape) != 4 for output in source.outputs):
        return None
    names = [output.name for output in source.outputs]
    found = source.measure(names)
    if sorted(found[name].shape[1] for name in names) != CENTERFACE or len({_cells(raw) for raw in found.values()}) > 1:
        return None
    (heat,) = (name for name in names if found[name].shape[1] == 1)
    sizes, offsets = (name for name in names if found[name].shape[1] == 2)
    if found[heat].min() < 0 or found[heat].max() > 1:
        return None
    plan = plan_centerface(source, Named((sizes, offsets), "centerface"), Named((heat,), "probabilities"))
    notice = (
        f"the outputs are read as those of a CenterFace: {heat!r} scores, {sizes!r} sizes, {offsets!r} offsets; "
        f"--boxes {offsets}+{sizes}:centerface --scores {heat}:probabilities exchanges the last two"
    )
    height, width = source.size
    small = f"the input of {height}x{width} is small for faces in photos; --input-size makes it larger"
    notices = (notice, small) if max(height, width) < _SMALL else (notice,)
    return replace(plan, notices=notices, labels=("face",))


def plan_centerface(source: RawSource, boxes: Named, scores: Named) -> Plan:
    """Return the plan of maps of sizes and offsets [B,2,h,w] and a map of scores [B,C,h,w].

    Args:
        source: the source.
        boxes: the maps of sizes and of offsets, whose names the source has.
        scores: the map of scores.

    Raises:
        OptionError: the maps have another form, or do not fit the input.
    """
    if len(boxes.names) != 2 or len(scores.names) != 1 or scores.factors or scores.form not in _KINDS:
        raise OptionError(
            f"boxes names {', '.join(boxes.names)} and scores {', '.join(scores.names)} as {scores.form}; expected "
            f"--boxes SIZES+OFFSETS:centerface --scores SCORES:KIND, KIND {' or '.join(_KINDS)}"
        )
    found = source.measure([*boxes.names, *scores.names])
    for option, names, channels in (("boxes", boxes.names, 2), ("scores", scores.names, None)):
        for name in names:
            _check_map(option, name, found[name], channels)
    shapes = {_cells(raw) for raw in found.values()}
    (rows, columns), (height, width) = next(iter(shapes)), source.size
    if len(shapes) > 1 or height % rows or width % columns or height // rows != width // columns:
        raise OptionError(
            f"the maps {', '.join(found)} have {' and '.join(f'{y}x{x}' for y, x in sorted(shapes))} cells, and the "
            f"input is {height}x{width}; expected maps of one size that divides the input"
        )
    sizes, offsets, heat = (Columns(name, boxes_of_a_cell=1) for name in (*boxes.names, *scores.names))
    kind = cast(ScoreKind, scores.form)
    return Plan("detect", (sizes,), (heat,), "centerface", kind, strides=(height // rows,), beside=(offsets,))


def _cells(raw: NDArray[Any]) -> tuple[int, ...]:
    return raw.shape[2:]


def _check_map(option: str, name: str, raw: NDArray[Any], channels: int | None) -> None:
    if (
        raw.ndim != 4
        or len(raw) != 1
        or channels not in (None, raw.shape[1])
        or not np.issubdtype(raw.dtype, np.floating)
    ):
        raise OptionError(
            f"{option} names {name!r}, {raw.dtype} [{','.join(map(str, raw.shape))}]; expected a map "
            f"[batch,{'classes' if channels is None else channels},h,w] for format centerface"
        )
