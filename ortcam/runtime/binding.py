"""Running the scoring graph with IO binding: what is on the device stays there.

Per photo the image, the list of channels and three numbers a channel go up, the activations and the scores come
down. Every batch binds slices of those same buffers, so between batches nothing is copied; masked images exist
only inside a run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
    """One plain forward pass. `photo` and `features` are on the device, the rest on the host.

    Attributes:
        logits: float32 [N], what the scores are taken from.
        output: float32 [N], the model's own output (probabilities for a model that ends in a softmax).
        activations: float32 [K,h,w].
        size: the input size (H, W).
    """

    photo: Any
    features: Any
    logits: Floats
    output: Floats
    activations: Floats
    size: tuple[int, int]


def batch_sizes(count: int, most: int, fixed: bool) -> list[int]:
    """Return the sizes of the batches that `count` masked images are run in.

    With `fixed` every batch has `most` rows, and the rows beyond `count` are filling. Otherwise the batches are as
    even as can be, which wastes no pass, and keeps ONNX Runtime from planning memory for a short last batch of
    another size for every photo: 40 in batches of at most 16 are 14 + 13 + 13.
    """
    batches = -(-count // most)
    if fixed:
        return [most] * batches
    return [count // batches + (number < count % batches) for number in range(batches)]


class Scorer:
    """Runs a scoring graph. Holds no state of any photo, so one scorer serves many threads."""

    def __init__(
        self, session: ort.InferenceSession, model: CamModel, device: Device, batch_size: int, fixed: bool
    ) -> None:
        """Wrap a session.

        Args:
            session: a session of the scoring graph.
            model: the model file that the graph was built from.
            device: where the session's buffers live.
            batch_size: masked images a run.
            fixed: fill the last batch up, so that every run has the same shape (TensorRT, CUDA).
        """
        self._session = session
        self._model = model
        self._device = device
        self._batch_size = batch_size
        self._fixed = fixed
        self._result = session.get_outputs()[0].name

    def forward(self, tensor: Floats) -> ForwardPass:
        """Run the model once on an input tensor [1,...], unmasked."""
        contract = self._model.contract
        size = tensor.shape[2:] if contract.image_layout == "NCHW" else tensor.shape[1:3]
        photo = self._upload(tensor)
        binding = self._session.io_binding()
        self._bind_inputs(binding, photo, self._upload(np.zeros((1, 1, 1, 1), np.float32)), (1, 1), size, [0], False)
        binding.bind_ortvalue_input(scoring.CHANNELS, self._upload(np.zeros(1, np.int64)))
        binding.bind_ortvalue_input(scoring.AFFINE, self._upload(np.array([0, 0, 1], np.float32).reshape(1, 3, 1, 1)))
        for name in (self._result, scoring.LOGITS):
            binding.bind_output(name)
        binding.bind_output("activations", self._device.type, self._device.id)
        self._run(binding)
        output, logits, features = binding.get_outputs()
        activations = features.numpy()
        if activations.ndim != 4 or len(activations) != 1:
            raise ModelError(
                f"{self._model.path.name}: the target layer has the shape {list(activations.shape)}; "
                "expected [1,channels,height,width]"
            )
        if output.numpy().ndim != 2:
            raise ModelError(
                f"{self._model.path.name}: the output has the shape {list(output.shape())}; expected class scores [1,N]"
            )
        activations = activations[0] if contract.activations_layout == "NCHW" else activations[0].transpose(2, 0, 1)
        if not np.isfinite(activations).all() or not np.isfinite(logits.numpy()).all():
            raise ModelError(f"{self._model.path.name} returns NaN or infinite values for this image")
        return ForwardPass(
            photo,
            features,
            logits.numpy()[0],
            output.numpy()[0],
            np.ascontiguousarray(activations),
            (size[0], size[1]),
        )

    def score(
        self,
        photo: ForwardPass,
        channels: NDArray[np.int64],
        affine: Floats,
        targets: list[int],
        align_corners: bool,
        on_progress: Progress | None = None,
    ) -> tuple[Floats, Floats]:
        """Run the image masked by each of M channels.

        Args:
            photo: the plain pass of the image.
            channels: int64 [M].
            affine: float32 [M,3], the columns shift, scale and offset of the mask.
            targets: T class indices.
            align_corners: how masks are upsampled.
            on_progress: called with (done, M) after every batch.

        Returns:
            The logits of the targets and the logs of their probabilities, both float32 [M,T].
        """
        count = len(channels)
        sizes = batch_sizes(count, self._batch_size, self._fixed)
        filled = sum(sizes)
        pad = [(0, filled - count)]
        on_channels = self._upload(np.pad(channels, pad))
        on_affine = self._upload(np.pad(affine, [*pad, (0, 0)]).reshape(filled, 3, 1, 1))
        scores = {
            name: self._allocate((filled, len(targets)))
            for name in (scoring.TARGET_LOGITS, scoring.TARGET_LOG_PROBABILITIES)
        }
        binding = self._session.io_binding()
        small = (photo.activations.shape[1], photo.activations.shape[2])
        self._bind_inputs(binding, photo.photo, photo.features, small, photo.size, targets, align_corners)
        begin = 0
        for rows in sizes:
            self._bind_slice(binding.bind_input, scoring.CHANNELS, on_channels, np.int64, begin, (rows,))
            self._bind_slice(binding.bind_input, scoring.AFFINE, on_affine, np.float32, begin, (rows, 3, 1, 1))
            for name, buffer in scores.items():
                self._bind_slice(binding.bind_output, name, buffer, np.float32, begin, (rows, len(targets)))
            self._run(binding)
            begin += rows
            if on_progress is not None:
                on_progress(min(begin, count), count)
        logits, log_probabilities = (buffer.numpy()[:count] for buffer in scores.values())
        return logits, log_probabilities

    def _bind_inputs(
        self,
        binding: Any,
        photo: Any,
        features: Any,
        small: tuple[int, int],
        size: tuple[int, ...],
        targets: list[int],
        align_corners: bool,
    ) -> None:
        """Bind the inputs that are the same for every batch of a photo."""
        rows = interpolation_matrix(size[0], small[0], align_corners)
        columns = np.ascontiguousarray(interpolation_matrix(size[1], small[1], align_corners).T)
        binding.bind_ortvalue_input(scoring.PHOTO, photo)
        binding.bind_ortvalue_input(scoring.ACTIVATIONS, features)
        binding.bind_ortvalue_input(scoring.ROWS, self._upload(rows))
        binding.bind_ortvalue_input(scoring.COLUMNS, self._upload(columns))
        binding.bind_ortvalue_input(scoring.TARGETS, self._upload(np.array(targets, np.int64)))

    def _bind_slice(
        self,
        bind: Callable[..., None],
        name: str,
        buffer: Any,
        dtype: type,
        begin: int,
        shape: tuple[int, ...],
    ) -> None:
        """Bind rows `begin` and on of a buffer, without a copy."""
        row_bytes = int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
        bind(name, self._device.type, self._device.id, dtype, shape, buffer.data_ptr() + begin * row_bytes)

    def _upload(self, array: NDArray[Any]) -> Any:
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._device.type, self._device.id)

    def _allocate(self, shape: tuple[int, ...]) -> Any:
        return ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, self._device.type, self._device.id)

    def _run(self, binding: Any) -> None:
        try:
            self._session.run_with_iobinding(binding)
        except RUNTIME_ERRORS as error:
            raise ModelError(f"ONNX Runtime cannot run {self._model.path.name}: {one_line(error)}") from error
