"""Write a model file: expose its layers, verify it against its source, then give it its name."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import onnx
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ortcam.core.files import replace_files
from ortcam.errors import OrtcamWarning
from ortcam.exporters.batches import settle_batch
from ortcam.exporters.choice import LayerChoice, Target
from ortcam.exporters.draft import graph_errors, settle_layers, write_draft
from ortcam.exporters.precision import Precision
from ortcam.exporters.report import ExportReport, ReportedLayer
from ortcam.exporters.sources import Converted, SourceOptions
from ortcam.exporters.verify import Agreement, LayerToVerify
from ortcam.graph.layers import FeatureMap
from ortcam.model.contract import Contract, ExposedLayer
from ortcam.model.preprocessing import NAMES


class Results(Protocol):
    """What a file returns beside its layers: class scores, or the outputs of another task.

    Attributes:
        comparing: how preprocessings can be compared, for the notice that none is known; "" if they cannot be.
    """

    comparing: str

    def expose(
        self, converted: Converted, feature_maps: Sequence[FeatureMap], contract: Contract
    ) -> tuple[Contract, tuple[str, ...]]:
        """Make results and layers the outputs of a source's graph, in place; return the contract, and notices.

        Args:
            converted: the source.
            feature_maps: the layers, one for each layer of the contract.
            contract: what the file states of the source and the layers.
        """

    def verify(self, draft: Path, converted: Converted, layers: Sequence[LayerToVerify]) -> Agreement:
        """Compare a written file with its source."""

    def complete(
        self, proto: onnx.ModelProto, contract: Contract, agreement: Agreement
    ) -> tuple[Contract, Sequence[str]]:
        """Complete a verified file, in place; return its contract, and notices."""

    def rehearse(self, draft: Path) -> None:
        """Run the finished file as a user will."""


def write_file(
    source: Any,
    converted: Converted,
    options: SourceOptions,
    output: Path,
    precision: Precision,
    external_data_bytes: int,
    results: Results,
) -> ExportReport:
    """Write the file of a source; it is verified before it takes its name.

    Args:
        source: what the user gave.
        converted: the source as a graph.
        options: the user's options.
        output: the file.
        precision, external_data_bytes: as `export` takes them.
        results: what the file returns beside its layers.

    Raises:
        ExportError: the file does not agree with its source, or labels and outputs do not fit.
        LayerError: a layer is missing or is given twice, or ``auto`` finds none.
        OutputError: the file cannot be written.
    """
    with graph_errors(source):
        choice = LayerChoice(converted, options)
        targets = choice.choose()
        contract, of_results = _expose(targets, results)
    notices = [*converted.notices, *of_results]
    if contract.preprocessing is None:
        comparing = results.comparing and f" ({results.comparing.format(output=output)})"
        notices.append(
            "no preprocessing is known, so only input tensors can be explained; for photos give --preprocess "
            f"{', '.join(NAMES)} or a JSON file{comparing}"
        )
    with graph_errors(converted.name), replace_files(output) as folder:
        draft = folder / output.name
        written = write_draft(draft, converted, precision, external_data_bytes)
        checked = choice.check(draft, written, targets)
        if any(one.better is not None for one in checked):
            targets = choice.choose_again(checked)
            contract, _ = _expose(targets, results)
            written = write_draft(draft, targets[0].converted, precision, external_data_bytes)
        if precision == "fp16":
            contract = replace(contract, source=contract.source | {"precision": precision})
        asked = [LayerToVerify(target.source_layer, target.feature_map.tokens) for target in targets]
        agreement = results.verify(draft, written, asked)
        proto = onnx.load(draft, load_external_data=False)
        mixed = settle_batch(proto, draft, written, agreement)
        if mixed is not None:
            notices.append(mixed)
            agreement = replace(agreement, batches=(1,))
        layers = settle_layers(contract.layers, targets, agreement, checked)
        contract = replace(contract, layers=layers, verified=agreement.to_dict())
        contract, more = results.complete(proto, contract, agreement)
        notices += more
        metadata = {entry.key: entry.value for entry in proto.metadata_props} | contract.to_metadata()
        onnx.helper.set_model_props(proto, metadata)
        onnx.save(proto, draft)
        results.rehearse(draft)
    warned = tuple(text for one in checked for text in one.notices)
    for text in warned:
        warnings.warn(text, OrtcamWarning, stacklevel=3)  # at the call of `export`
    reported = tuple(
        ReportedLayer(layer.name, replace(target.feature_map, layout=one.layout).shape, agrees.error, one.places)
        for layer, target, agrees, one in zip(contract.layers, targets, agreement.layers, checked, strict=True)
    )
    return ExportReport(output, reported, contract, agreement, (*notices, *warned), warned)


def _expose(targets: Sequence[Target], results: Results) -> tuple[Contract, tuple[str, ...]]:
    """Make results and layers the outputs of their graph, in place; return the contract, and notices."""
    converted = targets[0].converted
    feature_maps = [target.feature_map for target in targets]
    contract = Contract(
        layers=tuple(
            ExposedLayer(target.name, target.feature_map.value.name or "", target.feature_map.layout)
            for target in targets
        ),
        image_layout=converted.image_layout,
        preprocessing=converted.preprocessing,
        source=converted.source,
    )
    contract, notices = results.expose(converted, feature_maps, contract)
    RemoveUnusedNodesPass()(converted.model)
    kept = {feature_map.value for feature_map in feature_maps}
    for value in targets[0].measured:
        if value not in kept:
            value.shape = None
    return contract, notices
