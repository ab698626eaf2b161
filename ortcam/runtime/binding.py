"""Running the scoring graph with IO binding: what is on the device stays there.

Per group of photos the images go up and the activations come down, once. Per batch of masked images a few numbers a
row go up and a score per target comes down; masked images exist only inside a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ortcam.convention import Floats, interpolation_matrix
from ortcam.errors import ModelError, one_line
from ortcam.graph import scoring
from ortcam.model import CamModel
from ortcam.runtime.session import RUNTIME_ERRORS

Progress = Callable[[int, int], None]


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
        photos, features: the images and the activations [P,K,h,w], on the device.
        passes: the plain pass of every photo.
    """

    photos: Any
    features: Any
    passes: tuple[ForwardPass, ...]


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


# How batches are filled up: not at all; to a power of two, so that a device sees few shapes; to the model's own size.
Padding = Literal["none", "power", "full"]


def batch_sizes(count: int, most: int, padding: Padding) -> list[int]:
    """Return the sizes of the batches that `count` masked images are run in; rows beyond `count` are filling.

    Without padding the batches are as even as can be, which wastes no pass, and keeps ONNX Runtime from planning
    memory for a short last batch of another size for every photo: 40 in batches of at most 16 are 14 + 13 + 13.
    With ``power`` they are 16 + 16 + 8, with ``full`` 16 + 16 + 16.
    """
    batches = -(-count // most)
    if padding == "none":
        return [count // batches + (number < count % batches) for number in range(batches)]
    sizes = [most] * batches
    if batches and padding == "power":
        sizes[-1] = min(most, 1 << (count - most * (batches - 1) - 1).bit_length())
    return sizes


class Scorer:
    """Runs a scoring graph. Holds no state of any photo, so one scorer serves many threads."""

    def __init__(
        self, session: ort.InferenceSession, model: CamModel, device: Device, batch_size: int, padding: Padding
    ) -> None:
        """Wrap a session.

        Args:
            session: a session of the scoring graph.
            model: the model file that the graph was built from.
            device: where the session's buffers live.
            batch_size: masked images a run.
            padding: how batches are filled up.
        """
        self._session = session
        self._model = model
        self._device = device
        self._padding = padding
        self._result = session.get_outputs()[0].name
        self.batch_size = batch_size

    def forward(self, tensors: Floats) -> Group:
        """Run the model once on the input tensors [P,...], unmasked.

        Raises:
            ModelError: the model cannot be run, or what it returns has another shape than its contract says.
        """
        contract, count = self._model.contract, len(tensors)
        size = tensors.shape[2:] if contract.image_layout == "NCHW" else tensors.shape[1:3]
        rows = Rows.plain(count).take(0, self._model.batch or count)
        photos = self._upload(tensors)
        nothing = self._upload(np.zeros((count, 1, 1, 1), np.float32))
        binding = self._session.io_binding()
        self._bind_group(binding, photos, nothing, (1, 1), (size[0], size[1]), align_corners=False)
        self._bind_rows(binding, rows)
        for name in (self._result, scoring.LOGITS):
            binding.bind_output(name)
        binding.bind_output("activations", self._device.type, self._device.id)
        self._run(binding)
        on_device = binding.get_outputs()[2]
        output, logits, activations = (value.numpy() for value in binding.get_outputs())
        self._check_shapes(output, activations)
        if contract.activations_layout == "NHWC":  # the graph gathers channels first
            activations = np.ascontiguousarray(activations.transpose(0, 3, 1, 2))
            on_device = self._upload(activations)
        passes = (ForwardPass(logits[i], output[i], activations[i], (size[0], size[1])) for i in range(count))
        return Group(photos, on_device, tuple(passes))

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
        first = group.passes[0]
        binding = self._session.io_binding()
        small = (first.activations.shape[1], first.activations.shape[2])
        self._bind_group(binding, group.photos, group.features, small, first.size, align_corners)
        begin = 0
        for size in batch_sizes(len(rows), self.batch_size, self._padding):
            end = min(begin + size, len(rows))
            self._bind_rows(binding, rows.take(begin, size))
            binding.bind_output(scoring.TARGET_LOGITS)
            binding.bind_output(scoring.TARGET_LOG_PROBABILITIES)
            self._run(binding)
            scores = binding.get_outputs()
            logits[begin:end] = scores[0].numpy()[: end - begin]
            log_probabilities[begin:end] = scores[1].numpy()[: end - begin]
            binding.clear_binding_outputs()
            begin = end
            if on_progress is not None:
                on_progress(end, len(rows))
        return logits, log_probabilities

    def _bind_group(
        self, binding: Any, photos: Any, features: Any, small: tuple[int, int], size: tuple[int, int],
        align_corners: bool,
    ) -> None:  # fmt: skip
        """Bind the inputs that are the same for every batch of a group."""
        rows = interpolation_matrix(size[0], small[0], align_corners)
        columns = np.ascontiguousarray(interpolation_matrix(size[1], small[1], align_corners).T)
        binding.bind_ortvalue_input(scoring.PHOTOS, photos)
        binding.bind_ortvalue_input(scoring.ACTIVATIONS, features)
        binding.bind_ortvalue_input(scoring.ROWS, self._upload(rows))
        binding.bind_ortvalue_input(scoring.COLUMNS, self._upload(columns))

    def _bind_rows(self, binding: Any, rows: Rows) -> None:
        one_photo = rows.photos[:1] if (rows.photos == rows.photos[0]).all() else rows.photos
        values: dict[str, NDArray[Any]] = {
            scoring.PHOTO_INDEX: one_photo,
            scoring.CHANNELS: np.stack([rows.photos, rows.channels], axis=1),
            scoring.AFFINE: rows.affine.reshape(-1, 3, 1, 1),
            scoring.TARGETS: rows.targets,
        }
        for name, value in values.items():
            binding.bind_ortvalue_input(name, self._upload(value))

    def _check_shapes(self, output: Floats, activations: Floats) -> None:
        name = self._model.path.name
        if activations.ndim != 4:
            raise ModelError(
                f"{name}: the target layer has the shape {list(activations.shape)}; "
                "expected [batch,channels,height,width]"
            )
        if output.ndim != 2:
            raise ModelError(f"{name}: the output has the shape {list(output.shape)}; expected class scores [batch,N]")

    def _upload(self, array: NDArray[Any]) -> Any:
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._device.type, self._device.id)

    def _run(self, binding: Any) -> None:
        try:
            self._session.run_with_iobinding(binding)
        except RUNTIME_ERRORS as error:
            raise ModelError(f"ONNX Runtime cannot run {self._model.path.name}: {one_line(error)}") from error
