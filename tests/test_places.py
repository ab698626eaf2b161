"""Whether the cells of a target layer are places of the image: followed through the graph, and checked by a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import timm
import torch
import torchvision
from onnx import TensorProto, helper, numpy_helper
from strangers import torch_models
from torch import nn
from typer.testing import CliRunner

from ortcam.cli.app import app
from ortcam.errors import LayerError, OptionError, OrtcamWarning
from ortcam.exporters import export
from ortcam.exporters.places import judge


def brightest_cell(path: Path, rows: slice, columns: slice) -> tuple[float, float]:
    """Where in the layer, as parts of its height and width, the answer to a white square in a grey image is largest."""
    session = ort.InferenceSession(path)
    grey = np.zeros((1, *session.get_inputs()[0].shape[1:]), np.float32)
    white = grey.copy()
    white[:, :, rows, columns] = 2
    before, after = (session.run(["activations"], {"image": image})[0] for image in (grey, white))
    metadata = {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}
    axis = 1 if metadata["ortcam.layers"][0]["layout"] == "NCHW" else 3
    answer = np.abs(after - before).mean(axis)[0]
    row, column = np.unravel_index(answer.argmax(), answer.shape)
    return (row + 0.5) / answer.shape[0], (column + 0.5) / answer.shape[1]


def test_windows_of_tokens_are_no_rows(tmp_path: Path) -> None:
    """The map that the windows are put together to is the layer, and a square at the top left is at the top left."""
    report = export(torch_models.windows(), tmp_path / "net.onnx", input_size=64)
    assert report.shape == (12, 8, 8)
    assert report.places.verdict == "confirmed"
    assert report.contract.layers[0].verified["places"] == "confirmed"
    row, column = brightest_cell(report.path, slice(0, 16), slice(0, 16))
    assert row < 0.25
    assert column < 0.25


@pytest.mark.filterwarnings("default::ortcam.errors.OrtcamWarning")  # of wrong places
def test_a_named_layer_of_windows_is_exported_with_a_warning(tmp_path: Path) -> None:
    report = export(torch_models.windows(), tmp_path / "net.onnx", "mix", input_size=64)
    assert (report.layer, report.shape) == ("mix", (12, 4, 16))
    assert "the cells are windows of 4 x 4; the next best layer is view_5" in report.notices[-1]
    shown = CliRunner().invoke(app, ["inspect", str(report.path)]).output
    assert "places  wrong: the cells are windows of 4 x 4" in shown


def test_blocks_of_windows_and_grids_end_in_maps(tmp_path: Path) -> None:
    """A small MaxViT: windows, then a grid of distant cells, then the map again."""
    torch.manual_seed(0)
    module = torchvision.models.MaxVit(
        (64, 64), stem_channels=8, partition_size=4, block_channels=[16], block_layers=[1], head_dim=8,
        stochastic_depth_prob=0.0, num_classes=5,
    ).eval()  # fmt: skip
    report = export(module, tmp_path / "net.onnx", input_size=64)
    assert (report.layer, report.shape) == ("blocks.0", (16, 16, 16))
    assert report.places.verdict == "confirmed"
    row, column = brightest_cell(report.path, slice(16, 32), slice(48, 64))
    assert 0.25 < row < 0.5
    assert column > 0.75


class Rearranged(nn.Module):
    """A convolution, a change of its map that keeps the shape of a map, and another convolution."""

    def __init__(self, change: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 8, 8), nn.Conv2d(8, 12, 1)
        self.mix, self.fc, self.change = nn.Linear(48, 48), nn.Linear(12, 5), change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()  # [B,8,6,8]
        if self.change == "swapped":
            x = x.transpose(2, 3)
        elif self.change == "upside down":
            x = x.flip(2)
        elif self.change == "mixed":
            x = self.mix(x.flatten(2)).unflatten(2, (6, 8))
        scores: torch.Tensor = self.fc(self.second(x).relu().mean((2, 3)))
        return scores


@pytest.mark.parametrize(
    ("change", "stated"),
    [
        ("swapped", "rows and columns are swapped"),
        ("upside down", "the rows are upside down"),
        ("mixed", "none"),
    ],
)
def test_maps_in_another_order_are_no_candidates(change: str, stated: str, tmp_path: Path) -> None:
    """`auto` takes the layer before the change; by name the layer after it is exported, and what is wrong is said."""
    module = Rearranged(change).eval()
    auto = export(module, tmp_path / "auto.onnx", input_size=(48, 64))
    assert (auto.shape, auto.places.verdict) == ((8, 6, 8), "confirmed")
    row, column = brightest_cell(auto.path, slice(0, 8), slice(56, 64))
    assert (row, column) == (0.5 / 6, 7.5 / 8)
    with pytest.warns(OrtcamWarning, match="show wrong places: .*; the next best layer is relu"):
        named = export(module, tmp_path / "named.onnx", "second", input_size=(48, 64))
    assert named.contract.layers[0].verified["places"] == stated
    assert "show wrong places" in named.notices[-1]
    assert named.notices[-1].endswith("the next best layer is relu")


def test_a_better_layer_takes_the_place_of_the_first_and_the_second_stays(tmp_path: Path) -> None:
    """`auto` sees that its best candidate is upside down; the layer that is named beside it is exposed all the same."""
    module = Rearranged("upside down").eval()
    report = export(module, tmp_path / "net.onnx", ["auto", "first"], input_size=(48, 64))
    assert [(layer.shape, layer.places.verdict) for layer in report.layers] == [((8, 6, 8), "confirmed")] * 2
    x = np.random.default_rng(0).standard_normal((2, 3, 48, 64)).astype(np.float32)
    _, chosen, named = ort.InferenceSession(report.path).run(None, {"image": x})
    with torch.no_grad():
        expected = module.first(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(named, expected, rtol=0, atol=1e-5)  # float32 sums of 192 products
    np.testing.assert_allclose(chosen, np.maximum(expected, 0), rtol=0, atol=1e-5)


class NoPlaces(nn.Module):
    """Every number of the image goes into every cell: there is no map at all."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.conv, self.fc = nn.Linear(3 * 32 * 32, 3 * 64), nn.Conv2d(3, 8, 1), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(self.mix(x.flatten(1)).unflatten(1, (3, 8, 8))).relu()
        scores: torch.Tensor = self.fc(x.mean((2, 3)))
        return scores


@pytest.mark.filterwarnings("default::ortcam.errors.OrtcamWarning")  # of wrong places
def test_a_network_that_mixes_the_image_must_be_asked_for_by_name(tmp_path: Path) -> None:
    module = NoPlaces().eval()
    with pytest.raises(LayerError, match=r"no candidate layer of NoPlaces shows places.*name it with --layer"):
        export(module, tmp_path / "auto.onnx", input_size=32)
    assert not list(tmp_path.iterdir())
    named = export(module, tmp_path / "named.onnx", "conv", input_size=32)
    assert named.places.verdict == "none"
    assert "the cells do not answer where the image changes" in named.notices[-1]


@pytest.mark.slow
@pytest.mark.filterwarnings("default::ortcam.errors.OrtcamWarning")  # of wrong places
def test_a_wrong_grid_of_patches_is_noticed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = timm.models.VisionTransformer(
        img_size=(32, 48), patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=10, global_pool="avg"
    ).eval()
    report = export(module, tmp_path / "net.onnx", "blocks.1", input_size=(32, 48), grid=(6, 4))
    assert report.contract.layers[0].verified["places"] == "the cells are a grid of 4 x 6"
    right = export(module, tmp_path / "net.onnx", "blocks.1", input_size=(32, 48))
    assert (right.shape, right.places.verdict) == ((32, 4, 6), "confirmed")


def test_a_layout_that_the_graph_does_not_tell_is_found_by_the_check(tmp_path: Path) -> None:
    """Einsum is not followed, and [n,8,4,12] looks as if its 8 came first: only a run tells where the channels are."""
    random = np.random.default_rng(0)
    weights = {
        "w": random.standard_normal((12, 3, 4, 4)) / 7,
        "m": random.standard_normal((12, 12)) / 3,
        "f": random.standard_normal((12, 5)) / 3,
    }
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], strides=[4, 4]),
        helper.make_node("Transpose", ["c"], ["last"], perm=[0, 2, 3, 1]),
        helper.make_node("Einsum", ["last", "m"], ["mixed"], equation="nhwc,cd->nhwd"),
        helper.make_node("Einsum", ["mixed"], ["pooled"], equation="nhwc->nc"),
        helper.make_node("MatMul", ["pooled", "f"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 32, 16])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "in.onnx")
    report = export(tmp_path / "in.onnx", tmp_path / "out.onnx", "mixed")
    assert (report.contract.activations_layout, report.shape) == ("NHWC", (12, 8, 4))
    assert report.places.verdict == "confirmed"
    assert brightest_cell(report.path, slice(4, 8), slice(12, 16)) == (1.5 / 8, 3.5 / 4)


def test_layers_can_be_given_as_objects(tiny: nn.Module, tmp_path: Path) -> None:
    module: Any = tiny
    report = export(module, tmp_path / "net.onnx", module.features[1], input_size=32)
    assert (report.layer, report.shape) == ("features.1", (8, 16, 16))
    with pytest.raises(LayerError, match="is a Conv2d that is not inside the Tiny; expected one of its own layers"):
        export(module, tmp_path / "net.onnx", nn.Conv2d(3, 8, 3), input_size=32)
    with pytest.raises(LayerError, match="the model is torchvision:resnet18; give the layer's name"):
        export("torchvision:resnet18", tmp_path / "net.onnx", module.features, input_size=32)
    with pytest.raises(OptionError, match="layer is 3; expected a name, 'auto', or a module or layer"):
        export(module, tmp_path / "net.onnx", 3, input_size=32)


def local_answers(height: int, width: int, reach: float, shared: float = 0.0) -> np.ndarray:
    """Answers [16,h,w] of cells that see a blurred part of the image, and the whole of it a little."""
    rows, columns = (np.arange(4) + 0.5) / 4, (np.arange(4) + 0.5) / 4
    y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    distance = (rows[:, None, None, None] - y[:, None]) ** 2 + (columns[:, None, None] - x) ** 2
    return np.exp(-distance / (2 * reach**2)).reshape(16, height, width) + shared


@pytest.mark.parametrize(
    ("height", "width", "reach", "shared"),
    [(7, 7, 0.1, 0.0), (2, 2, 0.3, 5.0), (3, 5, 0.5, 1.0), (1, 8, 0.2, 0.0), (56, 56, 0.05, 0.0), (14, 14, 1.0, 3.0)],
)
def test_local_answers_are_confirmed_and_disordered_ones_are_not(
    height: int, width: int, reach: float, shared: float
) -> None:
    """Whether cells see little or nearly all of the image, and whatever all cells answer alike."""
    random = np.random.default_rng(0)
    answers = local_answers(height, width, reach, shared) * random.uniform(0.8, 1.25, (16, height, width)) ** 0.1
    assert judge(answers).verdict == "confirmed"
    assert judge(answers[:, :, ::-1]).order == "the columns are mirrored"
    if min(height, width) > 3:
        shuffled = answers.reshape(16, -1)[:, random.permutation(height * width)].reshape(answers.shape)
        assert judge(shuffled).verdict == "none"
        assert (
            judge(np.roll(answers, (height // 2, width // 2), (1, 2))).order == "the cells are shifted around the edges"
        )
    assert judge(random.uniform(0.9, 1.1, answers.shape)).is_wrong


def test_a_layer_that_does_not_depend_on_the_image_is_neither_right_nor_wrong() -> None:
    assert judge(np.zeros((16, 4, 4))).verdict == "silent"
    rounding = np.random.default_rng(0).uniform(0, 1e-7, (16, 4, 4))
    assert judge(rounding, largest=1.0).verdict == "silent"


@pytest.mark.slow
def test_maxvit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    report = export(torchvision.models.maxvit_t(weights=None).eval(), tmp_path / "net.onnx", preprocess="imagenet")
    assert (report.layer, report.shape) == ("blocks.3", (512, 7, 7))
    assert report.places.verdict == "confirmed"
