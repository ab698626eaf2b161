"""The networks of the benchmark, each with the layer that every candidate explains."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from ortcam.cli.demo import load_efficientnet_lite0
from ortcam.exporters import export


@dataclass(frozen=True)
class Network:
    """A network in PyTorch, as a file that ortcam exported, and maybe as its Keras twin.

    Attributes:
        name: what the tables call it.
        module: in evaluation mode.
        layer: the module that the PyTorch peers hook; its output is the file's `activations`.
        path: the model file.
        keras: makes the Keras twin (same architecture and layer, weights of its own) and names its layer.
        trained: whether maps mean anything: without weights only the time does.
        rounds: how often the slow candidates take a turn.
    """

    name: str
    module: nn.Module
    layer: nn.Module
    path: Path
    keras: Callable[[], tuple[Any, str]] | None
    trained: bool
    rounds: int


def build(name: str, folder: Path) -> Network:
    """Build a network and export it into `folder`; untrained ones are seeded."""
    torch.manual_seed(0)
    if name == "EfficientNet-Lite0":
        module = load_efficientnet_lite0()
        path = export(module, folder / "lite0.onnx", preprocess="lite", labels="imagenet").path
        hooked = copy.deepcopy(module)
        hooked._bn1 = nn.Sequential(hooked._bn1, nn.ReLU6())  # a module to hook: ReLU6 of ReLU6 is ReLU6
        return Network(name, hooked.eval(), hooked._bn1, path, None, trained=True, rounds=2)
    if name == "MobileNetV2":
        module = torchvision.models.mobilenet_v2(weights=None).eval()
        layer, twin, rounds = module.features[18], _keras("MobileNetV2", "out_relu"), 2
    elif name == "ResNet-50":
        module = torchvision.models.resnet50(weights=None).eval()
        layer, twin, rounds = module.layer4, _keras("ResNet50", "conv5_block3_out"), 1
    else:
        module = torchvision.models.vgg16(weights=None).eval()
        for part in module.modules():
            if isinstance(part, nn.ReLU):
                part.inplace = False
        layer, twin, rounds = module.features[29], _keras("VGG16", "block5_conv3"), 1
    path = export(module, folder / f"{name}.onnx", preprocess="imagenet").path
    return Network(name, module, layer, path, twin, trained=False, rounds=rounds)


NETWORKS = ("EfficientNet-Lite0", "MobileNetV2", "ResNet-50", "VGG-16")


def _keras(name: str, layer: str) -> Callable[[], tuple[Any, str]]:
    def make() -> tuple[Any, str]:
        import keras

        return getattr(keras.applications, name)(weights=None), layer

    return make
