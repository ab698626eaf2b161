"""Adapt the ONNX graph of a model of another task: one image input, and the outputs of a task."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import inliner

from ortcam.core.convention import Floats
from ortcam.errors import ExportError, OptionError, one_line
from ortcam.exporters.adopt import (
    HALF_TOLERANCE,
    ForeignGraph,
    behind_transposes,
    dtype_of,
    fitting_preprocessing,
    is_half,
    shape_of,
)
from ortcam.exporters.batches import ROWS, Trial, free_batch, leave_training, set_batch
from ortcam.exporters.interface import ImageInput, Numbers, read_input
from ortcam.exporters.outputs import Output
from ortcam.exporters.sources import Converted, SourceOptions
from ortcam.exporters.tasks.decode import attach, raw_name, write_decoder
from ortcam.exporters.tasks.detectors import HOW, check_decoded, known_form, plan_detector
from ortcam.exporters.tasks.plan import Plan
from ortcam.exporters.tasks.single import plan_single
from ortcam.exporters.tasks.size import free_input
from ortcam.exporters.tasks.source import RawSource, Ultralytics, fill_in_size
from ortcam.exporters.unwrap import keep_outputs
from ortcam.exporters.upgrade import NEWEST_OPSET, make_editable, opset_of, refuse_escapes
from ortcam.exporters.verify import BATCHES
from ortcam.graph.layers import all_values, module_outputs
from ortcam.model.contract import Task
from ortcam.model.preprocessing import Preprocessing
from ortcam.runtime.session import CPU, RUNTIME_ERRORS, create_session

# Runs a source on inputs [B,...]; returns the outputs of the task by their roles, and the source framework's layers.
TaskReference = Callable[[Floats], tuple[dict[str, Floats], Mapping[str, NDArray[Any]]]]

_SIDE = "ortcam.side"  # the name of a temporary weight


@dataclass(frozen=True)
class ConvertedTask(Converted):
    """A source of a task turned into an ONNX graph, whose outputs are those of the task.

    Attributes:
        task: the task.
        run: runs the source for comparison.
        watch: names the layers that `run` has to show, of a source that shows only these.
        drops: the index of the background that was removed from the classes, 0 or -1; None if none was.
    """

    task: Task = "value"
    drops: int | None = None
    run: TaskReference = field(default=lambda inputs: ({}, {}))
    watch: Callable[[Sequence[str]], None] = field(default=lambda names: None)

    @property
    def is_classifier(self) -> bool:
        """False."""
        return False


def adopt_task(foreign: ForeignGraph, options: SourceOptions) -> ConvertedTask | None:
    """Turn a graph into one with one image input and the outputs of a task; None if ``auto`` finds no known form.

    Raises:
        ExportError: the graph has no output of the task, or its form is unknown.
        ModelError: ONNX Runtime refuses the graph.
        OptionError: an option does not fit the graph.
    """
    folder = (foreign.folder or Path()).resolve()
    refuse_escapes(foreign.proto, foreign.name)
    proto = inliner.inline_local_functions(foreign.proto) if foreign.proto.functions else foreign.proto
    training = leave_training(proto, foreign.name)
    fill_in_size(proto, options.input_size)
    maps = all(len(value.type.tensor_type.shape.dim) > 3 for value in proto.graph.output)  # it is not a classifier
    is_free = foreign.run is None and (maps or options.task.is_stated)
    freed = free_input(proto, options.input_size, folder, foreign.name) if is_free else []
    session = create_session(proto, CPU, foreign.name, folder, log_severity=4)
    metadata = Ultralytics.read(proto)
    image = _read_image(proto, session, options, foreign, folder, metadata)
    colours = image.channels == 3 and not image.takes_bytes
    if metadata is not None and foreign.preprocessing is None and colours:
        foreign = replace(foreign, preprocessing=_letterbox(image.height, image.width))
    preprocessing = fitting_preprocessing(foreign, options, image)
    outputs = tuple(Output(one.name, dtype_of(one.type), shape_of(one.shape)) for one in session.get_outputs())
    measure = _Measure(proto, folder, foreign.name, image)
    labels = foreign.labels or (None if metadata is None else metadata.labels)
    classes = options.classes or (None if labels is None else len(labels))
    source = RawSource(foreign.name, proto, outputs, (image.height, image.width), measure, classes)
    plan = _find_plan(source, options, metadata)
    if plan is None:
        return None
    own_outputs = [output.name for output in outputs]
    raw = measure(plan.names)
    _keep(proto, plan.names, raw, set(foreign.layers.values()))
    graph = _Graph(foreign, proto, folder, image, plan, raw, own_outputs, is_half(make_editable(proto, folder, "")))
    model, batches, notices = graph.settle_batch()
    decoded, _ = graph.reference(image.random(np.random.default_rng(0), 1))
    notices = [*plan.notices, *([training] if training else []), *freed, *notices]
    if plan.task == "detect":
        notices += check_decoded(source, plan, decoded)
    opset = opset_of(proto)
    if opset > NEWEST_OPSET:
        notices.append(f"opset {opset} is kept; with more than {NEWEST_OPSET} ONNX Runtime may lack CUDA kernels")
    values = {value.name: value for value in all_values(model.graph)}
    layers = {name: behind_transposes(values[value]) for name, value in foreign.layers.items() if value in values}
    return ConvertedTask(
        name=foreign.name,
        model=model,
        folder=folder,
        input_shape=image.shape,
        reference=_no_scores,
        source=foreign.source,
        preprocessing=preprocessing,
        labels=plan.labels or labels,
        layers=module_outputs(model.graph) | layers,
        image_layout=image.layout,
        batches=batches,
        takes_bytes=image.takes_bytes,
        tolerance=graph.tolerance,
        layer_tolerance=foreign.layer_tolerance or graph.tolerance,
        notices=tuple(notices),
        task=plan.task,
        run=graph.reference,
        drops={"first": 0, "last": -1}.get(plan.kind.rpartition("background-")[2]),
    )


def _no_scores(layer: str | None) -> Any:
    raise ExportError("a model of a task has no class scores to compare")


def _read_image(
    proto: onnx.ModelProto,
    session: Any,
    options: SourceOptions,
    foreign: ForeignGraph,
    folder: Path,
    metadata: Ultralytics | None,
) -> ImageInput:
    """Return the image input; its size is the user's, the file's, or the metadata's."""
    fixed = all(isinstance(dim, int) for dim in (session.get_inputs()[0].shape or [])[1:])
    if metadata is not None and options.input_size is None and not fixed:
        options = replace(options, input_size=metadata.size)
    if options.input_size is None and foreign.preprocessing is not None and not fixed:
        options = replace(options, input_size=(foreign.preprocessing.height, foreign.preprocessing.width))
    return read_input(make_editable(proto, folder, foreign.name), session, options, foreign.name)


def _letterbox(height: int, width: int) -> Preprocessing:
    """Return ultralytics' preprocessing: the whole photo in the middle of a grey input, values 0 to 1."""
    return Preprocessing(
        height,
        width,
        interpolation="linear",
        scale=1 / 255,
        fit="letterbox",
        pad_value=(114.0,),
        pad_place="centre",
    )


def _find_plan(source: RawSource, options: SourceOptions, metadata: Ultralytics | None) -> Plan | None:
    task = options.task.task
    if task == "auto":
        return known_form(source, metadata)
    if task == "detect":
        if options.output is not None:
            raise OptionError(f"output_name is given for task 'detect'; expected the detector's tensors as {HOW}")
        return plan_detector(source, options.task, metadata)
    return plan_single(source, task, options.task, options.output)  # type: ignore[arg-type]


class _Measure:
    """Runs a graph on one random image, and returns any of its tensors."""

    def __init__(self, proto: onnx.ModelProto, folder: Path, name: str, image: ImageInput) -> None:
        self._proto, self._folder, self._name, self._image = proto, folder, name, image
        self._known: dict[str, NDArray[Any]] = {}

    def __call__(self, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        missing = [name for name in dict.fromkeys(names) if name not in self._known]
        if missing:
            own = self._proto.graph.output
            count, had = len(own), {value.name for value in own}
            own.extend(onnx.ValueInfoProto(name=name) for name in missing if name not in had)
            try:
                session = create_session(self._proto, CPU, self._name, self._folder, log_severity=4)
                picture = self._image.numbers.encode(self._image.random(np.random.default_rng(0), 1))
                results = session.run(missing, {self._image.name: picture})
            except RUNTIME_ERRORS as error:
                raise ExportError(f"{self._name} does not run on a random image: {one_line(error)}") from error
            finally:
                del own[count:]
            self._known |= {name: np.asarray(result) for name, result in zip(missing, results, strict=True)}
        return {name: self._known[name] for name in names}


def _keep(
    proto: onnx.ModelProto, names: Sequence[str], raw: Mapping[str, NDArray[Any]], layers: Collection[str]
) -> None:
    """Make tensors the graph's only outputs, in place; `layers` stay inside the graph."""
    own = {value.name: value for value in proto.graph.output}
    entries = []
    for name in names:
        dtype = onnx.helper.np_dtype_to_tensor_dtype(raw[name].dtype)
        entries.append(own.get(name) or onnx.helper.make_tensor_value_info(name, dtype, None))
    keep_outputs(proto, entries, layers)


class _Graph:
    """A source's graph with raw tensors as outputs, and the decoder that follows.

    Attributes:
        tolerance: the largest allowed relative error of an output.
    """

    def __init__(
        self,
        foreign: ForeignGraph,
        proto: onnx.ModelProto,
        folder: Path,
        image: ImageInput,
        plan: Plan,
        raw: Mapping[str, NDArray[Any]],
        own_outputs: Sequence[str],
        half: bool,
    ) -> None:
        self._proto, self._folder, self._image, self._plan, self._name = proto, folder, image, plan, foreign.name
        self._session = create_session(proto, CPU, foreign.name, folder, log_severity=4)
        self._decoder = write_decoder(
            plan, {name: array.shape for name, array in raw.items()}, (image.height, image.width)
        )
        self._decode = create_session(self._decoder, CPU, "the decoder", folder, log_severity=4)
        self._roles = [output.name for output in self._decoder.graph.output]
        self._foreign = foreign.run if set(plan.names) <= set(own_outputs) else None
        self._places = [own_outputs.index(name) for name in plan.names] if self._foreign is not None else []
        self._numbers = [Numbers.of(value) for value in make_editable(proto, folder, foreign.name).graph.outputs]
        pictures = image.random(np.random.default_rng(1), ROWS)
        self._is_fixed = image.batch is not None or not self._runs_together(pictures)
        self._at_once = foreign.runs_batch if self._foreign is not None else 1 if self._is_fixed else None
        self._pictures = pictures
        self.tolerance = max(foreign.tolerance, HALF_TOLERANCE if half else 0.0)

    def settle_batch(self) -> tuple[ir.Model, tuple[int, ...], list[str]]:
        """Return the decoded graph with a free batch if that works, the batches it runs, and notices."""
        model = self._decoded("batch")
        if not self._is_fixed:
            return model, BATCHES, []
        where = "fixes" if self._image.batch is not None else "has inside its graph"
        outputs, joined = list(model.graph.outputs), self._join(model)
        trial = Trial(
            self._image.numbers.encode(self._pictures), self._joined_reference, np.asarray, self.tolerance, self._folder
        )
        if free_batch(model, trial):
            model.graph.outputs[:] = outputs
            model.graph.remove(joined, safe=True)
            model.graph.initializers.pop(_SIDE, None)
            return model, BATCHES, [f"the batch of 1 that {self._name} {where} was made free"]
        notice = f"{self._name} fixes a batch of 1 in its graph: masked images are run one at a time"
        return self._decoded(1), (1,), [notice]

    def reference(self, inputs: Floats) -> tuple[dict[str, Floats], Mapping[str, NDArray[Any]]]:
        """Return the decoded outputs of the source by role, and the layers that it shows."""
        step = self._at_once or len(inputs)
        results, shown = [], []
        for row in range(0, len(inputs), step):
            raw, layers = self._raw(self._image.numbers.encode(inputs[row : row + step]))
            results.append(self._decode.run(self._roles, raw))
            shown.append(layers)
        roles = {
            name: np.concatenate(parts) for name, parts in zip(self._roles, zip(*results, strict=True), strict=True)
        }
        return roles, {name: np.concatenate([layers[name] for layers in shown]) for name in shown[0]}

    def _raw(self, inputs: NDArray[Any]) -> tuple[dict[str, Floats], Mapping[str, NDArray[Any]]]:
        layers: Mapping[str, NDArray[Any]] = {}
        try:
            if self._foreign is None:
                arrays = self._session.run(list(self._plan.names), {self._image.name: inputs})
            else:
                runs = [self._foreign(inputs, place) for place in self._places]
                arrays, layers = [array for array, _ in runs], runs[0][1]
        except RUNTIME_ERRORS as error:
            raise ExportError(f"the original model does not run: {one_line(error)}") from error
        decoded = [numbers.decode(array) for numbers, array in zip(self._numbers, arrays, strict=True)]
        return {raw_name(place): array for place, array in enumerate(decoded)}, layers

    def _runs_together(self, pictures: Floats) -> bool:
        try:
            found = self._session.run(None, {self._image.name: self._image.numbers.encode(pictures)})
        except RUNTIME_ERRORS:
            return False
        return all(array.ndim > 0 and len(array) == len(pictures) for array in found)

    def _decoded(self, batch: int | str) -> ir.Model:
        model = make_editable(self._proto, self._folder, self._name)
        attach(model, self._decoder)
        set_batch(
            model, next(one for one in model.graph.inputs if one.name == self._image.name), self._image.shape, batch
        )
        return model

    def _join(self, model: ir.Model) -> list[ir.Node]:
        """Make all outputs [B,...] one table, whose parts count alike, the graph's output; return the nodes for it."""
        side = np.float32(max(self._image.height, self._image.width))
        nodes: list[ir.Node] = []
        parts: list[ir.Value] = []
        for role, output in zip(self._roles, model.graph.outputs, strict=True):
            nodes.append(ir.node("Flatten", [output], {"axis": 1}))
            if role == "boxes":
                scale = ir.Value(name=_SIDE, const_value=ir.tensor(side, name=_SIDE))
                model.graph.register_initializer(scale)
                nodes.append(ir.node("Div", [nodes[-1].outputs[0], scale]))
            parts.append(nodes[-1].outputs[0])
        nodes.append(ir.node("Concat", parts, {"axis": 1}))
        for number, node in enumerate(nodes):
            node.outputs[0].name = f"ortcam.joined.{number}"
        model.graph.extend(nodes)
        model.graph.outputs[:] = [nodes[-1].outputs[0]]
        return nodes

    def _joined_reference(self) -> Floats:
        roles, _ = self.reference(self._pictures)
        side = np.float32(max(self._image.height, self._image.width))
        parts = [(array / side if name == "boxes" else array).reshape(len(array), -1) for name, array in roles.items()]
        return np.concatenate(parts, axis=1)
