"""Write the surrogates of several photos as nodes: `ortcam.core.surrogate` with a first axis of photos.

The nodes serve GPUs, which are busy only with many photos at once and few nodes per photo, and packed files, which
have a group of one photo. Photos advance in lockstep: the same number of masks is chosen for each photo. A photo with
fewer masks is filled up with masks that show nothing. If a photo has no mask left, its first mask is chosen again; the
photo then has all its scores, and needs no prediction.

The engine inverts a matrix; the graph extends it. With every chosen mask, the pivoted Cholesky factor of the kernel and
the inverse of its triangle grow by a row, so a prediction is a few products of matrices.
"""

from __future__ import annotations

import numpy as np

from ortcam.core.convention import TINY
from ortcam.core.surrogate import HOPE, LEAST_ROOT, NUGGET, PRIOR_OF_AREA, ROOT, sixth_moment
from ortcam.graph.builder import Builder, Value

# The state for the masks of G photos: names and numbers of dimensions. The first of 1+n rows is filling. Before the
# first prediction, `logs` and `amplitudes` have one target and no meaning.
RANKS = {
    "kernel": 3,  # float32 [G,D,D]
    "parts": 3,  # float32 [G,D,P]
    "area": 2,  # float32 [G,D], less its mean
    "real": 2,  # float32 [G,D], 0 for a mask that fills up, else 1
    "free": 2,  # float32 [G,D], 1 for a mask that may be chosen, else 0
    "factor": 3,  # float32 [G,1+n,D], rows of the pivoted Cholesky factor
    "inverse": 3,  # float64 [G,1+n,1+n], of its triangle
    "variance": 2,  # float32 [G,D]
    "chosen": 2,  # int64 [G,n]
    "importance": 2,  # float32 [G,D], the weight of a mask in the next choice
    "direction": 2,  # float32 [G,P], the mean of the predicted maps
    "logs": 3,  # float32 [G,D,T], the predicted log weights
    "amplitudes": 3,  # float64 [G,1,T], the variance of the roots of weights, s2
    "basis": 2,  # float32 [P,R], the smooth directions: `smooth_directions`
}
CHOSEN = ("free", "factor", "inverse", "variance", "chosen")  # changed by a choice
PREDICTED = ("importance", "direction", "logs", "amplitudes")  # changed by a prediction
SurrogateValues = dict[str, Value]  # some of these
_END = np.iinfo(np.int64).max  # of an axis, for a slice


def write_choice(graph: Builder, state: SurrogateValues, count: int | Value) -> SurrogateValues:
    """Choose `count` more masks for every photo: `Surrogate.choose`.

    If `count` is a number, the nodes of each mask are written out. If it is a value, int64 [1], they are in a Loop.
    """
    columns = _weighted(graph, state, state["direction"], state["importance"])
    rows = _swapped(graph, columns)  # [G,R,D]
    # The kernel is on the left: ONNX Runtime first reorders the right side of a product.
    effect = _swapped(graph, state["kernel"] @ columns) + rows * NUGGET
    effect = effect - rows @ _swapped(graph, state["factor"]) @ state["factor"]

    def choose(_: Value | None, effect: Value, *values: Value) -> list[Value]:
        free, factor, inverse, variance, chosen = values
        gain = graph.reduce("SumSquare", effect, 1) / (variance + NUGGET)
        best = graph.op("ArgMax", graph.where(free > 0.0, gain, -1.0), axis=1, keepdims=1)  # [G,1]
        at = _one_hot(graph, best, free)  # [G,1,D]
        before = at @ _swapped(graph, factor)  # [G,1,1+n]
        own = graph.op("Sqrt", at @ graph.expand_dims(variance, 2) + NUGGET)  # [G,1,1]
        line = (_picked(graph, state["kernel"], best) - before @ factor) / own  # [G,1,D]
        rest = graph.cast(before, np.float64) @ inverse
        own = graph.cast(own, np.float64)
        last = graph.concat([-rest / own, 1.0 / own], 2)
        return [
            effect - rows @ _swapped(graph, line) @ line,
            free - free * _squeezed(graph, at, 1),
            graph.concat([factor, line], 1),
            graph.concat([_padded(graph, inverse, 2, behind=1), last], 1),
            graph.op("Relu", variance - _squeezed(graph, line * line, 1)),
            graph.concat([chosen, best], 1),
        ]

    values = [effect, *(state[name] for name in CHOSEN)]
    if isinstance(count, Value):
        values = graph.loop(graph.scalar(count), values, choose, ranks=(3, *(RANKS[name] for name in CHOSEN)))
    else:
        for _ in range(count):
            values = choose(None, *values)
    return state | dict(zip(CHOSEN, values[1:], strict=True))


def write_prediction(graph: Builder, state: SurrogateValues, scores: Value) -> SurrogateValues:
    """scores float32 [G,n,T] of the chosen masks -> predictions for all masks: `Surrogate.observe`."""
    double = np.float64
    below = scores - graph.reduce("Max", scores, 1, keep=True)
    roots = graph.op("Exp", graph.cast(below, double) / ROOT)
    area = graph.expand_dims(graph.cast(state["area"], double), 2)
    trend = graph.concat([area * 0.0 + 1.0, area], 2)  # [G,D,2]
    seen = graph.concat([_picked(graph, trend, state["chosen"]), roots], 2)
    solved = state["inverse"] @ _padded(graph, seen, 1, before=1)
    trend_solved, roots_solved = graph.slice(solved, 0, 2, 2), graph.slice(solved, 2, _END, 2)
    products = _product_with_transposed(graph, trend_solved, solved)  # [G,2,2+T]
    normal = graph.slice(products, 0, 2, 2) + np.diag([0.0, PRIOR_OF_AREA])
    slopes = _inverse_of_two(graph, normal) @ graph.slice(products, 2, _END, 2)
    rest = roots_solved - trend_solved @ slopes
    amplitudes = graph.reduce("SumSquare", rest, 1, keep=True) / graph.cast(graph.size(scores, 1), double)
    # Arrays over masks and targets are float32.
    small, rest = graph.cast(slopes, np.float32), graph.cast(rest, np.float32)
    predicted = graph.cast(trend, np.float32) @ small + _swapped(graph, state["factor"]) @ rest
    predicted = graph.maximum(predicted, LEAST_ROOT)
    variances = graph.expand_dims(state["variance"] + NUGGET, 2) * graph.cast(amplitudes, np.float32)
    # Masks with a score keep it.
    at = _one_hot(graph, state["chosen"], state["free"])  # [G,n,D]
    has_score = graph.expand_dims(graph.reduce("Sum", at, 1), 2) > 0.0
    spread = _swapped(graph, at) @ graph.concat([below, graph.cast(roots, np.float32)], 2)
    count = graph.size(scores, 2)
    logs = graph.op("Log", sixth_moment(predicted, variances))
    logs = graph.where(has_score, graph.slice(spread, 0, count, 2), logs)
    hoped = predicted + graph.op("Sqrt", variances) * HOPE
    hoped = graph.where(has_score, graph.slice(spread, count, count + count, 2), hoped)
    # The weights of masks in the next choice: `Surrogate._aim`.
    maps = _swapped(graph, graph.op("Exp", logs)) @ state["parts"]  # [G,T,P]
    maps = maps / (graph.op("Sqrt", graph.reduce("SumSquare", maps, 2, keep=True)) + TINY)
    hoped = hoped * graph.expand_dims(state["real"], 2)
    squares = hoped / graph.reduce("Max", hoped, 1, keep=True)
    squares = squares * squares
    shares = squares * squares * squares
    return state | {
        "importance": graph.op("Sqrt", graph.reduce("Mean", shares * shares, 2)),
        "direction": graph.reduce("Mean", maps, 1),
        "logs": logs,
        "amplitudes": amplitudes,
    }


def write_expected_error(graph: Builder, state: SurrogateValues, target: Value) -> Value:
    """target int64 [1] -> the expected 1 - r of its map, float32 [G,1,1]: `Surrogate.expected_error`."""
    logs = graph.gather(state["logs"], target, 2)  # [G,D,1]
    whole = _swapped(graph, graph.op("Exp", logs)) @ state["parts"]  # [G,1,P]
    centred = whole - graph.reduce("Mean", whole, 2, keep=True)
    size = graph.reduce("SumSquare", centred, 2, keep=True)
    slopes = graph.op("Exp", logs * (1 - 1 / ROOT)) * ROOT
    slopes = _squeezed(graph, slopes, 2) * state["free"]
    uncertain = _weighted(graph, state, _squeezed(graph, whole, 1), slopes)
    explained = _swapped(graph, uncertain) @ _swapped(graph, state["factor"])
    spread = graph.reduce("Sum", (state["kernel"] @ uncertain + uncertain * NUGGET) * uncertain, 1, 2, keep=True)
    spread = graph.op("Relu", spread - graph.reduce("SumSquare", explained, 1, 2, keep=True))
    amplitude = graph.cast(graph.gather(state["amplitudes"], target, 2), np.float32)
    return graph.where(size > 0.0, amplitude * spread * 0.5 / graph.maximum(size, float(TINY)), 1.0)


def _weighted(graph: Builder, state: SurrogateValues, maps: Value, weights: Value) -> Value:
    """Return the parts along the smooth directions, without `maps` [G,P], times `weights` [G,D]: [G,D,R]."""
    basis = state["basis"]
    mean = maps - graph.reduce("Mean", maps, 1, keep=True)
    mean = mean / (graph.op("Sqrt", graph.reduce("SumSquare", mean, 1, keep=True)) + TINY)
    along = graph.expand_dims(mean, 1)
    away = basis - graph.expand_dims(mean, 2) @ (along @ basis)
    return state["parts"] @ away * graph.expand_dims(weights, 2)


def _one_hot(graph: Builder, indices: Value, like: Value) -> Value:
    """int64 [G,n] -> float32 [G,n,D]; `like` [G,D] gives D."""
    return graph.op("OneHot", indices, graph.size(like, 1), graph.constant([0.0, 1.0]), axis=-1)


def _picked(graph: Builder, values: Value, indices: Value) -> Value:
    """Rows of [G,D,...] at int64 [G,n] -> [G,n,...]."""
    return graph.op("GatherND", values, graph.expand_dims(indices, 2), batch_dims=1)


def _padded(graph: Builder, value: Value, axis: int, before: int = 0, behind: int = 0) -> Value:
    pads, axes = graph.constant([before, behind], np.int64), graph.constant([axis], np.int64)
    return graph.op("Pad", value, pads, None, axes)


def _swapped(graph: Builder, value: Value) -> Value:
    return graph.op("Transpose", value, perm=[0, 2, 1])


def _squeezed(graph: Builder, value: Value, axis: int) -> Value:
    return graph.op("Squeeze", value, graph.constant([axis], np.int64))


def _product_with_transposed(graph: Builder, left: Value, right: Value) -> Value:
    """float64 [G,n,a] and [G,n,b] -> left^T right, [G,a,b].

    A Transpose and a MatMul would fail: ONNX Runtime before 1.26 fuses these into a node without a float64 kernel, and
    then refuses the file.
    """
    return graph.reduce("Sum", graph.expand_dims(left, 3) * graph.expand_dims(right, 2), 1)


def _inverse_of_two(graph: Builder, matrices: Value) -> Value:
    """Return the inverses of symmetric matrices [G,2,2]."""
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])  # turn^T M turn is the adjugate of a symmetric M
    adjugate = graph.constant(turn.T, np.float64) @ matrices @ turn
    determinant = graph.slice(graph.slice(matrices @ adjugate, 0, 1, -2), 0, 1, -1)
    return adjugate / determinant
