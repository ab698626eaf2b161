"""Define as data how a map is compared with the place of an object: energy, pointing, rank and box.

Every measure takes a map at the photo's size and a `Place`, and returns a number in [0,1], the higher the better. The
number is None where the measure is undefined: the map is flat, has a value that is not finite, or has no positive
value where only positive values count.

    from ortcam.evaluation.localisation import ENERGY, Place

    ENERGY["quantus"].measure(saliency, Place(region))
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from ortcam.core.convention import Floats
from ortcam.errors import DatasetError

if TYPE_CHECKING:
    from ortcam.evaluation.samples import Box

Bools = NDArray[np.bool_]
Area = Literal["region", "boxes"]
Edges = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True, eq=False)
class Place:
    """Where the object is.

    Attributes:
        region: bool [H,W], the object's pixels: a mask, or the union of the boxes. It has a pixel at least.
        boxes: the boxes around the objects, in photo pixels; right and bottom lie outside. If there are none, the
            measures take the bounding box of `region`.

    Raises:
        DatasetError: the region is not bool [H,W], or it is empty.
    """

    region: Bools
    boxes: tuple[Box, ...] = ()

    def __post_init__(self) -> None:
        if self.region.ndim != 2 or self.region.dtype != np.bool_:
            given = f"{self.region.dtype} {list(self.region.shape)}"
            raise DatasetError(f"region of an object is {given}; expected bool [H,W]")
        if not self.region.any():
            raise DatasetError("region of an object has no pixel; expected one at least")

    @property
    def edges(self) -> tuple[Edges, ...]:
        """The boxes; if there are none, the bounding box of the region."""
        return self.boxes or (_bounding_box(self.region),)

    def area(self, kind: Area, closed: bool = False) -> Bools:
        """Return bool [H,W]: the region, or the union of the boxes.

        A pixel belongs to a box if its centre does. If `closed`, it belongs if its index lies between the edges, both
        included: a box of whole numbers is then one pixel wider and higher.
        """
        if kind == "region":
            return self.region
        height, width = self.region.shape
        inside = np.zeros((height, width), np.bool_)
        for left, top, right, bottom in self.edges:
            inside[_pixels(top, bottom, height, closed), _pixels(left, right, width, closed)] = True
        return inside


@dataclass(frozen=True)
class Energy:
    """The share of a map's sum that lies on the object.

    Attributes:
        name: the preset's name.
        source: the paper or project that defines it.
        area: where the sum is taken: the object's ``region``, or its ``boxes``.
        negative: what negative values count: ``zero``, or as they are (``kept``). If they are kept, the number may lie
            outside [0,1], and it is None if all values cancel out.
    """

    name: str
    source: str
    area: Area = "region"
    negative: Literal["zero", "kept"] = "zero"

    metric: ClassVar[str] = "energy"
    better: ClassVar[Literal["higher"]] = "higher"

    def measure(self, saliency: Floats, place: Place) -> float | None:
        """Return the share of the map, float32 [H,W], that lies in `place`.

        Raises:
            DatasetError: the map and the region differ in size.
        """
        if _range(saliency, place) is None:
            return None
        if self.negative == "zero":
            saliency = np.maximum(saliency, 0)
        total = float(saliency.sum(dtype=np.float64))
        if total == 0:
            return None
        return float(saliency[place.area(self.area)].sum(dtype=np.float64)) / total


@dataclass(frozen=True)
class Pointing:
    """Whether the map's maximum lies on the object: 1 for a hit, 0 for a miss.

    The sources average hits differently: TorchRay takes the mean of the classes' means, openvino_xai the mean of all.

    Attributes:
        name: the preset's name.
        source: the paper or project that defines it.
        area: what must be hit: the object's ``region``, or one of its ``boxes``.
        tolerance: in pixels of the photo. A maximum outside the area is a hit if the distance from its pixel to a pixel
            of the area is smaller, from centre to centre. 0: only a maximum inside is a hit.
        ties: which of equal maxima counts: the ``first``, row by row; or ``any``, so that one hit is enough.
        closed: whether boxes include their right and bottom edges, see `Place.area`.
    """

    name: str
    source: str
    area: Area = "region"
    tolerance: float = 0.0
    ties: Literal["first", "any"] = "first"
    closed: bool = False

    metric: ClassVar[str] = "pointing"
    better: ClassVar[Literal["higher"]] = "higher"

    def measure(self, saliency: Floats, place: Place) -> float | None:
        """Return 1.0 if the maximum of the map, float32 [H,W], hits `place`, else 0.0.

        Raises:
            DatasetError: the map and the region differ in size.
        """
        extremes = _range(saliency, place)
        if extremes is None:
            return None
        width = saliency.shape[1]
        found = np.flatnonzero(saliency == extremes[1]) if self.ties == "any" else np.array([saliency.argmax()])
        rows, columns = found // width, found % width
        area = place.area(self.area, self.closed)
        if area[rows, columns].any():
            return 1.0
        if self.tolerance <= 0:
            return 0.0
        # The area's pixels that can be near enough all lie in this part of the photo.
        reach = math.ceil(self.tolerance)
        top, left = max(0, int(rows.min()) - reach), max(0, int(columns.min()) - reach)
        near = area[top : int(rows.max()) + reach + 1, left : int(columns.max()) + reach + 1]
        if not near.any():
            return 0.0
        distance = cv2.distanceTransform((~near).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        return float((distance[rows - top, columns - left] < self.tolerance).any())


@dataclass(frozen=True)
class Rank:
    """Of the K highest pixels of the map, the share on the object, where K is the number of the object's pixels.

    Of equal pixels, the first counts as the higher, row by row.

    Attributes:
        name: the preset's name.
        source: the paper or project that defines it.
        area: the object's pixels: its ``region``, or those of its ``boxes``.
    """

    name: str
    source: str
    area: Area = "region"

    metric: ClassVar[str] = "rank"
    better: ClassVar[Literal["higher"]] = "higher"

    def measure(self, saliency: Floats, place: Place) -> float | None:
        """Return the share of the highest pixels of the map, float32 [H,W], that lies in `place`.

        Raises:
            DatasetError: the map and the region differ in size.
        """
        if _range(saliency, place) is None:
            return None
        area = place.area(self.area).ravel()
        values, count = saliency.ravel(), int(np.count_nonzero(area))
        # A full sort of a photo of 12 megapixels takes a second.
        lowest = np.partition(values, values.size - count)[values.size - count]
        above = values > lowest
        equal = np.flatnonzero(values == lowest)[: count - int(np.count_nonzero(above))]
        return (int(np.count_nonzero(above & area)) + int(np.count_nonzero(area[equal]))) / count


@dataclass(frozen=True)
class BoxIoU:
    """The intersection over union of the map's box with the object's box.

    The map's box is the bounding box of the largest component of the pixels above a share of the maximum. Of equally
    large components, the one that begins higher, then further left, counts.

    Attributes:
        name: the preset's name.
        source: the paper or project that defines it.
        threshold: the share of the map's maximum, in [0,1), that a pixel must exceed. Of several thresholds, the one
            with the highest IoU counts, for each map.
        several: for several boxes: the ``best`` IoU with one of them, or the IoU with the box around their ``union``.
        connectivity: the neighbours that connect pixels: 4 (sides) or 8 (sides and corners).
    """

    name: str
    source: str
    threshold: float | tuple[float, ...]
    several: Literal["best", "union"] = "best"
    connectivity: Literal[4, 8] = 8

    metric: ClassVar[str] = "box-iou"
    better: ClassVar[Literal["higher"]] = "higher"

    def boxes(self, saliency: Floats) -> list[Edges]:
        """Return the box (left, top, right, bottom) of the map, float32 [H,W], for each threshold.

        Empty if no value is positive.
        """
        highest = float(saliency.max())
        if not highest > 0:
            return []
        thresholds = self.threshold if isinstance(self.threshold, tuple) else (self.threshold,)
        return [self._box(saliency > threshold * highest) for threshold in thresholds]

    def _box(self, above: Bools) -> Edges:
        """Return the bounding box of the largest component of `above`, which is not empty."""
        components = above.view(np.uint8)
        _, _, stats, _ = cv2.connectedComponentsWithStats(components, connectivity=self.connectivity, ltype=cv2.CV_32S)
        found = stats[1:]  # the first is the background
        sizes, tops, lefts = found[:, cv2.CC_STAT_AREA], found[:, cv2.CC_STAT_TOP], found[:, cv2.CC_STAT_LEFT]
        largest = found[np.lexsort((lefts, tops, -sizes))[0]]
        left, top, width, height = (float(number) for number in largest[:4])
        return left, top, left + width, top + height

    def measure(self, saliency: Floats, place: Place) -> float | None:
        """Return the IoU of the box of the map, float32 [H,W], with the object's.

        Raises:
            DatasetError: the map and the region differ in size.
        """
        if _range(saliency, place) is None:
            return None
        objects = place.edges
        if self.several == "union":
            left, top, right, bottom = zip(*objects, strict=True)
            objects = ((min(left), min(top), max(right), max(bottom)),)
        return max((_iou(found, edges) for found in self.boxes(saliency) for edges in objects), default=None)


_PAPER = "Score-CAM, Wang et al. 2020, section 4.3"
_QUANTUS = "quantus 0.6.0"

# The sources differ from these definitions in few places. For a flat map, quantus returns the object's share of the
# photo as mass, and a rank that depends on NumPy's sort, as it does wherever pixels are equal. The box generator that
# CAM's authors published has fixed thresholds (20, 100 and 110 of 255) in place of the paper's share of the maximum.
# CAM and Grad-CAM count an object as found if the IoU with any of its boxes is 0.5 or more.
ENERGY = {
    "paper": Energy("paper", f"{_PAPER}: the box; the paper has one a photo", area="boxes"),
    "quantus": Energy("quantus", f"{_QUANTUS}, RelevanceMassAccuracy: the mask", negative="kept"),
}
POINTING = {
    "torchray": Pointing("torchray", "TorchRay 1.0.0.2, PointingGame; Zhang et al. 2018", tolerance=15.0),
    "openvino-xai": Pointing("openvino-xai", "openvino_xai 1.1.0, PointingGame", area="boxes", ties="any", closed=True),
    "quantus": Pointing("quantus", f"{_QUANTUS}, PointingGame", ties="any"),
}
RANK = {"quantus": Rank("quantus", f"{_QUANTUS}, RelevanceRankAccuracy; Arras et al. 2020")}
BOX_IOU = {
    "cam": BoxIoU("cam", "CAM, Zhou et al. 2016, section 3.2: above 20 % of the maximum", threshold=0.2),
    "grad-cam": BoxIoU("grad-cam", "Grad-CAM, Selvaraju et al. 2017, section 4.1: above 15 %", threshold=0.15),
    # MaxBoxAcc sweeps in steps of 0.001, takes one threshold for all maps, and counts IoUs of 0.5 or more.
    "best-threshold": BoxIoU(
        "best-threshold",
        "after MaxBoxAcc, Choe et al. 2020, section 4; here each map has its own, so the mean is as high or higher",
        threshold=tuple(step / 20 for step in range(20)),
    ),
}


def _range(saliency: Floats, place: Place) -> tuple[float, float] | None:
    """Return the lowest and highest value; None for a map that is flat or not finite."""
    if saliency.shape != place.region.shape:
        raise DatasetError(
            f"map is {list(saliency.shape)}, the object's region {list(place.region.shape)}; expected one size [H,W]"
        )
    lowest, highest = float(saliency.min()), float(saliency.max())
    return (lowest, highest) if highest > lowest and math.isfinite(highest - lowest) else None


def _pixels(begin: float, end: float, count: int, closed: bool) -> slice:
    """Return which of `count` pixels of a row lie between two edges."""
    first = math.ceil(begin) if closed else math.ceil(begin - 0.5)
    after = math.floor(end) + 1 if closed else math.ceil(end - 0.5)
    return slice(min(max(0, first), count), max(0, min(after, count)))


def _bounding_box(region: Bools) -> Edges:
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _iou(one: Edges, other: Edges) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(0.0, width) * max(0.0, height)
    areas = sum((right - left) * (bottom - top) for left, top, right, bottom in (one, other))
    return common / (areas - common)
