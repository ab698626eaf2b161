"""Every preset against its origin: the installed peers, or the formula written out channel by channel in torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F  # noqa: N812
import torchvision
from conftest import assert_same_map, sharpened
from pytorch_grad_cam import ScoreCAM as GradCamScoreCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torchcam.methods import ScoreCAM as TorchcamScoreCAM

import ortcam
from ortcam.cli.demo import load_efficientnet_lite0
from ortcam.exporters import export


@dataclass(frozen=True)
class Network:
    """A network in both worlds: what peers hook in it, and its file."""

    module: nn.Module
    layer: nn.Module
    path: Path


@pytest.fixture(scope="module")
def small(resnet18: nn.Module, resnet18_file: Path) -> Network:
    return Network(resnet18, resnet18.layer4, resnet18_file)


@pytest.fixture(scope="module", params=["resnet18", "vgg16", "efficientnet-lite0"])
def full_size(request: pytest.FixtureRequest, models: Path) -> Network:
    """ResNet-18 and VGG-16 (untrained, seeded) and EfficientNet-Lite0 (trained on ImageNet) at 224x224."""
    path = models / f"full-{request.param}.onnx"
    if request.param == "efficientnet-lite0":
        network = load_efficientnet_lite0()
        # A module that peers can hook after the activation; ReLU6 of ReLU6 is ReLU6, so nothing else changes.
        network._bn1 = nn.Sequential(network._bn1, nn.ReLU6())
        network.eval()
        export(network, path, preprocess="lite")
        return Network(network, network._bn1, path)
    torch.manual_seed(0)
    network = sharpened(torchvision.models.get_model(request.param, weights=None), 4.0)
    layer = network.layer4 if request.param == "resnet18" else network.features[29]
    export(network, path, preprocess="imagenet")
    return Network(network, layer, path)


def explain(network: Network, photo: Path, preset: str) -> tuple[ortcam.Explanation, torch.Tensor]:
    """Return our explanation of the top class, and the input tensor."""
    cam = ortcam.ScoreCAM(network.path, preset=preset)
    _, tensor, _ = cam.model.prepare(photo)
    return cam.explain(photo), torch.from_numpy(tensor)


def torchcam_map(network: Network, tensor: torch.Tensor, target: int) -> np.ndarray:
    """torchcam's map [H,W]; its own is of the layer's size and is resized here, as its overlay does."""
    with TorchcamScoreCAM(network.module, network.layer) as cam:
        with torch.inference_mode():
            network.module(tensor)
        (small_map,) = cam(target)
    return F.interpolate(small_map[None], tensor.shape[2:], mode="bilinear")[0, 0].numpy()


def grad_cam_map(network: Network, tensor: torch.Tensor, target: int) -> np.ndarray:
    with GradCamScoreCAM(network.module, [network.layer]) as cam:
        return cam(tensor, [ClassifierOutputTarget(target)])[0]


PEERS = {"torchcam": torchcam_map, "pytorch-grad-cam": grad_cam_map}


@pytest.mark.parametrize("preset", PEERS)
@pytest.mark.parametrize("photo", ["imagenet_00", "chelsea"])
def test_small_resnet_against_the_installed_peer(
    small: Network, photos: dict[str, Path], preset: str, photo: str
) -> None:
    explanation, tensor = explain(small, photos[photo], preset)
    assert_same_map(explanation.input_maps[0], PEERS[preset](small, tensor, explanation.targets[0].index))


@pytest.mark.slow
@pytest.mark.parametrize("preset", PEERS)
def test_full_size_networks_against_the_installed_peer(
    full_size: Network, photos: dict[str, Path], preset: str
) -> None:
    explanation, tensor = explain(full_size, photos["imagenet_00"], preset)
    assert_same_map(explanation.input_maps[0], PEERS[preset](full_size, tensor, explanation.targets[0].index))


Formula = Callable[[nn.Module, torch.Tensor, torch.Tensor, int], np.ndarray]


def minmax(z: torch.Tensor, epsilon: float = 0.0) -> torch.Tensor:
    return (z - z.min()) / (z.max() - z.min() + epsilon)


def official_formula(module: nn.Module, x: torch.Tensor, activations: torch.Tensor, c: int) -> np.ndarray:
    """The loop of the authors' repository: upsample, skip constants, normalise, weigh by the probability."""
    total = torch.zeros(x.shape[2:])
    for channel in activations[0]:
        up = F.interpolate(channel[None, None], x.shape[2:], mode="bilinear", align_corners=False)
        if up.max() == up.min():
            continue
        total += F.softmax(module(x * minmax(up)), dim=1)[0, c] * up[0, 0]
    return minmax(F.relu(total)).numpy()


def paper_formula(module: nn.Module, x: torch.Tensor, activations: torch.Tensor, c: int) -> np.ndarray:
    """Algorithm 1 with the baseline x_b = 0: the channel-wise increase of confidence, softmax, ReLU."""
    baseline = module(torch.zeros_like(x))[0, c]
    kept, increases = [], []
    for channel in activations[0]:
        up = F.interpolate(channel[None, None], x.shape[2:], mode="bilinear", align_corners=False)
        if up.max() == up.min():
            continue
        kept.append(channel)
        increases.append(module(x * minmax(up))[0, c] - baseline)
    alpha = F.softmax(torch.stack(increases), dim=0)
    saliency = F.relu((alpha[:, None, None] * torch.stack(kept)).sum(0))
    return minmax(F.interpolate(saliency[None, None], x.shape[2:], mode="bilinear")[0, 0]).numpy()


def tf_keras_vis_formula(module: nn.Module, x: torch.Tensor, activations: torch.Tensor, c: int) -> np.ndarray:
    """As tf_keras_vis/scorecam.py computes it: scipy's zoom, a softmax of the output, ReLU, zoom, normalise."""
    zoom = [x.shape[2] / activations.shape[2], x.shape[3] / activations.shape[3]]
    weights = []
    for channel in activations[0].numpy():
        up = torch.from_numpy(scipy.ndimage.zoom(channel, zoom, order=1, mode="nearest"))
        weights.append(F.softmax(module(x * minmax(up, 1e-7)), dim=1)[0, c].item())
    cam = np.maximum(np.tensordot(np.array(weights, np.float32), activations[0].numpy(), 1), 0)
    return minmax(torch.from_numpy(scipy.ndimage.zoom(cam, zoom, order=1)), 1e-7).numpy()


FORMULAS: dict[str, Formula] = {
    "official": official_formula,
    "paper": paper_formula,
    "tf-keras-vis": tf_keras_vis_formula,
}


def check_against_formula(network: Network, photo: Path, preset: str) -> None:
    explanation, tensor = explain(network, photo, preset)
    activations: list[torch.Tensor] = []
    handle = network.layer.register_forward_hook(lambda *args: activations.append(args[2].clone()))
    with torch.no_grad():
        network.module(tensor)
        handle.remove()
        expected = FORMULAS[preset](network.module, tensor, activations[0], explanation.targets[0].index)
    assert_same_map(explanation.input_maps[0], expected)


@pytest.mark.parametrize(
    "preset", [pytest.param(name, marks=() if name == "official" else pytest.mark.slow) for name in FORMULAS]
)
def test_small_resnet_against_the_formula(small: Network, photos: dict[str, Path], preset: str) -> None:
    check_against_formula(small, photos["imagenet_00"], preset)


@pytest.mark.slow
@pytest.mark.parametrize("preset", FORMULAS)
def test_full_size_networks_against_the_formula(full_size: Network, photos: dict[str, Path], preset: str) -> None:
    check_against_formula(full_size, photos["chelsea"], preset)
