"""Read the kind of a classifier's scores from the operators at the end of its graph.

Other operators may follow a softmax or a sigmoid: operators that only reorder or convert, a logarithm, a scale and an
offset, a selection of classes. The end is followed backwards from the output, and these operators are taken into
account.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ortcam.core.scores import Activation, OutputKind, Scale
from ortcam.graph.maps import read_scale, variable_inputs
from ortcam.graph.scores import AFTER_SCORES

_REORDERING = AFTER_SCORES | {"Unsqueeze", "Expand", "Dropout", "Clip"}
_SELECTING = frozenset({"Slice", "Gather", "Split"})
_ENDS: dict[str, tuple[Activation, bool]] = {
    "Softmax": ("softmax", False),
    "LogSoftmax": ("softmax", True),
    "QLinearSoftmax": ("softmax", False),
    "Sigmoid": ("sigmoid", False),
    "QLinearSigmoid": ("sigmoid", False),
}
_SMALLEST_SHIFT = 1e-3  # of a logarithm's argument: such numbers only keep it from log(0)
_LONGEST = 32  # nodes behind an output


@dataclass(frozen=True)
class Scores:
    """The kind of scores in a classifier's output.

    Attributes:
        kind: the kind; logits if the graph has neither a softmax nor a sigmoid at its end.
        activation: the function that turns logits into probabilities; None if it is unknown.
        logits: the tensor that the softmax or sigmoid reads; None if the output is the logits, or no tensor is.
        scale: scale and zero point of the logits tensor; None if it is not quantized.
        output_scale: (a, b) if the output is a * x + b with x of this kind.
    """

    kind: OutputKind = "logits"
    activation: Activation | None = None
    logits: ir.Value | None = None
    scale: tuple[float, int] | None = None
    output_scale: Scale | None = None


@dataclass(frozen=True)
class _End:
    """A tensor factor * x + offset, where x is the probabilities of a softmax or sigmoid, or their logarithms."""

    activation: Activation
    logs: bool = False
    logits: ir.Value | None = None
    scale: tuple[float, int] | None = None
    factor: float = 1.0
    offset: float = 0.0
    needs_scale: Scale | None = None  # the end counts only if factor and offset become this scale
    selected: bool = False  # some of the classes

    @property
    def is_plain(self) -> bool:
        return abs(self.factor - 1) < 1e-6 and abs(self.offset) < 1e-6


def read_scores(output: ir.Value) -> Scores:
    """Return the kind of scores in an output."""
    end = _follow(output, _LONGEST)
    if end is None:
        return Scores()
    if end.factor < 0 and not end.logs and end.activation == "sigmoid":  # 1 - sigmoid(x) is sigmoid(-x)
        end = replace(end, factor=-end.factor, offset=end.offset + end.factor, logits=None)
    unmeant = end.needs_scale is not None and not np.allclose((end.factor, end.offset), end.needs_scale, atol=1e-6)
    if end.factor <= 0 or unmeant:
        return Scores()
    kind: OutputKind = (
        "log_probabilities" if end.logs else "sigmoid" if end.activation == "sigmoid" else "probabilities"
    )
    activation = end.activation
    if end.selected and activation == "softmax" and _count(output) == 1:  # two classes, or one class against the rest
        activation, kind = "sigmoid", kind if end.logs else "sigmoid"
    scale = None if end.is_plain else (end.factor, end.offset)
    return Scores(kind, activation, end.logits, end.scale, scale)


def _follow(value: ir.Value | None, depth: int) -> _End | None:
    """Return the end from which a tensor is computed."""
    node = None if value is None else value.producer()
    if node is None or depth == 0 or not node.inputs:
        return None
    kind, first = node.op_type, node.inputs[0]
    if kind in _ENDS:
        activation, logs = _ENDS[kind]
        return _End(activation, logs, first, read_scale(node, 1, 2) if kind.startswith("QLinear") else None)
    written = _written_out(node)
    if written is not None:
        return written
    if kind in _REORDERING:
        return _follow(first, depth - 1)
    if kind == "Concat":
        return _both_sides(node, depth - 1)
    changing = variable_inputs(node)
    if len(changing) != 1:
        return None
    end = _follow(changing[0], depth - 1)
    if end is None:
        return None
    if kind in _SELECTING and changing[0] is first:
        return replace(end, logits=None, scale=None, selected=True)
    if kind == "Log" and not end.logs and abs(end.factor - 1) < 1e-6 and abs(end.offset) <= _SMALLEST_SHIFT:
        return replace(end, logs=True, factor=1.0, offset=0.0)
    if kind == "Exp" and end.logs and end.is_plain:
        return replace(end, logs=False)
    return _scaled(node, changing[0], end)


def _scaled(node: ir.Node, changing: ir.Value, end: _End) -> _End | None:
    """Return the end behind a node that scales or shifts it by a number; None behind other nodes."""
    kind, by = node.op_type, 0.0
    if kind in ("Max", "Min"):
        return end
    if kind == "Neg":
        return replace(end, factor=-end.factor, offset=-end.offset)
    if kind not in ("Mul", "Div", "Add", "Sub") or len(node.inputs) != 2:
        return None
    found = _number(next((one for one in node.inputs if one is not changing), None))
    if found is None:
        return None
    by, from_it = found, node.inputs[1] is changing  # whether the node divides the constant, or subtracts from it
    if kind == "Add":
        return replace(end, offset=end.offset + by)
    if kind == "Sub":
        return (
            replace(end, factor=-end.factor, offset=by - end.offset)
            if from_it
            else replace(end, offset=end.offset - by)
        )
    if kind == "Div" and (from_it or by == 0):
        return None
    by = by if kind == "Mul" else 1 / by
    return replace(end, factor=end.factor * by, offset=end.offset * by)


def _both_sides(concat: ir.Node, depth: int) -> _End | None:
    """Return the end of [1 - sigmoid(x), sigmoid(x)] in either order: two classes that sum to 1, as of a softmax."""
    ends = [end for value in concat.inputs if (end := _follow(value, depth)) is not None and not end.logs]
    if len(concat.inputs) != 2 or len(ends) != 2:
        return None
    first, second = ends
    same = first.activation == second.activation == "sigmoid" and first.logits is second.logits is not None
    opposed = {round(end.factor, 6) for end in ends} == {-1.0, 1.0} and abs(first.offset + second.offset - 1) < 1e-6
    return _End("softmax") if same and opposed else None


def _written_out(node: ir.Node) -> _End | None:
    """Return the end if a node completes a softmax or sigmoid that is written out in other operators."""
    kind = node.op_type
    if kind == "HardSigmoid":
        return _End("sigmoid")
    if kind == "Tanh":  # 2 sigmoid(2x) - 1; as half of it and a half, it is a sigmoid
        return _End("sigmoid", factor=2.0, offset=-1.0, needs_scale=(1.0, 0.0))
    if kind == "Softplus":  # -log sigmoid(-x)
        return _End("sigmoid", True, _negated(node.inputs[0]), factor=-1.0)
    if kind == "Where":  # torch writes a softplus with a threshold, beyond which it is x
        branches = [value.producer() for value in node.inputs[1:] if value is not None]
        softplus = next((branch for branch in branches if branch is not None and branch.op_type == "Softplus"), None)
        return None if softplus is None or softplus.inputs[0] not in node.inputs else _written_out(softplus)
    if kind == "Reciprocal":
        return _one_over(node.inputs[0])
    if kind == "Div":
        if _number(node.inputs[0]) == 1:
            return _one_over(node.inputs[1])
        logits = _softmax_input(node.inputs[0], node.inputs[1])
        return None if logits is None else _End("softmax", False, logits)
    if kind == "Mul":  # exp(x) times one over its sum
        for one, other in (node.inputs, node.inputs[::-1]):
            inverse = _made_by(other, "Reciprocal")
            logits = None if inverse is None else _softmax_input(one, inverse.inputs[0])
            if logits is not None:
                return _End("softmax", False, logits)
    if kind == "Sub":
        logits = _log_softmax_input(node)
        return None if logits is None else _End("softmax", True, logits)
    return None


def _one_over(denominator: ir.Value | None) -> _End | None:
    """Return the end of 1 / (1 + exp(-x))."""
    node = None if denominator is None else denominator.producer()
    if node is None or node.op_type != "Add" or 1 not in [_number(value) for value in node.inputs]:
        return None
    exponential = next((made for value in node.inputs if (made := _made_by(value, "Exp")) is not None), None)
    return None if exponential is None else _End("sigmoid", False, _negated(exponential.inputs[0]))


def _negated(value: ir.Value | None) -> ir.Value | None:
    """Return x if a tensor is -x, else None."""
    node = None if value is None else value.producer()
    if node is None:
        return None
    if node.op_type == "Neg":
        return node.inputs[0]
    if node.op_type == "Mul" and -1 in (signs := [_number(one) for one in node.inputs]):
        return node.inputs[1 - signs.index(-1)]
    return None


def _softmax_input(exponentials: ir.Value | None, sums: ir.Value | None) -> ir.Value | None:
    """Return x if a node divides exp(x - max(x)) by its sum, with or without the maximum."""
    total = _made_by(sums, "ReduceSum")
    if exponentials is None or total is None or total.inputs[0] is not exponentials:
        return None
    node = exponentials.producer()
    if node is None or node.op_type != "Exp":
        return None
    return _before_maximum(node.inputs[0])


def _log_softmax_input(node: ir.Node) -> ir.Value | None:
    """Return x if a node completes x - log(sum(exp(x))), with or without the maximum."""
    first, second = node.inputs
    total = _made_by(second, "ReduceLogSumExp")
    if total is not None:
        return _before_maximum(first) if total.inputs[0] is first else None
    logarithm = _made_by(second, "Log")
    total = None if logarithm is None else _made_by(logarithm.inputs[0], "ReduceSum")
    exponential = None if total is None else _made_by(total.inputs[0], "Exp")
    return _before_maximum(first) if exponential is not None and exponential.inputs[0] is first else None


def _before_maximum(shifted: ir.Value | None) -> ir.Value | None:
    """Return x if a tensor is x - max(x), else the tensor itself."""
    subtraction = None if shifted is None else shifted.producer()
    if subtraction is not None and subtraction.op_type == "Sub":
        largest = _made_by(subtraction.inputs[1], "ReduceMax")
        if largest is not None and largest.inputs[0] is subtraction.inputs[0]:
            return subtraction.inputs[0]
    return shifted


def _made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """Return the node of this operator that makes a value, past operators that only restore dimensions."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == op_type:
            return node
        if node.op_type not in ("Identity", "Reshape", "Expand", "Unsqueeze", "Squeeze", "Max"):
            return None
        inputs = variable_inputs(node) if node.op_type == "Max" else [node.inputs[0]]
        value = inputs[0] if len(inputs) == 1 else None
    return None


def _number(value: ir.Value | None) -> float | None:
    """Return the number that all elements of a constant equal; None for other values."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is None or not tensor.size:
        return None
    numbers = tensor.numpy().astype(np.float64).reshape(-1)
    return float(numbers[0]) if (numbers == numbers[0]).all() else None


def _count(value: ir.Value) -> int | None:
    """Return the only dimension beside the batch that is not 1, or 1; None if it is unknown."""
    if value.shape is None:
        return None
    dims = [dim for dim in list(value.shape)[1:] if dim != 1]
    return 1 if not dims else dims[0] if len(dims) == 1 and isinstance(dims[0], int) else None
