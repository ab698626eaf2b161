"""Mistakes of a classifier as data: what speaks for the predicted class, what for the true one, and what is suspicious.

`ortcam.evaluation.debugging.debug` makes them; docs/debugging.md explains them to users.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ortcam.core.convention import Floats
from ortcam.core.measures import MapMeasures
from ortcam.core.pictures import Crop
from ortcam.core.targets import Target
from ortcam.evaluation.rows import Failure

GRID = 16  # rows and columns of the mean maps
PARTS = tuple(
    f"{down} {across}".replace("middle centre", "centre")
    for down in ("top", "middle", "bottom")
    for across in ("left", "centre", "right")
)
CORNERS = frozenset(PARTS[place] for place in (0, 2, 6, 8))
# Flags, and the least share that sets each of them.
OUTSIDE = 0.5  # of the evidence, outside the object
CORNER = 0.5  # of the evidence, in one corner; a constant map has 0.11
FRAME = 0.38  # of the evidence, at the crop's edge; a constant map has 0.19
CUT = 0.05  # of the object's pixels, cut off by the crop
FLAGS = {
    "outside": f"at least {OUTSIDE:.0%} of the evidence for the predicted class lies outside the object",
    "corner": f"at least {CORNER:.0%} of the evidence for the predicted class lies in one corner: a ninth of the photo",
    "frame": f"at least {FRAME:.0%} of the evidence for the predicted class lies within 5 % of the crop's edge",
    "flat": "the map of the predicted class is zero everywhere",
    "cut": f"the crop cut off at least {CUT:.0%} of the object's pixels",
}
ORDER = (
    "photos with more flags come first; of photos with equally many flags, the photo whose predicted class is further "
    "ahead of its true class in probability comes first"
)


@dataclass(frozen=True)
class Prediction:
    """What the model says of one photo.

    Attributes:
        photo: the photo's name in the data set.
        path: the photo's path; None if it is no file.
        true: the class that the data set states, with its probability. If the data set states several classes of the
            photo, it is the predicted class if that is one of them, else the most probable of them.
        predicted: the most probable class.
    """

    photo: str
    path: str | None
    true: Target
    predicted: Target

    @property
    def is_correct(self) -> bool:
        return self.true.index == self.predicted.index

    @property
    def pair(self) -> tuple[int, int]:
        """The indices of the true and the predicted class."""
        return self.true.index, self.predicted.index

    @property
    def names(self) -> tuple[str, str]:
        """The names of both classes; with their indices where two classes have one name."""
        names = self.true.name, self.predicted.name
        if names[0] != names[1] or self.is_correct:
            return names
        return f"{names[0]} (class {self.true.index})", f"{names[1]} (class {self.predicted.index})"

    @property
    def lead(self) -> float:
        """The probability of the predicted class minus that of the true class, in [0,1]."""
        return self.predicted.probability - self.true.probability


@dataclass(frozen=True)
class Evidence:
    """Where the map of one class lies. Shares are of the map's sum, in [0,1]; all are None for a flat map.

    Attributes:
        measures: place of the maximum, box of the half maximum, share at the crop's edge.
        part: the part of the photo, a ninth of it such as ``top left``, with the largest share.
        part_share: that share.
        outside: the share outside the object (1 - energy); also None if the data set does not state the object.
    """

    measures: MapMeasures
    part: str | None = None
    part_share: float | None = None
    outside: float | None = None

    @property
    def is_flat(self) -> bool:
        return self.measures.maximum is None


@dataclass(frozen=True)
class Without:
    """What the model says of a photo without the top region of the predicted class's map.

    The region is the pixels where the map, at the model's input size, has at least half of its maximum. They are
    replaced by 0 in the preprocessed input, as in the deletion metric; 0 is the mean colour of most preprocessings.

    Attributes:
        share: the region's share of the input's pixels, in [0,1].
        predicted: the probability of the predicted class, without the region.
        true: the probability of the true class, without the region.
        winner: the most probable class, without the region.
        true_wins: the winner is the true class.
    """

    share: float
    predicted: float
    true: float
    winner: Target
    true_wins: bool


@dataclass(frozen=True)
class Mistake:
    """A misclassified photo that was explained; both maps are from the same passes.

    Attributes:
        prediction: the two classes.
        predicted: the evidence for the predicted class.
        true: the evidence for the true class.
        in_common: the share of mass in common: the sum of the minimum of both maps, each divided by its sum, in [0,1].
            None if a map is flat.
        without: the counterfactual; None if the predicted class's map is flat.
        object_box: the smallest box around the object's masks or boxes, in photo pixels; None if it is not stated.
        cut: the share of the object's pixels that the crop cut off, in [0,1]; None if the object is not stated.
        unseen: the share of the photo that the crop cut off, in [0,1].
        size: the photo's (H, W).
        error: the larger stated error (1 - r) of both maps; None if it is unknown.
        sha256: the hash of what was explained (`ortcam.core.provenance.Origin`).
    """

    prediction: Prediction
    predicted: Evidence
    true: Evidence
    in_common: float | None
    without: Without | None
    object_box: Crop | None
    cut: float | None
    unseen: float
    size: tuple[int, int]
    error: float | None
    sha256: str

    @cached_property
    def flags(self) -> tuple[str, ...]:
        """What is suspicious, in the order of `FLAGS`, which defines each flag."""
        found = self.predicted
        at_edge = found.measures.share_at_edge
        flags = {
            "outside": found.outside is not None and found.outside >= OUTSIDE,
            "corner": found.part in CORNERS and found.part_share is not None and found.part_share >= CORNER,
            "frame": at_edge is not None and at_edge >= FRAME,
            "flat": found.is_flat,
            "cut": self.cut is not None and self.cut >= CUT,
        }
        return tuple(flag for flag, is_set in flags.items() if is_set)

    @property
    def suspicion(self) -> tuple[int, float, str]:
        """The key of `ORDER`: the smallest comes first."""
        return -len(self.flags), -self.prediction.lead, self.prediction.photo


@dataclass(frozen=True)
class Pair:
    """All photos of one true class that the model takes for one other class.

    Attributes:
        true, predicted: the indices of the classes.
        names: their names.
        count: the number of photos.
        photos: the names of the photos, in the order of the data set.
    """

    true: int
    predicted: int
    names: tuple[str, str]
    count: int
    photos: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class MeanMap:
    """The mean of the predicted class's maps of several photos, on a grid over the whole photo.

    Each map is brought to the grid by the means of its pixels and divided by its sum, so that each photo counts alike.
    Flat maps are left out.

    Attributes:
        count: the number of maps.
        grid: float64 [16,16], its sum is 1; zero everywhere if there are no maps.
    """

    count: int
    grid: NDArray[np.float64]

    @property
    def part(self) -> tuple[str, float] | None:
        """The ninth of the photo with the largest share of the grid's sum, and this share; None without maps."""
        return largest_part(self.grid.astype(np.float32)) if self.count else None


@dataclass(frozen=True, eq=False)
class Debugging:
    """The mistakes of a classifier on a data set.

    Attributes:
        photos: the prediction of each photo, in the order of the data set.
        mistakes: the misclassified photos that were explained, the most suspicious first (`ORDER`).
        failures: the photos that could not be predicted or explained.
        wrong: the mean map of misclassified photos.
        right: the mean map of correctly classified photos.
        record: everything that the values depend on, as plain JSON.
    """

    photos: tuple[Prediction, ...]
    mistakes: tuple[Mistake, ...]
    failures: tuple[Failure, ...]
    wrong: MeanMap
    right: MeanMap
    record: Mapping[str, Any]

    @property
    def misclassified(self) -> int:
        """The number of misclassified photos, explained or not."""
        return sum(not one.is_correct for one in self.photos)

    @property
    def accuracy(self) -> float | None:
        """The share of photos whose most probable class is the true one, in [0,1]; None without any prediction."""
        return 1 - self.misclassified / len(self.photos) if self.photos else None

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """The pairs of true and predicted class, the most frequent first; then by their indices."""
        found: dict[tuple[int, int], list[Prediction]] = {}
        for one in self.photos:
            if not one.is_correct:
                found.setdefault(one.pair, []).append(one)
        pairs = (Pair(*key, of[0].names, len(of), tuple(one.photo for one in of)) for key, of in found.items())
        return tuple(sorted(pairs, key=lambda pair: (-pair.count, pair.true, pair.predicted)))

    def to_dict(self) -> dict[str, Any]:
        """Return all values and the record as plain JSON."""
        explained = {one.prediction.photo: one for one in self.mistakes}
        order = {one.prediction.photo: number for number, one in enumerate(self.mistakes, 1)}
        return {
            **self.record,
            "accuracy": self.accuracy,
            "misclassified": self.misclassified,
            "explained": len(self.mistakes),
            "pairs": [asdict(pair) for pair in self.pairs],
            "mean_maps": {
                name: {"photos": one.count, "grid": one.grid.tolist()}
                for name, one in (("misclassified", self.wrong), ("correct", self.right))
            },
            "photos": [
                {
                    "photo": one.photo,
                    "path": one.path,
                    "true": {**target_to_dict(one.true), "name": one.names[0]},
                    "predicted": {**target_to_dict(one.predicted), "name": one.names[1]},
                    "correct": one.is_correct,
                    "suspicion": order.get(one.photo),
                    "mistake": mistake_to_dict(explained[one.photo]) if one.photo in explained else None,
                }
                for one in self.photos
            ],
            "failures": [asdict(one) for one in self.failures],
        }


def target_to_dict(target: Target) -> dict[str, Any]:
    return {"index": target.index, "label": target.label, "name": target.name, "probability": target.probability}


def mistake_to_dict(mistake: Mistake) -> dict[str, Any]:
    """Return the numbers of an explained photo as plain JSON."""
    without = mistake.without
    return {
        "sha256": mistake.sha256,
        "size": {"height": mistake.size[0], "width": mistake.size[1]},
        "flags": list(mistake.flags),
        "evidence": {"predicted": asdict(mistake.predicted), "true": asdict(mistake.true)},
        "in_common": mistake.in_common,
        "without": without and {**asdict(without), "winner": target_to_dict(without.winner)},
        "object_box": None if mistake.object_box is None else mistake.object_box.to_dict(),
        "object_cut": mistake.cut,
        "unseen": mistake.unseen,
        "error": mistake.error,
    }


def largest_part(saliency: Floats) -> tuple[str, float]:
    """Return the ninth of a map [H,W] with the largest share of its sum, one of `PARTS`, and this share."""
    shares = on_grid(saliency, 3)
    place = int(shares.argmax())
    return PARTS[place], float(shares.flat[place])


def on_grid(saliency: Floats, side: int) -> NDArray[np.float64]:
    """Return the shares of a map's sum on a grid over the photo, float64 [side,side]; the map is not flat.

    A pixel that lies in several cells counts for each with its part.
    """
    height, width = saliency.shape
    rows, columns = (_overlaps(length, side) for length in (height, width))
    shares = rows @ saliency.astype(np.float64) @ columns.T
    return np.asarray(shares / shares.sum(), np.float64)


def _overlaps(length: int, parts: int) -> NDArray[np.float64]:
    """Return which part of each of `length` pixels lies in each of equal parts, float64 [parts,length]."""
    begins, edges = np.arange(length, dtype=np.float64), np.arange(parts + 1) * (length / parts)
    ends = np.minimum(begins + 1, edges[1:, None])
    return np.asarray(np.clip(ends - np.maximum(begins, edges[:-1, None]), 0, 1))


def box_around(region: NDArray[np.bool_]) -> Crop:
    """Return the smallest box around an object's pixels, bool [H,W]."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    return Crop(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


def cut_off(region: NDArray[np.bool_], crop: Crop) -> float:
    """Return the share of an object's pixels, bool [H,W], that lies outside the crop, in [0,1]."""
    return 1 - int(np.count_nonzero(region[crop.inside])) / int(np.count_nonzero(region))
