"""Where maps lie: against other implementations, by hand, and against the definitions written out plainly."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.measure import label, regionprops

from ortcam.errors import DatasetError
from ortcam.evaluation.localisation import BOX_IOU, ENERGY, POINTING, RANK, BoxIoU, Place, Pointing

# Made by make_localisation_values.py there; the file states its origin.
JUDGES = Path(__file__).parent / "judges" / "localisation.npz"
ALL = [*ENERGY.values(), *POINTING.values(), *RANK.values(), *BOX_IOU.values()]


class Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float


@pytest.fixture(scope="module")
def judged() -> dict[str, NDArray[Any]]:
    with np.load(JUDGES) as stored:
        return dict(stored)


def places(judged: dict[str, NDArray[Any]]) -> list[Place]:
    return [
        Place(mask, tuple(Box(x, y, x + w, y + h) for x, y, w, h in boxes.tolist()))
        for mask, boxes in zip(judged["masks"], judged["boxes"], strict=True)
    ]


def measured(measure: Any, judged: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
    values = [[measure.measure(saliency, place) for place in places(judged)] for saliency in judged["maps"]]
    return np.array(values, np.float64)


# -- Judges ------------------------------------------------------------------------------------------------------------


def test_energy_agrees_with_quantus(judged: dict[str, NDArray[Any]]) -> None:
    """Values are stored in float32, and quantus adds in float32: its sums of 1536 values keep 6 digits."""
    ours, theirs = measured(ENERGY["quantus"], judged), judged["quantus_mass"]
    assert len(np.unique(theirs)) > 100 and theirs.min() < 0  # of the signed map
    # The sum of the signed map is small beside its terms.
    assert ours == pytest.approx(theirs, abs=1e-6, rel=1e-5)


def test_rank_agrees_with_quantus(judged: dict[str, NDArray[Any]]) -> None:
    """quantus sorts unstably: where pixels are equal, its values depend on NumPy's sort."""
    ours, theirs = measured(RANK["quantus"], judged), judged["quantus_rank"]
    unequal = [len(np.unique(saliency)) == saliency.size for saliency in judged["maps"]]
    assert sum(unequal) >= 6
    assert ours[unequal] == pytest.approx(theirs[unequal], abs=1e-6)


@pytest.mark.parametrize(("preset", "stored"), [("quantus", "quantus"), ("openvino-xai", "openvino")])
def test_pointing_agrees_with_libraries(preset: str, stored: str, judged: dict[str, NDArray[Any]]) -> None:
    theirs = judged[f"{stored}_pointing"]
    assert 0.05 < theirs.mean() < 0.95
    assert (measured(POINTING[preset], judged) == theirs).all()


@pytest.mark.parametrize("tolerance", [1, 4, 5, 15])
def test_pointing_with_tolerance_agrees_with_torchray(tolerance: int, judged: dict[str, NDArray[Any]]) -> None:
    """Places have pixels at a distance of exactly 4 and 5 from a maximum."""
    theirs = judged[f"torchray_pointing_{tolerance}"]
    assert (measured(Pointing("", "", tolerance=tolerance), judged) == theirs).all()
    assert 0.05 < theirs.mean() < 0.95
    assert POINTING["torchray"].tolerance == 15


def test_libraries_differ_where_the_conventions_do(judged: dict[str, NDArray[Any]]) -> None:
    """The maxima on the outer edges of boxes, and the equal maxima, are there: each option matters."""
    closed = measured(POINTING["openvino-xai"], judged)
    assert (closed != measured(Pointing("", "", area="boxes", ties="any"), judged)).any()
    assert (closed != measured(Pointing("", "", area="boxes", closed=True), judged)).any()


# -- By hand -----------------------------------------------------------------------------------------------------------


def corner(value: float = 1.0) -> NDArray[np.float32]:
    """A map with one pixel in row 10, column 20 of 40 x 60."""
    saliency = np.zeros((40, 60), np.float32)
    saliency[10, 20] = value
    return saliency


def region_of(left: int, top: int, right: int, bottom: int) -> NDArray[np.bool_]:
    region = np.zeros((40, 60), np.bool_)
    region[top:bottom, left:right] = True
    return region


def test_energy_of_the_paper_is_that_of_the_box() -> None:
    """The mask is an L inside its box; the pixel that lies in the box only counts for the paper's energy."""
    region = region_of(10, 10, 20, 12) | region_of(10, 12, 12, 20)
    saliency = np.zeros((40, 60), np.float32)
    saliency[11, 11], saliency[18, 18], saliency[30, 30], saliency[0, 0] = 1, 2, 5, -4
    assert ENERGY["paper"].measure(saliency, Place(region)) == 3 / 8  # the negative value counts zero
    assert ENERGY["quantus"].measure(saliency, Place(region)) == 1 / 4  # of 1 + 2 + 5 - 4
    boxes = (Box(30, 30, 31, 31), Box(18, 18, 19, 19), Box(18, 18, 20, 20))
    assert ENERGY["paper"].measure(saliency, Place(region, boxes)) == 7 / 8  # boxes that overlap count once


def test_a_box_has_the_pixels_whose_centres_it_holds() -> None:
    place = Place(region_of(0, 0, 1, 1), (Box(1.4, 2.6, 3.6, 4.5),))
    expected = region_of(1, 3, 4, 4)
    assert (place.area("boxes") == expected).all()
    assert (Place(place.region, (Box(-0.8, 39, 1, 40.9),)).area("boxes") == region_of(0, 39, 1, 40)).all()
    assert (Place(place.region, (Box(1, 2, 3, 4),)).area("boxes", closed=True) == region_of(1, 2, 4, 5)).all()


@pytest.mark.parametrize(("away", "hit"), [((14, 0), 1), ((15, 0), 0), ((9, 12), 0), ((9, 11), 1), ((0, -10), 1)])
def test_torchray_hits_nearer_than_fifteen_pixels(away: tuple[int, int], hit: float) -> None:
    x, y = 20 + away[0], 10 + away[1]
    assert POINTING["torchray"].measure(corner(), Place(region_of(x, y, x + 1, y + 1))) == hit


def test_of_equal_maxima_the_first_counts() -> None:
    saliency = corner()
    saliency[10, 50] = saliency[9, 55] = 1
    first, last = Place(region_of(55, 9, 56, 10)), Place(region_of(50, 10, 51, 11))
    exact = Pointing("", "")
    assert exact.measure(saliency, first) == 1
    assert exact.measure(saliency, last) == 0
    assert POINTING["quantus"].measure(saliency, last) == 1
    far = Place(region_of(20, 20, 21, 21))  # ten pixels below the second maximum only
    assert POINTING["torchray"].measure(saliency, far) == 0
    assert Pointing("", "", tolerance=11, ties="any").measure(saliency, far) == 1
    assert Pointing("", "", tolerance=10, ties="any").measure(saliency, far) == 0


def test_rank_takes_equal_pixels_row_by_row() -> None:
    """Three pixels are higher than the others; the object has six, so the first three of the others count."""
    saliency = np.zeros((40, 60), np.float32)
    saliency[30, 30:33] = 1
    assert RANK["quantus"].measure(saliency, Place(region_of(0, 0, 6, 1))) == 0.5
    assert RANK["quantus"].measure(saliency, Place(region_of(30, 30, 36, 31))) == 0.5
    assert RANK["quantus"].measure(saliency, Place(region_of(3, 0, 9, 1))) == 0


def test_box_of_the_largest_component() -> None:
    saliency = np.zeros((40, 60), np.float32)
    saliency[5:10, 5:15] = 0.5  # 50 pixels
    saliency[20:26, 20:28] = 1  # 48 pixels
    saliency[26, 28] = 0.18  # touches the corner; above 15 % of the maximum, not above 20 %
    saliency[27:32, 28] = 0.18
    place = Place(region_of(20, 20, 28, 26))
    assert BOX_IOU["cam"].boxes(saliency) == [(5, 5, 15, 10)]
    assert BOX_IOU["cam"].measure(saliency, place) == 0
    assert BOX_IOU["grad-cam"].boxes(saliency) == [(20, 20, 29, 32)]
    assert BOX_IOU["grad-cam"].measure(saliency, place) == pytest.approx(48 / 108, abs=1e-12)
    assert BoxIoU("", "", threshold=0.15, connectivity=4).boxes(saliency) == [(5, 5, 15, 10)]


def test_a_value_at_the_threshold_is_not_above_it() -> None:
    saliency = corner()
    saliency[10, 21] = 0.25
    assert BoxIoU("", "", threshold=0.25).boxes(saliency) == [(20, 10, 21, 11)]
    assert BoxIoU("", "", threshold=0.24).boxes(saliency) == [(20, 10, 22, 11)]


def test_of_equally_large_components_the_higher_counts() -> None:
    saliency = corner()
    saliency[10, 40] = saliency[9, 50] = 1
    assert BOX_IOU["cam"].boxes(saliency) == [(50, 9, 51, 10)]
    saliency[9, 50] = 0
    assert BOX_IOU["cam"].boxes(saliency) == [(20, 10, 21, 11)]


def test_of_several_boxes_the_best_or_the_union() -> None:
    saliency = np.zeros((40, 60), np.float32)
    saliency[10:20, 10:20] = 1
    boxes = (Box(10, 10, 20, 15), Box(30, 10, 40, 20), Box(10.0, 10.0, 20.0, 12.5))
    place = Place(region_of(10, 10, 40, 20), boxes)
    assert BOX_IOU["cam"].measure(saliency, place) == 0.5
    assert BoxIoU("", "", threshold=0.2, several="union").measure(saliency, place) == pytest.approx(1 / 3, abs=1e-12)


def test_of_several_thresholds_the_best_counts() -> None:
    saliency = np.zeros((40, 60), np.float32)
    saliency[10:20, 10:20] = 0.4
    saliency[10:20, 10:12] = 1
    place = Place(region_of(10, 10, 13, 20))
    found = [BoxIoU("", "", threshold=one).measure(saliency, place) for one in (0.3, 0.5)]
    assert found == pytest.approx([3 / 10, 2 / 3], abs=1e-12)
    assert BoxIoU("", "", threshold=(0.3, 0.5)).measure(saliency, place) == found[1]
    assert BoxIoU("", "", threshold=(0.3, 0.5)).boxes(saliency) == [(10, 10, 20, 20), (10, 10, 12, 20)]
    assert BOX_IOU["best-threshold"].measure(saliency, place) == found[1]


# -- Undefined, and errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", ALL, ids=lambda measure: f"{measure.metric}-{measure.name}")
@pytest.mark.parametrize("value", [0.0, 0.5, np.nan, np.inf])
def test_a_flat_map_has_no_value(measure: Any, value: float) -> None:
    place = Place(region_of(3, 3, 9, 9))
    assert measure.measure(np.full((40, 60), value, np.float32), place) is None
    if not np.isfinite(value):
        assert measure.measure(corner(value), place) is None


def test_without_positive_values_only_rank_and_pointing_are_defined() -> None:
    saliency = corner() - 2
    place = Place(region_of(20, 10, 21, 11))
    assert ENERGY["paper"].measure(saliency, place) is None
    assert BOX_IOU["cam"].measure(saliency, place) is None
    assert RANK["quantus"].measure(saliency, place) == 1
    assert POINTING["torchray"].measure(saliency, place) == 1
    balanced = corner()
    balanced[0, 0] = -1
    assert ENERGY["quantus"].measure(balanced, place) is None


def test_errors_say_what_was_given() -> None:
    with pytest.raises(DatasetError, match=r"map is \[4, 6\], the object's region \[40, 60\]; expected one size"):
        ENERGY["paper"].measure(np.zeros((4, 6), np.float32), Place(region_of(3, 3, 9, 9)))
    with pytest.raises(DatasetError, match="has no pixel"):
        Place(np.zeros((4, 6), np.bool_))
    with pytest.raises(DatasetError, match=r"is uint8 \[4, 6\]; expected bool \[H,W\]"):
        Place(np.ones((4, 6), np.uint8))  # type: ignore[arg-type]


# -- Properties --------------------------------------------------------------------------------------------------------


@st.composite
def cases(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A map that is not flat, of few different values, with a region."""
    height, width = draw(st.integers(2, 12)), draw(st.integers(2, 12))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    saliency = generator.integers(0, draw(st.sampled_from([2, 5, 1000])), (height, width)).astype(np.float32)
    region = generator.random((height, width)) < draw(st.sampled_from([0.1, 0.5, 0.9]))
    region[generator.integers(height), generator.integers(width)] = True
    saliency[generator.integers(height), generator.integers(width)] = 1000
    saliency[0, 0] = 0
    saliency[-1, -1] = 1000
    return saliency, region


@given(cases())
@settings(max_examples=100, deadline=None)
def test_values_lie_between_zero_and_one_and_scaling_changes_none(
    case: tuple[NDArray[np.float32], NDArray[np.bool_]],
) -> None:
    """A power of two scales float32 exactly."""
    saliency, region = case
    for measure in ALL:
        value = measure.measure(saliency, Place(region))
        assert value is not None and 0 <= value <= 1
        assert measure.measure(saliency * np.float32(0.25), Place(region)) == value


@given(cases(), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_pixels_moved_together_with_the_region_keep_the_energy(
    case: tuple[NDArray[np.float32], NDArray[np.bool_]], seed: int
) -> None:
    saliency, region = case
    order = np.random.default_rng(seed).permutation(saliency.size)
    moved = saliency.ravel()[order].reshape(saliency.shape)
    place = Place(region.ravel()[order].reshape(region.shape))
    # Whole numbers: sums in any order are exact.
    assert ENERGY["quantus"].measure(moved, place) == ENERGY["quantus"].measure(saliency, Place(region))
    assert POINTING["quantus"].measure(moved, place) == POINTING["quantus"].measure(saliency, Place(region))


@given(cases())
@settings(max_examples=50, deadline=None)
def test_a_map_equal_to_the_region_has_all_its_energy_there(
    case: tuple[NDArray[np.float32], NDArray[np.bool_]],
) -> None:
    region = case[1]
    region[0, 0] = False
    region[-1, -1] = True
    saliency = region.astype(np.float32)
    for preset in (*ENERGY.values(), *RANK.values(), *POINTING.values()):
        assert preset.measure(saliency, Place(region)) == 1


@given(cases())
@settings(max_examples=100, deadline=None)
def test_rank_is_that_of_a_stable_sort(case: tuple[NDArray[np.float32], NDArray[np.bool_]]) -> None:
    saliency, region = case
    order = np.argsort(-saliency, axis=None, kind="stable")[: region.sum()]
    assert RANK["quantus"].measure(saliency, Place(region)) == region.ravel()[order].mean()


@given(cases(), st.sampled_from([1.0, 1.5, 2.0, 3.0, 5.0]), st.sampled_from(["first", "any"]))
@settings(max_examples=100, deadline=None)
def test_tolerance_is_the_distance_to_the_nearest_pixel(
    case: tuple[NDArray[np.float32], NDArray[np.bool_]], tolerance: float, ties: Any
) -> None:
    saliency, region = case
    maxima = np.argwhere(saliency == saliency.max())[: 1 if ties == "first" else None]
    distance = np.linalg.norm(maxima[:, None] - np.argwhere(region)[None], axis=2).min()
    found = Pointing("", "", tolerance=tolerance, ties=ties).measure(saliency, Place(region))
    assert found == float(distance < tolerance)


@given(cases(), st.sampled_from([4, 8]))
@settings(max_examples=100, deadline=None)
def test_box_is_that_of_scikit_image(case: tuple[NDArray[np.float32], NDArray[np.bool_]], connectivity: Any) -> None:
    saliency = case[0]
    components = regionprops(label(saliency > 0.2 * saliency.max(), connectivity=connectivity // 4))
    found = max(components, key=lambda one: (one.area, -one.bbox[0], -one.bbox[1]))
    top, left, bottom, right = found.bbox
    assert BoxIoU("", "", threshold=0.2, connectivity=connectivity).boxes(saliency) == [(left, top, right, bottom)]
