"""Compare a model file of a task with its source on the same random inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ortcam.core.convention import Floats
from ortcam.errors import ExportError, one_line
from ortcam.exporters.tasks.adopt import ConvertedTask
from ortcam.exporters.verify import (
    Agreement,
    LayerAgreement,
    LayerMatch,
    LayerToVerify,
    explain_randomness,
    make_pictures,
    relative_error,
)
from ortcam.model.contract import ROLES
from ortcam.runtime.session import CPU, RUNTIME_ERRORS, create_session

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
    """Compare a model file with its source on random inputs (see `make_pictures`), all outputs.

    Args:
        path: the file.
        converted: the source.
        layers: the exposed layers.

    Raises:
        ExportError: the file does not run, or does not agree with its source.
    """
    proto = onnx.load(path, load_external_data=False)
    session = create_session(proto, CPU, "the exported model", path.resolve().parent, log_severity=4)
    roles = ROLES[converted.task]
    converted.watch([layer.name for layer in layers if layer.name is not None])
    pictures = make_pictures(converted, np.random.default_rng(0), max(converted.batches))
    middle = len(pictures) // 2
    errors, mixing, alone = dict.fromkeys(roles, 0.0), 0.0, list[Floats]()
    matches: list[list[LayerMatch]] = [[] for _ in layers]
    for batch in converted.batches:
        inputs = pictures[middle : middle + 1] if batch == 1 else pictures
        try:
            results = session.run(None, {"image": inputs})
        except RUNTIME_ERRORS as error:
            raise ExportError(f"the exported model does not run with a batch of {batch}: {one_line(error)}") from error
        _refuse_odd_outputs(results, batch)
        if batch == 1:
            alone = results
        elif alone:
            pairs = zip(results, alone, strict=True)
            mixing = max(relative_error(together[middle : middle + 1], own) for together, own in pairs)
        expected, shown = converted.run(inputs)
        for role, array in zip(roles, results, strict=False):
            if array.shape != expected[role].shape:
                raise ExportError(
                    f"the exported model returns {role} {list(array.shape)}, its source {list(expected[role].shape)}"
                )
            errors[role] = max(errors[role], relative_error(array, expected[role]))
        for layer, tensor, seen in zip(layers, results[len(roles) :], matches, strict=True):
            seen.append(_match(layer, tensor, shown))
    worst = max(errors, key=lambda role: errors[role])
    if not errors[worst] <= converted.tolerance:
        again, _ = converted.run(inputs)
        random = relative_error(again[worst], expected[worst]) > _REPEATED
        raise ExportError(
            f"the exported model does not agree with its source: {worst} differ by {errors[worst]:.2g} of the largest "
            f"(at most {converted.tolerance:g} allowed)"
            + (f"; the source {explain_randomness(again[worst], expected[worst])}" if random else "")
        )
    of_layers = tuple(map(_worst, matches))
    for found in of_layers:
        if found.error is not None and not found.error <= converted.layer_tolerance:
            raise ExportError(
                f"the exported target layer does not agree with its source: activations differ by {found.error:.2g} of "
                f"the largest (at most {converted.layer_tolerance:g} allowed)"
            )
    return TaskAgreement(errors[worst], of_layers, True, converted.batches, mixing=mixing, errors=errors)


def _match(layer: LayerToVerify, tensor: Floats, shown: Mapping[str, NDArray[Any]]) -> LayerMatch:
    """Find an exposed layer among the source's layers."""
    match = LayerMatch(tensor, layer.tokens)
    for name, array in shown.items():
        if layer.name is None or layer.name not in shown or name == layer.name:
            match.see(array, None if name.startswith(":") else name)
    return match


def _worst(matches: Sequence[LayerMatch]) -> LayerAgreement:
    distances = [match.distance for match in matches if match.distance is not None]
    name = next((match.name for match in reversed(matches) if match.distance is not None), None)
    return LayerAgreement(max(distances) if len(distances) == len(matches) else None, name)


def _refuse_odd_outputs(results: Sequence[Floats], batch: int) -> None:
    for tensor in results:
        if not tensor.ndim or len(tensor) != batch:
            raise ExportError(
                f"the model returns {list(tensor.shape)} for a batch of {batch}; expected the batch in front"
            )
        if not np.isfinite(tensor).all():
            raise ExportError("the model returns NaN or infinite values for standard normal inputs")
