"""Evaluate maps: what the model keeps of what they mark, where they lie, and whether they depend on the weights.

`debug` explains the mistakes of a classifier.

>>> from ortcam import evaluation
>>> result = evaluation.evaluate("model.onnx", "photos/", metrics=["insertion", "deletion"])  # doctest: +SKIP
>>> print(result.table())                                                                     # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ortcam.evaluation.curves import Curve, HighestConfidence
    from ortcam.evaluation.datasets import Dataset, open_dataset
    from ortcam.evaluation.debugging import debug
    from ortcam.evaluation.maps import Contestant
    from ortcam.evaluation.masking import ADCC, Masking
    from ortcam.evaluation.metrics import METRICS
    from ortcam.evaluation.mistakes import Debugging
    from ortcam.evaluation.randomised import sanity
    from ortcam.evaluation.result import Result
    from ortcam.evaluation.run import evaluate
    from ortcam.evaluation.samples import Box, Sample

__all__ = [
    "ADCC",
    "METRICS",
    "Box",
    "Contestant",
    "Curve",
    "Dataset",
    "Debugging",
    "HighestConfidence",
    "Masking",
    "Result",
    "Sample",
    "debug",
    "evaluate",
    "open_dataset",
    "sanity",
]

# Public names are loaded at first use: an evaluation opens sessions, a data set does not.
_HOME = {
    "ADCC": "masking",
    "METRICS": "metrics",
    "Box": "samples",
    "Contestant": "maps",
    "Curve": "curves",
    "Dataset": "datasets",
    "Debugging": "mistakes",
    "HighestConfidence": "curves",
    "Masking": "masking",
    "Result": "result",
    "Sample": "samples",
    "debug": "debugging",
    "evaluate": "run",
    "open_dataset": "datasets",
    "sanity": "randomised",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ortcam.evaluation' has no attribute {name!r}")
    value = getattr(import_module(f"ortcam.evaluation.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
