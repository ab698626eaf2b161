"""Method and Run: what a method of explanation asks of a model, photo by photo.

A method sees neither the model nor a device. It is begun with the plain pass of a photo, asks for changed inputs
(`Query`), observes their scores, and finishes with a map for each target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ortcam.core.budget import Limits, Predictors
from ortcam.core.convention import Convention, Floats
from ortcam.core.forward import Forward
from ortcam.core.query import Change, Query
from ortcam.core.selection import ErrorEstimate
from ortcam.core.targets import Wanted


@dataclass(frozen=True)
class Scores:
    """What a query's M changed inputs scored for T targets.

    Attributes:
        logits: float32 [M,T].
        log_probabilities: float32 [M,T], the logs of the targets' probabilities.
    """

    logits: Floats
    log_probabilities: Floats

    def take(self, begin: int, end: int) -> Scores:
        """Return the scores of some rows."""
        return Scores(self.logits[begin:end], self.log_probabilities[begin:end])


@dataclass(frozen=True)
class MapResult:
    """What a method found out about one photo.

    Attributes:
        sums: float32 [T,h,w], the maps before the last steps of the convention (ReLU, upsampling, normalisation).
        weights: float32 [T,W], what was summed with: the weight of every channel, or the score of every mask.
        errors: how far every map is from the exact one; None where the method cannot tell.
        live: how many channels of the layer vary in space; None where the method does not look at them.
    """

    sums: Floats
    weights: Floats
    errors: tuple[ErrorEstimate | None, ...]
    live: int | None


class Run(Protocol):
    """One photo in the works."""

    @property
    def most(self) -> int:
        """How many changed inputs are run at most."""

    def next(self) -> Query | None:
        """Return the inputs to run now; None when enough were run."""

    def observe(self, scores: Scores) -> None:
        """Take the scores of what `next` returned."""

    def finish(self) -> MapResult:
        """Return the maps; called once, after `next` has returned None."""


class Method(Protocol):
    """A method of explanation. Its options are its fields; it can be pickled."""

    @property
    def name(self) -> str:
        """As on the command line."""

    @property
    def convention(self) -> Convention:
        """The last steps of a map; for Score-CAM, its whole definition."""

    @property
    def change(self) -> Change:
        """How its queries change their inputs; of `Maps`, all but the values."""

    @property
    def scored(self) -> Literal["logits", "output"]:
        """What the scores are taken from, as in `Convention`."""

    def describe(self) -> dict[str, Any]:
        """Return the name and the options, as the record states them."""

    def check(self, limits: Limits) -> None:
        """Raise an OptionError where the method cannot keep such limits."""

    def first_query(self, limits: Limits, channels: int | None, batch_size: int) -> int:
        """Return how many changed inputs a photo of a layer with so many channels brings at first, at least."""

    def begin(self, forward: Forward, targets: Sequence[Wanted], limits: Limits, predictors: Predictors) -> Run:
        """Begin with a photo.

        Args:
            forward: its plain pass.
            targets: the T targets that are explained.
            limits: what it may cost.
            predictors: where what predicts scores is made, for all photos of a group.
        """
