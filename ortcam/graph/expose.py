"""Making a target layer an output, under the names of the model-file contract."""

from __future__ import annotations

import onnx_ir as ir

from ortcam.graph.layers import all_values
from ortcam.model import PREFIX, Contract, OutputKind


def find_output_kind(model: ir.Model) -> OutputKind:
    """Return what the first output holds, from the operator that it ends in."""
    value: ir.Value | None = model.graph.outputs[0]
    while value is not None:
        producer = value.producer()
        if producer is None:
            break
        if producer.op_type == "Softmax":
            return "probabilities"
        if producer.op_type == "Sigmoid":
            return "sigmoid"
        if producer.op_type not in ("Identity", "Reshape", "Flatten", "Squeeze", "Cast"):
            break
        value = producer.inputs[0]
    return "logits"


def expose(model: ir.Model, value: ir.Value, contract: Contract) -> None:
    """Make `value` the output `activations`, in place, rename image and scores, and write the contract.

    The weights and the computation stay as they are; outputs other than the first are dropped.
    """
    graph = model.graph
    result = graph.outputs[0]
    if value is result:
        copy = ir.node("Identity", [result], name="ortcam.copy")
        copy.outputs[0].shape, copy.outputs[0].type = result.shape, result.type
        graph.append(copy)
        result = copy.outputs[0]
    names = {"image": graph.inputs[0], "activations": value}
    names["logits" if contract.output == "logits" else "probabilities"] = result
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
    graph.outputs[:] = [result, value]
    for named in names.values():
        if named.shape is not None and len(named.shape) and not isinstance(named.shape[0], int):
            named.shape = ir.Shape(["batch", *list(named.shape)[1:]])
    for key in [key for key in model.metadata_props if key.startswith(PREFIX)]:
        del model.metadata_props[key]
    model.metadata_props.update(contract.to_metadata())
