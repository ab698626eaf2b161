"""Adapt an ONNX graph from elsewhere: edit the graph, keep the weights.

All sources except PyTorch modules come here: plain ONNX files, and the graphs that tf2onnx, jax2onnx and torch's
exporter for exported programs return.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import inliner
from onnx_ir.serde import SerdeError

from ortcam.core.convention import Floats
from ortcam.errors import ExportError, one_line
from ortcam.exporters.batches import ROWS, Trial, free_batch, leave_training, set_batch
from ortcam.exporters.interface import ImageInput, Numbers, read_input
from ortcam.exporters.outputs import Output, choose_scores, flatten
from ortcam.exporters.score_kind import StatedKind
from ortcam.exporters.sources import Converted, SourceOptions, choose_preprocessing
from ortcam.exporters.tasks.source import Ultralytics, is_task
from ortcam.exporters.unwrap import keep_outputs, unwrap_outputs
from ortcam.exporters.upgrade import NEWEST_OPSET, make_editable, opset_of, refuse_escapes
from ortcam.exporters.verify import BATCHES, TOLERANCE, LayerMatch, Reference
from ortcam.graph.layers import all_values, module_outputs
from ortcam.model.preprocessing import Preprocessing
from ortcam.runtime.session import CPU, RUNTIME_ERRORS, create_session

# An extra output changes how ONNX Runtime fuses operators. With the 11 bits of float16, this shows in the scores:
# EfficientNet-Lite0 differs by 2.6e-4.
HALF_TOLERANCE = 1e-2

# Runs the source on a batch of inputs, in the layout and dtype of the graph's own input. The number is the index of the
# class scores among the graph's outputs, as the converter returned them. Returns the scores [B,N], and the results of
# the source framework's layers [B,...] by name; an empty mapping if it cannot show layers. A name that begins with a
# colon belongs to a tensor that no layer returns.
Run = Callable[[NDArray[Any], int], tuple[NDArray[Any], Mapping[str, NDArray[Any]]]]


@dataclass(frozen=True)
class ForeignGraph:
    """An ONNX graph from a converter or a file, before any edit.

    Attributes:
        name: the source's name in messages.
        proto: the graph, any opset from 7.
        source: kind, name and versions, for the metadata.
        run: runs the source itself; None to compare with the unedited graph.
        runs_batch: the only batch size that `run` takes; None for any.
        folder: where external weights are.
        layers: the source framework's names of layers, and the names of their tensors in the graph.
        preprocessing, labels, output_kind: the source's own; None when unknown.
        tolerance: the largest allowed relative error of the scores.
        layer_tolerance: the same for the target layer; None for `tolerance`.
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
    output_kind: StatedKind | None = None
    tolerance: float = TOLERANCE
    layer_tolerance: float | None = None


def adopt(foreign: ForeignGraph, options: SourceOptions) -> Converted:
    """Turn a classifier's graph into one with one image input and its class scores first.

    A graph of another task becomes a `ConvertedTask`.

    Raises:
        ExportError: the graph is not an image classifier, or cannot be converted to the opset that the engine needs.
        ModelError: ONNX Runtime refuses the graph.
    """
    if is_task(foreign.proto, options):
        from ortcam.exporters.tasks.adopt import adopt_task

        task = adopt_task(foreign, options)
        if task is not None:
            return task
    folder = (foreign.folder or Path()).resolve()
    refuse_escapes(foreign.proto, foreign.name)
    places = [output.name for output in foreign.proto.graph.output]
    found = unwrap_outputs(foreign.proto) if foreign.run is None else None  # converters return plain tensors
    metadata = Ultralytics.read(foreign.proto)
    labels = foreign.labels or found or (None if metadata is None else metadata.labels)
    original = create_session(foreign.proto, CPU, foreign.name, folder, log_severity=4)
    classes = options.classes or (None if labels is None else len(labels))
    try:
        stated = options.task.task == "classify"
        shown = set(foreign.layers.values())
        scores, notice = keep_scores(foreign.proto, original, foreign.name, options.output, classes, shown, stated)
    except ExportError:
        _refuse_odd_input(foreign, original, options)  # an input that is not an image explains it better
        raise
    notices = [notice] if notice else []
    if {value.name for value in original.get_inputs()} - {value.name for value in foreign.proto.graph.input}:
        # Some inputs were needed only by outputs that are gone.
        original = create_session(foreign.proto, CPU, foreign.name, folder, log_severity=4)
    training = leave_training(foreign.proto, foreign.name)
    notices += [training] if training else []
    model = make_editable(foreign.proto, folder, foreign.name)
    image = read_input(model, original, options, foreign.name)
    preprocessing = fitting_preprocessing(foreign, options, image)
    opset = opset_of(foreign.proto)
    if opset > NEWEST_OPSET:
        notices.append(f"opset {opset} is kept; with more than {NEWEST_OPSET} ONNX Runtime may lack CUDA kernels")

    tolerance = max(foreign.tolerance, HALF_TOLERANCE if is_half(model) else 0.0)
    numbers = Numbers.of(model.graph.outputs[0])
    pictures = image.random(np.random.default_rng(1), ROWS)
    is_fixed = image.batch is not None or not _runs_together(original, scores, image, pictures)
    if foreign.run is None:
        run, rows_at_once = _run_of(original, scores), 1 if is_fixed else None
    else:
        run, rows_at_once = functools.partial(_run_at, foreign.run, places.index(scores)), foreign.runs_batch
    reference = _reference(run, rows_at_once, image, numbers)
    batches: tuple[int, ...] = BATCHES
    _set_batch(model, image, "batch")
    if is_fixed:
        trial = Trial(
            image.numbers.encode(pictures),
            lambda: reference(pictures)[0],
            numbers.decode,
            tolerance,
            folder,
        )
        where = "fixes" if image.batch is not None else "has inside its graph"
        if free_batch(model, trial):
            notices.append(f"the batch of 1 that {foreign.name} {where} was made free")
        else:
            model, batches = make_editable(foreign.proto, folder, foreign.name), (1,)
            _set_batch(model, image, 1)
            notices.append(f"{foreign.name} fixes a batch of 1 in its graph: masked images are run one at a time")
    values = {value.name: value for value in all_values(model.graph)}
    layers = {name: behind_transposes(values[value]) for name, value in foreign.layers.items() if value in values}
    layers = module_outputs(model.graph) | layers
    return Converted(
        name=foreign.name,
        model=model,
        folder=folder,
        input_shape=image.shape,
        reference=lambda layer: _named_reference(reference, layer),
        source=foreign.source,
        preprocessing=preprocessing,
        labels=labels,
        output_kind=foreign.output_kind,
        layers=layers,
        image_layout=image.layout,
        batches=batches,
        takes_bytes=image.takes_bytes,
        tolerance=tolerance,
        layer_tolerance=foreign.layer_tolerance or tolerance,
        notices=tuple(notices),
    )


def _refuse_odd_input(foreign: ForeignGraph, session: Any, options: SourceOptions) -> None:
    with contextlib.suppress(SerdeError):  # onnx-ir cannot read maps
        read_input(ir.from_proto(foreign.proto), session, options, foreign.name)


def _set_batch(model: ir.Model, image: ImageInput, batch: int | str) -> None:
    set_batch(model, next(value for value in model.graph.inputs if value.name == image.name), image.shape, batch)


def keep_scores(
    proto: onnx.ModelProto,
    session: Any,
    name: str,
    wanted: str | None = None,
    classes: int | None = None,
    layers: Collection[str] = (),
    is_classifier: bool = True,
) -> tuple[str, str | None]:
    """Make the class scores the graph's only output, in place; return their name and a notice for the user.

    Args:
        proto: the graph.
        session: a session of it, which knows the types and shapes of its outputs.
        name, wanted, classes, is_classifier: as `choose_scores` takes them.
        layers: tensors to keep, although the scores do not need them.

    Raises:
        OptionError, ExportError: as `choose_scores` does.
    """
    # ONNX Runtime shows [] for a single number, such as a loss, and for an unknown shape; the graph tells them apart.
    numbers = {
        value.name for value in proto.graph.output
        if value.type.tensor_type.HasField("shape") and not value.type.tensor_type.shape.dim
    }  # fmt: skip
    outputs = [
        Output(value.name, "a number" if value.name in numbers else dtype_of(value.type), shape_of(value.shape))
        for value in session.get_outputs()
    ]
    if wanted is None and sum(output.may_be_scores for output in outputs) > 1:
        graph = ir.from_proto(inliner.inline_local_functions(proto) if proto.functions else proto).graph
        outputs = [replace(output, value=value) for output, value in zip(outputs, graph.outputs, strict=True)]
    chosen, notice = choose_scores(outputs, name, wanted, classes, is_classifier=is_classifier)
    entry = next(output for output in proto.graph.output if output.name == chosen.name)
    if not entry.type.WhichOneof("value"):
        dtype = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(chosen.dtype))
        entry = onnx.helper.make_tensor_value_info(chosen.name, dtype, chosen.shape or None)
    keep_outputs(proto, [entry], layers)
    return chosen.name, notice


def dtype_of(kind: str) -> str:
    """Return NumPy's name for ONNX Runtime's type of a tensor; other types unchanged."""
    plain = kind.removeprefix("tensor(").removesuffix(")") if kind.startswith("tensor(") else kind
    return {"float": "float32", "double": "float64"}.get(plain, plain)


def shape_of(shape: Sequence[Any] | None) -> tuple[int | None, ...]:
    return tuple(dim if isinstance(dim, int) and dim > 0 else None for dim in shape or ())


def is_half(model: ir.Model) -> bool:
    return any(weight.dtype == ir.DataType.FLOAT16 for weight in model.graph.initializers.values())


def fitting_preprocessing(foreign: ForeignGraph, options: SourceOptions, image: ImageInput) -> Preprocessing | None:
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


# Runs the source on a batch, in the dtype of its own input; returns the scores and layers.
_ScoresRun = Callable[[NDArray[Any]], tuple[NDArray[Any], Mapping[str, NDArray[Any]]]]


def _run_of(session: Any, scores: str) -> _ScoresRun:
    """Return a function that runs the unedited graph."""

    def run(inputs: NDArray[Any]) -> tuple[NDArray[Any], Mapping[str, NDArray[Any]]]:
        return session.run([scores], {session.get_inputs()[0].name: inputs})[0], {}

    return run


def _run_at(run: Run, place: int, inputs: NDArray[Any]) -> tuple[NDArray[Any], Mapping[str, NDArray[Any]]]:
    return run(inputs, place)


def _runs_together(session: Any, scores: str, image: ImageInput, pictures: Floats) -> bool:
    """Return whether a graph with a free batch takes several pictures and returns scores for each."""
    try:
        (found,) = session.run([scores], {image.name: image.numbers.encode(pictures)})
    except RUNTIME_ERRORS:
        return False
    return found.ndim > 0 and len(found) == len(pictures)


# Runs the source on float32 inputs [B,...]; returns float scores [B,N] and layers, as `Run` does.
_FloatRun = Callable[[Floats], tuple[NDArray[Any], Mapping[str, NDArray[Any]]]]


def _reference(run: _ScoresRun, rows_at_once: int | None, image: ImageInput, numbers: Numbers) -> _FloatRun:
    def run_floats(inputs: Floats) -> tuple[NDArray[Any], Mapping[str, NDArray[Any]]]:
        step = rows_at_once or len(inputs)
        chunks = [inputs[row : row + step] for row in range(0, len(inputs), step)]
        try:
            results = [run(image.numbers.encode(chunk)) for chunk in chunks]
        except RUNTIME_ERRORS as error:
            raise ExportError(f"the original model does not run: {one_line(error)}") from error
        arrays = [np.asarray(result[0]) for result in results]
        scores = numbers.decode(
            np.concatenate([flatten(array, len(chunk)) for array, chunk in zip(arrays, chunks, strict=True)])
        )
        return scores, {name: np.concatenate([result[1][name] for result in results]) for name in results[0][1]}

    return run_floats


def _named_reference(run: _FloatRun, layer: str | None) -> Reference:
    def reference(inputs: Floats, match: LayerMatch) -> NDArray[Any]:
        scores, layers = run(inputs)
        for name, tensor in layers.items():
            if layer is None or layer not in layers or name == layer:
                match.see(tensor, None if name.startswith(":") else name)
        return scores

    return reference


def behind_transposes(value: ir.Value) -> ir.Value:
    """Return the tensor that a converter only transposed or copied to make it an output."""
    while (node := value.producer()) is not None and node.op_type in ("Transpose", "Identity"):
        before = node.inputs[0]
        if before is None or before.producer() is None:
            break
        value = before
    return value
