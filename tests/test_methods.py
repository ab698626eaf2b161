"""Methods and the seams that they stand on: queries of every kind, spliced in at the image and at a layer."""

from __future__ import annotations

import json
import logging
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from conftest import FlatLayer, Tiny, correlation, sharpened
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from scipy import ndimage
from skimage.transform import resize
from torch import nn
from typer.testing import CliRunner

import ortcam
from ortcam.cli.app import app
from ortcam.core.convention import upsample
from ortcam.core.grids import draw_grids, shifted_matrices, sum_masks
from ortcam.core.noise import cut
from ortcam.core.query import Ablations, Baseline, Change, Channels, Grids, Maps, Noise, Query, Rows
from ortcam.core.targets import Class
from ortcam.errors import LayerError, OptionError, OrtcamError, OrtcamWarning
from ortcam.exporters import export
from ortcam.graph.scoring import build_scoring_graph
from ortcam.graph.tail import cut_tail
from ortcam.graph.wiring import Wiring
from ortcam.methods import METHODS, make_method
from ortcam.model.cam_model import CamModel
from ortcam.model.contract import Contract, ExposedLayer
from ortcam.runtime.classifier import Classifier, Setup
from ortcam.runtime.providers import Provider

JUDGES = Path(__file__).parent / "judges"  # made by make_reference_values.py there; each file states its origin
SIZE = 24
Array = NDArray[np.float32]


# --- Queries: a model whose scores are its pixels shows what the graph makes of a change -----------------------------


def pixels_model(nhwc: bool) -> onnx.ModelProto:
    """Return a model file whose layer is the image, and whose logits are the layer's values."""
    dims = ["batch", SIZE, SIZE, 2] if nhwc else ["batch", 2, SIZE, SIZE]
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["image"], ["activations"]),
            helper.make_node("Flatten", ["activations"], ["logits"]),
        ],
        "pixels",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, dims)],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2 * SIZE * SIZE]),
            helper.make_tensor_value_info("activations", TensorProto.FLOAT, dims),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    layout = "NHWC" if nhwc else "NCHW"
    contract = Contract((ExposedLayer("relu", "relu", layout),), image_layout=layout, activation="softmax")
    helper.set_model_props(model, contract.to_metadata())
    return model


def changed(change: Change, rows: Rows, photos: Array, nhwc: bool = False) -> Array:
    """Return what the model is run on, [M,2,H,W], for photos [P,2,H,W]; affine and numbers as in `rows`."""
    setup = Setup(CamModel(pixels_model(nhwc)), "logits", Provider("cpu"), 4, 1, change)
    classifier = Classifier(setup)
    group = classifier.forward(photos.transpose(0, 2, 3, 1) if nhwc else photos)
    targets = np.tile(np.arange(2 * SIZE * SIZE), (len(rows), 1))
    scores = classifier.score(group, Rows(rows.photos, rows.numbers, rows.affine, targets), change)
    classifier.close()
    if nhwc:
        return scores.logits.reshape(-1, SIZE, SIZE, 2).transpose(0, 3, 1, 2)
    return scores.logits.reshape(-1, 2, SIZE, SIZE)


def rows_of(numbers: list[int], affine: list[tuple[float, float, float]], photos: list[int] | None = None) -> Rows:
    count = len(numbers)
    return Rows(
        np.array(photos or [0] * count), np.array(numbers), np.array(affine, np.float32), np.zeros((count, 1), np.int64)
    )


@pytest.fixture(scope="module")
def two_photos() -> Array:
    """Positive, so that the layer is the image."""
    return np.random.default_rng(0).uniform(0.1, 1, (2, 2, SIZE, SIZE)).astype(np.float32)


AS_THEY_ARE = (0.0, 1.0, 0.0)


@pytest.mark.parametrize("nhwc", [False, True])
@pytest.mark.parametrize("align_corners", [False, True])
def test_given_maps_are_upsampled_and_scaled(two_photos: Array, nhwc: bool, align_corners: bool) -> None:
    maps = np.random.default_rng(1).uniform(size=(3, 5, 4)).astype(np.float32)
    rows = rows_of([2, 0, 1, 2, 1], [AS_THEY_ARE, (0.5, 2, 0.1), (0, 0, 1), (0, -1, 1), (0, 0, 0)], [0, 1, 0, 1, 1])
    made = changed(Change(Maps(maps), align_corners=align_corners), rows, two_photos, nhwc)
    shift, scale, offset = (column[:, None, None] for column in rows.affine.T)
    masks = upsample((maps[rows.numbers] - shift) * scale + offset, (SIZE, SIZE), align_corners)
    assert np.allclose(made, np.maximum(two_photos[rows.photos] * masks[:, None], 0), atol=1e-5)


def test_channels_are_the_photos_own(two_photos: Array) -> None:
    rows = rows_of([0, 1, 1], [AS_THEY_ARE] * 3, [0, 0, 1])
    made = changed(Change(Channels()), rows, two_photos)
    own = two_photos[rows.photos, rows.numbers][:, None]  # the layer is the image
    assert np.allclose(made, two_photos[rows.photos] * own, atol=1e-5)


@pytest.mark.parametrize("nhwc", [False, True])
@pytest.mark.parametrize("upsampled", [False, True])
@pytest.mark.parametrize("hides", ["zero", "colour", "picture"])
def test_a_rank_of_pixels_with_a_threshold_per_row(two_photos: Array, nhwc: bool, upsampled: bool, hides: str) -> None:
    """Insertion shows the first n pixels, deletion hides them; what is hidden is zero, a colour or another picture."""
    rank = np.random.default_rng(2).permutation(SIZE * SIZE).reshape(1, SIZE, SIZE)
    counts = [0, 1, 100, SIZE * SIZE]
    shown = rows_of([0] * 4, [(n, -1, 0) for n in counts])
    hidden = rows_of([0] * 4, [(n - 0.5, 1, 0) for n in counts])
    values = {
        "zero": np.zeros((2, 1, 1), np.float32),
        "colour": np.array([0.25, 0.75], np.float32)[:, None, None],
        "picture": ndimage.gaussian_filter(two_photos[0], 2.5, axes=(1, 2)),
    }[hides]
    baseline = None if hides == "zero" else Baseline(values.transpose(1, 2, 0)[None] if nhwc else values[None])
    change = Change(Maps(rank.astype(np.float32)), binary=True, baseline=baseline, upsampled=upsampled)
    for rows, keeps in ((shown, lambda n: rank[0] < n), (hidden, lambda n: rank[0] >= n)):
        made = changed(change, rows, two_photos, nhwc)
        for one, n in zip(made, counts, strict=True):
            assert np.array_equal(one, np.where(keeps(n), two_photos[0], values)), n


@pytest.mark.parametrize("nhwc", [False, True])
def test_a_soft_mask_mixes_photo_and_baseline(two_photos: Array, nhwc: bool) -> None:
    mask = np.random.default_rng(3).uniform(size=(1, SIZE, SIZE)).astype(np.float32)
    rows = rows_of([0, 0], [AS_THEY_ARE] * 2, [0, 1])
    other = two_photos[:1, :, ::-1].copy()
    baseline = Baseline(other.transpose(0, 2, 3, 1) if nhwc else other)
    made = changed(Change(Maps(mask), baseline=baseline, upsampled=False), rows, two_photos, nhwc)
    assert np.allclose(made, two_photos * mask + other * (1 - mask), atol=1e-6)


@pytest.mark.parametrize("nhwc", [False, True])
def test_a_layer_is_masked_and_its_tail_run(two_photos: Array, nhwc: bool) -> None:
    windows = np.eye(SIZE * SIZE, dtype=np.float32).reshape(-1, SIZE, SIZE)
    rows = rows_of([7, 100, 7], [AS_THEY_ARE, AS_THEY_ARE, (0, -1, 1)], [0, 1, 1])
    made = changed(Change(Maps(windows), at="layer"), rows, two_photos, nhwc)
    masks = windows[rows.numbers] * rows.affine[:, 1, None, None] + rows.affine[:, 2, None, None]
    assert np.allclose(made, two_photos[rows.photos] * masks[:, None], atol=1e-6)


@pytest.mark.parametrize("nhwc", [False, True])
def test_channels_are_hidden_and_places_copied(two_photos: Array, nhwc: bool) -> None:
    rows = rows_of([0, 1, 1], [AS_THEY_ARE] * 3, [0, 0, 1])
    hidden = changed(Change(Ablations(), at="layer"), rows, two_photos, nhwc)
    others = np.array([[0, 1], [1, 0], [1, 0]], np.float32)[:, :, None, None]
    assert np.allclose(hidden, two_photos[rows.photos] * others, atol=1e-6)
    masks = np.random.default_rng(6).uniform(size=(SIZE * SIZE, SIZE, SIZE)).astype(np.float32)
    rows = rows_of([30, 575, 30], [AS_THEY_ARE] * 3, [0, 1, 1])
    made = changed(Change(Maps(masks), at="layer", copied=True), rows, two_photos, nhwc)
    columns = two_photos.reshape(2, 2, -1)[rows.photos, :, rows.numbers]
    assert np.allclose(made, columns[:, :, None, None] * masks[rows.numbers][:, None], atol=1e-6)


@pytest.mark.parametrize("nhwc", [False, True])
def test_masks_get_noise_of_their_own(two_photos: Array, nhwc: bool) -> None:
    maps = np.random.default_rng(1).uniform(size=(300, 5, 4)).astype(np.float32)
    rows = rows_of([2, 299, 1], [AS_THEY_ARE, (0.5, 2, 0.1), AS_THEY_ARE], [0, 1, 1])
    noise = Noise(2.0, seed=3, sample=30)
    made = changed(Change(Maps(maps), noise=noise), rows, two_photos + 9, nhwc)  # far from 0, for the layer's ReLU
    shift, scale, offset = (column[:, None, None] for column in rows.affine.T)
    added = cut(noise, rows.numbers, (SIZE, SIZE))
    masks = upsample((maps[rows.numbers] - shift) * scale + offset, (SIZE, SIZE)) + added
    expected = (two_photos + 9)[rows.photos] * masks[:, None]
    assert np.allclose(made, np.maximum(expected, 0), atol=1e-4)
    assert abs(added.mean()) < 0.2
    assert abs(added.std() / 2 - 1) < 0.05, "sigma"
    assert abs(np.corrcoef(added.reshape(3, -1)) - np.eye(3)).max() < 0.15, "masks have different noise"
    other = cut(Noise(2.0, seed=3, sample=31), rows.numbers, (SIZE, SIZE))
    assert abs(np.corrcoef(added.ravel(), other.ravel())[0, 1]) < 0.1, "samples have different noise"


POOLINGS = {  # whether the layer is NHWC, and the node
    "global": (False, lambda: helper.make_node("GlobalAveragePool", ["activations"], ["pooled"])),
    "window": (False, lambda: helper.make_node("AveragePool", ["activations"], ["pooled"], kernel_shape=[4, 5])),
    "mean": (False, lambda: helper.make_node("ReduceMean", ["activations", "axes"], ["pooled"], keepdims=0)),
    "mean, last": (True, lambda: helper.make_node("ReduceMean", ["activations", "axes"], ["pooled"])),
}


@pytest.mark.parametrize("change", ["windows", "ablations", "copies"])
@pytest.mark.parametrize("name", POOLINGS)
def test_a_pooled_tail_makes_no_features(name: str, change: str) -> None:
    """The scores are those of changed features, but no tensor [batch,K,h,w] is made."""
    nhwc, node = POOLINGS[name]
    rng = np.random.default_rng(7)
    dims = ["batch", 4, 5, 3] if nhwc else ["batch", 3, 4, 5]
    weights = rng.standard_normal((3, 6)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["image"], ["activations"]), node(),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        ],
        "pooled",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, dims)],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 6]),
            helper.make_tensor_value_info("activations", TensorProto.FLOAT, dims),
        ],
        [numpy_helper.from_array(weights, "weights"),
         numpy_helper.from_array(np.array([1, 2] if nhwc else [-1, -2]), "axes")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    layout = "NHWC" if nhwc else "NCHW"
    contract = Contract((ExposedLayer("relu", "relu", layout),), image_layout=layout, activation="softmax")
    helper.set_model_props(model, contract.to_metadata())
    photos = rng.uniform(0.1, 1, (2, 3, 4, 5)).astype(np.float32)
    masks = rng.uniform(size=(20, 4, 5)).astype(np.float32)
    made = {
        "windows": Change(Maps(masks), at="layer"),
        "ablations": Change(Ablations(), at="layer"),
        "copies": Change(Maps(masks), at="layer", copied=True),
    }[change]
    rows = rows_of([2, 0, 1], [AS_THEY_ARE] * 3, [0, 1, 1])
    chosen = photos[rows.photos]
    if change == "ablations":
        features = chosen * (1 - np.eye(3))[rows.numbers][:, :, None, None]
    else:
        places = photos.reshape(2, 3, 20)[rows.photos, :, rows.numbers][:, :, None, None]
        features = (chosen if change == "windows" else places) * masks[rows.numbers][:, None]
    classifier = Classifier(Setup(CamModel(model), "logits", Provider("cpu"), 4, 1, made))
    group = classifier.forward(photos.transpose(0, 2, 3, 1) if nhwc else photos)
    targets = np.tile(np.arange(6), (3, 1))
    scores = classifier.score(group, Rows(rows.photos, rows.numbers, rows.affine, targets), made)
    assert np.allclose(scores.logits, features.mean(axis=(2, 3)) @ weights, atol=1e-5)
    graph = build_scoring_graph(model, contract, "logits", Wiring.of(made)).graph
    assert not {"GlobalAveragePool", "AveragePool"} & {one.op_type for one in graph.node}
    assert "ortcam.masked_image" not in [one.name for one in graph.node]


HEADS: dict[str, tuple[bool, list[Any]]] = {  # whether one linear layer is seen, and the nodes
    "gemm": (True, [("Gemm", ["flat", "w", "b"], {})]),
    "transposed": (True, [("Gemm", ["flat", "w_t", "b"], {"transB": 1, "alpha": 0.5})]),
    "product": (True, [("MatMul", ["flat", "w"], {}), ("Add", ["b", "h0"], {})]),
    "scaled bias": (False, [("Gemm", ["flat", "w", "b"], {"beta": 0.5})]),
    "two layers": (False, [("MatMul", ["flat", "square"], {}), ("Relu", ["h0"], {}), ("MatMul", ["h1", "w"], {})]),
}


@pytest.mark.parametrize("name", HEADS)
def test_ablations_of_a_linear_head(name: str) -> None:
    """Ablation of each channel against the model run on the changed features, for two photos with their own classes."""
    linear, nodes = HEADS[name]
    rng = np.random.default_rng(5)
    arrays = {"w": rng.standard_normal((3, 6)), "b": rng.standard_normal(6), "square": rng.standard_normal((3, 3))}
    arrays["w_t"] = arrays["w"].T
    tail = [
        helper.make_node(kind, inputs, ["logits" if place == len(nodes) - 1 else f"h{place}"], **attributes)
        for place, (kind, inputs, attributes) in enumerate(nodes)
    ]
    dims = ["batch", 3, 4, 5]
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["image"], ["activations"]),
            helper.make_node("GlobalAveragePool", ["activations"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]), *tail,
        ],
        "head",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, dims)],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 6]),
            helper.make_tensor_value_info("activations", TensorProto.FLOAT, dims),
        ],
        [numpy_helper.from_array(value.astype(np.float32), key) for key, value in arrays.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    contract = Contract((ExposedLayer("relu", "relu"),), activation="softmax")
    helper.set_model_props(model, contract.to_metadata())
    photos = rng.uniform(0.1, 1, (2, 3, 4, 5)).astype(np.float32)
    rows = rows_of([2, 0, 1], [AS_THEY_ARE] * 3, [0, 1, 1])
    targets = np.array([[5, 0], [2, 2], [3, 1]])
    features = photos[rows.photos] * (1 - np.eye(3, dtype=np.float32))[rows.numbers][:, :, None, None]
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = np.take_along_axis(session.run(["logits"], {"image": features})[0], targets, axis=1)
    change = Change(Ablations(), at="layer")
    classifier = Classifier(Setup(CamModel(model), "logits", Provider("cpu"), 4, 1, change))
    scores = classifier.score(classifier.forward(photos), Rows(rows.photos, rows.numbers, rows.affine, targets), change)
    assert np.allclose(scores.logits, expected, atol=1e-5)
    made = build_scoring_graph(model, contract, "logits", Wiring.of(change))
    assert any(entry.key == "ortcam.light_rows" for entry in made.metadata_props) == linear


@pytest.mark.parametrize("nhwc", [False, True])
def test_grids_are_drawn_in_the_graph_as_by_numpy(two_photos: Array, nhwc: bool) -> None:
    grids = Grids((5, 5), 0.3, seed=11)
    numbers = [0, 1, 2, 3, 1000, 123_456_789]
    rows = rows_of(numbers, [AS_THEY_ARE] * 5 + [(0, -1, 1)], [0, 1] * 3)
    made = changed(Change(grids), rows, two_photos, nhwc)
    shown, shifts = draw_grids(grids, rows.numbers, (SIZE, SIZE))
    matrices = shifted_matrices(SIZE, 5)
    masks = matrices[shifts[:, 0]] @ shown @ matrices[shifts[:, 1]].transpose(0, 2, 1)
    masks[-1] = 1 - masks[-1]
    assert np.allclose(made, two_photos[rows.photos] * masks[:, None], atol=1e-5)


# --- Grids ------------------------------------------------------------------------------------------------------------


def test_grids_are_enlarged_as_rise_does() -> None:
    """Judge: scikit-image's resize, which RISE's own code calls."""
    known = np.load(JUDGES / "rise_masks.npz")
    for size, offset, mask in ((224, known["offset"], known["mask_224"]), (96, known["offset_96"], known["mask_96"])):
        matrices = shifted_matrices(size, 7)
        made = matrices[offset[0]] @ known["grid"] @ matrices[offset[1]].T
        assert np.abs(made - mask).max() < 1e-6
    for cells in (1, 2, 3):
        grid = np.random.default_rng(cells).integers(0, 2, (cells, cells)).astype(np.float64)
        up = (cells + 1) * -(-20 // cells)
        expected = resize(grid, (up, up), order=1, mode="reflect", anti_aliasing=False)[1:21, 2:22]
        matrices = shifted_matrices(20, cells)
        assert np.abs(matrices[1] @ grid @ matrices[2].T - expected).max() < 1e-6


def test_grids_look_random() -> None:
    """Shares, and correlations between cells, numbers and seeds, as of independent draws: within 4.5 deviations."""
    count = 20_000
    for seed in (0, 1, 2**40):
        shown, shifts = draw_grids(Grids((7, 7), 0.3, seed), np.arange(count), (224, 224))
        bound = 4.5 / np.sqrt(count)
        flat = shown.reshape(count, 49)
        assert np.abs(flat.mean(axis=0) - 0.3).max() < bound * np.sqrt(0.3 * 0.7)
        assert np.abs(np.corrcoef(flat.T) - np.eye(49)).max() < bound
        assert np.abs(np.corrcoef(flat[:-1].T, flat[1:].T)[:49, 49:]).max() < bound  # the next number's
        counts = np.stack([np.bincount(column, minlength=32) for column in shifts.T])
        assert counts.shape == (2, 32)
        assert np.abs(counts - count / 32).max() < 4.5 * np.sqrt(count / 32)
    one, other = (draw_grids(Grids(seed=seed), np.arange(count), (224, 224))[0].reshape(-1) for seed in (0, 1))
    assert abs(np.corrcoef(one, other)[0, 1]) < 4.5 / np.sqrt(one.size)


def test_sums_of_masks_are_the_masks_summed() -> None:
    grids, numbers, size = Grids((4, 3), 0.5, 3), np.arange(50), (30, 21)
    weights = np.random.default_rng(0).standard_normal((2, 50)).astype(np.float32)
    shown, shifts = draw_grids(grids, numbers, size)
    down, across = shifted_matrices(30, 4), shifted_matrices(21, 3)
    masks = np.stack([down[y] @ grid @ across[x].T for grid, (y, x) in zip(shown, shifts, strict=True)])
    assert np.allclose(sum_masks(grids, numbers, weights, size), np.tensordot(weights, masks, 1), atol=1e-4)


# --- Recipro-CAM ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "layer4"),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in (("resnet18_layer3", "layer3"), ("lite0", None))),
    ],
)
def test_recipro_cam_is_openvino_xais(
    request: pytest.FixtureRequest, photos: dict[str, Path], models: Path, name: str, layer: str | None
) -> None:
    """Judge: openvino_xai 1.1.0, whose values are logits; its maps in softmax were made from the same logits.

    `layer3` has convolutions in its tail. Seen: 2e-6 of the range.
    """
    if name == "resnet18_layer3":
        module = request.getfixturevalue("resnet18")
        file = export(module, models / "layer3.onnx", preprocess="imagenet", input_size=96, layer=layer).path
    else:
        file = request.getfixturevalue(f"{name}_file")
    known = np.load(JUDGES / "recipro_cam.npz")
    classes = known[f"{name}_classes"].tolist()
    for score, judge in (("logit", "logits"), ("probability", "softmax")):
        with ortcam.ModelExplainer(file, ortcam.ReciproCAM(score), provider="cpu") as explainer:
            ours = explainer.explain(photos["chelsea"], targets=classes)
        theirs = known[f"{name}_{judge}"]
        for one, other in zip(ours.raw_maps, theirs, strict=True):
            assert correlation(one, other) >= 0.9999
            assert np.abs(one - other).max() <= 1e-4 * np.ptp(other), (name, score)
        low, high = (getattr(theirs, end)((1, 2), keepdims=True) for end in ("min", "max"))
        expected = upsample(((theirs - low) / (high - low)).astype(np.float32), ours.input_size)
        assert np.abs(ours.input_maps - expected).max() < 1e-3
        assert (ours.scored, ours.live, ours.error) == (theirs[0].size, None, None)


def test_a_layer_that_others_lead_around_has_no_tail(resnet18: nn.Module, models: Path) -> None:
    file = export(resnet18, models / "inside.onnx", preprocess="imagenet", input_size=96, layer="layer4.0.bn1").path
    with pytest.raises(LayerError, match=r"another path leads around the layer.*choose another layer"):
        ortcam.ModelExplainer(file, ortcam.ReciproCAM(), provider="cpu")


class WithToken(Tiny):
    """The tail reads the size of the image's batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(self.features(x), len(x))

    def tail(self, features: torch.Tensor, count: int) -> torch.Tensor:
        token = torch.ones(1, 1, 16).expand(count, -1, -1)
        scores: torch.Tensor = self.fc(torch.cat([token, features.flatten(2).transpose(1, 2)], 1).mean(1))
        return scores


def test_a_tail_may_read_the_shape_of_the_image(models: Path, photo: Array) -> None:
    model = sharpened(WithToken(), 8)
    file = export(model, models / "token.onnx", preprocess="imagenet", input_size=32, layer="features").path
    shapes = [node for node in onnx.load(file).graph.node if node.op_type == "Shape"]
    assert any(node.input[0] == "image" for node in shapes), "the exporter does not write what is tested"
    with ortcam.ModelExplainer(file, ortcam.ReciproCAM("logit"), provider="cpu") as explainer:
        ours = explainer.explain(photo, targets=[3])
        x = torch.from_numpy(explainer.model.prepare(photo)[1])
    with torch.no_grad():
        features = model.features(x)
        windows = torch.eye(64).reshape(64, 1, 8, 8)
        theirs = model.tail(features * windows, 64)[:, 3].reshape(8, 8).numpy()
    assert np.ptp(theirs) > 0.01
    assert np.allclose(ours.raw_maps[0], theirs, atol=1e-5)


@pytest.mark.parametrize("ends", [{}, {"start": 0, "end": 1}, {"start": 2}, {"start": -1}, {"start": 1, "end": 3}])
def test_a_shape_of_the_image_in_a_tail(ends: dict[str, int]) -> None:
    floats, opset = TensorProto.FLOAT, [helper.make_opsetid("", 18)]
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["image"], ["activations"]),
            helper.make_node("Shape", ["image"], ["shape"], **ends),
            helper.make_node("Cast", ["shape"], ["logits"], to=floats),
            helper.make_node("ReduceSum", ["activations"], ["sum"], keepdims=0),
            helper.make_node("Mul", ["sum", "logits"], ["scores"]),
        ],
        "shape",
        [helper.make_tensor_value_info("image", floats, ["batch", 2, 4, 5])],
        [
            helper.make_tensor_value_info("scores", floats, None),
            helper.make_tensor_value_info("activations", floats, ["batch", 2, 4, 5]),
        ],
    )
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    ones = np.ones((3, 2, 4, 5), np.float32)
    (expected,) = ort.InferenceSession(model.SerializeToString()).run(["scores"], {"image": ones})
    cut_tail(model, "activations", "the model")
    model.graph.input[0].name = "activations"
    (found,) = ort.InferenceSession(model.SerializeToString()).run(None, {"activations": ones})
    assert np.array_equal(found, expected)


def test_a_layer_with_too_many_places_is_refused(models: Path, tiny: nn.Module) -> None:
    """Their windows would take 3 GB."""
    file = export(tiny, models / "wide.onnx", preprocess="imagenet", input_size=344, layer="features.1").path
    with pytest.raises(LayerError, match=r"has 172x172 places.*choose a later layer"):
        ortcam.ModelExplainer(file, ortcam.ReciproCAM(), provider="cpu").explain(np.zeros((9, 9, 3), np.uint8))


@pytest.mark.slow
def test_a_converted_copy_of_a_layer_has_no_tail(lite0: nn.Module, models: Path) -> None:
    file = export(lite0, models / "half.onnx", preprocess="lite", precision="fp16").path
    with pytest.raises(LayerError, match="a converted copy"):
        ortcam.ModelExplainer(file, ortcam.ReciproCAM(), provider="cpu")


# --- RISE -------------------------------------------------------------------------------------------------------------


def test_rise_is_the_formula_run_by_torch(small: Path, photo: Array, tiny: nn.Module) -> None:
    """The masks by NumPy, the passes by PyTorch, the formula of the paper, and Xplique's."""
    method = ortcam.RISE(masks=60, cells=4, probability=0.4, seed=5)
    model = sharpened(tiny, 8)
    with ortcam.ModelExplainer(small, method, provider="cpu") as explainer:
        ours = explainer.explain(photo, targets=[3, 7])
        x = explainer.model.prepare(photo)[1]
    shown, shifts = draw_grids(Grids((4, 4), 0.4, 5), np.arange(60), (32, 32))
    matrices = shifted_matrices(32, 4)
    masks = (matrices[shifts[:, 0]] @ shown @ matrices[shifts[:, 1]].transpose(0, 2, 1))[:, None]
    with torch.no_grad():
        kept = model(torch.from_numpy(x * masks)).softmax(1).numpy()[:, [3, 7]]
    sums = np.tensordot(kept.T, masks[:, 0], 1)
    assert np.allclose(ours.raw_maps, sums / masks[:, 0].sum(0), atol=1e-5)
    assert ours.raw_maps.std() > 1e-3, "the classes must tell the masks apart"
    assert np.allclose(ours.weights, kept.T, atol=1e-5)
    low, high = ours.raw_maps.min((1, 2), keepdims=True), ours.raw_maps.max((1, 2), keepdims=True)
    assert np.allclose(ours.input_maps, (ours.raw_maps - low) / (high - low), atol=1e-5)
    paper = ortcam.ModelExplainer(small, ortcam.RISE(60, 4, 0.4, 5, "expected"), provider="cpu").explain(photo, [3, 7])
    assert np.allclose(paper.raw_maps, sums / (60 * 0.4), atol=1e-5)


@pytest.mark.slow
def test_rise_nears_xpliques(lite0_file: Path, photos: dict[str, Path]) -> None:
    """Judge: Xplique 2.0.2 with 4000 masks of its own. Two draws of ours agreed to .977, Xplique's and ours to .98."""
    known = np.load(JUDGES / "rise_xplique.npz")
    with ortcam.ModelExplainer(lite0_file, ortcam.RISE(masks=2000), provider="cpu") as explainer:
        ours = explainer.explain(photos["chelsea"], targets=[int(known["classes"].ravel()[0])]).raw_maps[0]
    means = ours.reshape(28, 8, 28, 8).mean((1, 3))
    assert correlation(means, known["lite0_4000"].reshape(28, 28)) >= 0.94


# --- All methods ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(models: Path) -> Path:
    """The tiny network at 32 x 32, with classes that differ."""
    return export(sharpened(Tiny().eval(), 8), models / "tiny-m.onnx", preprocess="imagenet", input_size=32, labels=[
        f"class-{index}" for index in range(10)], output_kind="logits").path  # fmt: skip


@pytest.fixture(scope="module")
def photo() -> Array:
    return np.random.default_rng(4).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def brief(name: str) -> Any:
    return make_method(name, {"masks": 30} if name == "rise" else {})


@pytest.mark.parametrize("name", METHODS)
def test_neither_batches_nor_groups_change_a_map(small: Path, photo: Array, name: str) -> None:
    images = [photo, photo[::-1], photo[:, ::-1], photo // 2]
    expected = [ortcam.load_explainer(small, brief(name), batch_size=3).explain(one, top_k=2) for one in images]
    for batch_size in (1, 50):
        explainer = ortcam.load_explainer(small, brief(name), batch_size=batch_size)
        for ours, theirs in zip(explainer.explain_batch(images, top_k=2), expected, strict=True):
            assert [one.index for one in ours.targets] == [one.index for one in theirs.targets]
            assert np.allclose(ours.maps, theirs.maps, atol=1e-4)
            assert ours.scored == theirs.scored
            assert (ours.scored == 0) == (name == "eigen-cam")
            assert np.ptp(ours.maps) > 0.5


@pytest.mark.parametrize("name", METHODS)
def test_the_best_batch_is_measured(small: Path, photo: Array, name: str) -> None:
    explainer = ortcam.load_explainer(small, brief(name), provider="cpu", batch_size="auto")
    expected = ortcam.load_explainer(small, brief(name), provider="cpu").explain(photo)
    assert explainer.explain(photo).raw_maps == pytest.approx(expected.raw_maps, abs=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_progress_and_pickles(small: Path, photo: Array, name: str) -> None:
    explainer = ortcam.load_explainer(small, brief(name))
    seen: list[tuple[int, int]] = []
    expected = explainer.explain(photo, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (expected.scored or 1, expected.scored or 1)
    again = pickle.loads(pickle.dumps(explainer)).explain(photo)
    assert np.array_equal(again.maps, expected.maps)
    assert pickle.loads(pickle.dumps(brief(name))) == brief(name)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_reproduced(small: Path, photo: Array, tmp_path: Path, name: str) -> None:
    with ortcam.load_explainer(small, brief(name), provider="cpu") as explainer:
        explainer.explain(photo).save(tmp_path / "out")
    assert ortcam.reproduce(tmp_path / "out", photo=_saved(photo, tmp_path)).agrees


def test_rise_of_equal_scores_is_flat(tiny: torch.nn.Module, tmp_path: Path) -> None:
    """All classes have the probability .1 for every mask; rounding must not become a heat map."""
    torch.nn.init.zeros_(tiny.fc.weight)
    torch.nn.init.zeros_(tiny.fc.bias)
    file = export(tiny, tmp_path / "t.onnx", preprocess="imagenet", input_size=32, output_kind="logits").path
    photo = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    with (
        ortcam.load_explainer(file, ortcam.RISE(masks=30), provider="cpu") as explainer,
        pytest.warns(OrtcamWarning, match="is flat"),
    ):
        assert not explainer.explain(photo, targets=[0]).maps.any()


def test_the_record_states_the_method(small: Path, photo: Array, tmp_path: Path) -> None:
    explanation = ortcam.load_explainer(small, ortcam.RISE(masks=20, seed=9)).explain(photo)
    record = explanation.to_dict()
    assert record["method"] == {
        "name": "rise", "masks": 20, "cells": 7, "probability": 0.5, "seed": 9, "divisor": "sum",
    }  # fmt: skip
    assert record["preset"]["name"] == "rise"
    explanation.save(tmp_path / "a")
    assert ortcam.reproduce(tmp_path / "a", photo=_saved(photo, tmp_path)).agrees
    other = ortcam.load_explainer(small, ortcam.RISE(masks=20, seed=8)).explain(photo)
    with pytest.raises(OrtcamError, match="another method or preset"):
        other.save(tmp_path / "a")


def _saved(photo: Array, folder: Path) -> Path:
    np.save(folder / "photo.npy", photo)
    return folder / "photo.npy"


def test_methods_on_the_command_line(small: Path, photos: dict[str, Path], tmp_path: Path) -> None:
    def run(*options: str) -> Any:
        return CliRunner().invoke(app, ["explain", str(small), str(photos["coffee"]), "-o", str(tmp_path), *options])

    done = run("--method", "rise", "--method-option", "masks=40", "--method-option", "seed=3", "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)["explanations"][0]
    assert (record["method"]["masks"], record["method"]["seed"], record["run"]["channels"]["scored"]) == (40, 3, 40)
    shown = run("--method", "rise", "--method-option", "masks=40", "--overwrite")
    assert "scored  seconds" in shown.stdout, "no error is known, and no channels were run"
    assert " of " not in shown.stdout
    assert "method rise, provider cpu; written to" in shown.stderr
    assert "layer" not in shown.stderr
    done = run("--method", "recipro-cam", "--json")
    assert json.loads(done.stdout)["explanations"][0]["run"]["channels"]["scored"] == 64
    for options, message in (
        (("--method", "rice"), "method 'rice' is unknown; expected score-cam, cam, recipro-cam,"),
        (("--method", "rise", "--method-option", "mask=3"), "method option 'mask' of rise is unknown"),
        (("--method", "rise", "--method-option", "masks=few"), "masks is 'few'; expected a whole number"),
        (("--method", "rise", "--preset", "paper"), "only score-cam has presets"),
        (("--method", "recipro-cam", "--budget", "8"), "leave budget, tolerance and selection out"),
        (("--method", "rise", "--tolerance", "0.1"), "leave tolerance and selection out"),
    ):
        done = run(*options)
        assert done.exit_code == 1, options
        assert message in str(done.exception), done.exception


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"masks": 0}, "masks is 0"),
        ({"cells": 1.5}, "cells is 1.5"),
        ({"probability": 1}, "between 0 and 1"),
        ({"probability": "half"}, "probability is 'half'"),
        ({"seed": -1}, "seed is -1"),
        ({"divisor": "n"}, "divisor is 'n'"),
    ],
)
def test_options_of_rise_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ortcam.RISE(**options)


def test_options_may_be_numbers_of_numpy() -> None:
    method = ortcam.RISE(masks=np.int64(9), cells=np.int32(5), probability=np.float32(0.5), seed=np.int32(2**31 - 1))
    assert method == ortcam.RISE(9, 5, 0.5, 2**31 - 1)
    assert [type(value) for value in method.describe().values()] == [str, int, int, float, int, str]


@pytest.mark.parametrize("method", [ortcam.RISE, "rise", None])
def test_a_method_that_is_no_object_is_refused(small: Path, method: Any) -> None:
    with pytest.raises(OptionError, match=r"method is .*; expected an object such as ortcam\.RISE\(masks=1000\)"):
        ortcam.ModelExplainer(small, method)


def test_one_function_loads_a_model_file_and_a_packed_explainer(small: Path, photo: Array, tmp_path: Path) -> None:
    packed = ortcam.pack(small, tmp_path / "packed.onnx", budget=8, verify=False).path
    for file, options in (
        (small, {"budget": 8}),
        (packed, {}),
        (packed, {"budget": 8}),
    ):
        with ortcam.load_explainer(file, provider="cpu") as explainer:
            one = explainer.explain(photo, "class-3", **options)
            (same,) = explainer.explain_batch([photo], "class-3", top_k=1, **options)
        assert (one.targets[0].index, one.scored, one.to_dict()["method"]) == (3, 8, {"name": "score-cam"})
        assert np.array_equal(one.maps, same.maps)
    with pytest.raises(
        OptionError, match=r"packed with its layer and method \(official Score-CAM with a budget of 8 masked images\)"
    ):
        ortcam.load_explainer(packed).explain(photo, budget=16)
    for options in ({"preset": "paper"}, {"layer": "features.1"}, {"batch_size": 3}, {"method": "rise"}):
        with pytest.raises(OptionError, match=f"leave {next(iter(options))} out"):
            ortcam.load_explainer(packed, **options)


@pytest.mark.parametrize("packed", [False, True])
def test_a_closed_explainer_ends_its_threads(small: Path, photo: Array, tmp_path: Path, packed: bool) -> None:
    file = small
    if packed:
        file = ortcam.pack(small, tmp_path / "packed.onnx", verify=False).path
    before = {thread.name for thread in threading.enumerate()}
    with ortcam.load_explainer(file, threads=2) as explainer:
        list(explainer.explain_batch([photo] * 4, **({} if packed else {"budget": 8})))
    assert {thread.name for thread in threading.enumerate()} <= before
    for _ in range(2):
        explainer.close()  # twice is no error
        with pytest.raises(OrtcamError, match="was closed; load the model again"):
            explainer.explain(photo)


def test_copies_of_one_pickle_are_closed_each_by_itself(small: Path, photo: Array) -> None:
    """They share a session, which ends with the last of them."""
    data = pickle.dumps(ortcam.load_explainer(small, "recipro-cam", provider="cpu"))
    one, other = (pickle.loads(data) for _ in range(2))
    expected = one.explain(photo).raw_maps
    assert np.array_equal(other.explain(photo).raw_maps, expected)
    shared = one._running.get()
    assert other._running.get() is shared
    ended: list[object] = []
    shared.close = lambda: ended.append(shared)
    one.close()
    assert not ended
    assert np.array_equal(other.explain(photo).raw_maps, expected)
    other.close()
    assert ended == [shared]
    again = pickle.loads(data)
    assert again._running.get() is not shared
    assert np.array_equal(again.explain(photo).raw_maps, expected)


@pytest.fixture(scope="module")
def constant(models: Path) -> Path:
    """A network whose layer varies nowhere."""
    return export(FlatLayer(), models / "constant.onnx", preprocess="imagenet", input_size=32).path


@pytest.mark.parametrize("name", METHODS)
def test_a_flat_map_is_said_where_the_call_stands(constant: Path, photo: Array, name: str) -> None:
    method = ortcam.RISE(masks=3, probability=1e-12) if name == "rise" else make_method(name)
    explainer = ortcam.load_explainer(constant, method, provider="cpu")
    why = "no channel of layer" if name == "score-cam" else "all masked inputs score the same"
    for call in (lambda: explainer.explain(photo), lambda: list(explainer.explain_batch([photo]))):
        with pytest.warns(OrtcamWarning, match=f"is flat .all zero.: {why}") as said:
            call()
        assert [one.filename for one in said] == [__file__]


def test_arguments_in_the_old_order_are_taken_with_a_warning(small: Path, photo: Array) -> None:
    cam = ortcam.ScoreCAM(small)
    with pytest.warns(DeprecationWarning, match=r"explain takes these arguments by name .*: top_k=$") as said:
        old = cam.explain(photo, None, 2)
    assert said[0].filename == __file__
    assert len(old.targets) == 2
    failed: list[object] = []
    with pytest.warns(DeprecationWarning, match="on_error=, top_k="):
        (one,) = cam.explain_batch([photo, "missing.jpg"], None, lambda image, _: failed.append(image), 2)
    assert failed == ["missing.jpg"]
    assert len(one.targets) == 2
    with pytest.raises(TypeError, match="at most 4 positional"):
        cam.explain(photo, None, 1, None, 8)


def test_the_logger_says_what_was_opened(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="ortcam"):
        ortcam.load_explainer(small, "rise", provider="cpu")
    assert [record.name for record in caplog.records] == ["ortcam"]
    assert "tiny-m.onnx: rise on cpu, batches of 8" in caplog.text


def test_a_query_of_several_photos_keeps_its_rows() -> None:
    query = Query(Change(Channels()), np.array([4, 2]), np.array([AS_THEY_ARE] * 2, np.float32))
    rows = Rows.join([Rows.of_query(query, 0, [Class(7)]), Rows.of_query(query, 3, [Class(1)])])
    assert rows.photos.tolist() == [0, 0, 3, 3]
    assert rows.numbers.tolist() == [4, 2, 4, 2]
    assert rows.targets.tolist() == [[7], [7], [1], [1]]
