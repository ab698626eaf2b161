"""A source of a task before any plan: its outputs, its metadata, and what it returns for an image."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ortcam.errors import ExportError, OptionError, nearest
from ortcam.exporters.outputs import Output, list_outputs
from ortcam.exporters.sources import SourceOptions

_SIZE_INPUT = "orig_target_sizes"
CENTERFACE = [1, 2, 2, 10]  # channels of its maps: scores, sizes and offsets, five landmarks
_READ_AS_DETECTORS = ("detect", "segment", "pose", "obb")  # of ultralytics


@dataclass(frozen=True)
class RawSource:
    """A source's graph with the outputs of its own.

    Attributes:
        name: the source's name in messages.
        proto: the graph.
        outputs: its outputs.
        size: (height, width) of the input in pixels.
        measure: runs the graph on one random image, and returns tensors by name; a tensor may be inside the graph.
        classes: the number of class names that the user or the file states; None if unknown.
    """

    name: str
    proto: onnx.ModelProto
    outputs: tuple[Output, ...]
    size: tuple[int, int]
    measure: Callable[[Sequence[str]], dict[str, NDArray[Any]]]
    classes: int | None = None

    @property
    def listed(self) -> str:
        """The outputs with their shapes, for messages."""
        return list_outputs(self.outputs)

    def check_name(self, name: str, option: str) -> None:
        """Refuse a name that no tensor of the graph has.

        Raises:
            OptionError: the graph has no such tensor.
        """
        made = [output for node in self.proto.graph.node for output in node.output if output]
        if name not in made:
            own = [output.name for output in self.outputs]
            raise OptionError(
                f"{option} names {name!r}, which {self.name} lacks; expected an output ({', '.join(own[:8])}) or "
                f"another tensor of the graph{nearest(name, [*own, *made])}"
            )


@dataclass(frozen=True)
class Ultralytics:
    """The metadata that ultralytics writes into a file.

    Attributes:
        task: ``detect``, ``segment``, ``pose``, ``classify``, ``obb``, ...; YOLOv5 writes none, and is ``detect``.
        labels: the class names by index.
        size: (height, width) of the input; None if the file does not state it.
    """

    task: str
    labels: tuple[str, ...]
    size: tuple[int, int] | None

    @classmethod
    def read(cls, proto: onnx.ModelProto) -> Ultralytics | None:
        """Read the entries ``names``, ``stride``, ``task`` and ``imgsz``; None without the first two."""
        entries = {entry.key: entry.value for entry in proto.metadata_props}
        names = _literal(entries.get("names", ""))
        if "stride" not in entries or not names or not isinstance(names, dict | list):
            return None
        pairs = dict(enumerate(names)) if isinstance(names, list) else {int(key): text for key, text in names.items()}
        if sorted(pairs) != list(range(len(pairs))):
            return None
        sides = _literal(entries.get("imgsz", ""))
        sides = [sides, sides] if isinstance(sides, int) else sides
        whole = isinstance(sides, list | tuple) and len(sides) == 2 and all(type(side) is int for side in sides)
        labels = tuple(str(pairs[index]) for index in range(len(pairs)))
        return cls(entries.get("task", "detect"), labels, (sides[0], sides[1]) if whole else None)


def is_task(proto: onnx.ModelProto, options: SourceOptions) -> bool:
    """Return whether a graph is to be read for a task.

    The user says so, or metadata or outputs hint at it: [B,N,K], [B,A,h,w,K], or the four maps of a CenterFace.
    """
    if options.task.task != "auto":
        return options.task.is_stated
    metadata = Ultralytics.read(proto)
    if metadata is not None and metadata.task not in _READ_AS_DETECTORS:
        return False
    if metadata is None and any(value.name == _SIZE_INPUT for value in proto.graph.input):
        return options.output is None
    if metadata is not None and not all(value.type.tensor_type.HasField("shape") for value in proto.graph.output):
        return options.output is None
    ranks = [len(value.type.tensor_type.shape.dim) for value in proto.graph.output]
    is_table = 3 in ranks and (metadata is not None or min(ranks) >= 3)
    channels = [value.type.tensor_type.shape.dim[1].dim_value for value in proto.graph.output] if min(ranks) > 1 else []
    is_centerface = set(ranks) == {4} and sorted(channels) == CENTERFACE
    return (is_table or set(ranks) == {5} or is_centerface) and options.output is None


def fill_in_size(proto: onnx.ModelProto, size: tuple[int, int] | None) -> None:
    """Replace the second input of RT-DETR and its kin, the size of the photo, by the size of the input, in place.

    Args:
        proto: the graph.
        size: (height, width) of the input; None if the graph states it.
    """
    inputs = {value.name: value for value in proto.graph.input}
    if _SIZE_INPUT not in inputs or len(inputs) != 2:
        return
    (image,) = (value for name, value in inputs.items() if name != _SIZE_INPUT)
    dims = [dim.dim_value for dim in image.type.tensor_type.shape.dim]
    height, width = size or tuple(dims[2:4]) or (0, 0)
    if not height or not width:
        raise ExportError(f"the input has any size {dims}; give the size with --input-size")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(inputs[_SIZE_INPUT].type.tensor_type.elem_type)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([[width, height]], dtype), _SIZE_INPUT))
    proto.graph.input.remove(inputs[_SIZE_INPUT])


def _literal(text: str) -> Any:
    """Return a JSON value or a Python literal; None for other text."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return None
