"""Wiring: for which changes of its input a scoring graph is built. This module is imported at every start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ortcam.core.query import Change, Grids

VERSION = 6  # of this graph and of measurements with it; the cache of an older version is not used


@dataclass(frozen=True)
class Wiring:
    """The part of a `Change` that is nodes; the other parts are inputs. A session runs all changes of one wiring.

    Attributes:
        bank: the masks are ``given``, as channels or maps, or drawn as ``grids``.
        binary, at, upsampled: as in `Change`.
        replaces: a given baseline replaces the hidden part, which is zero otherwise.
    """

    bank: Literal["given", "grids"] = "given"
    binary: bool = False
    replaces: bool = False
    at: Literal["image", "layer"] = "image"
    upsampled: bool = True

    @classmethod
    def of(cls, change: Change) -> Wiring:
        """Return the wiring of a change."""
        bank: Literal["given", "grids"] = "grids" if isinstance(change.bank, Grids) else "given"
        return cls(bank, change.binary, change.baseline is not None, change.at, change.upsampled)


MASKED_IMAGE = Wiring()  # Score-CAM's
