"""Everything that touches ONNX Runtime: providers, sessions, buffers, and the cache between runs."""

from __future__ import annotations

import os
import sys

from ortcam import NO_RUNTIME

_VARIABLE = "ORT_DISABLE_TELEMETRY"
# ONNX Runtime 1.32 sends usage data to its maker, from a thread that makes a forked child hang at its exit. The
# variable is read when onnxruntime is first imported; a value that is there already stays.
_found = os.environ.get(_VARIABLE) if "onnxruntime" in sys.modules else os.environ.setdefault(_VARIABLE, "1")
HAS_TELEMETRY = _found != "1"

try:
    import onnxruntime  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "onnxruntime":
        raise
    raise ImportError(NO_RUNTIME) from error
