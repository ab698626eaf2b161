"""Write a graph like NumPy code: values have operators, loops and branches are functions.

    graph = Builder()
    x = graph.input("x", np.float32, ["n"])
    count = graph.scalar(graph.size(x, 0))
    (total,) = graph.loop(count, [graph.constant(0.0)], lambda i, sum_: [sum_ + graph.gather(x, i)], ranks=[0])
    graph.output(total, "total", [])

A new node goes to the innermost open graph, and may read values of the graphs around it. The onnx package's helpers
write the protobuf; this module keeps names, element types and constants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import DTypeLike, NDArray
from onnx import helper, numpy_helper

PREFIX = "ortcam/"  # the beginning of all names that this module makes
_BOOLEAN = {"Greater", "GreaterOrEqual", "Equal", "And", "Or", "Not", "IsNaN", "IsInf"}
_INTEGER = {"Shape", "Size", "ArgMax", "NonZero"}
_TYPED_BY = {"Where": 1, "OneHot": 2}  # the input whose type the output has; others: the first
_FOREVER = np.iinfo(np.int64).max
Number = int | float | np.generic | NDArray[Any]
Dims = Sequence[int | str | None]


class Value:
    """A tensor of a graph; NumPy's operators write nodes. A number stands for a constant of the value's type.

    Attributes:
        name: in the graph.
        dtype: of its elements.
    """

    __slots__ = ("_builder", "dtype", "name")

    def __init__(self, builder: Builder, name: str, dtype: DTypeLike) -> None:
        self._builder, self.name, self.dtype = builder, name, np.dtype(dtype)

    def __add__(self, other: Value | Number) -> Value:
        return self._builder.op("Add", self, self._same(other))

    def __sub__(self, other: Value | Number) -> Value:
        return self._builder.op("Sub", self, self._same(other))

    def __rsub__(self, other: Number) -> Value:
        return self._builder.op("Sub", self._same(other), self)

    def __mul__(self, other: Value | Number) -> Value:
        return self._builder.op("Mul", self, self._same(other))

    def __truediv__(self, other: Value | Number) -> Value:
        return self._builder.op("Div", self, self._same(other))

    def __rtruediv__(self, other: Number) -> Value:
        return self._builder.op("Div", self._same(other), self)

    def __floordiv__(self, other: Value | Number) -> Value:
        """Divide integers; ONNX truncates, so both must be positive."""
        return self._builder.op("Div", self, self._same(other))

    def __matmul__(self, other: Value | Number) -> Value:
        return self._builder.op("MatMul", self, self._same(other))

    def __neg__(self) -> Value:
        return self._builder.op("Neg", self)

    def __gt__(self, other: Value | Number) -> Value:
        return self._builder.op("Greater", self, self._same(other))

    def __ge__(self, other: Value | Number) -> Value:
        return self._builder.op("GreaterOrEqual", self, self._same(other))

    def __and__(self, other: Value) -> Value:
        return self._builder.op("And", self, other)

    def __or__(self, other: Value) -> Value:
        return self._builder.op("Or", self, other)

    def __invert__(self) -> Value:
        return self._builder.op("Not", self)

    @property
    def T(self) -> Value:  # noqa: N802 - numpy's name
        """The transpose of a matrix."""
        return self._builder.op("Transpose", self, perm=[1, 0])

    def _same(self, other: Value | Number) -> Value:
        return other if isinstance(other, Value) else self._builder.constant(other, self.dtype)


class _Scope:
    """An open graph: the model's own, or the body of a loop or branch."""

    def __init__(self) -> None:
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.known: list[onnx.ValueInfoProto] = []  # types that cannot be inferred
        self.constants: dict[tuple[Any, ...], Value] = {}
        self.made: set[str] = set()  # the names of its nodes' outputs

    def to_proto(self, name: str) -> onnx.GraphProto:
        known = self.known
        return helper.make_graph(self.nodes, name, self.inputs, self.outputs, self.initializers, value_info=known)


class Builder:
    """Writes a graph."""

    def __init__(self) -> None:
        self._scopes = [_Scope()]
        self._count = 0

    def to_proto(self, name: str) -> onnx.GraphProto:
        """Return the whole graph."""
        assert len(self._scopes) == 1, "a loop or branch is still being written"
        return self._scopes[0].to_proto(name)

    def input(self, name: str, dtype: DTypeLike, dims: Dims | None) -> Value:
        self._scope.inputs.append(_value_info(name, dtype, dims))
        return Value(self, name, dtype)

    def output(self, value: Value, name: str, dims: Dims | None) -> None:
        self._scope.nodes.append(helper.make_node("Identity", [value.name], [name], name=PREFIX + name))
        self._scope.outputs.append(_value_info(name, value.dtype, dims))

    def default(self, name: str, value: NDArray[Any]) -> None:
        """Give an input a default value."""
        self._scope.initializers.append(numpy_helper.from_array(value, name))

    def constant(self, value: Number | Sequence[Any], dtype: DTypeLike | None = None) -> Value:
        array = np.asarray(value, dtype)
        if dtype is None and array.dtype == np.float64:
            array = array.astype(np.float32)
        key = (array.dtype, array.shape, array.tobytes())
        scope = self._scope
        if key not in scope.constants:
            name = self._name("constant")
            scope.initializers.append(numpy_helper.from_array(array, name))
            scope.constants[key] = Value(self, name, array.dtype)
        return scope.constants[key]

    def op(self, op_type: str, *inputs: Value | None, name: str | None = None, **attributes: Any) -> Value:
        """Write a node with one output; None stands for an omitted input."""
        return self.ops(op_type, *inputs, outputs=1, name=name, **attributes)[0]

    def ops(
        self, op_type: str, *inputs: Value | None, outputs: int, name: str | None = None, **attributes: Any
    ) -> list[Value]:
        """Write a node with several outputs."""
        made = [self._name(op_type) for _ in range(outputs)]
        given = ["" if value is None else value.name for value in inputs]
        while given and not given[-1]:
            given.pop()
        self._scope.nodes.append(helper.make_node(op_type, given, made, name=name or made[0], **attributes))
        self._scope.made.update(made)
        return [Value(self, one, _dtype_of(op_type, at, inputs, attributes)) for at, one in enumerate(made)]

    def embed(
        self,
        nodes: Iterable[onnx.NodeProto],
        initializers: Iterable[onnx.TensorProto],
        known: Iterable[onnx.ValueInfoProto],
    ) -> None:
        """Copy nodes, weights and known types of another graph; its names must not be in use here."""
        self._scope.nodes.extend(nodes)
        self._scope.initializers.extend(initializers)
        self._scope.known.extend(known)

    def unused(self, kind: str) -> str:
        """Return a name that nothing has, for embedded nodes."""
        return self._name(kind)

    def named(self, value: Value, name: str) -> None:
        """Give a value a second name, for embedded nodes to read."""
        self._scope.nodes.append(helper.make_node("Identity", [value.name], [name], name=PREFIX + name))

    def refer(self, name: str, dtype: DTypeLike) -> Value:
        """Return the value of this name that an embedded node makes."""
        return Value(self, name, dtype)

    def loop(
        self,
        count: Value | None,
        state: Sequence[Value],
        body: Callable[..., Sequence[Value]],
        *,
        ranks: Sequence[int] = (),
        condition: bool = False,
    ) -> list[Value]:
        """Write a Loop.

        Args:
            count: the number of turns, int64; None to run until the condition fails.
            state: the values that go from turn to turn; their shapes may change.
            body: called with the turn's number (int64 scalar) and the state; returns the new state. Further values that
                it returns are stacked along a new first axis.
            ranks: the number of dimensions of each value of the state, which some runtimes need.
            condition: whether the first value that the body returns says whether to continue (bool scalar).

        Returns:
            The final state, and the stacked values.
        """
        scope = self._open()
        number, going = self._inner_input(np.int64, []), self._inner_input(np.bool_, [])
        inner = [self._inner_input(value.dtype, [None] * rank) for value, rank in zip(state, ranks, strict=True)]
        results = list(body(number, *inner))
        if not condition:
            results.insert(0, going)
        self._close(results, [going, *state])
        limit = self.constant(_FOREVER, np.int64) if count is None else count
        graph = scope.to_proto(self._name("loop"))
        return self._control("Loop", [limit, self.constant(True, np.bool_), *state], results[1:], body=graph)

    def branch(
        self, condition: Value, then: Callable[[], Sequence[Value]], otherwise: Callable[[], Sequence[Value]]
    ) -> list[Value]:
        """Write an If; `condition` is a single bool, and both functions return values of the same types."""
        graphs, results = [], []
        for write in (then, otherwise):
            scope = self._open()
            results.append(list(write()))
            self._close(results[-1], results[0])
            graphs.append(scope.to_proto(self._name("branch")))
        return self._control("If", [condition], results[0], then_branch=graphs[0], else_branch=graphs[1])

    # NumPy's functions and methods.

    def cast(self, value: Value, dtype: DTypeLike) -> Value:
        if value.dtype == np.dtype(dtype):
            return value
        return self.op("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def size(self, value: Value, axis: int) -> Value:
        """Return a dimension, int64 [1]."""
        return self.op("Shape", value, start=axis, end=axis + 1)

    def shape(self, *dims: Value | int) -> Value:
        """Return a shape, int64 [n], of numbers and dimensions [1]."""
        parts = [dim if isinstance(dim, Value) else self.constant([dim], np.int64) for dim in dims]
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0)

    def reshape(self, value: Value, *dims: Value | int) -> Value:
        return self.op("Reshape", value, self.shape(*dims))

    def scalar(self, value: Value) -> Value:
        """Return the only element of [1] as a scalar."""
        return self.op("Squeeze", value)

    def expand_dims(self, value: Value, *axes: int) -> Value:
        return self.op("Unsqueeze", value, self.constant(axes, np.int64))

    def full(self, shape: Value, value: float, dtype: DTypeLike) -> Value:
        fill = numpy_helper.from_array(np.array([value], dtype))
        made = self.op("ConstantOfShape", shape, value=fill)
        return Value(self, made.name, dtype)

    def arange(self, count: Value) -> Value:
        """Return 0, 1, ..., count - 1; `count` is an int64 scalar or [1]."""
        zero, one = self.constant(0, np.int64), self.constant(1, np.int64)
        return self.op("Range", zero, self.scalar(count), one)

    def gather(self, value: Value, indices: Value, axis: int = 0, name: str | None = None) -> Value:
        return self.op("Gather", value, indices, axis=axis, name=name)

    def slice(self, value: Value, begin: Value | int, end: Value | int, axis: int) -> Value:
        return self.op("Slice", value, self.shape(begin), self.shape(end), self.constant([axis], np.int64))

    def concat(self, values: Sequence[Value], axis: int) -> Value:
        return self.op("Concat", *values, axis=axis)

    def where(self, condition: Value, a: Value | Number, b: Value | Number) -> Value:
        known = a if isinstance(a, Value) else b
        assert isinstance(known, Value)
        first, second = (one if isinstance(one, Value) else self.constant(one, known.dtype) for one in (a, b))
        return self.op("Where", condition, first, second)

    def minimum(self, a: Value, b: Value | Number) -> Value:
        return self.op("Min", a, b if isinstance(b, Value) else self.constant(b, a.dtype))

    def maximum(self, a: Value, b: Value | Number) -> Value:
        return self.op("Max", a, b if isinstance(b, Value) else self.constant(b, a.dtype))

    def reduce(self, kind: str, value: Value, *axes: int, keep: bool = False) -> Value:
        """Return ``ReduceSum``, ``ReduceMean``, ... over the axes; over all axes if none are given."""
        over = self.constant(axes, np.int64) if axes else None
        return self.op(f"Reduce{kind}", value, over, keepdims=int(keep))

    def equal(self, a: Value, b: Value | Number) -> Value:
        return self.op("Equal", a, b if isinstance(b, Value) else self.constant(b, a.dtype))

    @property
    def _scope(self) -> _Scope:
        return self._scopes[-1]

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{PREFIX}{kind}_{self._count}"

    def _open(self) -> _Scope:
        self._scopes.append(_Scope())
        return self._scope

    def _close(self, results: list[Value], like: Sequence[Value]) -> None:
        """Close the innermost graph. Its outputs must be its own values; other values pass through an Identity."""
        scope = self._scope
        for at, value in enumerate(results):
            if value.name not in scope.made or value.name in {output.name for output in scope.outputs}:
                results[at] = self.op("Identity", value)
            scope.outputs.append(_value_info(results[at].name, value.dtype, None))
        for value, wanted in zip(results, like, strict=False):
            assert value.dtype == wanted.dtype, f"{value.name} is {value.dtype}, expected {wanted.dtype}"
        self._scopes.pop()

    def _inner_input(self, dtype: DTypeLike, dims: Dims | None) -> Value:
        name = self._name("state")
        self._scope.inputs.append(_value_info(name, dtype, dims))
        return Value(self, name, dtype)

    def _control(self, op_type: str, inputs: list[Value], like: list[Value], **graphs: onnx.GraphProto) -> list[Value]:
        made = [self._name(op_type) for _ in like]
        names = [value.name for value in inputs]
        self._scope.nodes.append(helper.make_node(op_type, names, made, name=made[0], **graphs))
        self._scope.made.update(made)
        return [Value(self, name, value.dtype) for name, value in zip(made, like, strict=True)]


def _dtype_of(op_type: str, output: int, inputs: Sequence[Value | None], attributes: dict[str, Any]) -> DTypeLike:
    if op_type in _BOOLEAN:
        return np.bool_
    if op_type in _INTEGER or (op_type == "Unique" and output):
        return np.int64
    if op_type == "Cast":
        return helper.tensor_dtype_to_np_dtype(attributes["to"])
    known = inputs[_TYPED_BY.get(op_type, 0)]
    assert known is not None
    return known.dtype


def _value_info(name: str, dtype: DTypeLike, dims: Dims | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), dims)
