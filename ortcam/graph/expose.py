"""Making target layers outputs, under the names and types of the model-file contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from ortcam.errors import LayerError
from ortcam.graph.ends import Scores
from ortcam.graph.layers import FeatureMap, all_values
from ortcam.graph.maps import Tokens, find_scale
from ortcam.model.contract import PREFIX, ROLES, Contract, output_name

_INTEGERS = (ir.DataType.UINT8, ir.DataType.INT8)


def expose(model: ir.Model, feature_maps: Sequence[FeatureMap], contract: Contract, read: Scores) -> Contract:
    """Make feature maps the outputs `activations`, `activations.1`, ..., in place, and rename image and scores.

    Returns the contract, which the model's metadata states then, with what the graph's output holds: `read`.

    The weights and the computation stay as they are; outputs other than the first are dropped. Image, scores and
    activations become float32 where the graph has other types, and patches in rows become a map [batch,h,w,K].

    Args:
        model: the graph.
        feature_maps: one for each layer of the contract.
        contract: what else the file states.
        read: what the first output holds.

    Raises:
        LayerError: a feature map holds numbers that cannot be turned into float32.
    """
    graph = model.graph
    _make_image_float(graph)
    result = _flatten(graph, make_float(graph, graph.outputs[0]))
    scores = "probabilities" if read.kind in ("probabilities", "sigmoid") else "logits"
    contract = replace(
        contract,
        outputs={"scores": scores},
        output=read.kind,
        activation=read.activation,
        output_scale=read.output_scale,
        logits_scale=read.scale,
    )
    named = _expose(graph, feature_maps, {scores: result})
    contract = replace(contract, logits=None if read.logits is None else read.logits.name)
    return _state(model, contract, named)


def expose_task(model: ir.Model, feature_maps: Sequence[FeatureMap], contract: Contract) -> Contract:
    """Make the outputs of a task and feature maps the outputs of a graph, in place, as `expose` does for scores.

    Args:
        model: the graph; its outputs are those of the contract's task, in the order of `ROLES`.
        feature_maps: one for each layer of the contract.
        contract: what else the file states.

    Raises:
        LayerError: a feature map holds numbers that cannot be turned into float32.
    """
    graph = model.graph
    _make_image_float(graph)
    roles = ROLES[contract.task]
    results = {role: make_float(graph, value) for role, value in zip(roles, graph.outputs, strict=True)}
    contract = replace(contract, outputs={role: role for role in roles})
    return _state(model, contract, _expose(graph, feature_maps, results))


def _expose(graph: ir.Graph, feature_maps: Sequence[FeatureMap], results: dict[str, ir.Value]) -> list[str]:
    """Make results, by name, and feature maps the outputs; return the names of the feature maps."""
    exposed: list[ir.Value] = []
    for feature_map in feature_maps:
        activations = make_float(graph, feature_map.value)
        if feature_map.tokens is not None:
            activations = _place_tokens(activations, feature_map.tokens)
        exposed.append(activations)
    results = {
        name: _append(result, "Identity", [result]) if result in exposed else result for name, result in results.items()
    }
    layers = {output_name(place): activations for place, activations in enumerate(exposed)}
    _rename(graph, {"image": graph.inputs[0], **layers, **results})
    graph.outputs[:] = [*results.values(), *exposed]
    for named in (graph.inputs[0], *graph.outputs):
        if named.shape is not None and len(named.shape) and not isinstance(named.shape[0], int):
            named.shape = ir.Shape(["batch", *list(named.shape)[1:]])
    return list(layers)


def _state(model: ir.Model, contract: Contract, outputs: Sequence[str]) -> Contract:
    """Write the contract, with the outputs of its layers, into the metadata, in place; return it."""
    layers = tuple(replace(layer, output=name) for layer, name in zip(contract.layers, outputs, strict=True))
    contract = replace(contract, layers=layers)
    for key in [key for key in model.metadata_props if key.startswith(PREFIX)]:
        del model.metadata_props[key]
    model.metadata_props.update(contract.to_metadata())
    return contract


def _rename(graph: ir.Graph, names: dict[str, ir.Value]) -> None:
    """Give values their names in the contract; whatever has one of these names already gets another."""
    others = [*graph.inputs, *graph.initializers.values(), *all_values(graph)]
    taken = {other.name for other in others} | set(names)
    for other in others:  # the scoring graph needs the names that begin with the prefix
        name = other.name or ""
        if name.startswith(PREFIX) or (name in names and other is not names[name]):
            number = 0
            while (unique := f"source.{name}.{number}") in taken:
                number += 1
            other.name = unique
            taken.add(unique)
    for name, named in names.items():
        named.name = name


def _append(
    after: ir.Value, op_type: str, inputs: list[ir.Value], dtype: ir.DataType | None = None, **attributes: int
) -> ir.Value:
    """Add a node behind the one that makes `after`, and return what it makes: `after`'s shape, and its type."""
    node = ir.node(op_type, inputs, attributes or None)
    made = node.outputs[0]
    made.shape = after.shape
    made.type = after.type if dtype is None else ir.TensorType(dtype)
    producer = after.producer()
    if producer is None or producer.graph is None:
        raise LayerError(f"{after.name!r} is made by no node; expected a tensor that the network computes")
    producer.graph.insert_after(producer, node)
    return made


def _constant(graph: ir.Graph, name: str, numbers: Any, dtype: Any = np.int64) -> ir.Value:
    """Add an initializer; a name that is taken gets a number."""
    unique, number = name, 1
    while unique in graph.initializers:
        number += 1
        unique = f"{name}.{number}"
    value = ir.Value(name=unique, const_value=ir.tensor(np.array(numbers, dtype), name=unique))
    graph.register_initializer(value)
    return value


def _scale_inputs(graph: ir.Graph, value: ir.Value, scale: tuple[float, int]) -> list[ir.Value]:
    """Return the scale and zero point that QuantizeLinear and DequantizeLinear take for the integers of a tensor."""
    dtype = np.int8 if value.dtype == ir.DataType.INT8 else np.uint8
    return [
        _constant(graph, f"{value.name}.scale", scale[0], np.float32),
        _constant(graph, f"{value.name}.zero_point", scale[1], dtype),
    ]


def _make_image_float(graph: ir.Graph) -> None:
    """Let the image be float32 where the graph takes another type, and convert it first thing.

    A quantized image is made by the scale that the graph itself reads it with; other bytes are rounded and cut off.
    """
    old = graph.inputs[0]
    if old.dtype in (ir.DataType.FLOAT, None):
        return
    image = ir.Value(name=f"{old.name}.float32", shape=old.shape, type=ir.TensorType(ir.DataType.FLOAT))
    scale = find_scale(old) if old.dtype in _INTEGERS else None
    nodes = []
    if scale is not None:
        nodes.append(ir.node("QuantizeLinear", [image, *_scale_inputs(graph, old, scale)]))
    else:
        if old.dtype in _INTEGERS:
            bounds = (0, 255) if old.dtype == ir.DataType.UINT8 else (-128, 127)
            limits = [_constant(graph, f"{old.name}.limit", bound, np.float32) for bound in bounds]
            nodes.append(ir.node("Round", [image]))
            nodes.append(ir.node("Clip", [nodes[-1].outputs[0], *limits]))
        nodes.append(ir.node("Cast", [nodes[-1].outputs[0] if nodes else image], {"to": int(old.dtype)}))
    made = nodes[-1].outputs[0]
    made.shape, made.type = old.shape, old.type
    graph.inputs[0] = image
    old.replace_all_uses_with(made)
    graph.insert_before(graph[0], nodes)


def make_float(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """Return a value as float32: cast, or dequantized by the scale that its operator used."""
    if value.dtype in (ir.DataType.FLOAT, None):
        return value
    if value.dtype not in _INTEGERS:
        return _append(value, "Cast", [value], ir.DataType.FLOAT, to=int(ir.DataType.FLOAT))
    scale = find_scale(value)
    if scale is None:
        raise LayerError(
            f"{value.name!r} holds quantized numbers whose scale is not known; expected float numbers: "
            "name another layer with --layer"
        )
    return _append(value, "DequantizeLinear", [value, *_scale_inputs(graph, value, scale)], ir.DataType.FLOAT)


def _flatten(graph: ir.Graph, scores: ir.Value) -> ir.Value:
    """Return scores [batch], [N] that lost a batch of 1, or [batch,N,1,1] as [batch,N]."""
    if scores.shape is None or len(scores.shape) == 2:
        return scores
    dims = list(scores.shape)
    known = [dim for dim in dims[1:] if dim != 1] or [1]
    if len(dims) == 1:  # a batch is free or 1
        known = [dims[0] if isinstance(dims[0], int) else 1]
        shape = _constant(graph, "ortcam.scores_shape", [-1, known[0]])
        flat = _append(scores, "Reshape", [scores, shape])
    else:
        flat = _append(scores, "Flatten", [scores], axis=1)
    flat.shape = ir.Shape([dims[0] if len(dims) > 1 or not isinstance(dims[0], int) else 1, known[0]])
    return flat


def _place_tokens(sequence: ir.Value, tokens: Tokens) -> ir.Value:
    """Put the patches of a sequence [batch,T,K] in rows: [batch,h,w,K]."""
    graph = sequence.graph
    if graph is None or sequence.shape is None:
        raise LayerError(f"{sequence.name!r} is in no graph; expected a tensor that the network computes")
    batch, _, channels = sequence.shape
    if tokens.first:
        bounds = [[tokens.first], [tokens.end], [1]]
        names = ("ortcam.first_patch", "ortcam.last_patch", "ortcam.token_axis")
        limits = [_constant(graph, name, numbers) for name, numbers in zip(names, bounds, strict=True)]
        sequence = _append(sequence, "Slice", [sequence, *limits])
        sequence.shape = ir.Shape([batch, tokens.rows * tokens.columns, channels])
    shape = _constant(graph, "ortcam.patch_rows", [0, tokens.rows, tokens.columns, -1])
    placed = _append(sequence, "Reshape", [sequence, shape])
    placed.shape = ir.Shape([batch, tokens.rows, tokens.columns, channels])
    return placed
