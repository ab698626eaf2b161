"""Exporters: models of other frameworks become ONNX files with their target layer exposed.

>>> from ortcam.exporters import export                                 # doctest: +SKIP
>>> export(module, "model.onnx", preprocess="imagenet", labels="imagenet")  # doctest: +SKIP
"""

from __future__ import annotations

from ortcam.exporters.export import export
from ortcam.exporters.report import ExportReport

__all__ = ["ExportReport", "export"]
