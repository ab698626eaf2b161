"""Which layer `auto` takes, on real architectures, and how layers are named."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
import torch
import torchvision
from torch import nn

from ortcam.errors import LayerError
from ortcam.exporters.pytorch import convert_module
from ortcam.exporters.pytorch_sources import LoadedModule
from ortcam.exporters.sources import SourceOptions
from ortcam.graph.layers import find_candidates, find_layer, module_outputs

CHEAP = SourceOptions(None, (64, 64), 20, None)
USUAL = SourceOptions(None, (224, 224), 20, None)

# The layer that the literature explains, for each family, and its channels. VGG: the authors' repository takes
# features_29 of VGG-16. SqueezeNet: features, since its last convolution is the classifier.
EXPECTED = {
    "resnet18": ("layer4", "Relu", 512),
    "vgg11": ("features.19", "Relu", 512),
    "squeezenet1_1": ("features", "Concat", 512),
    "mobilenet_v2": ("features", "Clip", 1280),
    "mobilenet_v3_small": ("features", "HardSwish", 576),
    "densenet121": (None, "Relu", 1024),
    "efficientnet_b0": ("features", "Mul", 1280),
    "convnext_tiny": ("features", "Add", 768),
    "regnet_x_400mf": ("trunk_output", "Relu", 400),
    "shufflenet_v2_x0_5": ("conv5", "Relu", 1024),
    "inception_v3": ("Mixed_7c", "Concat", 2048),
}
SLOW = {
    "inception_v3",
    "densenet121",
    "efficientnet_b0",
    "convnext_tiny",
    "regnet_x_400mf",
    "shufflenet_v2_x0_5",
    "mobilenet_v2",
}


def converted(module: nn.Module, options: SourceOptions = CHEAP) -> ir.Model:
    return convert_module(LoadedModule("net", module.eval(), {}), options).model


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in EXPECTED]
)
def test_auto_takes_the_layer_of_the_literature(name: str) -> None:
    torch.manual_seed(0)
    model = converted(torchvision.models.get_model(name, weights=None), USUAL)
    layer, op_type, channels = EXPECTED[name]
    best = find_candidates(model)[0]
    assert best.module == layer
    assert best.op_type == op_type
    assert channels in (best.shape[0], best.shape[-1])


@pytest.mark.slow
def test_squeeze_excite_branches_are_no_candidates() -> None:
    model = converted(torchvision.models.mobilenet_v3_small(weights=None))
    gates = {
        value for name, value in module_outputs(model.graph).items() if "scale_activation" in name or ".fc" in name
    }
    assert gates
    names = {gate.name for gate in gates}
    assert not names & {candidate.value for candidate in find_candidates(model)}


def test_modules_are_found_by_name(resnet18: nn.Module) -> None:
    model = converted(resnet18)
    for name, channels in (("layer1", 64), ("layer2.0", 128), ("layer3.1.relu", 256), ("maxpool", 64)):
        feature_map, recorded = find_layer(model, name)
        assert recorded == name
        assert feature_map.layout == "NCHW"
        assert feature_map.shape[0] == channels
    best = find_layer(model, "auto")[0].value
    assert find_layer(model, "layer4")[0].value is best
    assert find_layer(model, best.name or "")[0].value is best


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("layer5", r"nearest: layer4, layer3, layer2 \(see: ortcam inspect\)"),
        ("fc", "has 2 dimensions.*try: layer4"),
        ("", "is not in"),
    ],
)
def test_a_layer_that_cannot_be_explained(resnet18: nn.Module, layer: str, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        find_layer(converted(resnet18), layer)


class Reused(nn.Module):
    """One activation module called twice, a functional one after it, and a head that is a 1x1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.act = nn.ReLU()
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.a(x))
        x = self.act(self.b(x))
        x = nn.functional.silu(x)
        return self.head(x.mean((2, 3), keepdim=True)).flatten(1)


def test_a_reused_module_counts_by_its_last_call_and_functions_are_found() -> None:
    model = converted(Reused())
    by_module, _ = find_layer(model, "act")
    assert by_module.shape[0] == 16
    best = find_candidates(model)[0]
    assert (best.module, best.op_type, best.shape) == (None, "Mul", (16, 16, 16))


class NoSpace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 64 * 64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.fc(x.flatten(1))
        return scores


def test_a_network_without_feature_maps_is_refused() -> None:
    with pytest.raises(LayerError, match="no spatial feature map"):
        find_layer(converted(NoSpace()), "auto")


def test_candidates_of_an_exported_file(lite0_file: Path) -> None:
    model = ir.load(lite0_file)
    best = find_candidates(model)[0]
    assert best.value == "activations"
    assert best.shape == (1280, 7, 7)


@pytest.mark.slow
def test_a_short_sequence_has_no_grid_and_stops_nothing() -> None:
    """Fewer tokens than other tokens could come first, as in MobileViT at a small size."""

    class Few(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.mix, self.fc = nn.Conv2d(3, 8, 32), nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = self.mix(self.conv(x)[:, :, 0].transpose(1, 2)).relu()
            scores: torch.Tensor = self.fc(tokens.mean(1))
            return scores

    best = find_candidates(converted(Few(), SourceOptions(None, (32, 36), 20, None)))
    assert [candidate.shape for candidate in best] == [(8, 1, 5)]
