"""Adopting an ONNX graph that somebody else made: the graph is edited, the weights stay as they are.

Every source but a PyTorch module comes through here: plain ONNX files, and what tf2onnx, jax2onnx and torch's
exporter for exported programs return.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from ortcam.convention import Floats
from ortcam.errors import ExportError, ModelError, one_line
from ortcam.exporters.interface import ImageInput, Numbers, choose_scores, read_input
from ortcam.exporters.sources import Converted, SourceOptions, choose_preprocessing
from ortcam.exporters.upgrade import NEWEST_OPSET, make_editable, opset_of, refuse_escapes
from ortcam.exporters.verify import BATCHES, TOLERANCE, LayerMatch, Reference, relative_error
from ortcam.graph.layers import all_values, module_outputs
from ortcam.graph.maps import constant_ints
from ortcam.preprocessing import Preprocessing
from ortcam.runtime.session import CPU, RUNTIME_ERRORS, create_session

# float16 has 11 bits: how ONNX Runtime fuses its operators, which an extra output changes, shows in the scores.
# EfficientNet-Lite0 differs by 2.6e-4.
HALF_TOLERANCE = 1e-2

# Runs the source on a batch of inputs, in the layout and dtype of the graph's own input. Returns the class scores
# [B,N], and what the source framework's layers return [B,...], by name; no layers where it cannot show them. A name
# that begins with a colon is of a tensor that no layer returns.
Run = Callable[[NDArray[Any]], tuple[NDArray[Any], Mapping[str, NDArray[Any]]]]


@dataclass(frozen=True)
class ForeignGraph:
    """An ONNX graph as a converter returned it or a file holds it.

    Attributes:
        name: what messages call the source.
        proto: the graph, any opset from 7.
        source: for the metadata: kind, name, versions.
        run: runs the source itself; None to compare with the graph as it was before it was edited.
        runs_batch: the only batch size that `run` takes; None for any.
        folder: where external weights are.
        layers: the source framework's names of layers, and the names of their tensors in the graph.
        preprocessing, labels: the source's own; None when unknown.
        tolerance: how far the scores may be from the source's, relatively.
        layer_tolerance: likewise for the target layer; None for the same.
    """

    name: str
    proto: onnx.ModelProto
    source: dict[str, Any]
    run: Run | None = None
    runs_batch: int | None = None
    folder: Path | None = None
    layers: Mapping[str, str] = field(default_factory=dict)
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] | None = None
    tolerance: float = TOLERANCE
    layer_tolerance: float | None = None


def adopt(foreign: ForeignGraph, options: SourceOptions) -> Converted:
    """Turn a classifier's graph into one with one image input and its class scores first.

    Raises:
        ExportError: it is no image classifier, or cannot be brought to the opset that the engine needs.
        ModelError: ONNX Runtime refuses the graph.
    """
    folder = (foreign.folder or Path()).resolve()
    refuse_escapes(foreign.proto, foreign.name)
    original = create_session(foreign.proto, CPU, foreign.name, folder, log_severity=4)
    model = make_editable(foreign.proto, folder, foreign.name)
    image = read_input(model, original, options, foreign.name)
    notices = []
    scores, notice = choose_scores(model, original, options.output, foreign.name)
    notices += [notice] if notice else []
    preprocessing = _fitting_preprocessing(foreign, options, image)
    opset = opset_of(foreign.proto)
    if opset > NEWEST_OPSET:
        notices.append(f"opset {opset} is kept; with more than {NEWEST_OPSET} ONNX Runtime may lack CUDA kernels")

    tolerance = max(foreign.tolerance, HALF_TOLERANCE if _is_half(model) else 0.0)
    numbers = Numbers.of(model.graph.outputs[0])
    run = foreign.run or _run_of(original, scores)
    rows_at_once = foreign.runs_batch if foreign.run is not None else image.batch
    reference = _reference(run, rows_at_once, image, numbers)
    batches: tuple[int, ...] = BATCHES
    image.shape_model(model, "batch")
    if image.batch is not None:
        if _free_batch(model, image, folder, reference, tolerance):
            notices.append(f"the batch of 1 that {foreign.name} fixes was made free")
        else:
            model, batches = make_editable(foreign.proto, folder, foreign.name), (1,)
            choose_scores(model, original, options.output, foreign.name)
            image.shape_model(model, 1)
            notices.append(f"{foreign.name} fixes a batch of 1 in its graph: masked images are run one at a time")
    values = {value.name: value for value in all_values(model.graph)}
    layers = {name: _behind_transposes(values[value]) for name, value in foreign.layers.items() if value in values}
    layers = module_outputs(model.graph) | layers
    return Converted(
        name=foreign.name,
        model=model,
        folder=folder,
        input_shape=image.shape,
        reference=lambda layer: _named_reference(reference, layer),
        source=foreign.source,
        preprocessing=preprocessing,
        labels=foreign.labels,
        layers=layers,
        image_layout=image.layout,
        batches=batches,
        takes_bytes=image.takes_bytes,
        tolerance=tolerance,
        layer_tolerance=foreign.layer_tolerance or tolerance,
        notices=tuple(notices),
    )


def _is_half(model: ir.Model) -> bool:
    return any(weight.dtype == ir.DataType.FLOAT16 for weight in model.graph.initializers.values())


def _fitting_preprocessing(foreign: ForeignGraph, options: SourceOptions, image: ImageInput) -> Preprocessing | None:
    preprocessing = choose_preprocessing(
        options.preprocess, foreign.preprocessing, options.input_size, image.channels, (image.height, image.width)
    )
    if preprocessing is None:
        return None
    if preprocessing.channel_count != image.channels:
        raise ExportError(
            f"{foreign.name} takes {image.channels} channels, but the preprocessing makes {preprocessing.channel_count}"
        )
    if (preprocessing.height, preprocessing.width) != (image.height, image.width):
        raise ExportError(
            f"{foreign.name} takes inputs of {image.height}x{image.width}, but the preprocessing makes "
            f"{preprocessing.height}x{preprocessing.width}"
        )
    if image.takes_bytes and (preprocessing.scale, set(preprocessing.mean), set(preprocessing.std)) != (1, {0}, {1}):
        raise ExportError(
            f"{foreign.name} takes bytes, 0 to 255, so it scales them itself; expected --preprocess raw, or a JSON "
            "file without scale, mean and std"
        )
    return preprocessing


def _run_of(session: Any, scores: str) -> Run:
    """Run the graph as it was."""

    def run(inputs: NDArray[Any]) -> tuple[NDArray[Any], Mapping[str, NDArray[Any]]]:
        return session.run([scores], {session.get_inputs()[0].name: inputs})[0], {}

    return run


# Runs the source on float32 inputs [B,...]; returns float scores [B,N] and layers, as `Run` does.
_FloatRun = Callable[[Floats], tuple[NDArray[Any], Mapping[str, NDArray[Any]]]]


def _reference(run: Run, rows_at_once: int | None, image: ImageInput, numbers: Numbers) -> _FloatRun:
    def run_floats(inputs: Floats) -> tuple[NDArray[Any], Mapping[str, NDArray[Any]]]:
        step = rows_at_once or len(inputs)
        chunks = [inputs[row : row + step] for row in range(0, len(inputs), step)]
        try:
            results = [run(image.numbers.encode(chunk)) for chunk in chunks]
        except RUNTIME_ERRORS as error:
            raise ExportError(f"the original model does not run: {one_line(error)}") from error
        scores = numbers.decode(np.concatenate([np.asarray(result[0]) for result in results]))
        flat = (
            scores.reshape(len(scores), -1)
            if scores.ndim > 2 and scores.size == scores.shape[0] * max(scores.shape[1:])
            else scores
        )
        return flat, {name: np.concatenate([result[1][name] for result in results]) for name in results[0][1]}

    return run_floats


def _named_reference(run: _FloatRun, layer: str | None) -> Reference:
    def reference(inputs: Floats, match: LayerMatch) -> NDArray[Any]:
        scores, layers = run(inputs)
        for name, tensor in layers.items():
            if layer is None or layer not in layers or name == layer:
                match.see(tensor, None if name.startswith(":") else name)
        return scores

    return reference


def _free_batch(model: ir.Model, image: ImageInput, folder: Path, reference: _FloatRun, tolerance: float) -> bool:
    """Make the batch of a graph free that was written for one image, in place; whether that gives the same scores.

    Converters write the batch into the shapes of reshapes; there it becomes the batch that comes in.
    """
    for node in model.graph:
        shape = constant_ints(node.inputs[1]) if node.op_type == "Reshape" and len(node.inputs) == 2 else None
        empties = "allowzero" in node.attributes and node.attributes["allowzero"].as_int() == 1
        if not shape or len(shape) < 2 or shape[0] != 1 or (empties and 0 in shape):
            continue
        node.attributes.pop("allowzero", None)  # without a 0 in the shape it says nothing
        free = ir.Value(name=f"{node.outputs[0].name}.free_batch")
        free.const_value = ir.tensor(np.array([0 if -1 in shape else -1, *shape[1:]], np.int64), name=free.name)
        model.graph.register_initializer(free)
        node.replace_input_with(1, free)
    inputs = image.random(np.random.default_rng(1), 3)
    try:
        session = create_session(ir.to_proto(model), CPU, "the model", folder, log_severity=4)
        scores = session.run(None, {model.graph.inputs[0].name: image.numbers.encode(inputs)})[0]
    except RUNTIME_ERRORS + (ModelError,):  # noqa: RUF005 (mypy reads the sum, not the star)
        return False
    expected = reference(inputs)[0]
    decoded = Numbers.of(model.graph.outputs[0]).decode(scores)
    if decoded.size != expected.size or len(decoded) != len(expected):
        return False
    return relative_error(decoded.reshape(expected.shape), expected) <= tolerance


def _behind_transposes(value: ir.Value) -> ir.Value:
    """Return the tensor that a converter has only turned over or copied to make it an output."""
    while (node := value.producer()) is not None and node.op_type in ("Transpose", "Identity"):
        before = node.inputs[0]
        if before is None or before.producer() is None:
            break
        value = before
    return value
