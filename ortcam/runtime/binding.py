"""Running the scoring graph with IO binding: what is on the device stays there.

Per group of photos the images go up, for the plain pass and for the masked ones, and the channels of their target
layers come down and go up again. Per batch of masked images a few numbers a row go up and a score per target comes
down; masked images exist only inside a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ortcam.core.convention import Floats, interpolation_matrix
from ortcam.errors import ModelError
from ortcam.graph import scoring
from ortcam.model.cam_model import CamModel
from ortcam.runtime.captured import GATE, NOT_CAPTURED, Batch, CapturedRuns
from ortcam.runtime.session import running

Progress = Callable[[int, int], None]
Inputs = dict[str, NDArray[Any]]

_SCORES = (scoring.TARGET_LOGITS, scoring.TARGET_LOG_PROBABILITIES)


@dataclass(frozen=True)
class Device:
    """Where buffers live: ONNX Runtime's device type, and the index of the device."""

    type: str = "cpu"
    id: int = 0


@dataclass(frozen=True)
class ForwardPass:
    """The plain forward pass of one photo, on the host.

    Attributes:
        logits: float32 [N], what the scores are taken from.
        output: float32 [N], the model's own output (probabilities for a model that ends in a softmax).
        activations: float32 [K,h,w].
        size: the input size (H, W).
    """

    logits: Floats
    output: Floats
    activations: Floats
    size: tuple[int, int]


@dataclass(frozen=True)
class Group:
    """P photos of one size whose masked images share batches.

    Attributes:
        photos: float32 [P,...], the input tensors.
        features: float32 [P*K,h,w], the activations of all of them.
        passes: the plain pass of every photo.
        on_device: the photos and the features on the device, once they are needed there.
    """

    photos: Floats
    features: Floats
    passes: tuple[ForwardPass, ...]
    on_device: dict[str, Any] = field(default_factory=dict)

    @property
    def per_photo(self) -> int:
        """K, the channels of each photo."""
        return len(self.features) // len(self.photos)

    @property
    def layer(self) -> tuple[int, int]:
        """The size (h, w) of the channels."""
        return self.features.shape[1], self.features.shape[2]


@dataclass(frozen=True)
class Rows:
    """M masked images to run.

    Attributes:
        photos: int64 [M], the photo of the group.
        channels: int64 [M], the channel that makes the mask.
        affine: float32 [M,3], the columns shift, scale and offset of the mask.
        targets: int64 [M,T], the classes whose scores are wanted.
    """

    photos: NDArray[np.int64]
    channels: NDArray[np.int64]
    affine: Floats
    targets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.photos)

    def take(self, begin: int, count: int) -> Rows:
        """Return `count` rows from `begin`; the last one again where there are no more."""
        at: Any = slice(begin, begin + count)
        if begin + count > len(self):
            at = np.minimum(np.arange(begin, begin + count), len(self) - 1)
        return Rows(self.photos[at], self.channels[at], self.affine[at], self.targets[at])

    @classmethod
    def plain(cls, photos: int) -> Rows:
        """Return the rows that run every photo unmasked."""
        affine = np.tile(np.array([0, 0, 1], np.float32), (photos, 1))
        zeros = np.zeros(photos, np.int64)
        return cls(np.arange(photos), zeros, affine, zeros[:, None])

    @classmethod
    def join(cls, parts: Sequence[Rows]) -> Rows:
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))


# How batches are filled up: not at all; so that a device sees few shapes; to powers of two, for a graph of each; to the
# model's own size.
Padding = Literal["none", "few", "powers", "full"]
_SMALLEST_POWER = 8  # below, rows that fill up cost next to nothing
_WASTE = 8  # a larger batch is filled up by an eighth at most


def batch_sizes(count: int, most: int, padding: Padding) -> list[int]:
    """Return the sizes of the batches that `count` masked images are run in; rows beyond `count` are filling.

    Without padding the batches are as even as can be, which wastes no pass, and keeps ONNX Runtime from planning
    memory for a short last batch of another size for every photo: 40 in batches of at most 16 are 14 + 13 + 13. With
    ``full`` they are 16 + 16 + 16, with ``few`` as well, where less than one batch is filled up to a power of two. With
    ``powers`` they are 16 + 16 + 8, and 90 in batches of at most 64 are 64 + 16 + 8 + 2.
    """
    batches = -(-count // most)
    if padding == "none":
        return [count // batches + (number < count % batches) for number in range(batches)]
    if padding == "full" or (padding == "few" and batches > 1):
        return [most] * batches
    sizes, left = [most] * (count // most), count % most
    while left > 0:
        size = 1 << (left - 1).bit_length()
        if padding == "powers" and size > _SMALLEST_POWER and (size - left) * _WASTE > size:
            size //= 2
        sizes.append(min(size, most))
        left -= size
    return sizes


class Scorer:
    """Runs a scoring graph. One scorer serves many threads."""

    def __init__(
        self,
        session: ort.InferenceSession,
        model: CamModel,
        device: Device,
        batch_size: int,
        padding: Padding,
        captures: bool = False,
    ) -> None:
        """Wrap a session.

        Args:
            session: a session of the scoring graph.
            model: the model file that the graph was built from.
            device: where the session's buffers live.
            batch_size: masked images a run.
            padding: how batches are filled up.
            captures: the session captures CUDA graphs.
        """
        self._session = session
        self._model = model
        self._device = device
        self._padding = padding
        self._result = session.get_outputs()[0].name
        self._name = model.name
        self._captured = CapturedRuns(session, self._name, device.type, device.id) if captures else None
        # Two runs at once would take twice the memory of a GPU, and are no faster.
        self._turn = nullcontext() if device.type == "cpu" else Lock()
        # Another model may be captured; where this one is, that is seen to already.
        self._gate = GATE.shared if device.type == "cuda" and not captures else nullcontext
        self.batch_size = batch_size

    def forward(self, tensors: Floats) -> Group:
        """Run the model once on the input tensors [P,...], unmasked.

        Raises:
            ModelError: the model cannot be run, or what it returns has another shape than its contract says.
        """
        contract, count = self._model.contract, len(tensors)
        height, width = tensors.shape[2:] if contract.image_layout == "NCHW" else tensors.shape[1:3]
        rows = Rows.plain(count).take(0, self._model.batch or count)
        nothing = {scoring.PHOTOS: tensors, scoring.ACTIVATIONS: np.zeros((count, 1, 1), np.float32)}
        matrices = self._matrices((1, 1), (height, width), False, len(rows))
        (of_rows,) = _row_inputs(rows, 1, [len(rows)])
        inputs = nothing | of_rows
        names = (self._result, scoring.LOGITS, "activations")

        def direct() -> list[Floats]:
            return self._run(self._session.io_binding(), inputs | matrices, names)

        if self._captured is None:
            output, logits, activations = direct()
        else:
            batch = Batch(False, inputs, matrices, dict.fromkeys(names), direct)
            output, logits, activations = self._captured.run(batch)
        self._check_shapes(output, activations)
        if contract.activations_layout == "NHWC":
            activations = np.ascontiguousarray(activations.transpose(0, 3, 1, 2))
        passes = (ForwardPass(logits[i], output[i], activations[i], (height, width)) for i in range(count))
        features = activations[:count].reshape(-1, *activations.shape[2:])
        return Group(tensors, features, tuple(passes))

    def score(
        self, group: Group, rows: Rows, align_corners: bool, on_progress: Progress | None = None
    ) -> tuple[Floats, Floats]:
        """Run the masked images of a group's photos.

        Args:
            group: their plain passes.
            rows: which photo, channel, mask and targets: M of them.
            align_corners: how masks are upsampled.
            on_progress: called with (done, M) after every batch.

        Returns:
            The logits of the targets and the logs of their probabilities, both float32 [M,T].
        """
        logits = np.empty(rows.targets.shape, np.float32)
        log_probabilities = np.empty(rows.targets.shape, np.float32)
        run = self._direct(group, align_corners) if self._captured is None else self._replayed(group, align_corners)
        sizes = batch_sizes(len(rows), self.batch_size, self._padding)
        begin = 0
        for size, inputs in zip(sizes, _row_inputs(rows.take(0, sum(sizes)), group.per_photo, sizes), strict=True):
            end = min(begin + size, len(rows))
            scores = run(inputs)
            logits[begin:end], log_probabilities[begin:end] = (some[: end - begin] for some in scores)
            begin += size
            if on_progress is not None:
                on_progress(end, len(rows))
        return logits, log_probabilities

    def _direct(self, group: Group, align_corners: bool) -> Callable[[Inputs], list[Floats]]:
        """Return what runs a batch in fresh buffers; what all batches of the group have is bound once."""
        binding = self._session.io_binding()
        for name, value in self._on_device(group).items():
            binding.bind_ortvalue_input(name, value)
        matrices: Inputs = {}

        def run(inputs: Inputs) -> list[Floats]:
            count = len(inputs[scoring.CHANNELS])
            if matrices and len(matrices[scoring.ROWS]) in (1, count):
                return self._run(binding, inputs, _SCORES)
            matrices.update(self._matrices(group.layer, group.passes[0].size, align_corners, count))
            return self._run(binding, inputs | matrices, _SCORES)

        return run

    def _replayed(self, group: Group, align_corners: bool) -> Callable[[Inputs], list[Floats]]:
        """Return what replays a batch as a CUDA graph."""

        def run(inputs: Inputs) -> list[Floats]:
            assert self._captured is not None
            count = len(inputs[scoring.CHANNELS])
            matrices = self._matrices(group.layer, group.passes[0].size, align_corners, count)
            outputs = dict.fromkeys(_SCORES, inputs[scoring.TARGETS].shape)

            def direct() -> list[Floats]:
                return self._direct(group, align_corners)(inputs)

            def on_device() -> dict[str, Any]:
                return self._on_device(group)

            batch = Batch(align_corners, inputs, matrices, outputs, direct, group, _of_group(group), on_device)
            return self._captured.run(batch)

        return run

    def _run(self, binding: Any, inputs: Inputs, outputs: Sequence[str]) -> list[Floats]:
        """Run with inputs beside those that are bound; return the outputs."""
        for name, array in inputs.items():
            if self._device.type == "cpu":
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
            else:
                binding.bind_ortvalue_input(name, self._upload(array))
        binding.clear_binding_outputs()
        for name in outputs:
            binding.bind_output(name)
        with self._turn, running(self._name), self._gate():
            self._session.run_with_iobinding(binding, None if self._captured is None else NOT_CAPTURED)
            results: list[Floats] = binding.copy_outputs_to_cpu()
            return results

    def _matrices(self, small: tuple[int, int], size: tuple[int, int], align_corners: bool, count: int) -> Inputs:
        """Return the matrices that upsample the masks of a batch of `count`."""
        rows = interpolation_matrix(size[0], small[0], align_corners)[None, None]
        if self._device.type != "cpu":
            rows = np.broadcast_to(rows, (count, *rows.shape[1:]))
        return {scoring.ROWS: rows, scoring.COLUMNS: interpolation_matrix(size[1], small[1], align_corners).T}

    def _check_shapes(self, output: Floats, activations: Floats) -> None:
        name = self._model.name
        if activations.ndim != 4:
            raise ModelError(
                f"{name}: the target layer has the shape {list(activations.shape)}; "
                "expected [batch,channels,height,width]"
            )
        if output.ndim != 2:
            raise ModelError(f"{name}: the output has the shape {list(output.shape)}; expected class scores [batch,N]")

    def _on_device(self, group: Group) -> dict[str, Any]:
        """Return what all batches of a group have, on the device."""
        if not group.on_device:
            group.on_device.update({name: self._upload(array) for name, array in _of_group(group).items()})
        return group.on_device

    def _upload(self, array: NDArray[Any]) -> Any:
        with running(self._name), self._gate():
            return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._device.type, self._device.id)


def _of_group(group: Group) -> Inputs:
    return {scoring.PHOTOS: group.photos, scoring.ACTIVATIONS: group.features}


def _row_inputs(rows: Rows, per_photo: int, sizes: Sequence[int]) -> Iterator[Inputs]:
    """Yield the inputs that differ from batch to batch; every photo has `per_photo` channels.

    What can be done for all batches at once is: between two runs Python is slow, its own data having left the cache.
    """
    whole = {
        scoring.CHANNELS: rows.photos * per_photo + rows.channels,
        scoring.AFFINE: rows.affine.reshape(-1, 3, 1, 1),
        scoring.TARGETS: rows.targets,
    }
    one_photo = bool((rows.photos == rows.photos[:1]).all())
    begin = 0
    for size in sizes:
        photos = rows.photos[begin : begin + size]
        index = photos[:1] if one_photo or (photos == photos[0]).all() else photos
        yield {scoring.PHOTO_INDEX: index} | {name: array[begin : begin + size] for name, array in whole.items()}
        begin += size
