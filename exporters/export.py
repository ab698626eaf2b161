"""export: a model of another framework becomes a verified ONNX file with its target layer exposed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir

from ortcam.errors import ExportError, OptionError
from ortcam.exporters.labels import read_labels
from ortcam.exporters.sources import SourceOptions, convert
from ortcam.exporters.verify import Agreement, verify
from ortcam.files import replace_files
from ortcam.graph.expose import expose, find_output_kind
from ortcam.graph.layers import dims, find_layer, infer_shapes, module_outputs
from ortcam.model import Contract
from ortcam.preprocessing import Preprocessing
from ortcam.scorecam import ScoreCAM

if TYPE_CHECKING:
    from torch import nn

OPSETS = (18, 19, 20)
# Weights above this go to a file of their own; protobuf cannot hold 2 GB.
EXTERNAL_DATA_BYTES = 1_900_000_000


@dataclass(frozen=True)
class ExportReport:
    """What was exported.

    Attributes:
        path: the file.
        layer: the target layer's name.
        shape: its dimensions without the batch; None where they are free.
        contract: what the file's metadata states.
        agreement: how closely the file and its source agree.
        notices: what the user should know.
    """

    path: Path
    layer: str
    shape: tuple[int | None, ...]
    contract: Contract
    agreement: Agreement
    notices: tuple[str, ...]


def export(
    source: nn.Module | str | PathLike[str],
    output: str | PathLike[str],
    layer: str = "auto",
    *,
    weights: str | PathLike[str] | None = None,
    input_size: int | tuple[int, int] | None = None,
    opset: int = 20,
    preprocess: str | PathLike[str] | Preprocessing | Mapping[str, Any] | None = None,
    labels: str | PathLike[str] | Sequence[str] | Mapping[Any, str] | None = None,
    external_data_bytes: int = EXTERNAL_DATA_BYTES,
) -> ExportReport:
    """Write a model file that `ortcam.ScoreCAM` explains.

    The file is verified before it takes its name: source and ONNX Runtime run on the same random inputs, with
    batches of 1 and 3, and scores and target layer must agree to a relative error of 1e-3.

    Args:
        source: an nn.Module in eval mode; or ``torchvision:NAME``, ``timm:NAME``, ``FILE.py:CALLABLE``,
            ``package.module:CALLABLE``, or an ONNX file.
        output: the file to write, ``.onnx``; its folder is made. Weights of more than 1.9 GB go beside it, to
            ``NAME.onnx.data``.
        layer: ``auto`` (the last spatial feature map after its activation function), a dotted module name, or
            the name of a value in the graph.
        weights: a state dict file for the module, loaded with ``weights_only=True``; ``random`` (seeded) leaves
            a torchvision or timm network untrained. None: those come with their default trained weights.
        input_size: the side, or (height, width), of the input in pixels.
        opset: 18, 19 or 20, for PyTorch sources.
        preprocess: ``imagenet``, ``tf``, ``caffe``, ``lite``, ``raw``, a JSON file or object, or a Preprocessing;
            torchvision and timm sources bring their own.
        labels: class names, a file of them, or ``imagenet``; torchvision and timm sources bring their own.
        external_data_bytes: weights above this size go to a file of their own.

    Raises:
        ExportError: the source cannot be loaded or exported, or the result does not agree with it.
        LayerError: the layer does not exist.
        OptionError: an argument makes no sense.
        OutputError: the file cannot be written.
    """
    if not isinstance(output, str | PathLike) or Path(output).suffix != ".onnx":
        raise OptionError(f"output is {output!r}; expected a name that ends in .onnx")
    output = Path(output)
    if opset not in OPSETS:
        raise OptionError(
            f"opset is {opset!r}; expected {', '.join(map(str, OPSETS))}: newer ones lose GPU kernels in ONNX Runtime"
        )
    if not isinstance(layer, str):
        raise OptionError(f"layer is {layer!r}; expected a name, or 'auto'")
    if isinstance(preprocess, Mapping):
        preprocess = Preprocessing.from_dict(preprocess)
    given = None if labels is None else read_labels(labels)
    converted = convert(source, SourceOptions(weights, _as_size(input_size), opset, preprocess))
    model, notices = converted.model, list(converted.notices)
    infer_shapes(model)
    value, name = find_layer(model, layer, converted.name)
    module = name if module_outputs(model.graph).get(name) is value else None
    shape = dims(value)
    contract = Contract(
        layer=name,
        value=value.name or "",
        output=find_output_kind(model),
        preprocessing=converted.preprocessing,
        labels=_fit_labels(given or converted.labels, model, given is not None),
        source=converted.source,
    )
    if contract.preprocessing is None:
        notices.append(
            "no preprocessing is known, so only input tensors can be explained; give --preprocess for photos"
        )
    expose(model, value, contract)
    with replace_files(output) as folder:
        draft = folder / output.name
        external = _weight_bytes(model) > external_data_bytes
        ir.save(model, draft, external_data=f"{output.name}.data" if external else None)
        agreement = verify(draft, converted.input_shape, converted.reference(module), converted.batches)
        contract = replace(contract, verified=agreement.to_dict())
        proto = onnx.load(draft, load_external_data=False)
        onnx.helper.set_model_props(
            proto, {entry.key: entry.value for entry in proto.metadata_props} | contract.to_metadata()
        )
        onnx.save(proto, draft)
        ScoreCAM(draft, provider="cpu").rehearse()
    return ExportReport(output, name, shape, contract, agreement, tuple(notices))


def _as_size(input_size: Any) -> tuple[int, int] | None:
    if input_size is None:
        return None
    sides = tuple(input_size) if isinstance(input_size, Sequence) else (input_size, input_size)
    if len(sides) != 2 or not all(hasattr(side, "__index__") and int(side) > 0 for side in sides):
        raise OptionError(f"input_size is {input_size!r}; expected a side or (height, width) in pixels")
    return int(sides[0]), int(sides[1])


def _fit_labels(labels: tuple[str, ...] | None, model: ir.Model, given: bool) -> tuple[str, ...] | None:
    """Return the labels when there is one for each class; a source's own that do not fit are dropped."""
    classes = dims(model.graph.outputs[0])[-1:]
    if labels is None or not classes or classes[0] in (None, len(labels)):
        return labels
    if given:
        raise ExportError(
            f"{len(labels)} labels were given, but the model has {classes[0]} classes; give one label a class"
        )
    return None


def _weight_bytes(model: ir.Model) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
