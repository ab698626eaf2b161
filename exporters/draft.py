"""Write a graph to a file that is not yet verified, and settle what the file states of its layers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError

from ortcam.errors import ExportError, one_line
from ortcam.exporters.choice import Checked, Target
from ortcam.exporters.precision import FP16_TOLERANCE, Precision, to_float16
from ortcam.exporters.sources import Converted
from ortcam.exporters.verify import Agreement
from ortcam.model.contract import ExposedLayer
from ortcam.runtime.layer import GRAPH_ERRORS

_GRAPH_ERRORS = (*GRAPH_ERRORS, ArithmeticError, DecodeError, EncodeError)
# Weights above this go to a file of their own; protobuf cannot hold 2 GB.
EXTERNAL_DATA_BYTES = 1_900_000_000


def settle_layers(
    stated: Sequence[ExposedLayer], targets: Sequence[Target], agreement: Agreement, checked: Sequence[Checked]
) -> tuple[ExposedLayer, ...]:
    """Return the file's entries for its layers: the source's names for them, and the verified errors."""
    settled: list[ExposedLayer] = []
    for layer, target, agrees, one in zip(stated, targets, agreement.layers, checked, strict=True):
        name = target.source_layer or agrees.name or layer.name
        if any(name == other.name for other in settled):  # the source has equal tensors
            name = layer.name
        verified = agrees.to_dict() | one.places.to_dict()
        settled.append(replace(layer, name=name, layout=one.layout, verified=verified))
    return tuple(settled)


def write_draft(draft: Path, converted: Converted, precision: Precision, external_data_bytes: int) -> Converted:
    """Write the graph of a source to a file; return the source with the tolerances of the file's precision."""
    model = converted.model
    external = _weight_bytes(model) > external_data_bytes
    ir.external_data.load_to_model(model)  # the weights move with the graph
    ir.save(model, draft, external_data=f"{draft.name}.data" if external else None)
    if precision == "fp32":
        return converted
    if external:
        raise ExportError("a model with external weights cannot be turned into float16; export it as fp32")
    onnx.save(to_float16(onnx.load(draft)), draft)
    return replace(
        converted,
        tolerance=max(converted.tolerance, FP16_TOLERANCE),
        layer_tolerance=max(converted.layer_tolerance, FP16_TOLERANCE),
    )


@contextlib.contextmanager
def graph_errors(source: Any) -> Iterator[None]:
    """Raise errors of onnx and onnx-ir about an invalid graph as an ExportError that names the source."""
    try:
        yield
    except OSError:  # of the disk, not of the graph
        raise
    except _GRAPH_ERRORS as error:
        name = source if isinstance(source, str | PathLike) else type(source).__name__
        raise ExportError(
            f"{name} has a graph that cannot be read or edited: {type(error).__name__}: {one_line(error)}"
        ) from error


def _weight_bytes(model: ir.Model) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
