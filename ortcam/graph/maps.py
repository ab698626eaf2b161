"""Read a tensor as a feature map: find its channels, and the tokens that are places of the image."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from ortcam.model.contract import Layout

# Operators whose input and output are [batch,channels,height,width] by ONNX's definition.
CHANNELS_FIRST = {
    "Conv", "ConvTranspose", "QLinearConv", "ConvInteger", "BatchNormalization", "InstanceNormalization",
    "GroupNormalization", "MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "LRN",
    "DepthToSpace", "SpaceToDepth",
}  # fmt: skip
# Operators that keep every value in its place, or combine tensors place by place.
ELEMENTWISE = {
    "Abs", "Add", "Cast", "Celu", "Clip", "DequantizeLinear", "Div", "Dropout", "Elu", "Erf", "Exp", "Gelu",
    "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow",
    "QuantizeLinear", "Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish",
    "Tanh", "ThresholdedRelu", "Where",
}  # fmt: skip
# Operators that only reorder or copy values, whatever they stand for.
_REORDERING = {"Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "MaxPool", "Concat"}
MOST_OTHER_TOKENS = 16  # class, distillation and register tokens: no published network has more than a few


@dataclass(frozen=True)
class Tokens:
    """The tokens of a sequence [batch,T,D] that are the patches of the image, row by row.

    Attributes:
        first: the number of other tokens (class, distillation, registers) before them.
        rows, columns: the grid of patches.
    """

    first: int
    rows: int
    columns: int

    @property
    def end(self) -> int:
        return self.first + self.rows * self.columns


def find_layout(value: ir.Value, image: ir.Value, image_layout: Layout = "NCHW") -> Layout | None:
    """Read the layout of a 4-D tensor from the operators around it; return None if they do not show it.

    Args:
        value: the tensor.
        image: the graph's input.
        image_layout: the layout of that input.
    """
    return _layout_behind(value, image, image_layout) or _layout_ahead(value)


def guess_layout(value: ir.Value) -> Layout:
    """Guess the layout of a 4-D tensor from its dimensions: the two equal dimensions are places."""
    dims = [dim if isinstance(dim, int) else None for dim in value.shape or ()][1:]
    return "NHWC" if len(dims) == 3 and dims[0] == dims[1] != dims[2] and None not in dims[:2] else "NCHW"


def _layout_behind(value: ir.Value, image: ir.Value, image_layout: Layout) -> Layout | None:
    """Read the layout from the nodes that lead to the tensor."""
    seen: set[ir.Value] = set()
    waiting: list[tuple[ir.Value, tuple[int, ...]]] = [(value, (0, 1, 2, 3))]  # a tensor, and where its axes end up
    while waiting:
        tensor, axes = waiting.pop(0)
        node = tensor.producer()
        if tensor in seen:
            continue
        seen.add(tensor)
        if tensor is image:
            return _layout_of(axes[1 if image_layout == "NCHW" else 3])
        if node is None:
            continue
        perm = _permutation(node)
        if node.op_type in CHANNELS_FIRST:
            return _layout_of(axes[1])
        if _channels_last(node) and len(tensor.shape or ()) == 4:
            return _layout_of(axes[3])
        if perm is not None and len(perm) == 4:
            place = {source: axes[target] for target, source in enumerate(perm)}
            waiting.append((node.inputs[0], tuple(place[axis] for axis in range(4))))  # type: ignore[arg-type]
        elif node.op_type in ELEMENTWISE or node.op_type == "Concat":
            waiting.extend((parent, axes) for parent in variable_inputs(node))
    return None


def _layout_ahead(value: ir.Value) -> Layout | None:
    """Read the layout from the nodes that follow the tensor."""
    seen: set[ir.Value] = set()
    waiting: list[tuple[ir.Value, tuple[int, ...]]] = [(value, (0, 1, 2, 3))]  # a tensor, and where its axes came from
    while waiting:
        tensor, axes = waiting.pop(0)
        if tensor in seen:
            continue
        seen.add(tensor)
        for use in tensor.uses():
            node = use.node
            perm = _permutation(node)
            if node.op_type in CHANNELS_FIRST and use.idx == 0:
                return _layout_of(axes[1])
            if _channels_last(node) and use.idx == 0:
                return _layout_of(axes[3])
            reduced = _reduced_axes(node)
            if reduced is not None and len(reduced) == 2 and (0 not in reduced):
                return _layout_of(axes[({1, 2, 3} - {axis % 4 for axis in reduced}).pop()])
            if perm is not None and len(perm) == 4:
                waiting.append((node.outputs[0], tuple(axes[axis] for axis in perm)))
            elif node.op_type in ELEMENTWISE:
                waiting.append((node.outputs[0], axes))
    return None


def _layout_of(channel_axis: int) -> Layout | None:
    layouts: dict[int, Layout] = {1: "NCHW", 3: "NHWC"}
    return layouts.get(channel_axis)


def _channels_last(node: ir.Node) -> bool:
    """Return whether a node works along the last axis of its first input, with weights or a normalisation."""
    if node.op_type == "LayerNormalization":
        return _int_attribute(node, "axis", -1) == -1
    return node.op_type in ("MatMul", "Gemm", "QLinearMatMul", "MatMulInteger") and len(variable_inputs(node)) == 1


def _permutation(node: ir.Node) -> tuple[int, ...] | None:
    if node.op_type != "Transpose" or "perm" not in node.attributes:
        return None
    return tuple(node.attributes["perm"].as_ints())


def _axis(node: ir.Node, rank: int) -> int:
    return _int_attribute(node, "axis", 0) % rank


def _int_attribute(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _reduced_axes(node: ir.Node) -> list[int] | None:
    """Return the axes of a reduction; None for other nodes, or if the axes are unknown."""
    if not node.op_type.startswith("Reduce"):
        return None
    if "axes" in node.attributes:
        return list(node.attributes["axes"].as_ints())
    return constant_ints(node.inputs[1]) if len(node.inputs) > 1 else None


def constant_ints(value: ir.Value | None) -> list[int] | None:
    """Return the whole numbers in a constant; None for other values."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else [int(number) for number in tensor.numpy().reshape(-1)]


def find_scale(value: ir.Value) -> tuple[float, int] | None:
    """Return scale and zero point of a tensor of integers q, which stand for (q - zero_point) * scale; None if unknown.

    They are read from the operator that quantized the tensor, else from operators that dequantize it. Operators that
    only reorder the integers may lie between.
    """
    behind: ir.Value | None = value
    while behind is not None and (node := behind.producer()) is not None:
        if node.op_type in _QUANTIZERS:
            return read_scale(node, *_QUANTIZERS[node.op_type])
        behind = node.inputs[0] if node.op_type in _REORDERING else None
    scales: set[tuple[float, int] | None] = set()
    waiting = [value]
    while waiting:
        for use in waiting.pop().uses():
            if use.node.op_type in _REORDERING:
                waiting.extend(use.node.outputs)
            else:
                read = _DEQUANTIZERS.get(use.node.op_type)
                scales.add(read_scale(use.node, *read) if read is not None and use.idx == 0 else None)
    return scales.pop() if len(scales) == 1 else None


# Indices of the inputs with scale and zero point: of the integers that operators return, and of those they read first.
_QUANTIZERS = {"QuantizeLinear": (1, 2), "QLinearConv": (6, 7), "QLinearMatMul": (6, 7), "QLinearAdd": (6, 7)}
_DEQUANTIZERS = {"DequantizeLinear": (1, 2), "QLinearConv": (1, 2), "QLinearMatMul": (1, 2)}


def read_scale(node: ir.Node, scale_place: int, zero_place: int) -> tuple[float, int] | None:
    """Return the scale and zero point among a node's inputs; None if they are not single constants."""
    scale = None if node.inputs[scale_place] is None else ir.convenience.get_const_tensor(node.inputs[scale_place])  # type: ignore[arg-type]
    zero_point = constant_ints(node.inputs[zero_place]) if len(node.inputs) > zero_place else [0]
    if scale is None or scale.size != 1 or not zero_point:
        return None
    return float(scale.numpy().reshape(-1)[0]), zero_point[0]


def variable_inputs(node: ir.Node) -> list[ir.Value]:
    """Return the inputs of a node that are not constants, nor computed from constants alone."""
    return [value for value in node.inputs if value is not None and not _is_constant(value)]


def _is_constant(value: ir.Value, depth: int = 6) -> bool:
    node = value.producer()
    if node is None:
        return value.is_initializer()
    return depth > 0 and all(parent is None or _is_constant(parent, depth - 1) for parent in node.inputs)


def find_tokens(
    value: ir.Value,
    path: dict[ir.Node, None],
    size: tuple[int, int] | None,
    grid: tuple[int, int] | None = None,
) -> Tokens | None:
    """Return the tokens of a sequence [batch,T,D] that are the patches of the image; None if it has no patches.

    Patches come last and row by row, other tokens first, as in ViT, DeiT and DINOv2. Their grid is the grid of the last
    convolution before the tensor with as many places, else a grid with the image's proportions.

    Args:
        value: the tensor.
        path: the nodes from the image to the scores, in order.
        size: (height, width) of the image.
        grid: the user's (rows, columns), or None.
    """
    shape = value.shape
    if shape is None or len(shape) != 3 or not isinstance(shape[1], int) or not isinstance(shape[2], int):
        return None
    count = shape[1]
    for rows, columns in _grids(value, path, size, count) if grid is None else [grid]:
        if rows > 1 and columns > 1 and 0 <= count - rows * columns <= (MOST_OTHER_TOKENS if grid is None else count):
            return Tokens(count - rows * columns, rows, columns)
    return None


def _grids(
    value: ir.Value, path: dict[ir.Node, None], size: tuple[int, int] | None, count: int
) -> Iterator[tuple[int, int]]:
    convolved = []
    for node in path:
        if node is value.producer():
            break
        dims = node.outputs[0].shape
        if node.op_type == "Conv" and dims is not None and len(dims) == 4:
            convolved.append((dims[2], dims[3]))
    yield from ((rows, columns) for rows, columns in reversed(convolved) if type(rows) is int and type(columns) is int)
    height, width = size or (1, 1)
    for others in range(min(MOST_OTHER_TOKENS, count - 1) + 1):
        rows = math.isqrt((count - others) * height // width)
        for tried in (rows, rows + 1):
            if tried and (count - others) % tried == 0 and tried * width == (count - others) // tried * height:
                yield tried, (count - others) // tried


def places_matter(value: ir.Value) -> bool:
    """Return whether the scores depend on more than one token of a sequence [batch,T,D]: no class token is cut out.

    At the end of a network with a class token, the scores read only that token; a map of the other tokens would not
    explain them.
    """
    seen: set[ir.Value] = set()
    waiting = [value]
    while waiting:
        tensor = waiting.pop()
        if tensor in seen:
            continue
        seen.add(tensor)
        for use in tensor.uses():
            node = use.node
            if node.op_type == "Gather" and _axis(node, 3) == 1 and use.idx == 0:
                continue
            if node.op_type == "Slice" and _slice_is_single(node):
                continue
            reduced = _reduced_axes(node)
            over_features = reduced is not None and {axis % 3 for axis in reduced} == {2}
            if node.op_type in ELEMENTWISE or _channels_last(node) or over_features or node.op_type == "Slice":
                waiting.extend(node.outputs)
            else:
                return True
    return False


def _slice_is_single(node: ir.Node) -> bool:
    """Return whether a Slice takes one token."""
    starts, ends, axes = (constant_ints(value) for value in (*node.inputs[1:4], None, None, None)[:3])
    if not starts or not ends or (axes or [0]) != [1]:
        return False
    return ends[0] - starts[0] == 1
