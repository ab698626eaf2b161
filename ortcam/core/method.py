"""Method and Run: the protocols of a method of explanation.

A method sees neither the model nor a device. It gets the plain pass of a photo, returns queries for changed inputs
(`Query`), observes their scores, and finishes with a map for each target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from ortcam.core.budget import Limits, Predictors
from ortcam.core.convention import Convention, Floats
from ortcam.core.forward import Forward
from ortcam.core.query import Change, Query
from ortcam.core.selection import ErrorEstimate
from ortcam.core.targets import Wanted


@dataclass(frozen=True)
class Scores:
    """The scores of a query's M changed inputs for T targets.

    Attributes:
        logits: float32 [M,T].
        log_probabilities: float32 [M,T], the logs of the targets' probabilities; [M,0] of `Ablations`.
        plain: the scores are values that have no probability.
    """

    logits: Floats
    log_probabilities: Floats
    plain: bool = False

    @property
    def probabilities(self) -> Floats:
        """float32 [M,T], the probabilities of the targets; of plain values, the values."""
        return self.logits if self.plain else np.exp(self.log_probabilities)

    def take(self, begin: int, end: int, targets: int | None = None) -> Scores:
        """Return the scores of the rows from `begin` to before `end`, of the first `targets` targets."""
        return Scores(self.logits[begin:end, :targets], self.log_probabilities[begin:end, :targets], self.plain)


@dataclass(frozen=True)
class MapResult:
    """The result of a method for one photo.

    Attributes:
        sums: float32 [T,h,w], the maps before the last steps of the convention (ReLU, upsampling, normalisation).
        weights: float32 [T,W], the weights of the sums: one for each channel, or the score of each mask.
        errors: the estimated distance of each map from the exact map; None if the method makes no estimate.
        live: the number of channels that vary in space; None if the method does not use the channels.
    """

    sums: Floats
    weights: Floats
    errors: tuple[ErrorEstimate | None, ...]
    live: int | None


if TYPE_CHECKING:  # protocols take milliseconds to make, and only the type checker reads them

    class Run(Protocol):
        """The run of a method on one photo."""

        @property
        def most(self) -> int:
            """The largest number of changed inputs that are run."""

        def next(self) -> Query | None:
            """Return the inputs to run next; None at the end."""

        def observe(self, scores: Scores) -> None:
            """Take the scores of the last query."""

        def finish(self) -> MapResult:
            """Return the maps; called once, after `next` has returned None."""

    class Method(Protocol):
        """A method of explanation. Its options are its fields; it can be pickled."""

        @property
        def name(self) -> str:
            """The name on the command line."""

        @property
        def convention(self) -> Convention:
            """The last steps of a map; for Score-CAM, its whole definition."""

        @property
        def change(self) -> Change:
            """The change of its queries. If the bank is `Maps`, the values may differ."""

        @property
        def scored(self) -> Literal["logits", "output"]:
            """The tensor that the scores are taken from, as in `Convention`."""

        @property
        def stages(self) -> int:
            """The largest number of earlier stages whose activations it uses beside the target layer's."""

        def describe(self) -> dict[str, Any]:
            """Return the name and the options for the record."""

        def check(self, limits: Limits) -> None:
            """Raise an OptionError if the method does not support the limits."""

        def first_query(self, limits: Limits, channels: int | None, batch_size: int) -> int:
            """Return the least number of changed inputs in the first query of a photo.

            Args:
                limits: the limits of the explanation.
                channels: the number of channels of the layer; None if it is unknown.
                batch_size: the largest number of changed inputs per run.
            """

        def begin(self, forward: Forward, targets: Sequence[Wanted], limits: Limits, predictors: Predictors) -> Run:
            """Begin the run of a photo.

            Args:
                forward: its plain pass.
                targets: the T targets to explain.
                limits: the budget, the tolerance and the selection.
                predictors: makes the predictors of scores for all photos of a group.
            """
