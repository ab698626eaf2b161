"""Real networks and photos, from Python packages: nothing is downloaded."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torchvision
from torch import nn

import ortcam
from ortcam.cli.demo import load_efficientnet_lite0
from ortcam.exporters import export

# Packed explainers do not have the others.
UNCENTRED_PRESETS = [name for name, convention in ortcam.PRESETS.items() if not convention.is_centred]


@pytest.fixture(autouse=True, scope="module")
def cache_of_its_own() -> Iterator[None]:
    """Keep prepared graphs of the tests' models out of the user's cache, and remove them: they are gigabytes."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORTCAM_CACHE", folder)
        yield


@pytest.fixture(autouse=True, scope="module")
def freed_memory() -> Iterator[None]:
    """Give freed memory back after every file of tests: glibc keeps gigabytes of what exporters and sessions had."""
    yield
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


@pytest.fixture(scope="session")
def photos() -> dict[str, Path]:
    """Photos by name; `imagenet_NN` have their ImageNet class in the file name."""
    data = package_folder("foolbox") / "data"
    skimage, sklearn = package_folder("skimage") / "data", package_folder("sklearn") / "datasets" / "images"
    return {
        **{path.stem[:11]: path for path in sorted(data.glob("imagenet_*.jpg"))},
        **{name: skimage / f"{name}.png" for name in ("chelsea", "coffee", "astronaut", "camera")},
        "rocket": skimage / "rocket.jpg",
        "page": skimage / "page.png",
        **{name: sklearn / f"{name}.jpg" for name in ("china", "flower")},
    }


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that exported models are kept in while the tests run."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def lite0() -> nn.Module:
    """EfficientNet-Lite0 trained on ImageNet."""
    return load_efficientnet_lite0()


@pytest.fixture(scope="session")
def lite0_file(lite0: nn.Module, models: Path) -> Path:
    """EfficientNet-Lite0, exported with its head's activation as target layer: 1280 x 7 x 7."""
    return export(lite0, models / "lite0.onnx", preprocess="lite", labels="imagenet").path


class Tiny(nn.Module):
    """A classifier of 10 classes that exports in a second."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.fc(self.features(x).mean((2, 3)))
        return scores


@pytest.fixture
def tiny() -> nn.Module:
    return Tiny().eval()


class FlatLayer(nn.Module):
    """A layer whose first channels, or all of them, vary nowhere, whatever the photo.

    They are so many that their sums round differently at different places.
    """

    def __init__(self, varying: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 640, 3, padding=1)
        self.fc = nn.Linear(640, 5)
        nn.init.zeros_(self.conv.weight[: 640 - varying])
        nn.init.normal_(self.conv.bias[: 640 - varying])
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.fc(torch.relu(self.conv(x)).mean((2, 3)))
        return scores


def sharpened(module: nn.Module, factor: float) -> nn.Module:
    """Scale the last linear layer of an untrained network, so that its classes differ as a trained one's do."""
    last = [part for part in module.modules() if isinstance(part, nn.Linear)][-1]
    with torch.no_grad():
        last.weight.mul_(factor)
    return module.eval()


@pytest.fixture(scope="session")
def resnet18() -> nn.Module:
    """ResNet-18, untrained (seeded)."""
    torch.manual_seed(0)
    return sharpened(torchvision.models.resnet18(weights=None), 4.0)


@pytest.fixture(scope="session")
def resnet18_file(resnet18: nn.Module, models: Path) -> Path:
    """ResNet-18 at 96x96, target layer 512 x 3 x 3: fast enough for many explanations."""
    return export(resnet18, models / "resnet18.onnx", preprocess="imagenet", input_size=96).path


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, photos: dict[str, Path]) -> Path:
    """A folder of small models and photos for tests of the server."""
    from serving import make_files

    folder = tmp_path_factory.mktemp("served")
    make_files(folder, photos)
    return folder


@pytest.fixture
def in_table(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Give what a test showed to docs/models.md, which is written from the results: pytest --junitxml.

    Called with the model, the kind of source, and either the file that was exported and explained, or the reason why
    there is none.
    """

    def record(model: str, source: str, file: Path | None = None, refused: str = "") -> None:
        fields: dict[str, Any] = {"model": model, "source": source, "refused": refused}
        if file is not None:
            contract = ortcam.CamModel(file).contract
            shape = onnx.load(file, load_external_data=False).graph.output[1].type.tensor_type.shape
            dims = [dim.dim_value for dim in shape.dim][1:]
            fields |= {
                "layer": contract.layer,
                "shape": " x ".join(map(str, dims if contract.activations_layout == "NCHW" else [dims[2], *dims[:2]])),
                "output": contract.output,
                "scores": contract.verified["logits_relative_error"],
                "activations": contract.layers[0].verified["activations_relative_error"],
            }
        for name, value in fields.items():
            record_property(name, "" if value is None else value)

    return record


def check_explanation(path: Path, photo: Path, expected: int | None = None) -> ortcam.Explanation:
    """Explain a photo: the class is the expected one, and the map shows something."""
    explanation = ortcam.ScoreCAM(path).explain(photo)
    if expected is not None:
        assert explanation.targets[0].index == expected
    assert not explanation.flat[0]
    assert explanation.input_maps[0].max() > 0.9
    assert explanation.input_maps[0].std() > 0.05, "a map this flat shows nothing"
    return explanation


def correlation(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Pearson's r of two maps."""
    return float(np.corrcoef(ours.ravel(), theirs.ravel())[0, 1])


def assert_same_map(ours: np.ndarray, theirs: np.ndarray) -> None:
    """The project's measure of parity: Pearson r >= 0.9999 and no pixel of the map in [0,1] further than 2e-3."""
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.05, "a map this flat would prove nothing"
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] >= 0.9999
    assert np.abs(ours - theirs).max() <= 2e-3
