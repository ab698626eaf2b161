"""Pictures as arrays: photos, input tensors, and the part of a photo that a model sees."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # protocols take milliseconds to make

    class HasArray(Protocol):
        """An array of another library, such as a torch tensor."""

        def __array__(self) -> NDArray[Any]: ...

    class HasPixels(Protocol):
        """A Pillow image."""

        def getbands(self) -> tuple[str, ...]: ...

    # What `explain` takes: a path, the bytes of a picture, a binary file that is open, an RGB photo uint8 [H,W,3], a
    # Pillow image, or a preprocessed input tensor, float [1,C,H,W] (or the model's own layout).
    Image = str | PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | NDArray[Any] | HasArray | HasPixels

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

    def to_photo(self, boxes: NDArray[Any], input_size: tuple[int, int]) -> NDArray[np.float64]:
        """Return boxes [...,4], left, top, right and bottom in pixels of the input (H, W), in pixels of the photo."""
        down, across = self.height / input_size[0], self.width / input_size[1]
        moved = [self.left, self.top, self.left, self.top]
        return np.asarray(boxes, np.float64) * [across, down, across, down] + moved

    def to_input(self, boxes: NDArray[Any], input_size: tuple[int, int]) -> NDArray[np.float64]:
        """Return boxes [...,4] in pixels of the photo in pixels of the input (H, W): the inverse of `to_photo`."""
        down, across = self.height / input_size[0], self.width / input_size[1]
        moved = [self.left, self.top, self.left, self.top]
        return (np.asarray(boxes, np.float64) - moved) / [across, down, across, down]
