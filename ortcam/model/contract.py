"""Contract: what the metadata of a model file states, entries ``ortcam.*`` whose values are JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
from numpy.typing import ArrayLike

from ortcam.core.pictures import Crop, Photo, Tensor
from ortcam.core.scores import Activation, Doubles, OutputKind, Scale, may_be_several, read_output
from ortcam.errors import (
    ImageError,
    ModelError,
    OptionError,
    one_line,
)
from ortcam.model.image import MAX_PIXELS, as_photo
from ortcam.model.pixels import read_pixels
from ortcam.model.preprocessing import Preprocessing
from ortcam.model.source import read_proto as read_proto

FORMAT = 2  # that is written
FORMATS = (1, 2)  # that are read
PREFIX = "ortcam."
EXPLAINER = PREFIX + "explainer"  # the metadata entry that only packed explainers have
EXPLAINER_FORMATS = (1, 2)  # of a classifier; of another task, whose inputs and outputs are others
Layout = Literal["NCHW", "NHWC"]
Task = Literal["classify", "detect", "segment", "embed", "value"]
# The outputs of a file for a task, before its layers. Only a classifier's have other names than their roles.
ROLES: dict[Task, tuple[str, ...]] = {
    "classify": ("scores",),
    "detect": ("boxes", "scores"),
    "segment": ("mask",),
    "embed": ("embedding",),
    "value": ("values",),
}
ACTIVATIONS = "activations"  # the output that holds the first exposed layer
SEQUENCE = "ortcam.sequence"  # the output that holds the tokens of the target layer, where a run needs them
_OF_LAYER = ("activations_relative_error", "places", "places_correlation")  # format 1 has them beside the scores'


def output_name(place: int) -> str:
    """Return the name of the output that holds the exposed layer at a place of the list.

    >>> output_name(0), output_name(2)
    ('activations', 'activations.2')
    """
    return f"{ACTIVATIONS}.{place}" if place else ACTIVATIONS


@dataclass(frozen=True)
class ExposedLayer:
    """A layer that a file has among its outputs.

    Attributes:
        name: its name in the source framework, as a user would type it.
        value: the name that the tensor had in the graph before it was exposed.
        layout: the order of the tensor's dimensions.
        output: the output that holds it; None in a packed explainer, where no output does.
        verified: how closely source and file agree on it, and whether its cells are places of the image; empty where
            nothing was compared.
    """

    name: str
    value: str
    layout: Layout = "NCHW"
    output: str | None = ACTIVATIONS
    verified: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the fields, which may come from a file."""
        for key in ("name", "value"):
            if not isinstance(getattr(self, key), str):
                raise TypeError(f"the {key} of a layer is {getattr(self, key)!r}")
        if self.layout not in get_args(Layout):
            raise ValueError(f"the layout of layer {self.name!r} is {self.layout!r}")


@dataclass(frozen=True)
class Stage:
    """A feature map of the graph, float32 and of rank 4.

    Attributes:
        value: its name in the graph.
        channels, rows, columns: its size, K, h and w.
        layout: the order of its dimensions.
    """

    value: str
    channels: int
    rows: int
    columns: int
    layout: Layout

    @property
    def shape(self) -> tuple[int, int, int]:
        """(K, h, w)."""
        return self.channels, self.rows, self.columns

    @property
    def dims(self) -> tuple[int, int, int]:
        """The dimensions without the batch, in the order of the layout."""
        size = (self.rows, self.columns)
        return (self.channels, *size) if self.layout == "NCHW" else (*size, self.channels)


@dataclass(frozen=True)
class Sequenced:
    """A sequence of tokens [batch,T,D] whose patches are the target layer.

    Attributes:
        value: its name in the graph.
        first: the number of other tokens, such as the class token, before the patches.
        places: the number of patches.
    """

    value: str
    first: int
    places: int


@dataclass(frozen=True)
class Contract:
    """What the metadata of a model file states.

    Attributes:
        layers: the exposed layers. The first is the target layer where no other is named.
        task: what the model does with an image.
        outputs: the names of the file's other outputs by their role (`ROLES`). Empty for a file of format 1, whose
            first output holds the scores of a classifier. ``boxes`` [B,N,4] are left, top, right and bottom in pixels
            of the input, and ``scores`` [B,N,C] in [0,1], before any suppression; ``mask`` [B,C,H,W] are
            probabilities; ``embedding`` is [B,D], ``values`` [B,N].
        image_layout: the order of the dimensions.
        output: what the first output of a classifier holds: ``logits``, ``log_probabilities``, ``probabilities`` (of a
            softmax) or ``sigmoid`` (the probabilities of independent sigmoids).
        activation: what makes probabilities of the logits: ``softmax`` or ``sigmoid``. None where neither the graph nor
            the user says: a softmax is assumed then, of a single score a sigmoid.
        output_scale: (a, b) where the output is a * x + b, and x is what `output` says.
        preprocessing: how a photo becomes an input; None when unknown (only tensors can be explained then).
        labels: the class names by index, or None.
        logits: the tensor in the graph that the final softmax or sigmoid reads; None where the output is the logits, or
            where no such tensor is in the graph.
        logits_scale: what its integers stand for where it is quantized: scale and zero point.
        source: what the model was made from: kind, name, versions.
        verified: how closely the scores of source and file agree, by measure; empty when there was nothing to compare
            with.
    """

    layers: tuple[ExposedLayer, ...]
    task: Task = "classify"
    outputs: dict[str, str] = field(default_factory=dict)
    image_layout: Layout = "NCHW"
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
            _refuse_unknown(values, name)
            values["layers"] = _read_layers(values)
            if not isinstance(values.get("outputs", {}), dict):
                raise TypeError(f"outputs is {values['outputs']!r}")
            if values.get("preprocessing") is not None:
                values["preprocessing"] = Preprocessing.from_dict(values["preprocessing"])
            if values.get("labels") is not None:
                values["labels"] = tuple(values["labels"])
            for key, known in (("output", get_args(OutputKind)), ("activation", (None, *get_args(Activation)))):
                if values.get(key, known[0]) not in known:
                    raise ValueError(f"{key} is {values[key]!r}")
            return cls(**{key: value for key, value in values.items() if key in cls.__dataclass_fields__})
        except (ValueError, TypeError, AttributeError, LookupError, OptionError) as error:
            raise ModelError(f"{name} has metadata that cannot be read: {one_line(error)}; export it again") from error

    @property
    def layer(self) -> str:
        """The target layer's name in the source framework."""
        return self.layers[0].name

    @property
    def value(self) -> str:
        """The name that the target layer's tensor had in the graph before it was exposed."""
        return self.layers[0].value

    @property
    def activations_layout(self) -> Layout:
        """The order of the target layer's dimensions."""
        return self.layers[0].layout

    def layouts(self, stages: Sequence[Stage]) -> tuple[Layout, ...]:
        """Return the orders of the dimensions of the target layer and of earlier stages."""
        return (self.activations_layout, *(stage.layout for stage in stages))

    @property
    def classifies(self) -> bool:
        """Whether the model is a classifier, whose targets are classes."""
        return self.task == "classify"

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


def count_scores(proto: onnx.ModelProto) -> int | None:
    """Return how many scores the first output of a model file has; None where the file does not say."""
    dims = proto.graph.output[0].type.tensor_type.shape.dim
    return dims[-1].dim_value or None if dims else None


def _refuse_unknown(values: dict[str, Any], name: str) -> None:
    """Refuse metadata of a format or for a task that this ortcam does not know."""
    found, task = values["format"], values.get("task", "classify")
    if found not in FORMATS:
        known = " and ".join(map(str, FORMATS))
        raise ModelError(
            f"{name} has format {found!r}; this ortcam reads formats {known}: export it again, or use a newer ortcam"
        )
    if task not in get_args(Task):
        raise ModelError(
            f"{name} is made for the task {task!r}; this ortcam supports only {', '.join(map(repr, get_args(Task)))}: "
            "use a newer ortcam"
        )


def _read_layers(values: dict[str, Any]) -> tuple[ExposedLayer, ...]:
    """Return the exposed layers of metadata; that of format 1 has one, and what was verified of it with the scores."""
    if values["format"] == 1:
        verified = values.get("verified", {})
        of_layer = {key: verified.pop(key) for key in _OF_LAYER if key in verified}
        layout = values.get("activations_layout", "NCHW")
        return (ExposedLayer(values["layer"], values["value"], layout, verified=of_layer),)
    fields = ExposedLayer.__dataclass_fields__
    layers = tuple(
        ExposedLayer(**{key: value for key, value in entry.items() if key in fields}) for entry in values["layers"]
    )
    outputs = [layer.output for layer in layers]
    if not layers or outputs not in ([output_name(place) for place in range(len(layers))], [None]):
        raise ValueError(f"the outputs of the layers are {outputs}")
    return layers
