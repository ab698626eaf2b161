"""Compare an exported file with its source on the same random inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ortcam.core.convention import Floats
from ortcam.errors import ExportError, one_line
from ortcam.graph.maps import Tokens
from ortcam.runtime.session import CPU, RUNTIME_ERRORS, create_session

if TYPE_CHECKING:
    from ortcam.exporters.sources import Converted

TOLERANCE = 1e-3
BATCHES = (1, 3)


class LayerMatch:
    """Finds the tensor of a source that is nearest to a file's activations.

    Attributes:
        distance: the relative error of the nearest tensor; None until a tensor of their shape is shown.
        name: the source's name for this tensor; the first of several equal tensors.
    """

    def __init__(self, activations: Floats, tokens: Tokens | None) -> None:
        """Look for `activations` [B,...], a map or a part of a sequence of tokens."""
        self.activations = activations
        self.tokens = tokens
        self.distance: float | None = None
        self.name: str | None = None

    def see(self, tensor: NDArray[Any], name: str | None = None) -> None:
        """Compare a tensor [B,...] of the source; its channels may be first or last."""
        for view in self._views(tensor):
            if view.shape == self.activations.shape:
                distance = relative_error(self.activations, view)
                if self.distance is None or distance < self.distance:
                    self.distance, self.name = distance, name

    def _views(self, tensor: NDArray[Any]) -> Iterator[NDArray[Any]]:
        tokens = self.tokens
        if tokens is not None and tensor.ndim == 3 and tensor.shape[1] >= tokens.end:
            yield tensor[:, tokens.first : tokens.end].reshape(len(tensor), tokens.rows, tokens.columns, -1)
        elif tokens is None and tensor.ndim == 4:
            yield tensor
            yield tensor.transpose(0, 3, 1, 2)
            yield tensor.transpose(0, 2, 3, 1)


# Runs the source on inputs [B,...], shows its tensors to the match, and returns its scores [B,N].
Reference = Callable[[Floats, LayerMatch], NDArray[Any]]


@dataclass(frozen=True)
class LayerToVerify:
    """An exposed layer of a file, to be found in its source.

    Attributes:
        name: the source's name for the layer; None if it has none.
        tokens: how it was cut out of a sequence of tokens.
    """

    name: str | None
    tokens: Tokens | None = None


@dataclass(frozen=True)
class LayerAgreement:
    """How closely an exposed layer and its source agree, the worst over all batches.

    Attributes:
        error: the largest difference over the largest activation; None if the layer could not be compared.
        name: the source's name for the layer; None if it was not found among the source's tensors.
    """

    error: float | None
    name: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"activations_relative_error": None if self.error is None else float(f"{self.error:.3g}")}


@dataclass(frozen=True)
class Agreement:
    """How closely an exported file and its source agree, the worst over all batches.

    Attributes:
        logits: the largest difference of the scores over the largest score.
        layers: the same for each exposed layer.
        top1: whether both have the same top class for every input, up to ties within `logits`.
        batches: the batch sizes that were run.
        scores: float32 [R,N], the file's scores for all inputs.
        mixing: the relative difference of a picture's scores and layers, alone and in a batch.
    """

    logits: float
    layers: tuple[LayerAgreement, ...]
    top1: bool
    batches: tuple[int, ...]
    scores: Floats = field(default_factory=lambda: np.zeros((0, 0), np.float32), compare=False, repr=False)
    mixing: float = 0.0

    @property
    def activations(self) -> float | None:
        """The error of the first exposed layer; None if only the scores could be compared."""
        return self.layers[0].error if self.layers else None

    def to_dict(self) -> dict[str, Any]:
        """Return the entries for a file's metadata."""
        return {
            "logits_relative_error": float(f"{self.logits:.3g}"),
            "same_top1": self.top1,
            "batches": list(self.batches),
        }


def relative_error(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """Return the largest difference over the largest magnitude of `theirs`."""
    theirs = theirs.astype(np.float32, copy=False)
    scale = float(np.abs(theirs).max())
    return float(np.abs(ours - theirs).max()) / max(scale, float(np.finfo(np.float32).tiny))


@dataclass(frozen=True)
class LastRun:
    """The last batch that a file ran.

    Attributes:
        session: the file's session.
        inputs: the inputs of the batch.
        mixing: as `Agreement.mixing`.
    """

    session: Any
    inputs: Floats
    mixing: float


def run_batches(path: Path, converted: Converted, compare: Callable[[Floats, list[Floats]], None]) -> LastRun:
    """Run a file on random inputs (see `make_pictures`), with each batch size of its source.

    One picture runs both alone and among others, to compare its results.

    Args:
        path: the file.
        converted: the source.
        compare: checks the inputs and the results of each batch, and compares them with the source's.

    Raises:
        ExportError: the file does not run, or `compare` raises it.
    """
    proto = onnx.load(path, load_external_data=False)
    session = create_session(proto, CPU, "the exported model", path.resolve().parent, log_severity=4)
    pictures = make_pictures(converted, np.random.default_rng(0), max(converted.batches))
    middle = len(pictures) // 2  # a graph may read a batch from its front or its end
    mixing, alone = 0.0, list[Floats]()
    for batch in converted.batches:
        inputs = pictures[middle : middle + 1] if batch == 1 else pictures
        try:
            results = session.run(None, {"image": inputs})
        except RUNTIME_ERRORS as error:
            raise ExportError(f"the exported model does not run with a batch of {batch}: {one_line(error)}") from error
        compare(inputs, results)
        if batch == 1:
            alone = results
        elif alone:
            pairs = zip(results, alone, strict=True)
            mixing = max(relative_error(together[middle : middle + 1], own) for together, own in pairs)
    return LastRun(session, inputs, mixing)


def verify(path: Path, converted: Converted, layers: Sequence[LayerToVerify]) -> Agreement:
    """Compare a classifier's file with its source on random inputs (see `run_batches`).

    Args:
        path: the file.
        converted: the source.
        layers: the exposed layers.

    Raises:
        ExportError: the file does not run, or does not agree with its source.
    """
    references = [converted.reference(layer.name) for layer in layers]
    logits_error, top1, returned = 0.0, True, list[Floats]()
    source_scores: NDArray[Any] = np.zeros((0, 0), np.float32)
    matches: list[list[LayerMatch]] = [[] for _ in layers]

    def compare(inputs: Floats, results: list[Floats]) -> None:
        nonlocal logits_error, top1, source_scores
        scores, *activations = results
        _refuse_odd_outputs(scores, activations, len(inputs))
        returned.append(scores)
        for layer, reference, tensor, seen in zip(layers, references, activations, matches, strict=True):
            seen.append(LayerMatch(tensor, layer.tokens))
            source_scores = reference(inputs, seen[-1])
        if source_scores.shape != scores.shape:
            raise ExportError(
                f"the exported model returns scores {list(scores.shape)}, its source {list(source_scores.shape)}"
            )
        logits_error = max(logits_error, relative_error(scores, source_scores))
        tie = logits_error * float(np.abs(source_scores).max())
        chosen = source_scores[np.arange(len(inputs)), scores.argmax(axis=1)]
        top1 = top1 and bool((source_scores.max(axis=1) - chosen <= tie).all())

    last = run_batches(path, converted, compare)
    of_layers = tuple(map(worst, matches))
    agreement = Agreement(logits_error, of_layers, top1, converted.batches, np.concatenate(returned), last.mixing)
    try:
        _refuse_disagreement(agreement, converted.tolerance, converted.layer_tolerance)
    except ExportError as error:
        again = last.session.run(None, {"image": last.inputs})[0]
        source_again = references[-1](last.inputs, matches[-1][-1])
        for what, first, second in (("it", returned[-1], again), ("the source", source_scores, source_again)):
            if relative_error(second, first) > TOLERANCE:
                raise ExportError(f"{error}; {what} {explain_randomness(second, first)}") from error
        raise
    return agreement


def worst(matches: Sequence[LayerMatch]) -> LayerAgreement:
    """Return the worst agreement of a layer over all batches; its error is unknown if a batch does not show it."""
    distances = [match.distance for match in matches if match.distance is not None]
    name = next((match.name for match in reversed(matches) if match.distance is not None), None)
    return LayerAgreement(max(distances) if len(distances) == len(matches) else None, name)


def make_pictures(converted: Converted, random: np.random.Generator, count: int) -> Floats:
    """Return random inputs [count,...]: the middle input standard normal, or bytes if the source takes bytes.

    The others are brighter or darker, with another contrast, so that statistics over the batch differ from its own.
    """
    shape = (count, *converted.input_shape)
    if converted.takes_bytes:
        pictures = random.integers(0, 256, shape).astype(np.float32)
        pictures[: count // 2] = pictures[: count // 2] // 2 + 128
        pictures[count // 2 + 1 :] //= 2
        return pictures
    pictures = random.standard_normal(shape).astype(np.float32)
    pictures[: count // 2] = 2 * pictures[: count // 2] + 1
    pictures[count // 2 + 1 :] = pictures[count // 2 + 1 :] / 2 - 1
    return pictures


def explain_randomness(scores: Floats, again: Floats) -> str:
    """Return the message for a model whose two equal runs differ."""
    return (
        f"draws random numbers: two equal runs differ by {relative_error(scores, again):.2g} of the largest score; "
        "export the source in evaluation mode, without dropout or noise"
    )


def _refuse_disagreement(agreement: Agreement, tolerance: float, layer_tolerance: float) -> None:
    if not agreement.logits <= tolerance or not agreement.top1:
        # `top1` counts ties within the error as agreement, so it has no meaning if the error itself is too large
        top = "" if agreement.top1 else "; the top class differs by more than that"
        raise ExportError(
            f"the exported model does not agree with its source: scores differ by {agreement.logits:.2g} of the "
            f"largest (at most {tolerance:g} allowed){top}"
        )
    refuse_layers(agreement.layers, layer_tolerance)


def refuse_layers(layers: Sequence[LayerAgreement], tolerance: float) -> None:
    """Refuse layers that differ from the source's by more than the tolerance.

    Raises:
        ExportError: a layer does.
    """
    for layer in layers:
        if layer.error is not None and not layer.error <= tolerance:
            shown = "" if layer.name is None else f" {layer.name!r}"
            raise ExportError(
                f"the exported target layer{shown} does not agree with its source: "
                f"activations differ by {layer.error:.2g} of the largest (at most {tolerance:g} allowed)"
            )


def _refuse_odd_outputs(scores: Floats, activations: Sequence[Floats], batch: int) -> None:
    if scores.ndim != 2 or len(scores) != batch:
        raise ExportError(
            f"the model returns {list(scores.shape)} for a batch of {batch}; expected class scores [batch,classes]"
        )
    for tensor in activations:
        if tensor.ndim != 4 or len(tensor) != batch:
            raise ExportError(
                f"the target layer is {list(tensor.shape)} for a batch of {batch}; expected [batch,channels,h,w]"
            )
    if not all(np.isfinite(tensor).all() for tensor in (scores, *activations)):
        raise ExportError("the model returns NaN or infinite values for standard normal inputs")
