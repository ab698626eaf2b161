"""What kind of model a source is, and the one shape that every kind is turned into."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ortcam.errors import ExportError
from ortcam.exporters.verify import BATCHES, Reference
from ortcam.preprocessing import Preprocessing

if TYPE_CHECKING:
    import onnx_ir as ir

DEFAULT_SIDE = 224


@dataclass(frozen=True)
class SourceOptions:
    """What the user said of the source; None where nothing."""

    weights: str | PathLike[str] | None
    input_size: tuple[int, int] | None
    opset: int
    preprocess: str | PathLike[str] | Preprocessing | None


@dataclass(frozen=True)
class Converted:
    """A source turned into an ONNX graph, with nothing exposed yet.

    Attributes:
        name: what messages call the source.
        model: the graph; its first input is the image, its first output the class scores.
        input_shape: the input's dimensions without the batch.
        reference: given the module that the target layer is, or None, returns what runs the source for comparison.
        source: for the metadata: kind, name, versions.
        preprocessing, labels: the source's own, or what the user gave; None when unknown.
        batches: the batch sizes that the graph can run.
        notices: what the user should know.
    """

    name: str
    model: ir.Model
    input_shape: tuple[int, ...]
    reference: Callable[[str | None], Reference]
    source: dict[str, Any]
    preprocessing: Preprocessing | None
    labels: tuple[str, ...] | None = None
    batches: tuple[int, ...] = BATCHES
    notices: tuple[str, ...] = ()


def convert(source: Any, options: SourceOptions) -> Converted:
    """Turn a source of any kind into an ONNX graph.

    Raises:
        ExportError: the kind is unknown or its framework is missing, or the source cannot be converted.
    """
    if isinstance(source, str | PathLike) and Path(source).suffix.lower() == ".onnx":
        from ortcam.exporters.onnx_file import convert_onnx_file

        return convert_onnx_file(Path(source), options)
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise ExportError(f"exporting {source} needs PyTorch: pip install 'ortcam[torch]'") from error
    from ortcam.exporters.pytorch import convert_module
    from ortcam.exporters.pytorch_sources import load_module

    return convert_module(load_module(source, options), options)


def choose_preprocessing(
    given: str | PathLike[str] | Preprocessing | None,
    own: Preprocessing | None,
    size: tuple[int, int] | None,
    channels: int,
    natural: tuple[int, int] | None = None,
) -> Preprocessing | None:
    """Return the user's preprocessing, else the source's own, for the input size that was asked for.

    Args:
        given: what the user said.
        own: what the source brings.
        size: the size that the user asked for.
        channels: how many channels the input has.
        natural: the size of the input where the user asked for none; None for the source's own, or 224x224.
    """
    if given is None:
        return own if own is None or size is None else own.resized(*size)
    if isinstance(given, Preprocessing):
        return given if size is None else given.resized(*size)
    if Path(given).suffix.lower() == ".json":
        preprocessing = Preprocessing.from_file(given)
        return preprocessing if size is None else preprocessing.resized(*size)
    if natural is None:
        natural = (DEFAULT_SIDE, DEFAULT_SIDE) if own is None else (own.height, own.width)
    height, width = size or natural
    return Preprocessing.named(str(given), height, width, channels)
