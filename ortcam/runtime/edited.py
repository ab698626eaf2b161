"""Expose a tensor of a model file's graph as its target layer when the file is loaded."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import onnx
import onnx_ir as ir

from ortcam.errors import ModelError, one_line
from ortcam.graph.ends import Scores
from ortcam.graph.expose import expose, expose_task
from ortcam.graph.layers import Reading, all_values, find_layer, module_outputs
from ortcam.model.cam_model import CamModel
from ortcam.model.contract import ROLES, Contract, ExposedLayer
from ortcam.runtime.layer import GRAPH_ERRORS
from ortcam.runtime.shapes import complete_shapes


def with_edited(model: CamModel, layer: str) -> CamModel:
    """Return the model with a tensor of its graph as target layer.

    Args:
        model: the model file.
        layer: as for `ortcam.runtime.layer.with_layer`.

    Raises:
        LayerError: the layer is unknown, or is not a feature map.
    """
    size = tuple(dim for dim in model.usual_shape if dim is not None)
    edit = partial(
        _expose, contract=model.stated, layer=layer, name=model.name, folder=model.external_data_directory,
        input_shape=size if len(size) == 3 else None,
    )  # fmt: skip
    proto, contract = edit(model.take_file())
    return model.with_layer(contract, proto, partial(_first, edit))


def _first(edit: partial[tuple[onnx.ModelProto, Contract]], proto: onnx.ModelProto) -> onnx.ModelProto:
    return edit(proto)[0]


def _expose(
    proto: onnx.ModelProto,
    contract: Contract,
    layer: str,
    name: str,
    folder: Path,
    input_shape: tuple[int, ...] | None,
) -> tuple[onnx.ModelProto, Contract]:
    """Return the model with the layer as its output `activations`, and its new contract."""
    try:
        model = ir.from_proto(proto)
        graph = model.graph
        measured = complete_shapes(model, folder, input_shape)
        values = {value.name: value for value in all_values(graph)}
        exposed = [(own, values[own.output]) for own in contract.layers if own.output in values]
        layers = module_outputs(graph) | {name: value for own, value in exposed for name in (own.name, own.value)}
        feature_map, found = find_layer(model, layer, name, Reading(contract.image_layout), layers)
        graph.outputs[:] = list(graph.outputs)[: len(ROLES[contract.task])]
        changed = replace(contract, layers=(ExposedLayer(found, feature_map.value.name or "", feature_map.layout),))
        if contract.classifies:
            # The export settled the kind of the scores; the graph alone may not show it.
            logits = next((value for value in all_values(graph) if value.name == contract.logits), None)
            scores = Scores(contract.output, contract.activation, logits, contract.logits_scale, contract.output_scale)
            changed = expose(model, [feature_map], changed, scores)
        else:
            changed = expose_task(model, [feature_map], changed)
        for value in measured:  # measured with one image; ONNX Runtime would optimise by them for every batch
            if value is not feature_map.value:
                value.shape = None
        result = ir.to_proto(model)
    except GRAPH_ERRORS as error:
        raise ModelError(f"{name} has a graph that cannot be read or edited: {one_line(error)}") from error
    onnx.helper.set_model_props(
        result, {entry.key: entry.value for entry in result.metadata_props} | changed.to_metadata()
    )
    return result, changed
