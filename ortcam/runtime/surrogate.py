"""Run the surrogates of a group of photos on the model's device: `ortcam.core.surrogate` as graphs.

For a photo with 2048 masks, a processor takes 25 ms for a choice; a fast GPU runs 100 masked images in this time. On
the GPU, the choice takes next to no time, for all photos of a group together.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import onnxruntime as ort
from numpy.typing import DTypeLike, NDArray

from ortcam.core.budget import SMALLEST_STAGE
from ortcam.core.convention import Floats
from ortcam.core.device import Device
from ortcam.core.surrogate import Prediction, map_of_equal_weights, smooth_directions
from ortcam.graph import surrogates
from ortcam.graph.budget import write_kernel
from ortcam.graph.builder import Builder
from ortcam.runtime.captured import GATE
from ortcam.runtime.session import create_own, running

_NAME = "the surrogate"
_TYPES: dict[str, DTypeLike] = {"inverse": np.float64, "chosen": np.int64, "amplitudes": np.float64}
Grid = tuple[int, int]
Result = TypeVar("Result")
OnDevice = dict[str, Any]  # OrtValues by the names in `surrogates.RANKS`


class DeviceSurrogates:
    """Holds the sessions for the surrogates of all groups, on one device."""

    def __init__(self, device: Device) -> None:
        """Begin without a session. Each session is created at its first use."""
        self._device = device
        self._sessions: dict[tuple[Any, ...], ort.InferenceSession] = {}
        # A session keeps handles of CUDA's libraries for every thread that runs it.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="ortcam-surrogate")

    def group(self) -> SurrogateGroup:
        """Return the factory of surrogates for one group of photos."""
        return SurrogateGroup(self)

    def close(self) -> None:
        """End the thread."""
        self._worker.shutdown()

    def start(self, photos: list[tuple[Floats, Floats]], host: dict[str, NDArray[Any]]) -> OnDevice:
        """Return the state of photos before any score.

        Args:
            photos: masks and parts of each photo, float32 [D,P]; D may differ.
            host: the state without the kernels.
        """

        def start() -> OnDevice:
            session = self._session(_kernel_session)
            device, most = (self._device.type, self._device.id), host["free"].shape[1]
            kernels = ort.OrtValue.ortvalue_from_shape_and_type([len(photos), most, most], np.float32, *device)
            binding = session.io_binding()
            for at, (masks, parts) in enumerate(photos):  # one by one, so that photos share scratch memory
                binding.bind_cpu_input("masks", masks)
                binding.bind_cpu_input("parts", parts)
                binding.bind_cpu_input("pads", np.array([0, 0, *[most - len(masks)] * 2]))
                place = kernels.data_ptr() + at * 4 * most * most
                binding.bind_output("kernel", *device, np.float32, [most, most], place)
                session.run_with_iobinding(binding)
            return {"kernel": kernels} | {
                name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), *device)
                for name, array in host.items()
            }

        return self._run(start)

    def choose(self, state: OnDevice, count: int) -> OnDevice:
        """Choose `count` more masks for every photo. Return the changed part of the state."""
        new: OnDevice = {}
        while count:
            step = SMALLEST_STAGE if count >= SMALLEST_STAGE else 1
            new |= self._change(state | new, surrogates.CHOSEN, {}, _choice_session, step)
            count -= step
        return new

    def predict(self, state: OnDevice, scores: Floats) -> OnDevice:
        """Predict from scores [G,n,T]. Return the changed part of the state."""
        return self._change(state, surrogates.PREDICTED, {"scores": scores}, _prediction_session)

    def expected_errors(self, state: OnDevice, target: int) -> Floats:
        """Return the expected error of a target's map for each photo, [G]."""
        made = self._change(state, ("error",), {"target": np.array([target])}, _error_session)
        return self.read(made, "error").reshape(-1)

    def read(self, state: OnDevice, name: str) -> NDArray[Any]:
        """Return a value of the state on the host."""
        array: NDArray[Any] = self._run(lambda: state[name].numpy())
        return array

    def _change(
        self,
        state: OnDevice,
        names: tuple[str, ...],
        given: dict[str, NDArray[Any]],
        write: Callable[..., Builder],
        *arguments: Any,
    ) -> OnDevice:
        """Run a session with a state and with arrays of the host. Return its outputs by name."""

        def change() -> OnDevice:
            session = self._session(write, *arguments)
            binding = session.io_binding()
            for name in (one.name for one in session.get_inputs()):
                if name in given:
                    binding.bind_cpu_input(name, np.ascontiguousarray(given[name]))
                else:
                    binding.bind_ortvalue_input(name, state[name])
            for name in names:
                binding.bind_output(_new(name), self._device.type, self._device.id)
            session.run_with_iobinding(binding)
            return dict(zip(names, binding.get_outputs(), strict=True))

        return self._run(change)

    def _session(self, write: Callable[..., Builder], *arguments: Any) -> ort.InferenceSession:
        key = (write, *arguments)
        if key not in self._sessions:
            graph = write(*arguments).to_proto("surrogate")
            self._sessions[key] = create_own(graph, _NAME, self._device.type, self._device.id)
        return self._sessions[key]

    def _run(self, function: Callable[[], Result]) -> Result:
        """Call a function that uses the device, in the worker's thread, and never while a graph is captured."""

        def run() -> Result:
            with running(_NAME), GATE.shared():
                return function()

        return self._worker.submit(run).result()


class SurrogateGroup:
    """The surrogates of a group of photos. Photos advance in lockstep: a request for one is computed for all.

    All photos are added before the first of them chooses.
    """

    def __init__(self, device: DeviceSurrogates) -> None:
        """Begin without a photo."""
        self._device = device
        self._lock = Lock()  # photos ask from many threads
        self._grid = (0, 0)
        self._photos: list[tuple[Floats, Floats]] = []  # masks and parts; empty once they are on the device
        self._scores: list[Floats] = []
        self._state: OnDevice = {}
        self._predicted: OnDevice = {}  # the state after the last prediction
        self._chosen = np.empty((0, 0), np.int64)
        self._is_outdated = False  # scores came in since the last prediction
        self._predictions: tuple[NDArray[Any], ...] | None = None
        self._errors: dict[int, Floats] = {}

    def add(self, masks: Floats, parts: Floats, grid: Grid) -> PhotoSurrogate:
        """Return the surrogate of one more photo. The arguments are those of `ortcam.core.surrogate.Surrogate`."""
        with self._lock:
            assert not self._state, "a photo was added after another one had chosen"
            self._grid = grid
            self._photos.append((masks, parts))
            self._scores.append(np.empty((0, 0), np.float32))
            return PhotoSurrogate(self, len(self._photos) - 1, len(masks))

    def chosen(self, photo: int, count: int) -> list[int]:
        """Return the first `count` masks that are chosen for a photo."""
        with self._lock:
            if not self._state:
                self._start()
            if count > self._chosen.shape[1]:
                self._predict()
                self._state |= self._device.choose(self._state, count - self._chosen.shape[1])
                self._chosen = self._device.read(self._state, "chosen")
            return list(map(int, self._chosen[photo, :count]))

    def observe(self, photo: int, scores: Floats) -> None:
        """Take the scores [m,T] of the last masks that were chosen for a photo."""
        with self._lock:
            seen = self._scores[photo].reshape(-1, scores.shape[1])
            self._scores[photo] = np.concatenate([seen, scores])
            self._is_outdated = True

    def predictions(self, photo: int) -> tuple[Floats, NDArray[np.float64]]:
        """Return the log weights [D,T] and the amplitudes [T] of a photo."""
        with self._lock:
            self._predict()
            if self._predictions is None:
                self._predictions = tuple(self._device.read(self._predicted, name) for name in ("logs", "amplitudes"))
            logs, amplitudes = self._predictions
            return logs[photo], amplitudes[photo, 0]

    def expected_error(self, photo: int, target: int) -> float:
        """Return the expected error of the map of a target of a photo."""
        with self._lock:
            self._predict()
            if target not in self._errors:
                self._errors[target] = self._device.expected_errors(self._predicted, target)
            return float(self._errors[target][photo])

    def _start(self) -> None:
        count, most = len(self._photos), max(len(masks) for masks, _ in self._photos)
        parts = np.zeros((count, most, self._photos[0][1].shape[1]), np.float32)
        area, real = (np.zeros((count, most), np.float32) for _ in range(2))
        for at, (masks, parts_of_one) in enumerate(self._photos):
            parts[at, : len(masks)] = parts_of_one
            area[at, : len(masks)] = masks.mean(axis=1)
            area[at, : len(masks)] -= area[at, : len(masks)].mean()
            real[at, : len(masks)] = 1
        host: dict[str, NDArray[Any]] = {
            "parts": parts,
            "area": area,
            "real": real,
            "free": real,
            "factor": np.zeros((count, 1, most), np.float32),
            "inverse": np.zeros((count, 1, 1)),
            "variance": np.ones_like(real),
            "chosen": np.empty((count, 0), np.int64),
            "importance": np.ones_like(real),
            "direction": np.stack([map_of_equal_weights(one) for one in parts]),
            "basis": smooth_directions(self._grid),
        }
        self._state = self._device.start(self._photos, host)
        self._photos = []
        self._chosen = host["chosen"]

    def _predict(self) -> None:
        """Predict from the scores, if there are new scores."""
        if not self._is_outdated:
            return
        targets = max(scores.shape[1] for scores in self._scores)
        scores = np.zeros((len(self._scores), self._chosen.shape[1], targets), np.float32)
        for to, given in zip(scores, self._scores, strict=True):
            to[: len(given), : given.shape[1]] = given  # a photo that has stopped has fewer scores
        self._state |= self._device.predict(self._state, scores)
        self._predicted = dict(self._state)
        self._is_outdated, self._predictions, self._errors = False, None, {}


class PhotoSurrogate:
    """The surrogate of one photo of a group: `ortcam.core.surrogate.Surrogate` up to float rounding.

    It takes 4 D * D bytes of the device; D is the largest number of masks of a photo of the group.
    """

    def __init__(self, group: SurrogateGroup, number: int, count: int) -> None:
        self._group, self._number, self._count = group, number, count
        self.chosen: list[int] = []

    def choose(self, count: int) -> NDArray[np.intp]:
        """Return the next `count` masks to score."""
        begin = len(self.chosen)
        self.chosen = self._group.chosen(self._number, begin + count)
        return np.array(self.chosen[begin:], np.intp)

    def observe(self, scores: Floats) -> None:
        """Take the scores [m,T] of the masks that were chosen last."""
        self._group.observe(self._number, scores)

    def predictions(self) -> list[Prediction]:
        """Return the weights of all masks for every target."""
        logs, amplitudes = self._group.predictions(self._number)
        return [Prediction(log[: self._count], float(s2)) for log, s2 in zip(logs.T, amplitudes, strict=True)]

    def expected_error(self, target: int) -> float:
        """Return the expected 1 - r of the map of a target."""
        return self._group.expected_error(self._number, target)


def _kernel_session() -> Builder:
    graph = Builder()
    masks, parts = (graph.input(name, np.float32, ["D", "P"]) for name in ("masks", "parts"))
    kernel = write_kernel(graph, masks, parts)
    graph.output(graph.op("Pad", kernel, graph.input("pads", np.int64, [4])), "kernel", ["E", "E"])
    return graph


def _choice_session(count: int) -> Builder:
    graph = Builder()
    state = _write_state(graph, "kernel", "parts", "importance", "direction", "basis", *surrogates.CHOSEN)
    _write_changes(graph, surrogates.write_choice(graph, state, count), surrogates.CHOSEN)
    return graph


def _prediction_session() -> Builder:
    graph = Builder()
    state = _write_state(graph, "parts", "area", "real", *surrogates.CHOSEN)
    scores = graph.input("scores", np.float32, ["G", "n", "T"])
    _write_changes(graph, surrogates.write_prediction(graph, state, scores), surrogates.PREDICTED)
    return graph


def _error_session() -> Builder:
    graph = Builder()
    state = _write_state(graph, "kernel", "parts", "free", "factor", "logs", "amplitudes", "basis")
    error = surrogates.write_expected_error(graph, state, graph.input("target", np.int64, [1]))
    graph.output(error, _new("error"), ["G", 1, 1])
    return graph


def _write_state(graph: Builder, *names: str) -> surrogates.SurrogateValues:
    """Return inputs for these values of the state. A value that is bound but not read would be copied to the host."""
    return {name: graph.input(name, *_of_state(name)) for name in names}


def _write_changes(graph: Builder, state: surrogates.SurrogateValues, names: tuple[str, ...]) -> None:
    for name in names:
        graph.output(state[name], _new(name), _of_state(name)[1])


def _of_state(name: str) -> tuple[DTypeLike, list[None]]:
    """Return the type of a value of the state, and its dimensions, all unknown."""
    return _TYPES.get(name, np.float32), [None] * surrogates.RANKS[name]


def _new(name: str) -> str:
    return f"new_{name}"
