"""Replacements: what stands in for the hidden part of a photo. Each is made once a photo."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import cv2
import numpy as np

from ortcam.core.convention import Floats
from ortcam.core.query import Baseline
from ortcam.errors import OptionError
from ortcam.model.contract import Contract

_BORDERS = {"zero": cv2.BORDER_CONSTANT, "reflect": cv2.BORDER_REFLECT_101}


@dataclass(frozen=True)
class Replacement:
    """The replacement for hidden pixels, as data.

    Attributes:
        kind: ``zero``: 0 in the preprocessed input, which is the mean colour of most preprocessings; ``black``,
            ``grey`` and ``white``: 0, 127.5 and 255 in the photo before preprocessing; ``blurred``: the preprocessed
            input, blurred.
        kernel: the weights of the blur in one direction, an odd number of pixels; they are applied in both.
        edges: the pixels beyond the edge of the input, for the blur: ``zero``, or ``reflect`` without the edge itself.
    """

    kind: Literal["zero", "black", "grey", "white", "blurred"]
    kernel: tuple[float, ...] = ()
    edges: Literal["zero", "reflect"] = "zero"

    def check(self, contract: Contract, name: str) -> None:
        """Check that the model, called `name` in messages, states what the replacement needs.

        Raises:
            OptionError: it is a colour of the photo, and the model file does not state its preprocessing.
        """
        if contract.preprocessing is None and self.kind not in ("zero", "blurred"):
            raise OptionError(
                f"{name} states no preprocessing, so the input for a {self.kind} photo is unknown; "
                "choose the baseline zero or blurred-rise"
            )


def _mirrored_gaussian(length: int, sigma: float) -> tuple[float, ...]:
    """Return what a Gaussian filter that mirrors its input makes of `length` pixels with a 1 in the middle.

    The input is mirrored at its edges, so the parts of a wide Gaussian beyond the edges fold back into the kernel.
    """
    radius = int(4 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    places = (length // 2 + np.arange(-radius, radius + 1)) % (2 * length)
    kernel = np.zeros(length)
    np.add.at(kernel, np.where(places < length, places, 2 * length - 1 - places), weights / weights.sum())
    return tuple(kernel.tolist())


def _gaussian(length: int, sigma: float) -> tuple[float, ...]:
    weights = np.exp(-0.5 * ((np.arange(length) - length // 2) / sigma) ** 2)
    return tuple((weights / weights.sum()).tolist())


REPLACEMENTS = {
    "zero": Replacement("zero"),
    "black": Replacement("black"),
    "grey": Replacement("grey"),
    "white": Replacement("white"),
    # eclique/RISE: scipy's gaussian_filter of an 11 x 11 delta with sigma 5, then conv2d with zero padding.
    "blurred-rise": Replacement("blurred", _mirrored_gaussian(11, 5.0), "zero"),
    # torchvision's gaussian_blur with kernel 11 and sigma 5, which aenglebert/polycam calls.
    "blurred-polycam": Replacement("blurred", _gaussian(11, 5.0), "reflect"),
}
MEANINGS = {
    "zero": "0 in the preprocessed input, at the model's input size",
    "black": "0 of 255 in the photo before preprocessing, at the model's input size",
    "grey": "127.5 of 255 in the photo before preprocessing, at the model's input size",
    "white": "255 of 255 in the photo before preprocessing, at the model's input size",
    "blurred": "the preprocessed input, at the model's input size, filtered with the kernel in both directions",
}
_VALUES = {"black": 0, "grey": 127.5, "white": 255}


class Replacements:
    """The baselines of one photo; each is made at its first use."""

    def __init__(self, tensor: Floats, contract: Contract, name: str) -> None:
        """Prepare for the preprocessed photo [1,C,H,W] (or the model's own layout); `name` is the model's."""
        self._tensor, self._contract, self._name = tensor, contract, name
        self.of = cache(self._make)

    def _make(self, replacement: Replacement) -> Baseline | None:
        """Return the baseline of a replacement; None for zeros.

        Raises:
            OptionError: it is a colour of the photo, and the model file does not state its preprocessing.
        """
        if replacement.kind == "zero":
            return None
        if replacement.kind == "blurred":
            return Baseline(self._blurred(replacement))
        replacement.check(self._contract, self._name)
        preprocessing = self._contract.preprocessing
        assert preprocessing is not None
        values = np.float32(_VALUES[replacement.kind] * preprocessing.scale)
        colour = (values - np.array(preprocessing.mean, np.float32)) / np.array(preprocessing.std, np.float32)
        last = self._contract.image_layout == "NHWC"
        return Baseline(colour.astype(np.float32).reshape((1, 1, 1, -1) if last else (1, -1, 1, 1)))

    def _blurred(self, replacement: Replacement) -> Floats:
        last = self._contract.image_layout == "NHWC"
        planes = self._tensor[0].transpose(2, 0, 1) if last else self._tensor[0]
        kernel, border = np.array(replacement.kernel), _BORDERS[replacement.edges]
        if len(kernel) // 2 >= min(planes.shape[1:]):
            raise OptionError(f"the blur has {len(kernel)} pixels, more than the input of {planes.shape[1:]} allows")
        planes = np.stack([cv2.sepFilter2D(plane, cv2.CV_32F, kernel, kernel, borderType=border) for plane in planes])
        return np.ascontiguousarray(planes.transpose(1, 2, 0)[None] if last else planes[None], np.float32)
