"""Numbers of a map: against values by hand, and against the definitions written out plainly."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import correlation
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ortcam.core.measures import MOST_CORRELATED, MapMeasures, Meter, contrast_maps, measure_map
from ortcam.core.pictures import Crop
from ortcam.output.render import find_peak_box


def test_a_map_by_hand() -> None:
    saliency = np.zeros((100, 200), np.float32)
    saliency[40:60, 80:90] = 0.25
    saliency[50:60, 80:85] = 0.5
    saliency[55, 83] = 1.0
    found = measure_map(saliency, Crop(0, 50, 100, 150))
    assert found.maximum == (83, 55)
    assert found.half_maximum_box == Crop(50, 80, 60, 85)  # 0.5 counts, 0.25 does not
    assert found.share_above_half == 50 / 20_000
    assert found.share_at_edge == 0


def test_the_box_of_the_maximum_holds_what_is_connected_with_it() -> None:
    saliency = np.zeros((100, 200), np.float32)
    saliency[10:20, 60:70] = 0.6  # another region above half of the maximum
    saliency[40:60, 80:90] = 0.5
    saliency[60, 90] = 0.5  # touches at a corner
    saliency[61:90, 91:99] = 0.49
    saliency[55, 83] = 1.0
    found = measure_map(saliency, Crop(0, 50, 100, 150), find_peak_box)
    assert found.peak_box == Crop(40, 80, 61, 91)
    assert found.peak_share == 21 * 11 / 20_000
    assert found.half_maximum_box == Crop(10, 60, 61, 91)
    assert measure_map(np.zeros((4, 4), np.float32), Crop(0, 0, 4, 4), find_peak_box) == MapMeasures()


def test_a_contrast_by_hand() -> None:
    ours, theirs = np.array([[1, 0.5, 0.5]], np.float32), np.array([[0.2, 0.2, 0.6]], np.float32)
    # Shares 0.5, 0.25, 0.25 and 0.2, 0.2, 0.6: differences 0.3, 0.05, -0.35.
    assert contrast_maps(ours, theirs)[0] == pytest.approx([1, 0.05 / 0.3, 0], abs=1e-6)
    assert contrast_maps(theirs, ours)[0] == pytest.approx([0, 0, 1], abs=1e-6)
    assert np.array_equal(contrast_maps(ours * 0.25, theirs), contrast_maps(ours, theirs))  # no matter which is surer
    assert not contrast_maps(ours, ours).any()
    assert np.array_equal(contrast_maps(ours, np.zeros_like(ours)), ours)
    assert not contrast_maps(np.zeros_like(ours), ours).any()


def test_the_edge_is_five_percent_of_the_crop_on_each_side() -> None:
    saliency = np.zeros((100, 200), np.float32)
    saliency[10, 51] = 1.0  # the crop begins at column 50; its edge is five columns and five rows wide
    saliency[10, 56] = 3.0
    crop = Crop(0, 50, 100, 150)
    assert measure_map(saliency, crop).share_at_edge == pytest.approx(0.25, abs=1e-12)
    saliency[96, 100] = 4.0
    assert measure_map(saliency, crop).share_at_edge == pytest.approx(5 / 8, abs=1e-12)


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_uniform_map_has_the_edges_share_of_the_area_at_any_size(height: int, width: int) -> None:
    """Pixels that the border of the edge cuts count in part."""
    found = measure_map(np.full((height, width), 0.3, np.float32), Crop(0, 0, height, width))
    assert found.share_at_edge == pytest.approx(1 - 0.9**2, abs=1e-6)  # float32 sums
    assert (found.maximum, found.share_above_half) == ((0, 0), 1.0)
    assert found.half_maximum_box == Crop(0, 0, height, width)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 0.125, 0.25, 0.5, 1])
    )
)
def test_the_definitions_written_out(saliency: np.ndarray) -> None:
    height, width = saliency.shape
    padded = np.pad(saliency, ((2, 1), (3, 4)))
    found = measure_map(padded, Crop(2, 3, 2 + height, 3 + width))
    if saliency.max() == 0:
        assert found == MapMeasures(None, None, None, None)
        return
    half = [(y, x) for y in range(padded.shape[0]) for x in range(padded.shape[1]) if padded[y, x] >= padded.max() / 2]
    rows, columns = [y for y, _ in half], [x for _, x in half]
    assert found.half_maximum_box == Crop(min(rows), min(columns), max(rows) + 1, max(columns) + 1)
    assert found.share_above_half == len(half) / padded.size
    assert found.maximum == next((x, y) for y, x in half if padded[y, x] == padded.max())


def test_r_of_every_two_maps() -> None:
    rng = np.random.default_rng(0)
    maps = rng.random((3, 60, 90)).astype(np.float32)
    crop = Crop(5, 10, 55, 80)
    meter = Meter(crop, 4)
    for one in (*maps, np.zeros((60, 90), np.float32)):
        meter.add(one)
    found = meter.correlations()
    assert found is not None
    inside = maps[:, crop.top : crop.bottom, crop.left : crop.right].astype(np.float64)
    for i in range(3):
        for j in range(3):
            assert found[i][j] == pytest.approx(correlation(inside[i], inside[j]), abs=1e-12)
    assert found[3] == (None, None, None, None)  # a flat map is like none, nor like itself


def test_r_of_large_maps_is_taken_from_a_grid() -> None:
    y, x = np.mgrid[0:1500, 0:2000].astype(np.float32) / 1000
    maps = [np.exp(-((x - a) ** 2 + (y - 0.7) ** 2) * 5).astype(np.float32) for a in (0.5, 1.2)]
    meter = Meter(Crop(0, 0, 1500, 2000), 2)
    for one in maps:
        meter.add(one)
    found = meter.correlations()
    assert found is not None
    # The grid's step is 6 to 8 pixels, and the maps change by a hundredth over as much.
    assert found[0][1] == pytest.approx(correlation(*(one.astype(np.float64) for one in maps)), abs=1e-4)


def test_the_matrix_of_many_classes_is_left_out() -> None:
    for count in (MOST_CORRELATED, MOST_CORRELATED + 1):
        meter = Meter(Crop(0, 0, 2, 2), count)
        for _ in range(count):
            meter.add(np.eye(2, dtype=np.float32))
        assert (meter.correlations() is None) == (count > MOST_CORRELATED)
