"""The outputs of a model file of a task: boxes and scores, a mask, an embedding or values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from ortcam.errors import ExportError
from ortcam.exporters.sources import Converted
from ortcam.exporters.tasks.adopt import ConvertedTask
from ortcam.exporters.tasks.verify import verify_task
from ortcam.exporters.verify import Agreement, LayerToVerify
from ortcam.graph.expose import expose_task
from ortcam.graph.layers import FeatureMap
from ortcam.model.contract import ROLES, Contract

_CLASS_AXIS = {"detect": ("scores", 2), "segment": ("mask", 1), "embed": ("embedding", None), "value": ("values", 1)}


class TaskOutputs:
    """The results of a task's file (see `ortcam.exporters.write.Results`)."""

    comparing = ""

    def __init__(self, labels: tuple[str, ...] | None) -> None:
        """Take the user's labels; None for those of the source."""
        self._labels = labels

    def expose(
        self, converted: Converted, feature_maps: Sequence[FeatureMap], contract: Contract
    ) -> tuple[Contract, tuple[str, ...]]:
        """Make the task's outputs and layers the outputs; return the contract with task and labels, and notices."""
        assert isinstance(converted, ConvertedTask)
        fitting, notice = _fit_labels(converted, self._labels, _count_classes(converted))
        contract = replace(contract, task=converted.task, labels=fitting)
        return expose_task(converted.model, feature_maps, contract), () if notice is None else (notice,)

    def verify(self, draft: Path, converted: Converted, layers: Sequence[LayerToVerify]) -> Agreement:
        """Compare all outputs with those of the source."""
        assert isinstance(converted, ConvertedTask)
        return verify_task(draft, converted, layers)

    def complete(
        self, proto: onnx.ModelProto, contract: Contract, agreement: Agreement
    ) -> tuple[Contract, Sequence[str]]:
        """Leave the file as it is."""
        return contract, ()

    def rehearse(self, draft: Path) -> None:
        """Do nothing."""


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
