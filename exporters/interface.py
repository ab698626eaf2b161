"""What goes into a classifier's graph and what comes out of it: the image, the class scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from ortcam.convention import Floats
from ortcam.errors import ExportError, OptionError, nearest
from ortcam.exporters.sources import SourceOptions
from ortcam.graph.ends import read_scores
from ortcam.graph.layers import all_values
from ortcam.graph.maps import ELEMENTWISE, find_scale
from ortcam.model import Layout

ONLY_CLASSIFIERS = "ortcam explains image classifiers"
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
        scale, zero_point: what the numbers of a quantized tensor stand for: (q - zero_point) * scale.
    """

    dtype: Any = np.float32
    scale: float | None = None
    zero_point: int = 0

    @classmethod
    def of(cls, value: ir.Value) -> Numbers:
        """Read them off the graph that an input or output belongs to."""
        dtype = np.float32 if value.dtype is None else value.dtype.numpy()
        found = find_scale(value) if np.issubdtype(dtype, np.integer) else None
        return cls(dtype) if found is None else cls(dtype, *found)

    def encode(self, values: Floats) -> NDArray[Any]:
        """Turn float32 values into these numbers, as the exported graph does it: rounded half to even, cut off."""
        if not np.issubdtype(self.dtype, np.integer):
            return values.astype(self.dtype)
        limits = np.iinfo(self.dtype)
        scaled = values if self.scale is None else values / np.float32(self.scale)
        encoded: NDArray[Any] = np.clip(np.rint(scaled) + self.zero_point, limits.min, limits.max).astype(self.dtype)
        return encoded

    def decode(self, numbers: NDArray[Any]) -> Floats:
        """Turn numbers into float32 values."""
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

    def shape_model(self, model: ir.Model, batch: int | str) -> None:
        """Make the image the only input, with this batch; other shapes carry the file's batch and are forgotten."""
        entry = next(value for value in model.graph.inputs if value.name == self.name)
        entry.shape = ir.Shape([batch, *self.shape])
        model.graph.inputs[:] = [entry]
        for value in all_values(model.graph):
            value.shape = None


def read_input(model: ir.Model, session: Any, options: SourceOptions, name: str) -> ImageInput:
    """Return the one image input of a graph.

    Args:
        model: the graph.
        session: a session of it, which knows types and shapes.
        options: what the user said of size and layout.
        name: what messages call the model.

    Raises:
        ExportError: there is no such input, or its size must be given.
    """
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise ExportError(
            f"{name} has the inputs {[value.name for value in inputs][:5]}; expected one, the image: {ONLY_CLASSIFIERS}"
        )
    entry, shape = inputs[0], [dim if isinstance(dim, int) and dim > 0 else None for dim in inputs[0].shape or ()]
    if len(shape) != 4 or entry.type not in _DTYPES:
        kind, known = entry.type.removeprefix("tensor(").removesuffix(")"), shape or "unknown"
        raise ExportError(
            f"{name} takes {entry.name!r}, {kind} of shape {known}; expected an image, float32, float16 or uint8, "
            f"[batch,channels,height,width] or [batch,height,width,channels]: {ONLY_CLASSIFIERS}"
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
            f"{name} takes an input {shape} whose channels cannot be told; expected 1 or 3 of them: "
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
    """Return the layout and the channels that the first convolution behind the image wants."""
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


def choose_scores(model: ir.Model, session: Any, wanted: str | None, name: str) -> tuple[str, str | None]:
    """Make the class scores the only output, in place; return its name and what the user should know.

    Args:
        model: the graph.
        session: a session of it, which knows the shapes.
        wanted: the output that the user named; None for the first of the right shape, but one that ends in a softmax
            or a sigmoid before others.
        name: what messages call the model.

    Raises:
        OptionError: no output has that name.
        ExportError: no output can be class scores.
    """
    outputs = {value.name: value for value in session.get_outputs()}
    if wanted is not None and wanted not in outputs:
        raise OptionError(f"{name} has no output {wanted!r}; expected {', '.join(outputs)}{nearest(wanted, outputs)}")
    fitting = [key for key, value in outputs.items() if _may_be_scores(value) and wanted in (None, key)]
    if not fitting:
        shown = "; ".join(
            f"{key} {value.type} {value.shape}" for key, value in list(outputs.items())[:4] if wanted in (None, key)
        )
        raise ExportError(f"{name} returns {shown}; expected class scores [batch,classes]: {ONLY_CLASSIFIERS}")
    values = {value.name: value for value in model.graph.outputs}
    ended = [key for key in fitting if key in values and read_scores(values[key]).kind != "logits"]
    chosen = (ended or fitting)[0]
    others = [key for key in fitting if key != chosen]
    model.graph.outputs[:] = [value for value in model.graph.outputs if value.name == chosen]
    if not others:
        return chosen, None
    return chosen, f"{chosen!r} is taken for the class scores, not {', '.join(others[:4])}; --output-name chooses"


def find_place_of_scores(proto: onnx.ModelProto, wanted: str | None) -> int:
    """Return the place, among a converter's outputs, of the one that `choose_scores` will take for the scores."""
    outputs = ir.from_proto(proto).graph.outputs
    names = [output.name for output in outputs]
    if wanted in names:
        return names.index(wanted)
    flat = [place for place, output in enumerate(outputs) if output.shape is not None and len(output.shape) == 2]
    ended = [place for place in flat if read_scores(outputs[place]).kind != "logits"]
    return (ended or flat or [0])[0]


def _may_be_scores(output: Any) -> bool:
    """Whether an output can hold [batch,classes], or [batch,classes,1,1]."""
    shape = output.shape
    if output.type not in _DTYPES:
        return False
    return not shape or len(shape) == 2 or (len(shape) == 4 and sum(dim != 1 for dim in shape[1:]) <= 1)
