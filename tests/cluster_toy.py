"""A small classifier and photos for the tests of ortcam.cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ortcam.model.contract import Contract, ExposedLayer
from ortcam.model.preprocessing import Preprocessing

SIDE, CELLS, CHANNELS = 24, 6, 16
LABELS = ("cat, tabby", "dog", "tree", "car")


def write_model(path: Path, labels: tuple[str, ...] | None = LABELS, seed: int = 3) -> Path:
    """Write a convolution, a ReLU, a mean and a product, and return the path."""
    random = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray[Any, Any]:
        return random.standard_normal(shape).astype(np.float32)

    weights = {
        "kernel": draw(CHANNELS, 3, 4, 4) / 8, "bias": draw(CHANNELS) / 3, "head": 4 * draw(CHANNELS, 4),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["image", "kernel", "bias"], ["conv"], strides=[4, 4]),
        helper.make_node("Relu", ["conv"], ["activations"]),
        helper.make_node("GlobalAveragePool", ["activations"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4]),
            helper.make_tensor_value_info("activations", TensorProto.FLOAT, ["batch", CHANNELS, CELLS, CELLS]),
        ],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    preprocessing = Preprocessing(SIDE, SIDE, scale=1 / 255, resize=28)
    contract = Contract(
        (ExposedLayer("relu", "relu"),), preprocessing=preprocessing, labels=labels, activation="softmax"
    )
    helper.set_model_props(model, contract.to_metadata())
    onnx.save(model, path)
    return path


def write_photos(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Write PNG files of soft noise, 60 x 40, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    random, paths = np.random.default_rng(seed), []
    for number in range(count):
        cells = random.integers(0, 256, (5, 8, 3)).astype(np.uint8)
        path = folder / f"photo-{number:04d}.png"
        cv2.imwrite(str(path), cv2.resize(cells, (60, 40), interpolation=cv2.INTER_CUBIC))
        paths.append(path)
    return paths
