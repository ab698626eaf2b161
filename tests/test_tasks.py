"""Targets of models of other tasks: each score and map against its formula in NumPy."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from conftest import correlation
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import ortcam
from ortcam import Box, Output, Region, Similarity
from ortcam.cli.app import app
from ortcam.core.convention import upsample
from ortcam.core.references import overlaps, suppress
from ortcam.core.regions import as_runs, of_runs
from ortcam.deploy.load import load_explainer
from ortcam.errors import ModelError, OptionError, OrtcamWarning, TargetError
from ortcam.model.contract import ROLES, Contract, ExposedLayer
from ortcam.model.preprocessing import Preprocessing
from ortcam.output.render import draw_overlay
from ortcam.output.schema import find_violation, schema

Array = NDArray[Any]
SIDE, CELLS, CHANNELS, CLASSES = 24, 6, 24, 3
LABELS = ("cat", "dog", "tree")


def toy(task: str, fit: str | None = None, layout: str = "NCHW") -> onnx.ModelProto:
    """Return a small model of a task: a convolution of stride 4, a ReLU, and a head with fixed random weights."""
    random = np.random.default_rng(3)

    def draw(*shape: int) -> Array:
        return random.standard_normal(shape).astype(np.float32)

    constants = {"kernel": draw(CHANNELS, 3, 4, 4) / 8, "bias": draw(CHANNELS) / 3}
    nhwc = layout == "NHWC"
    nodes = [helper.make_node("Transpose", ["image"], ["nchw"], perm=[0, 3, 1, 2])] if nhwc else []
    nodes += [
        helper.make_node("Conv", ["nchw" if nhwc else "image", "kernel", "bias"], ["conv"], strides=[4, 4]),
        helper.make_node("Relu", ["conv"], ["activations"]),
    ]
    places = CELLS * CELLS
    if task == "detect":
        rows, columns = np.divmod(np.arange(places), CELLS)
        centres = np.stack([columns, rows, columns, rows], axis=1) * 4 + 2
        constants |= {
            "to_boxes": draw(4, CHANNELS, 1, 1) / 4, "to_scores": draw(CLASSES, CHANNELS, 1, 1),
            "rare": np.full(CLASSES, -3.9, np.float32),
            "corners": (centres + np.array([-5, -5, 5, 5]))[None].astype(np.float32),
            "rows_of_4": np.array([0, 4, places]), "rows_of_classes": np.array([0, CLASSES, places]),
        }  # fmt: skip
        nodes += [
            helper.make_node("Conv", ["activations", "to_boxes"], ["moves"]),
            helper.make_node("Reshape", ["moves", "rows_of_4"], ["flat_moves"]),
            helper.make_node("Transpose", ["flat_moves"], ["box_moves"], perm=[0, 2, 1]),
            helper.make_node("Add", ["box_moves", "corners"], ["boxes"]),
            helper.make_node("Conv", ["activations", "to_scores", "rare"], ["class_maps"]),
            helper.make_node("Reshape", ["class_maps", "rows_of_classes"], ["flat_scores"]),
            helper.make_node("Transpose", ["flat_scores"], ["score_logits"], perm=[0, 2, 1]),
            helper.make_node("Sigmoid", ["score_logits"], ["scores"]),
        ]
        shapes = {"boxes": [places, 4], "scores": [places, CLASSES]}
    elif task == "segment":
        constants["to_mask"] = draw(CLASSES, CHANNELS, 1, 1)
        nodes += [
            helper.make_node("Conv", ["activations", "to_mask"], ["class_maps"]),
            helper.make_node("Softmax", ["class_maps"], ["mask"], axis=1),
        ]
        shapes = {"mask": [CLASSES, CELLS, CELLS]}
    else:
        constants["to_vector"] = draw(CHANNELS, 5)
        (role,) = ROLES[task]  # type: ignore[index]
        nodes += [
            helper.make_node("GlobalAveragePool", ["activations"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "to_vector"], [role]),
        ]
        shapes = {role: [5]}
    image = [SIDE, SIDE, 3] if nhwc else [3, SIDE, SIDE]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *image])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *dims]) for name, dims in shapes.items()]
        + [helper.make_tensor_value_info("activations", TensorProto.FLOAT, ["batch", CHANNELS, CELLS, CELLS])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    how = Preprocessing(SIDE, SIDE, scale=1 / 255, fit=fit)  # type: ignore[arg-type]
    contract = Contract(
        (ExposedLayer("relu", "relu"),), task=task, outputs={role: role for role in shapes},  # type: ignore[arg-type]
        image_layout=layout, preprocessing=how,  # type: ignore[arg-type]
        labels=LABELS if task in ("detect", "segment") else None,
    )  # fmt: skip
    helper.set_model_props(model, contract.to_metadata())
    return model


def read_photo(path: Path) -> Array:
    """Return a cut of 240 x 240."""
    return np.ascontiguousarray(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)[40:280, 60:300])


@pytest.fixture(scope="module")
def photo(photos: dict[str, Path]) -> Array:
    return read_photo(photos["chelsea"])


def run_model(model: onnx.ModelProto, tensors: Array) -> dict[str, Array]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, session.run(None, {"image": tensors}), strict=True))


def expected_map(model: onnx.ModelProto, tensor: Array, read: Callable[[dict[str, Array]], Array]) -> Array:
    """Return the sum over the channels of (s_k - mean of s) A_k, one masked input after the other: [h,w]."""
    features = run_model(model, tensor)["activations"][0]
    live = [channel for channel in features if np.ptp(channel) > 0]
    scores = []
    for channel in live:
        up = upsample(channel[None], (SIDE, SIDE))
        mask = (up - up.min()) / np.ptp(up)
        scores.append(read(run_model(model, (tensor * mask[None]).astype(np.float32))))
    weights = np.array(scores) - np.mean(scores)
    return np.tensordot(weights, np.stack(live), axes=1)


def tensor_of(photo: Array) -> Array:
    return Preprocessing(SIDE, SIDE, scale=1 / 255).apply(photo)


def score_of_box(outputs: dict[str, Array], box: Array, index: int) -> float:
    """Return max IoU * score, written out box by box."""
    best = 0.0
    for (left, top, right, bottom), scores in zip(outputs["boxes"][0], outputs["scores"][0], strict=True):
        width = max(min(right, box[2]) - max(left, box[0]), 0)
        height = max(min(bottom, box[3]) - max(top, box[1]), 0)
        area = max(right - left, 0) * max(bottom - top, 0) + (box[2] - box[0]) * (box[3] - box[1])
        best = max(best, width * height / (area - width * height) * scores[index])
    return best


def check(explainer: Any, photo: Array, target: Any, read: Callable[[dict[str, Array]], Any]) -> Any:
    """Compare the score and the map of a target with the formula; return its description."""
    model = explainer.model.peek()
    explanation = explainer.explain(photo, targets=target)
    tensor = tensor_of(photo)
    assert explanation.targets[0].logit == pytest.approx(read(run_model(model, tensor)), abs=1e-5)
    expected = expected_map(model, tensor, read)
    assert correlation(explanation.raw_maps[0], expected) >= 0.9999
    assert np.abs(explanation.raw_maps[0] - expected).max() < 1e-4 * np.abs(expected).max()
    return explanation.targets[0]


def test_a_box_is_explained(photo: Array) -> None:
    model = toy("detect")
    detector = ortcam.ScoreCAM(model)
    assert detector.convention.name == "centred"
    outputs = run_model(model, tensor_of(photo))
    rows, classes = suppress(outputs["boxes"][0], outputs["scores"][0])
    assert len(rows) > 2
    for number in (0, 2):
        box, index = outputs["boxes"][0][rows[number]], classes[number]
        found = check(detector, photo, Box(number), lambda made, b=box, i=index: score_of_box(made, b, i))
        assert (found.index, found.label) == (index, LABELS[index])
        assert np.allclose(found.place["box"], box * 10, atol=1e-2)  # a photo of 240 x 240
    given = (30.0, 50.0, 150.0, 210.0)
    found = check(detector, photo, Box(given, "dog"), lambda made: score_of_box(made, np.array(given) / 10, 1))
    assert found.name == "dog at 30,50,150,210"
    several = detector.explain(photo, targets=[Box(2), Box(0)])
    assert np.array_equal(several[Box(0)], several.maps[1]) and Box(1) not in several
    first = detector.explain(photo, targets=LABELS[classes[0]])
    assert np.array_equal(first.raw_maps, detector.explain(photo).raw_maps), "a label is the surest box of its class"


def test_a_region_is_explained(photo: Array) -> None:
    model = toy("segment")
    segmenter = ortcam.ScoreCAM(model)
    mask = run_model(model, tensor_of(photo))["mask"][0]
    seen = mask.argmax(axis=0)
    index = int(seen[2, 3])
    whole = seen == index
    check(segmenter, photo, Region(index), lambda made: made["mask"][0, index][whole].mean())
    _, parts = cv2.connectedComponents(whole.astype(np.uint8))
    part = parts == parts[2, 3]
    check(segmenter, photo, Region(at=(140, 100)), lambda made: made["mask"][0, index][part].mean())
    given = np.zeros(photo.shape[:2], np.bool_)
    given[:120, 40:] = True
    there = np.zeros((CELLS, CELLS), np.bool_)
    there[:3, 1:] = True
    check(segmenter, photo, Region("dog", mask=given), lambda made: made["mask"][0, 1][there].mean())


def test_a_similarity_is_explained(photo: Array, tmp_path: Path) -> None:
    model = toy("embed")
    embedder = ortcam.ScoreCAM(model)
    other = np.ascontiguousarray(photo[::-1, :, ::-1])
    reference = run_model(model, tensor_of(other))["embedding"][0]

    def cosine(made: dict[str, Array]) -> float:
        # Weights are those of the share (1 + cosine) / 2; a factor does not change the map after normalisation.
        own = made["embedding"][0]
        return float(own @ reference / np.linalg.norm(own) / np.linalg.norm(reference))

    expected = expected_map(model, tensor_of(photo), cosine) / 2
    np.save(tmp_path / "reference.npy", reference[None])
    cv2.imwrite(str(tmp_path / "reference.png"), cv2.cvtColor(other, cv2.COLOR_RGB2BGR))
    likes = [other, 3 * reference, tmp_path / "reference.npy", str(tmp_path / "reference.png")]
    likes += [reference[None], torch.tensor(reference, requires_grad=True)]
    explanations = [embedder.explain(photo, targets=Similarity(one)) for one in likes]
    for one in explanations:
        assert one.targets[0].logit == pytest.approx(cosine(run_model(model, tensor_of(photo))), abs=1e-5)
        assert np.abs(one.raw_maps[0] - expected).max() < 1e-4 * np.abs(expected).max()
    names = [one.targets[0].name for one in explanations]
    assert names[2:4] == ["similarity to reference.npy", "similarity to reference.png"]
    both = embedder.explain(photo, targets=np.array([Similarity(other), Similarity(photo), Similarity(other)]))
    assert len(both.targets) == 2, "the same reference twice"


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_value_is_explained_in_both_directions(photo: Array, layout: str) -> None:
    model = toy("value")
    values = ortcam.ScoreCAM(toy("value", layout=layout))
    assert values.convention.name == "centred-values"
    tensor = tensor_of(photo)
    expected = expected_map(model, tensor, lambda made: made["values"][0, 2])
    with pytest.warns(OrtcamWarning, match="the map of value 2 is flat"):  # every place lowers this value
        explanation = values.explain(photo, targets=[Output(2), Output(2, sign=-1)])
    assert np.abs(explanation.raw_maps[0] - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.allclose(explanation.raw_maps[1], -explanation.raw_maps[0], atol=1e-6)
    assert explanation.targets[1].logit == -explanation.targets[0].logit


def test_boxes_of_a_letterboxed_photo_lie_in_the_photo(photo: Array) -> None:
    """The photo is twice as wide as high: the model sees 12 rows of it between 6 rows of padding."""
    wide = np.ascontiguousarray(photo[60:180])
    detector = ortcam.ScoreCAM(toy("detect", fit="letterbox"))
    (found,) = detector.predict(wide)
    tensor = detector.model.prepare(wide)[1]
    outputs = run_model(toy("detect"), tensor)
    rows, classes = suppress(outputs["boxes"][0], outputs["scores"][0])
    box = outputs["boxes"][0][rows[0]]
    assert np.allclose(found.place["box"], (box - [0, 6, 0, 6]) * 10, atol=1e-2)
    again = detector.explain(wide, targets=Box(tuple(found.place["box"]), int(classes[0])))
    assert np.allclose(again.raw_maps, detector.explain(wide).raw_maps, atol=1e-5)
    assert again.maps.shape == (1, 120, 240)


@pytest.mark.filterwarnings("ignore::ortcam.errors.OrtcamWarning")  # some of the many maps are flat
def test_photos_of_a_group_have_their_own_references(photo: Array) -> None:
    """Photos share batches, and have different numbers of detections."""
    detector = ortcam.ScoreCAM(toy("detect"), batch_size=64)
    pictures = [photo, np.ascontiguousarray(photo[::-1]), np.ascontiguousarray(photo[:, ::-1] // 6)]
    counts = {len(detector.predict(one, 99)) for one in pictures}
    assert len(counts) > 1
    together = list(detector.explain_batch(pictures, top_k=99, budget=4))
    for one, picture in zip(together, pictures, strict=True):
        alone = detector.explain(picture, top_k=99, budget=4)
        assert [target.place for target in alone.targets] == [target.place for target in one.targets]
        assert np.allclose(one.raw_maps, alone.raw_maps, atol=1e-5)


def test_a_budget_of_centred_weights_is_nearly_exact(photo: Array) -> None:
    """The predictor works on channels minus their mean; a budget of all channels but one is close to the exact map."""
    detector = ortcam.ScoreCAM(toy("detect"))
    exact, most = detector.explain(photo), detector.explain(photo, budget=12)
    assert most.scored < exact.scored
    assert np.array_equal(detector.explain(photo, budget=10**6).raw_maps, exact.raw_maps)
    assert correlation(most.raw_maps[0], exact.raw_maps[0]) > 0.95
    values = ortcam.ScoreCAM(toy("value"))
    with pytest.raises(OptionError, match="plain values have none"):
        values.explain(photo, targets=1, budget=4)
    assert values.explain(photo, targets=1, budget=4, selection="top-std").scored == 4


@pytest.mark.parametrize("task", ["detect", "segment", "embed", "value"])
@pytest.mark.parametrize("method", ["recipro-cam", "ablation-cam", "eigen-cam", "rise", "fused"])
def test_other_methods_explain_the_same_scores(photo: Array, task: str, method: str) -> None:
    """Recipro-CAM and Ablation-CAM against the model run on changed features; the others give a map."""
    explainer = load_explainer(toy(task), method)
    target = {"detect": "cat", "segment": "dog", "embed": Similarity(photo[::-1]), "value": Output(1)}[task]
    made = explainer.explain(photo, targets=target, **({"budget": 100} if method == "rise" else {}))
    assert np.isfinite(made.raw_maps).all()
    assert np.ptp(made.maps[0]) > 0.5
    if method == "rise" and task == "value":
        # RISE is linear in the scores: the opposite value has the opposite map.
        other = explainer.explain(photo, targets=Output(1, sign=-1), budget=100)
        assert correlation(made.raw_maps[0], other.raw_maps[0]) < -0.999


def test_rise_of_a_box_is_d_rise(photo: Array) -> None:
    """Judge: vision-explanation-methods 0.1.1 with the same masks (tests/judges/make_drise_values.py)."""
    known = np.load(Path(__file__).parent / "judges" / "drise.npz")["map"]
    rise = load_explainer(toy("detect"), ortcam.RISE(masks=200, divisor="centred"))
    made = rise.explain(photo, targets=Box(0))
    assert correlation(made.input_maps[0], known) >= 0.9999
    assert np.abs(made.input_maps[0] - known).max() < 1e-4


def test_overlaps_and_suppression() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [20, 20, 30, 40]], np.float32)
    assert np.allclose(overlaps(boxes, boxes[0]), [1, 9 / 11, 1, 0])
    scores = np.array([[0.6, 0.1], [0.9, 0.1], [0.2, 0.8], [0.3, 0.3]], np.float32)
    rows, classes = suppress(boxes, scores)
    assert rows.tolist() == [1, 2, 3] and classes.tolist() == [0, 1, 0]  # row 0 lies under row 1, of its class
    assert len(suppress(boxes[:0], scores[:0])[0]) == 0


REFUSED: dict[str, tuple[str, Any, str]] = {
    "number": ("detect", Box(99), "box 99 is out of range: found are 0 "),
    "inverted": ("detect", Box((9, 9, 5, 20), "cat"), "box 9,9,5,20 is empty or inverted"),
    "outside": ("detect", Box((300, 9, 400, 20), "cat"), "lies outside the photo of 240x240"),
    "no class": ("detect", Box((3, 9, 40, 20)), "has no class, and .* has several; give its label"),
    "three": ("detect", Box((3, 9, 40)), "expected 4 numbers"),  # type: ignore[arg-type]
    "not a number": ("detect", Box((3, 9, float("nan"), 20), "cat"), "expected 4 numbers"),
    "label": ("detect", "car", "label 'car' is unknown"),
    "label of a number": ("detect", Box(0, "cat"), "box 0 is a detection, which has its class"),
    "NaN mask": ("segment", Region("cat", mask=np.full((240, 240), np.nan)), "mask holds float64, or NaN"),
    "strings": ("embed", Similarity(np.array(list("abcde"))), "holds <U1 of shape .*; expected one embedding"),
    "kind": ("detect", Region("cat"), "is a detector, and the target is a region; expected a class .--target."),
    "empty region": ("segment", Region("cat", mask=np.zeros((240, 240), np.bool_)), "region of 'cat' is empty"),
    "shape": ("segment", Region("cat", mask=np.ones((24, 24), np.bool_)), r"mask has the shape \[24, 24\]; expected"),
    "beyond": ("segment", Region(at=(240, 3)), "outside the photo of 240x240"),
    "zeros": ("embed", Similarity(np.zeros(5)), "a vector of zeros"),
    "length": ("embed", Similarity(np.ones(4)), r"a vector of shape \[4\]; expected \[5\]"),
    "nothing": ("embed", None, "to compare with a reference"),
    "file": ("embed", Similarity("missing.npy"), "cannot read the reference missing.npy"),
    "which": ("value", None, "returns 5 values, 0 to 4; expected the number of a value"),
    "range": ("value", Output(7), "value 7 is out of range; .* returns 5, 0 to 4"),
    "sign": ("value", Output(1, sign=2), "sign is 2; expected 1 or -1"),
    "empty": ("value", [], "targets is empty"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_targets_that_are_refused(photo: Array, name: str) -> None:
    task, target, message = REFUSED[name]
    with pytest.raises(TargetError, match=message) as caught:
        ortcam.ScoreCAM(toy(task)).explain(photo, targets=target)
    assert "\n" not in str(caught.value)


def test_all_targets_and_repeated_ones(photo: Array) -> None:
    segmenter = ortcam.ScoreCAM(toy("segment"))
    everything = segmenter.explain(photo, targets="all", budget=4)
    assert len(everything.targets) == len(segmenter.predict(photo, 9))
    label = everything.targets[0].label
    assert len(segmenter.explain(photo, targets=[label, Region(label)], budget=4).targets) == 1
    detector = ortcam.ScoreCAM(toy("detect"))
    as_array = detector.explain(photo, targets=Box(np.array([30, 50, 150, 210]), "dog"), budget=4)
    assert as_array.targets[0].name == "dog at 30,50,150,210"


def test_another_layer_of_the_graph(photo: Array) -> None:
    """Every task with a layer that the file does not expose: the map before the ReLU."""
    for task, target in (("detect", Box(0)), ("segment", None), ("embed", Similarity(photo[::-1])), ("value", 1)):
        explanation = ortcam.ScoreCAM(toy(task), layer="conv").explain(photo, targets=target, selection="predict")
        assert explanation.layer == "conv"
        assert explanation.raw_maps.shape == (1, CELLS, CELLS)


def test_boxes_outside_what_the_model_sees(photo: Array) -> None:
    """The middle of a wide photo is cut out; boxes at its ends are refused, and not listed."""
    model = toy("detect")
    entries = {entry.key: entry.value for entry in model.metadata_props}
    contract = replace(
        Contract.from_metadata(entries, "toy"), preprocessing=Preprocessing(SIDE, SIDE, resize=SIDE, scale=1 / 255)
    )
    helper.set_model_props(model, contract.to_metadata())
    wide = np.tile(photo, (1, 3, 1))
    detector = ortcam.ScoreCAM(model)
    assert all(one.place["box"][0] < 480 and one.place["box"][2] > 240 for one in detector.predict(wide, 99))  # type: ignore[index]
    with pytest.raises(TargetError, match="lies in a part that preprocessing cuts off"):
        detector.explain(wide, targets=Box((0, 0, 200, 200), "cat"))


def test_a_photo_without_detections(photo: Array) -> None:
    """The best boxes below the threshold are listed, and a batch goes on with the next photo."""
    model = toy("detect")
    (weights,) = (one for one in model.graph.initializer if one.name == "to_scores")
    quiet = numpy_helper.to_array(weights) * 0
    weights.CopyFrom(numpy_helper.from_array(quiet - 0.9, "to_scores"))
    detector = ortcam.ScoreCAM(model)
    bright = np.full_like(photo, 255)
    with pytest.raises(TargetError, match=r"no detection scores 0.25 or more; the best are cat \(0\.\d\d\) at"):
        detector.explain(bright)
    failed: list[Any] = []
    assert list(detector.explain_batch([bright, bright], on_error=lambda image, error: failed.append(error))) == []
    assert len(failed) == 2


def test_a_region_is_recorded_and_outlined(photo: Array) -> None:
    """The cells that the score is taken over stand in the record, and their outline is drawn."""
    mask = np.zeros((240, 240), bool)
    mask[40:160, 80:200] = True  # cells of 40 x 40 pixels: rows 1 to 3, columns 2 to 4
    explanation = ortcam.ScoreCAM(toy("segment")).explain(photo, targets=Region("dog", mask=mask))
    region = explanation.targets[0].place["region"]
    expected = np.zeros((CELLS, CELLS), bool)
    expected[1:4, 2:5] = True
    assert (of_runs(region["runs"], region["grid"]) == expected).all()
    assert as_runs(~expected)[:2] == [0, 8] and (of_runs(as_runs(~expected), (CELLS, CELLS)) == ~expected).all()
    plain = draw_overlay(photo, explanation.maps[0], explanation.crop)
    changed = (explanation.overlay() != plain).any(axis=2)
    assert changed[60:140, 76:84].any(axis=1).all() and changed[60:140, 196:204].any(axis=1).all()  # both sides
    assert not changed[70:130, 100:180].any() and not changed[170:].any() and not changed[:, 210:].any()
    again = json.loads(json.dumps(explanation.to_dict()))
    assert find_violation(again, schema()) is None


def test_nan_scores_are_refused(photo: Array) -> None:
    model = toy("value")
    (weights,) = (one for one in model.graph.initializer if one.name == "to_vector")
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * np.float32("nan"), "to_vector"))
    with pytest.raises(ModelError, match="NaN or infinite"):
        ortcam.ScoreCAM(model).explain(photo, targets=0)


@pytest.fixture
def invoke(photo: Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that runs `ortcam explain` with a toy model on the photo."""
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("photo.png", cv2.cvtColor(photo, cv2.COLOR_RGB2BGR))
    for task in ("detect", "segment", "embed", "value"):
        onnx.save(toy(task), f"{task}.onnx")

    def run(task: str, *options: str) -> Any:
        return CliRunner().invoke(app, ["explain", f"{task}.onnx", "photo.png", *options, "--json"])

    return run


COMMANDS = {
    "detect": (["--box", "1"], "box"),
    "segment": (["--at", "140,100"], "region"),
    "embed": (["--like", "photo.png"], "similarity"),
    "value": (["--target", "2", "--sign", "-1"], "value"),
}


@pytest.mark.parametrize("task", COMMANDS)
def test_the_command_line_explains_and_reproduces(invoke: Callable[..., Any], task: str) -> None:
    options, kind = COMMANDS[task]
    result = invoke(task, *options)
    assert result.exit_code == 0, result.output
    record = json.loads((Path("explanations") / "photo" / "explanation.json").read_text())
    assert find_violation(record, schema()) is None
    (target,) = record["targets"]
    assert target["place"]["kind"] == kind
    assert (record["model"]["output"], record["model"]["activation"]) == (task, None)
    assert (Path("explanations") / "photo" / target["overlay"]).is_file()
    assert ortcam.reproduce("explanations/photo").agrees
    again = invoke(task, *options)
    assert again.exit_code == 0, "the same explanation is replaced"
    others = {"detect": ["--box", "2"], "segment": ["--at", "10,230"], "embed": ["--like", "other.png"]}
    cv2.imwrite("other.png", cv2.imread("photo.png")[::-1])
    other = invoke(task, *others.get(task, ["--target", "1"]))
    assert other.exit_code == 0, other.output
    assert len(list(Path("explanations").iterdir())) == 2, "an explanation of another target is kept"
    if task == "embed":
        cv2.imwrite("photo.png", cv2.imread("photo.png") // 2)
        with pytest.raises(TargetError, match=r"the reference .*photo.png has another embedding than in the record"):
            ortcam.reproduce("explanations/photo", photo="other.png")


def test_the_command_line_lists(invoke: Callable[..., Any]) -> None:
    result = invoke("detect", "--list")
    assert result.exit_code == 0, result.output
    (listed,) = json.loads(result.stdout)["listed"]
    scores = [one["probability"] for one in listed["targets"]]
    assert len(scores) > 2 and scores == sorted(scores, reverse=True)
    assert not Path("explanations").exists()
    assert len(json.loads(invoke("value", "--list").stdout)["listed"][0]["targets"]) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--box", "1", "--at", "3,4"], "targets of different kinds"),
        (["--box", "1,2,3"], "--box is '1,2,3'; expected"),
        (["--box", "1", "--target", "cat"], "takes no --target"),
        (["--at", "x"], "--at is 'x'; expected x,y"),
    ],
)
def test_options_that_are_refused(invoke: Callable[..., Any], options: list[str], message: str) -> None:
    result = invoke("detect", *options)
    assert result.exit_code != 0
    assert isinstance(result.exception, OptionError)
    assert message in str(result.exception)


def test_the_contract_of_a_task_is_read_back() -> None:
    contract = ortcam.CamModel(toy("detect")).contract
    assert (contract.task, contract.outputs) == ("detect", {"boxes": "boxes", "scores": "scores"})
    metadata = replace(contract, task="count").to_metadata()  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="made for the task 'count'; this ortcam supports only"):
        Contract.from_metadata(metadata, "model.onnx")
