"""Evaluation and the sanity check of models of other tasks: curves, places and targets by their formulas."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from test_tasks import LABELS, SIDE, read_photo, run_model, score_of_box, tensor_of, toy
from typer.testing import CliRunner

import ortcam
from ortcam import Box, Output, Region, Similarity
from ortcam.cli.app import app
from ortcam.core.references import suppress
from ortcam.errors import OptionError, TargetError
from ortcam.evaluation.randomised import sanity
from ortcam.evaluation.result import Result
from ortcam.evaluation.run import evaluate
from ortcam.evaluation.samples import Box as Edges
from ortcam.evaluation.samples import Sample
from ortcam.evaluation.similarity import ssim
from ortcam.graph.randomise import randomise, weighted_layers

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def photo(photos: dict[str, Path]) -> Array:
    return read_photo(photos["chelsea"])


@pytest.fixture(scope="module")
def order() -> Array:
    return np.random.default_rng(5).random((SIDE, SIDE), np.float32)


def formulas(photo: Array) -> dict[str, tuple[Any, Callable[[dict[str, Array]], float]]]:
    """Return for each task a target, and its score from the outputs of the model."""
    detections = run_model(toy("detect"), tensor_of(photo))
    rows, classes = suppress(detections["boxes"][0], detections["scores"][0])
    box, index = detections["boxes"][0][rows[1]], int(classes[1])
    seen = run_model(toy("segment"), tensor_of(photo))["mask"][0].argmax(axis=0)
    wanted = np.bincount(seen.reshape(-1)).argmax()
    vector = run_model(toy("embed"), tensor_of(np.ascontiguousarray(photo[:100, :100])))["embedding"][0]

    def cosine(made: dict[str, Array]) -> float:
        own = made["embedding"][0].astype(float)
        return float(own @ vector / np.linalg.norm(own) / np.linalg.norm(vector))

    return {
        "detect": (Box(1), lambda made: score_of_box(made, box, index)),
        "segment": (LABELS[wanted], lambda made: float(made["mask"][0, wanted][seen == wanted].mean())),
        "embed": (Similarity(vector), cosine),
        "value": (Output(2, -1), lambda made: -float(made["values"][0, 2])),
    }


@pytest.mark.parametrize("task", ["detect", "segment", "embed", "value"])
def test_curves_and_drop_are_those_of_the_score_of_the_target(task: str, photo: Array, order: Array) -> None:
    model, tensor = toy(task), tensor_of(photo)
    target, read = formulas(photo)[task]
    metrics = ["insertion:ortcam,steps=6", "deletion:ortcam,steps=6", "drop:pytorch-grad-cam", "road"]
    result = evaluate(
        model, [Sample(photo, "a")], [], metrics, maps={"mine": {"a": order}}, controls=(), explain=target
    )
    (row,) = result.rows
    clean = read(run_model(model, tensor))
    rank = np.argsort(np.argsort(-order, axis=None)).reshape(order.shape)
    for name, shows in ((metrics[0], True), (metrics[1], False)):
        expected = []
        for count in np.arange(7) * SIDE * SIDE // 6:
            kept = rank < count if shows else rank >= count
            expected.append(read(run_model(model, (tensor * kept).astype(np.float32))))
        assert np.allclose(row.curves[name], expected, atol=2e-5)
        assert row.values[name] == pytest.approx(np.trapezoid(expected) / 6, abs=2e-5)
    behind = read(run_model(model, tensor * order))
    assert row.values["drop:pytorch-grad-cam"] == pytest.approx(max(0, clean - behind), abs=2e-5)
    assert row.values["road"] is not None and row.reasons == {}  # its pictures are scored on the host
    assert row.target  # says which box, region, picture or value


@pytest.mark.parametrize("task", ["detect", "segment", "embed", "value"])
def test_maps_are_those_of_explain(task: str, photo: Array) -> None:
    model = toy(task)
    target = formulas(photo)[task][0]
    explainer = ortcam.ScoreCAM(model)
    again = {"a": explainer.explain(photo, targets=target)}
    result = evaluate(model, [Sample(photo, "a")], maps={"given": again}, controls=(), explain=target)
    rows = {row.method: row for row in result.rows}
    assert rows["score-cam"].values == pytest.approx(rows["given"].values, abs=1e-6)
    assert result.record["methods"]["score-cam"]["preset"] == explainer.convention.name
    assert "class" not in result.record["scores"]


def test_a_box_is_its_own_place(photo: Array) -> None:
    """Without a target, the surest detection is explained. A map inside its box has all energy there."""
    detections = run_model(toy("detect"), tensor_of(photo))
    rows, _ = suppress(detections["boxes"][0], detections["scores"][0])
    left, top, right, bottom = detections["boxes"][0][rows[0]] * 10  # a photo of 240 x 240
    y, x = np.mgrid[:240, :240] + 0.5
    inside = ((x > left) & (x < right) & (y > top) & (y < bottom)).astype(np.float32)
    given = {"inside": {"a": inside}, "outside": {"a": 1 - inside}}
    result = evaluate(toy("detect"), [Sample(photo, "a")], [], ["energy", "pointing"], maps=given, controls=())
    values = {row.method: row.values for row in result.rows}
    # The maps go through the input of 24 x 24: the edge of the box is soft.
    assert values["inside"]["energy"] > 0.9 > 0.1 > values["outside"]["energy"]
    assert (values["inside"]["pointing"], values["outside"]["pointing"]) == (1.0, 0.0)
    assert {row.target for row in result.rows} == {f"cat at {left:.0f},{top:.0f},{right:.0f},{bottom:.0f}"}


def test_a_region_is_its_own_place(photo: Array) -> None:
    region = np.zeros((240, 240), np.float32)  # the model's mask has 6 x 6 places
    region[40:160, 80:200] = 1
    given = {"inside": {"a": region}, "outside": {"a": 1 - region}}
    target = Region("dog", mask=region > 0)
    result = evaluate(toy("segment"), [Sample(photo, "a")], [], ["energy"], maps=given, controls=(), explain=target)
    values = {row.method: row.values["energy"] for row in result.rows}
    assert values["inside"] > 0.9 > 0.1 > values["outside"]  # the edge is soft, as above
    whole = evaluate(toy("segment"), [Sample(photo, "a")], [], ["energy"], maps=given, controls=())
    assert {row.values["energy"] for row in whole.rows} == {1.0}  # the largest region is the whole photo


def test_true_boxes_are_explained(photo: Array) -> None:
    """Each class of a photo has its own sample; of two boxes, the one that the model sees better is explained."""
    seen, empty = Edges(20, 30, 200, 210), Edges(100, 100, 110, 110)
    samples = [
        Sample(photo, "a#dog", "dog", (empty, seen)),
        Sample(photo, "a#cat", "cat"),
        Sample(photo, "a#bad", "tree", (Edges(0, 0, 500, 500),)),
    ]
    result = evaluate(
        toy("detect"), samples, ["score-cam:budget=8"], ["pointing", "deletion"], explain="true", controls=()
    )
    targets = {row.photo: (row.target, row.explained) for row in result.rows}
    assert targets["a#dog"] == ("dog at 20,30,200,210", 1)
    assert targets["a#cat"][1] == 0  # without a box: the surest cat
    assert [failure.photo for failure in result.failures] == ["a#bad"]  # and no other sample of the photo fails
    assert "outside the photo" in result.failures[0].error


def test_results_name_the_targets(photo: Array, tmp_path: Path) -> None:
    paths = [tmp_path / "one.png", tmp_path / "two.png"]
    for path, picture in zip(paths, (photo, photo[::-1]), strict=True):
        cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    options: dict[str, Any] = {"methods": ["score-cam:budget=8"], "metrics": ["deletion"], "controls": ()}
    first = evaluate(toy("detect"), paths[:1], **options, folder=tmp_path / "out")
    read = Result.from_json(tmp_path / "out" / "results.json")
    assert [row.target for row in read.rows] == [row.target for row in first.rows] != [""]
    (line,) = csv.DictReader(io.StringIO((tmp_path / "out" / "per-photo.csv").read_text()))
    assert line["target"] == first.rows[0].target
    record = json.loads((tmp_path / "out" / "results.json").read_text())["record"]
    assert record["model"]["detections"] == {"score": 0.25, "overlap": 0.45}
    with pytest.raises(ortcam.OrtcamError, match="detections"):  # what decides the values is compared
        evaluate(toy("detect"), paths[:1], **options, folder=tmp_path / "out", detecting=ortcam.Detecting(0.3))


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("embed", {}, r"returns an embedding, .*Similarity\('reference.jpg'\)"),
        ("embed", {"explain": "cat"}, r"returns an embedding"),
        ("value", {}, "returns several values; expected the number of one"),
        ("detect", {"only": "correct"}, "only is 'correct', and .* is not a classifier; expected all"),
        ("detect", {"explain": "all"}, "expected one target"),
        ("detect", {"explain": "horse"}, "label 'horse' is unknown"),
        ("segment", {"explain": 3}, "out of range"),
        ("value", {"explain": 5}, "target 5 is out of range; .* has 5 values, 0 to 4"),
        ("value", {"explain": Output(7)}, "value 7 is out of range; .* returns 5, 0 to 4"),
        (
            "detect",
            {"explain": Similarity(np.ones(5))},
            "is a detector, and the target is a reference to compare with; expected a class",
        ),
        (
            "segment",
            {"score": Output(0, -1)},
            "is a segmenter, and the target is a value with a sign; expected a class",
        ),
        ("value", {"explain": 0, "metrics": ["gain"]}, "metric 'gain' needs a score between 0 and 1"),
        ("detect", {"metrics": ["insertion:ortcam,score=logit"]}, "takes logits, and .* has none"),
    ],
)
def test_a_target_that_the_task_does_not_have_is_one_line(
    task: str, options: dict[str, Any], message: str, photo: Array
) -> None:
    with pytest.raises((OptionError, TargetError), match=message):
        evaluate(toy(task), [Sample(photo, "a")], **options)


def test_a_class_that_the_detector_does_not_know_is_an_error_of_the_photo(photo: Array) -> None:
    samples = [Sample(photo, "a", "dog", (Edges(20, 30, 200, 210),)), Sample(photo, "b", "zebra", (Edges(1, 1, 9, 9),))]
    options: dict[str, Any] = {"methods": ["score-cam:budget=8"], "metrics": ["energy"], "controls": ()}
    result = evaluate(toy("detect"), samples, **options, explain="true")
    assert [row.photo for row in result.rows] == ["a"]
    assert [(failure.photo, "'zebra' is unknown" in failure.error) for failure in result.failures] == [("b", True)]
    result = evaluate(toy("detect"), samples, **options)  # its own boxes, which a note says
    assert any("--explain true" in note for note in result.record["dataset"]["notes"])


def test_a_photo_without_the_target_is_an_error_of_the_photo(photo: Array) -> None:
    samples = [Sample(photo, "a"), Sample(np.zeros_like(photo), "dark")]
    result = evaluate(toy("detect"), samples, ["score-cam:budget=8"], ["deletion"], explain=Box(2), controls=())
    assert {row.photo for row in result.rows} == {"a"}
    assert [failure.photo for failure in result.failures] == ["dark"]


def test_the_sanity_check_keeps_the_target(photo: Array) -> None:
    """The last stage, made by hand: the randomised file explains the box that the original model saw."""
    model = toy("detect")
    result = sanity(model, [photo], steps=1, budget="exact")
    random = toy("detect")
    randomise(random, [name for layer in weighted_layers(random) for name in layer.weights])
    original = ortcam.ScoreCAM(model).explain(photo)
    target = original.targets[0]
    again = ortcam.ScoreCAM(random).explain(photo, targets=Box(tuple(target.place["box"]), target.index))
    (row,) = result.rows
    assert row.explained == target.index and row.top is None
    assert row.probability == pytest.approx(again.targets[0].logit, abs=1e-5)
    assert row.similarity.ssim == pytest.approx(ssim(original.input_maps[0], again.input_maps[0]), abs=1e-4)
    assert result.settings["method"]["convention"]["weight"] == "centred"


@pytest.mark.parametrize("task", ["segment", "embed", "value"])
def test_the_sanity_check_of_other_tasks(task: str, photo: Array) -> None:
    target, read = formulas(photo)[task]
    result = sanity(toy(task), [photo], target=target, steps=2)
    random = toy(task)
    randomise(random, [name for layer in weighted_layers(random) for name in layer.weights])
    assert result.rows[-1].probability == pytest.approx(read(run_model(random, tensor_of(photo))), abs=1e-5)
    assert ("P" in result.cells()[0]) == (task == "segment")  # a similarity or value is no probability


def test_the_commands(photo: Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("photo.png", cv2.cvtColor(photo, cv2.COLOR_RGB2BGR))
    cv2.imwrite("part.png", photo[:90, :90])
    for task in ("detect", "embed", "value"):
        onnx.save(toy(task), f"{task}.onnx")

    def run(*words: str) -> Any:
        return CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)

    shared = "photo.png", "--method", "score-cam:budget=8", "--control", "none"
    made = run("evaluate", "detect.onnx", *shared, "--metric", "pointing", "--least-score", "0.4")
    assert made.exit_code == 0 and json.loads(made.stdout)["record"]["model"]["detections"]["score"] == 0.4
    made = run("evaluate", "embed.onnx", *shared, "--like", "part.png")
    assert json.loads(made.stdout)["rows"][0]["target"] == "similarity to part.png"
    made = run("sanity", "value.onnx", "photo.png", "--target", "1", "--sign", "-1", "--steps", "1")
    assert json.loads(made.stdout)["target"] == {"output": 1, "sign": -1}
    with pytest.raises(OptionError, match="--like takes no --explain"):
        run("evaluate", "embed.onnx", *shared, "--like", "part.png", "--explain", "cat")
    with pytest.raises(OptionError, match="--explain is 'true'; with --sign expected the number of a value"):
        run("evaluate", "value.onnx", *shared, "--explain", "true", "--sign", "-1")
