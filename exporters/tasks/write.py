"""Write and verify the model file of a model that is no classifier."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import onnx
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ortcam.core.files import replace_files
from ortcam.errors import ExportError, OrtcamWarning
from ortcam.exporters.batches import settle_batch
from ortcam.exporters.choice import LayerChoice, Target
from ortcam.exporters.draft import graph_errors, settle_layers, write_draft
from ortcam.exporters.precision import Precision
from ortcam.exporters.report import ExportReport, ReportedLayer
from ortcam.exporters.sources import SourceOptions
from ortcam.exporters.tasks.adopt import ConvertedTask
from ortcam.exporters.tasks.verify import verify_task
from ortcam.exporters.verify import LayerToVerify
from ortcam.graph.expose import expose_task
from ortcam.model.contract import ROLES, Contract, ExposedLayer
from ortcam.model.preprocessing import NAMES

_CLASS_AXIS = {"detect": ("scores", 2), "segment": ("mask", 1), "embed": ("embedding", None), "value": ("values", 1)}


def write_task(
    converted: ConvertedTask,
    options: SourceOptions,
    output: Path,
    labels: tuple[str, ...] | None,
    precision: Precision,
    external_data_bytes: int,
) -> ExportReport:
    """Write the file of a task; it is verified before it takes its name.

    Args:
        converted: the source.
        options: the user's options.
        output: the file.
        labels: the user's class names.
        precision, external_data_bytes: as `export` takes them.

    Raises:
        ExportError: the file does not agree with its source, or labels and outputs do not fit.
        LayerError: a layer is missing, or ``auto`` finds none.
        OutputError: the file cannot be written.
    """
    choice = LayerChoice(converted, options)
    targets = choice.choose()
    count = _count_classes(converted)
    fitting, notice = _fit_labels(converted, labels, count)
    notices = [*converted.notices, *([] if notice is None else [notice])]
    if converted.preprocessing is None:
        notices.append(
            "no preprocessing is known, so only input tensors can be explained; for photos give --preprocess "
            f"{', '.join(NAMES)} or a JSON file"
        )
    contract = _expose(targets, fitting)
    with graph_errors(converted.name), replace_files(output) as folder:
        draft = folder / output.name
        written = write_draft(draft, converted, precision, external_data_bytes)
        checked = choice.check(draft, written, targets)
        if any(one.better is not None for one in checked):
            targets = choice.choose_again(checked)
            contract = _expose(targets, fitting)
            written = write_draft(draft, targets[0].converted, precision, external_data_bytes)
        if precision == "fp16":
            contract = replace(contract, source=contract.source | {"precision": precision})
        assert isinstance(written, ConvertedTask)
        asked = [LayerToVerify(target.source_layer, target.feature_map.tokens) for target in targets]
        agreement = verify_task(draft, written, asked)
        proto = onnx.load(draft, load_external_data=False)
        mixed = settle_batch(proto, draft, written, agreement)
        if mixed is not None:
            notices.append(mixed)
            agreement = replace(agreement, batches=(1,))
        layers = settle_layers(contract.layers, targets, agreement, checked)
        contract = replace(contract, layers=layers, verified=agreement.to_dict())
        metadata = {entry.key: entry.value for entry in proto.metadata_props} | contract.to_metadata()
        onnx.helper.set_model_props(proto, metadata)
        onnx.save(proto, draft)
    warned = tuple(text for one in checked for text in one.notices)
    for text in warned:
        warnings.warn(text, OrtcamWarning, stacklevel=3)
    reported = tuple(
        ReportedLayer(layer.name, replace(target.feature_map, layout=one.layout).shape, agrees.error, one.places)
        for layer, target, agrees, one in zip(contract.layers, targets, agreement.layers, checked, strict=True)
    )
    return ExportReport(output, reported, contract, agreement, (*notices, *warned), warned)


def _expose(targets: list[Target], labels: tuple[str, ...] | None) -> Contract:
    """Make the layers outputs of their graph, in place; return the contract."""
    converted = targets[0].converted
    assert isinstance(converted, ConvertedTask)
    layers = tuple(
        ExposedLayer(target.name, target.feature_map.value.name or "", target.feature_map.layout) for target in targets
    )
    contract = Contract(
        layers=layers,
        task=converted.task,
        image_layout=converted.image_layout,
        preprocessing=converted.preprocessing,
        labels=labels,
        source=converted.source,
    )
    contract = expose_task(converted.model, [target.feature_map for target in targets], contract)
    RemoveUnusedNodesPass()(converted.model)
    kept = {target.feature_map.value for target in targets}
    for value in targets[0].measured:
        if value not in kept:
            value.shape = None
    return contract


def _count_classes(converted: ConvertedTask) -> int | None:
    """Return the number of classes or values of the outputs, as the decoded graph shows it; None if unknown."""
    role, axis = _CLASS_AXIS[converted.task]
    if axis is None:
        return None
    value = converted.model.graph.outputs[ROLES[converted.task].index(role)]
    dim = None if value.shape is None or len(value.shape) <= axis else value.shape[axis]
    return dim if isinstance(dim, int) else None


def _fit_labels(
    converted: ConvertedTask, given: tuple[str, ...] | None, count: int | None
) -> tuple[tuple[str, ...] | None, str | None]:
    """Return the labels of the file's classes, and a notice; leave out the name of a background that was removed.

    Raises:
        ExportError: the user's labels do not fit.
    """
    labels = given if given is not None else converted.labels
    if converted.task == "embed":  # its numbers have no names
        labels = None
    if labels is None or count is None or len(labels) == count:
        return labels, None
    if len(labels) == count + 1 and converted.drops in (0, -1):
        left = labels[converted.drops]
        rest = labels[1:] if converted.drops == 0 else labels[:-1]
        return rest, f"the label {left!r} was left out: it belongs to the background, which is removed"
    if given is None:
        return None, None
    what = "values" if converted.task == "value" else "classes"
    raise ExportError(f"{len(labels)} labels were given, but {converted.name} has {count} {what}; give one for each")
