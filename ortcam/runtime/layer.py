"""Choose another target layer of a model file: another exposed layer, or a tensor of its graph."""

from __future__ import annotations

from ortcam.model.cam_model import CamModel

GRAPH_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
)  # raised for a graph that breaks ONNX's rules


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
