"""Recognise well-known model files and folders that ortcam cannot export, and say what to do instead."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ortcam.errors import ExportError

_ORIGINAL = "give the PyTorch, Keras or ONNX model from which it was made"
_BUILD = "give the code that builds the network: FILE.py:CALLABLE --weights {path}"
_UNPACK = "unpack it, and give the model in it"
_PADDLE = (
    "convert it with paddle2onnx --model_dir {folder} --model_filename {name}.pdmodel "
    "--params_filename {name}.pdiparams --save_file model.onnx"
)
_CHECKPOINT = (
    "a TensorFlow checkpoint, which holds weights without the network",
    "load it where the code is, and save the model with model.save('model.keras') or tf.saved_model.save",
)
_PICKLE = (
    "a pickle, which can hold anything and is not loaded",
    "give the code that builds the network, FILE.py:CALLABLE, or save the model in its framework's own format",
)
_TENSORRT = ("a TensorRT engine, built for one GPU", "give the ONNX file from which it was built")
_OPENVINO = ("a part of an OpenVINO model", _ORIGINAL)
_DARKNET = ("a part of a Darknet model", "convert it to ONNX, and give the .onnx file")
_CAFFE = ("a part of a Caffe model", "convert it to ONNX, for example with caffe2onnx, and give the .onnx file")
_MXNET = ("a part of an MXNet model", "convert it with mxnet.onnx.export_model, and give the .onnx file")
_COMPILED = ("compiled for one kind of device", _ORIGINAL)
_ARCHIVE = ("an archive", _UNPACK)

# What a file of each kind is, and what to do.
_ADVICE: dict[str, tuple[str, str]] = {
    ".safetensors": ("a file of weights without the network", _BUILD),
    **dict.fromkeys((".index", ".meta"), _CHECKPOINT),
    **dict.fromkeys((".pkl", ".pickle", ".joblib", ".dill"), _PICKLE),
    **dict.fromkeys((".engine", ".plan", ".trt"), _TENSORRT),
    **dict.fromkeys((".mlmodel", ".mlpackage", ".mlmodelc"), ("a Core ML model", _ORIGINAL)),
    **dict.fromkeys((".caffemodel", ".prototxt"), _CAFFE),
    **dict.fromkeys((".weights", ".cfg"), _DARKNET),
    **dict.fromkeys((".pdmodel", ".pdiparams", ".pdparams"), ("a part of a PaddlePaddle model", _PADDLE)),
    ".xml": _OPENVINO,
    ".params": _MXNET,
    ".ort": ("a file of ONNX Runtime's own format, whose graph cannot be edited", "give the .onnx file"),
    ".data": ("the weights of an ONNX file", "give the .onnx file beside it"),
    **dict.fromkeys((".param", ".mnn", ".tmfile"), ("a model of another runtime", _ORIGINAL)),
    **dict.fromkeys((".blob", ".rknn", ".om", ".hef", ".dlc", ".kmodel", ".nb", ".bmodel", ".tpu"), _COMPILED),
    **dict.fromkeys((".pte", ".ptl"), ("a PyTorch program for mobile devices", _ORIGINAL)),
    **dict.fromkeys((".npz", ".npy", ".msgpack", ".mat", ".t7"), ("a file of arrays without the network", _BUILD)),
    **dict.fromkeys((".zip", ".gz", ".tgz", ".tar", ".bz2", ".xz", ".7z", ".rar", ".mar"), _ARCHIVE),
    ".task": ("a MediaPipe bundle, which is a zip", "unzip it, and give the .tflite file in it"),
    ".lite": ("a TFLite file by its name", "name it {stem}.tflite"),
    ".py": ("Python code", "name the function that builds the network too: {path}:CALLABLE"),
    ".ipynb": ("a notebook", "put the code that builds the network into a file, and give FILE.py:CALLABLE"),
    **dict.fromkeys((".gguf", ".ggml"), ("a language model", "ortcam explains models of one image")),
}
_CHECKPOINT_PART = re.compile(r".*\.ckpt-\d+(\..*)?|.*\.data-\d+-of-\d+|checkpoint")
_GIT_LFS = b"version https://git-lfs"
# The first bytes of files that are sources under another name, and the suffix that they should have.
_CONTENTS = ((0, b"\x89HDF\r\n\x1a\n", "HDF5, as Keras writes it", ".h5"), (4, b"TFL3", "a TFLite model", ".tflite"))


def refuse_other_file(path: Path, is_source: bool) -> None:
    """Refuse a file or folder of a well-known kind that ortcam cannot export; return None for any other.

    Args:
        path: the user's path, which need not exist.
        is_source: whether the file has the suffix of a source; then only its content is checked.

    Raises:
        ExportError: the file is of such a kind; the message says which, and what to do.
    """
    if _read_start(path).startswith(_GIT_LFS):
        raise ExportError(f"{path} is a pointer of Git LFS, not the file; run: git lfs pull")
    if is_source:
        return
    found = _find_folder(path) if path.is_dir() else _find_file(path)
    if found is not None:
        what, advice = found
        folder, name = (path, "NAME") if path.is_dir() else (path.parent, path.stem)
        advice = advice.format(path=path, stem=path.with_suffix(""), folder=folder, name=name)
        raise ExportError(f"cannot export {path}: it is {what}; {advice}")


def _find_file(path: Path) -> tuple[str, str] | None:
    if _CHECKPOINT_PART.fullmatch(path.name):
        return _CHECKPOINT
    start = _read_start(path)
    for place, magic, what, suffix in _CONTENTS:
        if start[place : place + len(magic)] == magic:
            return f"{what}, under another name", f"name it {path.with_suffix(suffix)}"
    suffix = path.suffix.lower()
    if suffix in (".ckpt", ".bin", ".tar") and start[:1] in (b"\x80", b"P"):  # a pickle, or a zip
        return "a checkpoint of PyTorch, which holds weights without the network", _BUILD
    if suffix == ".ckpt":
        return _CHECKPOINT
    if suffix == ".bin":
        return _find_weights(path)
    if suffix == ".json":
        return _find_json(path)
    return _ADVICE.get(suffix)


def _read_start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(32)
    except (OSError, ValueError):  # no such file, or no name of one
        return b""


def _find_weights(path: Path) -> tuple[str, str]:
    """Say what a .bin file is: several frameworks keep their weights in .bin files."""
    if path.with_suffix(".xml").is_file():
        return _OPENVINO
    if path.with_suffix(".param").is_file():
        return _ADVICE[".param"]
    return "a file of weights without the network", _BUILD


def _find_json(path: Path) -> tuple[str, str] | None:
    """Say what a .json file describes."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict):
        return None
    if content.get("format") == "layers-model" or "model_config" in str(content.get("modelTopology"))[:1000]:
        convert = "tensorflowjs_converter --input_format tfjs_layers_model --output_format keras {path} model.h5"
        return "a TensorFlow.js model", f"convert it with {convert}"
    if "modelTopology" in content or "weightsManifest" in content:
        return "a TensorFlow.js graph, which its tools do not convert back", _ORIGINAL
    if "class_name" in content:
        return (
            "the layers of a Keras model without its weights",
            "build it in FILE.py with keras.models.model_from_json",
        )
    if "base_code" in content and "program" in content:
        return "a PaddlePaddle program", _PADDLE.replace("{name}.pdmodel", "{name}.json")
    if "architectures" in content or "model_type" in content:
        return "the configuration of a Hugging Face model", _HUGGING_FACE
    if "nodes" in content and "arg_nodes" in content:
        return _MXNET
    return None


_HUGGING_FACE = (
    "give FILE.py:CALLABLE, whose function returns AutoModelForImageClassification.from_pretrained('{folder}').eval()"
)


def _find_folder(path: Path) -> tuple[str, str] | None:
    """Say what a folder is if it is not a SavedModel."""
    names = sorted(each.name for each in path.iterdir())
    if any(name in names for name in ("saved_model.pb", "saved_model.pbtxt")):
        return None
    if path.suffix.lower() in (".mlpackage", ".mlmodelc"):
        return _ADVICE[".mlmodel"]
    inner = [name for name in names if (path / name / "saved_model.pb").is_file()]
    if inner:
        return "a folder around a SavedModel", f"give {path / inner[-1]}"
    weights = {"model.safetensors", "pytorch_model.bin"} & set(names)
    if weights and "config.json" in names:
        return "the folder of a Hugging Face model", _HUGGING_FACE
    if "model.json" in names:
        return _find_json(path / "model.json")
    if any(name.endswith(".pdmodel") for name in names):
        return "the folder of a PaddlePaddle model", _PADDLE
    if "_CHECKPOINT_METADATA" in names or "_METADATA" in names or "checkpoint" in names:
        return "a folder of a checkpoint, which holds weights without the network", _CHECKPOINT[1]
    models = [name for name in names if Path(name).suffix in (".onnx", ".keras", ".h5", ".tflite", ".pt2", ".pb")]
    if models:
        return "a folder of files", f"give one of them: {', '.join(str(path / name) for name in models[:3])}"
    return None
