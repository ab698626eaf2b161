"""Write a model repository for NVIDIA's Triton Inference Server around a packed explainer.

    DIR/NAME/config.pbtxt, DIR/NAME/labels.txt, DIR/NAME/1/model.onnx

Source: Triton's "Model Configuration" and "Model Repository" documentation, and its model_config.proto.
"""

from __future__ import annotations

import re
import shutil
from os import PathLike
from pathlib import Path

import onnx

from ortcam.core.files import only, replace_directory
from ortcam.deploy.facts import parse_facts
from ortcam.errors import OptionError, OutputError
from ortcam.model.source import read_proto

_FILES = {"config.pbtxt", "labels.txt", "1"}
_TYPES: dict[int, str] = {
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.FLOAT: "TYPE_FP32",
}


def write_triton(
    explainer: str | PathLike[str], repository: str | PathLike[str], name: str | None = None, tensorrt: bool = False
) -> Path:
    """Write the folder of one model into a model repository.

    Args:
        explainer: a packed explainer.
        repository: the folder that Triton is started with; other models in it stay.
        name: the name of the model; None for the file's name, with dashes for invalid characters.
        tensorrt: let ONNX Runtime use TensorRT, in float16.

    Returns:
        The model's folder.

    Raises:
        ModelError: the file is not a packed explainer.
        OptionError: the name is invalid.
        OutputError: the folder cannot be written, or holds other files.
    """
    explainer = Path(explainer)
    proto = read_proto(explainer)
    contract, facts = parse_facts({entry.key: entry.value for entry in proto.metadata_props}, explainer)
    name = re.sub(r"[^\w-]+", "-", explainer.stem, flags=re.ASCII).strip("-_") or "explainer" if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise OptionError(f"model name is {name!r}; expected letters, digits, dots, dashes and underscores")
    folder = Path(repository) / name
    more = {one.name: "optional: true" for one in proto.graph.initializer}
    if contract.labels is not None and contract.classifies:
        more[facts["scores"]] = 'label_filename: "labels.txt"'
    tensors = {"input": proto.graph.input, "output": proto.graph.output}
    lines = [f'name: "{name}"', 'backend: "onnxruntime"', "max_batch_size: 0  # a request has one photo"]
    for kind, entries in tensors.items():
        lines += [f"{kind} [", ",\n".join(_entry(one, more.get(one.name)) for one in entries), "]"]
    if tensorrt:
        lines.append(_TENSORRT)
    with replace_directory(folder, only(lambda path: path.name in _FILES)) as unfinished:
        try:
            (unfinished / "1").mkdir()
            shutil.copyfile(explainer, unfinished / "1" / "model.onnx")
            if contract.labels is not None:
                (unfinished / "labels.txt").write_text("\n".join(contract.labels) + "\n", encoding="utf-8")
            (unfinished / "config.pbtxt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    return folder


_TENSORRT = """optimization {
  execution_accelerators {
    gpu_execution_accelerator [
      {
        name: "tensorrt"
        parameters { key: "precision_mode" value: "FP16" }
        parameters { key: "trt_engine_cache_enable" value: "true" }
      }
    ]
  }
}"""


def _entry(tensor: onnx.ValueInfoProto, more: str | None) -> str:
    """Return the entry of an input or output; a free dimension is -1."""
    kind = tensor.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim]
    fields = [
        f'name: "{tensor.name}"',
        f"data_type: {_TYPES[kind.elem_type]}",
        f"dims: {dims}",
        *([more] if more else []),
    ]
    return "  { " + "  ".join(fields) + " }"
