"""CamModel: an ONNX file whose target layer is an output, and the contract that its metadata states.

An ordinary ONNX file: input `image`, outputs `logits` (or `probabilities`) and `activations`, and metadata
entries with the prefix ``ortcam.`` whose values are JSON. See docs/model-file.md.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
from numpy.typing import ArrayLike

from ortcam.errors import (
    ImageError,
    ModelError,
    OptionError,
    PackedModelError,
    one_line,
)
from ortcam.files import Fingerprint
from ortcam.image import MAX_PIXELS, Photo, as_photo
from ortcam.pixels import read_pixels
from ortcam.preprocessing import Crop, Preprocessing, Tensor
from ortcam.scores import Activation, Doubles, OutputKind, Scale, may_be_several, read_output
from ortcam.source import ModelSource, external_files
from ortcam.source import read_proto as read_proto
from ortcam.targets import resolve_targets

FORMAT = 1
PREFIX = "ortcam."
EXPLAINER = PREFIX + "explainer"  # the metadata entry that only packed explainers have
EXPLAINER_FORMAT = 1
Layout = Literal["NCHW", "NHWC"]


@dataclass(frozen=True)
class Contract:
    """What the metadata of a model file states.

    Attributes:
        layer: the target layer's name in the source framework, as a user would type it.
        value: the name that the tensor had in the graph before it was exposed.
        image_layout, activations_layout: the order of the dimensions.
        output: what the first output holds: ``logits``, ``log_probabilities``, ``probabilities`` (of a softmax) or
            ``sigmoid`` (the probabilities of independent sigmoids).
        activation: what makes probabilities of the logits: ``softmax`` or ``sigmoid``. None where neither the graph nor
            the user says: a softmax is assumed then, of a single score a sigmoid.
        output_scale: (a, b) where the output is a * x + b, and x is what `output` says.
        preprocessing: how a photo becomes an input; None when unknown (only tensors can be explained then).
        labels: the class names by index, or None.
        logits: the tensor in the graph that the final softmax or sigmoid reads; None where the output is the logits, or
            where no such tensor is in the graph.
        logits_scale: what its integers stand for where it is quantized: scale and zero point.
        source: what the model was made from: kind, name, versions.
        verified: how closely source and file agree, by measure; empty when there was nothing to compare with.
    """

    layer: str
    value: str
    image_layout: Layout = "NCHW"
    activations_layout: Layout = "NCHW"
    output: OutputKind = "logits"
    activation: Activation | None = None
    output_scale: Scale | None = None
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] | None = None
    logits: str | None = None
    logits_scale: tuple[float, int] | None = None
    source: dict[str, Any] = field(default_factory=dict)
    verified: dict[str, Any] = field(default_factory=dict)

    def to_metadata(self) -> dict[str, str]:
        """Return the metadata entries, names with prefix, values JSON."""
        return {PREFIX + key: json.dumps(value) for key, value in {"format": FORMAT, **asdict(self)}.items()}

    @classmethod
    def from_metadata(cls, entries: dict[str, str], name: str, is_file: bool = True) -> Contract:
        """Read the metadata entries of a model.

        Args:
            entries: names with prefix, values JSON.
            name: what error messages call the model.
            is_file: whether that is a file's name.

        Raises:
            ModelError: there are none, they are of a newer format, or they cannot be read.
        """
        if PREFIX + "format" not in entries:
            advice = f"run `ortcam export {name} -o {Path(name).stem}.cam.onnx` (see: ortcam inspect {name})"
            raise ModelError(
                f"{name} exposes no target layer; expected a model that ortcam wrote: "
                + (advice if is_file else "save it to a file, and export the file with `ortcam export`")
            )
        try:
            values = {
                key.removeprefix(PREFIX): json.loads(text) for key, text in entries.items() if key.startswith(PREFIX)
            }
            found = values.pop("format")
            if found != FORMAT:
                raise ModelError(f"{name} has format {found!r}; this ortcam reads format {FORMAT}: export it again")
            if values.get("preprocessing") is not None:
                values["preprocessing"] = Preprocessing.from_dict(values["preprocessing"])
            if values.get("labels") is not None:
                values["labels"] = tuple(values["labels"])
            for key, known in (("output", get_args(OutputKind)), ("activation", (None, *get_args(Activation)))):
                if values.get(key, known[0]) not in known:
                    raise ValueError(f"{key} is {values[key]!r}")
            return cls(**{key: value for key, value in values.items() if key in cls.__dataclass_fields__})
        except (ValueError, TypeError, AttributeError, OptionError) as error:
            raise ModelError(f"{name} has metadata that cannot be read: {one_line(error)}; export it again") from error

    @property
    def makes_probabilities(self) -> Activation:
        """What makes probabilities of the logits, guessed where nothing says it."""
        return self.activation or ("sigmoid" if self.output == "sigmoid" else "softmax")

    def is_in_doubt(self, classes: int | None) -> bool:
        """Whether a softmax is assumed of logits that may be independent ones."""
        return self.output == "logits" and self.activation is None and may_be_several(classes)

    def read_output(self, output: ArrayLike) -> tuple[Doubles, Doubles]:
        """Return the logits and probabilities, float64 [N], that the model's output [N] stands for."""
        return read_output(output, self.output, self.makes_probabilities, self.output_scale)

    def of_single_score(self) -> Contract:
        """Return the contract with what follows from a single score: a sigmoid's, and labels for its two sides."""
        labels = self.labels
        if labels is not None and len(labels) == 1:
            labels = (f"not {labels[0]}", labels[0])
        return replace(self, activation="sigmoid", labels=labels)

    def prepare(
        self, image: Any, input_shape: Sequence[int | None], name: str, max_pixels: int = MAX_PIXELS
    ) -> tuple[Photo | None, Tensor, Crop]:
        """Turn a path, a photo or an input tensor into (photo, input tensor [1,...], the crop the model sees).

        The photo is None where an input tensor came and no preprocessing is known to undo.

        Args:
            image: a path, a Pillow image, an array or a tensor.
            input_shape: of the model's image without the batch; None where the size is free.
            name: what error messages call the model.
            max_pixels: the most pixels of a file.

        Raises:
            ImageError: it is none of these, or does not fit the model.
        """
        pixels = read_pixels(image, max_pixels)
        if np.issubdtype(pixels.dtype, np.floating):
            return self._prepare_tensor(pixels, input_shape)
        photo = as_photo(pixels)
        if self.preprocessing is None:
            raise ImageError(
                f"{name} does not say how to preprocess a photo; "
                f"export it with --preprocess (to compare the choices: ortcam preprocessing {name} photos/), or pass a "
                "preprocessed input tensor float32 [1,C,H,W]"
            )
        return photo, self.preprocessing.apply(photo, self.image_layout), self.preprocessing.crop(*photo.shape[:2])

    def _prepare_tensor(
        self, pixels: np.ndarray[Any, Any], input_shape: Sequence[int | None]
    ) -> tuple[Photo | None, Tensor, Crop]:
        tensor = np.ascontiguousarray(pixels[None] if pixels.ndim == 3 else pixels, np.float32)
        expected = [1, *(dim or "?" for dim in input_shape)]
        if tensor.ndim != 4 or any(want not in ("?", got) for want, got in zip(expected, tensor.shape, strict=True)):
            raise ImageError(f"input tensor has shape {list(pixels.shape)}; expected {expected} ({self.image_layout})")
        if not np.isfinite(tensor).all():
            raise ImageError("input tensor has NaN or infinite values; expected finite numbers")
        height, width = tensor.shape[2:] if self.image_layout == "NCHW" else tensor.shape[1:3]
        photo = None if self.preprocessing is None else self.preprocessing.invert(tensor, self.image_layout)
        return photo, tensor, Crop(0, 0, height, width)


class CamModel:
    """An ONNX file with an exposed target layer.

    It can be pickled: a file is read again where it is needed, bytes are kept.

    Attributes:
        source: where it came from.
        contract: what its metadata states.
        input_shape: the dimensions of `image` without the batch; None where the size is free.
        batch: the batch size when the file fixes one, else None.
        activations_shape: the dimensions of `activations` without the batch; None where the size is free.
        classes: how many classes the model has, 2 for a single score; None where the file does not say.
        has_external_data: whether weights lie in other files.
        fingerprints: the file, and after it the files of external weights, for their hashes.
    """

    def __init__(self, model: str | PathLike[str] | bytes | bytearray | memoryview | onnx.ModelProto) -> None:
        """Read the file's structure and contract; the weights go to ONNX Runtime later.

        Args:
            model: the path of the file, its bytes, or an onnx.ModelProto; the last two without external weights.

        Raises:
            ModelError: the file is missing, no ONNX model, or exposes no target layer; a PackedModelError where it
                is a packed explainer.
        """
        self.source = ModelSource(model)
        name, proto = self.shown, self.source.read()
        entries = {entry.key: entry.value for entry in proto.metadata_props}
        if EXPLAINER in entries:
            raise PackedModelError(
                f"{name} is a packed explainer; expected the model file that it was made from "
                "(ortcam explain and ortcam.PackedExplainer run it as it is)"
            )
        self.contract = Contract.from_metadata(entries, name, self.path is not None)
        external = external_files(proto)
        self.has_external_data = bool(external)
        folder = self.external_data_directory
        self.fingerprints = (self.source.fingerprint, *(Fingerprint(folder / file) for file in external))
        self._edit: Callable[[onnx.ModelProto], onnx.ModelProto] | None = None
        self._read_shapes(proto)
        self._fresh: onnx.ModelProto | None = proto

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fresh": None}

    def _read_shapes(self, proto: onnx.ModelProto) -> None:
        inputs = {value.name: value for value in proto.graph.input}
        outputs = [value.name for value in proto.graph.output]
        if "image" not in inputs or "activations" not in outputs:
            raise ModelError(
                f"{self.shown} has inputs {list(inputs)} and outputs {outputs}; "
                "expected the input 'image' and the output 'activations': export it again"
            )
        shape = [dim.dim_value or None for dim in inputs["image"].type.tensor_type.shape.dim]
        if len(shape) != 4:
            raise ModelError(
                f"{self.shown} takes an input of rank {len(shape)}; "
                f"expected 4 dimensions ({self.contract.image_layout})"
            )
        self.batch, self.input_shape = shape[0], tuple(shape[1:])
        layer = next(value for value in proto.graph.output if value.name == "activations").type.tensor_type.shape
        self.activations_shape = tuple(dim.dim_value or None for dim in layer.dim[1:])
        self.classes = count_scores(proto)
        if self.classes == 1:
            self.classes, self.contract = 2, self.contract.of_single_score()

    def with_layer(
        self, contract: Contract, proto: onnx.ModelProto, edit: Callable[[onnx.ModelProto], onnx.ModelProto]
    ) -> CamModel:
        """Return the same model with another target layer.

        Args:
            contract: what it states now.
            proto: the model with that layer as `activations`.
            edit: makes `proto` of the model as it was read; can be pickled.
        """
        other = copy.copy(self)
        other.contract, other._edit, other._fresh = contract, edit, proto
        other._read_shapes(proto)
        return other

    def exposes(self, layer: str) -> bool:
        """Whether `layer` is a name of the target layer that the model has already."""
        return layer in (self.contract.layer, self.contract.value, "activations")

    @property
    def edited_layer(self) -> str | None:
        """The value that is the target layer, where it is not the layer that the file exposes itself."""
        return None if self._edit is None else self.contract.value

    @property
    def path(self) -> Path | None:
        """The file; None where the model came as bytes or as an onnx.ModelProto."""
        return self.source.path

    @property
    def name(self) -> str:
        """What short messages call it: the file's name."""
        return self.source.name

    @property
    def shown(self) -> str:
        """What messages call it that tell where it lies: the path."""
        return self.source.shown

    @property
    def channels(self) -> int | None:
        """How many channels the target layer has; None where the file does not say."""
        if len(self.activations_shape) != 3:
            return None
        return self.activations_shape[0 if self.contract.activations_layout == "NCHW" else 2]

    @property
    def usual_shape(self) -> tuple[int | None, ...]:
        """`input_shape` with the size that preprocessing makes, where the file leaves it free."""
        known = self.contract.preprocessing
        if known is None:
            return self.input_shape
        size = (known.height, known.width)
        usual = (known.channel_count, *size) if self.contract.image_layout == "NCHW" else (*size, known.channel_count)
        return tuple(dim or other for dim, other in zip(self.input_shape, usual, strict=True))

    @property
    def labels(self) -> tuple[str, ...] | None:
        return self.contract.labels

    @property
    def sha256(self) -> str:
        """The hash of the file, in hexadecimal digits.

        Raises:
            ModelError: the file changed after it was loaded.
        """
        found = self.fingerprints[0].sha256
        if found is None:
            raise ModelError(f"{self.shown} changed while it was loaded; load it again")
        return found

    @property
    def external_data_directory(self) -> Path:
        """The directory that external weights, if there are any, are read from."""
        return self.source.folder

    def take_proto(self) -> onnx.ModelProto:
        """Return the parsed file for the caller to edit: no copy of the weights is kept here."""
        proto, self._fresh = self._fresh, None
        if proto is not None:
            return proto
        proto = self.source.read()
        return proto if self._edit is None else self._edit(proto)

    def forget_proto(self) -> None:
        """Let the parsed weights go, where nobody took them."""
        self._fresh = None

    def prepare(self, image: Any, max_pixels: int = MAX_PIXELS) -> tuple[Photo | None, Tensor, Crop]:
        """Turn a path, a photo or an input tensor into (photo, input tensor [1,...], the crop the model sees).

        The photo is None where an input tensor came and no preprocessing is known to undo.

        Raises:
            ImageError: it is none of these, or does not fit the model.
        """
        return self.contract.prepare(image, self.input_shape, self.shown, max_pixels)

    def resolve_targets(self, targets: Any, classes: int) -> list[int] | None:
        """Return the class indices that `targets` names: `ortcam.targets.resolve_targets`."""
        return resolve_targets(targets, classes, self.labels, self.name)


def count_scores(proto: onnx.ModelProto) -> int | None:
    """Return how many scores the first output of a model file has; None where the file does not say."""
    dims = proto.graph.output[0].type.tensor_type.shape.dim
    return dims[-1].dim_value or None if dims else None
