"""Compare a model file of a task with its source on the same random inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ortcam.core.convention import Floats
from ortcam.errors import ExportError
from ortcam.exporters.tasks.adopt import ConvertedTask
from ortcam.exporters.verify import (
    Agreement,
    LayerMatch,
    LayerToVerify,
    explain_randomness,
    refuse_layers,
    relative_error,
    run_batches,
    worst,
)
from ortcam.model.contract import ROLES

_REPEATED = 1e-3  # the relative difference of two equal runs of a graph without random numbers stays below


@dataclass(frozen=True)
class TaskAgreement(Agreement):
    """How closely a model file of a task and its source agree, the worst over all batches.

    Attributes:
        errors: for each output by role, the largest difference over the largest value.
    """

    errors: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the entries for a file's metadata."""
        errors = {role: float(f"{error:.3g}") for role, error in self.errors.items()}
        return {"relative_errors": errors, "batches": list(self.batches)}


def verify_task(path: Path, converted: ConvertedTask, layers: Sequence[LayerToVerify]) -> TaskAgreement:
    """Compare a model file with its source on random inputs (see `run_batches`), all outputs.

    Args:
        path: the file.
        converted: the source.
        layers: the exposed layers.

    Raises:
        ExportError: the file does not run, or does not agree with its source.
    """
    roles = ROLES[converted.task]
    converted.watch([layer.name for layer in layers if layer.name is not None])
    errors = dict.fromkeys(roles, 0.0)
    expected: dict[str, Floats] = {}
    matches: list[list[LayerMatch]] = [[] for _ in layers]

    def compare(inputs: Floats, results: list[Floats]) -> None:
        _refuse_odd_outputs(results, len(inputs))
        of_source, shown = converted.run(inputs)
        expected.update(of_source)
        for role, array in zip(roles, results, strict=False):
            if array.shape != expected[role].shape:
                raise ExportError(
                    f"the exported model returns {role} {list(array.shape)}, its source {list(expected[role].shape)}"
                )
            errors[role] = max(errors[role], relative_error(array, expected[role]))
        for layer, tensor, seen in zip(layers, results[len(roles) :], matches, strict=True):
            seen.append(_match(layer, tensor, shown))

    last = run_batches(path, converted, compare)
    largest = max(errors, key=lambda role: errors[role])
    if not errors[largest] <= converted.tolerance:
        again, _ = converted.run(last.inputs)
        random = relative_error(again[largest], expected[largest]) > _REPEATED
        raise ExportError(
            f"the exported model does not agree with its source: {largest} differ by {errors[largest]:.2g} of the "
            f"largest (at most {converted.tolerance:g} allowed)"
            + (f"; the source {explain_randomness(again[largest], expected[largest])}" if random else "")
        )
    of_layers = tuple(map(worst, matches))
    refuse_layers(of_layers, converted.layer_tolerance)
    return TaskAgreement(errors[largest], of_layers, True, converted.batches, mixing=last.mixing, errors=errors)


def _match(layer: LayerToVerify, tensor: Floats, shown: Mapping[str, NDArray[Any]]) -> LayerMatch:
    """Find an exposed layer among the source's layers."""
    match = LayerMatch(tensor, layer.tokens)
    for name, array in shown.items():
        if layer.name is None or layer.name not in shown or name == layer.name:
            match.see(array, None if name.startswith(":") else name)
    return match


def _refuse_odd_outputs(results: Sequence[Floats], batch: int) -> None:
    for tensor in results:
        if not tensor.ndim or len(tensor) != batch:
            raise ExportError(
                f"the model returns {list(tensor.shape)} for a batch of {batch}; expected the batch in front"
            )
        if not np.isfinite(tensor).all():
            raise ExportError("the model returns NaN or infinite values for standard normal inputs")
