"""The shapes of a graph's tensors."""

from __future__ import annotations

from ortcam.runtime.shapes import complete_shapes

__all__ = ["complete_shapes"]
