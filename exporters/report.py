"""The result of an export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ortcam.exporters.places import Places
from ortcam.exporters.verify import Agreement
from ortcam.model.contract import Contract


@dataclass(frozen=True)
class ReportedLayer:
    """A layer that was exposed.

    Attributes:
        name: the layer.
        shape: its channels, height and width; None for a free dimension.
        error: the difference between file and source, as `LayerAgreement.error`.
        places: whether the layer's cells are places of the image.
    """

    name: str
    shape: tuple[int | None, ...]
    error: float | None
    places: Places


@dataclass(frozen=True, repr=False)
class ExportReport:
    """The result of an export. ``print(report)`` shows it in a few lines.

    Attributes:
        path: the file.
        layers: the exposed layers; the first is the target layer.
        contract: the contract in the file's metadata.
        agreement: how closely the file and its source agree.
        notices: notices for the user.
        warned: the notices that were also issued as warnings.
    """

    path: Path
    layers: tuple[ReportedLayer, ...]
    contract: Contract
    agreement: Agreement
    notices: tuple[str, ...]
    warned: tuple[str, ...] = ()

    @property
    def layer(self) -> str:
        """The target layer's name."""
        return self.layers[0].name

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The target layer's channels, height and width; None for a free dimension."""
        return self.layers[0].shape

    @property
    def places(self) -> Places:
        """Whether the target layer's cells are places of the image."""
        return self.layers[0].places

    def __str__(self) -> str:
        """Return the file, its layers, how closely the file and its source agree, and the notices, a line each."""
        agreement, contract = self.agreement, self.contract
        size = f", {self.path.stat().st_size / 1e6:.1f} MB" if self.path.is_file() else ""
        labels = "" if contract.labels is None else f", {len(contract.labels)} labels"
        what = contract.output if contract.classifies else f"{contract.task}: {' and '.join(contract.outputs)}"
        others = f"; also {', '.join(map(_describe, self.layers[1:]))}" if self.layers[1:] else ""
        errors = {"scores": agreement.logits} if contract.classifies else contract.verified.get("relative_errors", {})
        if agreement.activations is not None:
            errors = {**errors, "target layer": agreement.activations}
        within = ", ".join(f"{name} within {error:.1g}" for name, error in errors.items())
        return "\n".join(
            [
                f"{self.path}: {what}{labels}{size}",
                f"target layer {_describe(self.layers[0])}{others}",
                f"agrees with its source: {within} (relative)",
                *(f"note: {notice}" for notice in self.notices),
            ]
        )

    def __repr__(self) -> str:
        return f"<ExportReport of {self.path}: target layer {_describe(self.layers[0])}>"


def _describe(layer: ReportedLayer) -> str:
    return f"{layer.name} ({' x '.join('?' if dim is None else str(dim) for dim in layer.shape)})"
