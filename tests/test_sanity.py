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
from conftest import Tiny, sharpened
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static

import ortcam
from ortcam.core.method import MapResult
from ortcam.errors import DatasetError, ModelError, OptionError, TargetError
from ortcam.evaluation.randomised import _plan, sanity
from ortcam.evaluation.sanity_result import check_directory
from ortcam.evaluation.similarity import compare, hog, spearman, ssim
from ortcam.exporters import export
from ortcam.graph.randomise import WeightedLayer, count_parameters, load_weights, randomise, weighted_layers

ORTCAM = Path(sys.executable).with_name("ortcam")


def tensors(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    """All stored values of a model by name."""
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant":
            name = node.output[0]
            found.update((name, numpy_helper.to_array(one.t)) for one in node.attribute if one.name == "value")
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
def small(models: Path) -> Path:
    """Two convolutions, 16 x 8 x 8, and a classifier with scores that differ as a trained network's do."""
    return export(sharpened(Tiny(), 60.0), models / "small.onnx", preprocess="imagenet", input_size=32).path


@pytest.fixture(scope="module")
def quantized(small: Path, models: Path) -> dict[str, Path]:
    """The small network of the tests, quantized by ONNX Runtime in three ways, and exported."""
    folder = models / "quantized"
    folder.mkdir()
    source = onnx.load(small)
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


# --- The run ---


class Fixed:
    """A control that runs no input: the same map for every photo, or the sum of the layer's channels."""

    convention = ortcam.PRESETS["official"]
    scored = "logits"
    stages = 0
    change = ortcam.ReciproCAM().change

    def __init__(self, name: str) -> None:
        self.name = name

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}

    def check(self, limits: Any) -> None:
        pass

    def first_query(self, limits: Any, channels: int | None, batch_size: int) -> int:
        return batch_size

    def begin(self, forward: Any, targets: Any, limits: Any, predictors: Any) -> Any:
        height, width = forward.activations.shape[1:]
        rows, columns = np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1]
        made = {
            "centre": np.outer(rows, columns),
            "sum": forward.activations.sum(axis=0),
            "nothing": np.zeros((height, width)),
        }[self.name]
        result = MapResult(np.float32(made)[None], np.ones((1, 1), np.float32), (None,), None)
        return SimpleNamespace(most=0, next=lambda: None, finish=lambda: result)


@pytest.fixture(scope="module")
def pair(photos: dict[str, Path]) -> list[Path]:
    return [photos["chelsea"], photos["imagenet_00"]]


@pytest.fixture(scope="module")
def cascade(small: Path, pair: list[Path]) -> Any:
    return sanity(small, pair, steps=3)


def test_a_cascade_randomises_more_and_more(cascade: Any, small: Path) -> None:
    """The classifier is all that lies above the target layer."""
    assert [stage.count for stage in cascade.stages] == [1, 2, 3]
    assert [stage.changes_activations for stage in cascade.stages] == [False, True, True]
    assert [stage.layers for stage in cascade.stages] == [("fc",), ("features.2",), ("features.0",)]
    assert cascade.stages[-1].parameters == cascade.settings["parameters"]
    assert cascade.verdict.kind == "changes"
    assert {row.similarity.spearman for row in cascade.rows} & {1.0} == set(), "no map is compared with itself"
    for stage in cascade.stages:
        values = [row.similarity.spearman for row in cascade.rows if row.stage == stage.number]
        summary = stage.measures["spearman"]
        assert (summary.mean, summary.low, summary.high, summary.count) == (
            pytest.approx(np.mean(values)), min(values), max(values), 2,
        )  # fmt: skip


def test_layers_above_change_only_the_scores(cascade: Any) -> None:
    """The activations are the same bytes while only the classifier is random; Score-CAM's weights are not."""
    first, second, _ = cascade.stages
    assert first.control["spearman"].low == first.control["ssim"].low == 1
    assert first.measures["spearman"].high < 0.999
    assert second.control["spearman"].high < 1


def test_a_stage_is_the_map_of_the_randomised_file(cascade: Any, small: Path, pair: list[Path]) -> None:
    """The last stage, made by hand: the file's weights randomised, explained for the original class."""
    proto = onnx.load(small)
    randomise(proto, [name for layer in weighted_layers(proto) for name in layer.weights])
    with ortcam.ScoreCAM(small) as one, ortcam.ScoreCAM(proto) as other:
        original = one.explain(pair[0], budget=32)
        random = other.explain(pair[0], original.targets[0].index, budget=32)
    row = next(row for row in cascade.rows if row.stage == 3)
    assert (row.photo, row.explained) == ("chelsea.png", original.targets[0].index)
    assert row.probability == pytest.approx(random.targets[0].probability, rel=1e-4)
    found = ssim(original.input_maps[0], random.input_maps[0])
    assert row.similarity.ssim == pytest.approx(found, abs=1e-4)  # another batch size may round differently
    assert row.similarity.spearman == pytest.approx(spearman(original.input_maps[0], random.input_maps[0]), abs=1e-3)


def test_the_same_seed_gives_the_same_result(small: Path, pair: list[Path], cascade: Any) -> None:
    again = sanity(small, pair, steps=3)
    assert again.rows == cascade.rows
    other = sanity(small, pair[:1], steps=1, seed=1)
    assert other.rows[0].similarity != cascade.rows[-2].similarity


@pytest.mark.parametrize(
    ("name", "kind", "above"),
    [("centre", "unchanged", "DO NOT DEPEND"), ("sum", "changes", "DO NOT DEPEND"), ("nothing", "unknown", "no map")],
)
def test_a_map_that_ignores_weights_is_called_unchanged(
    name: str, kind: str, above: str, small: Path, pair: list[Path]
) -> None:
    """The centre depends on nothing; the sum of the channels on no layer above; an empty map says nothing."""
    result = sanity(small, pair, Fixed(name), steps=2)
    assert result.verdict.kind == kind
    assert ("DO NOT CHANGE" in result.verdict.text) == (kind == "unchanged")
    assert above in result.verdict.above
    if name == "nothing":
        assert [(stage.flat, stage.flat_original) for stage in result.stages] == [(0, 2), (0, 2)]
        assert all(stage.measures["ssim"] is None for stage in result.stages)
        assert {row.problem for row in result.rows} == {"flat map of the original model"}


def test_independent_randomises_one_layer_at_a_time(small: Path, pair: list[Path]) -> None:
    result = sanity(small, pair[:1], "recipro-cam", mode="independent", steps=2, draw="permutation")
    assert [stage.layers for stage in result.stages] == [("fc",), ("features.0",)]
    assert [stage.parameters for stage in result.stages] == [16 * 10 + 10, 8 * 27 + 8]
    assert [stage.changes_activations for stage in result.stages] == [False, True]
    assert result.stages[1].control["spearman"].mean < 1
    assert result.unrelated["ssim"] is None, "one photo has no other"


def test_another_layer_moves_the_boundary(small: Path, pair: list[Path]) -> None:
    result = sanity(small, pair[:1], "recipro-cam", steps=2, layer="features.1")
    assert result.settings["model"]["layer"] == "features.1"
    assert [stage.layers for stage in result.stages] == [("fc", "features.2"), ("features.0",)]
    assert [stage.changes_activations for stage in result.stages] == [False, True]
    assert result.stages[0].control["spearman"].mean == 1


def test_stages_are_spread_and_one_ends_at_the_target_layer() -> None:
    layers = [WeightedLayer(str(at), "Conv", {}, at >= 3) for at in range(50)]
    ends = [len(plan.randomised) for plan in _plan(layers, "cascading", 8)]
    assert ends == [3, 12, 19, 25, 31, 38, 44, 50]
    assert [len(plan.randomised) for plan in _plan(layers, "cascading", "all")] == list(range(1, 51))
    assert [len(plan.randomised) for plan in _plan(layers, "cascading", 1)] == [50]
    assert [len(plan.randomised) for plan in _plan(layers[:2], "cascading", 8)] == [1, 2]
    alone = _plan(layers, "independent", 8)
    assert [plan.randomised[0].name for plan in alone] == [str(end - 1) for end in ends]


@pytest.mark.parametrize("kind", ["qdq", "qlinear", "dynamic"])
def test_quantized_models_run(kind: str, quantized: dict[str, Path], pair: list[Path]) -> None:
    result = sanity(onnx.load(quantized[kind]), pair, steps="all")  # as a ModelProto: no file is needed
    assert [stage.changes_activations for stage in result.stages] == [False, True, True]
    assert result.verdict.kind == "changes"


def test_external_weights_run(small: Path, pair: list[Path], tmp_path: Path, cascade: Any) -> None:
    onnx.save(onnx.load(small), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=300)
    result = sanity(tmp_path / "m.onnx", pair, steps=3)
    assert len(result.settings["model"]["sha256"]) == 2
    assert result.rows == cascade.rows


def test_nothing_of_a_random_model_stays_in_the_cache(small: Path, pair: list[Path], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORTCAM_CACHE", str(tmp_path))
        sanity(small, pair[:1], steps=2)
    assert len(list(tmp_path.glob("*.onnx"))) == 1, "the original model alone"


def test_a_photo_that_cannot_be_read_leaves_the_others(small: Path, pair: list[Path], tmp_path: Path) -> None:
    bad, failed = tmp_path / "bad.jpg", list[Any]()
    bad.write_bytes(b"no picture")
    result = sanity(small, [bad, pair[0]], "recipro-cam", steps=1, on_error=lambda image, error: failed.append(image))
    assert failed == [bad]
    assert [one.photo for one in result.failures] == ["bad.jpg"]
    assert [row.photo for row in result.rows] == ["chelsea.png"]
    with pytest.raises(DatasetError, match=r"0 of 1 photos can be explained.*bad\.jpg"):
        sanity(small, [bad], steps=1, on_error=lambda image, error: None)


def test_names_are_unique(small: Path, pair: list[Path]) -> None:
    array = np.full((40, 50, 3), 90, np.uint8)
    array[:20] = 30
    result = sanity(small, [pair[0], array, pair[0]], "recipro-cam", steps=1)
    assert [row.photo for row in result.rows] == [str(pair[0]), "photo 2", f"{pair[0]} (2)"]
    assert result.rows[0].similarity == result.rows[2].similarity


def test_bad_options_are_one_line(small: Path, pair: list[Path]) -> None:
    for error, given, message in (
        (OptionError, {"mode": "both"}, "mode is 'both'; expected cascading or independent"),
        (OptionError, {"steps": 0}, "steps is 0; expected a whole number from 1, or 'all'"),
        (OptionError, {"budget": 0}, "budget"),
        (OptionError, {"method": "recipro-cam", "budget": 3}, "leave budget"),
        (OptionError, {"method": "rise", "preset": "paper"}, "leave preset out"),
        (TargetError, {"target": 10}, "10"),
    ):
        with pytest.raises(error, match=message):
            sanity(small, pair, **given)
    with pytest.raises(DatasetError, match="got no photos"):
        sanity(small, [])


# --- What is written ---


def test_the_folder_has_everything(cascade: Any, tmp_path: Path) -> None:
    folder = cascade.save(tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir()) == ["curve.png", "per-photo.csv", "sanity.json", "strip.png"]
    record = json.loads((folder / "sanity.json").read_text())
    assert record == json.loads(json.dumps(cascade.to_dict()))
    assert {"mode", "draw", "seed", "steps", "target", "budget", "method", "layers", "photos", "versions"} <= set(
        record
    )
    assert record["model"]["sha256"] == [ortcam.CamModel(record["model"]["path"]).sha256]
    with (folder / "per-photo.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2
    assert float(rows[-1]["ssim"]) == cascade.rows[-1].similarity.ssim
    check_directory(folder)  # an earlier result is replaced
    (folder / "mine.txt").write_text("kept")
    for write in (cascade.save, check_directory):
        with pytest.raises(ortcam.OrtcamError, match="it holds other files"):
            write(folder)
    assert cascade.to_json(tmp_path / "one.json").read_text() == (folder / "sanity.json").read_text()


def test_a_result_is_not_replaced_by_one_of_another_question(small: Path, pair: list[Path], tmp_path: Path) -> None:
    """It is refused before the first map is made; photos that failed are tried again."""
    out, photos = tmp_path / "out", [tmp_path / "a.png", tmp_path / "b.png"]
    for path, photo in zip(photos, pair, strict=True):
        path.write_bytes(photo.read_bytes())
    options: dict[str, Any] = {"steps": 1, "method": "recipro-cam", "folder": out}
    started = list[str]()

    def told(text: str, _: float) -> None:
        started.append(text)

    first = sanity(small, photos, **options)
    assert json.loads((first.save(out) / "sanity.json").read_text())["seed"] == 0, "the same again"
    for given, message in (
        ({"seed": 1}, "it holds results with seed = 0; expected 1; give another folder, or overwrite=True"),
        ({"photos": photos[:1]}, "it holds results of other photos"),
    ):
        with pytest.raises(ortcam.errors.OccupiedError, match=message):
            sanity(small, **{"photos": photos, **options, **given}, on_progress=told)
    photos[0].write_bytes(pair[1].read_bytes())
    with pytest.raises(ortcam.errors.OccupiedError, match=r"it holds results of another photo a\.png"):
        sanity(small, photos, **options, on_progress=told)
    assert started == []
    sanity(small, photos, **options, overwrite=True)
    with pytest.raises(ortcam.errors.OccupiedError, match="another photo"):
        first.save(out)


def test_the_table_says_what_the_result_says(cascade: Any) -> None:
    text = cascade.table()
    lines = text.splitlines()
    heads = ["stage", "randomised", "changes", "Spearman", "range", "SSIM", "HOG", "control", "P"]
    assert lines[0].split() == heads
    assert lines[1].split()[:3] == ["1", "fc", "scores"]
    assert cascade.verdict.text in lines
    assert cascade.cells(wide=False)[0] == ["stage", "randomised", "changes", "Spearman", "SSIM", "control", "P"]
    assert str(cascade) == text


def test_the_command(small: Path, photos: dict[str, Path], tmp_path: Path) -> None:
    """A folder with an unreadable photo: the others go on, the exit code is 1."""
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "bad.jpg").write_bytes(b"no picture")
    (folder / "cat.png").write_bytes(photos["chelsea"].read_bytes())
    done = subprocess.run(
        [ORTCAM, "sanity", small, folder, "-o", tmp_path / "out", "--steps", "2", "--method", "recipro-cam",
         "--method-option", "score=logit", "--json"],
        capture_output=True, text=True, check=False, env={**os.environ, "ORTCAM_CACHE": ""},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1
    assert "bad.jpg" in done.stderr
    found = json.loads(done.stdout)
    assert found["method"]["score"] == "logit"
    assert [photo["name"] for photo in found["photos"]] == ["cat.png"]
    assert [Path(one["source"]).name for one in found["errors"]] == ["bad.jpg"]
    assert (tmp_path / "out" / "strip.png").stat().st_size > 1000


@pytest.mark.slow
def test_a_trained_network(lite0_file: Path, photos: dict[str, Path]) -> None:
    """EfficientNet-Lite0: the maps of both methods change; Recipro-CAM depends more on the classifier."""
    chosen = [photos[f"imagenet_0{number}"] for number in range(4)]
    score_cam, recipro_cam = (sanity(lite0_file, chosen, method, steps=4) for method in ("score-cam", "recipro-cam"))
    for result in (score_cam, recipro_cam):
        assert result.verdict.kind == "changes"
        assert [stage.flat for stage in result.stages] == [0] * 4
        assert result.stages[0].layers == ("_fc",)
        assert len(result.settings["layers"]) == 50
    ranks = [result.stages[0].measures["spearman"].mean for result in (score_cam, recipro_cam)]
    assert ranks[0] > 0.5 > 0 > ranks[1]  # .69 and -.37 when this was written
