"""Read the input of a classifier's graph: the image."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ortcam.core.convention import Floats
from ortcam.errors import ExportError
from ortcam.exporters.outputs import ONLY_CLASSIFIERS
from ortcam.exporters.sources import SourceOptions
from ortcam.graph.maps import ELEMENTWISE, find_scale
from ortcam.model.contract import Layout

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
}


@dataclass(frozen=True)
class Numbers:
    """How the numbers of an input or output are stored.

    Attributes:
        dtype: their type.
        scale, zero_point: a quantized number q stands for (q - zero_point) * scale.
    """

    dtype: Any = np.float32
    scale: float | None = None
    zero_point: int = 0

    @classmethod
    def of(cls, value: ir.Value) -> Numbers:
        """Read the numbers of an input or output from its graph."""
        dtype = np.float32 if value.dtype is None else value.dtype.numpy()
        found = find_scale(value) if np.issubdtype(dtype, np.integer) else None
        return cls(dtype) if found is None else cls(dtype, *found)

    def encode(self, values: Floats) -> NDArray[Any]:
        """Turn float32 values into these numbers, as the exported graph does: round half to even, then clip."""
        if not np.issubdtype(self.dtype, np.integer):
            return values.astype(self.dtype)
        limits = np.iinfo(self.dtype)
        scaled = values if self.scale is None else values / np.float32(self.scale)
        encoded: NDArray[Any] = np.clip(np.rint(scaled) + self.zero_point, limits.min, limits.max).astype(self.dtype)
        return encoded

    def decode(self, numbers: NDArray[Any]) -> Floats:
        """Turn these numbers into float32 values."""
        values: Floats = numbers.astype(np.float32)
        return values if self.scale is None else (values - self.zero_point) * np.float32(self.scale)


@dataclass(frozen=True)
class ImageInput:
    """The image input of a graph.

    Attributes:
        name: its name.
        layout: the order of its dimensions.
        channels, height, width: its dimensions.
        batch: the batch size when the graph fixes one (at 1), else None.
        numbers: how its values are stored.
    """

    name: str
    layout: Layout
    channels: int
    height: int
    width: int
    batch: int | None
    numbers: Numbers

    @property
    def shape(self) -> tuple[int, int, int]:
        """The dimensions without the batch, in the order of `layout`."""
        if self.layout == "NCHW":
            return self.channels, self.height, self.width
        return self.height, self.width, self.channels

    @property
    def takes_bytes(self) -> bool:
        """Whether the values are those of a photo, 0 to 255."""
        return self.numbers.dtype == np.uint8 and self.numbers.scale is None

    def random(self, generator: np.random.Generator, batch: int) -> Floats:
        """Return random inputs [batch,...] as float32: standard normal, or bytes."""
        if self.takes_bytes:
            return generator.integers(0, 256, (batch, *self.shape)).astype(np.float32)
        return generator.standard_normal((batch, *self.shape)).astype(np.float32)


def read_input(model: ir.Model, session: Any, options: SourceOptions, name: str) -> ImageInput:
    """Return the one image input of a graph.

    Args:
        model: the graph.
        session: a session of it, which knows types and shapes.
        options: the user's options, for size and layout.
        name: the model's name in messages.

    Raises:
        ExportError: the graph has no such input, or its size must be given.
    """
    inputs = session.get_inputs()
    if len(inputs) != 1:
        shown = {value.name: f"{_type_name(value)} {value.shape}" for value in inputs}
        raise ExportError(explain_inputs(name, shown))
    entry, shape = inputs[0], [dim if isinstance(dim, int) and dim > 0 else None for dim in inputs[0].shape or ()]
    if len(shape) != 4 or entry.type not in _DTYPES:
        known = shape or "unknown"
        unbatched = len(shape) == 3 and (shape[0] in (1, 3) or shape[2] in (1, 3))
        hint = " (export the model for a batch of images, not for one without its batch)" if unbatched else ""
        raise ExportError(
            f"{name} takes {entry.name!r}, {_type_name(entry)} of shape {known}; expected an image, float32, float16 "
            f"or uint8, [batch,channels,height,width] or [batch,height,width,channels]{hint}: {ONLY_CLASSIFIERS}"
        )
    value = next(value for value in model.graph.inputs if value.name == entry.name)
    layout, channels = _read_channels(value, shape, options.input_layout, name)
    places = (2, 3) if layout == "NCHW" else (1, 2)
    fixed = (shape[places[0]], shape[places[1]])
    height, width = options.input_size or fixed
    if height is None or width is None:
        raise ExportError(f"{name} has an input of any size {shape}; give the size with --input-size")
    if (fixed[0] or height, fixed[1] or width) != (height, width):
        raise ExportError(
            f"{name} takes inputs of {fixed[0] or 'any'}x{fixed[1] or 'any'} only; --input-size {height}x{width} "
            "does not fit"
        )
    if shape[0] not in (None, 1):
        raise ExportError(f"{name} fixes a batch of {shape[0]}; expected a free batch or a batch of 1")
    numbers = Numbers.of(value)
    return ImageInput(entry.name, layout, channels, height, width, shape[0], numbers)


def explain_inputs(name: str, inputs: Mapping[str, str]) -> str:
    """Return the message for a model without exactly one input; `inputs` maps the names of its inputs to shapes."""
    shown = ", ".join(f"{key!r} {what}".rstrip() for key, what in list(inputs.items())[:5])
    if not inputs:
        return f"{name} takes no input; expected one, the image: {ONLY_CLASSIFIERS}"
    hint = " (or, in the file, turn their inputs into initializers)" if name.lower().endswith(".onnx") else ""
    return (
        f"{name} takes {len(inputs)} inputs: {shown}; expected one, the image: export a model around it that takes the "
        f"image alone and fills in the others with constants{hint}"
    )


def required_arguments(function: Any) -> dict[str, str]:
    """Return the required arguments of a function, as `explain_inputs` takes them."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some functions of C code have no signature
        return {}
    return {entry.name: "" for entry in parameters if entry.default is entry.empty and entry.kind not in variadic}


def _type_name(value: Any) -> str:
    kind: str = value.type.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(kind, kind)


def _read_channels(image: ir.Value, shape: list[int | None], given: Layout | None, name: str) -> tuple[Layout, int]:
    """Return the layout of the image and the number of its channels."""
    guessed, read = _follow_to_convolution(image)
    layout = given
    if layout is None:
        first, last = shape[1] in (1, 3), shape[3] in (1, 3)
        by_shape: Layout | None = "NCHW" if first else "NHWC" if last else None
        layout = by_shape if first != last else guessed or by_shape
    if layout is None and None not in shape[1:]:
        raise ExportError(f"{name} takes an input {shape}; expected an image with 1 or 3 channels: {ONLY_CLASSIFIERS}")
    if layout is None:
        raise ExportError(
            f"{name} takes an input {shape} with an unknown channel dimension; expected 1 or 3 channels: "
            "give --input-layout NCHW or NHWC"
        )
    channels = shape[1 if layout == "NCHW" else 3] or read or 3
    if channels not in (1, 3):
        raise ExportError(
            f"{name} takes an input with {channels} channels in {shape}; expected 1 or 3, as {layout}: "
            f"{ONLY_CLASSIFIERS}"
        )
    return layout, channels


def _follow_to_convolution(image: ir.Value) -> tuple[Layout | None, int | None]:
    """Return the layout and the channels that the first convolution behind the image expects."""
    waiting: list[tuple[ir.Value, Layout]] = [(image, "NCHW")]
    seen: set[ir.Value] = set()
    while waiting:
        value, layout = waiting.pop(0)
        if value in seen:
            continue
        seen.add(value)
        for use in value.uses():
            node = use.node
            weights = node.inputs[1] if node.op_type == "Conv" and use.idx == 0 else None
            if weights is not None:
                dims = weights.shape
                groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
                count = dims[1] if dims is not None and len(dims) == 4 else None
                return layout, count * groups if isinstance(count, int) else None
            if node.op_type == "Transpose" and "perm" in node.attributes:
                if list(node.attributes["perm"].as_ints()) == [0, 3, 1, 2]:
                    waiting.append((node.outputs[0], "NHWC"))
            elif node.op_type in ELEMENTWISE | {"Pad"}:
                waiting.append((node.outputs[0], layout))
    return None, None
