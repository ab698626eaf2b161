"""Evaluation of maps: curves, masks, controls, data in and results out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper
from scipy import ndimage
from torch import nn
from typer.testing import CliRunner

import ortcam
from ortcam import evaluation
from ortcam.cli.app import app
from ortcam.errors import OccupiedError, OrtcamError, OrtcamWarning, TargetError
from ortcam.evaluation import Box, Curve, Sample
from ortcam.evaluation.asks import rank_of
from ortcam.evaluation.curves import DELETION, INSERTION
from ortcam.evaluation.metrics import METRICS
from ortcam.evaluation.replacements import REPLACEMENTS
from ortcam.evaluation.result import Result
from ortcam.evaluation.rows import Row
from ortcam.exporters import export
from ortcam.model.contract import Contract, ExposedLayer
from ortcam.model.preprocessing import Preprocessing

Floats = NDArray[np.float32]
SIZE = 8
PIXELS = SIZE * SIZE


# --- A model whose score is known: class 1's logit is a weighted sum of the pixels --------------------------------


def weighing_model(weights: Floats, nhwc: bool = False, channels: int = 1, scale: float = 1 / 255) -> onnx.ModelProto:
    """Return a model file with the logits [0, sum of weights * pixels]; the layer is the image's first channel."""
    dims = ["batch", SIZE, SIZE, channels] if nhwc else ["batch", channels, SIZE, SIZE]
    axis = 3 if nhwc else 1
    one = weights.reshape((1, SIZE, SIZE, 1) if nhwc else (1, 1, SIZE, SIZE)).astype(np.float32)
    constants = {
        "weights": helper.make_tensor("weights", TensorProto.FLOAT, one.shape, one.ravel()),
        "flat": helper.make_tensor("flat", TensorProto.INT64, [2], [0, -1]),
        "axes": helper.make_tensor("axes", TensorProto.INT64, [1], [1]),
        "of_channels": helper.make_tensor("of_channels", TensorProto.INT64, [1], [axis]),
        "nothing": helper.make_tensor("nothing", TensorProto.FLOAT, [1], [0]),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["image"], ["activations"]),
            helper.make_node("ReduceMean", ["image", "of_channels"], ["grey"], keepdims=1),
            helper.make_node("Mul", ["grey", "weights"], ["weighed"]),
            helper.make_node("Reshape", ["weighed", "flat"], ["row"]),
            helper.make_node("ReduceSum", ["row", "axes"], ["score"], keepdims=1),
            helper.make_node("Mul", ["score", "nothing"], ["zero"]),
            helper.make_node("Concat", ["zero", "score"], ["logits"], axis=1),
        ],
        "weighing",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, dims)],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2]),
            helper.make_tensor_value_info("activations", TensorProto.FLOAT, dims),
        ],
        [constants[name] for name in constants],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    layout = "NHWC" if nhwc else "NCHW"
    kind = {1: "GRAY", 3: "RGB"}[channels]
    seen = Preprocessing(SIZE, SIZE, channels=kind, scale=scale, mean=(0.25,) * channels, std=(0.5,) * channels)
    layers = (ExposedLayer("relu", "relu", layout),)
    contract = Contract(layers, activation="softmax", image_layout=layout, preprocessing=seen)
    helper.set_model_props(model, contract.to_metadata())
    return model


def sigmoid(logit: NDArray[Any] | float) -> NDArray[np.float64]:
    """The probability of class 1, whose rival has the logit 0."""
    return np.asarray(1 / (1 + np.exp(-np.asarray(logit, np.float64))))


@pytest.fixture(scope="module")
def weights() -> Floats:
    return np.random.default_rng(0).uniform(0.1, 1, (SIZE, SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def photo() -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(70, 255, (SIZE, SIZE, 3), np.uint8)


def measure(
    model: onnx.ModelProto, photo: NDArray[np.uint8], maps: dict[str, Floats], metrics: Any, **options: Any
) -> dict[str, Row]:
    """Return the rows of given maps of one photo, by the name of the map."""
    result = evaluation.evaluate(
        model, [Sample(photo, "photo")], (), metrics, maps={name: {"photo": one} for name, one in maps.items()},
        controls=(), explain=1, **options,
    )  # fmt: skip
    return {row.method: row for row in result.rows}


def tensor_of(photo: NDArray[np.uint8], grey: bool = True) -> NDArray[np.float64]:
    """Return the preprocessed photo, [H,W] of a grey model or [3,H,W]."""
    planes = photo.transpose(2, 0, 1).astype(np.float64)
    if grey:
        planes = np.tensordot([0.299, 0.587, 0.114], planes, axes=1)
    return (planes / 255 - 0.25) / 0.5


# --- Insertion and deletion ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("nhwc", [False, True])
@pytest.mark.parametrize("preset", ["ortcam", "paper", "torchcam", "xplique", "openvino-xai", "smdl"])
@pytest.mark.parametrize("metric", ["insertion", "deletion"])
def test_curves_are_those_of_their_definition(
    weights: Floats, photo: NDArray[np.uint8], metric: str, preset: str, nhwc: bool
) -> None:
    """Every point of every convention, computed again with NumPy; the map has ties."""
    saliency = np.round(np.random.default_rng(2).random((SIZE, SIZE)), 1).astype(np.float32)
    saliency[0, 0], saliency[1, 1] = 0, 1
    row = measure(weighing_model(weights, nhwc), photo, {"map": saliency}, [f"{metric}:{preset}"])["map"]
    curve = (INSERTION if metric == "insertion" else DELETION)[preset]
    values = tensor_of(photo).ravel()
    hidden = {"zero": 0.0, "black": -0.5}[curve.baseline]
    order = np.array(sorted(range(PIXELS), key=lambda at: (-saliency.ravel()[at], at)))
    if curve.ties == "last":
        order = np.array(sorted(range(PIXELS), key=lambda at: (-saliency.ravel()[at], -at)))
    if curve.spacing == "even":
        counts = [int(i * PIXELS / curve.steps) for i in range(curve.steps + 1)]
    else:
        step = -(-PIXELS // curve.steps)
        counts = [*range(0, PIXELS, step), PIXELS]
    points = []
    for count in counts:
        changed = np.full(PIXELS, hidden) if metric == "insertion" else values.copy()
        changed[order[:count]] = values[order[:count]] if metric == "insertion" else hidden
        points.append(float(sigmoid((changed * weights.ravel()).sum())))
    area = np.trapezoid(points, np.array(counts) / PIXELS)
    if curve.area == "rise":
        area = (sum(points) - points[0] / 2 - points[-1] / 2) / (len(points) - 1)
    name = f"{metric}:{preset}"
    assert np.allclose(row.curves[name], points, atol=2e-6)
    assert row.values[name] == pytest.approx(area, abs=2e-6)


def test_ranks_are_those_of_a_stable_sort() -> None:
    generator = np.random.default_rng(0)
    for saliency in (
        generator.normal(size=(40, 30)),
        np.round(generator.normal(size=(40, 30))),
        np.where(generator.random((40, 30)) < 0.5, -0.0, 0.0),
        np.maximum(generator.normal(size=(40, 30)), 0),
    ):
        flat = saliency.astype(np.float32).ravel()
        expected = np.empty(flat.size)
        expected[np.argsort(-flat, kind="stable")] = np.arange(flat.size)
        assert np.array_equal(rank_of(saliency.astype(np.float32)).ravel(), expected)


def test_blurred_baselines_are_those_of_their_projects() -> None:
    """RISE: conv2d with scipy's blurred delta, padded with zeros. polycam: torchvision's gaussian_blur."""
    import torch
    import torchvision

    from ortcam.evaluation.replacements import Replacements

    tensor = np.random.default_rng(3).normal(size=(1, 3, 40, 50)).astype(np.float32)
    made = Replacements(tensor, Contract((ExposedLayer("a", "a"),)), "model")
    delta = np.zeros((11, 11))
    delta[5, 5] = 1
    kernel = torch.tensor(ndimage.gaussian_filter(delta, 5), dtype=torch.float32)[None, None].repeat(3, 1, 1, 1)
    rise = torch.nn.functional.conv2d(torch.tensor(tensor), kernel, padding=5, groups=3).numpy()
    polycam = torchvision.transforms.functional.gaussian_blur(torch.tensor(tensor), [11, 11], [5.0, 5.0]).numpy()
    for name, theirs in (("blurred-rise", rise), ("blurred-polycam", polycam)):
        ours = made.of(REPLACEMENTS[name])
        assert ours is not None
        assert ours is made.of(REPLACEMENTS[name]), "a baseline is made once a photo"
        assert np.abs(ours.values - theirs).max() < 1e-6, name


orders = st.permutations(range(PIXELS)).map(lambda order: np.array(order, np.float32).reshape(SIZE, SIZE) / PIXELS)


@settings(max_examples=10, deadline=None)
@given(order=orders)
def test_insertion_is_deletion_of_the_negative_read_backwards(order: Floats) -> None:
    """If both have one baseline and the map has no ties."""
    model = weighing_model(np.random.default_rng(0).uniform(-1, 1, (SIZE, SIZE)).astype(np.float32))
    photo = np.random.default_rng(1).integers(0, 255, (SIZE, SIZE, 3), np.uint8)
    names = ["insertion:ortcam,steps=16", "deletion:ortcam,steps=16"]
    rows = measure(model, photo, {"map": order, "negative": order.max() - order}, names)
    shown, hidden = rows["map"], rows["negative"]
    assert np.allclose(shown.curves[names[0]], hidden.curves[names[1]][::-1], atol=1e-6)
    assert shown.values[names[0]] == pytest.approx(hidden.values[names[1]], abs=1e-6)


@settings(max_examples=10, deadline=None)
@given(order=orders)
def test_the_best_order_bounds_all_others(order: Floats) -> None:
    """The score is a sum over pixels, so the pixels in the order of their parts have the extreme areas."""
    weights = np.random.default_rng(0).uniform(0.1, 1, (SIZE, SIZE)).astype(np.float32)
    photo = np.random.default_rng(1).integers(70, 255, (SIZE, SIZE, 3), np.uint8)
    parts = (tensor_of(photo) * weights).astype(np.float32)
    best = (parts - parts.min()) / np.ptp(parts)
    rows = measure(weighing_model(weights), photo, {"best": best, "other": order}, ["insertion", "deletion"])
    assert rows["best"].values["insertion"] >= rows["other"].values["insertion"] - 1e-6
    assert rows["best"].values["deletion"] <= rows["other"].values["deletion"] + 1e-6
    difference = "insertion - deletion"
    assert rows["best"].values[difference] >= rows["other"].values[difference] - 1e-6


def test_highest_confidence_is_the_largest_score_of_the_points(weights: Floats, photo: NDArray[np.uint8]) -> None:
    """24 points of 25 steps; the hidden pixels are black before preprocessing, in all three channels."""
    saliency = np.random.default_rng(4).permutation(PIXELS).reshape(SIZE, SIZE).astype(np.float32) / PIXELS
    rough = np.where(np.random.default_rng(5).random((SIZE, SIZE)) < 0.5, -weights, weights).astype(np.float32)
    row = measure(weighing_model(rough, channels=3), photo, {"map": saliency}, ["highest-confidence"])["map"]
    order, values = np.argsort(-saliency.ravel()), tensor_of(photo, grey=False).mean(axis=0).ravel()
    points = []
    for step in range(1, 25):
        shown = np.full(PIXELS, -0.5)
        shown[order[: step * PIXELS // 25]] = values[order[: step * PIXELS // 25]]
        points.append(float(sigmoid((shown * rough.ravel()).sum())))
    assert np.allclose(row.curves["highest-confidence"], points, atol=2e-6)
    for share, column in ((0.25, " 25%"), (0.5, " 50%"), (0.75, " 75%"), (1, "")):
        expected = max(points[: int(share * 24)])
        assert row.values[f"highest-confidence{column}"] == pytest.approx(expected, abs=2e-6)


# --- Drop, increase, gain, ADCC -----------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", sorted(METRICS["drop"]))
def test_drop_increase_and_gain_are_those_of_their_definition(
    weights: Floats, photo: NDArray[np.uint8], preset: str
) -> None:
    saliency = np.random.default_rng(6).uniform(0.2, 0.9, (SIZE, SIZE)).astype(np.float32)
    signed = np.where(np.random.default_rng(7).random((SIZE, SIZE)) < 0.4, -weights, weights).astype(np.float32)
    specs = [f"{metric}:{preset}" for metric in ("drop", "increase", "gain")]
    values = tensor_of(photo)
    upper = saliency > np.median(saliency)
    mask = {"paper": np.where(upper, saliency, 0), "paper-binary": upper.astype(float)}.get(preset, saliency)
    if preset == "xplique":
        mask = (saliency - saliency.min()) / np.ptp(saliency)
    for sign in (1, -1):  # once the score falls, once it rises
        row = measure(weighing_model(sign * signed), photo, {"map": saliency}, specs)["map"]
        clean = float(sigmoid(sign * (values * signed).sum()))
        behind = float(sigmoid(sign * (values * mask * signed).sum()))
        epsilon = {"torchcam": 1e-7, "xplique": 1e-8}.get(preset, 0)
        relative = preset != "pytorch-grad-cam"
        drop = max(0, clean - behind) / (clean + epsilon if relative else 1)
        gain = max(0, behind - clean) / (1 - clean + epsilon if relative else 1)
        assert row.values[specs[0]] == pytest.approx(drop, abs=5e-6)
        assert row.values[specs[1]] == float(behind > clean)
        assert row.values[specs[2]] == pytest.approx(gain, abs=5e-6)


def test_a_clean_score_of_zero_is_said_and_not_nan(weights: Floats, photo: NDArray[np.uint8]) -> None:
    saliency = np.linspace(0, 1, PIXELS, dtype=np.float32).reshape(SIZE, SIZE)
    row = measure(weighing_model(-1000 * weights), photo, {"map": saliency}, ["drop", "increase", "adcc"])["map"]
    assert row.values["drop"] is None and row.reasons["drop"] == "clean score 0"
    assert row.values["increase"] in (0.0, 1.0)
    assert row.values["adcc"] is None


def test_adcc_is_its_formula_and_each_method_explains_again(lite0_file: Path, photos: dict[str, Path]) -> None:
    result = evaluation.evaluate(
        lite0_file, [photos["chelsea"]], ["recipro-cam"], ["adcc", "drop"], controls=("centre", "activations")
    )
    for row in result.rows:
        values = row.values
        drop, complexity, coherency = (values[f"adcc {part}"] for part in ("drop", "complexity", "coherency"))
        assert drop == pytest.approx(values["drop"], abs=1e-7)
        assert values["adcc"] == pytest.approx(3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop)))
    rows = {row.method: row for row in result.rows}
    assert rows["centre"].values["adcc coherency"] == pytest.approx(1), "this map does not depend on the photo"
    with ortcam.ModelExplainer(lite0_file, ortcam.ReciproCAM()) as cam:
        model = cam.model
        first = cam.explain(photos["chelsea"])
        _, tensor, _ = model.prepare(photos["chelsea"])
        again = cam.explain(tensor * first.input_maps[0], targets=first.targets[0].index)
    r = np.corrcoef(first.input_maps[0].ravel(), again.input_maps[0].ravel())[0, 1]
    assert rows["recipro-cam"].values["adcc coherency"] == pytest.approx((r + 1) / 2, abs=1e-5)
    assert rows["recipro-cam"].values["adcc complexity"] == pytest.approx(first.input_maps[0].mean(), abs=1e-6)


# --- Maps ---------------------------------------------------------------------------------------------------------


def test_maps_of_methods_are_those_of_explain(resnet18_file: Path, photos: dict[str, Path]) -> None:
    """An evaluation shares passes, and makes the same maps as `explain`: given as maps, they have the same values."""
    specs = {
        "score-cam:budget=16": (ortcam.ScoreCAM(resnet18_file), {"budget": 16}),
        "score-cam:budget=16,selection=top-std,preset=tf-keras-vis": (
            ortcam.ScoreCAM(resnet18_file, preset="tf-keras-vis"),
            {"budget": 16, "selection": "top-std"},
        ),
        "rise:masks=40,seed=3": (ortcam.ModelExplainer(resnet18_file, ortcam.RISE(masks=40, seed=3)), {}),
    }
    maps = {}
    for name, (cam, options) in specs.items():
        maps[f"given {name}"] = {"coffee.png": cam.explain(photos["coffee"], **options)}
        cam.close()
    result = evaluation.evaluate(
        resnet18_file, [photos["coffee"]], list(specs), ["insertion", "deletion", "drop"], maps=maps, controls=()
    )
    rows = {row.method: row for row in result.rows}
    for name in specs:
        for column, value in rows[name].values.items():
            assert value == pytest.approx(rows[f"given {name}"].values[column], abs=1e-5), (name, column)


def test_a_layer_is_an_option_of_a_method(tiny: Any, tmp_path: Path) -> None:
    from ortcam.exporters import export

    path = export(
        tiny, tmp_path / "tiny.onnx", preprocess="imagenet", input_size=32, layer=["features.3", "features.1"]
    )
    photo = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    specs = ["score-cam", "score-cam:layer=features.1"]
    result = evaluation.evaluate(path.path, [Sample(photo, "a")], specs, ["deletion"], controls=())
    explained = ortcam.ScoreCAM(path.path, layer="features.1").explain(photo)
    given = evaluation.evaluate(path.path, [Sample(photo, "a")], (), ["deletion"], maps={"given": {"a": explained}})
    values = {row.method: row.values["deletion"] for row in (*result.rows, *given.rows)}
    assert values["score-cam:layer=features.1"] == pytest.approx(values["given"], abs=1e-6)
    assert values["score-cam"] != values["score-cam:layer=features.1"]


def test_given_maps_of_every_kind(weights: Floats, photo: NDArray[np.uint8], tmp_path: Path) -> None:
    """A folder of .npy, a function, a small map, a map outside [0,1]: the order of the pixels is the same."""
    small = np.random.default_rng(8).random((3, 3)).astype(np.float32)
    np.save(tmp_path / "photo.npy", small)
    model, metrics = weighing_model(weights), ["insertion"]
    whole = measure(model, photo, {"map": small}, metrics)["map"].values
    for maps in (tmp_path, lambda _name, _target: small, {"photo": small * 40 - 7}, {"photo": small[None]}):
        result = evaluation.evaluate(model, [Sample(photo, "photo")], (), metrics, maps={"m": maps}, controls=())
        assert result.rows[0].values["insertion"] == pytest.approx(whole["insertion"], abs=1e-6)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ({"other": np.ones((8, 8))}, "have none for photo"),
        ({"photo": np.full((8, 8), np.nan)}, "NaN or infinite"),
        ({"photo": np.ones((2, 8, 8))}, "shape"),
        ({"photo": "text"}, "expected an array"),
    ],
)
def test_a_map_that_cannot_be_used_is_an_error_of_its_photo(
    weights: Floats, photo: NDArray[np.uint8], maps: Any, message: str
) -> None:
    samples = [Sample(photo, "photo")]
    result = evaluation.evaluate(weighing_model(weights), samples, (), ["drop"], maps={"m": maps}, controls=("centre",))
    assert not result.rows
    assert message in result.failures[0].error and "\n" not in result.failures[0].error


def test_flat_maps_are_counted_and_never_in_a_mean(weights: Floats, photo: NDArray[np.uint8]) -> None:
    maps = {"m": {"a": np.zeros((8, 8)), "b": np.linspace(0, 1, 64).reshape(8, 8)}}
    samples = [Sample(photo, "a"), Sample(photo[::-1], "b")]
    metrics = ["insertion", "drop", "adcc", "energy"]
    boxed = [Sample(one.image, one.name, boxes=(Box(0, 0, 4, 8),)) for one in samples]
    result = evaluation.evaluate(weighing_model(weights), boxed, (), metrics, maps=maps, controls=(), explain=1)
    summary = result.summary()["m"]
    assert all(summary[name].flat == 1 for name in ("insertion", "drop", "adcc", "energy"))
    alone = next(row for row in result.rows if row.photo == "b")
    assert summary["insertion"].interval.mean == pytest.approx(alone.values["insertion"])
    assert "no value for 1 of 2 maps: flat map" in result.table()


def test_controls_are_there_and_seeded(resnet18_file: Path, photos: dict[str, Path]) -> None:
    def run(seed: int, names: list[str]) -> dict[tuple[str, str], float | None]:
        result = evaluation.evaluate(resnet18_file, [photos[name] for name in names], (), ["insertion"], seed=seed)
        return {(row.photo, row.method): row.values["insertion"] for row in result.rows}

    both = run(0, ["chelsea", "coffee"])
    assert {method for _, method in both} == {"random", "centre", "activations"}
    assert run(0, ["coffee", "chelsea"]) == both, "the order of the photos changes nothing"
    assert run(0, ["coffee"]).items() <= both.items()
    other = run(1, ["chelsea"])
    assert other["chelsea.png", "random"] != both["chelsea.png", "random"]
    assert other["chelsea.png", "centre"] == both["chelsea.png", "centre"]


# --- Photos in, results out ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(photos: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photos, and a file that is no photo."""
    made = tmp_path_factory.mktemp("photos")
    for name in ("chelsea", "coffee", "rocket", "astronaut"):
        (made / photos[name].name).write_bytes(photos[name].read_bytes())
    return made


def run_folder(model: Path, folder: Path, output: Path | None, **options: Any) -> Result:
    return evaluation.evaluate(
        model, folder, ["score-cam:budget=8"], ["deletion", "drop"], controls=("centre",), folder=output, **options
    )


def test_an_interrupted_run_goes_on_where_it_was(resnet18_file: Path, folder: Path, tmp_path: Path) -> None:
    """Photos that were done are not run again, and the results are those of a run in one go."""
    whole = run_folder(resnet18_file, folder, None)

    class StopError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        assert total == 4
        if done == 2:
            raise StopError

    with pytest.raises(StopError):
        run_folder(resnet18_file, folder, tmp_path / "out", on_progress=stop)
    assert not (tmp_path / "out" / "results.json").exists()
    kept = (tmp_path / "out" / "progress.jsonl").read_text().splitlines()
    assert len(kept) == 3, "a header and two photos"
    again = run_folder(resnet18_file, folder, tmp_path / "out")
    assert again.rows == whole.rows
    lines = (tmp_path / "out" / "progress.jsonl").read_text().splitlines()
    assert lines[:3] == kept and len(lines) == 5
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"results.json", "per-photo.csv", "curves.png"}
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    record = stored["record"]
    assert record["metrics"]["deletion"]["steps"] == 30
    assert record["metrics"]["deletion"]["baseline"]["kind"] == "zero"
    assert record["methods"]["score-cam:budget=8"]["budget"] == 8
    assert record["photos"] == ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"]
    assert record["seed"] == 0 and record["model"]["sha256"] == ortcam.CamModel(resnet18_file).sha256
    assert Result.from_json(tmp_path / "out" / "results.json").rows == whole.rows


def test_results_of_other_options_or_of_another_model_are_kept_apart(
    resnet18_file: Path, folder: Path, tmp_path: Path, weights: Floats
) -> None:
    out = tmp_path / "out"
    run_folder(resnet18_file, folder, out)
    with pytest.raises(OccupiedError, match="seed"):
        run_folder(resnet18_file, folder, out, seed=1)
    other = tmp_path / "other.onnx"
    onnx.save(weighing_model(weights, channels=3), other)
    with pytest.raises(OccupiedError, match="model"):
        run_folder(other, folder, out)
    before = (out / "results.json").read_bytes()
    assert run_folder(other, folder, out, overwrite=True).record["model"]["name"] == "other.onnx"
    assert (out / "results.json").read_bytes() != before


def test_a_photo_that_cannot_be_read_is_reported_and_the_others_go_on(
    resnet18_file: Path, folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "photos"
    broken.mkdir()
    for path in folder.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "broken.jpg").write_bytes(b"\xff\xd8\xff no photo")
    seen: list[str] = []
    result = run_folder(resnet18_file, broken, None, on_error=lambda name, _: seen.append(name))
    assert seen == ["broken.jpg"] and [one.photo for one in result.failures] == seen
    assert {row.photo for row in result.rows} == {path.name for path in folder.iterdir()}
    assert result.summary()["centre"]["drop"].interval.count == 4
    outcome = CliRunner().invoke(
        app, ["evaluate", str(resnet18_file), str(broken), "--budget", "8", "--metric", "drop", "--control", "none"]
    )
    assert outcome.exit_code == 1
    assert "broken.jpg" in outcome.output and "score-cam:budget=8" in outcome.output


def test_classes_are_explained_and_scored_as_asked(weights: Floats, photo: NDArray[np.uint8]) -> None:
    """The score may be of another class than the map; photos may be taken by what the model says of them."""
    model = weighing_model(weights)
    bright, dark = photo, (photo // 8).astype(np.uint8)  # the model says 1 and 0
    samples = [Sample(bright, "a", 1), Sample(dark, "b", 1), Sample(dark, "c", 0), Sample(bright, "d", "1")]
    options: dict[str, Any] = {"methods": ["score-cam"], "metrics": ["drop"], "controls": ()}

    def run(**more: Any) -> list[tuple[str, int, int]]:
        result = evaluation.evaluate(model, samples, **options, **more)
        return [(row.photo, row.explained, row.scored) for row in result.rows]

    assert run() == [("a", 1, 1), ("b", 0, 0), ("c", 0, 0), ("d", 1, 1)]
    assert run(explain="true") == [("a", 1, 1), ("b", 1, 1), ("c", 0, 0), ("d", 1, 1)]
    assert run(only="misclassified", score="true") == [("b", 0, 1)]
    assert run(only="correct", most_per_class=1) == [("a", 1, 1), ("c", 0, 0)]
    assert run(explain=0, score="predicted") == [("a", 0, 1), ("b", 0, 0), ("c", 0, 0), ("d", 0, 1)]


def test_classes_of_one_photo_share_its_passes(resnet18_file: Path, photos: dict[str, Path]) -> None:
    """Two objects of a photo are two samples; each has the values that it has alone."""
    boxes = {"dog": Box(0, 0, 200, 300), "cat": Box(200, 0, 450, 300)}
    path = photos["chelsea"]
    both = [Sample(path, f"chelsea#{name}", index, (box,)) for index, (name, box) in enumerate(boxes.items())]
    metrics = ["energy", "pointing", "box-iou", "rank", "energy:paper"]
    together = evaluation.evaluate(resnet18_file, both, ["recipro-cam"], metrics)
    assert [row.explained for row in together.rows[::4]] == [0, 1], "the true class, where a place is compared"
    for sample in both:
        alone = evaluation.evaluate(resnet18_file, [sample], ["recipro-cam"], metrics)
        ours = [row for row in together.rows if row.photo == sample.name]
        for row, other in zip(ours, alone.rows, strict=True):
            assert row.method == other.method
            assert row.values == pytest.approx(other.values, abs=1e-5)


def test_energy_is_the_share_of_the_map_on_the_photo(resnet18_file: Path, photos: dict[str, Path]) -> None:
    """The map lies on the photo as in `explain`: cut by the crop, 0 outside of it."""
    box = Box(100, 50, 300, 250)
    with ortcam.ModelExplainer(resnet18_file, ortcam.ReciproCAM()) as cam:
        whole = cam.explain(photos["chelsea"], targets=3).maps[0]
    result = evaluation.evaluate(
        resnet18_file, [Sample(photos["chelsea"], "a", 3, (box,))], ["recipro-cam"], ["energy"], controls=()
    )
    expected = whole[50:250, 100:300].sum(dtype=float) / whole.sum(dtype=float)
    assert result.rows[0].values["energy"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["insertio"]}, "metric 'insertio' is unknown.*nearest: insertion"),
        ({"metrics": ["insertion:ris"]}, "preset 'ris' of insertion is unknown.*rise"),
        ({"metrics": ["insertion:rise,step=4"]}, "unknown option 'step'; expected steps"),
        ({"metrics": ["insertion:rise,steps=x"]}, "steps is 'x'; expected a number"),
        ({"metrics": ["insertion:rise,steps=0"]}, "steps of insertion is 0"),
        ({"metrics": ["insertion:rise,baseline=blue"]}, "baseline of insertion is 'blue'; expected zero, black"),
        ({"metrics": ["pointing:torchray,tolerance=x"]}, "tolerance is 'x'"),
        ({"metrics": []}, "metrics is empty"),
        ({"metrics": ["drop", "drop"]}, "given twice"),
        ({"metrics": [Curve]}, "expected a name"),
        ({"methods": ["score"]}, "method 'score' is unknown"),
        ({"methods": ["score-cam:budget=x"]}, "budget of .* is 'x'"),
        ({"methods": ["rise:budget=4,tolerance=.1"]}, "rise takes only a budget"),
        ({"methods": ["rise:preset=paper"]}, "only score-cam has presets"),
        ({"methods": ["score-cam:budget"]}, "expected KEY=VALUE"),
        ({"methods": ["score-cam", "score-cam"]}, "have the name 'score-cam'"),
        ({"methods": [], "controls": ()}, "nothing to evaluate"),
        ({"controls": ["corner"]}, "control 'corner' is unknown"),
        ({"only": "wrong"}, "only is 'wrong'"),
        ({"explain": "true"}, "1 of 1 photos have no label"),
        ({"score": "true"}, "1 of 1 photos have no label"),
        ({"explain": "dog"}, "label 'dog' is unknown"),
        ({"metrics": ["energy"], "explain": 0}, "neither boxes nor masks.*'energy'"),
        ({"most_per_class": 0}, "most_per_class is 0"),
        ({"layer": "nowhere"}, "nowhere"),
    ],
)
def test_a_wrong_option_is_one_line(
    weights: Floats, photo: NDArray[np.uint8], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OrtcamError, match=message) as caught:
        evaluation.evaluate(weighing_model(weights), [Sample(photo, "a")], **{"metrics": ["drop"], **options})
    assert "\n" not in str(caught.value)


def test_labels_of_another_class_set_are_one_line_before_the_first_photo(
    weights: Floats, photo: NDArray[np.uint8]
) -> None:
    samples = [Sample(photo, "a", 1), Sample(photo, "b", 7)]
    with pytest.raises(TargetError, match="the label of b: target 7 is out of range"):
        evaluation.evaluate(weighing_model(weights), samples, metrics=["drop"], explain="true")


def test_a_box_outside_of_its_photo_is_an_error_of_the_photo(weights: Floats, photo: NDArray[np.uint8]) -> None:
    samples = [Sample(photo, "a", 1, (Box(2, 2, 60, 4),)), Sample(photo, "b", 1, (Box(2, 2, 6, 4),))]
    result = evaluation.evaluate(weighing_model(weights), samples, (), ["energy"])
    assert [one.photo for one in result.failures] == ["a"]
    assert {row.photo for row in result.rows} == {"b"}


def test_json_on_the_command_line(resnet18_file: Path, folder: Path, tmp_path: Path) -> None:
    arguments = [str(resnet18_file), str(folder), "--method", "recipro-cam", "--metric", "insertion:paper,steps=4"]
    outcome = CliRunner().invoke(app, ["evaluate", *arguments, "--control", "centre", "--json"])
    assert outcome.exit_code == 0, outcome.output
    printed = json.loads(outcome.stdout)
    assert printed["record"]["metrics"]["insertion:paper,steps=4"]["steps"] == 4
    assert {row["method"] for row in printed["rows"]} == {"recipro-cam", "centre"}
    wrong = CliRunner().invoke(app, ["evaluate", str(resnet18_file), str(folder), "--dataset", "voc:x"])
    assert wrong.exit_code == 2


def test_scores_that_are_no_softmax_are_doubted_once(tiny: nn.Module, photo: NDArray[np.uint8], tmp_path: Path) -> None:
    """As by `explain`: a softmax is assumed of a model that states no kind of scores."""
    with torch.no_grad():
        tiny.fc.bias += 9  # all sigmoids are nearly 1
    path = export(tiny, tmp_path / "doubted.onnx", preprocess="imagenet", input_size=32).path
    with pytest.warns(OrtcamWarning, match="a softmax is assumed, but") as told:
        evaluation.evaluate(path, [Sample(photo, "a"), Sample(photo, "b")], (), ["drop"])
    assert len(told) == 1
