"""What the protocol says of the server and its models."""

from __future__ import annotations

from typing import Any

from ortcam.serving.questions import BOXED, OUTPUTS
from ortcam.serving.service import VERSION
from ortcam.serving.worker import Worker

EXTENSIONS = ("binary_tensor_data",)
PLATFORM = "ortcam_onnxruntime"


def describe_model(name: str, worker: Worker) -> dict[str, Any]:
    """Return the metadata of a model as the protocol has it. The shape -1 stands for any number."""
    facts = worker.facts
    inputs = [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    if "photos" not in facts.takes:
        inputs = [{"name": "image", "datatype": "FP32", "shape": [-1, *(dim or -1 for dim in facts.input_shape)]}]
    if facts.task == "embed":
        inputs.append({"name": "like", "datatype": "BYTES", "shape": [-1]})
    else:
        inputs.append({"name": "target", "datatype": "BYTES" if facts.has_labels else "INT64", "shape": [-1]})
    if facts.task == "detect":
        inputs.append({"name": "box", "datatype": "FP32", "shape": [-1, 4]})
    outputs = [
        {"name": output, "datatype": datatype, "shape": [dim if isinstance(dim, int) else -1 for dim in shape]}
        for output, (datatype, shape) in OUTPUTS.items()
        if output != "target_box" or facts.task in BOXED
    ]
    return {"name": name, "versions": [VERSION], "platform": PLATFORM, "inputs": inputs, "outputs": outputs}
