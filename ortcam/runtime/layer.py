"""Choose another target layer of a model file: another exposed layer, or a tensor of its graph."""

from __future__ import annotations

from collections.abc import Sequence

from ortcam.errors import LayerError
from ortcam.model.cam_model import CamModel
from ortcam.model.contract import ACTIVATIONS

GRAPH_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
)  # raised for a graph that breaks ONNX's rules


def with_stages(model: CamModel, count: int, names: Sequence[str] = ()) -> CamModel:
    """Return the model with earlier stages, whose activations a run returns too.

    Args:
        model: the model file, with its target layer.
        count: the number of stages.
        names: the stages, as for `with_layer`; if there are none, the nearest stages of a larger size are found.

    Raises:
        LayerError: there are fewer stages, or a name is not a stage.
    """
    from ortcam.graph.stages import find_stage, find_stages

    image, layout = [dim or 0 for dim in model.usual_shape], model.contract.activations_layout
    values = [_value_of(model, name) for name in names]
    proto = model.take_proto()
    found = [find_stage(proto, image, layout, value) for value in values] or find_stages(proto, image, layout)[:count]
    stages = [stage for stage in found if stage is not None]
    for name, stage in zip(names, found, strict=False):
        if stage is None:
            raise LayerError(
                f"layer {name!r} of {model.name} is not a float32 feature map [batch,channels,height,width]"
            )
    if len(stages) != count:
        raise LayerError(
            f"{model.name} has {len(stages)} feature maps before its target layer that are larger and lead to all "
            f"scores; expected {count}: choose a later layer (see: ortcam inspect), or another method"
        )
    return model.with_stages(stages, proto)


def _value_of(model: CamModel, name: str) -> str:
    """Return the value that holds a layer, in the graph of the model with its target layer.

    Raises:
        LayerError: the layer is unknown.
    """
    exposed = model.find_exposed(name)
    if exposed is not None and exposed.output is not None:
        target = model.find_exposed(model.contract.layer)
        own = ACTIVATIONS if target is None or target.output is None else target.output
        return {own: ACTIVATIONS, ACTIVATIONS: own}.get(exposed.output, exposed.output)
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
