"""Files that expose several layers: what is exported, and which of them a run takes."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from conftest import Tiny
from torch import nn
from typer.testing import CliRunner

import ortcam
from ortcam import CamModel
from ortcam.cli.app import app
from ortcam.errors import LayerError, OptionError
from ortcam.explain.explainer import ModelExplainer
from ortcam.exporters import export
from ortcam.runtime.layer import with_layer

FORMAT_1 = Path(__file__).parent / "data" / "format1.onnx"  # the same network, exported by an older ortcam
PHOTO = np.random.default_rng(18).integers(0, 256, (48, 40, 3), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of three layers, and with files of its first and of its second alone."""
    path = tmp_path_factory.mktemp("exposed")
    layers = ["features", "features.1", "features.2"]
    export(Tiny().eval(), path / "three.onnx", layers, preprocess="imagenet", input_size=32)
    for name, layer in {"first": "features", "second": "features.1"}.items():
        export(FORMAT_1, path / f"{name}.onnx", layer)
    return path


def explain(path: Path, layer: str | None = None) -> ortcam.Explanation:
    return ortcam.ScoreCAM(path, provider="cpu", layer=layer).explain(PHOTO, targets=[1, 2])


def test_every_layer_is_an_output_that_was_verified(folder: Path) -> None:
    proto = onnx.load(folder / "three.onnx")
    onnx.checker.check_model(proto, full_check=True)
    outputs = ["logits", "activations", "activations.1", "activations.2"]
    assert [output.name for output in proto.graph.output] == outputs
    contract = CamModel(folder / "three.onnx").contract
    assert [layer.output for layer in contract.layers] == outputs[1:]
    assert [layer.name for layer in contract.layers] == ["features", "features.1", "features.2"]
    assert [layer.value for layer in contract.layers] == ["relu_1", "relu", "conv2d_1"]
    assert (contract.task, contract.outputs) == ("classify", {"scores": "logits"})
    assert (contract.layer, contract.value, contract.activations_layout) == ("features", "relu_1", "NCHW")
    x = np.random.default_rng(1).standard_normal((4, 3, 32, 32)).astype(np.float32)
    _, *found = ort.InferenceSession(folder / "three.onnx").run(None, {"image": x})
    module = Tiny().eval()
    with torch.no_grad():
        expected = [module.features[:end](torch.from_numpy(x)).numpy() for end in (4, 2, 3)]
    for layer, ours, theirs in zip(contract.layers, found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)  # float32 sums of 72 products
        assert 0 < layer.verified["activations_relative_error"] < 1e-5
        assert layer.verified["places"] == "confirmed"
    assert not contract.verified.keys() & contract.layers[0].verified.keys()
    grown = (folder / "three.onnx").stat().st_size - (folder / "first.onnx").stat().st_size
    assert grown < 1000, "a layer is an output, and a line of metadata"


@pytest.mark.parametrize(
    ("alone", "layers"),
    [("first", [None, "features", "relu_1", "activations"]), ("second", ["features.1", "relu", "activations.1"])],
)
def test_an_exposed_layer_is_that_of_a_file_of_its_own(folder: Path, alone: str, layers: list[str | None]) -> None:
    """The graphs differ in names only, so the maps are equal; those that the cache keeps are told apart."""
    expected = explain(folder / f"{alone}.onnx")
    for layer in layers:
        found = explain(folder / "three.onnx", layer)
        np.testing.assert_array_equal(found.raw_maps, expected.raw_maps)
        assert found.layer == found.to_dict()["model"]["layer"] == expected.layer


def test_what_follows_an_exposed_layer_is_that_of_a_file_of_its_own(folder: Path) -> None:
    """Recipro-CAM runs the tail behind the layer alone; behind `features.1` lie the other two layers."""
    for layer, alone in (("features", "first"), ("features.1", "second")):
        ours = ModelExplainer(folder / "three.onnx", ortcam.ReciproCAM(), provider="cpu", layer=layer).explain(PHOTO)
        theirs = ModelExplainer(folder / f"{alone}.onnx", ortcam.ReciproCAM(), provider="cpu").explain(PHOTO)
        assert theirs.raw_maps.std() > 0
        np.testing.assert_array_equal(ours.raw_maps, theirs.raw_maps)


def test_a_layer_that_is_not_exposed_is_still_found(folder: Path) -> None:
    expected = explain(folder / "first.onnx", "features.0").raw_maps
    np.testing.assert_allclose(explain(folder / "three.onnx", "features.0").raw_maps, expected, rtol=0, atol=1e-6)
    with pytest.raises(LayerError, match=r"'features.7' is not in three.onnx; nearest: features"):
        explain(folder / "three.onnx", "features.7")


def test_one_model_changes_its_layer_again_and_again(folder: Path) -> None:
    """Exposed, not exposed, pickled, and back: always that layer alone, and the file's own graph once more."""
    model = CamModel(folder / "three.onnx")
    keys = []
    for layer, shape in {"features.1": (8, 16, 16), "features.0": (8, 16, 16), "features.2": (16, 8, 8)}.items():
        assert not model.exposes(layer)
        model = pickle.loads(pickle.dumps(with_layer(model, layer)))
        assert model.exposes(layer) and with_layer(model, layer) is model
        assert (model.contract.layer, model.activations_shape) == (layer, shape)
        outputs = [output.name for output in model.take_proto().graph.output]
        assert outputs == ["logits", "activations"] == ["logits", *(one.output for one in model.contract.layers)]
        keys.append(model.edited_layer)
    model = with_layer(model, "features")
    assert model.contract == CamModel(folder / "three.onnx").contract
    assert len({*keys, model.edited_layer}) == 4, "the cache tells layers apart by these"


def test_an_exposed_layer_needs_no_onnx_ir(folder: Path) -> None:
    script = "import sys, ortcam; ortcam.ScoreCAM('three.onnx', provider='cpu', layer='features.1'); "
    script += "sys.exit('onnx_ir' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=folder, env=os.environ, check=False).returncode == 0


def optimised(proto: onnx.ModelProto, path: Path) -> Counter[str]:
    """Return the operators that ONNX Runtime runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED  # the next level logs a warning
    ort.InferenceSession(proto.SerializeToString(), options)
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_layers_that_are_not_asked_for_stop_no_fusion(folder: Path, tmp_path: Path) -> None:
    """`features.2` is a convolution before its ReLU: as an output it keeps the two apart."""
    whole, alone = onnx.load(folder / "three.onnx"), onnx.load(folder / "first.onnx")
    fused = optimised(alone, tmp_path / "alone.onnx")
    assert fused["FusedConv"] == 2
    assert optimised(whole, tmp_path / "whole.onnx")["FusedConv"] < 2
    assert optimised(CamModel(folder / "three.onnx").take_proto(), tmp_path / "taken.onnx") == fused


class Tokens(nn.Module):
    """Patches in rows, two layers of them, and the mean of all as a last word."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 12, 8, 8), nn.Linear(12, 5)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(12, 12), nn.GELU()) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = tokens + block(tokens)
        scores: torch.Tensor = self.head(tokens.mean(1))
        return scores


@pytest.mark.slow
def test_patches_that_are_put_in_rows_for_one_layer_are_not_for_the_other(tmp_path: Path) -> None:
    """Nodes that a layer's output alone needs go with it."""
    for name, layers in {"both": ["blocks.1", "blocks.0"], "blocks.0": "blocks.0", "blocks.1": "blocks.1"}.items():
        export(Tokens().eval(), tmp_path / f"{name}.onnx", layers, preprocess="imagenet", input_size=(32, 40))
    for layer in ("blocks.0", "blocks.1"):
        ours, alone = with_layer(CamModel(tmp_path / "both.onnx"), layer), CamModel(tmp_path / f"{layer}.onnx")
        assert ours.activations_shape == alone.activations_shape == (4, 5, 12)
        kinds = [Counter(node.op_type for node in model.take_proto().graph.node) for model in (ours, alone)]
        assert kinds[0] == kinds[1]
        maps = [ortcam.ScoreCAM(model, provider="cpu").explain(PHOTO).raw_maps for model in (ours, alone)]
        np.testing.assert_array_equal(*maps)


def test_a_packed_file_states_its_layer_alone(folder: Path, tmp_path: Path) -> None:
    for layer, name in ((None, "features"), ("features.1", "features.1")):
        report = ortcam.pack(folder / "three.onnx", tmp_path / "packed.onnx", layer=layer)
        assert report.r is not None and report.r >= 0.9999  # against the engine with that layer
        (stated,) = ortcam.PackedExplainer(tmp_path / "packed.onnx").contract.layers
        assert (stated.name, stated.output) == (name, None)
        assert "activations.1" not in {output.name for output in onnx.load(tmp_path / "packed.onnx").graph.output}


def test_a_file_is_exported_again_with_its_layers(folder: Path, tmp_path: Path) -> None:
    """In another order: names and numbers stay, and the outputs are named anew."""
    report = export(folder / "three.onnx", tmp_path / "again.onnx", ["features.1", "features"])
    assert [layer.name for layer in report.layers] == ["features.1", "features"]
    x = np.random.default_rng(1).standard_normal((2, 3, 32, 32)).astype(np.float32)
    _, first, second, _ = ort.InferenceSession(folder / "three.onnx").run(None, {"image": x})
    _, *found = ort.InferenceSession(tmp_path / "again.onnx").run(None, {"image": x})
    np.testing.assert_allclose(found[0], second, rtol=0, atol=1e-6)  # the graph is optimised otherwise
    np.testing.assert_allclose(found[1], first, rtol=0, atol=1e-6)
    assert with_layer(CamModel(tmp_path / "again.onnx"), "activations").contract.layer == "features.1"


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        ([], OptionError, "layer is an empty list"),
        (["features", "features.5"], LayerError, r"layer 'features.5' is not in .*format1.onnx; nearest: features"),
        (["auto", "features"], LayerError, r"layers 'auto' and 'features' are the same tensor of .*format1.onnx"),
        (["features", 3], OptionError, "layer is 3; expected a name"),
    ],
)
def test_layers_that_cannot_be_exposed_together(
    layers: list[Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message) as caught:
        export(FORMAT_1, tmp_path / "out.onnx", layers)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_layers_on_the_command_line(tmp_path: Path) -> None:
    made, run = tmp_path / "cam.onnx", CliRunner().invoke
    done = run(app, ["export", str(FORMAT_1), "-o", str(made), "--layer", "features", "--layer", "relu", "--json"])
    assert [(one["name"], one["shape"], one["output"], one["places"]) for one in json.loads(done.stdout)["layers"]] == [
        ("features", [16, 8, 8], "activations", "confirmed"),
        ("relu", [8, 16, 16], "activations.1", "confirmed"),
    ]
    shown = run(app, ["inspect", str(made)]).output.splitlines()
    assert [line.split(" (")[0] for line in shown if line.startswith("layer ")] == ["layer   features", "layer   relu"]
    assert any("relu: confirmed" in line for line in shown)
    contract = json.loads(run(app, ["inspect", str(made), "--json"]).stdout)["contract"]
    assert [layer["output"] for layer in contract["layers"]] == ["activations", "activations.1"]
