"""Target layers: which tensors of a graph are feature maps that Score-CAM can explain, the best first.

The target layer should carry everything the model knows of the photo, where it still has places. So a candidate
is a spatial tensor that *every* path from the image to the scores runs through: the end of a residual block is
one, a branch of it or a squeeze-excite gate is not.
"""

from __future__ import annotations

import ast
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from ortcam.errors import LayerError, nearest

# Nodes that read a tensor's size only: no information about the photo passes through them.
_SIZE_ONLY = {"Shape", "Size", "ConstantOfShape"}
# Nodes that hold weights, when one of their inputs is an initializer: features become other features.
_WEIGHTED = {
    "Conv",
    "Gemm",
    "MatMul",
    "ConvTranspose",
    "ConvInteger",
    "QLinearConv",
    "QLinearMatMul",
    "MatMulInteger",
}
# Nodes that only move, thin out or relabel a feature map: the map before them is the finer one.
_PASSIVE = {
    "AveragePool", "MaxPool", "LpPool", "Identity", "Dropout", "Cast", "Transpose", "Reshape", "Flatten", "Squeeze",
    "Unsqueeze", "Pad", "Slice", "QuantizeLinear", "DequantizeLinear", "Resize", "DepthToSpace", "SpaceToDepth",
}  # fmt: skip
_ACTIVATIONS = {
    "Relu", "LeakyRelu", "PRelu", "Clip", "HardSwish", "HardSigmoid", "Sigmoid", "Elu", "Selu", "Celu", "Gelu",
    "Mish", "Swish", "Softplus", "Softsign", "Tanh", "ThresholdedRelu",
}  # fmt: skip
_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class Candidate:
    """A tensor that could be the target layer.

    Attributes:
        value: its name in the graph.
        module: the module of the source framework whose output it is, or None.
        op_type: the operator that makes it.
        shape: the dimensions without the batch, as the graph states them; None where unknown.
        reason: why it stands where it stands.
    """

    value: str
    module: str | None
    op_type: str
    shape: tuple[int | None, ...]
    reason: str

    @property
    def name(self) -> str:
        """What a user would call it: the module, else the tensor."""
        return self.module or self.value


def infer_shapes(model: ir.Model) -> None:
    """Add the shapes that ONNX can infer to a model's values, in place; where it cannot, they stay unknown."""
    logging.getLogger("onnx_ir").setLevel(logging.CRITICAL)  # it would log a traceback
    ShapeInferencePass()(model)


def find_candidates(model: ir.Model) -> list[Candidate]:
    """Return the candidate target layers of a classifier, best first; empty when there is none.

    The best is the last spatial bottleneck that weights still follow (so not a classifier that is a
    convolution), made by something else than pooling or reshaping, after its activation function.
    """
    path = _path_to_scores(model.graph)
    modules = {value: name for name, value in reversed(module_outputs(model.graph).items())}
    found = []
    for value in _bottlenecks(model.graph, path):
        producer = value.producer()
        if producer is None or not is_spatial(value) or producer.op_type in _PASSIVE or _is_unfinished(value):
            continue
        followed = _weights_follow(value, path)
        reason = f"all paths meet here, after {producer.op_type}"
        if not followed:
            reason += "; no weights follow, so it may be the class maps themselves"
        found.append((followed, Candidate(value.name or "", modules.get(value), producer.op_type, dims(value), reason)))
    found.reverse()
    found.sort(key=lambda pair: not pair[0])
    return [candidate for _, candidate in found]


def find_layer(model: ir.Model, layer: str, model_name: str = "the model") -> tuple[ir.Value, str]:
    """Return the tensor that `layer` names, and the name to record for it.

    Args:
        model: the graph.
        layer: ``auto`` for the best candidate, a module of the source framework (its last call, as a hook would
            see it), or the name of a value in the graph.
        model_name: what error messages call the model.

    Raises:
        LayerError: there is no such layer, it is no 4-D tensor, or no candidate exists.
    """
    if layer == "auto":
        candidates = find_candidates(model)
        if not candidates:
            raise LayerError(
                f"no spatial feature map found in {model_name}; expected a network whose 4-D feature maps lead to "
                "class scores: name the layer with --layer"
            )
        values = {value.name: value for value in all_values(model.graph)}
        return values[candidates[0].value], candidates[0].name
    modules = module_outputs(model.graph)
    values = {value.name or "": value for value in all_values(model.graph)}
    value = modules.get(layer) or values.get(layer)
    if value is None:
        names = [*modules, *(name for name in values if name)]
        raise LayerError(f"layer {layer!r} is not in {model_name}{nearest(layer, names)} (see: ortcam inspect)")
    if value.shape is not None and len(value.shape) != 4:
        raise LayerError(
            f"layer {layer!r} of {model_name} has {len(value.shape)} dimensions; expected a feature map with 4 "
            f"[batch,channels,height,width]{_suggest(model)}"
        )
    return value, layer


def _suggest(model: ir.Model) -> str:
    names = [candidate.name for candidate in find_candidates(model)[:3]]
    return f"; try: {', '.join(names)}" if names else ""


def module_outputs(graph: ir.Graph) -> dict[str, ir.Value]:
    """Return, for every module that torch's exporter recorded, the tensor that its last call returns.

    That is the last tensor that a node inside the module makes and one outside it reads. Modules that are
    absent were merged into another one: a convolution into the batch normalisation behind it.
    Outer modules come first.
    """
    outputs: dict[str, ir.Value] = {}
    inner = {node: frozenset(_scopes(node)) for node in graph}
    for node, scopes in inner.items():
        for value in node.outputs:
            readers = [inner.get(use.node, frozenset()) for use in value.uses()]
            for scope in scopes:
                if value.is_graph_output() or any(scope not in reader for reader in readers):
                    outputs[scope] = value
    return dict(sorted(outputs.items(), key=lambda item: item[0].count(".")))


def _scopes(node: ir.Node) -> list[str]:
    """Return the modules that a node came from, outermost first, without the model itself and the operator."""
    text = node.metadata_props.get(_SCOPES)
    if not text:
        return []
    try:
        names = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return []
    return [str(name).split("@")[0] for name in names[:-1] if name]


def all_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield every tensor that a node of the graph makes, in order."""
    for node in graph:
        yield from node.outputs


def dims(value: ir.Value) -> tuple[int | None, ...]:
    """Return a value's dimensions without the batch; None for the unknown, () for an unknown rank."""
    return () if value.shape is None else tuple(dim if isinstance(dim, int) else None for dim in value.shape)[1:]


def is_spatial(value: ir.Value) -> bool:
    """Whether a value is a feature map [batch,K,h,w] or [batch,h,w,K] with more than one place, as far as known."""
    if value.shape is None or len(value.shape) != 4:
        return False
    known = [dim for dim in dims(value) if dim is not None]
    return sum(dim > 1 for dim in known) + (3 - len(known)) >= 2


def _path_to_scores(graph: ir.Graph) -> dict[ir.Node, None]:
    """Return, in order, the nodes that carry information from the image to the first output."""
    reached: set[ir.Value] = {graph.inputs[0]}
    forward = []
    for node in graph:
        if node.op_type not in _SIZE_ONLY and any(value in reached for value in node.inputs):
            reached.update(node.outputs)
            forward.append(node)
    needed: set[ir.Value | None] = {graph.outputs[0]}
    path = []
    for node in reversed(forward):
        if any(value in needed for value in node.outputs):
            needed.update(node.inputs)
            path.append(node)
    return dict.fromkeys(reversed(path))


def _bottlenecks(graph: ir.Graph, path: dict[ir.Node, None]) -> list[ir.Value]:
    """Return the values that every path runs through, in order.

    Going through the nodes in topological order, those are the values that are alone in being still needed.
    """
    bottlenecks = []
    open_uses: dict[ir.Value, int] = {}
    for node in path:
        for value in node.inputs:
            if value in open_uses:
                open_uses[value] -= 1
                if not open_uses[value]:
                    del open_uses[value]
        for value in node.outputs:
            uses = sum(use.node in path for use in value.uses())
            if uses:
                open_uses[value] = uses
        if len(open_uses) == 1:
            (alone,) = open_uses
            if alone in node.outputs:
                bottlenecks.append(alone)
    return bottlenecks


def _is_unfinished(value: ir.Value) -> bool:
    """Whether the tensor only feeds its own activation function or normalisation: what comes out is the layer."""
    users = [use.node for use in value.uses()]
    kinds = {node.op_type for node in users}
    if len(users) == 1:
        return bool(kinds & (_ACTIVATIONS | {"BatchNormalization", "InstanceNormalization"}))
    gated = kinds == {"Mul", "Sigmoid"} or kinds == {"Mul", "HardSigmoid"}  # SiLU, hard-swish
    return gated and len(users) == 2


def _weights_follow(value: ir.Value, path: dict[ir.Node, None]) -> bool:
    """Whether a node with weights lies between the value and the scores."""
    seen: set[ir.Node] = set()
    waiting = [use.node for use in value.uses()]
    while waiting:
        node = waiting.pop()
        if node in seen or node not in path:
            continue
        seen.add(node)
        if node.op_type in _WEIGHTED:
            return True
        waiting.extend(use.node for output in node.outputs for use in output.uses())
    return False
