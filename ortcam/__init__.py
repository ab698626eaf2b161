"""ortcam: explanations of vision models without gradients, run entirely in ONNX Runtime.

>>> import ortcam
>>> cam = ortcam.ScoreCAM("model.onnx")           # doctest: +SKIP
>>> cam.explain("photo.jpg").save("explanation")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from importlib import import_module
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ortcam.core.convention import PRESETS, Convention
    from ortcam.core.references import Box, Detecting, Output, Region, Similarity
    from ortcam.core.targets import Target
    from ortcam.deploy.load import load_explainer
    from ortcam.deploy.pack import PackReport, pack
    from ortcam.deploy.packed import PackedExplainer, PackedExplanation
    from ortcam.deploy.reproduction import Reproduction, reproduce
    from ortcam.errors import OrtcamError, OrtcamWarning
    from ortcam.explain.explainer import ModelExplainer
    from ortcam.explain.protocol import Explainer
    from ortcam.explain.scorecam import ScoreCAM
    from ortcam.explain.video import ExplainedVideo, explain_video
    from ortcam.methods.ablationcam import AblationCAM
    from ortcam.methods.cam import CAM
    from ortcam.methods.eigencam import EigenCAM
    from ortcam.methods.fused import Fused
    from ortcam.methods.polycam import PolyCAM
    from ortcam.methods.reciprocam import ReciproCAM
    from ortcam.methods.rise import RISE
    from ortcam.methods.smoothed import ISCAM, SSCAM
    from ortcam.model.cam_model import CamModel
    from ortcam.model.preprocessing import Preprocessing
    from ortcam.output.explanation import Explanation
    from ortcam.report.report import Report
    from ortcam.runtime.providers import Provider

__version__ = "0.1.0"

__all__ = [
    "CAM",
    "ISCAM",
    "PRESETS",
    "RISE",
    "SSCAM",
    "AblationCAM",
    "Box",
    "CamModel",
    "Convention",
    "Detecting",
    "EigenCAM",
    "ExplainedVideo",
    "Explainer",
    "Explanation",
    "Fused",
    "ModelExplainer",
    "OrtcamError",
    "OrtcamWarning",
    "Output",
    "PackReport",
    "PackedExplainer",
    "PackedExplanation",
    "PolyCAM",
    "Preprocessing",
    "Provider",
    "ReciproCAM",
    "Region",
    "Report",
    "Reproduction",
    "ScoreCAM",
    "Similarity",
    "Target",
    "__version__",
    "explain_video",
    "load_explainer",
    "pack",
    "reproduce",
]

# Public names are loaded at first use, so `ortcam --help` does not wait for numpy and onnx.
_HOME = {
    "PRESETS": "core.convention",
    "Convention": "core.convention",
    "OrtcamError": "errors",
    "OrtcamWarning": "errors",
    "Explanation": "output.explanation",
    "Report": "report.report",
    "Target": "core.targets",
    "Box": "core.references",
    "Output": "core.references",
    "Detecting": "core.references",
    "Region": "core.references",
    "Similarity": "core.references",
    "Preprocessing": "model.preprocessing",
    "Provider": "runtime.providers",
    "CamModel": "model.cam_model",
    "Reproduction": "deploy.reproduction",
    "reproduce": "deploy.reproduction",
    "ScoreCAM": "explain.scorecam",
    "Explainer": "explain.protocol",
    "ModelExplainer": "explain.explainer",
    "ExplainedVideo": "explain.video",
    "explain_video": "explain.video",
    "load_explainer": "deploy.load",
    "AblationCAM": "methods.ablationcam",
    "CAM": "methods.cam",
    "EigenCAM": "methods.eigencam",
    "PolyCAM": "methods.polycam",
    "ReciproCAM": "methods.reciprocam",
    "Fused": "methods.fused",
    "ISCAM": "methods.smoothed",
    "RISE": "methods.rise",
    "SSCAM": "methods.smoothed",
    "PackReport": "deploy.pack",
    "pack": "deploy.pack",
    "PackedExplainer": "deploy.packed",
    "PackedExplanation": "deploy.packed",
}
_NEEDS_RUNTIME = set(_HOME) - {
    "AblationCAM",
    "Box",
    "CAM",
    "EigenCAM",
    "PRESETS",
    "CamModel",
    "Convention",
    "Detecting",
    "Explanation",
    "Fused",
    "ISCAM",
    "OrtcamError",
    "OrtcamWarning",
    "Output",
    "PolyCAM",
    "Preprocessing",
    "RISE",
    "ReciproCAM",
    "Region",
    "Report",
    "SSCAM",
    "Similarity",
    "Target",
}
NO_RUNTIME = "no ONNX Runtime is installed: pip install 'ortcam[cpu]' (or 'ortcam[gpu]' for NVIDIA GPUs)"


def _has_runtime() -> bool:
    return importlib.util.find_spec("onnxruntime") is not None


def _warn_of_no_runtime() -> None:
    """Warn in one line, without the path and the line of code of Python's own format."""
    usual = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"ortcam: {message}\n"
    try:
        warnings.warn(NO_RUNTIME, RuntimeWarning, stacklevel=2)
    finally:
        warnings.formatwarning = usual


# The command line reports this in the error of the command.
if not _has_runtime() and PurePath(*getattr(sys, "argv", ())[:1]).stem != "ortcam":
    _warn_of_no_runtime()


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ortcam' has no attribute {name!r}")
    if name in _NEEDS_RUNTIME and not _has_runtime():
        raise ImportError(NO_RUNTIME)
    value = getattr(import_module(f"ortcam.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
