"""Which masked inputs are run: one for each distinct mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ortcam.convention import Convention, Floats, Masks

# Masks in [0,1] that are equal to this fraction are one mask: far below what float32 convolutions resolve.
_MASK_RESOLUTION = 2.0**-20


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


def select_distinct(activations: Floats, masks: Masks, convention: Convention) -> Selection:
    """Select one channel for each distinct mask: exact Score-CAM without a pass that another has made.

    Channels that are active in one and the same place only have the same mask, however strong they are; after a
    ReLU there are many. All constant channels have the blank mask, which is left out or run once as the
    convention says.

    Args:
        activations: float32 [K,h,w].
        masks: what the convention makes of them.
        convention: what becomes of constant channels.
    """
    shift, scale, _ = masks.affine.T[:, :, None, None]
    levels = np.rint((activations - shift) * scale / np.float32(_MASK_RESOLUTION)).astype(np.int32)
    chosen: dict[bytes, int] = {}
    rows = np.full(len(activations), -1, np.intp)
    channels: list[int] = []
    for channel in range(len(activations)):
        if not masks.live[channel] and convention.constant_channels == "skip":
            continue
        mask = levels[channel].tobytes()
        if mask not in chosen:
            chosen[mask] = len(channels)
            channels.append(channel)
        rows[channel] = chosen[mask]
    return Selection(np.array(channels, np.int64), np.ascontiguousarray(masks.affine[channels]), rows)
