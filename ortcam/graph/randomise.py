"""Randomise the weights of a parsed model, layer by layer from the scores downwards.

Source: Adebayo et al. 2018 (arXiv 1810.03292), "model parameter randomization". A file has no training framework that
could initialise a layer again, so every stored tensor of weights is drawn on its own. Exports fold batch normalisation
into the convolution before it: the draw then replaces the folded weights, at their own mean and deviation.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from ortcam.errors import ModelError, OptionError, one_line, whole
from ortcam.model.protobuf import read_by

Draw = Literal["gaussian", "permutation"]
DRAWS: tuple[Draw, ...] = ("gaussian", "permutation")

# Inputs that may hold weights, by operator: the weights, then the bias.
_WEIGHTS = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "FusedConv": (1, 2), "NhwcFusedConv": (1, 2), "ConvInteger": (1,),
    "Gemm": (1, 0, 2), "FusedGemm": (1, 0, 2), "MatMul": (1, 0), "FusedMatMul": (1, 0), "MatMulInteger": (1, 0),
    "QLinearConv": (3, 8), "QLinearMatMul": (3, 0), "QGemm": (3, 0, 6), "MatMulNBits": (1, 5),
    "DynamicQuantizeMatMul": (1, 4), "MatMulIntegerToFloat": (1, 6), "Einsum": (0, 1),
    "BatchNormalization": (1, 2), "InstanceNormalization": (1, 2), "GroupNormalization": (1, 2),
    "LayerNormalization": (1, 2),
}  # fmt: skip
# Operators that keep the values of their first input, whatever their other inputs are.
_KEEPING = {
    "Identity", "Cast", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Slice", "Pad",
    "QuantizeLinear", "DequantizeLinear", "Dropout",
}  # fmt: skip
_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Sqrt", "Pow", "Neg", "Concat"}
# Operators after a layer that may add its bias or scale: {operator: the inputs that hold a constant}.
_FOLLOWING = {
    "Add": (0, 1),
    "Sub": (1,),
    "Mul": (0, 1),
    "PRelu": (1,),
    "BatchNormalization": (1, 2),
    "QLinearAdd": (0, 3),
}
_PASSING = {"Cast", "QuantizeLinear", "DequantizeLinear", "Identity", "Dropout"}


@dataclass(frozen=True)
class WeightedLayer:
    """A layer of a graph and its stored weights.

    Attributes:
        name: the name of its first weight without endings such as ``.weight``; unique in the graph.
        op_type: the operator that reads the weights.
        weights: its stored tensors (initializers and Constant nodes) by name, with the number of their values: weights,
            bias, normalisation.
        changes_activations: whether the target layer is computed from this layer. Else only the scores change.
    """

    name: str
    op_type: str
    weights: Mapping[str, int]
    changes_activations: bool


class _Graph:
    """The stored tensors, the makers and the readers of a graph's values."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes = list(graph.node)
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                name = node.output[0]
                self.tensors.update((name, one.t) for one in node.attribute if one.name == "value")
        self.makers = {name: node for node in graph.node for name in node.output if name}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)

    def ancestors(self, name: str) -> set[str]:
        """Return the values that a value is computed from, and the value itself."""
        found, waiting = {name}, [name]
        while waiting:
            node = self.makers.get(waiting.pop())
            new = set() if node is None else set(read_by(node)) - found
            found |= new
            waiting.extend(new)
        return found

    def roots(self, name: str) -> tuple[str, ...]:
        """Return the stored weights that a value is computed from; () if it is not a constant, or holds no weights."""
        found = self._roots(name)
        return () if found is None else found

    def _roots(self, name: str) -> tuple[str, ...] | None:
        if name in self.tensors:
            return (name,) if _holds_weights(self.tensors[name]) else ()
        node = self.makers.get(name)
        if node is None:
            return None
        if node.op_type in _KEEPING:
            return self._roots(node.input[0])
        if node.op_type not in _ELEMENTWISE:
            return None
        each = [self._roots(one) for one in node.input]
        known = [one for one in each if one is not None]
        return tuple(dict.fromkeys(root for one in known for root in one)) if len(known) == len(each) else None

    def of_node(self, node: onnx.NodeProto, inputs: Collection[int]) -> tuple[str, ...]:
        """Return the stored weights among some inputs of a node."""
        read = [node.input[at] for at in inputs if at < len(node.input) and node.input[at]]
        return tuple(dict.fromkeys(root for name in read for root in self.roots(name)))

    def following(self, node: onnx.NodeProto, until: str) -> Iterator[tuple[onnx.NodeProto, tuple[str, ...]]]:
        """Yield the nodes that add a bias or a scale to the result of a node, and their weights.

        Args:
            node: the layer.
            until: the target layer's value: what follows it belongs to no layer below it.
        """
        while node.output[0] != until and len(readers := self.readers.get(node.output[0], [])) == 1:
            (following,) = readers
            weights = self.of_node(following, _FOLLOWING.get(following.op_type, ()))
            scaled = following.op_type == "Mul" and node.op_type in ("Cast", "ConvInteger", "MatMulInteger")
            if not weights and following.op_type not in _PASSING and not scaled:
                return
            yield following, weights
            node = following


def weighted_layers(proto: onnx.ModelProto, target: str = "activations") -> tuple[WeightedLayer, ...]:
    """Return the layers that the scores are computed from, from the scores downwards.

    A layer comes before every layer that it depends on. The layers above the target layer, which change only the
    scores, come first. A bias that another operator adds belongs to its layer; so do scale and offset of a batch
    normalisation behind a convolution. The statistics of a normalisation, quantisation scales and zero points, and
    constants of other operators (position embeddings, class tokens) are no weights of a layer.

    Args:
        proto: the model; its first output holds the scores.
        target: the value of the target layer.
    """
    graph = _Graph(proto.graph)
    needed = graph.ancestors(proto.graph.output[0].name)
    below = graph.ancestors(target)
    found, taken = list[WeightedLayer](), set[str]()
    for node in graph.nodes:
        if node.output[0] in taken or not needed & set(node.output):
            continue
        weights = graph.of_node(node, _WEIGHTS.get(node.op_type, ()))
        if not weights:
            continue
        for following, more in graph.following(node, target):
            taken.update(following.output)
            weights = tuple(dict.fromkeys(weights + more))
        sizes = {name: _size(graph.tensors[name]) for name in weights}
        name = weights[0].removesuffix("_quantized").removesuffix("_Transposed").removesuffix(".weight")
        found.append(WeightedLayer(name, node.op_type, sizes, bool(below & set(node.output))))
    found.reverse()
    return _unique(sorted(found, key=lambda layer: layer.changes_activations))


def count_parameters(proto: onnx.ModelProto) -> int:
    """Return the number of values in all stored tensors that may hold weights, those of no layer included."""
    return sum(_size(tensor) for tensor in _Graph(proto.graph).tensors.values() if _holds_weights(tensor))


def load_weights(proto: onnx.ModelProto, folder: Path) -> None:
    """Read weights from external files into a model, in place.

    Raises:
        ModelError: a file is missing or too short.
    """
    if not any(uses_external_data(tensor) for tensor in proto.graph.initializer):
        return
    try:
        load_external_data_for_model(proto, str(folder))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(f"the external weights in {folder} cannot be read: {one_line(error)}") from error


def randomise(proto: onnx.ModelProto, weights: Collection[str], draw: Draw = "gaussian", seed: int = 0) -> None:
    """Replace stored weights by random values of the same shape and type, in place.

    The generator of each tensor is seeded with the seed and the tensor's name. A tensor therefore gets the same values
    whatever other tensors are replaced, and in any order. Equal values, such as biases of 0, stay the same.

    Args:
        proto: the model, with all weights inside.
        weights: the names of the tensors, as in `WeightedLayer.weights`.
        draw: ``gaussian``: independent values with the tensor's own mean and standard deviation; integers, which stand
            for other numbers, are permuted instead. ``permutation``: the tensor's own values in another order.
        seed: the seed, from 0.

    Raises:
        OptionError: the draw is unknown, or the seed is negative.
        ModelError: a name is not in the model, or its values lie in another file.
    """
    check_draw(draw, seed)
    tensors = _Graph(proto.graph).tensors
    for name in dict.fromkeys(weights):
        if name not in tensors:
            raise ModelError(f"the model stores no weights {name!r}; expected names of weighted_layers()")
        tensor = tensors[name]
        if uses_external_data(tensor):
            raise ModelError(f"the weights {name!r} lie in another file; read them first with load_weights()")
        drawn = _draw(numpy_helper.to_array(tensor), draw, _generator(seed, name))
        made = numpy_helper.from_array(drawn, tensor.name)
        made.doc_string = tensor.doc_string
        tensor.CopyFrom(made)


def check_draw(draw: object, seed: object) -> None:
    """Raise an OptionError if the draw is unknown, or the seed is no whole number from 0."""
    if draw not in DRAWS:
        raise OptionError(f"draw is {draw!r}; expected {' or '.join(DRAWS)}")
    whole("seed", seed, least=0)


def _draw(values: NDArray[Any], draw: Draw, generator: np.random.Generator) -> NDArray[Any]:
    if draw == "permutation" or not _is_float(values.dtype):
        return generator.permutation(values.reshape(-1)).reshape(values.shape)
    wide = values.astype(np.float64)
    drawn = generator.normal(wide.mean(), wide.std(), values.shape)
    return np.asarray(drawn, np.float64).astype(values.dtype).reshape(values.shape)


def _generator(seed: int, name: str) -> np.random.Generator:
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.default_rng([int(seed), *np.frombuffer(digest, "<u4").tolist()])


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or "float" in dtype.name  # bfloat16 and float8 are no kinds of NumPy's own


def _holds_weights(tensor: onnx.TensorProto) -> bool:
    """Return whether a stored tensor may hold weights: more than one number, and no indices or flags."""
    unsuited = (onnx.TensorProto.INT64, onnx.TensorProto.BOOL, onnx.TensorProto.STRING, onnx.TensorProto.UINT64)
    return tensor.data_type not in unsuited and _size(tensor) > 1


def _size(tensor: onnx.TensorProto) -> int:
    return math.prod(tensor.dims)


def _unique(layers: list[WeightedLayer]) -> tuple[WeightedLayer, ...]:
    """Number layers that share a name: two layers may read the same weights."""
    seen: dict[str, int] = {}
    made = []
    for layer in layers:
        seen[layer.name] = number = seen.get(layer.name, 0) + 1
        made.append(layer if number == 1 else replace(layer, name=f"{layer.name} ({number})"))
    return tuple(made)
