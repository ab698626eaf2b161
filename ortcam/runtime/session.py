"""Create sessions of ONNX Runtime."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnxruntime as ort
from onnx import helper
from onnxruntime.capi import onnxruntime_pybind11_state as state

from ortcam.core import native
from ortcam.core.files import replace_files
from ortcam.errors import ModelError, OrtcamError, OrtcamWarning, one_line
from ortcam.runtime.cache import cannot_write, find_graph, seal_graph
from ortcam.runtime.threads import usable_processors

# The errors of a session, which have no common base class.
RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    state.EPFail,
    state.EngineError,
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.ModelLoaded,
    state.NoModel,
    state.NoSuchFile,
    state.NotImplemented,
    state.RuntimeException,
    RuntimeError,
    ValueError,
)
RUNTIME_VERSION: str = ort.__version__
CPU: list[tuple[str, dict[str, Any]]] = [("CPUExecutionProvider", {})]
_ERRORS_ONLY = 3  # ONNX Runtime's log severity


class Opened(NamedTuple):
    """A session, and whether it captures CUDA graphs."""

    session: ort.InferenceSession
    captures: bool = False


@contextmanager
def running(name: str) -> Iterator[None]:
    """Raise ONNX Runtime's errors inside the block as a ModelError; `name` is the model's name in the message."""
    try:
        yield
    except RUNTIME_ERRORS as error:
        raise ModelError(f"ONNX Runtime cannot run {name}: {one_line(error)}") from error


def make_options(threads: int | None) -> ort.SessionOptions:
    """Return session options with `threads` CPU threads; None for one per physical core that may be used."""
    options = ort.SessionOptions()
    if threads is None and usable_processors() < (os.cpu_count() or 1):
        # ONNX Runtime would start a thread for each core of the machine, bind the threads to cores that this process
        # may not use, and print an error for each.
        threads = usable_processors()
    if threads is not None:
        options.intra_op_num_threads = threads
    # Threads wait busily within a run, which is faster, and sleep between runs, when the caller works.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def create_session(
    proto: onnx.ModelProto | Path,
    providers: list[tuple[str, dict[str, Any]]],
    name: str,
    external_data: Path,
    options: ort.SessionOptions | None = None,
    log_severity: int = _ERRORS_ONLY,
) -> ort.InferenceSession:
    """Create a session of an edited model; weights that are external are read from `external_data`.

    Args:
        proto: the model, or its file; weights inside it must fit protobuf's 2 GB; larger models have external weights.
        providers: execution providers with their options, best first; empty if `options` names a plugin's devices.
        name: the model's name in messages.
        external_data: the directory of the file that the model came from.
        options: the session's options.
        log_severity: ONNX Runtime's log severity, from 0 (all) to 4 (fatal).

    Raises:
        ModelError: ONNX Runtime refuses the model.
    """
    options = ort.SessionOptions() if options is None else options
    options.log_severity_level = log_severity
    # One block of memory for all tensors of a run, from the second run of a batch size on: 4 % faster on a CPU.
    options.enable_mem_pattern = providers == CPU
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(external_data))
    try:
        serialized = str(proto) if isinstance(proto, Path) else proto.SerializeToString()
        # Switch off its fallback, which would print to standard output that it tries the CPU again.
        named = {"providers": providers} if providers else {}
        with native.quiet():
            return ort.InferenceSession(serialized, options, **named, enable_fallback=False)
    except RUNTIME_ERRORS as error:
        raise ModelError(f"ONNX Runtime cannot load {name}: {one_line(error)}") from error


def create_own(graph: onnx.GraphProto, name: str, device: str, device_id: int) -> ort.InferenceSession:
    """Create a session of one of ortcam's own graphs, on ``cpu`` or ``cuda``; without TF32, on one thread."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    cuda = ("CUDAExecutionProvider", {"device_id": str(device_id), "use_tf32": "0"})
    providers = CPU if device == "cpu" else [cuda, *CPU]
    return create_session(model, providers, name, Path(), make_options(1), log_severity=4)


def load_prepared(
    kept: Path, name: str, external_data: Path, make_options: Callable[[], ort.SessionOptions]
) -> ort.InferenceSession | None:
    """Load a graph that was optimised and kept for the CPU; None if it is missing or does not load."""
    graph = find_graph(kept)
    if graph is None:
        return None
    options = make_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return create_session(graph, CPU, name, external_data, options, log_severity=4)
    except ModelError:
        warnings.warn(f"cache: {graph} does not load; it is made again", OrtcamWarning, stacklevel=2)
        with suppress(OSError):
            graph.unlink()
        return None


def prepare(
    kept: Path,
    proto: onnx.ModelProto,
    name: str,
    external_data: Path,
    make_options: Callable[[], ort.SessionOptions],
) -> ort.InferenceSession:
    """Create a session on the CPU and keep its optimised graph as `kept`; warn if the graph cannot be written."""
    try:
        with replace_files(kept) as folder:
            options = make_options()
            options.optimized_model_filepath = str(folder / kept.name)
            session = create_session(proto, CPU, name, external_data, options, log_severity=4)
            seal_graph(folder / kept.name)
            return session
    except (OrtcamError, OSError) as error:
        session = create_session(proto, CPU, name, external_data, make_options(), log_severity=4)
        cannot_write(kept, error)
        return session
