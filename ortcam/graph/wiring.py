"""Wiring: for which changes of its input a scoring graph is built. This module is imported at every start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ortcam.core.query import Ablations, Change, Grids

VERSION = 8  # of this graph and of measurements with it; the cache of an older version is not used


@dataclass(frozen=True)
class Wiring:
    """The part of a `Change` that is nodes; the other parts are inputs. A session runs all changes of one wiring.

    Attributes:
        bank: the masks are ``given``, as channels or maps, drawn as ``grids``, or ``ablations``.
        binary, at, upsampled, copied: as in `Change`.
        noisy: noise is added to the masks.
        layer: the layer whose features are changed; 0 at the image.
        replaces: a given baseline replaces the hidden part, which is zero otherwise.
    """

    bank: Literal["given", "grids", "ablations"] = "given"
    binary: bool = False
    replaces: bool = False
    at: Literal["image", "layer"] = "image"
    upsampled: bool = True
    layer: int = 0
    copied: bool = False
    noisy: bool = False

    @classmethod
    def of(cls, change: Change) -> Wiring:
        """Return the wiring of a change."""
        bank: Literal["given", "grids", "ablations"] = "given"
        if isinstance(change.bank, Grids | Ablations):
            bank = "grids" if isinstance(change.bank, Grids) else "ablations"
        layer = change.layer if change.at == "layer" else 0
        upsampled = change.upsampled and bank != "ablations"
        return cls(
            bank,
            change.binary,
            change.baseline is not None,
            change.at,
            upsampled,
            layer,
            change.copied,
            change.noise is not None,
        )


MASKED_IMAGE = Wiring()  # Score-CAM's
