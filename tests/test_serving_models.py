"""All kinds of models behind both doors: tasks, packed files and methods. The metadata of each says the truth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from serving import CLIENT, SECONDS, TASKS, Array, Server, rows_of, serving

import ortcam
from ortcam import Box, Output, Similarity
from ortcam.deploy.load import load_explainer
from ortcam.errors import OptionError
from ortcam.methods import make_method
from ortcam.model.pixels import read_image
from ortcam.serving.limits import ServingLimits
from ortcam.serving.protocol import InferRequest
from ortcam.serving.refusal import Refusal
from ortcam.serving.service import Service
from ortcam.serving.tensors import Tensor

pytestmark = pytest.mark.filterwarnings("ignore:the map of:ortcam.OrtcamWarning")  # some of the many maps are flat
DTYPES = {"FP32": np.float32, "INT64": np.int64, "BYTES": np.object_}


@pytest.fixture(scope="module")
def server(served: Path) -> Iterator[Server]:
    with serving("--watch", served) as server:
        yield server


def text(*values: bytes | str) -> Array:
    return np.array([one.encode() if isinstance(one, str) else one for one in values], dtype=object)


def answers(
    server: Server, model: str, inputs: dict[str, Array], outputs: tuple[str, ...] = (), **parameters: Any
) -> list[dict[str, Array]]:
    """Ask both doors with tritonclient, which must answer alike; return both answers."""
    found = []
    for client, url in ((tritonclient.http, server.host), (tritonclient.grpc, server.rpc)):
        given = []
        for name, values in inputs.items():
            kind = {"f": "FP32", "i": "INT64", "u": "UINT8", "O": "BYTES"}[values.dtype.kind]
            given.append(client.InferInput(name, list(values.shape), kind))
            given[-1].set_data_from_numpy(values)
        asked = [client.InferRequestedOutput(name) for name in outputs] or None
        with client.InferenceServerClient(url) as opened:
            answer = opened.infer(model, given, outputs=asked, parameters=parameters)
            said = answer.get_response(as_json=True) if client is tritonclient.grpc else answer.get_response()
        found.append({one["name"]: answer.as_numpy(one["name"]) for one in said["outputs"]})
    rest, rpc = found
    assert list(rest) == list(rpc)
    for name, values in rest.items():
        assert np.array_equal(values, rpc[name], equal_nan=values.dtype.kind == "f"), name
    return found


def metadata(server: Server, model: str) -> dict[str, dict[str, Any]]:
    said = CLIENT.get(f"{server.rest}/v2/models/{model}").raise_for_status().json()
    return {kind: {one["name"]: one for one in said[kind]} for kind in ("inputs", "outputs")}


def check_metadata(server: Server, model: str, inputs: dict[str, Array]) -> None:
    """Ask for all outputs that the metadata names: their datatypes and shapes must be those it says."""
    said = metadata(server, model)
    assert set(inputs) <= set(said["inputs"])
    found = answers(server, model, inputs, tuple(said["outputs"]))[0]
    assert list(found) == list(said["outputs"])
    for name, one in said["outputs"].items():
        assert found[name].dtype == DTYPES[one["datatype"]], name
        assert len(found[name].shape) == len(one["shape"]), name
        assert all(dim in (-1, real) for dim, real in zip(one["shape"], found[name].shape, strict=True)), name
    for name, values in inputs.items():
        shape = said["inputs"][name]["shape"]
        assert all(dim in (-1, real) for dim, real in zip(shape, values.shape, strict=True)), name


def same(found: dict[str, Array], expected: Any, size: str = "input") -> None:
    """The maps, targets, counts and errors of an explanation to the bit."""
    assert np.array_equal(found["saliency"], rows_of(expected, size))
    assert found["saliency"].std() > 0.01, "a map this flat would prove nothing"
    assert found["target_class"].tolist() == [one.index for one in expected.targets]
    assert found["label"].tolist() == [(one.label or "").encode() for one in expected.targets]
    assert found["scored"].tolist() == [expected.scored]
    errors = [[np.nan] * 3 if one is None else [one.expected, one.low, one.high] for one in expected.errors]
    assert np.array_equal(found["error"], np.array(errors, np.float32), equal_nan=True)
    probabilities = np.array([one.probability for one in expected.targets], np.float32)
    assert np.array_equal(found["probability"], probabilities, equal_nan=True)


def questions(task: str, like: bytes) -> list[tuple[dict[str, Array], dict[str, Any], Any]]:
    """Return inputs, parameters, and the targets of `explain` that they stand for."""
    vector = np.array([[1, -2, 3, 0.5, 1], [-1, 2, -3, -0.5, -1]], np.float32)
    box = np.array([[10, 5, 60, 40], [0, 0, 30, 30]], np.float32)
    boxes = [tuple(map(float, row)) for row in box]
    asked: dict[str, list[tuple[dict[str, Array], dict[str, Any], Any]]] = {
        "detect": [
            ({}, {}, None),
            ({"target": text("cat")}, {}, ["cat"]),
            ({"box": box, "target": text("dog", "tree")}, {}, [Box(boxes[0], "dog"), Box(boxes[1], "tree")]),
            ({"box": box, "target": np.array([1, 2])}, {}, [Box(boxes[0], 1), Box(boxes[1], 2)]),
        ],
        "segment": [({}, {}, None), ({"target": text("dog")}, {}, ["dog"]), ({"target": np.array([1])}, {}, [1])],
        "embed": [
            ({"like": text(like)}, {}, [Similarity(like)]),
            ({"like": vector}, {}, [Similarity(vector[0]), Similarity(vector[1])]),
        ],
        "value": [
            ({"target": np.array([2])}, {"sign": -1}, [Output(2, -1)]),
            ({"target": np.array([1, 4])}, {}, [Output(1), Output(4)]),
        ],
    }
    return asked[task]


@pytest.mark.parametrize("task", TASKS)
def test_tasks(task: str, served: Path, server: Server) -> None:
    """Boxes, regions, embeddings and values: the engine's maps; also several photos and the size of the photo."""
    data, like = (served / "cat.png").read_bytes(), (served / "mirrored.png").read_bytes()
    engine, packed = ortcam.ScoreCAM(served / f"{task}.onnx"), ortcam.PackedExplainer(served / f"{task}-packed.onnx")
    for inputs, parameters, targets in questions(task, like):
        asked = {"image": text(data), **inputs}
        for found in answers(server, task, asked, **parameters):
            same(found, engine.explain(data, targets))
        for found in answers(server, f"{task}-packed", asked, **parameters):
            same(found, packed.explain(data, targets), "photo")
        for found in answers(server, task, {"image": text(data, like), **inputs}, size="photo", **parameters):
            expected = [engine.explain(one, targets) for one in (data, like)]
            assert np.array_equal(found["saliency"], np.concatenate([rows_of(one, "photo") for one in expected]))
    inputs = next(inputs for inputs, parameters, _ in questions(task, like) if not parameters)
    for model in (task, f"{task}-packed"):
        check_metadata(server, model, {"image": text(data), **inputs})


@pytest.mark.parametrize("task", TASKS)
def test_predictions_of_tasks(task: str, served: Path, server: Server) -> None:
    """Scores of the targets that are named, and of the surest, without a map."""
    data, like = (served / "cat.png").read_bytes(), (served / "mirrored.png").read_bytes()
    engine = ortcam.ScoreCAM(served / f"{task}.onnx")
    outputs = ("target_class", "label", "probability")
    for inputs, parameters, targets in questions(task, like):
        expected = engine.explain(data, targets).targets
        found = answers(server, task, {"image": text(data), **inputs}, outputs, **parameters)[0]
        assert found["target_class"].tolist() == [one.index for one in expected]
        assert found["label"].tolist() == [(one.label or "").encode() for one in expected]
        scores = np.array([one.probability for one in expected], np.float32)
        assert np.array_equal(found["probability"], scores, equal_nan=True)


def test_boxes_of_detectors(served: Path, server: Server) -> None:
    """In pixels of the photo; of the surest detections too."""
    data = (served / "cat.png").read_bytes()
    expected = ortcam.ScoreCAM(served / "detect.onnx").explain(data, top_k=2)
    outputs = ("target_box", "saliency")
    for found in answers(server, "detect", {"image": text(data)}, outputs, top_k=2):
        boxes = [(one.place or {})["box"] for one in expected.targets]
        assert np.array_equal(found["target_box"], np.array(boxes, np.float32))
        assert np.array_equal(found["saliency"], rows_of(expected))


def test_packed_files(served: Path, server: Server) -> None:
    """A file that takes photos answers at their size, one that takes tensors at the model's or the photo's."""
    data = (served / "cat.png").read_bytes()
    photos, tensors = (ortcam.PackedExplainer(served / f"{name}.onnx") for name in ("packed", "tensors"))
    target = {"target": text("class 2", "class 5")}
    for found in answers(server, "packed", {"image": text(data), **target}):
        same(found, photos.explain(data, ["class 2", "class 5"]), "photo")
    for size in ("input", "photo"):
        for found in answers(server, "tensors", {"image": text(data), **target}, size=size):
            same(found, tensors.explain(data, ["class 2", "class 5"]), size)
    tensor = ortcam.ScoreCAM(served / "tiny.onnx").model.prepare(data)[1]
    for found in answers(server, "tensors", {"image": tensor, **target}):
        same(found, tensors.explain(tensor, ["class 2", "class 5"]))
    for model in ("packed", "tensors", "tiny"):
        check_metadata(server, model, {"image": text(data), **target})
    check_metadata(server, "bare", {"image": tensor, "target": np.array([1])})
    for model, parameters, said in (
        ("packed", {"size": "input"}, "maps of size photo"), ("packed", {"budget": 4}, "budget"),
        ("tensors", {"tolerance": 0.1}, "tolerance"),
    ):  # fmt: skip
        with pytest.raises(tritonclient.http.InferenceServerException, match=said) as info:
            answers(server, model, {"image": text(data)}, **parameters)
        assert info.value.status() == "400"


@pytest.mark.parametrize("method", ["cam", "fused", "rise"])
def test_methods(method: str, served: Path) -> None:
    """Their maps, without a network. A budget that a method lacks is refused, and is not a fault of the server."""

    def load(path: Path) -> Any:
        return load_explainer(path, make_method(method, {"masks": "64"} if method == "rise" else {}))

    data = (served / "cat.png").read_bytes()
    service = Service(load)
    try:
        service.load("tiny", served / "tiny.onnx")
        image = {"image": Tensor.of_bytes("image", [data]), "target": Tensor.of_bytes("target", [b"class 4"])}
        answer = service.ask("tiny", None, InferRequest(image)).answer.result(SECONDS)
        expected = load(served / "tiny.onnx").explain(data, "class 4")
        assert np.array_equal(answer.explained[0].input_maps, expected.input_maps)
        assert expected.input_maps.std() > 0.05, "a map this flat would prove nothing"
        assert answer.explained[0].scored == expected.scored
        few = service.ask("tiny", None, InferRequest(image, parameters={"budget": 4})).answer
        if method == "cam":  # of one pass
            with pytest.raises(OptionError, match="leave budget"):
                few.result(SECONDS)
        else:
            scored = load(served / "tiny.onnx").explain(data, "class 4", budget=4).scored
            assert few.result(SECONDS).explained[0].scored == scored < expected.scored
            limited = Service(load, ServingLimits(budget=4))
            limited.load("tiny", served / "tiny.onnx")
            assert limited.ask("tiny", None, InferRequest(image)).answer.result(SECONDS).explained[0].scored == scored
            limited.close()
    finally:
        service.close()


def test_the_sign_of_values_that_are_named(served: Path) -> None:
    """Digits in text are an index. A label or no target is refused: it would get the sign 1."""
    engine, data = ortcam.ScoreCAM(served / "value.onnx"), (served / "cat.png").read_bytes()
    service = Service(load_explainer)
    try:
        service.load("value", served / "value.onnx")
        image = {"image": Tensor.of_bytes("image", [data])}

        def ask(*targets: str, sign: int = -1) -> Any:
            given = {"target": Tensor.of_bytes("target", [one.encode() for one in targets])} if targets else {}
            asked = InferRequest(image | given, parameters={"sign": sign})
            return service.ask("value", None, asked).answer.result(SECONDS).explained[0]

        found = ask("2", "1")
        assert np.array_equal(found.input_maps, engine.explain(data, [Output(2, -1), Output(1, -1)]).input_maps)
        assert not np.array_equal(found.input_maps, ask("2", "1", sign=1).input_maps)
        for targets in (("a label",), ()):
            with pytest.raises(Refusal, match="give the indices of the values"):
                ask(*targets)
    finally:
        service.close()


def test_the_pixels_of_references(served: Path) -> None:
    """The pictures of a request count together, whether they are photos or references."""
    data = (served / "cat.png").read_bytes()
    height, width = read_image(data)[0].shape[:2]
    service = Service(load_explainer, ServingLimits(pixels=height * width))
    try:
        service.load("embed", served / "embed.onnx")
        for likes in (3, 4):
            inputs = {name: Tensor.of_bytes(name, [data] * count) for name, count in (("image", 1), ("like", likes))}
            answer = service.ask("embed", None, InferRequest(inputs)).answer
            if likes == 3:  # four pictures of the largest size
                assert len(answer.result(SECONDS).explained[0].targets) == 1  # of three that are the same
            else:
                with pytest.raises(Refusal, match="pixels together"):
                    answer.result(SECONDS)
    finally:
        service.close()


@pytest.mark.slow
def test_the_options_of_the_command_line(served: Path) -> None:
    """A method, its options and a budget for requests that name none."""
    data = (served / "cat.png").read_bytes()
    with serving(served / "tiny.onnx", "--method", "fused", "--method-option", "passes=0") as server:
        found = answers(server, "tiny", {"image": text(data)})[0]
        fused = load_explainer(served / "tiny.onnx", make_method("fused", {"passes": "0"}))
        same(found, fused.explain(data))
    with serving(served / "tiny.onnx", "--budget", "5") as server:
        found = answers(server, "tiny", {"image": text(data)})[0]
        same(found, ortcam.ScoreCAM(served / "tiny.onnx").explain(data, budget=5))
        assert found["scored"].tolist() == [5]
