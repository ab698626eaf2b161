"""Pictures as arrays: photos, input tensors, and the part of a photo that a model sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Photo = NDArray[np.uint8]  # [H,W,3] RGB
Tensor = NDArray[np.float32]  # [1,C,H,W], or the model's own layout


@dataclass(frozen=True)
class Crop:
    """The part of a photo that the model saw: rows ``top:bottom``, columns ``left:right``, in photo pixels."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left
