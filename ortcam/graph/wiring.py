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
        binary, baseline, at: as in `Change` and `Baseline`.
    """

    bank: Literal["given", "grids"] = "given"
    binary: bool = False
    baseline: Literal["zero", "colour", "blurred"] = "zero"
    at: Literal["image", "layer"] = "image"

    @classmethod
    def of(cls, change: Change) -> Wiring:
        """Return the wiring of a change."""
        bank: Literal["given", "grids"] = "grids" if isinstance(change.bank, Grids) else "given"
        return cls(bank, change.binary, change.baseline.kind, change.at)


MASKED_IMAGE = Wiring()  # Score-CAM's
