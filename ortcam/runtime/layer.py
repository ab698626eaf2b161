"""Another target layer of a model file than its first: one that the file exposes, or one of its graph."""

from __future__ import annotations

from ortcam.model.cam_model import CamModel

GRAPH_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
)  # of a graph that breaks ONNX's rules


def with_layer(model: CamModel, layer: str) -> CamModel:
    """Return the model with another target layer.

    A layer that the file exposes takes no time. For any other tensor onnx-ir reads the graph, which takes half a
    second to import, so it is imported only then.

    Args:
        model: the model file.
        layer: a layer that the file exposes, a module or layer that it names, the name of a value in the graph (see:
            ortcam inspect), or ``auto`` for the best candidate.

    Raises:
        LayerError: there is no such layer, or it is no feature map.
    """
    if model.exposes(layer):
        return model
    exposed = model.find_exposed(layer)
    if exposed is not None:
        return model.with_exposed(exposed)
    from ortcam.runtime.edited import with_edited

    return with_edited(model, layer)
