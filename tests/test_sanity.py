"""The sanity check: which weights become random, how similar maps are, and what a stranger gets."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import scipy.stats
import skimage.feature
import skimage.metrics
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from torch import nn

import ortcam
from ortcam.core.method import MapResult
from ortcam.errors import DatasetError, ModelError, OptionError, TargetError
from ortcam.evaluation.sanity import sanity
from ortcam.evaluation.similarity import compare, hog, spearman, ssim
from ortcam.exporters import export
from ortcam.graph.randomise import count_parameters, load_weights, randomise, weighted_layers

ORTCAM = Path(sys.executable).with_name("ortcam")


def tensors(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    """All stored values of a model by name."""
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant":
            found |= {node.output[0]: numpy_helper.to_array(one.t) for one in node.attribute if one.name == "value"}
    return found


def differing(one: onnx.ModelProto, other: onnx.ModelProto) -> set[str]:
    before, after = tensors(one), tensors(other)
    assert {name: (value.shape, value.dtype) for name, value in before.items()} == {
        name: (value.shape, value.dtype) for name, value in after.items()
    }
    return {name for name, value in before.items() if not np.array_equal(value, after[name])}


def copied(proto: onnx.ModelProto, *arguments: Any) -> onnx.ModelProto:
    other = onnx.ModelProto()
    other.CopyFrom(proto)
    randomise(other, *arguments)
    return other


# --- Layers ---


def test_layers_go_from_the_scores_down(resnet18_file: Path) -> None:
    """ResNet-18 has 20 convolutions and a classifier; only the classifier lies above the target layer."""
    proto = onnx.load(resnet18_file)
    layers = weighted_layers(proto)
    names = [layer.name for layer in layers]
    assert names[:3] == ["fc", "layer4.1.conv2", "layer4.1.conv1"]
    assert names[-1] == "conv1"
    assert len(names) == len(set(names)) == 21
    assert [layer.name for layer in layers if not layer.changes_activations] == ["fc"]
    assert dict(layers[0].weights) == {"fc.weight": 512 * 1000, "fc.bias": 1000}
    assert sum(size for layer in layers for size in layer.weights.values()) == count_parameters(proto)
    place = {name: at for at, name in enumerate(names)}
    makers = {name: node for node in proto.graph.node for name in node.output}
    for node in proto.graph.node:  # no layer comes before a layer that reads its result
        if node.op_type == "Conv" and (made := makers.get(node.input[0])) is not None and made.op_type == "Conv":
            assert place[node.input[1].removesuffix(".weight")] < place[made.input[1].removesuffix(".weight")]


def graph_of(nodes: Sequence[onnx.NodeProto], weights: dict[str, np.ndarray], shape: Sequence[int]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def test_a_shared_weight_is_one_tensor() -> None:
    """Two products read one weight, the second transposed: it is drawn once, in whatever layer it is asked for."""
    proto = graph_of(
        [
            helper.make_node("MatMul", ["image", "shared"], ["activations"]),
            helper.make_node("Transpose", ["shared"], ["turned"], perm=[1, 0]),
            helper.make_node("MatMul", ["activations", "turned"], ["scores"]),
        ],
        {"shared": values(4, 4)},
        [1, 4],
    )
    first, second = weighted_layers(proto)
    assert (first.name, second.name) == ("shared", "shared (2)")
    assert first.weights == second.weights == {"shared": 16}
    assert (first.changes_activations, second.changes_activations) == (False, True)
    once, twice = copied(proto, [*first.weights]), copied(proto, [*first.weights, *second.weights])
    assert once.SerializeToString() == twice.SerializeToString()


def test_bias_and_scale_belong_to_their_layer() -> None:
    """A channels-last file with its bias in an Add, a batch normalisation, and weights in a Constant node."""
    constant = helper.make_node("Constant", [], ["dense"], value=numpy_helper.from_array(values(8, 3), "dense"))
    proto = graph_of(
        [
            helper.make_node("Transpose", ["image"], ["first"], perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["first", "kernel"], ["c"]),
            helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "variance"], ["n"]),
            helper.make_node("Transpose", ["n"], ["activations"], perm=[0, 2, 3, 1]),
            helper.make_node("Add", ["activations", "places"], ["placed"]),
            constant,
            helper.make_node("MatMul", ["placed", "dense"], ["d"]),
            helper.make_node("Add", ["bias", "d"], ["b"]),
            helper.make_node("Mul", ["b", "two"], ["scores"]),
            helper.make_node("MatMul", ["activations", "unread"], ["nothing"]),
        ],
        {
            "kernel": values(8, 3, 3, 3),
            **{name: np.abs(values(8)) for name in ("gamma", "beta", "mean", "variance")},
            "places": values(6, 6, 8),
            "bias": values(3),
            "two": np.float32(2),
            "unread": values(8, 2),
        },
        [1, 8, 8, 3],
    )
    top, bottom = weighted_layers(proto)
    assert (top.name, top.op_type, dict(top.weights)) == ("dense", "MatMul", {"dense": 24, "bias": 3})
    assert dict(bottom.weights) == {"kernel": 216, "gamma": 8, "beta": 8}
    assert (top.changes_activations, bottom.changes_activations) == (False, True)
    assert differing(proto, copied(proto, [*top.weights])) == {"dense", "bias"}


@pytest.fixture(scope="module")
def quantized(models: Path) -> dict[str, Path]:
    """The small network of the tests, quantized by ONNX Runtime in three ways, and exported."""
    from conftest import Tiny

    folder = models / "quantized"
    folder.mkdir()
    source = onnx.load(export(Tiny().eval(), folder / "tiny.onnx", preprocess="imagenet", input_size=32).path)
    del source.metadata_props[:], source.graph.output[1:]
    onnx.save(source, folder / "plain.onnx")
    images = np.random.default_rng(0).standard_normal((4, 1, 3, 32, 32)).astype(np.float32)

    class Calibration(CalibrationDataReader):
        def __init__(self) -> None:
            self._images = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self._images, None)
            return None if image is None else {"image": image}

    plain = folder / "plain.onnx"
    quantize_static(plain, folder / "qdq.onnx", Calibration(), quant_format=QuantFormat.QDQ, per_channel=True)
    quantize_static(plain, folder / "qlinear.onnx", Calibration(), quant_format=QuantFormat.QOperator)
    quantize_dynamic(plain, folder / "dynamic.onnx")
    return {
        name: export(folder / f"{name}.onnx", folder / f"{name}.cam.onnx", preprocess="imagenet", input_size=32).path
        for name in ("qdq", "qlinear", "dynamic")
    }


@pytest.mark.parametrize("kind", ["qdq", "qlinear", "dynamic"])
def test_integers_are_permuted(kind: str, quantized: dict[str, Path]) -> None:
    """Scales and zero points stay; every integer stays in its tensor, whichever draw is asked for."""
    proto = onnx.load(quantized[kind])
    layers = weighted_layers(proto)
    assert [layer.name.split(".weight")[0] for layer in layers] == ["fc", "features.2", "features.0"]
    assert [layer.changes_activations for layer in layers] == [False, True, True]
    assert all(len(layer.weights) == 2 for layer in layers), "weight and bias"
    weights = [name for layer in layers for name in layer.weights]
    random = copied(proto, weights, "gaussian", 3)
    assert differing(proto, random) == set(weights)
    before, after = tensors(proto), tensors(random)
    integers = [name for name in weights if before[name].dtype.kind in "iu"]
    assert len(integers) == (3 if kind == "dynamic" else 6)
    for name in integers:
        assert np.array_equal(np.sort(before[name], None), np.sort(after[name], None))


# --- Draws ---


def test_a_draw_changes_the_layers_meant_and_keeps_their_moments(resnet18_file: Path) -> None:
    proto = onnx.load(resnet18_file)
    layers = weighted_layers(proto)
    chosen = [name for layer in layers[:2] for name in layer.weights]
    random = copied(proto, chosen)
    assert differing(proto, random) == set(chosen)
    before, after = tensors(proto), tensors(random)
    for name in chosen:  # five standard errors of the mean and of the deviation
        size, deviation = before[name].size, before[name].std()
        assert abs(after[name].mean() - before[name].mean()) < 5 * deviation / np.sqrt(size)
        assert abs(after[name].std() / deviation - 1) < 5 / np.sqrt(2 * size)
        assert abs(np.corrcoef(before[name].ravel(), after[name].ravel())[0, 1]) < 5 / np.sqrt(size)


def test_a_permutation_keeps_the_values(resnet18_file: Path) -> None:
    proto = onnx.load(resnet18_file)
    random = copied(proto, ["fc.weight"], "permutation")
    assert differing(proto, random) == {"fc.weight"}
    before, after = (tensors(one)["fc.weight"] for one in (proto, random))
    assert np.array_equal(np.sort(before, None), np.sort(after, None))


def test_a_seed_gives_the_same_bytes_in_any_order(resnet18_file: Path) -> None:
    proto = onnx.load(resnet18_file)
    names = ["fc.weight", "conv1.weight", "fc.bias"]
    first = copied(proto, names, "gaussian", 1)
    assert copied(proto, names[::-1], "gaussian", 1).SerializeToString() == first.SerializeToString()
    assert differing(first, copied(proto, names, "gaussian", 2)) == set(names)
    alone = copied(proto, ["fc.bias"], "gaussian", 1)
    assert np.array_equal(tensors(alone)["fc.bias"], tensors(first)["fc.bias"])


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_other_floats_keep_their_type(kind: int) -> None:
    proto = graph_of([helper.make_node("MatMul", ["image", "w"], ["scores"])], {}, [1, 40])
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    proto.graph.initializer.append(numpy_helper.from_array(values(40, 50).astype(dtype), "w"))
    random = copied(proto, ["w"])
    assert random.graph.initializer[0].data_type == kind
    before, after = (tensors(one)["w"].astype(np.float64) for one in (proto, random))
    assert abs(after.std() / before.std() - 1) < 5 / np.sqrt(2 * before.size)
    assert not np.array_equal(before, after)


def test_external_weights_are_read(tmp_path: Path) -> None:
    proto = graph_of([helper.make_node("MatMul", ["image", "w"], ["scores"])], {"w": values(40, 50)}, [1, 40])
    inside = copied(proto, ["w"])  # before `save` moves the values out
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    outside = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    with pytest.raises(ModelError, match="'w' lie in another file"):
        randomise(outside, ["w"])
    load_weights(outside, tmp_path)
    randomise(outside, ["w"])
    assert np.array_equal(tensors(outside)["w"], tensors(inside)["w"])
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelError, match="external weights"):
        load_weights(onnx.load(tmp_path / "m.onnx", load_external_data=False), tmp_path)


def test_bad_draws_are_one_line() -> None:
    proto = graph_of([helper.make_node("MatMul", ["image", "w"], ["scores"])], {"w": values(4, 5)}, [1, 4])
    with pytest.raises(OptionError, match="draw is 'uniform'; expected gaussian or permutation"):
        randomise(proto, ["w"], "uniform")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="seed is -1; expected a whole number from 0"):
        randomise(proto, ["w"], "gaussian", -1)
    with pytest.raises(ModelError, match="no weights 'v'"):
        randomise(proto, ["v"])


# --- Similarity ---


def two_maps(size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Two smooth maps with ties and negative values, as raw maps of 7 x 7 have."""
    raw = np.random.default_rng(5).standard_normal((2, 7, 7)).astype(np.float32)
    raw[:, :2] = 0
    big = np.kron(raw, np.ones((size // 7 + 1, size // 7 + 1), np.float32))[:, :size, :size]
    return big[0] + np.linspace(0, 1, size, dtype=np.float32), big[1]


def test_similarities_are_those_of_scipy_and_skimage() -> None:
    """The same calls, on maps scaled by hand: equal to rounding of float64."""
    one, other = two_maps()
    assert spearman(one, other) == pytest.approx(scipy.stats.spearmanr(one, other, axis=None).statistic, abs=1e-12)
    absolute = scipy.stats.spearmanr(np.abs(one), np.abs(other), axis=None).statistic
    assert spearman(one, other, absolute=True) == pytest.approx(absolute, abs=1e-12)
    assert abs(absolute - spearman(one, other)) > 0.01, "the two would prove nothing"
    scaled = [(values - values.min()) / (values.max() - values.min()) for values in (one, other)]
    expected = skimage.metrics.structural_similarity(
        *scaled, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(one, other) == pytest.approx(expected, abs=1e-6)
    features = [skimage.feature.hog(values, pixels_per_cell=(16, 16)) for values in scaled]
    assert hog(one, other) == pytest.approx(scipy.stats.pearsonr(*features).statistic, abs=1e-6)


def test_similarity_of_a_map_to_itself_and_its_negative() -> None:
    one, _ = two_maps()
    same = compare(one, 3 * one + 1)
    assert same is not None
    assert (same.spearman, same.ssim, same.hog) == pytest.approx((1, 1, 1), abs=1e-5)
    assert spearman(one, -one) == pytest.approx(-1)


def test_no_similarity_is_none_and_never_nan() -> None:
    one, other = two_maps()
    flat = np.full_like(one, 0.3)
    assert compare(one, flat) is compare(flat, one) is compare(flat, flat) is None
    assert (spearman(one, flat), ssim(one, flat), hog(flat, one)) == (None, None, None)
    small = compare(one[::8, ::8], other[::8, ::8])  # 8 x 8: less than the window of SSIM
    assert small is not None
    assert small.ssim is None
    assert small.hog is not None
    smaller = compare(one[::13, ::13], other[::13, ::13])  # 5 x 5: less than 3 x 3 cells of HOG
    assert smaller is not None
    assert smaller.hog is None
    with pytest.raises(OptionError, match=r"shapes \[64, 64\] and \[64, 60\]"):
        spearman(one, other[:, :60])
