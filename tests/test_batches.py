"""Graphs that were written for one picture, and scores that depend on the other pictures of a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from conftest import Tiny
from onnx import TensorProto, helper
from onnxruntime import quantization
from strangers import onnx_models, torch_models
from torch import nn

import ortcam
from ortcam.errors import ExportError
from ortcam.exporters import ExportReport, export

X = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
PHOTO = np.random.default_rng(1).integers(0, 255, (40, 40, 3), dtype=np.uint8)


def older_onnx(module: nn.Module, path: Path, free: bool) -> Path:
    """A file of torch's older exporter, traced with one picture; its batch is stated to be free, or not."""
    axes = {"x": {0: "n"}, "y": {0: "n"}} if free else None
    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": axes}
    torch.onnx.export(module, (torch.zeros(1, 3, 32, 32),), path, dynamo=False, opset_version=17, **names)
    return path


def weights_by_batch_size(report: ExportReport) -> list[np.ndarray]:
    return [ortcam.ScoreCAM(report.path, batch_size=size).explain(PHOTO).weights for size in (1, 3, 8)]


def assert_right(report: ExportReport, module: nn.Module) -> None:
    """The file gives a batch the module's scores, and weights do not depend on the batch size."""
    with torch.no_grad():
        expected = np.concatenate([module(torch.from_numpy(row[None])).numpy() for row in X])
    size = report.agreement.batches[-1]
    session = ort.InferenceSession(report.path)
    scores = [session.run(None, {"image": X[row : row + size]})[0] for row in range(0, 3, size)]
    assert np.allclose(np.concatenate(scores), expected, atol=1e-5)
    alone, *together = weights_by_batch_size(report)
    assert alone.std() > 0
    for weights in together:
        assert np.allclose(weights, alone, rtol=1e-4)


@pytest.mark.parametrize("source", ["module", "free", "fixed"])
def test_a_batch_inside_the_code(source: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torch_models.Baked().eval()
    given = module if source == "module" else older_onnx(module, tmp_path / "plain.onnx", source == "free")
    report = export(given, tmp_path / "cam.onnx", preprocess="imagenet", input_size=32)
    assert report.agreement.batches == (1, 3)
    assert any("was made free" in notice for notice in report.notices)
    assert_right(report, module)


class Windows(Tiny):
    """Windows of tokens, with the batch in front of them as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        b, c, h, w = (int(dim) for dim in x.shape)
        windows = x.view(b, c, 2, h // 2, 2, w // 2).permute(0, 2, 4, 3, 5, 1).reshape(b * 4, h * w // 4, c)
        windows = torch.relu(windows + self.mix(windows))
        x = x + windows.view(b, 2, 2, h // 2, w // 2, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)
        scores: torch.Tensor = self.fc(torch.relu(x).mean((2, 3)))
        return scores


class ClassToken(Tiny):
    """A class token that is repeated for the batch, which the exporter folds."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.mix = nn.Parameter(torch.randn(1, 1, 16)), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.features(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.repeat(int(x.shape[0]), 1, 1), tokens], 1)
        scores: torch.Tensor = self.fc(torch.relu(tokens + self.mix(tokens)).mean(1))
        return scores


class Resized(Tiny):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        larger = nn.functional.interpolate(self.features(x), size=(12, 12), mode="bilinear")
        scores: torch.Tensor = self.fc(torch.relu(larger - 0.1).mean((2, 3)))
        return scores


class OneByOne(Tiny):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = self.features(x).mean((2, 3))
        return torch.cat([self.fc(pooled[row : row + 1]) for row in range(int(x.shape[0]))])


class FirstOnly(Tiny):
    """Returns the first picture's scores for a batch of any size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.fc(self.features(x).mean((2, 3))[0])[None]
        return scores


@pytest.mark.parametrize(
    ("kind", "batches"),
    [(Windows, (1, 3)), (ClassToken, (1, 3)), (Resized, (1, 3)), (OneByOne, (1, 3)), (FirstOnly, (1,))],
)
def test_other_places_of_the_batch(kind: type[nn.Module], batches: tuple[int, ...], tmp_path: Path) -> None:
    module = kind().eval()
    plain = older_onnx(module, tmp_path / "plain.onnx", kind is not Resized)
    report = export(plain, tmp_path / "cam.onnx", preprocess="imagenet")
    assert report.agreement.batches == batches
    assert any(("made free" if batches == (1, 3) else "run one at a time") in notice for notice in report.notices)
    assert_right(report, module)


def test_batch_statistics_run_alone(tmp_path: Path) -> None:
    module = torch_models.batch_statistics()
    report = export(module, tmp_path / "cam.onnx", preprocess="imagenet", input_size=32, output_kind="logits")
    assert any("scores differ by" in notice and "each alone in its batch" in notice for notice in report.notices)
    assert report.contract.verified["batches"] == [1]
    assert ortcam.CamModel(report.path).batch == 1
    assert_right(report, module)


def test_a_dynamically_quantized_file_runs_alone(tmp_path: Path) -> None:
    """Its scales are those of the largest number of the batch."""
    onnx_models.write_models(tmp_path)
    plain, quantized = tmp_path / "embedding-first.onnx", tmp_path / "quantized.onnx"
    quantization.quantize_dynamic(plain, quantized, weight_type=quantization.QuantType.QUInt8)
    report = export(quantized, tmp_path / "cam.onnx", preprocess="tf", output_kind="logits")
    assert any("each alone in its batch" in notice for notice in report.notices)
    alone, *together = weights_by_batch_size(report)
    assert all(np.array_equal(weights, alone) for weights in together)


class Compares(Tiny):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).softmax(0)


@pytest.mark.slow
def test_a_softmax_over_the_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"compares the pictures of a batch.*alone all pictures have the same scores"):
        export(Compares().eval(), tmp_path / "cam.onnx", input_size=32)


SCORES = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 4])


def test_a_file_in_training_mode(tmp_path: Path) -> None:
    vectors = {"one": np.ones(8, np.float32), "zero": np.zeros(8, np.float32)}
    inputs, outputs = ["c", "one", "zero", "zero", "one"], ["normal", "mean", "variance"]
    normalize = helper.make_node("BatchNormalization", inputs, outputs, training_mode=1)
    relu = helper.make_node("Relu", ["normal"], ["r"])
    nodes = [onnx_models.BODY[0], normalize, relu, *onnx_models.BODY[2:]]
    onnx_models.save(tmp_path / "plain.onnx", nodes, [SCORES], 15, vectors)
    with pytest.raises(
        ExportError, match=r"is in training mode: 1 BatchNormalization .*\(first: normal\).*model\.eval"
    ):
        export(tmp_path / "plain.onnx", tmp_path / "cam.onnx")


def test_dropout_in_training_mode_is_switched_off(tmp_path: Path) -> None:
    dropout = helper.make_node("Dropout", ["embedding", "ratio", "training"], ["kept"])
    head = helper.make_node("Gemm", ["kept", "w2", "b2"], ["scores"])
    more = {"ratio": np.array(0.5, np.float32), "training": np.array(True)}
    onnx_models.save(tmp_path / "plain.onnx", [*onnx_models.BODY[:-1], dropout, head], [SCORES], 13, more)
    onnx_models.save(tmp_path / "without.onnx", onnx_models.BODY, [SCORES], 13)
    report = export(tmp_path / "plain.onnx", tmp_path / "cam.onnx")
    assert any("1 Dropout in training mode, which are switched off" in notice for notice in report.notices)
    options = ort.SessionOptions()  # ONNX Runtime's optimisations would hide it
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    expected = ort.InferenceSession(tmp_path / "without.onnx").run(None, {"image in": X})[0]
    assert np.allclose(ort.InferenceSession(report.path, options).run(None, {"image": X})[0], expected, atol=1e-6)


def test_random_numbers_are_said(tmp_path: Path) -> None:
    noise = helper.make_node("RandomNormalLike", ["scores"], ["noise"], seed=1.0)
    add = helper.make_node("Add", ["scores", "noise"], ["noisy"])
    output = helper.make_tensor_value_info("noisy", TensorProto.FLOAT, ["n", 4])
    onnx_models.save(tmp_path / "plain.onnx", [*onnx_models.BODY, noise, add], [output], 13)
    with pytest.raises(ExportError, match=r"draws random numbers: two equal runs differ by .*evaluation mode"):
        export(tmp_path / "plain.onnx", tmp_path / "cam.onnx")
    assert onnx.load(tmp_path / "plain.onnx").graph.output[0].name == "noisy"
    assert not (tmp_path / "cam.onnx").exists()


class Drops(Tiny):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = nn.functional.dropout(self.features(x).mean((2, 3)), 0.5, training=True)
        scores: torch.Tensor = self.fc(pooled)
        return scores


@pytest.mark.slow
def test_a_module_that_draws_random_numbers(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"draws random numbers: two equal runs differ by .*evaluation mode"):
        export(Drops().eval(), tmp_path / "cam.onnx", input_size=32)
