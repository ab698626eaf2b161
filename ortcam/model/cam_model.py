"""CamModel: an ONNX file whose target layers are outputs, and the contract that its metadata states.

An ordinary ONNX file: input `image`, outputs `logits` (or `probabilities`), `activations`, `activations.1`, ..., and
metadata entries with the prefix ``ortcam.`` whose values are JSON. See docs/model-file.md.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import onnx

from ortcam.core.files import Fingerprint
from ortcam.core.pictures import Crop, Photo, Tensor
from ortcam.core.targets import Class, Targets, resolve_targets
from ortcam.errors import (
    ModelError,
    PackedModelError,
)
from ortcam.model.contract import (
    ACTIVATIONS,
    EXPLAINER,
    ROLES,
    SEQUENCE,
    Contract,
    ExposedLayer,
    Sequenced,
    Stage,
    count_scores,
    output_name,
)
from ortcam.model.image import MAX_PIXELS
from ortcam.model.protobuf import add_output, choose_output, drop_outputs
from ortcam.model.source import ModelSource, external_files
from ortcam.model.source import read_proto as read_proto


class CamModel:
    """An ONNX file with an exposed target layer.

    It can be pickled: a file is read again where it is needed, bytes are kept.

    Attributes:
        source: the file, the bytes or the proto that was given.
        contract: the contract of the model as it runs; if another layer is chosen, it states this layer alone.
        stated: the contract in the file's metadata, whichever layer is chosen.
        input_shape: the dimensions of `image` without the batch; None where the size is free.
        batch: the batch size when the file fixes one, else None.
        activations_shape: the dimensions of `activations` without the batch; None where the size is free.
        results: the names of the outputs that hold the results of the task.
        result_shapes: their dimensions without the batch; None where a size is free.
        classes: how many classes the model has, 2 for a single score; for the task ``value``, how many values. None
            if the file does not say, and for embeddings.
        has_external_data: whether weights lie in other files.
        fingerprints: the file, and after it the files of external weights, for their hashes.
        is_kept: whether the cache may keep what is prepared from it; false for a model that runs once.
        stages: earlier feature maps that a run returns beside the target layer, as `activations.1`, ...
        sequence: the tokens that the target layer is taken from, if a run returns them too.
    """

    def __init__(self, model: str | PathLike[str] | bytes | bytearray | memoryview | onnx.ModelProto) -> None:
        """Read the file's structure and contract; the weights go to ONNX Runtime later.

        Args:
            model: the path of the file, its bytes, or an onnx.ModelProto; the last two without external weights.

        Raises:
            ModelError: the file is missing, is not an ONNX model, or exposes no target layer; `PackedModelError` if it
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
        self.is_kept = True
        self.stages: tuple[Stage, ...] = ()
        self.sequence: Sequenced | None = None
        self._edit: Callable[[onnx.ModelProto], onnx.ModelProto] | None = None
        self._read_shapes(proto)
        self.stated = self.contract
        self._fresh: onnx.ModelProto | None = proto

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fresh": None}

    def _read_shapes(self, proto: onnx.ModelProto) -> None:
        inputs = {value.name: value for value in proto.graph.input}
        outputs = [value.name for value in proto.graph.output]
        roles = ROLES[self.contract.task]
        results = [self.contract.outputs.get(role, outputs[place] if place < len(outputs) else role)
                   for place, role in enumerate(roles)]  # fmt: skip
        expected = [*results, *(layer.output for layer in self.contract.layers)]
        if "image" not in inputs or outputs[: len(roles)] != results or not set(expected) <= set(outputs):
            raise ModelError(
                f"{self.shown} has inputs {list(inputs)} and outputs {outputs}; "
                f"expected the input 'image' and the outputs {expected}: export it again"
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
        self.results = tuple(results)
        self.result_shapes = tuple(
            tuple(dim.dim_value or None for dim in value.type.tensor_type.shape.dim[1:])
            for value in proto.graph.output[: len(roles)]
        )
        if not self.contract.classifies:
            last = self.result_shapes[-1]
            place = 0 if self.contract.task == "segment" else -1
            self.classes = last[place] if last and self.contract.task != "embed" else None
            return
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

    def find_exposed(self, layer: str) -> ExposedLayer | None:
        """Return the exposed layer that has this name; None where the file exposes no such layer.

        Args:
            layer: the name in the source framework, the output, or the value in the source's graph; it is looked for
                in this order.
        """
        for names in zip(*((one.name, one.output, one.value) for one in self.stated.layers), strict=True):
            if layer in names:
                return self.stated.layers[names.index(layer)]
        return None

    def with_exposed(self, layer: ExposedLayer) -> CamModel:
        """Return the same model with another of its exposed layers as target layer: `activations`."""
        if layer == self.stated.layers[0]:
            other = copy.copy(self)
            other.contract, other._edit, other._fresh = self.stated, None, self.take_file()
            other._read_shapes(other._fresh)
            return other
        edit = partial(_choose, chosen=layer, layers=self.stated.layers)
        logits = {layer.output: ACTIVATIONS, ACTIVATIONS: layer.output}.get(self.stated.logits, self.stated.logits)
        contract = replace(self.stated, layers=(replace(layer, output=ACTIVATIONS),), logits=logits)
        return self.with_layer(contract, edit(self.take_file()), edit)

    def reading(self, stages: Sequence[Stage] = (), sequence: Sequenced | None = None) -> CamModel:
        """Return the same model, whose runs also return earlier feature maps, or the tokens of its target layer."""
        other = copy.copy(self)
        other.stages, other.sequence = tuple(stages) or self.stages, sequence or self.sequence
        self._fresh = None  # it will be edited, so only one of the two may have it
        return other

    def exposes(self, layer: str) -> bool:
        """Whether `layer` is a name of the target layer that the model has already."""
        own, found = self.contract.layers[0], self.find_exposed(layer)
        if found is not None:
            return replace(found, output=own.output) == own
        return layer in (own.name, own.value)

    @property
    def edited_layer(self) -> str | None:
        """The value that is the target layer, where it is not the layer that the file exposes first."""
        return None if self._edit is None else self.contract.value

    @property
    def read_layers(self) -> tuple[str | None, ...]:
        """The values that a run reads, where they are not the layer that the file exposes first; of a cache's key."""
        sequence = () if self.sequence is None else (self.sequence.value,)
        return (self.edited_layer, *(stage.value for stage in self.stages), *sequence)

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
    def reference_sizes(self) -> tuple[int, int]:
        """The lengths R and C of references to the results (`ortcam.core.references.stack`).

        Raises:
            ModelError: the file leaves one of them free.
        """
        task, shape = self.contract.task, self.result_shapes[-1]
        length: int | None = 4
        if task == "segment":
            length = shape[1] * shape[2] if len(shape) == 3 and shape[1] and shape[2] else None
        elif task != "detect":
            length = shape[0] if shape else None
        classes = self.classes if task in ("detect", "segment") else 1
        if not length or not classes:
            raise ModelError(
                f"{self.shown} returns {self.results[-1]!r} of the shape {list(shape)} without the batch, and one of "
                "these sizes is free; expected fixed sizes: export the model with a fixed input size"
            )
        return length, classes

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
        proto, self._fresh = self.peek(), None
        if self._edit is None:
            drop_outputs(proto.graph, _outputs(self.stated.layers[1:]))
        for place, stage in enumerate(self.stages, 1):
            add_output(proto.graph, stage.value, output_name(place), ["batch", *stage.dims])
        if self.sequence is not None:
            add_output(
                proto.graph, self.sequence.value, SEQUENCE, ["batch", "tokens", self.activations_shape[2] or "D"]
            )
        return proto

    def peek(self) -> onnx.ModelProto:
        """Return the parsed file with the target layer as `activations`, not to be edited; `take_proto` has it next."""
        if self._fresh is None:
            proto = self.source.read()
            self._fresh = proto if self._edit is None else self._edit(proto)
        return self._fresh

    def take_file(self) -> onnx.ModelProto:
        """Return the parsed file as it was read, for the caller to edit."""
        proto, self._fresh = self._fresh, None
        return self.source.read() if proto is None or self._edit is not None else proto

    def forget_proto(self) -> None:
        """Let the parsed weights go, where nobody took them."""
        self._fresh = None

    def prepare(self, image: Any, max_pixels: int = MAX_PIXELS) -> tuple[Photo | None, Tensor, Crop]:
        """Turn a path, a photo or an input tensor into (photo, input tensor [1,...], the crop the model sees).

        The photo is None for an input tensor whose preprocessing is unknown or cannot be undone.

        Raises:
            ImageError: the image is of another type, or does not fit the model.
        """
        return self.contract.prepare(image, self.input_shape, self.shown, max_pixels)

    def require_classes(self, what: str) -> None:
        """Refuse a model of another task.

        Raises:
            ModelError: it is one of another task.
        """
        task = self.contract.task
        if not self.contract.classifies:
            raise ModelError(f"{self.shown} is made for the task {task!r}; {what} needs a classifier: use explain")

    def resolve_targets(self, targets: Targets, classes: int) -> tuple[Class, ...] | None:
        """Return the targets that a user names: `ortcam.core.targets.resolve_targets`."""
        return resolve_targets(targets, classes, self.labels, self.name)


def _choose(proto: onnx.ModelProto, chosen: ExposedLayer, layers: Sequence[ExposedLayer]) -> onnx.ModelProto:
    """Make an exposed layer the output `activations`, and the only one, in place."""
    (own,) = _outputs([chosen])
    choose_output(proto.graph, own, ACTIVATIONS, [name for name in _outputs(layers) if name != own])
    return proto


def _outputs(layers: Sequence[ExposedLayer]) -> list[str]:
    return [layer.output for layer in layers if layer.output is not None]


# What a model is loaded from: a file's path or bytes, an onnx.ModelProto, or what is loaded already.
ModelLike = str | PathLike[str] | bytes | bytearray | memoryview | onnx.ModelProto | CamModel
