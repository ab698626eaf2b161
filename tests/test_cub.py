"""The protocol of "error understanding on CUB-200-2011", end to end on a small tree of its layout.

Misclassified photos, at most 2 of each class; the predicted or the true class is explained, the true one is scored.
The protocol is that of RuoyuChen10/SMDL-Attribution. Its fine-tuned weights cannot be had here, nor can CUB itself: the
photos are foolbox's, and three torchvision networks are untrained. So the values below say nothing of birds.
"""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import ortcam
from ortcam.cli.app import app
from ortcam.errors import OrtcamWarning
from ortcam.exporters import export
from ortcam.model.preprocessing import Preprocessing

Pixels = NDArray[np.uint8]
Means = dict[tuple[str, str], dict[str, float]]  # by explained class and method, then by column
STEPS = 25  # the protocol's; 24 points between 0 and 100 % for the highest confidence
SHARES = {"25%": 0.25, "50%": 0.5, "75%": 0.75, "": 1.0}
MINE = "score-cam:budget=8"
CONTROLS = {"random", "centre", "activations"}
PROTOCOL = ["--only", "misclassified", "--most-per-class", "2", "--score", "true"]
METRICS = ["energy", "highest-confidence", "insertion:smdl"]


def make_tree(root: Path, photos: Mapping[str, tuple[int, Pixels]], classes: int = 1000) -> Path:
    """Write photos, each with its class from 0, in CUB's layout. The box of each is its middle quarter."""
    tables: dict[str, list[str]] = {name: [] for name in ("images", "image_class_labels", "train_test_split")}
    boxes = []
    folders = [f"{index + 1:03d}.Class_{index}" for index in range(classes)]
    for key, (name, (label, pixels)) in enumerate(photos.items(), 1):
        path = root / "images" / folders[label] / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        side = len(pixels)
        boxes.append(f"{key} {side / 4} {side / 4} {side / 2} {side / 2}")
        for table, value in zip(tables.values(), (f"{folders[label]}/{name}.png", label + 1, 0), strict=True):
            table.append(f"{key} {value}")
    tables |= {"bounding_boxes": boxes, "classes": [f"{at} {name}" for at, name in enumerate(folders, 1)]}
    for name, lines in tables.items():
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


def squashed(photo: Path, side: int) -> Pixels:
    """Return a photo at the model's input size, as the protocol makes it: ortcam need not resize it again."""
    return np.asarray(Image.open(photo).convert("RGB").resize((side, side)))


def run(model: Path, tree: Path, explain: str, output: Path) -> dict[str, Any]:
    """Run the command. Return the file that it writes."""
    chosen = [part for name in METRICS for part in ("--metric", name)]
    given = ["evaluate", str(model), "--dataset", f"cub:{tree}", *PROTOCOL, "--explain", explain, "--budget", "8"]
    done = CliRunner().invoke(app, [*given, *chosen, "-o", str(output)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    stored: dict[str, Any] = json.loads((output / "results.json").read_text())
    return stored


class ByHand:
    """The protocol in NumPy, on ONNX Runtime's plain session of the model file."""

    def __init__(self, model: Path, preprocessing: Preprocessing) -> None:
        self.session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        self.explainer = ortcam.ScoreCAM(str(model), provider="cpu")
        self.mean, self.std = (np.array(part, np.float32) for part in (preprocessing.mean, preprocessing.std))
        self.scale = np.float32(preprocessing.scale)

    def inputs(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return pictures [n,H,W,3] as inputs [n,3,H,W]."""
        values: NDArray[np.float32] = (pictures.astype(np.float32) * self.scale - self.mean) / self.std
        return values.transpose(0, 3, 1, 2)

    def probabilities(self, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
        logits = self.session.run(["logits"], {self.session.get_inputs()[0].name: np.ascontiguousarray(inputs)})[0]
        powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
        return shares

    def most_probable(self, photo: Pixels) -> list[int]:
        """Return the classes, the most probable first."""
        return [int(index) for index in np.argsort(-self.probabilities(self.inputs(photo[None]))[0])]

    def values(self, photo: Pixels, explained: int, scored: int) -> dict[str, float] | None:
        """Return the metrics of Score-CAM with a budget of 8, by column; None for a flat map."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OrtcamWarning)  # untrained networks have flat maps of most classes
            saliency = self.explainer.explain(photo, explained, budget=8).maps[0]
        if saliency.max() == saliency.min():
            return None
        pixels = saliency.size
        shown = [i * pixels // STEPS for i in range(STEPS + 1)]
        # Highest confidence: the other pixels are black in the photo; of equal pixels, the first is shown first.
        order = np.argsort(-saliency.ravel(), kind="stable")
        pictures = np.zeros((STEPS - 1, pixels, 3), np.uint8)
        for picture, count in zip(pictures, shown[1:-1], strict=True):
            picture[order[:count]] = photo.reshape(pixels, 3)[order[:count]]
        scores = self.probabilities(self.inputs(pictures.reshape(-1, *photo.shape)))[:, scored]
        made = {
            f"highest-confidence {part}".strip(): float(scores[: int(share * len(scores))].max())
            for part, share in SHARES.items()
        }
        # Insertion: the other pixels are 0 in the preprocessed photo; the last of equal pixels is shown first.
        order = np.argsort(saliency.ravel(), kind="stable")[::-1]
        whole = self.inputs(photo[None])[0].reshape(3, pixels)
        inputs = np.zeros((STEPS + 1, 3, pixels), np.float32)
        for one, count in zip(inputs, shown, strict=True):
            one[:, order[:count]] = whole[:, order[:count]]
        scores = self.probabilities(inputs.reshape(-1, 3, *saliency.shape))[:, scored]
        made["insertion:smdl"] = float(np.mean((scores[1:] + scores[:-1]) / 2))
        quarter = slice(len(photo) // 4, len(photo) // 4 + len(photo) // 2)
        made["energy"] = float(saliency[quarter, quarter].sum(dtype=np.float64) / saliency.sum(dtype=np.float64))
        return made


def check(model: Path, root: Path, photos: Mapping[str, tuple[int, Pixels]], chosen: Sequence[str]) -> Means:
    """Run the protocol for both explained classes, and compare it with the values by hand; `chosen` photos remain.

    Return the means of each column by explained class and method.
    """
    means: Means = {}
    tree = make_tree(root / "CUB_200_2011", photos)
    preprocessing = ortcam.CamModel(model).contract.preprocessing
    assert preprocessing is not None
    hand = ByHand(model, preprocessing)
    for explain in ("predicted", "true"):
        stored = run(model, tree, explain, root / explain)
        record, rows = stored["record"], stored["rows"]
        assert (record["only"], record["most_per_class"]) == ("misclassified", 2)
        assert record["dataset"]["notes"] == [], "as many classes as the model"
        assert (record["explained_class"], record["scored_class"]) == (explain, "true")
        assert {row["method"] for row in rows} == {MINE, *CONTROLS}
        kept = [row for row in rows if row["method"] == MINE]
        assert [Path(row["photo"]).stem for row in kept] == list(chosen)
        expected = []
        for row in kept:
            label, pixels = photos[Path(row["photo"]).stem]
            predicted = hand.most_probable(pixels)[0]
            assert predicted != label
            assert (row["explained"], row["scored"]) == (predicted if explain == "predicted" else label, label)
            by_hand = hand.values(pixels, row["explained"], label)
            if by_hand is None:
                assert set(row["values"].values()) == {None} and set(row["reasons"].values()) == {"flat map"}
            else:
                expected.append(by_hand)
                assert row["values"] == pytest.approx(by_hand, abs=1e-4)
        assert expected, "at least one map is not flat"
        with (root / explain / "per-photo.csv").open(newline="") as file:
            lines = list(csv.DictReader(file))
        assert len(lines) == len(rows) == 4 * len(chosen)
        for method in (MINE, *CONTROLS):
            of_method = [line for line in lines if line["method"] == method and line["energy"]]
            means[explain, method] = {
                column: float(np.mean([float(line[column]) for line in of_method])) for column in expected[0]
            }
        mean = {column: np.mean([one[column] for one in expected]) for column in expected[0]}
        assert means[explain, MINE] == pytest.approx(mean, abs=1e-4)
    return means


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet101", "mobilenet_v2", "efficientnet_v2_m"])
def test_the_three_networks_of_the_table(name: str, photos: dict[str, Path], tmp_path: Path) -> None:
    """Untrained and at 64 x 64: this is a test of the path."""
    torch.manual_seed(0)
    network: nn.Module = getattr(torchvision.models, name)(weights=None).eval()
    stretched = Preprocessing(64, 64, scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    model = export(network, tmp_path / f"{name}.onnx", preprocess=stretched, input_size=64).path
    pictures = [squashed(photos[f"imagenet_{at:02d}"], 64) for at in range(5)]
    right, wrong, other, *_ = ByHand(model, stretched).most_probable(pictures[0])  # those of all photos are much alike
    labels = (right, wrong, other, wrong, wrong)
    tree = {f"photo{at}": (label, picture) for at, (label, picture) in enumerate(zip(labels, pictures, strict=True))}
    check(model, tmp_path, tree, ["photo1", "photo2", "photo3"])


@pytest.fixture(scope="module")
def lite0_stretched(lite0: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EfficientNet-Lite0 for photos that are stretched, as the protocol does."""
    stretched = Preprocessing(224, 224, mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0))
    output = tmp_path_factory.mktemp("cub") / "lite0.onnx"
    return export(lite0, output, preprocess=stretched, labels="imagenet").path


@pytest.mark.slow
def test_what_a_trained_network_takes_for_something_else(
    lite0_stretched: Path, photos: dict[str, Path], tmp_path: Path
) -> None:
    """A jeep (609) taken for a convertible (511) and buckeyes (990) for a custard apple (956), beside right answers."""
    jeep, buckeyes = (squashed(photos[name], 224) for name in ("imagenet_07", "imagenet_03"))
    dark = (buckeyes * 0.7).astype(np.uint8)
    tree = {
        "jeep": (609, jeep),
        "right": (243, squashed(photos["imagenet_00"], 224)),
        "mirrored": (609, np.ascontiguousarray(jeep[:, ::-1])),
        "third": (609, (jeep * 0.7).astype(np.uint8)),  # as wrong as the first two: only the limit leaves it out
        "buckeyes": (990, buckeyes),
        "right too": (609, squashed(photos["imagenet_06"], 224)),
        "dark": (990, dark),
    }
    means = check(lite0_stretched, tmp_path, tree, ["jeep", "mirrored", "buckeyes", "dark"])
    columns = ["highest-confidence 25%", "highest-confidence"]
    # Maps of the true class find it: .046 against .009 with maps of the predicted class.
    assert [means["true", MINE][column] > means["predicted", MINE][column] for column in columns] == [True, True]
    assert means["true", MINE][columns[0]] > 3 * means["predicted", MINE][columns[0]]
    # Why there are controls: half-shown photos of noise reach .51, more than any map here (.16).
    for explain in ("predicted", "true"):
        assert means[explain, "random"][columns[1]] > 2 * means[explain, MINE][columns[1]]
    assert all(means["predicted", control] == means["true", control] for control in CONTROLS)
