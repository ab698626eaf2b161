"""Run sessions as CUDA graphs, which launch the kernels of a whole run at once.

CUDA graphs save more than the launches. Whenever the shapes change, CUDA's provider plans every convolution again,
which takes 0.1 to 0.8 s for a network. An exact map changes the shapes twice: from the plain pass of one photo to
batches of masked images, and back.

ONNX Runtime captures the first run with a new number (the run option gpu_graph_id), and replays it for later runs with
this number. A replay reads and writes the buffers of the captured run. Each graph therefore has its own buffers, into
which new inputs are copied. A graph belongs to the thread that captured it, so all runs of a session are made on one
thread. CUDA forbids other threads to allocate memory during a capture, so ortcam's other sessions wait meanwhile.

Source: ONNX Runtime's documentation of the CUDA provider, "Using CUDA Graphs".
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Condition
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ortcam.errors import ModelError, one_line
from ortcam.runtime.session import RUNTIME_ERRORS, create_own, running

MOST_GRAPHS = 32  # of a session; batches of further shapes are run without
_MOST_SEEN = 1000  # shapes that are remembered

Arrays = Mapping[str, NDArray[Any]]
Shape = tuple[int, ...]
Key = tuple[Any, ...]


class Gate:
    """Lets one thread capture while no other thread of ortcam uses a GPU. It does not see other users of the GPU."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._users = 0
        self._captures = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Use a GPU inside the block, and wait for a running capture first."""
        with self._changed:
            self._changed.wait_for(lambda: not self._captures)
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Capture inside the block; other threads wait."""
        with self._changed:
            self._changed.wait_for(lambda: not self._captures)
            self._captures = True
            self._changed.wait_for(lambda: not self._users)
        try:
            yield
        finally:
            with self._changed:
                self._captures = False
                self._changed.notify_all()


GATE = Gate()


def numbered(number: int) -> ort.RunOptions:
    """Return run options with the number of a graph; -1 for a run that is not captured."""
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(number))
    return options


NOT_CAPTURED = numbered(-1)


class Batch(NamedTuple):
    """A run of a session.

    Attributes:
        kind: together with the shapes, it determines `fixed`.
        inputs: the inputs that are new in this run.
        fixed: the inputs that are the same for all runs of this kind and these shapes.
        outputs: names and shapes of the outputs; None if only a first run without a graph can show them.
        direct: runs the batch without a graph.
        owner: the owner of `shared`, which are copied only if another owner's arrays were copied since.
        shared: the other inputs.
        on_device: returns the other inputs on the device.
    """

    kind: bool
    inputs: Arrays
    fixed: Arrays
    outputs: Mapping[str, Shape | None]
    direct: Callable[[], list[NDArray[np.float32]]]
    owner: object = None
    shared: Arrays = MappingProxyType({})
    on_device: Callable[[], Mapping[str, Any]] = dict


class CapturedRuns:
    """Runs a session as CUDA graphs: one for every set of shapes."""

    def __init__(self, session: ort.InferenceSession, name: str, device: str, device_id: int) -> None:
        """Start without captured graphs.

        Args:
            session: a session that captures graphs.
            name: the model's name in messages.
            device, device_id: the device of the buffers.
        """
        self._session, self._name, self._device, self._device_id = session, name, device, device_id
        self._seen: dict[Key, dict[str, Shape]] = {}  # the shapes of the outputs
        self._graphs: dict[Key, _Graph] = {}
        self._shared: dict[Key, _Buffers] = {}
        self._copier: ort.InferenceSession | None = None
        self._numbers = itertools.count(1)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="ortcam-cuda")

    def close(self) -> None:
        """End the thread."""
        self._worker.shutdown()

    def run(self, batch: Batch) -> list[NDArray[np.float32]]:
        """Return a batch's outputs, all float32.

        Raises:
            ModelError: ONNX Runtime cannot run or capture the model.
        """
        with running(self._name):
            return self._worker.submit(self._run, batch).result()

    def _run(self, batch: Batch) -> list[NDArray[np.float32]]:
        key: Key = batch.kind, *_shapes(batch.inputs), *_shapes(batch.shared), *_shapes(batch.fixed)
        graph = self._graphs.get(key)
        if graph is not None:
            with GATE.shared():
                return self._replay(graph, batch)
        made = {name: shape for name, shape in batch.outputs.items() if shape is not None} or self._seen.get(key)
        if made is None or len(self._graphs) >= MOST_GRAPHS:
            with GATE.shared():
                results = batch.direct()
            if len(self._seen) < _MOST_SEEN:
                self._seen[key] = {name: one.shape for name, one in zip(batch.outputs, results, strict=True)}
            return results
        with GATE.alone():
            try:
                shapes = _shapes(batch.shared)
                buffers = self._shared.get(shapes) or _Buffers(batch.shared, self._device, self._device_id)
                own = _Buffers({**batch.fixed, **batch.inputs}, self._device, self._device_id)
                graph = _Graph(self._session, own, buffers, made, next(self._numbers))
                results = self._replay(graph, batch)
            except RUNTIME_ERRORS as error:
                raise ModelError(
                    f"ONNX Runtime cannot run {self._name} as a CUDA graph: {one_line(error)}; run it without: "
                    "provider option enable_cuda_graph=0"
                ) from error
        self._graphs[key], self._shared[shapes] = graph, buffers
        return results

    def _replay(self, graph: _Graph, batch: Batch) -> list[NDArray[np.float32]]:
        if batch.owner is not None:
            graph.shared.hold(batch.owner, lambda: self._copy(batch.on_device(), graph.shared.values))
        return graph.run(batch.inputs)

    def _copy(self, sources: Mapping[str, Any], targets: Mapping[str, Any]) -> None:
        """Copy float32 tensors on the device; ONNX Runtime has no function for this, so a node does it."""
        if self._copier is None:
            self._copier = _create_copier(list(sources), self._device, self._device_id)
        binding = self._copier.io_binding()
        for name, source in sources.items():
            binding.bind_ortvalue_input(name, source)
            binding.bind_ortvalue_output(_copied(name), targets[name])
        self._copier.run_with_iobinding(binding)


class _Buffers:
    """Holds inputs on the device, at fixed addresses."""

    def __init__(self, arrays: Arrays, device: str, device_id: int) -> None:
        self.device, self.device_id = device, device_id
        self.values = {
            name: ort.OrtValue.ortvalue_from_numpy(np.array(array, order="C"), device, device_id)
            for name, array in arrays.items()
        }
        self._owner: Callable[[], object] = lambda: None  # whose arrays lie here

    def write(self, arrays: Arrays) -> None:
        for name, array in arrays.items():
            self.values[name].update_inplace(np.ascontiguousarray(array))

    def hold(self, owner: object, copy: Callable[[], None]) -> None:
        """Copy an owner's arrays into the buffers, unless they are there already."""
        if self._owner() is not owner:
            self._owner = lambda: None  # in case only a part is copied
            copy()
            self._owner = weakref.ref(owner)


class _Graph:
    """A captured run: its own buffers, and buffers that all graphs of the same photos share."""

    def __init__(
        self, session: ort.InferenceSession, own: _Buffers, shared: _Buffers, outputs: Mapping[str, Shape], number: int
    ) -> None:
        self._session, self._own, self.shared = session, own, shared
        self._binding, self._options = session.io_binding(), numbered(number)
        make = ort.OrtValue.ortvalue_from_shape_and_type
        self._outputs = [make(list(shape), np.float32, own.device, own.device_id) for shape in outputs.values()]
        for name, buffer in (own.values | shared.values).items():
            self._binding.bind_ortvalue_input(name, buffer)
        for name, buffer in zip(outputs, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(name, buffer)

    def run(self, inputs: Arrays) -> list[NDArray[np.float32]]:
        self._own.write(inputs)
        self._session.run_with_iobinding(self._binding, self._options)
        on_host = [buffer.numpy() for buffer in self._outputs]
        return on_host if self._own.device != "cpu" else [array.copy() for array in on_host]


def _create_copier(names: list[str], device: str, device_id: int) -> ort.InferenceSession:
    """Return a session that copies each of these inputs to an output."""
    from ortcam.graph.builder import Builder  # late: only CUDA needs it

    graph = Builder()
    for name in names:
        graph.output(graph.input(name, np.float32, None), _copied(name), None)
    return create_own(graph.to_proto("copies"), "copies", device, device_id)


def _copied(name: str) -> str:
    return f"{name}.copied"


def _shapes(arrays: Arrays) -> Key:
    return tuple(array.shape for array in arrays.values())
