"""Write a model repository for NVIDIA's Triton Inference Server around a packed explainer.

    DIR/NAME/config.pbtxt, DIR/NAME/labels.txt, DIR/NAME/1/model.onnx

Source: Triton's "Model Configuration" and "Model Repository" documentation, and its model_config.proto.
"""

from __future__ import annotations

import re
import shutil
from os import PathLike
from pathlib import Path
from typing import Any

from ortcam.core.files import only, replace_directory
from ortcam.deploy.facts import parse_facts
from ortcam.errors import OptionError, OutputError
from ortcam.model.contract import Layout
from ortcam.model.source import read_proto

_FILES = {"config.pbtxt", "labels.txt", "1"}


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
    states_error = any(output.name == "error" for output in proto.graph.output)  # files of older versions do not
    name = re.sub(r"[^\w-]+", "-", explainer.stem, flags=re.ASCII).strip("-_") or "explainer" if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise OptionError(f"model name is {name!r}; expected letters, digits, dots, dashes and underscores")
    folder = Path(repository) / name
    dims = [-1, -1, 3] if facts["raw"] else [1, *facts["input_shape"]]
    tensors = {
        "input": [
            ("image", "TYPE_UINT8" if facts["raw"] else "TYPE_FP32", dims, ""),
            ("target", "TYPE_INT64", [-1], "" if facts["default_target"] is None else "optional: true"),
        ],
        "output": [
            (facts["scores"], "TYPE_FP32", [-1], "" if contract.labels is None else 'label_filename: "labels.txt"'),
            ("target_class", "TYPE_INT64", [-1], ""),
            ("saliency", "TYPE_FP32", [-1, *_map_size(contract.image_layout, facts)], ""),
            ("scored", "TYPE_INT64", [1], ""),
            *([("error", "TYPE_FP32", [-1, 3], "")] if states_error else []),
        ],
    }
    lines = [f'name: "{name}"', 'backend: "onnxruntime"', "max_batch_size: 0  # a request has one photo"]
    for kind, entries in tensors.items():
        lines += [f"{kind} [", ",\n".join(_entry(*entry) for entry in entries), "]"]
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


def _map_size(layout: Layout, facts: dict[str, Any]) -> list[int]:
    """Return the height and width of the maps; -1 if they are those of the photo."""
    shape = facts["input_shape"]
    return [-1, -1] if facts["raw"] else shape[1:] if layout == "NCHW" else shape[:2]


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


def _entry(name: str, dtype: str, dims: list[int], more: str) -> str:
    fields = [f'name: "{name}"', f"data_type: {dtype}", f"dims: {dims}", *([more] if more else [])]
    return "  { " + "  ".join(fields) + " }"
