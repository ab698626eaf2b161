"""A budget as nodes: ortcam.core.budget and ortcam.core.surrogate in a graph, which say what is computed here and why.

What the engine inverts, the graph builds up: with every mask that is chosen, the pivoted Cholesky factor of the
kernel and the inverse of its triangle grow by a row, so that a prediction is a few products of matrices.
"""

from __future__ import annotations

import math
from typing import NamedTuple

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
from ortcam.core.surrogate import (
    ACTIVITY,
    ALIKE,
    EVEN,
    HOPE,
    LEAST_ROOT,
    LENGTH,
    NUGGET,
    PRIOR_OF_AREA,
    ROOT,
    SHORTEST,
    sixth_moment,
    smooth_directions,
)
from ortcam.graph.builder import Builder, Value
from ortcam.graph.saliency import Selection

RANKS = (2, 2, 1, 2, 2, 1, 1, 1, 1, 1, 2, 2)  # of the fields of Surrogate
_LARGEST_EXPONENT = 126.0  # 2^-127 is no normal float32


class Surrogate(NamedTuple):
    """What is known of a photo's masks, as values of a graph. The first row of factor and inverse is filling.

    Attributes:
        kernel: float32 [D,D].
        parts: float32 [D,P].
        area: float32 [D], less its mean.
        factor: float32 [1+n,D], rows of the pivoted Cholesky factor.
        inverse: float64 [1+n,1+n], of its triangle.
        variance: float32 [D].
        chosen: int64 [n].
        free: float32 [D], 0 for a mask that was chosen, else 1.
        importance: float32 [D], what a mask counts by in the next choice.
        direction: float32 [P], the mean of the predicted maps.
        logs: float32 [D,T], the predicted log weights; [D,1] before there are any.
        amplitudes: float64 [1,T], the variance of the roots of weights, s2; [1,1] before there are any.
    """

    kernel: Value
    parts: Value
    area: Value
    factor: Value
    inverse: Value
    variance: Value
    chosen: Value
    free: Value
    importance: Value
    direction: Value
    logs: Value
    amplitudes: Value


def surrogate_grid(small: tuple[int, int]) -> tuple[int, int]:
    """Return the rows and columns of the masks that a surrogate sees of a layer of (h, w)."""
    return min(small[0], LARGEST_SIDE), min(small[1], LARGEST_SIDE)


def write_unseen(graph: Builder, count: Value) -> Surrogate:
    """Return a surrogate of `count` masks, int64 [1], that knows no score; its kernel and parts stand for nothing.

    All shapes are computed: OpenVINO takes a constant's for the shape of the state in all turns.
    """
    one, none = graph.minimum(count, 1), graph.minimum(count, 0)
    column, wide = graph.shape(count, one), graph.shape(one, count)
    return Surrogate(
        kernel=graph.full(column, 0, np.float32),
        parts=graph.full(column, 0, np.float32),
        area=graph.full(count, 0, np.float32),
        factor=graph.full(wide, 0, np.float32),
        inverse=graph.full(graph.shape(one, one), 0, np.float64),
        variance=graph.full(count, 1, np.float32),
        chosen=graph.full(none, 0, np.int64),
        free=graph.full(count, 1, np.float32),
        importance=graph.full(count, 1, np.float32),
        direction=graph.full(count, 0, np.float32),
        logs=graph.full(column, 0, np.float32),
        amplitudes=graph.full(graph.shape(one, one), 0, np.float64),
    )


def write_start(
    graph: Builder, unseen: Surrogate, activations: Value, selection: Selection, small: tuple[int, int]
) -> Surrogate:
    """activations float32 [K,h,w] and their distinct masks -> what a surrogate knows before any score."""
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
    # To about 1 by a power of two, as the engine does: no square leaves float32.
    highest = graph.maximum(graph.reduce("Max", graph.op("Abs", flat)), float(TINY))
    exponent = graph.op("Ceil", graph.op("Log", highest) * (1 / math.log(2)))
    flat = flat * graph.op("Pow", graph.constant(2.0), -graph.minimum(exponent, _LARGEST_EXPONENT))
    # A row more, for the channels that were left out.
    nothing = graph.full(graph.shape(count + 1, grid[0] * grid[1]), 0.0, np.float32)
    sums = graph.op("ScatterND", nothing, graph.expand_dims(selection.rows, 1), flat, reduction="add")
    parts = graph.slice(sums, 0, -1, 0)
    area = graph.reduce("Mean", masks, 1)
    return unseen._replace(
        kernel=write_kernel(graph, masks, parts),
        parts=parts,
        area=area - graph.reduce("Mean", area, 0, keep=True),
        direction=graph.reduce("Sum", parts, 0),
    )


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
    """Return how many masks the next stage has, int64 [1]: ortcam.core.budget.stage_size, and no more than are left."""
    stage = graph.minimum(graph.maximum(done // STAGE_STEP * SMALLEST_STAGE, SMALLEST_STAGE), LARGEST_STAGE)
    return graph.minimum(stage, most - done)


def write_choice(graph: Builder, state: Surrogate, count: Value, grid: tuple[int, int]) -> Surrogate:
    """Choose `count` masks more: `Surrogate.choose`."""
    columns = state.parts @ _write_away_from(graph, state.direction, grid) * graph.expand_dims(state.importance, 1)
    parts = columns.T
    # The kernel on the left: ONNX Runtime reorders what is on the right of a product first.
    effect = (state.kernel @ columns).T + parts * NUGGET - (parts @ state.factor.T) @ state.factor

    def choose(
        _: Value, effect: Value, factor: Value, inverse: Value, variance: Value, chosen: Value, free: Value
    ) -> list[Value]:
        gain = graph.reduce("SumSquare", effect, 0) / (variance + NUGGET)
        gain = graph.where(free > 0.0, gain, -1.0)
        best = graph.op("ArgMax", gain, axis=0, keepdims=1)  # [1]
        before = graph.gather(factor, best, 1)  # [1+n,1]
        own = graph.op("Sqrt", graph.gather(variance, best) + NUGGET)
        line = (graph.gather(state.kernel, best) - before.T @ factor) / own
        own = graph.cast(own, np.float64)
        across = graph.cast(graph.reshape(before, 1, -1), np.float64)  # for `before.T` see `_product_of_transposed`
        last = graph.concat([-(across @ inverse) / own, graph.reshape(1.0 / own, 1, 1)], 1)
        wider = graph.concat([inverse, graph.full(graph.shape(graph.size(inverse, 0), 1), 0.0, np.float64)], 1)
        return [
            effect - (parts @ line.T) @ line,
            graph.concat([factor, line], 0),
            graph.concat([wider, last], 0),
            graph.op("Relu", variance - graph.reshape(line * line, -1)),
            graph.concat([chosen, best], 0),
            graph.op("ScatterElements", free, best, graph.constant([0.0]), axis=0),
        ]

    changing = (effect, state.factor, state.inverse, state.variance, state.chosen, state.free)
    _, factor, inverse, variance, chosen, free = graph.loop(
        graph.scalar(count), changing, choose, ranks=(2, 2, 2, 1, 1, 1)
    )
    return state._replace(factor=factor, inverse=inverse, variance=variance, chosen=chosen, free=free)


def write_prediction(graph: Builder, state: Surrogate, scores: Value) -> Surrogate:
    """scores float32 [n,T] of the chosen masks -> the log weights of all, and amplitudes: `Surrogate.observe`."""
    double = np.float64
    below = graph.cast(scores - graph.reduce("Max", scores, 0, keep=True), double)
    roots = graph.op("Exp", below / ROOT)
    area = graph.reshape(graph.cast(state.area, double), -1, 1)
    trend = graph.concat([area * 0.0 + 1.0, area], 1)  # [D,2]
    seen = graph.gather(trend, state.chosen)
    filling = graph.full(graph.shape(1, graph.size(roots, 1) + 2), 0.0, double)
    solved = state.inverse @ graph.concat([filling, graph.concat([seen, roots], 1)], 0)
    trend_solved, roots_solved = graph.slice(solved, 0, 2, 1), graph.slice(solved, 2, np.iinfo(np.int64).max, 1)
    normal = _product_of_transposed(graph, trend_solved, trend_solved) + np.diag([0.0, PRIOR_OF_AREA])
    slopes = inverse_of_two(graph, normal) @ _product_of_transposed(graph, trend_solved, roots_solved)  # [2,T]
    rest = roots_solved - trend_solved @ slopes
    amplitudes = graph.reduce("SumSquare", rest, 0, keep=True) / graph.cast(graph.size(scores, 0), double)  # [1,T]
    predicted = trend @ slopes + graph.cast(state.factor.T @ graph.cast(rest, np.float32), double)
    predicted = graph.maximum(predicted, LEAST_ROOT)
    variances = graph.reshape(graph.cast(state.variance + NUGGET, double), -1, 1) * amplitudes
    logs = graph.op("Log", sixth_moment(predicted, variances))
    chosen = graph.expand_dims(state.chosen, 1)
    logs = graph.cast(graph.op("ScatterND", logs, chosen, below), np.float32)
    # What the next choice counts masks by: `Surrogate._aim`.
    maps = graph.op("Exp", logs).T @ state.parts  # [T,P]
    maps = maps / (graph.op("Sqrt", graph.reduce("SumSquare", maps, 1, keep=True)) + TINY)
    hoped = graph.op("ScatterND", predicted + graph.op("Sqrt", variances) * HOPE, chosen, roots)
    shares = graph.op("Pow", hoped / graph.reduce("Max", hoped, 0, keep=True), graph.constant(2.0 * ROOT, double))
    importance = graph.cast(graph.op("Sqrt", graph.reduce("Mean", shares, 1)), np.float32)
    direction = graph.reduce("Mean", maps, 0)
    return state._replace(importance=importance, direction=direction, logs=logs, amplitudes=amplitudes)


def write_errors(graph: Builder, state: Surrogate, grid: tuple[int, int]) -> Value:
    """Return how far the maps are from the exact ones, float32 [T,3]: expected, low and high, as `ErrorEstimate`.

    One target after the other: of all classes at once, the products would take gigabytes.
    """

    def estimate(target: Value) -> list[Value]:
        """`Surrogate.expected_error`."""
        at = graph.expand_dims(target, 0)
        logs = graph.reshape(graph.gather(state.logs, at, 1), -1)
        whole = graph.reshape(graph.reshape(graph.op("Exp", logs), 1, -1) @ state.parts, -1)  # [P]
        centred = whole - graph.reduce("Mean", whole, 0, keep=True)
        slopes = graph.op("Exp", logs * (1 - 1 / ROOT)) * ROOT * state.free
        uncertain = state.parts @ _write_away_from(graph, whole, grid) * graph.expand_dims(slopes, 1)  # [D,R]
        spread = graph.reduce("Sum", (state.kernel @ uncertain + uncertain * NUGGET) * uncertain)
        spread = graph.op("Relu", spread - graph.reduce("SumSquare", state.factor @ uncertain))
        amplitude = graph.cast(graph.reshape(graph.gather(state.amplitudes, at, 1), -1), np.float32)
        size = graph.reduce("SumSquare", centred, 0, keep=True)
        error = amplitude * spread * 0.5 / graph.maximum(size, float(TINY))
        return [graph.where(size > 0.0, error, 1.0)]

    (errors,) = graph.loop(graph.scalar(graph.size(state.logs, 1)), [], estimate)
    return graph.minimum(errors * np.array(CALIBRATION, np.float32), LARGEST_ERROR)


def _write_away_from(graph: Builder, map: Value, grid: tuple[int, int]) -> Value:
    """Return the directions that count beside a map [P] as columns [P,R]: ortcam.core.surrogate._away_from."""
    basis = graph.constant(smooth_directions(grid))
    mean = map - graph.reduce("Mean", map, 0, keep=True)
    mean = mean / (graph.op("Sqrt", graph.reduce("SumSquare", mean, 0, keep=True)) + TINY)
    along = graph.reshape(mean, -1, 1)
    return basis - along @ (along.T @ basis)


def _product_of_transposed(graph: Builder, left: Value, right: Value) -> Value:
    """Return left^T right of float64 matrices.

    Not as a Transpose and a MatMul: ONNX Runtime before 1.26 makes one node of these, for which it has no kernel in
    float64, and then refuses the file.
    """
    return graph.op("Gemm", left, right, transA=1)


def inverse_of_two(graph: Builder, matrix: Value) -> Value:
    """Return the inverse of a symmetric matrix [2,2], or of several."""
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])  # turn^T M turn is the adjugate of a symmetric M
    adjugate = graph.constant(turn.T, np.float64) @ matrix @ turn
    determinant = graph.slice(graph.slice(matrix @ adjugate, 0, 1, -2), 0, 1, -1)
    return adjugate / determinant


def write_scores(graph: Builder, state: Surrogate, seen: Value) -> Value:
    """scores float32 [n,T] of the chosen masks -> those of all masks [D,T]."""
    scores = state.logs + graph.reduce("Max", seen, 0, keep=True)
    return graph.op("ScatterND", scores, graph.expand_dims(state.chosen, 1), seen)
