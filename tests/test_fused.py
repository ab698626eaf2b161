"""fused against its formula in PyTorch, and where a model or a photo does not suit it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import correlation, sharpened
from numpy.typing import NDArray
from torch import nn
from typer.testing import CliRunner

import ortcam
from ortcam.cli.app import app
from ortcam.core.convention import upsample
from ortcam.core.grids import draw_grids
from ortcam.core.query import Grids
from ortcam.errors import LayerError, OptionError
from ortcam.exporters import export

Array = NDArray[np.float32]


class Staged(nn.Module):
    """Two layers: a stage of 16 x 16 and a target layer of 8 x 8; a head that is not linear."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stage = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(12, 16, 3, 2, 1), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 10))

    def from_last(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(x.mean((2, 3)) * 8) * 5
        return scores

    def from_stage(self, x: torch.Tensor) -> torch.Tensor:
        return self.from_last(self.last(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.from_stage(self.stage(x))


@pytest.fixture(scope="module")
def network() -> Staged:
    return Staged().eval()


@pytest.fixture(scope="module")
def staged(network: Staged, models: Path) -> Path:
    return export(network, models / "staged.onnx", preprocess="imagenet", input_size=32, output_kind="logits").path


@pytest.fixture(scope="module")
def photo() -> Array:
    return np.random.default_rng(4).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def between_0_and_1(one: Array) -> Array:
    made: Array = (one - one.min()) / (one.max() - one.min())
    return made


def evidence(network: Staged, x: torch.Tensor, target: int) -> list[Array]:
    """K, D and R as docs/fused.md defines them, in PyTorch; float32 [16,16] each."""
    with torch.no_grad():
        stage = network.stage(x)
        last = network.last(stage)

        def loss(tail: Any, features: torch.Tensor) -> Array:
            made: Array = -torch.log_softmax(tail(features), 1)[:, target].numpy()
            return made

        places = 1 - torch.eye(64).reshape(64, 1, 8, 8)
        contrast = loss(network.from_last, last * places).reshape(1, 8, 8)
        blocks = torch.ones(8, 8, 16, 16)
        for i in range(8):
            for j in range(8):
                blocks[i, j, max(2 * i - 1, 0) : 2 * i + 3, max(2 * j - 1, 0) : 2 * j + 3] = 0
        occlusion = loss(network.from_stage, stage * blocks.reshape(64, 1, 16, 16)).reshape(1, 8, 8)
        grids = draw_grids(Grids((5, 5), 0.5, 0), np.arange(98), (5, 5))[0]
        masks = torch.nn.functional.interpolate(torch.from_numpy(grids)[:, None], (16, 16), mode="bilinear")
        masks = torch.cat([masks, 1 - masks])
        shown = -loss(network.from_stage, stage * masks)
        centred = masks[:, 0].numpy() - 0.5
        slopes = np.einsum("m,mij->ij", shown - shown.mean(), centred) / (centred**2).sum(axis=0)
    return [
        upsample(between_0_and_1(contrast), (16, 16))[0],
        between_0_and_1(upsample(occlusion, (16, 16))[0]),
        between_0_and_1(slopes),
    ]


@pytest.mark.parametrize("passes", [0, 5])
def test_fused_is_its_formula(network: Staged, staged: Path, photo: Array, passes: int) -> None:
    with ortcam.load_explainer(staged, ortcam.Fused(passes=passes), provider="cpu") as explainer:
        ours = explainer.explain(photo, top_k=2)
        x = torch.from_numpy(explainer.model.prepare(photo)[1])
        (stage,) = ours.to_dict()["method"]["stages"]
    for place, target in enumerate(ours.targets):
        first, *others = evidence(network, x, target.index)
        if passes:
            targets = [one.index for one in ours.targets]  # the passes are chosen for all of them
            scorecam = ortcam.ScoreCAM(staged, layer=stage, provider="cpu").explain(photo, targets, budget=passes)
            others.append(between_0_and_1(np.maximum(scorecam.raw_maps[place], 0)))
        expected = first * np.prod([one + 0.1 for one in others], axis=0)
        assert correlation(ours.raw_maps[place], expected) > 0.99999
        assert np.abs(ours.raw_maps[place] - expected).max() < 2e-3 * expected.max()
    assert ours.scored == 64 + 1 + 64 + 196 + passes


def test_stages_are_found_and_can_be_named(staged: Path, photo: Array, tmp_path: Path) -> None:
    with ortcam.load_explainer(staged, "fused", provider="cpu") as explainer:
        found = explainer.explain(photo)
    assert found.raw_maps.shape == (1, 16, 16)
    (stage,) = found.to_dict()["method"]["stages"]
    with ortcam.load_explainer(staged, "fused", provider="cpu", layer=[found.layer, stage]) as explainer:
        assert np.array_equal(explainer.explain(photo).maps, found.maps)
    with ortcam.load_explainer(staged, "fused", provider="cpu", layer=stage) as explainer:
        alone = explainer.explain(photo)  # nothing larger leads to all scores, so the layer is all there is
    assert alone.raw_maps.shape == (1, 16, 16)
    assert alone.to_dict()["method"]["stages"] == []
    assert np.ptp(alone.maps) > 0.5
    for layers, error, message in (
        ([found.layer, "nothing"], LayerError, "nothing"),
        ([found.layer, stage, stage], OptionError, "got 3 layers; this method takes at most 2"),
        ([found.layer, found.layer], LayerError, f"{found.layer!r} of staged.onnx is not before {found.layer!r}"),
        ([stage, found.layer], LayerError, f"{found.layer!r} of staged.onnx is not before {stage!r}; .* order"),
    ):
        with pytest.raises(error, match=message):
            ortcam.load_explainer(staged, "fused", layer=layers)
    with pytest.raises(OptionError, match="got 2 layers; score-cam takes one"):
        ortcam.load_explainer(staged, preset="paper", layer=[found.layer, stage])
    np.save(tmp_path / "photo.npy", photo)
    found.save(tmp_path / "out")
    assert ortcam.reproduce(tmp_path / "out", photo=tmp_path / "photo.npy").agrees


def test_a_certain_class_has_a_map(models: Path, photo: Array) -> None:
    """Log-probabilities near 0 are rounding: -2e-7 of a class with 12 logits more than all others."""
    with torch.no_grad():
        network = Staged().eval()
        network.head[2].bias[4] += 6
    path = export(network, models / "sure.onnx", preprocess="imagenet", input_size=32, output_kind="logits").path
    with ortcam.load_explainer(path, ortcam.Fused(passes=0), provider="cpu") as explainer:
        ours = explainer.explain(photo, [4])
        x = torch.from_numpy(explainer.model.prepare(photo)[1])
    assert ours.targets[0].probability > 0.9999
    with torch.no_grad():
        last = network.last(network.stage(x))
        lost = -network.from_last(last * (1 - torch.eye(64).reshape(64, 1, 8, 8)))[:, 4].numpy()
    assert correlation(ours.weights[0, :64], -lost) > 0.9999, "logits are used"
    assert np.ptp(ours.maps) > 0.9


def test_no_map_is_made_of_rounding(models: Path, photo: Array) -> None:
    """A stage, or a target layer, whose places make no difference leaves its factors out; all of them give no map."""
    network = sharpened(Staged().eval(), 1)
    with torch.no_grad():
        network.head[2].weight[:, :] = 0
    path = export(network, models / "blind.onnx", preprocess="imagenet", input_size=32, output_kind="logits").path
    with ortcam.load_explainer(path, "fused", provider="cpu") as explainer:
        with pytest.warns(ortcam.OrtcamWarning, match="is flat"):
            ours = explainer.explain(photo)
        assert not ours.maps.any()
        black = np.zeros((40, 50, 3), np.uint8)
        with pytest.warns(ortcam.OrtcamWarning, match="is flat"):
            assert np.isfinite(explainer.explain(black).maps).all()


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_the_command_line_takes_fused_where_it_suits(
    staged: Path, photo: Array, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import json

    import cv2

    cv2.imwrite(str(tmp_path / "photo.png"), photo)

    def method_of(*options: str) -> str:
        done = run("explain", staged, tmp_path / "photo.png", "-o", tmp_path / "out", "--json", "--overwrite", *options)
        assert done.exit_code == 0, done.exception
        name: str = json.loads(done.stdout)["explanations"][0]["method"]["name"]
        return name

    assert method_of() == "fused"
    assert method_of("--method-option", "passes=0") == "fused"
    for options in (("--budget", "4"), ("--tolerance", "0.1"), ("--preset", "paper"), ("--method", "score-cam")):
        assert method_of(*options) == "score-cam"
    around = export(Around().eval(), tmp_path / "around.onnx", preprocess="imagenet", input_size=32, layer="relu",
                    output_kind="logits").path  # fmt: skip
    with caplog.at_level(logging.INFO, logger="ortcam"):
        assert ortcam.load_explainer(around, "auto").method.name == "score-cam"
    assert "fused does not suit it: the scores do not follow from layer 'relu' alone" in caplog.text
    with pytest.raises(LayerError, match="another path leads around"):
        ortcam.load_explainer(around, "fused")


class Around(nn.Module):
    """A shortcut leads around the layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.relu = nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()
        self.second, self.fc = nn.Conv2d(8, 8, 3, 1, 1), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        scores: torch.Tensor = self.fc((x + self.relu(self.second(x))).mean((2, 3)))
        return scores
