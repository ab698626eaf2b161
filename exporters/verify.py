"""Holding an exported file to its source: the same random inputs through both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ortcam.convention import Floats
from ortcam.errors import ExportError, one_line
from ortcam.runtime.session import RUNTIME_ERRORS, create_session

TOLERANCE = 1e-3
BATCHES = (1, 3)

# Runs the source on inputs [B,...]; given the file's activations too, it returns its own scores [B,N] and how far
# (relatively) its own tensor is from them, or None where the source cannot show its inner tensors.
Reference = Callable[[Floats, Floats], tuple[Floats, float | None]]


@dataclass(frozen=True)
class Agreement:
    """How closely an exported file and its source agree, the worst over all batches.

    Attributes:
        logits: the largest difference of the scores over the largest score.
        activations: likewise for the target layer; None where only the scores could be compared.
        top1: whether both see the same top class in every input, up to ties within `logits`.
        batches: the batch sizes that were run.
    """

    logits: float
    activations: float | None
    top1: bool
    batches: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "logits_relative_error": float(f"{self.logits:.3g}"),
            "activations_relative_error": None if self.activations is None else float(f"{self.activations:.3g}"),
            "same_top1": self.top1,
            "batches": list(self.batches),
        }


def relative_error(ours: Floats, theirs: Floats) -> float:
    """Return the largest difference over the largest magnitude of `theirs`."""
    scale = float(np.abs(theirs).max())
    return float(np.abs(ours - theirs).max()) / max(scale, float(np.finfo(np.float32).tiny))


def verify(
    path: Path, input_shape: tuple[int, ...], reference: Reference, batches: tuple[int, ...] = BATCHES
) -> Agreement:
    """Compare an exported file with its source on standard normal inputs.

    Args:
        path: the file.
        input_shape: the input's dimensions without the batch.
        reference: runs the source.
        batches: the batch sizes to run.

    Raises:
        ExportError: the file does not run, or is further from its source than `TOLERANCE`.
    """
    proto = onnx.load(path, load_external_data=False)
    session = create_session(proto, [("CPUExecutionProvider", {})], "the exported model", path.resolve().parent)
    random = np.random.default_rng(0)
    logits_error, activations_error, top1 = 0.0, 0.0, True
    for batch in batches:
        inputs = random.standard_normal((batch, *input_shape)).astype(np.float32)
        try:
            scores, activations = session.run(None, {"image": inputs})
        except RUNTIME_ERRORS as error:
            raise ExportError(f"the exported model does not run with a batch of {batch}: {one_line(error)}") from error
        _refuse_odd_outputs(scores, activations, batch)
        source_scores, distance = reference(inputs, activations)
        if source_scores.shape != scores.shape:
            raise ExportError(
                f"the exported model returns scores {list(scores.shape)}, its source {list(source_scores.shape)}"
            )
        logits_error = max(logits_error, relative_error(scores, source_scores))
        activations_error = float("nan") if distance is None else max(activations_error, distance)
        tie = logits_error * float(np.abs(source_scores).max())
        chosen = source_scores[np.arange(batch), scores.argmax(axis=1)]
        top1 = top1 and bool((source_scores.max(axis=1) - chosen <= tie).all())
    agreement = Agreement(logits_error, None if np.isnan(activations_error) else activations_error, top1, batches)
    if not logits_error <= TOLERANCE or not top1:
        raise ExportError(
            f"the exported model does not agree with its source: scores differ by {logits_error:.2g} of the largest "
            f"(at most {TOLERANCE:g} allowed), same top class: {top1}"
        )
    if agreement.activations is not None and not agreement.activations <= TOLERANCE:
        raise ExportError(
            "the exported target layer does not agree with its source: "
            f"activations differ by {agreement.activations:.2g} of the largest (at most {TOLERANCE:g} allowed)"
        )
    return agreement


def _refuse_odd_outputs(scores: Floats, activations: Floats, batch: int) -> None:
    if scores.ndim != 2 or len(scores) != batch:
        raise ExportError(
            f"the model returns {list(scores.shape)} for a batch of {batch}; expected class scores [batch,classes]: "
            "ortcam explains image classifiers"
        )
    if activations.ndim != 4 or len(activations) != batch:
        raise ExportError(
            f"the target layer is {list(activations.shape)} for a batch of {batch}; expected [batch,channels,h,w]"
        )
    if not np.isfinite(scores).all() or not np.isfinite(activations).all():
        raise ExportError("the model returns NaN or infinite values for standard normal inputs")
