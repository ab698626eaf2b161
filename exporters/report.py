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


@dataclass(frozen=True)
class ExportReport:
    """The result of an export.

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
