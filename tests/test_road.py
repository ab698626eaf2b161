"""ROAD: removed pixels, imputed pictures and values, against pytorch-grad-cam."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from pytorch_grad_cam.metrics.road import NoisyLinearImputer

import ortcam
from ortcam.core.convention import normalize, upsample
from ortcam.errors import OptionError
from ortcam.evaluation.road import ROAD, Road, impute

Array = np.ndarray
SIZE = (48, 40)
CLOSE = 1e-4  # Single-precision pictures; both systems are solved in double precision.


@pytest.fixture(scope="module")
def picture() -> Array:
    rng = np.random.default_rng(0)
    return upsample(rng.normal(size=(3, 9, 8)).astype(np.float32), SIZE) + rng.normal(0, 0.1, (3, *SIZE)).astype("f4")


def original(picture: Array, removed: Array) -> Array:
    """Return pytorch-grad-cam's imputed picture without noise."""
    kept = torch.from_numpy(np.float32(~removed))
    filled: Array = NoisyLinearImputer(noise=0.0)(torch.from_numpy(picture), kept).numpy()
    return filled


def gaps() -> dict[str, Array]:
    """Removed pixels [H,W] by name."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    draw = np.random.default_rng(1).random(SIZE)
    return {
        "few": draw < 0.1,
        "most": draw < 0.95,
        "inside": (abs(rows - 20) < 15) & (abs(columns - 20) < 15),
        "border": (rows < 3) | (rows > 45) | (columns < 3) | (columns > 36),
        "corner": (rows < 30) & (columns < 25),
        "all but one": (rows != 7) | (columns != 11),
        "one": (rows == 0) & (columns == 39),
        "all": rows >= 0,
        "none": rows < 0,
    }


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")  # grad-cam's, of torch tensors
@pytest.mark.parametrize("gap", gaps())
def test_pictures_are_those_of_pytorch_grad_cam(picture: Array, gap: str) -> None:
    removed = gaps()[gap]
    filled = impute(picture, removed, noise=0)
    assert filled.dtype == np.float32
    assert np.abs(filled - original(picture, removed)).max() < CLOSE
    assert np.array_equal(filled[:, ~removed], picture[:, ~removed])


def test_an_imputed_pixel_is_the_weighted_mean_of_its_neighbours(picture: Array) -> None:
    removed = np.zeros(SIZE, np.bool_)
    removed[10, 10] = removed[0, 20] = True
    filled = impute(picture, removed, noise=0)
    kernel = np.array([[1, 2, 1], [2, 0, 2], [1, 2, 1]]) / 12
    assert filled[:, 10, 10] == pytest.approx((picture[:, 9:12, 9:12] * kernel).sum((1, 2)), abs=1e-6)
    below = kernel[1:] / kernel[1:].sum()  # The row above lies outside.
    assert filled[:, 0, 20] == pytest.approx((picture[:, :2, 19:22] * below).sum((1, 2)), abs=1e-6)


def test_a_plane_has_no_gap(picture: Array) -> None:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    plane = np.stack([rows + 2 * columns, rows - columns]).astype(np.float32)
    assert np.abs(impute(plane, gaps()["inside"], noise=0) - plane).max() < CLOSE


def test_every_pixel_removed_leaves_zero_and_noise(picture: Array) -> None:
    everything = np.ones(SIZE, np.bool_)
    assert not impute(picture, everything, noise=0).any()
    filled = impute(picture, everything, noise=0.5)
    assert filled.std() == pytest.approx(0.5, rel=0.05)  # 5760 draws: the deviation is known to 1 %
    assert abs(filled.mean()) < 0.03


def test_noise_depends_on_the_seed_and_lies_on_removed_pixels_only(picture: Array) -> None:
    removed = gaps()["corner"]
    filled, clean = impute(picture, removed, 0.1, seed=3), impute(picture, removed, 0)
    assert np.array_equal(filled, impute(picture, removed, 0.1, seed=3))
    assert not np.array_equal(filled, impute(picture, removed, 0.1, seed=4))
    assert np.array_equal(filled[:, ~removed], picture[:, ~removed])
    assert (filled - clean)[:, removed].std() == pytest.approx(0.1, rel=0.05)
    other = gaps()["inside"]
    noises = filled - clean, impute(picture, other, 0.1, seed=3) - impute(picture, other, 0)
    both = removed & other
    assert np.abs((noises[0] - noises[1])[:, both]).max() < 1e-6, "a pixel's noise does not depend on the mask"


def test_a_picture_does_not_change_because_another_came_first(picture: Array) -> None:
    saliency = np.random.default_rng(2).random(SIZE, np.float32)
    road = replace(ROAD["ortcam"], percentiles=(20, 80))
    alone = list(road.pictures(picture, saliency))
    list(road.pictures(-picture, 1 - saliency))
    assert all(np.array_equal(one, two) for one, two in zip(alone, road.pictures(picture, saliency), strict=True))


def test_each_step_has_noise_of_its_own(picture: Array) -> None:
    saliency = np.random.default_rng(2).random(SIZE, np.float32)
    road = replace(ROAD["ortcam"], percentiles=(50, 50), order="morf")
    first, second = road.pictures(picture, saliency)
    assert np.array_equal(first, impute(picture, road.masks(saliency)[0], 0.01, seed=0))
    assert np.array_equal(second, impute(picture, road.masks(saliency)[1], 0.01, seed=1))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("ties", [0, 3])
def test_ranks_remove_the_same_number_of_pixels_from_any_map(ties: int) -> None:
    draw = np.random.default_rng(0).random(SIZE, np.float32)
    saliency = np.floor(draw * ties) if ties else np.zeros(SIZE, np.float32)
    road = Road("x", "", percentiles=(0, 12.5, 70, 100))
    masks = road.masks(saliency)
    assert masks.dtype == np.bool_ and masks.shape == (8, *SIZE)
    assert masks.sum((1, 2)).tolist() == [0, 240, 1344, 1920] * 2
    most, least = masks[:4], masks[4:]
    assert (most[:-1] <= most[1:]).all() and (least[:-1] <= least[1:]).all(), "each step removes what the last did"
    assert saliency[most[1]].min() >= saliency[~most[1]].max()
    assert saliency[least[1]].max() <= saliency[~least[1]].min()
    assert not (most[1] & least[1]).any()
    if not ties:  # Equal pixels rank row by row.
        assert most[1, :6].all() and least[1, -6:].all()


def test_values_as_threshold_remove_everything_where_most_of_the_map_is_zero() -> None:
    saliency = np.maximum(np.random.default_rng(0).random(SIZE, np.float32) - 0.5, 0)
    morf = replace(ROAD["pytorch-grad-cam"], order="morf")
    counts = morf.masks(saliency).sum((1, 2))
    zeros = int((saliency == 0).sum())
    assert counts[:4].tolist() == [1920] * 4 and zeros > 0.4 * 1920
    assert counts[-1] == pytest.approx(192, abs=1)


def test_average_is_of_changes(picture: Array) -> None:
    road = Road("x", "", percentiles=(10, 90))
    assert road.average([0.5, 0.1, 0.8, 0.6], clean=0.9) == pytest.approx((0.7 - 0.3) / 2)
    assert replace(road, order="morf").average([0.5, 0.1], clean=0.9) == pytest.approx(-0.6)
    assert replace(road, order="lerf").average([0.8, 0.6], clean=0.9) == pytest.approx(-0.2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Road("x", "", order="first"), "order is 'first'; expected morf or lerf or combined"),  # type: ignore[arg-type]
        (lambda: Road("x", "", threshold="mean"), "threshold is 'mean'; expected rank or value"),  # type: ignore[arg-type]
        (lambda: Road("x", "", percentiles=(10, 120)), "percentiles are (10, 120); expected"),
        (lambda: Road("x", "", percentiles=()), "percentiles are (); expected at least one"),
        (lambda: Road("x", "", noise=-1), "noise is -1; expected"),
        (lambda: Road("x", "", seed=-1), "seed is -1; expected"),
        (lambda: impute(np.zeros((3, 4, 5), "f4"), np.zeros((5, 4), "?")), "picture is [3, 4, 5] and mask [5, 4]"),
    ],
)
def test_bad_options_are_one_line(make: Callable[[], object], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        make()
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_scipy_is_needed_only_to_impute(picture: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    assert ROAD["ortcam"].masks(picture[0]).shape == (18, *SIZE)
    with pytest.raises(OptionError, match=r"^ROAD needs scipy: pip install 'ortcam\[evaluation\]'$"):
        impute(picture, gaps()["few"])


def judged_maps(grid: Array, size: tuple[int, int], seed: int) -> Array:
    """Make the first three maps of a photo as tests/judges/make_metric_values.py does."""
    generator = np.random.default_rng(seed)
    smooth = normalize(upsample(grid[None], size))
    cam = normalize(smooth + np.float32(1e-3) * generator.random(size, np.float32))
    ties = normalize(np.maximum(smooth - np.median(smooth), 0).astype(np.float32))
    return np.concatenate([cam, ties, generator.random((1, *size), np.float32)])


def test_values_are_those_of_pytorch_grad_cam(resnet18_file: Path, photos: dict[str, Path]) -> None:
    folder = Path(__file__).parent / "judges"
    made, judge = np.load(folder / "metric_maps.npz"), np.load(folder / "metric_grad_cam_road.npz")
    session = onnxruntime.InferenceSession(resnet18_file, providers=["CPUExecutionProvider"])

    def score(tensors: Array, index: int) -> Array:
        logits = session.run(["logits"], {"image": tensors})[0].astype(np.float64)
        exponentials = np.exp(logits - logits.max(1, keepdims=True))
        scores: Array = exponentials[:, index] / exponentials.sum(1)
        return scores

    tensor = ortcam.CamModel(resnet18_file).prepare(photos["chelsea"])[1]
    index = int(made["resnet18_classes"][0])
    clean = score(tensor, index)[0]
    assert clean == pytest.approx(float(made["resnet18_clean"][0]), abs=1e-5)
    road = replace(ROAD["pytorch-grad-cam"], noise=0)
    for which, saliency in enumerate(judged_maps(made["resnet18_grids"][0], tensor.shape[2:], seed=0)):
        theirs = np.stack([judge[f"resnet18_{order}"][0, which] for order in ("morf", "lerf")])
        counts = np.stack([judge[f"resnet18_{order}_removed"][0, which] for order in ("morf", "lerf")])
        # A map's last bits depend on the processor, and a pixel at a threshold on them.
        assert np.abs(road.masks(saliency).sum((1, 2)).reshape(2, 9) - counts).max() <= 4
        scores = score(np.stack(list(road.pictures(tensor[0], saliency))), index)
        assert np.abs(scores.reshape(2, 9) - clean - theirs).max() < 1e-3
        assert road.average(scores, clean) == pytest.approx(float(theirs[1].mean() - theirs[0].mean()) / 2, abs=1e-3)
