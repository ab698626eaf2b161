"""Choose an execution provider and its options, and check that it really loads."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime as ort

from ortcam.core.device import Device
from ortcam.errors import ModelError, OptionError, ProviderError, nearest, whole
from ortcam.runtime.probe import explain_failure, preload, probe
from ortcam.runtime.session import CPU, RUNTIME_ERRORS, Opened, create_session

if TYPE_CHECKING:
    import onnx

# Short names, and what to install for each. A build of ONNX Runtime has only a few providers.
PROVIDERS: dict[str, tuple[str, str]] = {
    "cpu": ("CPUExecutionProvider", "pip install 'ortcam[cpu]'"),
    "cuda": ("CUDAExecutionProvider", "pip install 'ortcam[gpu]' instead of 'ortcam[cpu]'"),
    "tensorrt": ("TensorrtExecutionProvider", "pip install 'ortcam[tensorrt]' instead of 'ortcam[cpu]'"),
    "openvino": ("OpenVINOExecutionProvider", "pip install onnxruntime-ep-openvino beside 'ortcam[cpu]'"),
    "coreml": ("CoreMLExecutionProvider", "pip install 'ortcam[cpu]' on macOS"),
    "directml": ("DmlExecutionProvider", "pip install onnxruntime-directml instead of onnxruntime"),
    "migraphx": ("MIGraphXExecutionProvider", "install AMD's onnxruntime-migraphx instead of onnxruntime"),
    "qnn": ("QNNExecutionProvider", "pip install onnxruntime-qnn instead of onnxruntime"),
    "webgpu": ("WebGpuExecutionProvider", "install a build of ONNX Runtime with WebGPU"),
    "xnnpack": ("XnnpackExecutionProvider", "install a build of ONNX Runtime with XNNPACK"),
}
# Providers whose memory ONNX Runtime's Python binding can allocate, and its name for this memory.
_DEVICE_MEMORY = {"cuda": "cuda", "tensorrt": "cuda"}
_TAKE_DEVICE_ID = ("cuda", "tensorrt", "directml", "migraphx")
# The providers that `auto` tries, best first. TensorRT builds an engine for minutes, so `auto` does not try it.
_AUTO = ("cuda", "cpu")
_log = logging.getLogger("ortcam")
# Providers with their own package beside ONNX Runtime: the module that knows where the library lies.
_PLUGINS = {"openvino": "onnxruntime_ep_openvino"}
_PLUGIN_ERRORS: tuple[type[Exception], ...] = (ImportError, OSError, *RUNTIME_ERRORS)
_registered: set[str] = set()  # ONNX Runtime registers each only once in a process
_PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-directml",
    "onnxruntime-qnn",
)
CUDA_GRAPHS = "enable_cuda_graph"
# Defaults other than ONNX Runtime's: TF32 keeps 10 of float32's 23 bits of mantissa, which shows in the maps.
_DEFAULTS: dict[str, dict[str, str]] = {"cuda": {"use_tf32": "0"}}


@dataclass(frozen=True)
class Provider:
    """An execution provider with its options.

    >>> Provider("cuda", {"cudnn_conv_algo_search": "HEURISTIC"}, device_id=1).name
    'cuda'

    Attributes:
        name: ``auto``, a short name such as ``cuda``, or ONNX Runtime's own name.
        options: the provider's options by ONNX Runtime's names; they override ortcam's defaults (CUDA: use_tf32=0;
            TensorRT: engine and timing cache, profile shapes).
        device_id: the number of the device, from 0.
    """

    name: str = "auto"
    options: Mapping[str, str] = field(default_factory=dict)
    device_id: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ProviderError(f"provider is {self.name!r}; expected a name: auto, {', '.join(PROVIDERS)}")
        by_ort_name = {ort_name.lower(): name for name, (ort_name, _) in PROVIDERS.items()}
        name = by_ort_name.get(self.name.lower(), self.name.lower())
        if name != "auto" and name not in PROVIDERS:
            raise ProviderError(
                f"provider {self.name!r} is unknown; expected auto, {', '.join(PROVIDERS)}"
                f"{nearest(self.name, PROVIDERS)}"
            )
        if not isinstance(self.options, Mapping):
            raise OptionError(f"options is {self.options!r}; expected names and values, such as {{'use_tf32': '1'}}")
        whole("device_id", self.device_id, least=0)
        if self.device_id and name not in _TAKE_DEVICE_ID:
            raise OptionError(f"provider {name!r} takes no device_id; expected one of {', '.join(_TAKE_DEVICE_ID)}")
        if "device_id" in self.options:
            raise OptionError("options name a device_id; give it as device_id, which the buffers follow as well")
        if self.options and name in ("auto", "cpu"):
            raise OptionError(f"provider {name!r} takes no options; name the provider that {dict(self.options)} is for")
        if _is_on(self.options.get("trt_cuda_graph_enable", "0")):
            raise OptionError(
                "option trt_cuda_graph_enable: TensorRT's graph reads the buffers of its first run, and every photo "
                "here has its own; leave it off, or take provider 'cuda', which captures graphs"
            )
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "device_id", int(self.device_id))
        object.__setattr__(self, "options", {str(key): str(value) for key, value in self.options.items()})

    @property
    def ort_name(self) -> str:
        return PROVIDERS[self.name][0]

    @property
    def device(self) -> Device:
        """The device of the session's buffers."""
        return Device(_DEVICE_MEMORY.get(self.name, "cpu"), self.device_id)

    @property
    def captures(self) -> bool | None:
        """Whether the options ask for CUDA graphs; None if they do not say."""
        return _is_on(self.options[CUDA_GRAPHS]) if CUDA_GRAPHS in self.options else None

    @property
    def fuses(self) -> bool:
        """Whether it has fused convolutions: CUDA does, for images whose channels come first."""
        return self.name == "cuda" and not _is_on(self.options.get("prefer_nhwc", "0"))

    def session_options(self, of_the_model: Mapping[str, str]) -> dict[str, str]:
        """Return all options for ONNX Runtime, including the model's shapes, caches and capturing of graphs."""
        options = {**_DEFAULTS.get(self.name, {}), **of_the_model}
        if self.name in _TAKE_DEVICE_ID:
            options["device_id"] = str(self.device_id)
        return options | dict(self.options)


def _is_on(value: object) -> bool:
    return str(value).lower() not in ("0", "false")


ProviderLike = str | Provider  # a name, or a provider with options


def resolve_provider(wanted: ProviderLike) -> Provider:
    """Return the provider with this name, or the provider itself."""
    return wanted if isinstance(wanted, Provider) else Provider(wanted)


# Makes a session from the provider, the devices of its plugin (if it is a plugin), and ONNX Runtime's log severity.
Create = Callable[[Provider, "list[Any]", int], Opened]


def open_on_provider(wanted: Provider, create: Create) -> tuple[Opened, Provider]:
    """Create a session on the requested provider; for `auto`, on the best provider that loads.

    Raises:
        ProviderError: the provider does not load.
        ModelError: ONNX Runtime refuses the model.
    """
    if wanted.name != "auto":
        opened = _try(wanted, create)
        if opened is None:
            reason = explain_failure(wanted.ort_name, PROVIDERS[wanted.name][1])
            raise ProviderError(f"provider {wanted.name!r} does not load: {reason}")
        return opened, wanted
    for name in _AUTO:
        if PROVIDERS[name][0] in ort.get_available_providers():
            opened = _try(Provider(name), create)
            if opened is not None:
                return opened, Provider(name)
            _log.info("provider %s does not load; the next one is tried", name)
    raise ProviderError("no provider loads, not even the CPU's (see: ortcam doctor)")


def _try(provider: Provider, create: Create) -> Opened | None:
    """Create a session; return None if the provider does not load. ONNX Runtime itself would continue on the CPU."""
    if provider.ort_name not in ort.get_available_providers():
        devices = _plugin_devices(provider.name)
        return create(provider, devices, 4) if devices else None
    if provider.name == "cpu":
        with contextlib.redirect_stdout(None):  # where ONNX Runtime prints that it tries again
            return create(provider, [], 4)
    ort.set_default_logger_severity(4)  # ortcam reports a failure once
    runs = False
    try:
        with contextlib.redirect_stdout(None):  # where ONNX Runtime prints that it falls back
            preload(provider.ort_name)
            opened = create(provider, [], 4)
        runs = provider.ort_name in opened.session.get_providers()
    except ModelError as error:
        if probe(provider.ort_name, PROVIDERS[provider.name][1]) is not None:
            return None
        if provider.options:  # the provider itself works, so the model or an option is at fault
            raise ProviderError(f"provider {provider.name!r} with {dict(provider.options)}: {error}") from error
        raise
    finally:
        # With CUDA the log stays silent: cuDNN logs an error for every plan that it lacks, and then uses another plan.
        ort.set_default_logger_severity(4 if runs and provider.name == "cuda" else 2)
    return opened if runs else None


def create_on(
    provider: Provider,
    devices: list[Any],
    proto: onnx.ModelProto | Path,
    name: str,
    external_data: Path,
    options: ort.SessionOptions,
    log_severity: int,
    of_the_model: Mapping[str, str] | None = None,
) -> ort.InferenceSession:
    """Create a session on a provider, as `create_session` does; `of_the_model` holds options beside the user's."""
    more = dict(of_the_model or {})
    named: list[tuple[str, dict[str, Any]]] = []
    if devices:
        options.add_provider_for_devices(devices, provider.session_options(more))
    elif provider.name == "cpu":
        named = CPU
    else:
        named = [(provider.ort_name, provider.session_options(more))]
        if provider.name == "tensorrt":  # nodes that TensorRT does not support run on the same GPU if possible
            cuda = Provider("cuda", device_id=provider.device_id)
            named.append((cuda.ort_name, cuda.session_options({})))
        named += CPU
    return create_session(proto, named, name, external_data, options, log_severity)


def _plugin_devices(name: str) -> list[Any]:
    """Return the devices that a provider's plugin finds; an empty list without a plugin.

    Raises:
        ProviderError: the plugin is installed and finds no device, or does not load.
    """
    package = _PLUGINS.get(name)
    if package is None or importlib.util.find_spec(package) is None:
        return []
    if not hasattr(ort, "get_ep_devices"):
        raise ProviderError(
            f"provider {name!r}: its plugin is installed and needs ONNX Runtime 1.23 or newer; {ort.__version__} is "
            "installed: pip install --upgrade onnxruntime"
        )
    try:
        plugin = import_module(package)
        if package not in _registered:
            ort.register_execution_provider_library(package, plugin.get_library_path())
            _registered.add(package)
        devices = [device for device in ort.get_ep_devices() if device.ep_name in plugin.get_ep_names()]
    except _PLUGIN_ERRORS as error:
        raise ProviderError(f"provider {name!r}: its plugin {package} does not load: {error}") from error
    if not devices:
        vendors = ", ".join(sorted({device.device.vendor for device in ort.get_ep_devices()})) or "none known"
        raise ProviderError(
            f"provider {name!r}: its plugin is installed and finds no device that it supports (processors here: "
            f"{vendors}); it needs an Intel CPU, GPU or NPU: take --provider cpu"
        )
    return devices


def check_provider(name: str) -> str | None:
    """Return why a provider does not load; None if it loads."""
    ort_name, install = PROVIDERS[name]
    if ort_name not in ort.get_available_providers() and name in _PLUGINS:
        try:
            if _plugin_devices(name):
                return None
        except ProviderError as error:
            return str(error)
    return probe(ort_name, install)


def count_nodes(session: ort.InferenceSession) -> dict[str, dict[str, int]]:
    """Return the number of nodes of each operator on each provider; the session must have recorded it."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        raise ProviderError(
            f"ONNX Runtime {ort.__version__} does not show which provider runs a node; 1.24 and newer do: "
            "pip install --upgrade onnxruntime"
        )
    counts: dict[str, dict[str, int]] = {}
    for part in session.get_provider_graph_assignment_info():
        operators = counts.setdefault(part.ep_name, {})
        for node in part.get_nodes():
            operators[node.op_type] = operators.get(node.op_type, 0) + 1
    return counts


def installed_packages() -> dict[str, str]:
    """Return the installed packages of ONNX Runtime with their versions. More than one is a fault."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def runtime_version() -> str:
    return str(ort.__version__)
