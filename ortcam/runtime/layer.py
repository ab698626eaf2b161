"""Choose another target layer of a model file: another exposed layer, or a tensor of its graph."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from ortcam.errors import LayerError, OptionError
from ortcam.model.cam_model import CamModel
from ortcam.model.contract import ACTIVATIONS, Stage

GRAPH_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
)  # raised for a graph that breaks ONNX's rules


def for_method(model: CamModel, layer: str | Sequence[str] | None, stages: int, at: str) -> CamModel:
    """Return the model with the layers that a method needs.

    Args:
        model: the model file.
        layer: the target layer, or a list of the target layer and the earlier stages; None for the first exposed layer.
        stages: the largest number of earlier stages that the method uses.
        at: the splice point of the method's first queries, as in `Change`.

    Raises:
        LayerError: a layer is unknown, or is not a feature map.
        OptionError: there are too many layers.
    """
    layers = [] if layer is None else [layer] if isinstance(layer, str) else list(layer)
    if len(layers) > 1 + stages:
        raise OptionError(f"got {len(layers)} layers; this method takes at most {1 + stages}, the target layer first")
    if layers:
        model = with_layer(model, layers[0])
    if stages:
        model = with_stages(model, stages, layers[1:])
    return with_sequence(model) if at == "layer" else model


def with_stages(model: CamModel, most: int, names: Sequence[str] = ()) -> CamModel:
    """Return the model with earlier stages, whose activations a run returns too.

    Args:
        model: the model file, with its target layer.
        most: the largest number of stages that are found; a model may have fewer, or none.
        names: the stages, as for `with_layer`; if there are none, the nearest stages of a larger size are found.

    Raises:
        LayerError: a name is unknown, is not a float32 feature map, or is not before the layer that is named before it.
    """
    from ortcam.graph.stages import comes_before, find_stage, find_stages

    image, layout = [dim or 0 for dim in model.usual_shape], model.contract.activations_layout
    proto = model.peek()
    if not names:
        return model.reading(find_stages(proto, image, layout)[:most])
    stages: list[Stage] = []
    later, later_value = model.contract.layer, ACTIVATIONS
    for name in names:
        stage = find_stage(proto, image, layout, _value_of(model, proto, name))
        if stage is None:
            raise LayerError(
                f"layer {name!r} of {model.name} is not a float32 feature map [batch,channels,height,width]; "
                "choose another layer (see: ortcam inspect)"
            )
        if not comes_before(proto.graph, stage.value, later_value):
            raise LayerError(
                f"layer {name!r} of {model.name} is not before {later!r}; expected the target layer, then earlier "
                "layers, from the last to the first: change the order"
            )
        stages.append(stage)
        later, later_value = name, stage.value
    return model.reading(stages)


def with_sequence(model: CamModel) -> CamModel:
    """Return the model whose runs also return the tokens of its target layer; the same model if it has none."""
    from ortcam.graph.tail import find_sequence

    sequence = find_sequence(model.peek().graph)
    return model if sequence is None else model.reading(sequence=sequence)


def _value_of(model: CamModel, proto: onnx.ModelProto, name: str) -> str:
    """Return the value that holds a layer, in the graph of the model with its target layer.

    Raises:
        LayerError: the layer is unknown.
    """
    exposed = model.find_exposed(name)
    if exposed is not None and exposed.output is not None:
        target = model.find_exposed(model.contract.layer)
        own = ACTIVATIONS if target is None or target.output is None else target.output
        return {own: ACTIVATIONS, ACTIVATIONS: own}.get(exposed.output, exposed.output)
    if any(name in node.output for node in proto.graph.node):
        return name
    from ortcam.runtime.edited import with_edited

    return with_edited(model, name).contract.value


def with_layer(model: CamModel, layer: str) -> CamModel:
    """Return the model with another target layer.

    An exposed layer takes no time. For any other tensor, onnx-ir reads the graph. Importing onnx-ir takes half a
    second, so it is imported only then.

    Args:
        model: the model file.
        layer: an exposed layer, a module or layer that the file names, a value of the graph (see: ortcam inspect), or
            ``auto`` for the best candidate.

    Raises:
        LayerError: the layer is unknown, or is not a feature map.
    """
    if model.exposes(layer):
        return model
    exposed = model.find_exposed(layer)
    if exposed is not None:
        return model.with_exposed(exposed)
    from ortcam.runtime.edited import with_edited

    return with_edited(model, layer)
