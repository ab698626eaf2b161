"""Test in a separate process whether an execution provider loads."""

from __future__ import annotations

import subprocess
import sys

import onnxruntime as ort

_NVIDIA = ("CUDAExecutionProvider", "TensorrtExecutionProvider")


def preload(ort_name: str) -> None:
    """Load CUDA and cuDNN from their pip packages, if these are installed and the provider needs them."""
    if ort_name in _NVIDIA:
        ort.preload_dlls()


_PROBE = """
import sys
import onnxruntime as ort
from onnx import TensorProto, helper
x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", [x], [y])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
if sys.argv[1] in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
    ort.preload_dlls()
session = ort.InferenceSession(model.SerializeToString(), providers=[sys.argv[1]])
sys.exit(0 if sys.argv[1] in session.get_providers() else 9)
"""


def probe(ort_name: str, install: str) -> str | None:
    """Test a provider in a separate process; return why it does not load, or None if it loads.

    ONNX Runtime writes the reason only to its log, on the standard error of the process.

    Args:
        ort_name: ONNX Runtime's name of the provider.
        install: advice if this build of ONNX Runtime lacks the provider.
    """
    if ort_name not in ort.get_available_providers():
        return f"this build of ONNX Runtime does not have it; {install}"
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, ort_name], capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return "it did not answer within 120 s"
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower() or "fail" in line.lower()]
    reason = (telling or lines or [f"exit code {done.returncode}"])[0]
    return " ".join(reason.split("with error: ")[-1].split())[:300]


def explain_failure(ort_name: str, install: str) -> str:
    """Return the one-line reason why a provider does not load, and what to do."""
    reason = probe(ort_name, install) or "it loads alone, but not with this model"
    return f"{reason} (see: ortcam doctor)"
