"""Where buffers live."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """ONNX Runtime's device type, and the index of the device."""

    type: str = "cpu"
    id: int = 0
