"""TFLite files, float and quantized: what is exported agrees with the LiteRT interpreter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tensorflow as tf
from conftest import assert_same_map, package_folder

import ortcam
from ortcam.core.pictures import Photo
from ortcam.errors import ExportError, LayerError, OptionError
from ortcam.exporters import export
from ortcam.exporters.tensorflow import BuiltinOperator, Model, TensorType
from ortcam.model.image import read_photo

EMOTIONS = ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]  # FER._get_labels
NUMBERS = {"int8": tf.int8, "uint8": tf.uint8}


@pytest.fixture(scope="module")
def fer_tflite() -> Path:
    """fer's own file: int8 weights, float activations."""
    return package_folder("fer") / "data" / "emotion_model_quantized.tflite"


@pytest.fixture(scope="module")
def fer_model() -> keras.Model:
    return keras.saving.load_model(package_folder("fer") / "data" / "emotion_model.hdf5", compile=False)


@pytest.fixture(scope="module")
def faces() -> dict[str, Photo]:
    hopper = read_photo(package_folder("matplotlib") / "mpl-data" / "sample_data" / "grace_hopper.jpg")
    astronaut = read_photo(package_folder("skimage") / "data" / "astronaut.png")
    return {"hopper": hopper[60:360, 120:420], "astronaut": astronaut[0:220, 120:340]}


@pytest.fixture(scope="module")
def grey_photos(photos: dict[str, Path], faces: dict[str, Photo]) -> np.ndarray:
    """float32 [22,64,64,1], as fer's network takes them: what a quantiser sees to choose its ranges."""
    pictures = [read_photo(path) for name, path in photos.items() if name.startswith("imagenet")] + [*faces.values()]
    grey = [cv2.resize(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), (64, 64)) for picture in pictures]
    return np.stack(grey).astype(np.float32)[..., None] / 127.5 - 1


@pytest.fixture(scope="module")
def make_tflite(fer_model: keras.Model, grey_photos: np.ndarray, models: Path) -> Callable[[str], Path]:
    """Return what writes fer's network as TFLite: ``float``, or with all numbers ``int8`` or ``uint8``."""

    def make(kind: str) -> Path:
        path = models / f"fer-{kind}.tflite"
        if not path.exists():
            function = tf.function(lambda image: fer_model(image, training=False))
            concrete = function.get_concrete_function(tf.TensorSpec([1, 64, 64, 1], tf.float32))
            converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
            if kind in NUMBERS:
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
                converter.representative_dataset = lambda: ([photo[None]] for photo in grey_photos)
                converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
                converter.inference_input_type = converter.inference_output_type = NUMBERS[kind]
            path.write_bytes(converter.convert())
        return path

    return make


def predict(path: Path, image: np.ndarray) -> np.ndarray:
    """Run LiteRT with its default kernels, as a device would, on one float image; return float scores [N]."""
    litert = tf.lite.Interpreter(model_path=str(path))
    litert.allocate_tensors()
    (entry,), (result,) = litert.get_input_details(), litert.get_output_details()
    if entry["dtype"] != np.float32:
        scale, zero = entry["quantization"]
        limits = np.iinfo(entry["dtype"])
        image = np.clip(np.rint(image / scale) + zero, limits.min, limits.max).astype(entry["dtype"])
    litert.set_tensor(entry["index"], image)
    litert.invoke()
    scores = litert.get_tensor(result["index"])[0].astype(np.float32)
    scale, zero = result["quantization"]
    return scores if scale == 0 else (scores - zero) * scale


@pytest.mark.parametrize("name", ["hopper", "astronaut"])
def test_fer_reads_a_face(fer_tflite: Path, faces: dict[str, Photo], tmp_path: Path, name: str, in_table: Any) -> None:
    report = export(fer_tflite, tmp_path / "fer.onnx", preprocess="tf", labels=EMOTIONS)
    assert (report.layer, report.shape) == ("model_1_1/add_4_1/Add", (128, 4, 4))
    assert report.contract.source["kind"] == "tflite"
    assert report.contract.output == "probabilities"
    assert report.agreement.batches == (1, 3)
    assert any("batch of 1" in notice and "made free" in notice for notice in report.notices)
    cam = ortcam.ScoreCAM(report.path)
    explanation = cam.explain(faces[name])
    _, tensor, _ = cam.model.prepare(faces[name])
    expected = predict(fer_tflite, tensor)
    assert expected.argmax() == explanation.targets[0].index
    assert explanation.targets[0].label == {"hopper": "neutral", "astronaut": "fear"}[name]
    assert explanation.targets[0].probability == pytest.approx(expected.max(), abs=0.02)  # measured: 0.003
    assert explanation.maps.max() > 0
    assert explanation.maps.std() > 0.05
    if name == "hopper":
        in_table("7 emotions, grey faces (fer)", "TFLite, int8 weights (fer's own file)", report.path)


def test_float(
    make_tflite: Callable[[str], Path], faces: dict[str, Photo], fer_model: keras.Model, tmp_path: Path, in_table: Any
) -> None:
    report = export(make_tflite("float"), tmp_path / "fer.onnx", preprocess="tf", labels=EMOTIONS)
    assert report.agreement.logits < 1e-5
    assert report.agreement.activations is not None
    assert report.agreement.activations < 1e-5
    origin = export(fer_model, tmp_path / "keras.onnx", preprocess="tf").path
    ours, theirs = (ortcam.ScoreCAM(path).explain(faces["hopper"]) for path in (report.path, origin))
    assert_same_map(ours.maps[0], theirs.maps[0])
    in_table("7 emotions, grey faces (fer)", "TFLite, float32", report.path)


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_quantized_throughout(
    make_tflite: Callable[[str], Path],
    faces: dict[str, Photo],
    fer_model: keras.Model,
    kind: str,
    tmp_path: Path,
    in_table: Any,
) -> None:
    source = make_tflite(kind)
    report = export(source, tmp_path / "fer.onnx", preprocess="tf", labels=EMOTIONS)
    assert report.shape == (128, 4, 4)
    proto = onnx.load(report.path)
    assert {weight.data_type for weight in proto.graph.initializer} >= {onnx.TensorProto.INT8}
    assert sum(node.op_type == "QuantizeLinear" for node in proto.graph.node) > 20  # it stayed quantized
    cam = ortcam.ScoreCAM(report.path)
    origin = ortcam.ScoreCAM(export(fer_model, tmp_path / "keras.onnx", preprocess="tf").path)
    explanation = cam.explain(faces["hopper"])
    _, tensor, _ = cam.model.prepare(faces["hopper"])
    expected = predict(source, tensor)
    assert expected.argmax() == explanation.targets[0].index
    assert explanation.targets[0].label == "neutral"
    assert explanation.targets[0].probability == pytest.approx(expected.max(), abs=0.05)
    assert explanation.maps.std() > 0.05
    same = np.corrcoef(explanation.maps[0].ravel(), origin.explain(faces["hopper"]).maps[0].ravel())[0, 1]
    assert same > 0.9  # of the float model's map
    in_table("7 emotions, grey faces (fer)", f"TFLite, int8 throughout, {kind} in and out", report.path)


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_layers_by_their_names(make_tflite: Callable[[str], Path], kind: str, tmp_path: Path) -> None:
    """A fused operator's name stands for what it returns: behind its ReLU."""
    source = make_tflite(kind)
    report = export(source, tmp_path / "fer.onnx", layer=["model_1_1/activation_5_1/Relu", "model_1_1/add_3_1/Add"])
    assert [layer.shape for layer in report.layers] == [(64, 15, 15), (64, 8, 8)]
    assert report.layers[1].error is not None
    assert report.layers[1].error < {"float": 1e-5, "int8": 0.2}[kind]
    assert report.agreement.activations is not None
    assert report.agreement.activations < {"float": 1e-5, "int8": 0.2}[kind]
    x = np.random.default_rng(0).standard_normal((1, 64, 64, 1)).astype(np.float32)
    assert ort.InferenceSession(report.path).run(["activations"], {"image": x})[0].min() >= 0
    with pytest.raises(LayerError, match=r"'model_1_1/activation_9_1/Relu' is not in .*; nearest: "):
        export(source, tmp_path / "other.onnx", layer="model_1_1/activation_9_1/Relu")


def cut(path: Path, fer: bytes) -> None:
    path.write_bytes(fer[: len(fer) // 2])


def random_bytes(path: Path, fer: bytes) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def random_behind_the_head(path: Path, fer: bytes) -> None:
    path.write_bytes(fer[:8] + np.random.default_rng(0).bytes(5000))


def empty(path: Path, fer: bytes) -> None:
    path.touch()


def missing(path: Path, fer: bytes) -> None:
    pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (cut, "cannot be loaded by LiteRT or is cut short"),
        (random_bytes, "is not a TFLite model"),
        (random_behind_the_head, "cannot be loaded by LiteRT"),
        (empty, r"\(0 bytes\) is not a TFLite model"),
        (missing, "no such file"),
    ],
)
def test_bad_files_are_one_line(
    make: Callable[[Path, bytes], None], message: str, fer_tflite: Path, tmp_path: Path, capfd: Any
) -> None:
    source = tmp_path / "bad.tflite"
    make(source, fer_tflite.read_bytes())
    with pytest.raises(ExportError, match=message) as caught:
        export(source, tmp_path / "out" / "net.onnx")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out/*"))
    assert capfd.readouterr() == ("", "")


def test_weights_are_refused(fer_tflite: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="has its own"):
        export(fer_tflite, tmp_path / "net.onnx", weights="weights.h5")


def with_unsigned_weights(content: bytes) -> bytes:
    """Write the int8 weights of a dynamic-range file as older converters did: type uint8, zero point 0, same bytes."""
    changed = bytearray(content)
    model = Model.GetRootAsModel(content, 0)
    graph = model.Subgraphs(0)
    for operator in map(graph.Operators, range(graph.OperatorsLength())):
        code = model.OperatorCodes(operator.OpcodeIndex()).BuiltinCode()
        if code in (BuiltinOperator.CONV_2D, BuiltinOperator.FULLY_CONNECTED):
            weights = graph.Tensors(operator.Inputs(1))
            if weights.Type() == TensorType.INT8:
                assert not weights.Quantization().ZeroPointAsNumpy().any()
                changed[weights._tab.Pos + weights._tab.Offset(6)] = TensorType.UINT8
    assert changed != content
    return bytes(changed)


def test_signed_weights_that_are_called_unsigned(tmp_path: Path) -> None:
    """LiteRT reads them as int8, and so does the export: scores and layer are those of the file that says int8."""
    keras.utils.set_random_seed(0)
    inner = [keras.layers.Conv2D(64, 3, 2, activation="relu"), keras.layers.Conv2D(64, 3, activation="relu")]
    head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(64)]
    model = keras.Sequential([keras.Input((32, 32, 3), 1), *inner, *head])
    function = tf.function(lambda image: model(image, training=False))
    concrete = function.get_concrete_function(tf.TensorSpec([1, 32, 32, 3], tf.float32))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter._experimental_disable_per_channel = True  # older converters wrote one scale a tensor
    new, old = tmp_path / "new.tflite", tmp_path / "old.tflite"
    new.write_bytes(converter.convert())
    old.write_bytes(with_unsigned_weights(new.read_bytes()))
    image = np.random.default_rng(0).standard_normal((1, 32, 32, 3)).astype(np.float32)
    theirs = predict(old, image)
    assert np.abs(theirs - predict(new, image)).max() < 0.01 * np.abs(theirs).max()  # which kernels run differs
    reports = [export(source, source.with_suffix(".onnx")) for source in (old, new)]
    assert max(report.agreement.logits for report in reports) < 0.05  # hybrid kernels round images to 8 bits
    ours, signed = (ort.InferenceSession(report.path).run(None, {"image": image}) for report in reports)
    assert all(np.array_equal(our, their) for our, their in zip(ours, signed, strict=True))
    assert np.abs(ours[0] - theirs).max() < 0.05 * np.abs(theirs).max()
