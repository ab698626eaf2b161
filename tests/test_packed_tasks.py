"""Packed detectors, segmenters, embeddings and values: the engine's maps, scores and errors from one ONNX file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from conftest import correlation
from onnx import helper
from test_tasks import REFUSED, SIDE, Array, read_photo, run_model, toy
from typer.testing import CliRunner

import ortcam
from ortcam import Box, Output, Region, Similarity
from ortcam.cli.app import app
from ortcam.core.references import suppress
from ortcam.core.surrogate import map_of_equal_weights
from ortcam.deploy.load import load_explainer
from ortcam.deploy.page import write_page
from ortcam.errors import ModelError, OptionError, OrtcamError, TargetError
from ortcam.explain.explainer import ModelExplainer
from ortcam.graph import explainer, saliency
from ortcam.methods import make_method
from ortcam.model.contract import Contract
from ortcam.model.preprocessing import Preprocessing

pytestmark = pytest.mark.filterwarnings("ignore:the map of:ortcam.OrtcamWarning")  # some of the many maps are flat
# Of a map in [0,1]: float32 sums in another order. 6e-5 was seen with exact maps; 9e-5 with budgets, whose predictions
# divide by small numbers.
CLOSE = 4e-4
TARGETS: dict[str, Any] = {
    "detect": [Box(1), Box((30, 50, 150, 110), "dog"), "cat"],
    "segment": ["dog"],
    "embed": [Similarity(np.array([1, -2, 3, 0.5, 1])), Similarity(np.array([-1, 2, -3, -0.5, -1]))],
    "value": [Output(2), Output(2, sign=-1), 0],
}


@pytest.fixture(scope="module")
def photo(photos: dict[str, Path]) -> Array:
    return read_photo(photos["chelsea"])


@pytest.fixture(scope="module")
def wide(photo: Array) -> Array:
    """120 x 240; a letterbox has padding above and below."""
    return np.ascontiguousarray(photo[60:180])


def file_of(folder: Path, task: str, fit: str | None = None, layout: str = "NCHW") -> Path:
    """Write a toy; the fit ``crop`` cuts the middle out of a photo."""
    model = toy(task, None if fit == "crop" else fit, layout)
    if fit == "crop":
        entries = {entry.key: entry.value for entry in model.metadata_props}
        how = Preprocessing(SIDE, SIDE, resize=SIDE + 4, scale=1 / 255)
        helper.set_model_props(model, replace(Contract.from_metadata(entries, "toy"), preprocessing=how).to_metadata())
    path = folder / "toy.onnx"
    onnx.save(model, path)
    return path


@lru_cache(maxsize=4)
def open_file(path: Path, written: int) -> ort.InferenceSession:
    """Open a packed file once, and again if it was written anew."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(path: Path, image: Array, **inputs: Any) -> dict[str, Array]:
    """Run a packed file as a stranger would."""
    session = open_file(path, path.stat().st_mtime_ns)
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, session.run(None, {"image": image, **inputs}), strict=True))


def assert_same(ours: Any, theirs: Any) -> None:
    """The same targets, scores, masks, errors and maps."""
    assert [one.name for one in ours.targets] == [one.name for one in theirs.targets]
    for one, other in zip(ours.targets, theirs.targets, strict=True):
        assert (one.index, one.label) == (other.index, other.label)
        assert one.logit == pytest.approx(other.logit, abs=1e-5)
    assert ours.scored == theirs.scored
    for error, expected in zip(ours.errors, theirs.errors, strict=True):
        assert (error is None) == (expected is None)
        if expected is not None:
            assert tuple(vars(error).values()) == pytest.approx(tuple(vars(expected).values()), rel=1e-3, abs=1e-4)
    assert max(one.std() for one in theirs.maps) > 0.01, "maps this flat would prove nothing"
    for own, other in zip(ours.maps, theirs.maps, strict=True):
        assert np.abs(own - other).max() <= CLOSE
        if other.std() > 0:
            assert correlation(own, other) >= 0.9999


@pytest.mark.parametrize(
    ("task", "fit", "budget", "layout"),
    [
        ("detect", "letterbox", None, "NCHW"), ("detect", "letterbox", 9, "NCHW"), ("detect", "crop", 9, "NHWC"),
        ("segment", "letterbox", 9, "NCHW"),
        ("embed", "letterbox", 9, "NCHW"), ("value", "crop", None, "NCHW"),
        *(pytest.param(task, fit, budget, layout, marks=pytest.mark.slow)
          for task in TARGETS for fit in ("letterbox", "stretch", "crop") for budget in (None, 5, 12)
          for layout in ("NCHW", "NHWC") if task != "value" or budget is None),
    ],
)  # fmt: skip
def test_as_the_engine(task: str, fit: str, budget: int | None, layout: str, wide: Array, tmp_path: Path) -> None:
    """Several targets in one run, and the surest; with the task's own preset."""
    model = file_of(tmp_path, task, fit, layout)
    report = ortcam.pack(model, tmp_path / "packed.onnx", budget=budget, verify=False)
    assert report.facts["preset"] == ("centred-values" if task == "value" else "centred")
    packed, engine = ortcam.PackedExplainer(report.path, "cpu"), ortcam.ScoreCAM(model, "cpu")
    assert_same(packed.explain(wide, TARGETS[task]), engine.explain(wide, TARGETS[task], budget=budget))
    if task in ("detect", "segment"):
        assert_same(packed.explain(wide), engine.explain(wide, budget=budget))


def test_boxes_in_and_maps_out(wide: Array, tmp_path: Path) -> None:
    """A box of zeros is the model's own surest box; all boxes are in pixels of the photo."""
    path = ortcam.pack(file_of(tmp_path, "detect", "letterbox"), tmp_path / "packed.onnx", verify=False).path
    engine = ortcam.ScoreCAM(tmp_path / "toy.onnx", "cpu")
    given = [30, 50, 150, 110]
    box = np.array([[0] * 4, given, [0] * 4], np.float32)
    made = run(path, wide, target=np.array([-1, 1, 2]), box=box)
    outputs = run_model(engine.model.peek(), engine.model.prepare(wide)[1])
    assert np.allclose(made["scores"], outputs["scores"][0], atol=1e-5)
    boxes = (outputs["boxes"][0] - [0, 6, 0, 6]) * 10  # a letterbox of 12 rows between 6 rows of padding
    assert np.allclose(made["boxes"], boxes, atol=1e-3)
    first, tree = suppress(outputs["boxes"][0], outputs["scores"][0])[0][0], outputs["scores"][0, :, 2].argmax()
    assert made["target_class"].tolist() == [0, 1, 2]
    assert np.allclose(made["target_box"], [boxes[first], given, boxes[tree]], atol=1e-3)
    assert made["target_score"][0] == pytest.approx(outputs["scores"][0, first, 0], abs=1e-5)
    expected = engine.explain(wide, [Box(0), Box(tuple(given), 1), Box(tuple(boxes[tree]), 2)])
    assert np.abs(made["saliency"] - expected.maps).max() <= CLOSE
    for targets, boxes_given in (([1, 1], box[1:2]), ([1], box[[1, 1]])):  # one row serves for all
        again = run(path, wide, target=np.array(targets), box=boxes_given)
        assert np.abs(again["saliency"] - made["saliency"][1]).max() <= CLOSE
        assert len(again["saliency"]) == 2


def test_defaults_of_the_inputs(wide: Array, tmp_path: Path) -> None:
    """A packed target may be left out, and its box or sign with it."""
    for task, target, same in (
        ("detect", -1, Box(0)), ("detect", "cat", "cat"), ("segment", "-1", None), ("value", 1, 1)
    ):  # fmt: skip
        model = file_of(tmp_path, task)
        ortcam.pack(model, tmp_path / "packed.onnx", target=target, verify=False)
        expected = ortcam.ScoreCAM(model, "cpu").explain(wide, same)
        assert np.abs(run(tmp_path / "packed.onnx", wide)["saliency"] - expected.maps).max() <= CLOSE
    assert run(tmp_path / "packed.onnx", wide, target=np.array([0, 1]))["saliency"].shape == (2, 120, 240)
    for task, target, message in (("embed", -1, "no default reference"), ("value", -1, "expected the number of a")):
        with pytest.raises(OptionError, match=message):
            ortcam.pack(file_of(tmp_path, task), tmp_path / "a.onnx", target=target)


def test_a_target_that_the_photo_lacks_is_zero_and_changes_no_other(wide: Array, tmp_path: Path) -> None:
    path = ortcam.pack(file_of(tmp_path, "segment"), tmp_path / "packed.onnx", budget=9, verify=False).path
    made = run(path, wide, target=np.array([2, -1]))
    assert made["target_class"].tolist() == [2, 1]
    assert made["target_score"][0] == 0
    assert not made["saliency"][0].any() and np.isnan(made["error"][0]).all()
    alone = run(path, wide, target=np.array([-1]))
    assert np.abs(made["saliency"][1] - alone["saliency"][0]).max() <= 1e-5
    assert np.isfinite(alone["error"]).all()
    with pytest.raises(TargetError, match="the region of 'tree' is empty in this photo; seen are dog"):
        ortcam.PackedExplainer(path).explain(wide, "tree")


def floats(*rows: Any) -> Array:
    return np.array(rows, np.float32)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that packs a toy once."""
    folder, made = tmp_path_factory.mktemp("packed"), dict[str, Path]()

    def pack(task: str) -> Path:
        if task not in made:
            path = folder / f"{task}.explainer.onnx"
            made[task] = ortcam.pack(file_of(folder, task), path, verify=False).path
        return made[task]

    return pack


BAD: dict[str, tuple[str, dict[str, Array], str]] = {
    "class": ("detect", {"target": np.array([3]), "box": floats([0] * 4)}, "target is out of range; .* surest box"),
    "below": ("detect", {"target": np.array([-2]), "box": floats([0] * 4)}, "target is out of range"),
    "no class": ("detect", {"target": np.array([-1]), "box": floats([3, 9, 40, 60])}, "box has no class"),
    "inverted": ("detect", {"target": np.array([0]), "box": floats([50, 9, 40, 60])}, "box is empty, inverted or NaN"),
    "NaN": ("detect", {"target": np.array([0]), "box": floats([np.nan, 9, 40, 60])}, "box is empty, inverted or NaN"),
    "infinite": ("detect", {"target": np.array([0]), "box": floats([-np.inf, 9, 40, 60])}, "box is empty, inverted"),
    "outside": ("detect", {"target": np.array([0]), "box": floats([300, 9, 400, 60])}, "box lies outside"),
    "lengths": ("detect", {"target": np.array([0, 1]), "box": np.zeros((3, 4), np.float32)}, "different lengths"),
    "nothing": ("detect", {"target": np.array([], np.int64), "box": floats([0] * 4)}, "are empty, or have different"),
    "region": ("segment", {"target": np.array([3])}, "target is out of range; .* largest region"),
    "zeros": ("embed", {"like": np.zeros((1, 5), np.float32)}, "like is a vector of zeros, or not finite"),
    "NaN vector": ("embed", {"like": np.full((1, 5), np.nan, np.float32)}, "like is a vector of zeros, or not finite"),
    "value": ("value", {"target": np.array([5]), "sign": floats(1)}, "expected numbers of values, 0 to 4"),
    "sign": ("value", {"target": np.array([1]), "sign": floats(0.5)}, "sign is neither 1 nor -1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_ends_with_an_error(name: str, wide: Array, packed: Callable[[str], Path]) -> None:
    task, inputs, message = BAD[name]
    with pytest.raises(Exception, match=f"ortcam: [^']*{message}"):
        run(packed(task), wide, **inputs)


def test_python_refuses_what_score_cam_refuses(photo: Array, packed: Callable[[str], Path]) -> None:
    """With the same words, apart from the name of the file."""
    explainers = {task: ortcam.PackedExplainer(packed(task), "cpu") for task in TARGETS}
    for name, (task, target, message) in REFUSED.items():
        if isinstance(target, Region) and task == "segment" and (target.mask is not None or target.at is not None):
            message = "is packed, and explains all places of a class"
        with pytest.raises(TargetError, match=message) as caught:
            explainers[task].explain(photo, target)
        assert "\n" not in str(caught.value), name


def test_python_takes_the_targets_of_score_cam(photo: Array, packed: Callable[[str], Path], tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "other.png"), cv2.cvtColor(photo, cv2.COLOR_RGB2BGR)[::-1])
    for task, targets in (
        ("detect", "all"), ("detect", 0), ("segment", [Region("dog"), 1]), ("value", "all"),
        ("embed", [Similarity(tmp_path / "other.png"), Similarity(photo)]),
    ):  # fmt: skip
        engine = ortcam.ScoreCAM(file_of(tmp_path, task), "cpu")
        assert_same(ortcam.PackedExplainer(packed(task), "cpu").explain(photo, targets), engine.explain(photo, targets))
    quiet = ortcam.PackedExplainer(packed("detect"), "cpu", detecting=ortcam.Detecting(0.99))
    with pytest.raises(TargetError, match=r"no detection scores 0\.99 or more; the best are"):
        quiet.explain(photo)
    both = list(ortcam.PackedExplainer(packed("detect"), "cpu").explain_batch([photo, photo[::-1]], Box(1)))
    assert both[0].targets[0].place != both[1].targets[0].place


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_a_file_of_tensors(task: str, wide: Array, tmp_path: Path) -> None:
    """Without preprocessing, boxes are in pixels of the input; Python still takes boxes of the photo."""
    model = file_of(tmp_path, task, "letterbox")
    path = ortcam.pack(model, tmp_path / "packed.onnx", raw=False, verify=False).path
    packed, engine = ortcam.PackedExplainer(path, "cpu"), ortcam.ScoreCAM(model, "cpu")
    tensor = engine.model.prepare(wide)[1]
    target, inputs = Box((3, 7, 15, 17), "dog"), {"target": np.array([1]), "box": floats([3, 7, 15, 17])}
    if task == "segment":
        target, inputs = "dog", {"target": np.array([1])}
    assert_same(packed.explain(tensor, target), engine.explain(tensor, target))
    made = run(path, tensor, **inputs)
    assert made["saliency"].shape == (1, SIDE, SIDE)
    if task == "detect":
        assert made["target_box"].tolist() == [[3, 7, 15, 17]]
        assert_same(packed.explain(wide, TARGETS[task]), engine.explain(wide, TARGETS[task]))


@pytest.mark.parametrize(
    ("task", "method", "options"),
    [
        ("detect", "recipro-cam", {}), ("embed", "ablation-cam", {}), ("value", "recipro-cam", {}),
        *(pytest.param(task, method, options, marks=pytest.mark.slow) for task in TARGETS
          for method, options in (("recipro-cam", {"kernel": "gaussian", "score": "logit"}), ("recipro-cam", {}),
                                  ("ablation-cam", {}), ("eigen-cam", {}), ("fused", {"passes": "0"}))),
    ],
)  # fmt: skip
def test_methods_of_one_pass(task: str, method: str, options: dict[str, str], wide: Array, tmp_path: Path) -> None:
    model, how = file_of(tmp_path, task, "letterbox"), make_method(method, options)
    path = ortcam.pack(model, tmp_path / "packed.onnx", method=how, verify=False).path
    expected = ModelExplainer(model, how, "cpu").explain(wide, TARGETS[task])
    assert_same(ortcam.PackedExplainer(path, "cpu").explain(wide, TARGETS[task]), expected)


def test_what_cannot_be_packed(tmp_path: Path) -> None:
    model = file_of(tmp_path, "value")
    with pytest.raises(OptionError, match="plain values have none; leave budget out"):
        ortcam.pack(model, tmp_path / "packed.onnx", budget=4)
    with pytest.raises(ModelError, match=r"do not add up over the places .*; use recipro-cam, ablation-cam or"):
        ortcam.pack(file_of(tmp_path, "detect"), tmp_path / "packed.onnx", method="cam")
    assert not (tmp_path / "packed.onnx").exists()


@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=() if task == "detect" else pytest.mark.slow) for task in TARGETS]
)
def test_packing_compares_with_the_engine(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose weights have the wrong sign is refused."""
    model = file_of(tmp_path, task, "letterbox")
    report = ortcam.pack(model, tmp_path / "packed.onnx")
    assert report.r is not None and report.r >= 0.9999
    monkeypatch.setattr(explainer, "write_weights", lambda *given: -saliency.write_weights(*given))
    with pytest.raises(ModelError, match="does not agree with the engine"):
        ortcam.pack(model, tmp_path / "wrong.onnx")
    assert not (tmp_path / "wrong.onnx").exists()


def test_centred_weights_of_a_classifier(wide: Array, tmp_path: Path) -> None:
    model = toy("value")
    entries = {entry.key: entry.value for entry in model.metadata_props}
    contract = replace(Contract.from_metadata(entries, "toy"), task="classify", outputs={}, activation="softmax")
    helper.set_model_props(model, contract.to_metadata())
    onnx.save(model, tmp_path / "toy.onnx")
    engine = ortcam.ScoreCAM(tmp_path / "toy.onnx", "cpu", preset="centred")
    for budget in (None, 9):
        path = tmp_path / "packed.onnx"
        ortcam.pack(tmp_path / "toy.onnx", path, preset="centred", budget=budget, verify=False)
        ours = ortcam.PackedExplainer(path, "cpu").explain(wide, [0, 1, 2])
        assert_same(ours, engine.explain(wide, [0, 1, 2], budget=budget))


def test_rounding_of_a_sum_that_cancels_out_counts_as_zero() -> None:
    parts = np.random.default_rng(0).standard_normal((64, 9)).astype(np.float32)
    assert np.array_equal(map_of_equal_weights(parts), parts.sum(axis=0))
    assert not map_of_equal_weights(parts - parts.mean(axis=0)).any()


def test_the_command_line(photo: Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack, inspect, explain a box, and reproduce; a page is refused."""
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("photo.png", cv2.cvtColor(photo, cv2.COLOR_RGB2BGR))
    file_of(tmp_path, "detect")

    def invoke(*words: str) -> Any:
        result = CliRunner().invoke(app, list(words))
        assert result.exit_code == 0, result.output
        return result

    invoke("pack", "toy.onnx", "-o", "packed.onnx", "--budget", "9", "--target", "-1", "--triton", "models")
    assert "-1 where it is not given; -1: surest box" in invoke("inspect", "packed.onnx").output
    config = (tmp_path / "models" / "packed" / "config.pbtxt").read_text()
    assert '{ name: "box"  data_type: TYPE_FP32  dims: [-1, 4]  optional: true }' in config
    assert '{ name: "boxes"  data_type: TYPE_FP32  dims: [-1, 4] }' in config
    assert "labels.txt" not in config
    options = ["--box", "10,20,90,200", "--target", "dog", "-o", "out", "--json"]
    (made,) = json.loads(invoke("explain", "packed.onnx", "photo.png", *options).stdout)["explanations"]
    expected = ortcam.ScoreCAM("toy.onnx", "cpu").explain("photo.png", Box((10, 20, 90, 200), "dog"), budget=9)
    assert made["targets"][0]["place"] == expected.targets[0].place
    assert made["model"]["output"] == "detect"
    assert np.abs(np.load("out/photo/maps.npy") - expected.maps).max() <= CLOSE
    assert ortcam.reproduce("out/photo").agrees
    with pytest.raises(OptionError, match="is made for the task 'detect', and the page shows classes"):
        write_page("packed.onnx", "site")
    assert load_explainer("packed.onnx", detecting=ortcam.Detecting(0.1)).detecting.score == 0.1  # type: ignore[attr-defined]


# Options that the model does not have: task -> options, and what the message names.
WRONG: dict[str, list[tuple[list[str], str]]] = {
    "detect": [
        (["--at", "3,3"], "the target is a region; expected a class (--target), or a box (--box"),
        (["--like", "photo.png"], "the target is a reference to compare with; expected a class (--target)"),
        (["--sign", "-1"], "the target is a value with a sign; expected a class (--target)"),
        (["--target", "99"], "target 99 is out of range; detect.onnx has 3 classes, 0 to 2"),
        (["--box", "1,1,9,9", "--target", "elk"], "'elk' is unknown to detect.onnx; its labels are cat, dog, tree"),
    ],
    "segment": [
        (["--box", "0"], "the target is a box; expected a class (--target), or the region at a pixel (--at"),
        (["--sign", "2"], "--sign is 2; expected 1 or -1"),
        (["--box", "-1"], "--box is '-1'; expected the number of a detection from 0"),
    ],
    "embed": [
        ([], "to compare with a reference; expected a reference picture or embedding (--like"),
        (["--target", "all"], "the target is 'all'; expected a reference picture or embedding (--like"),
        (["--box", "1,1,9,9"], "the target is a box; expected a reference picture or embedding (--like"),
        (["--like", "missing.png"], "cannot read missing.png"),
    ],
    "value": [
        ([], "value.onnx returns 5 values, 0 to 4; expected the number of a value (--target)"),
        (["--at", "3,3"], "the target is a region; expected the number of a value (--target), and --sign -1"),
        (["--target", "7"], "target 7 is out of range; value.onnx has 5 values, 0 to 4"),
        (["--target", "7", "--sign", "-1"], "value 7 is out of range; value.onnx returns 5, 0 to 4"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=pytest.mark.slow if task in ("detect", "embed") else ()) for task in WRONG]
)
def test_wrong_options_are_told_once_in_words_of_the_command_line(
    task: str, packed: Callable[[str], Path], photo: Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model file and of a packed one: one error before the first of two photos, and no object of Python in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("photo.png", "other.png"):
        cv2.imwrite(name, cv2.cvtColor(photo, cv2.COLOR_RGB2BGR))
    file_of(tmp_path, task).rename(f"{task}.onnx")
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / f"{task}.onnx").write_bytes(packed(task).read_bytes())
    for file in (f"{task}.onnx", f"packed/{task}.onnx"):
        for options, message in WRONG[task]:
            done = CliRunner().invoke(app, ["explain", file, "photo.png", "other.png", *options])
            assert isinstance(done.exception, OrtcamError), (file, options, done.output)  # `main` prints it
            said = str(done.exception)
            assert message in said, (file, options)
            assert re.search(r"\w+=|PosixPath", said) is None, said
            assert "photo.png:" not in done.stderr


def test_all_targets_by_one_option(packed: Callable[[str], Path], photo: Array, tmp_path: Path) -> None:
    """`--target all` comes as a list."""
    for task in ("detect", "segment", "value"):
        engine = ortcam.ScoreCAM(file_of(tmp_path, task), "cpu")
        expected = engine.explain(photo, "all")
        for explainer_ in (engine, ortcam.PackedExplainer(packed(task), "cpu")):
            assert [one.name for one in explainer_.explain(photo, ["all"]).targets] == [
                one.name for one in expected.targets
            ]
        with pytest.raises(TargetError, match="targets has 'all' and other targets"):
            engine.explain(photo, ["all", 1])
    assert len(expected.targets) == 5


def test_a_reference_is_embedded_once(packed: Callable[[str], Path], photo: Array, tmp_path: Path) -> None:
    path = tmp_path / "reference.png"
    cv2.imwrite(str(path), cv2.cvtColor(photo, cv2.COLOR_RGB2BGR)[::-1])
    target, explainer_ = Similarity(path), ortcam.PackedExplainer(packed("embed"), "cpu")
    made = []
    for explanation in explainer_.explain_batch([photo, photo[::-1]], target):
        made.append(explanation)
        path.unlink(missing_ok=True)  # it is not read again
    assert len(made) == 2
    assert made[1].targets[0].logit == pytest.approx(1, abs=1e-6)  # the second photo is the reference
    assert made[0].provenance.asked.targets == ({"similarity": "reference.png"},)
