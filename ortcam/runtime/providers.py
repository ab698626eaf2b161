"""Execution providers: which one to use, whether it really loads, and why not."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import onnxruntime as ort

from ortcam.errors import ModelError, ProviderError, nearest
from ortcam.runtime.binding import Device

# Short names, and what to install for each. A build of ONNX Runtime holds a few of these.
PROVIDERS: dict[str, tuple[str, str]] = {
    "cpu": ("CPUExecutionProvider", "pip install 'ortcam[cpu]'"),
    "cuda": ("CUDAExecutionProvider", "pip install 'ortcam[gpu]' instead of 'ortcam[cpu]'"),
    "tensorrt": ("TensorrtExecutionProvider", "pip install 'ortcam[tensorrt]' instead of 'ortcam[cpu]'"),
    "openvino": ("OpenVINOExecutionProvider", "pip install onnxruntime-openvino instead of onnxruntime"),
    "coreml": ("CoreMLExecutionProvider", "pip install 'ortcam[cpu]' on macOS"),
    "directml": ("DmlExecutionProvider", "pip install onnxruntime-directml instead of onnxruntime"),
    "migraphx": ("MIGraphXExecutionProvider", "install AMD's onnxruntime-migraphx instead of onnxruntime"),
    "qnn": ("QNNExecutionProvider", "pip install onnxruntime-qnn instead of onnxruntime"),
    "webgpu": ("WebGpuExecutionProvider", "install a build of ONNX Runtime with WebGPU"),
    "xnnpack": ("XnnpackExecutionProvider", "install a build of ONNX Runtime with XNNPACK"),
}
# Providers whose memory ONNX Runtime's Python binding can allocate, and what it calls that memory.
_DEVICE_MEMORY = {"cuda": "cuda", "tensorrt": "cuda"}
# What `auto` tries, best first. TensorRT builds an engine for minutes, so it is for those who ask for it.
_AUTO = ("cuda", "cpu")
_PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-directml",
    "onnxruntime-qnn",
)


@dataclass(frozen=True)
class Provider:
    """An execution provider with its options."""

    name: str
    options: dict[str, Any]
    device: Device

    @property
    def ort_name(self) -> str:
        return PROVIDERS[self.name][0]

    @property
    def fixed_batch(self) -> bool:
        """Whether every run should have the same shape."""
        return self.name != "cpu"


def open_on_provider(
    wanted: str, create: Callable[[list[tuple[str, dict[str, Any]]], int], ort.InferenceSession]
) -> tuple[ort.InferenceSession, Provider]:
    """Create a session on the provider that was asked for, or on the best that loads.

    Args:
        wanted: ``auto``, a short name such as ``cuda``, or ONNX Runtime's own name.
        create: makes a session from a list of providers and a log severity.

    Raises:
        ProviderError: the name is unknown, or the provider does not load.
        ModelError: ONNX Runtime refuses the model.
    """
    if wanted != "auto":
        provider = _find(wanted)
        session = _try(provider, create)
        if session is None:
            raise ProviderError(f"provider {provider.name!r} does not load: {explain_failure(provider.name)}")
        return session, provider
    for name in _AUTO:
        if PROVIDERS[name][0] in ort.get_available_providers():
            provider = _find(name)
            session = _try(provider, create)
            if session is not None:
                return session, provider
    raise ProviderError("no provider loads, not even the CPU's (see: ortcam doctor)")


def _find(wanted: str) -> Provider:
    if not isinstance(wanted, str):
        raise ProviderError(f"provider is {wanted!r}; expected a name: auto, {', '.join(PROVIDERS)}")
    by_ort_name = {ort_name.lower(): name for name, (ort_name, _) in PROVIDERS.items()}
    name = by_ort_name.get(wanted.lower(), wanted.lower())
    if name not in PROVIDERS:
        raise ProviderError(
            f"provider {wanted!r} does not exist; expected auto, {', '.join(PROVIDERS)}{nearest(wanted, PROVIDERS)}"
        )
    return Provider(name, {}, Device(_DEVICE_MEMORY.get(name, "cpu")))


def _try(
    provider: Provider, create: Callable[[list[tuple[str, dict[str, Any]]], int], ort.InferenceSession]
) -> ort.InferenceSession | None:
    """Create a session; None when the provider does not load. ONNX Runtime itself would go on with the CPU."""
    if provider.ort_name not in ort.get_available_providers():
        return None
    if provider.name == "cpu":
        with contextlib.redirect_stdout(None):  # where ONNX Runtime prints that it tries again
            return create([(provider.ort_name, provider.options)], 4)
    ort.set_default_logger_severity(4)  # a failure is reported once, by us
    try:
        with contextlib.redirect_stdout(None):  # where ONNX Runtime prints that it falls back
            if provider.device.type == "cuda":
                ort.preload_dlls()  # CUDA and cuDNN from their pip packages, where those are installed
            session = create([(provider.ort_name, provider.options), (PROVIDERS["cpu"][0], {})], 4)
    except ModelError:
        if probe(provider.name) is None:  # the provider is well, so it is the model
            raise
        return None
    finally:
        ort.set_default_logger_severity(2)
    return session if provider.ort_name in session.get_providers() else None


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


def probe(name: str) -> str | None:
    """Return why the provider does not load, or None when it does. Tried in a process of its own.

    ONNX Runtime tells the reason only in its log, which the process's standard error keeps.
    """
    ort_name, install = PROVIDERS[name]
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


def explain_failure(name: str) -> str:
    """Return the one-line reason why a provider does not load, and what to do."""
    reason = probe(name) or "it loads alone, but not with this model"
    return f"{reason} (see: ortcam doctor)"


def installed_packages() -> dict[str, str]:
    """Return the installed packages that hold ONNX Runtime, with their versions. More than one is a fault."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def runtime_version() -> str:
    return str(ort.__version__)
