"""CUDA graphs: the kernels of a whole run, launched at once.

Beside the launches they save what CUDA's provider does whenever the shapes change: it plans every convolution anew, for
.1 to .8 s a network, and an exact map changes twice between a plain pass of one photo and batches of masked images.

ONNX Runtime captures the first run with a number of its own (the run option gpu_graph_id) and replays it for later runs
with that number. A replay reads and writes where the captured run did, so every graph here has buffers of its own, and
what is new is copied into them. Graphs belong to the thread that captured them, and CUDA forbids other threads to take
memory while one is captured; so all runs are made on one thread.

Source: ONNX Runtime's documentation of the CUDA provider, "Using CUDA Graphs".
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ortcam.errors import ModelError

MOST_GRAPHS = 32  # of a session; batches of further shapes are run without
_MOST_SEEN = 1000  # shapes that are remembered

Result = TypeVar("Result")
Arrays = Mapping[str, NDArray[Any]]
Shape = tuple[int, ...]


def numbered(number: int) -> ort.RunOptions:
    """Return run options with the number of a graph; -1 for a run that is not captured."""
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(number))
    return options


NOT_CAPTURED = numbered(-1)


class CapturedRuns:
    """Runs a session as CUDA graphs: one for every set of shapes."""

    def __init__(
        self,
        session: ort.InferenceSession,
        run: Callable[[Any, ort.RunOptions], None],
        device: str,
        device_id: int,
    ) -> None:
        """Begin without a graph.

        Args:
            session: captures graphs.
            run: runs a binding of the session with run options.
            device, device_id: where buffers live.
        """
        self._session, self._start, self._device, self._device_id = session, run, device, device_id
        self._seen: dict[tuple[Any, ...], dict[str, Shape]] = {}  # the shapes of the outputs
        self._graphs: dict[tuple[Any, ...], _Graph] = {}
        self._numbers = itertools.count(1)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="ortcam-cuda")

    def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call what uses the device, on the thread of the graphs."""
        return self._worker.submit(function, *arguments).result()

    def run(
        self,
        kind: bool,
        inputs: Arrays,
        fixed: Arrays,
        outputs: Mapping[str, Shape | None],
        direct: Callable[[], list[NDArray[np.float32]]],
        owner: object = None,
        shared: Arrays | None = None,
    ) -> list[NDArray[np.float32]]:
        """Return the outputs, all float32. To be called on the thread of the graphs.

        Args:
            kind: whatever `fixed` follows from beside the shapes.
            inputs: what is new.
            fixed: what is the same for all runs of this kind and these shapes.
            outputs: names and shapes; None where that follows from a first run without a graph only.
            direct: does the same without a graph.
            owner: whose `shared` are, so that they are copied once only.
            shared: the other inputs.
        """
        shared = shared or {}
        shapes = kind, *(value.shape for value in (*inputs.values(), *shared.values(), *fixed.values()))
        graph = self._graphs.get(shapes)
        if graph is None:
            made = {name: shape for name, shape in outputs.items() if shape is not None} or self._seen.get(shapes)
            if made is None or len(self._graphs) >= MOST_GRAPHS:
                results = direct()
                if len(self._seen) < _MOST_SEEN:
                    self._seen[shapes] = {name: one.shape for name, one in zip(outputs, results, strict=True)}
                return results
            every = {**fixed, **shared, **inputs}
            graph = _Graph(self._session, every, made, next(self._numbers), self._device, self._device_id)
            self._graphs[shapes] = graph
        elif graph.owner() is not owner:
            graph.write(shared)
        graph.owner = (lambda: None) if owner is None else weakref.ref(owner)
        graph.write(inputs)
        try:
            self._start(graph.binding, graph.options)
        except ModelError as error:
            del self._graphs[shapes]
            raise ModelError(f"{error}; without CUDA graphs: provider option enable_cuda_graph=0") from error
        return graph.read()


class _Graph:
    """A binding of buffers that keep their addresses."""

    def __init__(
        self,
        session: ort.InferenceSession,
        inputs: Arrays,
        outputs: Mapping[str, Shape],
        number: int,
        device: str,
        device_id: int,
    ) -> None:
        self.binding, self.options = session.io_binding(), numbered(number)
        self.owner: Callable[[], object] = lambda: None  # whose `shared` lie in the buffers
        make = ort.OrtValue.ortvalue_from_shape_and_type
        self._inputs = {
            name: ort.OrtValue.ortvalue_from_numpy(np.array(value, order="C"), device, device_id)
            for name, value in inputs.items()
        }
        self._outputs = [make(list(shape), np.float32, device, device_id) for shape in outputs.values()]
        for name, buffer in self._inputs.items():
            self.binding.bind_ortvalue_input(name, buffer)
        for name, buffer in zip(outputs, self._outputs, strict=True):
            self.binding.bind_ortvalue_output(name, buffer)

    def write(self, values: Arrays) -> None:
        for name, value in values.items():
            self._inputs[name].update_inplace(np.ascontiguousarray(value))

    def read(self) -> list[NDArray[np.float32]]:
        return [np.array(buffer.numpy()) for buffer in self._outputs]
