"""Model files as people have them: of an older format, frozen TensorFlow graphs, files that are no sources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tensorflow as tf
from google.protobuf import text_format
from typer.testing import CliRunner

import ortcam
from ortcam import CamModel
from ortcam.cli.app import app
from ortcam.errors import ExportError, LayerError, ModelError, OptionError
from ortcam.exporters import export
from ortcam.exporters.verify import Agreement, _refuse_disagreement
from ortcam.model.contract import ExposedLayer

v1 = tf.compat.v1

DATA = Path(__file__).parent / "data"


def test_a_file_of_format_1(tmp_path: Path) -> None:
    """data/format1.onnx was written by ortcam 0.1.0 of November 2026, the last that wrote format 1:

        labels = [f"label {i}" for i in range(10)]
        export(conftest.Tiny().eval(), "format1.onnx", input_size=32, preprocess="imagenet", labels=labels)

    data/format1.npz has `raw_maps` and `target` of its exact official explanation of `photo`, made then on a CPU. This
    ortcam makes the same map to the bit there; another processor's float32 sums differ by about 1e-6.
    """
    kept, path = np.load(DATA / "format1.npz"), DATA / "format1.onnx"
    entries = {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}
    assert (entries["ortcam.format"], entries["ortcam.layer"]) == (1, "features")
    photo = np.random.default_rng(18).integers(0, 256, (48, 40, 3), np.uint8)
    cam = ortcam.ScoreCAM(path, provider="cpu")
    found = cam.explain(photo)
    assert (found.targets[0].index, found.targets[0].label, found.layer) == (int(kept["target"]), "label 0", "features")
    np.testing.assert_allclose(found.raw_maps, kept["raw_maps"], rtol=0, atol=1e-5)
    contract = cam.model.contract
    assert contract.task == "classify"
    assert contract.layers == (
        ExposedLayer(
            "features", "relu_1", "NCHW", "activations",
            {"activations_relative_error": 2.84e-07, "places": "confirmed", "places_correlation": 0.844},
        ),
    )  # fmt: skip
    assert contract.verified == {"logits_relative_error": 7.81e-08, "same_top1": True, "batches": [1, 3]}
    shown = CliRunner().invoke(app, ["inspect", str(path)]).output
    assert "layer   features (relu_1 in the source graph)" in shown
    assert "checked scores within 7.81e-08, target layer within 2.84e-07" in shown
    ortcam.pack(path, tmp_path / "packed.onnx")
    packed = ortcam.PackedExplainer(tmp_path / "packed.onnx", provider="cpu")
    np.testing.assert_allclose(packed.explain(photo).maps, found.maps, rtol=0, atol=1e-4)  # as all packed files
    assert packed.contract.layer == "features"


def change(proto: onnx.ModelProto, **values: Any) -> onnx.ModelProto:
    """Write entries of the metadata anew; None takes one away."""
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    entries |= {f"ortcam.{key}": json.dumps(value) for key, value in values.items()}
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, {key: text for key, text in entries.items() if text != "null"})
    return proto


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": 3}, r"has format 3; this ortcam reads formats 1 and 2: export it again, or use a newer ortcam"),
        (
            {"task": "count"},
            r"for the task 'count'; this ortcam supports only 'classify', .*: use a newer ortcam",
        ),
        ({"task": "count", "layers": None, "output": "boxes"}, "for the task 'count'"),
        ({"layers": []}, "metadata that cannot be read: the outputs of the layers are"),
        ({"layers": [{"name": "a"}]}, "metadata that cannot be read: .*'value'"),
        ({"layers": [{"name": "a", "value": "b", "layout": "CHWN"}]}, "the layout of layer 'a' is 'CHWN'"),
        ({"layers": [{"name": "a", "value": 1}]}, "the value of a layer is 1"),
        ({"layers": [{"name": "a", "value": "b", "output": "c"}]}, r"the outputs of the layers are \['c'\]"),
        ({"layers": None}, "metadata that cannot be read"),
        ({"outputs": ["logits"]}, "outputs is "),
        ({"outputs": {"scores": "boxes"}}, r"expected the input 'image' and the outputs \['boxes', 'activations'\]"),
    ],
)
def test_metadata_that_is_refused(values: dict[str, Any], message: str) -> None:
    proto = onnx.load(DATA / "format1.onnx")
    contract = CamModel(proto).contract
    written = {key: json.loads(text) for key, text in contract.to_metadata().items()}
    proto = change(proto, **{key.removeprefix("ortcam."): value for key, value in written.items()})
    assert CamModel(proto).contract == contract, "as format 2 it says the same"
    with pytest.raises(ModelError, match=message) as caught:
        CamModel(change(proto, **values))
    assert "\n" not in str(caught.value)


def test_what_a_newer_file_states_besides_is_no_obstacle() -> None:
    """Fields may be added within a format."""
    proto = onnx.load(DATA / "format1.onnx")
    layer = {"name": "features", "value": "relu_1", "layout": "NCHW", "output": "activations", "colour": "blue"}
    proto = change(proto, format=2, layers=[layer], outputs={"scores": "logits", "boxes": "b"}, other=1)
    assert CamModel(proto).contract.layers == (ExposedLayer("features", "relu_1"),)


def frozen_graph(name: str = "final_result") -> tuple[Any, np.ndarray, np.ndarray]:
    """A graph as TensorFlow 1 programs froze it; with it, images and the scores that a session of it gave."""
    random = np.random.default_rng(0)
    with tf.Graph().as_default() as graph, v1.Session() as session:
        image = v1.placeholder(tf.float32, [None, 32, 32, 3], "input")
        kept = v1.placeholder_with_default(1.0, [], "keep_prob")
        v1.placeholder(tf.bool, [], "is_training")  # nothing reads it
        first = tf.constant(random.normal(size=(3, 3, 3, 8)), tf.float32)
        second = tf.constant(random.normal(size=(3, 3, 8, 6)), tf.float32)
        features = tf.nn.relu(tf.nn.conv2d(image, first, 2, "SAME"))
        features = tf.nn.relu(tf.nn.conv2d(features, second, 2, "VALID"), name="features")
        head = tf.constant(random.normal(size=(6, 5)), tf.float32)
        pooled = v1.nn.dropout(tf.reduce_mean(features, [1, 2]), keep_prob=kept)
        scores = tf.nn.softmax(tf.matmul(pooled, head, name="logits"), name=name)
        v1.summary.histogram("scores", scores)
        tf.argmax(tf.stop_gradient(scores), 1)
        images = random.random((2, 32, 32, 3), np.float32)
        return graph.as_graph_def(), images, session.run(scores, {image: images})


@pytest.mark.parametrize("suffix", [".pb", ".pbtxt"])
def test_a_frozen_graph(suffix: str, tmp_path: Path) -> None:
    graph_def, images, expected = frozen_graph()
    source = tmp_path / f"retrained_graph{suffix}"
    text = suffix == ".pbtxt"
    source.write_bytes(text_format.MessageToString(graph_def).encode() if text else graph_def.SerializeToString())
    report = export(source, tmp_path / "net.onnx", preprocess="raw")
    assert (report.layer, report.shape, report.contract.output) == ("features", (6, 7, 7), "probabilities")
    assert report.agreement.activations is not None
    assert report.agreement.activations < 1e-5
    (ours,) = ort.InferenceSession(report.path).run(["probabilities"], {"image": images})
    assert np.abs(ours - expected).max() < 1e-6  # float32


def test_outputs_and_layers_of_a_frozen_graph(tmp_path: Path) -> None:
    source = tmp_path / "frozen.pb"
    source.write_bytes(frozen_graph()[0].SerializeToString())
    report = export(source, tmp_path / "net.onnx", output_name="logits:0", layer=["Relu", "features"])
    assert (report.layer, report.shape, report.contract.output) == ("Relu", (8, 16, 16), "logits")
    assert [(layer.name, layer.shape) for layer in report.layers[1:]] == [("features", (6, 7, 7))]
    assert all(layer.error is not None and layer.error < 1e-5 for layer in report.layers)
    with pytest.raises(OptionError, match="no node 'logit'; nearest: logits"):
        export(source, tmp_path / "other.onnx", output_name="logit")
    with pytest.raises(LayerError, match=r"'feature' is not in .*; nearest: features"):
        export(source, tmp_path / "other.onnx", layer="feature")
    with pytest.raises(OptionError, match="has its own"):
        export(source, tmp_path / "other.onnx", weights="x.h5")


def unknown_shape(path: Path) -> None:
    graph_def = frozen_graph()[0]
    next(node for node in graph_def.node if node.name == "input").attr["shape"].shape.unknown_rank = True
    del next(node for node in graph_def.node if node.name == "input").attr["shape"].shape.dim[:]
    path.write_bytes(graph_def.SerializeToString())


def test_a_placeholder_without_a_shape(tmp_path: Path) -> None:
    unknown_shape(tmp_path / "frozen.pb")
    with pytest.raises(ExportError, match="takes float32 a tensor of any rank"):
        export(tmp_path / "frozen.pb", tmp_path / "net.onnx")
    assert export(tmp_path / "frozen.pb", tmp_path / "net.onnx", input_size=32).shape == (6, 7, 7)


def with_variables(path: Path) -> None:
    with tf.Graph().as_default() as graph:
        image = v1.placeholder(tf.float32, [None, 8, 8, 3])
        tf.matmul(tf.reduce_mean(image, [1, 2]), v1.get_variable("w", [3, 5]))
        path.write_bytes(graph.as_graph_def().SerializeToString())


def two_placeholders(path: Path) -> None:
    with tf.Graph().as_default() as graph:
        image, kept = v1.placeholder(tf.float32, [None, 8, 8, 3], "image"), v1.placeholder(tf.float32, [], "kept")
        tf.reduce_mean(image, [1, 2]) * kept
        path.write_bytes(graph.as_graph_def().SerializeToString())


def writes_a_file(path: Path) -> None:
    with tf.Graph().as_default() as graph:
        image = v1.placeholder(tf.float32, [None, 8, 8, 3], "image")
        with tf.control_dependencies([tf.io.write_file("written-by-a-graph", "x")]):
            tf.reduce_mean(image, [1, 2])
        path.write_bytes(graph.as_graph_def().SerializeToString())


def of_a_saved_model(path: Path) -> None:
    tf.saved_model.save(tf.Module(), path.parent / "saved")
    path.write_bytes((path.parent / "saved" / "saved_model.pb").read_bytes())


def onnx_inside(path: Path) -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    path.write_bytes(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [])).SerializeToString())


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (with_variables, r"a graph without its weights .*; expected a frozen graph; .*tf\.saved_model\.save"),
        (two_placeholders, r"has the placeholders \['image', 'kept'\]; expected one, the image"),
        (writes_a_file, r"\(WriteFile\) and is not loaded; use --allow-unsafe"),
        (of_a_saved_model, r"the graph of a SavedModel; name it saved_model\.pb"),
        (onnx_inside, r"is an ONNX file; name it bad\.onnx"),
        (
            lambda path: path.write_bytes(np.random.default_rng(0).bytes(999)),
            r"\(999 bytes\) is not a TensorFlow graph",
        ),
        (Path.touch, r"\(0 bytes\) is not a TensorFlow graph"),
        (lambda path: None, "no such file"),
    ],
)
def test_graphs_that_are_refused(write: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "bad.pb")
    with pytest.raises(ExportError, match=message) as caught:
        export(tmp_path / "bad.pb", tmp_path / "out" / "net.onnx")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "written-by-a-graph").exists()


ZIP, PICKLE, TFLITE, HDF5 = b"PK\3\4", b"\x80\2", b"    TFL3", b"\x89HDF\r\n\x1a\n"


@pytest.mark.parametrize(
    ("files", "source", "message"),
    [
        ({}, "m.safetensors", r"weights without the network; give .*FILE\.py:CALLABLE --weights .*m\.safetensors"),
        ({"last.ckpt": ZIP}, "last.ckpt", r"checkpoint of PyTorch, .*FILE\.py:CALLABLE --weights .*last\.ckpt"),
        ({"best.pth.tar": PICKLE}, "best.pth.tar", "checkpoint of PyTorch"),
        ({"model.ckpt": b""}, "model.ckpt", r"TensorFlow checkpoint, .*model\.save\('model\.keras'\)"),
        ({}, "model.ckpt-100.data-00000-of-00001", "TensorFlow checkpoint"),
        ({}, "model.ckpt.index", "TensorFlow checkpoint"),
        (
            {"t/model.json": {"format": "layers-model"}},
            "t/model.json",
            "tensorflowjs_converter --input_format tfjs_layers",
        ),
        ({"t/model.json": {"format": "layers-model"}}, "t", "tensorflowjs_converter --input_format tfjs_layers"),
        (
            {"g.json": {"format": "graph-model", "modelTopology": {}}},
            "g.json",
            "graph, which .* not convert back; give",
        ),
        ({"k.json": {"class_name": "Sequential"}}, "k.json", r"without its weights; .*keras\.models\.model_from_json"),
        ({"c.json": {"a": 1}}, "c.json", "unknown kind"),
        ({}, "m.mlmodel", "a Core ML model; give the PyTorch, Keras or ONNX model"),
        ({"m.mlpackage/Manifest.json": {}}, "m.mlpackage", "a Core ML model"),
        ({}, "deploy.prototxt", "Caffe model; convert it to ONNX"),
        ({}, "yolo.weights", "Darknet model; convert it to ONNX"),
        ({}, "inference.PDMODEL", r"paddle2onnx --model_dir .* --model_filename inference\.pdmodel"),
        ({"p/a.pdmodel": b""}, "p", "paddle2onnx --model_dir .*/p "),
        ({}, "m.engine", "a TensorRT engine, built for one GPU; give the ONNX file"),
        ({}, "m.xml", "OpenVINO model; give"),
        ({"m.xml": b"", "m.bin": b""}, "m.bin", "OpenVINO model; give"),
        ({"m.bin": ZIP}, "m.bin", "checkpoint of PyTorch"),
        ({"h/config.json": {}, "h/model.safetensors": b""}, "h", r"Hugging Face .*from_pretrained\('.*/h'\)\.eval\(\)"),
        ({"s/1/saved_model.pb": b""}, "s", "a folder around a SavedModel; give .*/s/1"),
        ({"f/a.onnx": b""}, "f", "give one of them: .*a.onnx"),
        ({}, "keras_model.zip", "an archive; unpack it"),
        ({}, "m.onnx.data", "weights of an ONNX file; give the .onnx file"),
        ({}, "build.py", r"name the function that builds the network too: .*build\.py:CALLABLE"),
        ({"model": TFLITE}, "model", r"a TFLite model, under another name; name it .*model\.tflite"),
        ({"m.model": HDF5}, "m.model", r"HDF5, .* name it .*m\.h5"),
        ({"m.onnx": b"version https://git-lfs.github.com/spec/v1\n"}, "m.onnx", "pointer of Git LFS, .* git lfs pull"),
    ],
)
def test_well_known_files(files: dict[str, Any], source: str, message: str, tmp_path: Path) -> None:
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(ExportError, match=message) as caught:
        export(tmp_path / source, tmp_path / "net.onnx")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("same", "message"),
    [
        (True, r"differ by 0\.9 of the largest \(at most 0\.25 allowed\)$"),
        (False, r"allowed\); the top class differs by more than that$"),
    ],
)
def test_a_disagreement_says_nothing_good_beside_a_failure(same: bool, message: str) -> None:
    """A top class that is the same up to the error is no agreement where the error is too large."""
    with pytest.raises(ExportError, match=message):
        _refuse_disagreement(Agreement(0.9, (), same, (1, 3)), 0.25, 0.5)
