"""Sessions of ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from ortcam.errors import ModelError, one_line

# What a session raises; ONNX Runtime gives them no common base class.
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
CPU: list[tuple[str, dict[str, Any]]] = [("CPUExecutionProvider", {})]
_ERRORS_ONLY = 3  # ONNX Runtime's log severity


def create_session(
    proto: onnx.ModelProto,
    providers: list[tuple[str, dict[str, Any]]],
    name: str,
    external_data: Path,
    threads: int | None = None,
    log_severity: int = _ERRORS_ONLY,
) -> ort.InferenceSession:
    """Create a session of an edited model; weights that are external are read from `external_data`.

    Args:
        proto: the model; weights inside it must fit protobuf's 2 GB, larger models have external ones.
        providers: execution providers with their options, best first.
        name: what error messages call the model.
        external_data: the directory of the file that the model came from.
        threads: threads of one operator on the CPU; None for one per physical core.

    Raises:
        ModelError: ONNX Runtime refuses the model.
    """
    options = ort.SessionOptions()
    options.log_severity_level = log_severity
    options.enable_mem_pattern = False  # it holds a block of memory per batch size that was run; it gained no time
    if threads is not None:
        options.intra_op_num_threads = threads
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(external_data))
    try:
        serialized = proto.SerializeToString()
        # Without its fallback, which would print on standard output that it tries the CPU again.
        return ort.InferenceSession(serialized, options, providers=providers, enable_fallback=False)
    except RUNTIME_ERRORS as error:
        raise ModelError(f"ONNX Runtime cannot load {name}: {one_line(error)}") from error
