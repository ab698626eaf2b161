"""Write a budget as nodes: `ortcam.core.budget` for one photo, with the surrogate of a group of one.

`ortcam.core.budget` and `ortcam.core.surrogate` describe the computation and its reasons.
"""

from __future__ import annotations

import math

import numpy as np

from ortcam.core.budget import (
    CALIBRATION,
    LARGEST_ERROR,
    LARGEST_SIDE,
    LARGEST_STAGE,
    SMALLEST_STAGE,
    STAGE_STEP,
    averaging_matrix,
)
from ortcam.core.convention import TINY
from ortcam.core.surrogate import ACTIVITY, ALIKE, EVEN, LENGTH, SHORTEST
from ortcam.graph import surrogates
from ortcam.graph.builder import Builder, Value
from ortcam.graph.saliency import SelectedMasks
from ortcam.graph.surrogates import SurrogateValues

STATE = tuple(name for name in surrogates.RANKS if name != "basis")  # of one photo, in the state of the loop
_LARGEST_EXPONENT = 126.0  # 2^-127 is not a normal float32


def surrogate_grid(small: tuple[int, int]) -> tuple[int, int]:
    """Return the rows and columns of the surrogate's masks for a layer of (h, w)."""
    return min(small[0], LARGEST_SIDE), min(small[1], LARGEST_SIDE)


def write_unseen(graph: Builder, count: Value) -> SurrogateValues:
    """Return a surrogate of `count` masks, int64 [1], without scores; its kernel and parts are placeholders.

    All shapes are computed, because OpenVINO takes the shape of a constant for the shape of the state in all turns.
    """
    one, none = graph.minimum(count, 1), graph.minimum(count, 0)
    line, column, wide = graph.shape(one, count), graph.shape(one, count, one), graph.shape(one, one, count)
    corner = graph.shape(one, one, one)
    return {
        "kernel": graph.full(column, 0, np.float32),
        "parts": graph.full(column, 0, np.float32),
        "area": graph.full(line, 0, np.float32),
        "real": graph.full(line, 1, np.float32),
        "free": graph.full(line, 1, np.float32),
        "factor": graph.full(wide, 0, np.float32),
        "inverse": graph.full(corner, 0, np.float64),
        "variance": graph.full(line, 1, np.float32),
        "chosen": graph.full(graph.shape(one, none), 0, np.int64),
        "importance": graph.full(line, 1, np.float32),
        "direction": graph.full(line, 0, np.float32),
        "logs": graph.full(column, 0, np.float32),
        "amplitudes": graph.full(corner, 0, np.float64),
    }


def write_start(
    graph: Builder,
    unseen: SurrogateValues,
    activations: Value,
    selection: SelectedMasks,
    small: tuple[int, int],
    centred: bool = False,
) -> SurrogateValues:
    """activations float32 [K,h,w] and their distinct masks -> the state of a surrogate before any score.

    If `centred`, the mean is subtracted from the weights: see `ortcam.core.budget.PredictedPlan`.
    """
    grid = surrogate_grid(small)
    rows, columns = (averaging_matrix(*pair) for pair in zip(small, grid, strict=True))
    if grid != small:
        activations = graph.constant(rows) @ activations @ np.ascontiguousarray(columns.T)
    flat = graph.reshape(activations, graph.size(activations, 0), grid[0] * grid[1])
    affine = graph.gather(selection.affine, selection.channels)
    shift, scale = graph.slice(affine, 0, 1, 1), graph.slice(affine, 1, 2, 1)
    masks = (graph.gather(flat, selection.channels) - shift) * scale
    masks = graph.op("Clip", masks, graph.constant(0.0), graph.constant(1.0))
    count = graph.size(masks, 0)
    # Scale to about 1 by a power of two, like the engine: no square overflows float32.
    highest = graph.maximum(graph.reduce("Max", graph.op("Abs", flat)), float(TINY))
    exponent = graph.op("Ceil", graph.op("Log", highest) * (1 / math.log(2)))
    flat = flat * graph.op("Pow", graph.constant(2.0), -graph.minimum(exponent, _LARGEST_EXPONENT))
    if centred:
        counts = graph.expand_dims(graph.cast(count > selection.rows, np.float32), 1)
        channels = graph.maximum(graph.reduce("Sum", counts, keep=True), 1.0)
        flat = flat - graph.reduce("Sum", flat * counts, 0, keep=True) / channels
    # One more row, for the channels that are left out.
    nothing = graph.full(graph.shape(count + 1, grid[0] * grid[1]), 0.0, np.float32)
    sums = graph.op("ScatterND", nothing, graph.expand_dims(selection.rows, 1), flat, reduction="add")
    parts = graph.slice(sums, 0, -1, 0)
    area = graph.reduce("Mean", masks, 1)
    start = {
        "kernel": write_kernel(graph, masks, parts),
        "parts": parts,
        "area": area - graph.reduce("Mean", area, 0, keep=True),
        # Centred parts cancel out: `ortcam.core.surrogate.map_of_equal_weights`.
        "direction": graph.full(graph.size(parts, 1), 0, np.float32) if centred else graph.reduce("Sum", parts, 0),
    }
    return unseen | {name: graph.expand_dims(value, 0) for name, value in start.items()}


def write_kernel(graph: Builder, masks: Value, parts: Value) -> Value:
    """masks and parts float32 [D,P] -> the kernel [D,D]."""
    gram = graph.cast(parts.T @ parts, np.float64)
    places = graph.size(gram, 0)
    unit = graph.op("EyeLike", gram)
    size = graph.op("Sqrt", graph.maximum(graph.reduce("Sum", gram * unit, 0), float(TINY)))
    outer = graph.reshape(size, -1, 1) * graph.reshape(size, 1, -1)
    alike = gram / outer * ALIKE + unit * (1 - ALIKE)
    mean = graph.reduce("Sum", size) / graph.cast(places, np.float64)
    activity = graph.op("Pow", size / mean, graph.constant(ACTIVITY / 2, np.float64))
    metric = alike * graph.reshape(activity, -1, 1) * graph.reshape(activity, 1, -1)
    points = masks @ graph.cast(metric, np.float32)
    norms = graph.reduce("Sum", points * masks, 1, keep=True)  # [D,1]
    enlarged = graph.op("Pow", graph.maximum(norms, float(TINY)), graph.constant(-EVEN / 2))
    masks, points, norms = masks * enlarged, points * enlarged, norms * enlarged * enlarged
    centres = graph.reduce("Mean", points, 0) * graph.reduce("Mean", masks, 0)
    spread = (graph.reduce("Mean", norms) - graph.reduce("Sum", centres)) * 2.0
    scale = (3 / LENGTH) / graph.maximum(spread, SHORTEST)
    return _write_matern(graph, (norms + norms.T - points @ masks.T * 2.0) * scale)


def _write_matern(graph: Builder, squares: Value) -> Value:
    """Squared distances -> the kernel."""
    distances = graph.op("Sqrt", graph.op("Relu", squares))
    return (distances + 1.0) * graph.op("Exp", -distances)


def stage_size(graph: Builder, done: Value, most: Value) -> Value:
    """Return the size of the next stage, int64 [1]: `core.budget.stage_size`, at most the rest of the budget."""
    stage = graph.minimum(graph.maximum(done // STAGE_STEP * SMALLEST_STAGE, SMALLEST_STAGE), LARGEST_STAGE)
    return graph.minimum(stage, most - done)


def write_errors(graph: Builder, state: SurrogateValues) -> Value:
    """Return the estimated errors of the maps, float32 [T,3]: expected, low and high, as in `ErrorEstimate`.

    Targets are computed one by one: for all classes at once, the products would take gigabytes.
    """

    def estimate(target: Value) -> list[Value]:
        return [surrogates.write_expected_error(graph, state, graph.expand_dims(target, 0))]

    (errors,) = graph.loop(graph.scalar(graph.size(state["logs"], 2)), [], estimate)
    return graph.minimum(graph.reshape(errors, -1, 1) * np.array(CALIBRATION, np.float32), LARGEST_ERROR)


def write_scores(graph: Builder, state: SurrogateValues, seen: Value) -> Value:
    """scores float32 [n,T] of the chosen masks -> the scores of all masks [D,T]."""
    logs = graph.op("Squeeze", state["logs"], graph.constant([0], np.int64))
    scores = logs + graph.reduce("Max", seen, 0, keep=True)
    return graph.op("ScatterND", scores, graph.reshape(state["chosen"], -1, 1), seen)
