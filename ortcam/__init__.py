"""ortcam: Score-CAM explanations of image classifiers, run entirely in ONNX Runtime.

>>> import ortcam
>>> cam = ortcam.ScoreCAM("model.onnx")           # doctest: +SKIP
>>> cam.explain("photo.jpg").save("explanation")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib.util
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ortcam.convention import PRESETS, Convention
    from ortcam.deploy.pack import PackReport, pack
    from ortcam.deploy.packed import PackedExplainer, PackedExplanation
    from ortcam.errors import OrtcamError, OrtcamWarning
    from ortcam.explanation import Explanation
    from ortcam.model import CamModel
    from ortcam.preprocessing import Preprocessing
    from ortcam.reproduction import Reproduction, reproduce
    from ortcam.runtime.providers import Provider
    from ortcam.scorecam import ScoreCAM
    from ortcam.targets import Target

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "CamModel",
    "Convention",
    "Explanation",
    "OrtcamError",
    "OrtcamWarning",
    "PackReport",
    "PackedExplainer",
    "PackedExplanation",
    "Preprocessing",
    "Provider",
    "Reproduction",
    "ScoreCAM",
    "Target",
    "__version__",
    "pack",
    "reproduce",
]

# The public names are loaded when first used: `ortcam --help` need not wait for numpy and onnx.
_HOME = {
    "PRESETS": "convention",
    "Convention": "convention",
    "OrtcamError": "errors",
    "OrtcamWarning": "errors",
    "Explanation": "explanation",
    "Target": "targets",
    "Preprocessing": "preprocessing",
    "Provider": "runtime.providers",
    "CamModel": "model",
    "Reproduction": "reproduction",
    "reproduce": "reproduction",
    "ScoreCAM": "scorecam",
    "PackReport": "deploy.pack",
    "pack": "deploy.pack",
    "PackedExplainer": "deploy.packed",
    "PackedExplanation": "deploy.packed",
}
_NEEDS_RUNTIME = set(_HOME) - {
    "PRESETS",
    "CamModel",
    "Convention",
    "Explanation",
    "OrtcamError",
    "OrtcamWarning",
    "Preprocessing",
    "Target",
}
NO_RUNTIME = "no ONNX Runtime is installed: pip install 'ortcam[cpu]' (or 'ortcam[gpu]' for NVIDIA GPUs)"

if importlib.util.find_spec("onnxruntime") is None:
    warnings.warn(NO_RUNTIME, RuntimeWarning, stacklevel=2)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ortcam' has no attribute {name!r}")
    if name in _NEEDS_RUNTIME and importlib.util.find_spec("onnxruntime") is None:
        raise ImportError(NO_RUNTIME)
    value = getattr(import_module(f"ortcam.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
