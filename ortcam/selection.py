"""Which channels of the target layer are scored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ortcam.convention import Convention, Floats, Masks


@dataclass(frozen=True)
class Selection:
    """The masked inputs that are run for one photo.

    Attributes:
        channels: int64 [M], the channel that each masked input is made of.
        affine: float32 [M,3], as in `Masks`.
        rows: intp [K], which of the M scores belongs to a channel; -1 where the channel was left out.
    """

    channels: NDArray[np.int64]
    affine: Floats
    rows: NDArray[np.intp]

    @property
    def scored(self) -> int:
        return len(self.channels)

    def spread(self, scores: Floats) -> Floats:
        """Hand the scores [M,T] of the masked inputs to the channels [K,T]; -inf to those left out."""
        return np.concatenate([scores, np.full((1, scores.shape[1]), -np.inf, scores.dtype)])[self.rows]


def select_live(masks: Masks, convention: Convention) -> Selection:
    """Select every channel that varies in space: exact Score-CAM.

    All constant channels have the same blank mask. Where the convention keeps them, it is run once for all.
    """
    channels = np.flatnonzero(masks.live)
    rows = np.full(len(masks.live), -1, np.intp)
    rows[channels] = np.arange(len(channels))
    if convention.constant_channels == "blank" and len(channels) < len(masks.live):
        constant = np.flatnonzero(~masks.live)
        rows[constant] = len(channels)
        channels = np.append(channels, constant[0])
    return Selection(channels.astype(np.int64), np.ascontiguousarray(masks.affine[channels]), rows)
