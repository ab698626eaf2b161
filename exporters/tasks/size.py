"""Free the batch and the size of an image input that a file fixes, although its graph works without them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ortcam.errors import ModelError
from ortcam.exporters.verify import TOLERANCE, relative_error
from ortcam.runtime.session import CPU, RUNTIME_ERRORS, create_session


def free_input(proto: onnx.ModelProto, size: tuple[int, int] | None, folder: Path, name: str) -> list[str]:
    """Free a fixed batch of more than 1, and a size other than the user's, in place; return notices.

    The graph stays as it is if it returns other results for the pictures of a batch alone, or if its maps do not grow
    with the input.

    Args:
        proto: the graph.
        size: (height, width) that the user wants; None to keep that of the file.
        folder: where external weights are.
        name: the source's name in messages.
    """
    weights = {weight.name for weight in proto.graph.initializer}
    images = [value for value in proto.graph.input if value.name not in weights]
    dims = [dim.dim_value for dim in images[0].type.tensor_type.shape.dim] if len(images) == 1 else []
    kind = images[0].type.tensor_type.elem_type if images else 0
    if (
        len(dims) != 4
        or not all(dims)
        or kind != onnx.TensorProto.FLOAT
        or not (dims[1] in (1, 3) or dims[3] in (1, 3))
    ):
        return []
    places = (2, 3) if dims[1] in (1, 3) else (1, 2)
    old = (dims[places[0]], dims[places[1]])
    new = size or old
    if dims[0] == 1 and new == old:
        return []
    freed = onnx.ModelProto.FromString(proto.SerializeToString())
    _set_shape(freed, images[0].name, [0, *dims[1:]])
    wanted = list(dims)
    wanted[places[0]], wanted[places[1]] = new
    pictures = np.random.default_rng(3).standard_normal((max(dims[0], 2), *dims[1:])).astype(np.float32)
    larger = np.random.default_rng(3).standard_normal((1, *wanted[1:])).astype(np.float32)
    together = _run(proto, pictures[: dims[0]], folder, name)
    alone = [_run(freed, picture[None], folder, name) for picture in pictures[:2]]
    _set_shape(freed, images[0].name, [0 if dims[0] > 1 else 1, *wanted[1:]])
    grown = _run(freed, larger, folder, name)
    if together is None or grown is None or any(one is None for one in alone):
        return []
    if not _agree(together, [one for one in alone if one is not None]) or not _grows(together, grown, old, new):
        return []
    proto.CopyFrom(freed)
    batch = [f"the batch of {dims[0]} that {name} fixes was made free"] if dims[0] > 1 else []
    sides = [f"{name} states an input of {old[0]}x{old[1]}; its graph takes {new[0]}x{new[1]} as well"]
    return batch + (sides if new != old else [])


def _set_shape(proto: onnx.ModelProto, image: str, dims: Sequence[int]) -> None:
    """Set the dimensions of the image, 0 for a free one, in place, and drop the shapes of all other tensors."""
    for value in (*proto.graph.output, *proto.graph.value_info):
        value.type.tensor_type.ClearField("shape")
    del proto.graph.value_info[:]
    for value in proto.graph.input:
        if value.name == image:
            value.type.tensor_type.ClearField("shape")
            for dim in dims:
                entry = value.type.tensor_type.shape.dim.add()
                if dim:
                    entry.dim_value = dim
                else:
                    entry.dim_param = "batch"


def _run(proto: onnx.ModelProto, pictures: NDArray[np.float32], folder: Path, name: str) -> list[NDArray[Any]] | None:
    """Return the results for a batch; None if the graph does not run."""
    weights = {weight.name for weight in proto.graph.initializer}
    (image,) = (value.name for value in proto.graph.input if value.name not in weights)
    try:
        session = create_session(proto, CPU, name, folder, log_severity=4)
        results: list[NDArray[Any]] = session.run(None, {image: pictures})
    except RUNTIME_ERRORS + (ModelError,):  # noqa: RUF005 (mypy reads the sum, not the star)
        return None
    return results


def _agree(together: Sequence[NDArray[Any]], alone: Sequence[Sequence[NDArray[Any]]]) -> bool:
    """Return whether each picture alone has the results that it has in its batch."""
    for place, one in enumerate(alone[: len(together[0])]):
        for whole, own in zip(together, one, strict=True):
            if whole.shape[1:] != own.shape[1:] or relative_error(own[0], whole[place]) > TOLERANCE:
                return False
    return True


def _grows(
    before: Sequence[NDArray[Any]], after: Sequence[NDArray[Any]], old: tuple[int, int], new: tuple[int, int]
) -> bool:
    """Return whether all results are maps [B,C,h,w] that grow with the input, or the size stays."""
    if old == new:
        return True
    return all(
        small.ndim == large.ndim == 4
        and small.shape[1] == large.shape[1]
        and all(small.shape[2 + axis] * new[axis] == large.shape[2 + axis] * old[axis] for axis in (0, 1))
        for small, large in zip(before, after, strict=True)
    )
