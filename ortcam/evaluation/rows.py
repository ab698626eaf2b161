"""Row: the values of one map of one photo, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Column:
    """A value that an evaluation measures for every map.

    Attributes:
        name: the value's name, unique in an evaluation: ``insertion``, ``insertion:rise``, ``energy``, ...
        metric: the metric and preset that it belongs to, such as ``insertion:rise``.
        better: whether a ``higher`` or a ``lower`` value speaks for the map; None if neither does.
        fractions: the fractions of pixels, in [0,1], at the points of the value's curve; empty if it has no curve.
    """

    name: str
    metric: str
    better: Literal["higher", "lower"] | None
    fractions: tuple[float, ...] = ()


@dataclass(frozen=True)
class Row:
    """The values of one map.

    Attributes:
        photo: the name of the sample, unique in an evaluation.
        method: the name of the method or control that made the map.
        explained: the index of the class that the map explains; of a box or a region, of its class.
        scored: the same of the class whose score was measured.
        values: a number for each column by its name; None if the value is undefined.
        reasons: for each value that is None, the reason in a few words, such as ``flat map``.
        curves: the scores at the points of each curve, by the name of its column.
        target: for a target that is not a class, its name, such as ``cat at 10,20,90,200``; else empty.
    """

    photo: str
    method: str
    explained: int
    scored: int
    values: Mapping[str, float | None]
    reasons: Mapping[str, str] = field(default_factory=dict)
    curves: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    target: str = ""


@dataclass(frozen=True)
class Failure:
    """A photo that could not be evaluated.

    Attributes:
        photo: the name of the sample.
        error: the message, one line.
    """

    photo: str
    error: str
