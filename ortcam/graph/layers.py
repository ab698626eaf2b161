"""Find the tensors of a graph that Score-CAM can explain (candidate target layers), the best first.

The target layer should carry all information about the photo, and still have places. A candidate is therefore a spatial
tensor that *every* path from the image to the scores runs through: the end of a residual block is a candidate; a branch
of the block or a squeeze-excite gate is not. The tokens of a vision transformer are a spatial tensor as well.
"""

from __future__ import annotations

import ast
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from ortcam.errors import LayerError, nearest
from ortcam.graph.axes import Axes, find_axes, grid_of, may_be_sequence, possible_layouts, restores_map
from ortcam.graph.maps import Tokens, find_layout, find_tokens, guess_layout, places_matter, variable_inputs
from ortcam.model.contract import Layout

# Nodes that read only a tensor's size: no information about the photo passes through them.
_SIZE_ONLY = {"Shape", "Size", "ConstantOfShape"}
# Nodes that hold weights if one of their inputs is an initializer: they compute new features.
WEIGHTED = {
    "Conv",
    "Gemm",
    "MatMul",
    "ConvTranspose",
    "ConvInteger",
    "QLinearConv",
    "QLinearMatMul",
    "MatMulInteger",
    "QGemm",
}
# Nodes that only move, thin out or relabel a feature map: the map before them is finer.
_PASSIVE = {
    "AveragePool", "MaxPool", "LpPool", "Identity", "Dropout", "Cast", "Transpose", "Reshape", "Flatten", "Squeeze",
    "Unsqueeze", "Pad", "Slice", "QuantizeLinear", "DequantizeLinear", "Resize", "DepthToSpace", "SpaceToDepth",
    "QLinearGlobalAveragePool", "QLinearAveragePool",
}  # fmt: skip
_ACTIVATIONS = {
    "Relu", "LeakyRelu", "PRelu", "Clip", "HardSwish", "HardSigmoid", "Sigmoid", "Elu", "Selu", "Celu", "Gelu",
    "Mish", "Swish", "Softplus", "Softsign", "Tanh", "ThresholdedRelu",
}  # fmt: skip
_NORMALIZATIONS = {"BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization"}
# Nodes that make sequences and optionals.
_NO_TENSORS = {
    "Optional", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceMap",
    "SplitToSequence",
}  # fmt: skip
SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class Reading:
    """How to read the graph of a classifier.

    Attributes:
        image_layout: the order of the input's dimensions.
        grid: the user's (rows, columns) of a vision transformer's patches, or None.
    """

    image_layout: Layout = "NCHW"
    grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class FeatureMap:
    """A tensor as a spatial map.

    Attributes:
        value: the tensor.
        layout: ``NCHW``, or ``NHWC`` with the channels last (so are tokens).
        tokens: the tokens that are places of the image, if the tensor is a sequence [batch,T,D].
    """

    value: ir.Value
    layout: Layout
    tokens: Tokens | None = None

    @property
    def shape(self) -> tuple[int | None, int | None, int | None]:
        """Channels, height and width; None if unknown."""
        if self.tokens is not None:
            return dims(self.value)[-1], self.tokens.rows, self.tokens.columns
        if len(dims(self.value)) != 3:
            return None, None, None
        first, second, third = dims(self.value)
        return (first, second, third) if self.layout == "NCHW" else (third, first, second)


@dataclass(frozen=True)
class Candidate:
    """A tensor that could be the target layer.

    Attributes:
        feature_map: the tensor.
        module: the module or layer of the source framework whose output it is, or None.
        op_type: the operator that makes it.
        reason: why it has its rank.
    """

    feature_map: FeatureMap
    module: str | None
    op_type: str
    reason: str

    @property
    def value(self) -> str:
        """The tensor's name in the graph."""
        return self.feature_map.value.name or ""

    @property
    def shape(self) -> tuple[int | None, int | None, int | None]:
        """Channels, height and width; None for a free dimension."""
        return self.feature_map.shape

    @property
    def name(self) -> str:
        """The name for the user: the module's, else the tensor's."""
        return self.module or self.value


def infer_shapes(model: ir.Model) -> None:
    """Add the shapes that ONNX can infer to a model's values, in place; other shapes stay unknown."""
    logging.getLogger("onnx_ir").setLevel(logging.CRITICAL)  # it would log a traceback
    ShapeInferencePass()(model)
    for node in model.graph.all_nodes():
        if node.op_type in _NO_TENSORS:
            for value in node.outputs:  # onnx-ir takes each for a tensor
                value.type = value.shape = None


def find_candidates(
    model: ir.Model, reading: Reading | None = None, layers: Mapping[str, ir.Value] | None = None
) -> list[Candidate]:
    """Return the candidate target layers of a classifier, best first; an empty list without candidates.

    The best candidate is the last spatial bottleneck that weights still follow (so it is not a convolutional
    classifier) and that is not the result of pooling or reshaping, after its activation function. In a vision
    transformer, it is the last sequence of tokens of which the scores read more than the class token.

    Args:
        model: the graph; its first input is the image, its first output the scores.
        reading: how to read the graph.
        layers: the source framework's layers; None for the modules that torch's exporter recorded.
    """
    reading = reading or Reading()
    path = _path_to_scores(model.graph)
    axes = find_axes(model.graph, reading.image_layout)
    named = module_outputs(model.graph) if layers is None else layers
    modules = {named[name]: name for name in reversed(list(named))}
    found = []
    for value in _bottlenecks(model.graph, path):
        producer = value.producer()
        if producer is None or _is_unfinished(value):
            continue
        if producer.op_type in _PASSIVE and not restores_map(value, axes):
            continue
        settled = _dequantized(value)
        feature_map = _read_map(model, settled, path, reading, axes, guess=False)
        if feature_map is None or not is_spatial(feature_map):
            continue
        followed = weights_follow(value, path)
        reason = f"all paths meet here, after {producer.op_type}" + (", as quantized" if settled is not value else "")
        if not followed:
            reason += "; no weights follow, so it may be the class maps themselves"
        elif feature_map.tokens is not None and not places_matter(value):
            followed, reason = False, f"{reason}; the scores read one token of it only"
        found.append((followed, Candidate(feature_map, modules.get(value), producer.op_type, reason)))
    found.reverse()
    found.sort(key=lambda pair: not pair[0])
    return [candidate for _, candidate in found]


def find_layer(
    model: ir.Model,
    layer: str,
    model_name: str = "the model",
    reading: Reading | None = None,
    layers: Mapping[str, ir.Value] | None = None,
) -> tuple[FeatureMap, str]:
    """Return the tensor of a layer, and the name to record for it.

    Args:
        model: the graph.
        layer: ``auto`` for the best candidate, a layer of the source framework (a module by its last call, as a
            hook would see it), or the name of a value in the graph.
        model_name: the model's name in messages.
        reading: how to read the graph.
        layers: the source framework's layers; None for the modules that torch's exporter recorded.

    Raises:
        LayerError: the layer is missing, is neither a map nor a sequence of patches, or no candidate exists.
    """
    reading = reading or Reading()
    named = module_outputs(model.graph) if layers is None else layers
    if layer == "auto":
        candidates = find_candidates(model, reading, named)
        if not candidates:
            raise LayerError(
                f"no spatial feature map found in {model_name}; expected a network whose 4-D feature maps, or "
                "patches in rows, lead to class scores: name the layer with --layer"
            )
        return candidates[0].feature_map, candidates[0].name
    values = {value.name or "": value for value in all_values(model.graph)}
    value = named.get(layer) or values.get(layer)
    if value is None:
        names = [*named, *(name for name in values if name)]
        raise LayerError(f"layer {layer!r} is not in {model_name}{nearest(layer, names)} (see: ortcam inspect)")
    axes = find_axes(model.graph, reading.image_layout)
    feature_map = _read_map(model, value, _path_to_scores(model.graph), reading, axes, guess=True)
    if feature_map is None:
        rank = 0 if value.shape is None else len(value.shape)
        hint = "; if it holds patches, give their rows and columns with --grid" if rank == 3 else ""
        raise LayerError(
            f"layer {layer!r} of {model_name} has {rank} dimensions; expected a feature map with 4 "
            f"[batch,channels,height,width]{hint}{_suggest(model, reading, named)}"
        )
    return feature_map, layer


def _read_map(
    model: ir.Model,
    value: ir.Value,
    path: dict[ir.Node, None],
    reading: Reading,
    axes: Mapping[ir.Value, Axes],
    guess: bool,
) -> FeatureMap | None:
    """Return a tensor as a map: a tensor of unknown rank is read as a map; ranks other than 4 and 3 return None.

    The axes may be known not to be rows and columns, or the channels may be unknown, as inside an attention
    [batch,heads,T,d]. Such a tensor is read as a map only if guessing is allowed.
    """
    image = model.graph.inputs[0]
    rank = None if value.shape is None else len(value.shape)
    known = axes.get(value)
    if rank == 3:
        if known is not None and reading.grid is None:
            grid = grid_of(known)
            if grid is not None:
                return FeatureMap(value, "NHWC", Tokens(0, *grid))
            if not guess and not may_be_sequence(known):
                return None
        places = [dim if isinstance(dim, int) else None for dim in image.shape or ()]
        places = places[2:] if reading.image_layout == "NCHW" else places[1:3]
        size = (places[0], places[1]) if len(places) == 2 and places[0] and places[1] else None
        tokens = find_tokens(value, path, size, reading.grid)
        return None if tokens is None else FeatureMap(value, "NHWC", tokens)
    if rank not in (4, None):
        return None
    if known is not None:
        layouts = possible_layouts(known)
        if len(layouts) == 1:
            return FeatureMap(value, layouts[0])
        if not layouts and not guess:
            return None
    layout = find_layout(value, image, reading.image_layout) or (guess_layout(value) if guess else None)
    return None if layout is None else FeatureMap(value, layout)


def _dequantized(value: ir.Value) -> ir.Value:
    """Return a tensor after its quantization, whose rounding and clipping may be its ReLU."""
    users = [use.node for use in value.uses()]
    if users and all(node.op_type == "QuantizeLinear" for node in users):
        readers = [use.node for use in users[0].outputs[0].uses()]
        if readers and all(node.op_type == "DequantizeLinear" for node in readers):
            return readers[0].outputs[0]
    return value


def _suggest(model: ir.Model, reading: Reading, layers: Mapping[str, ir.Value]) -> str:
    names = [candidate.name for candidate in find_candidates(model, reading, layers)[:3]]
    return f"; try: {', '.join(names)}" if names else ""


def module_outputs(graph: ir.Graph) -> dict[str, ir.Value]:
    """Return, for every module that torch's exporter recorded, the tensor that its last call returns.

    This is the last tensor that a node inside the module makes and a node outside it reads. Missing modules were merged
    into another module: a convolution into the batch normalisation behind it. Outer modules come first.
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
    text = node.metadata_props.get(SCOPES)
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
    """Return a value's dimensions without the batch; None for an unknown dimension, () for an unknown rank."""
    return () if value.shape is None else tuple(dim if isinstance(dim, int) else None for dim in value.shape)[1:]


def is_spatial(feature_map: FeatureMap) -> bool:
    """Return whether a map may have more than one place, and its tensor has a known rank."""
    if feature_map.value.shape is None:
        return False
    return any(dim is None or dim > 1 for dim in feature_map.shape[1:])


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

    In topological order of the nodes, a bottleneck is a value that is the only value still needed.
    """
    bottlenecks = []
    image = graph.inputs[0]
    open_uses: dict[ir.Value, int] = {image: sum(use.node in path for use in image.uses())}
    for node in path:
        for value in node.inputs:
            if value is not None and value in open_uses:
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
    """Return whether a tensor only feeds its own activation function or normalisation, whose result is the layer."""
    users = [use.node for use in value.uses()]
    kinds = {node.op_type for node in users}
    if len(users) == 1 and users[0].op_type in ("Max", "Min"):  # a ReLU, or its upper bound, if one side is constant
        return len(variable_inputs(users[0])) == 1
    if len(users) == 1:
        return bool(kinds & (_ACTIVATIONS | _NORMALIZATIONS))
    gated = kinds == {"Mul", "Sigmoid"} or kinds == {"Mul", "HardSigmoid"}  # SiLU, hard-swish
    return gated and len(users) == 2


def weights_follow(value: ir.Value, path: dict[ir.Node, None]) -> bool:
    """Return whether a node with weights lies between the value and the scores."""
    seen: set[ir.Node] = set()
    waiting = [use.node for use in value.uses()]
    while waiting:
        node = waiting.pop()
        if node in seen or node not in path:
            continue
        seen.add(node)
        if node.op_type in WEIGHTED and len(variable_inputs(node)) < len(node.inputs):
            return True
        waiting.extend(use.node for output in node.outputs for use in output.uses())
    return False
