"""The class scores of a model file: their kind and labels, and the comparison with the source's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir

from ortcam.explain.scorecam import ScoreCAM
from ortcam.exporters.labels import fit_labels
from ortcam.exporters.outputs import refuse_largest
from ortcam.exporters.score_kind import StatedKind, check_kind, rename_output, settle_kind, state_count
from ortcam.exporters.sources import Converted
from ortcam.exporters.verify import Agreement, LayerToVerify, verify
from ortcam.graph.ends import read_scores
from ortcam.graph.expose import expose
from ortcam.graph.layers import FeatureMap, dims
from ortcam.model.contract import Contract


class ClassScores:
    """The results of a classifier's file (see `ortcam.exporters.write.Results`)."""

    comparing = "to compare them: ortcam preprocessing {output} photos/"

    def __init__(self, labels: tuple[str, ...] | None, stated: StatedKind | None) -> None:
        """Take the user's labels and kind of scores; None for those of the source."""
        self._labels, self._stated = labels, stated

    def expose(
        self, converted: Converted, feature_maps: Sequence[FeatureMap], contract: Contract
    ) -> tuple[Contract, tuple[str, ...]]:
        """Make scores and layers the outputs; return the contract with kind and labels, and notices."""
        model = converted.model
        refuse_largest(model.graph.outputs[0], converted.name)
        classes = _count_classes(model)
        fitting, notice = fit_labels(self._labels or converted.labels, classes, self._labels is not None)
        scores, notices = settle_kind(read_scores(model.graph.outputs[0]), self._stated, classes, converted.name)
        contract = expose(model, feature_maps, replace(contract, labels=fitting), scores)
        return contract, notices if notice is None else (notice, *notices)

    def verify(self, draft: Path, converted: Converted, layers: Sequence[LayerToVerify]) -> Agreement:
        """Compare scores and layers with those of the source."""
        return verify(draft, converted, layers)

    def complete(
        self, proto: onnx.ModelProto, contract: Contract, agreement: Agreement
    ) -> tuple[Contract, Sequence[str]]:
        """Check the kind of the scores on those that were run; state their number, and name probabilities so."""
        contract, notices = check_kind(contract, self._stated, agreement.scores)
        if contract.output == "probabilities":
            rename_output(proto, "probabilities")
            contract = replace(contract, outputs={"scores": "probabilities"})
        state_count(proto, agreement.scores.shape[1])
        return contract, notices

    def rehearse(self, draft: Path) -> None:
        """Run the file as `ScoreCAM` does."""
        ScoreCAM(draft, provider="cpu").rehearse()


def _count_classes(model: ir.Model) -> int | None:
    """Return the number of scores in [batch,N], [batch,N,1,1] or [batch]; None if it is unknown."""
    shape = model.graph.outputs[0].shape
    if shape is not None and len(shape) == 1:
        return shape[0] if isinstance(shape[0], int) else 1
    counts = [dim for dim in dims(model.graph.outputs[0]) if dim != 1]
    return 1 if not counts and dims(model.graph.outputs[0]) else counts[0] if len(counts) == 1 else None
