"""Pictures as arrays: photos, input tensors, and the part of a photo that a model sees."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

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


Padding = tuple[float, float, float, float]  # top, left, bottom, right


@dataclass(frozen=True)
class Crop:
    """The part of a photo that the model saw: rows ``top:bottom``, columns ``left:right``, in photo pixels.

    The input of a model that letterboxes reaches beyond the photo. The crop is then the whole photo.

    Attributes:
        top, left, bottom, right: whole photo pixels inside the photo.
        padding: how far the model's input reaches beyond the crop at the top, left, bottom and right, in photo pixels;
            0 unless the photo was letterboxed.
    """

    top: int
    left: int
    bottom: int
    right: int
    padding: Padding = (0.0, 0.0, 0.0, 0.0)

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def inside(self) -> tuple[slice, slice]:
        """The rows and columns of the photo that the model saw."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def is_padded(self) -> bool:
        """Whether the model's input reaches beyond the photo."""
        return any(self.padding)

    @property
    def frame(self) -> NDArray[np.float64]:
        """The edges of the model's input, padding included, in photo pixels: left, top, right, bottom, float64 [4]."""
        top, left, bottom, right = self.padding
        return np.array([self.left - left, self.top - top, self.right + right, self.bottom + bottom], np.float64)

    def to_photo(self, boxes: ArrayLike, input_size: tuple[int, int]) -> NDArray[np.float64]:
        """Return boxes of the model's input as boxes of the photo, float64 [...,4]; `place_map` agrees.

        Boxes are left, top, right, bottom, in pixels: the first pixel of a row covers 0 to 1. A box in the padding or
        the cut-off part has edges outside the photo.

        Args:
            boxes: [...,4], in pixels of the model's input.
            input_size: the (H, W) of the model's input.
        """
        offset, scale = self._affine(input_size)
        return np.asarray(boxes, np.float64) * scale + offset

    def to_input(self, boxes: ArrayLike, input_size: tuple[int, int]) -> NDArray[np.float64]:
        """Return boxes of the photo as boxes of the model's input, float64 [...,4]: the inverse of `to_photo`."""
        offset, scale = self._affine(input_size)
        return (np.asarray(boxes, np.float64) - offset) / scale

    def resized(self, size: tuple[int, int], new: tuple[int, int]) -> Crop:
        """Return the same part of a photo that is resized from `size` to `new`, both (H, W)."""
        down, across = new[0] / size[0], new[1] / size[1]
        top, left, bottom, right = self.padding
        return Crop(
            round(self.top * down),
            round(self.left * across),
            round(self.bottom * down),
            round(self.right * across),
            (top * down, left * across, bottom * down, right * across),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON; `padding` only if the input reaches beyond the photo."""
        edges = {"top": self.top, "left": self.left, "bottom": self.bottom, "right": self.right}
        return {**edges, "padding": list(self.padding)} if self.is_padded else edges

    def _affine(self, input_size: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return where the input's first corner lies in the photo, and photo pixels per input pixel, both [4]."""
        left, top, right, bottom = self.frame
        height, width = input_size
        offset = np.array([left, top, left, top])
        return offset, np.array([(right - left) / width, (bottom - top) / height] * 2)
